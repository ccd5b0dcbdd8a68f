//! The retention hold: what is older than its retention is not deleted on arrival.

use std::time::{Duration, Instant};

use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, tell};

const DAY: Duration = Duration::from_hours(24);
const RECORDS: u64 = 1_000;
/// When a broker looks for the first time.
const DELAY: &str = "log.initial.task.delay.ms";

/// The retention that was set on the mirror.
async fn retention(cloud: &KafkaCluster, topic: &str) -> Option<String> {
    cloud.topic_configs(topic).await.remove("retention.ms")
}

async fn wait_for_retention(cloud: &KafkaCluster, topic: &str, wanted: &str) {
    until(&format!("{topic} has retention.ms={wanted}"), DEADLINE, async || {
        let seen = retention(cloud, topic).await;
        if seen.as_deref() == Some(wanted) { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn a_backlog_older_than_its_retention_is_there_after_the_drain() {
    let _turn = Turn::apart().await;
    // The source looks once an hour for what is too old, the cloud all the time.
    let looks = |interval| ClusterSpec::single().set("log.retention.check.interval.ms", interval).set(DELAY, interval);
    let (source, cloud) = tokio::join!(KafkaCluster::start(looks("3600000")), KafkaCluster::start(looks("100")));
    let topic = unique_name("aged");
    let day = DAY.as_millis().to_string();
    source.create_topic(&topic, 1, 1, &[("retention.ms", &day), ("segment.bytes", "1048576")]).await;
    let workload = Workload::new().topic(&topic, 1).age(DAY * 7);
    workload.produce(&source.client_config(), RECORDS).await;

    let start = Instant::now();
    let spec = RigSpec::new(&[&topic]).gateway("retention.grace", "5 s");
    let rig = Rig::start(&source, &cloud, spec).await;
    let seen = await_equal_with_gaps(&source, &cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: RECORDS, aborted: 0 });
    assert_eq!(retention(&cloud, &topic).await.as_deref(), Some("-1"));
    tell("a backlog of last week, with a retention of a day", RECORDS, start);

    // Then it is kept as long as at the source: the broker takes what is too old.
    wait_for_retention(&cloud, &topic, &day).await;
    until("the mirror keeps to its retention", DEADLINE, async || {
        let range = cloud.log_range(&topic, 0).await?;
        if range.0 == range.1 { Ok(()) } else { Err(format!("{range:?}")) }
    })
    .await;
    tell("the same, and then deleted", RECORDS, start);
}
