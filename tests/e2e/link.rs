//! The link itself misbehaves: the client's address changes, the link comes and goes.

use std::time::{Duration, Instant};

use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::lossy_link::{Profile, Way};
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

const PARTITIONS: i32 = 3;

/// Bytes the cloud confirmed, as the agent counts them.
async fn acked(rig: &Rig) -> f64 {
    rig.agent.metric("tombolo_acked_bytes_total").await
}

#[tokio::test]
async fn a_change_of_the_clients_address_needs_no_new_handshake() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("roaming");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let producer = Workload::new().topic(&topic, PARTITIONS).rate(2_000).start(&pair.source.client_config());
    for _ in 0..4 {
        rig.link.change_client_address().await;
        let before = acked(&rig).await;
        until("records go on after the change of address", DEADLINE, async || {
            let now = acked(&rig).await;
            if now > before + 50_000.0 { Ok(()) } else { Err(format!("{now} bytes, before {before}")) }
        })
        .await;
    }
    let written = producer.stop().await.acknowledged();
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
    for (end, name) in [(&rig.agent, "tombolo_handshakes_total"), (&rig.gateway, "tombolo_gateway_handshakes_total")] {
        assert!((end.metric(name).await - 1.0).abs() < f64::EPSILON, "{name}");
    }
    tell("four changes of address, one handshake", written, start);
}

/// Two megabits a second each way, 40 ms.
fn narrow() -> Profile {
    let way = Way { rate: Some(2_000_000), delay: Duration::from_millis(20), queue_bytes: 64 << 10, ..Way::CLEAN };
    Profile { up: way, down: way, seed: 1 }
}

#[tokio::test]
async fn a_link_that_flaps_confirms_bytes_in_every_bright_phase() {
    const BRIGHT: Duration = Duration::from_secs(20);
    const DARK: Duration = Duration::from_secs(40);
    const PHASES: u32 = 3;
    // 20 MB once compressed: more than the bright phases carry, which is 3 x 20 s x 250 kB.
    const RECORDS: u64 = 40_000;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("flapping");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS).codec(Codec::None).shape(Shape::Plain(1_000));
    let written = workload.produce(&pair.source.client_config(), RECORDS).await.acknowledged();
    let mut rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic]).profile(narrow())).await;
    // The darkness is longer than a connection lives.
    rig.agent.allow("session ended");
    rig.agent.allow("gateway");
    rig.gateway.allow("ended");

    let start = Instant::now();
    let mut before = 0.0;
    for phase in 1..=PHASES {
        tokio::time::sleep(BRIGHT).await;
        rig.link.dark(true);
        let after = acked(&rig).await;
        assert!(after > before, "bright phase {phase}: {before} bytes before it, {after} after it");
        before = after;
        if phase < PHASES {
            tokio::time::sleep(DARK).await;
            rig.link.dark(false);
        }
    }
    rig.link.set(Profile::CLEAN);
    rig.link.dark(false);
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
    tell("three bright phases of a flapping link, then a clean one", written, start);
}
