//! What the settings promise about memory holds with thousands of partitions, a dark link and a slow cloud.

use std::time::{Duration, Instant};

use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::lossy_link::{Profile, Way};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

const TOPICS: i32 = 20;
const PARTITIONS: i32 = 100;
/// 80 MB: several times what either daemon may hold.
const RECORDS: u64 = 80_000;
const MIB: u64 = 1 << 20;
/// The default of `memory.limit` in deploy/agent.toml; and what is promised of a gateway with one link, which has room for four.
const AGENT_MIB: u64 = 64;
const GATEWAY_MIB: u64 = 96;

#[tokio::test]
async fn memory_stays_within_the_settings_whatever_the_link_does() {
    let _turn = Turn::apart().await;
    let spec = || ClusterSpec::single().heap_mib(768);
    let (source, cloud) = tokio::join!(KafkaCluster::start(spec()), KafkaCluster::start(spec()));
    let topics: Vec<String> = (0..TOPICS).map(|_| unique_name("wide")).collect();
    for topic in &topics {
        source.create_topic(topic, PARTITIONS, 1, &[]).await;
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let start = Instant::now();
    let way = Way { rate: Some(50_000_000), delay: Duration::from_millis(20), ..Way::CLEAN };
    let profile = Profile { up: way, down: way, seed: 1 };
    // A journal that is full soon, so that the window fills up as well; its files are large enough to fill their cache.
    let spec = RigSpec::new(&topics).profile(profile);
    let spec = spec.agent("journal.segment", "16 MiB").agent("journal.max_bytes", "32 MiB");
    let mut rig = Rig::start(&source, &cloud, spec).await;
    // Two thousand partitions are looked at while their brokers are busy; the cloud broker is stopped for a while.
    for daemon in [&mut rig.agent, &mut rig.gateway] {
        daemon.allow("WARN");
    }
    rig.agent.allow("the journal takes nothing");
    wait_until_active(&rig, &topics).await;
    tell("partitions live", 2_000, start);

    rig.link.dark(true);
    let mut workload = Workload::new().shape(Shape::Plain(1_000));
    for topic in &topics {
        workload = workload.topic(topic, PARTITIONS);
    }
    let written = workload.produce(&source.client_config(), RECORDS).await.acknowledged();
    let full = 10.0 * 1024.0 * 1024.0;
    until("the agent's window is full", DEADLINE, async || {
        let held = rig.agent.metric("tombolo_window_bytes").await;
        if held > full { Ok(()) } else { Err(format!("{held} bytes")) }
    })
    .await;

    tell("written in the dark until the window is full", written, start);
    for broker in cloud.broker_ids() {
        cloud.pause_broker(broker);
    }
    rig.link.dark(false);
    let slow = tokio::time::Instant::now() + Duration::from_secs(8);
    tokio::time::sleep_until(slow).await;
    for broker in cloud.broker_ids() {
        cloud.continue_broker(broker);
    }
    assert_equal(&source, &cloud, &topics, written).await;
    tell("2 000 partitions through darkness and a stopped broker", written, start);

    for (daemon, name, promised) in [(&mut rig.agent, "agent", AGENT_MIB), (&mut rig.gateway, "gateway", GATEWAY_MIB)] {
        let peak = daemon.vm_hwm_bytes() / MIB;
        assert!(peak < promised, "the {name} took {peak} MiB at its peak, promised are {promised}");
        tell_peak(name, peak);
    }
}

#[expect(clippy::print_stdout, reason = "figures for people, shown with --nocapture")]
fn tell_peak(name: &str, mib: u64) {
    println!("{name}: {mib} MiB at its peak");
}
