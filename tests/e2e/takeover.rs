//! A gateway that was stopped with appends in flight wakes after another one took its link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tombolo_kafka::admin::describe_producers;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::process::Daemon;
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

/// More than fit into what one connection has in flight: some appends are not yet sent when the gateway stops.
const PARTITIONS: i32 = 12;
const RATE: u32 = 3_000;
const WEEK: Duration = Duration::from_hours(7 * 24);

#[tokio::test]
async fn a_gateway_that_wakes_after_a_takeover_writes_nothing() {
    let _turn = Turn::apart().await;
    drop(take_over(ClusterSpec::single(), Duration::ZERO).await);
}

/// The broker forgets a producer by the age of its records: of the link it knows nothing when the first gateway wakes,
/// and would take any batch of it at the log's end.
#[tokio::test]
async fn a_gateway_that_wakes_writes_nothing_where_the_broker_forgot_the_link() {
    let _turn = Turn::apart().await;
    let spec = ClusterSpec::single().set("producer.id.expiration.check.interval.ms", "500");
    let (cloud, topic) = take_over(spec, WEEK).await;
    let client = cloud.raw_client();
    let connection = client.connect(1).await.unwrap();
    let topic: Arc<str> = topic.into();
    let wanted: Vec<_> = (0..PARTITIONS).map(|partition| (Arc::clone(&topic), partition)).collect();
    until("the broker has forgotten every producer", DEADLINE, async || {
        let answers = describe_producers(&connection, &wanted).await.unwrap();
        let known: usize = answers.into_iter().map(|answer| answer.result.unwrap().len()).sum();
        if known == 0 { Ok(()) } else { Err(known) }
    })
    .await;
}

/// Gives the cloud cluster and the mirror, which is equal to its source.
async fn take_over(cloud: ClusterSpec, age: Duration) -> (KafkaCluster, String) {
    let (source, cloud) = tokio::join!(KafkaCluster::start(ClusterSpec::single()), KafkaCluster::start(cloud));
    let topic = unique_name("taken");
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let spec = RigSpec::new(&[&topic])
        .gateway("produce.connections_per_broker", 1)
        // Longer than the first gateway sleeps: it wakes in the middle of its session.
        .gateway("produce.timeout", "3 min")
        .gateway("quic.idle_timeout", "3 min")
        .agent("link.idle_timeout", "3 min");
    let mut rig = Rig::start(&source, &cloud, spec).await;
    // Its look at the registry ends with its own sleep.
    rig.gateway.allow("registry cannot be read");
    wait_until_active(&rig, &[&topic]).await;
    let start = Instant::now();
    let producer = Workload::new().topic(&topic, PARTITIONS).age(age).rate(RATE).start(&source.client_config());
    wait_until_confirmed(&rig.gateway, 100_000.0).await;

    // The broker answers nothing for a moment: what was sent to it is in flight when the gateway stops.
    cloud.pause_broker(1);
    until("appends hang", DEADLINE, async || {
        let held = rig.gateway.metric("tombolo_gateway_held_bytes").await;
        if held > 200_000.0 { Ok(()) } else { Err(held) }
    })
    .await;
    rig.gateway.pause();
    cloud.continue_broker(1);
    let (second, address) = rig.another_gateway().await;
    rig.link.redirect(address).await;
    rig.agent.restart();
    wait_until_confirmed(&second, 100_000.0).await;

    rig.gateway.resume();
    let stale = until("the first gateway finds itself too late", DEADLINE, async || {
        let stale = rig.gateway.metric("tombolo_gateway_stale_answers_total").await;
        if stale > 0.0 { Ok(stale) } else { Err(stale) }
    })
    .await;
    tell_stale(stale);
    wait_until_confirmed(&second, 200_000.0).await;
    let written = producer.stop().await.acknowledged();
    assert_equal(&source, &cloud, &[&topic], written).await;
    tell("a takeover, and the first gateway back", written, start);
    drop((rig, second));
    (cloud, topic)
}

/// Waits until the cloud has confirmed this many more bytes to the gateway.
async fn wait_until_confirmed(gateway: &Daemon, bytes: f64) {
    const CONFIRMED: &str = "tombolo_gateway_confirmed_bytes_total";
    let before = gateway.metric(CONFIRMED).await;
    until("the mirror grows", DEADLINE, async || {
        let now = gateway.metric(CONFIRMED).await;
        if now >= before + bytes { Ok(()) } else { Err(format!("{now} bytes, before {before}")) }
    })
    .await;
}

#[expect(clippy::print_stdout, reason = "figures for people, shown with --nocapture")]
fn tell_stale(stale: f64) {
    println!("{stale} batches of the first gateway came too late");
}
