//! Logs that lose their beginning at the source after it was mirrored.

use std::time::Instant;

use tombolo_tests::broker::{KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{
    Seen, await_equal, consumer_equal, consumers_equal_from, raw_compare, wait_until_mirrored,
};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, tell, wait_until_active};

/// Of each topic, at a time.
const RECORDS: i64 = 100;

#[tokio::test]
async fn what_the_source_deletes_later_is_deleted_in_mirrors_that_follow_it_alone() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (followed, kept) = (unique_name("followed"), unique_name("kept"));
    let topics = [followed.as_str(), kept.as_str()];
    for topic in topics {
        pair.source.create_topic(topic, 1, 1, &[]).await;
    }
    let config = pair.source.client_config();
    let workload = Workload::new().topic(&followed, 1).topic(&kept, 1);
    let spec = RigSpec::new(&[&followed]).mirror("log_start", "follow").filter(&kept).impatient();

    let start = Instant::now();
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    wait_until_active(&rig, &topics).await;
    workload.produce(&config, 200).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &topics, DEADLINE).await;
    // From amid a batch, then all there is.
    for log_start in [37, RECORDS] {
        for topic in topics {
            pair.source.delete_records(topic, 0, log_start).await;
        }
        wait_for_log_start(&pair.cloud, &followed, log_start).await;
        // Brokers serve a batch whole, also where the log starts amid it.
        let raw = raw_compare(&pair.source, &pair.cloud, &[&followed]).await;
        assert!(raw.is_identical(), "{:?}", raw.differences);
        let left = consumer_equal(&pair.source, &pair.cloud, &[&followed]).await;
        assert_eq!(i64::try_from(left), Ok(RECORDS - log_start));
        assert_eq!(
            pair.cloud.log_range(&kept, 0).await,
            Ok((0, RECORDS)),
            "the mirror that keeps its records lost some"
        );
    }

    // A session that finds an empty log goes on behind it.
    rig.agent.allow("nothing left at the source to compare the mirror's end with");
    rig.gateway.allow("the agent had nothing to compare the mirror's tail with");
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    workload.produce(&config, 200).await;
    assert_eq!(await_equal(&pair.source, &pair.cloud, &[&followed], DEADLINE).await, 100);
    wait_until_mirrored(&pair.source, &pair.cloud, &[&kept], DEADLINE).await;
    let seen = consumers_equal_from(&pair.source, &pair.cloud, &kept, 0, RECORDS).await;
    assert_eq!(seen, Seen { records: 100, aborted: 0 });
    assert_eq!(pair.cloud.log_range(&kept, 0).await, Ok((0, 2 * RECORDS)));
    tell("log starts that move up at the source", 400, start);
}

async fn wait_for_log_start(cloud: &KafkaCluster, topic: &str, log_start: i64) {
    until(&format!("the mirror of {topic} starts at {log_start}"), DEADLINE, async || {
        let seen = cloud.log_range(topic, 0).await.map(|(first, _)| first);
        if seen == Ok(log_start) { Ok(()) } else { Err(seen) }
    })
    .await;
}
