//! The site goes on while the link is dark: what the journal took is in the cloud in the end, whatever became of the
//! source meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_tests::broker::{KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{consumed_records, wait_until_mirrored};
use tombolo_tests::image::{LogImage, log_image, records_of};
use tombolo_tests::process::Daemon;
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec, copy_folder};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_for_state, wait_until_active};

const PARTITIONS: i32 = 6;
/// Of the journals here.
const SEGMENT: &str = "32 MiB";

/// Links that are given up soon, and small journal files.
pub(crate) fn spec(topics: &[&str]) -> RigSpec {
    RigSpec::new(topics)
        .agent("journal.segment", SEGMENT)
        .agent("journal.max_bytes", "1 GiB")
        .agent("link.idle_timeout", "4 s")
        .agent("link.keep_alive", "1 s")
        .gateway("quic.idle_timeout", "4 s")
        .gateway("quic.keep_alive", "1 s")
        .gateway("registry.lease", "1 s")
}

/// Offset after the last one in the journal, by topic and partition.
fn journaled(status: &Value) -> BTreeMap<(String, i64), i64> {
    let mut ends = BTreeMap::new();
    for mirror in status["mirrors"].as_array().into_iter().flatten() {
        for partition in mirror["partitions"].as_array().into_iter().flatten() {
            if let (Some(number), Some(end)) = (partition["partition"].as_i64(), partition["journal"][1].as_i64()) {
                ends.insert((mirror["topic"].as_str().unwrap().to_owned(), number), end);
            }
        }
    }
    ends
}

/// Waits until the journal holds everything up to the source's end.
pub(crate) async fn wait_until_journaled(agent: &Daemon, source: &KafkaCluster, topic: &str) {
    let count = source.topics().await[topic];
    let mut ends = BTreeMap::new();
    for partition in 0..count {
        let (_, end) = source.log_range(topic, partition).await.unwrap();
        ends.insert((topic.to_owned(), i64::from(partition)), end);
    }
    until(&format!("the journal holds {topic} to its end"), DEADLINE, async || {
        let mut seen = journaled(&agent.status().await);
        seen.retain(|key, _| key.0 == topic);
        if seen == ends { Ok(()) } else { Err(format!("{seen:?} of {ends:?}")) }
    })
    .await;
}

/// The source deletes all it has; what it had.
async fn delete_all(source: &KafkaCluster, topic: &str) -> LogImage {
    let image = log_image(source, &[topic]).await;
    for (topic, partition) in image.keys() {
        let (_, end) = source.log_range(topic, *partition).await.unwrap();
        source.delete_records(topic, *partition, end).await;
        assert_eq!(source.log_range(topic, *partition).await.unwrap(), (end, end), "the source still has records");
    }
    image
}

/// Waits until the journal's files are gone, all but a segment.
async fn wait_until_drained(agent: &Daemon) {
    until("the journal is empty", DEADLINE, async || {
        let status = agent.status().await;
        let bytes = |name: &str| status["journal"][name].as_u64().unwrap();
        let drained = bytes("frame_bytes") == 0 && bytes("file_bytes") < 32 << 20;
        if drained { Ok(()) } else { Err(status["journal"].clone()) }
    })
    .await;
}

/// Darkens the link and waits until the agent knows.
pub(crate) async fn go_dark(rig: &Rig) {
    rig.link.dark(true);
    until("the link is down", DEADLINE, async || {
        let status = rig.agent.status().await;
        if status["link"]["state"] == "UNAVAILABLE" { Ok(()) } else { Err(status["link"].clone()) }
    })
    .await;
}

#[tokio::test]
async fn two_hundred_megabytes_outlive_two_restarts_and_their_source() {
    const RECORDS: u64 = 200_000;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("outage");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(1_000));
    workload.produce(&pair.source.client_config(), 1_000).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;

    go_dark(&rig).await;
    let start = Instant::now();
    workload.produce(&pair.source.client_config(), RECORDS / 3).await;
    rig.agent.restart();
    rig.agent.wait_ready().await;
    workload.produce(&pair.source.client_config(), RECORDS / 3).await;
    wait_until_journaled(&rig.agent, &pair.source, &topic).await;
    assert!(rig.agent.terminate(Duration::from_secs(20)).await.success());
    workload.produce(&pair.source.client_config(), RECORDS / 3).await;
    rig.agent.restart();
    rig.agent.wait_ready().await;
    wait_until_journaled(&rig.agent, &pair.source, &topic).await;
    tell("journaled in the dark, with two restarts", RECORDS, start);
    let image = delete_all(&pair.source, &topic).await;

    let start = Instant::now();
    rig.link.dark(false);
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    tell("drained", RECORDS, start);
    let mirrored = log_image(&pair.cloud, &[&topic]).await;
    assert!(mirrored == image, "the mirror is not what the source was");
    assert_eq!(records_of(&image), 1_000 + RECORDS / 3 * 3);
    assert_eq!(consumed_records(&pair.cloud, &[&topic]).await, records_of(&image));
    wait_until_drained(&rig.agent).await;
}

#[tokio::test]
async fn new_partitions_and_topics_are_journaled_in_the_dark() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (topic, prefix) = (unique_name("grown"), unique_name("fleet"));
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&topic]).filter(&format!("{prefix}*"))).await;
    wait_until_active(&rig, &[&topic]).await;
    Workload::new().topic(&topic, 1).produce(&pair.source.client_config(), 100).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    go_dark(&rig).await;
    rig.agent.restart();
    rig.agent.wait_ready().await;

    let new = format!("{prefix}.pumps");
    pair.source.create_topic(&new, 2, 1, &[]).await;
    pair.source.grow_topic(&topic, 3).await;
    let both = Workload::new().topic(&topic, 3).topic(&new, 2);
    both.produce(&pair.source.client_config(), 5_000).await;
    for topic in [&topic, &new] {
        until(&format!("{topic} is in the journal"), DEADLINE, async || {
            let seen = journaled(&rig.agent.status().await);
            let partitions = seen.keys().filter(|key| key.0 == *topic).count();
            let wanted = usize::try_from(pair.source.topics().await[topic]).unwrap();
            if partitions == wanted { Ok(()) } else { Err(seen) }
        })
        .await;
        wait_until_journaled(&rig.agent, &pair.source, topic).await;
    }
    rig.link.dark(false);
    assert_equal(&pair.source, &pair.cloud, &[&topic, &new], 5_100).await;
}

#[tokio::test]
async fn a_failed_mirror_gives_its_space_back_and_the_others_drain() {
    const RECORDS: u64 = 40_000;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (good, bad) = (unique_name("good"), unique_name("bad"));
    for topic in [&good, &bad] {
        pair.source.create_topic(topic, 2, 1, &[]).await;
    }
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&good, &bad])).await;
    rig.gateway.allow("mirror FAILED");
    rig.agent.allow("mirror FAILED");
    wait_until_active(&rig, &[&good, &bad]).await;
    go_dark(&rig).await;
    let workload = Workload::new().topic(&good, 2).topic(&bad, 2).shape(Shape::Plain(1_000));
    workload.produce(&pair.source.client_config(), RECORDS).await;
    for topic in [&good, &bad] {
        wait_until_journaled(&rig.agent, &pair.source, topic).await;
    }
    // Somebody else writes into one of the mirrors.
    Workload::new().topic(&bad, 2).produce(&pair.cloud.client_config(), 10).await;
    rig.link.dark(false);
    wait_for_state(&rig.agent, &bad, "FAILED").await;
    assert_equal(&pair.source, &pair.cloud, &[&good], RECORDS / 2).await;
    wait_until_drained(&rig.agent).await;
}

#[tokio::test]
async fn nothing_is_written_in_a_healthy_minute() {
    const RATE: u32 = 2_000;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("healthy");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let start = Instant::now();
    let producer = Workload::new().topic(&topic, PARTITIONS).rate(RATE).start(&pair.source.client_config());
    tokio::time::sleep(Duration::from_mins(1)).await;
    let written = producer.stop().await.acknowledged();
    tell("a healthy minute", written, start);
    assert!(written > u64::from(RATE) * 30, "the producer did not keep its rate: {written}");
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
    let bytes = rig.agent.metric("tombolo_journal_written_bytes_total").await;
    assert!(bytes == 0.0, "{bytes} bytes went to the journal of a healthy link");
}

#[tokio::test]
async fn a_lost_disk_and_an_old_backup_cost_reading_again() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("restored");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS);
    let mut written = 0;
    let mut produce = async |records: u64| {
        workload.produce(&pair.source.client_config(), records).await;
        written += records;
        written
    };
    produce(3_000).await;
    go_dark(&rig).await;
    produce(3_000).await;
    wait_until_journaled(&rig.agent, &pair.source, &topic).await;
    rig.agent.kill();
    let backup = rig.agent.folder().join("backup");
    copy_folder(&rig.journal(), &backup);
    rig.agent.restart();
    rig.link.dark(false);
    let so_far = produce(3_000).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], so_far).await;

    // The disk of days ago, with frames that the cloud has long had.
    rig.agent.kill();
    std::fs::remove_dir_all(rig.journal()).unwrap();
    copy_folder(&backup, &rig.journal());
    rig.agent.restart();
    let so_far = produce(3_000).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], so_far).await;

    // No disk at all.
    rig.agent.kill();
    std::fs::remove_dir_all(rig.journal()).unwrap();
    rig.agent.restart();
    let so_far = produce(3_000).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], so_far).await;
}

#[tokio::test]
async fn of_two_boxes_with_one_disk_the_older_is_refused() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("cloned");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&topic])).await;
    rig.gateway.allow("incarnation");
    rig.gateway.allow("another agent");
    rig.gateway.allow("took over");
    rig.gateway.allow("connection ended before its session began");
    rig.agent.allow("took over");
    rig.agent.allow("took the link over");
    wait_until_active(&rig, &[&topic]).await;
    let producer = Workload::new().topic(&topic, PARTITIONS).rate(500).start(&pair.source.client_config());
    let mut twin = rig.cloned_agent().await;
    twin.wait_ready().await;
    until("the older agent is refused, and says why", DEADLINE, async || {
        let status = rig.agent.status().await;
        let link = &status["link"];
        let told = link["last_error"].as_str().is_some_and(|error| error.contains("took over"));
        if told && link["state"] == "UNAVAILABLE" { Ok(()) } else { Err(link.clone()) }
    })
    .await;
    wait_for_state(&twin, &topic, "ACTIVE").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(twin.status().await["link"]["state"], "ACTIVE", "the younger one is left in peace");
    let written = producer.stop().await.acknowledged();
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
}
