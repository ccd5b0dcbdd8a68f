//! Logs that cannot be mirrored: their mirror stops with the place and the reason, and no other does.

use std::time::Instant;

use tombolo_proto::batch::split;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::Transactions;

use crate::course::{Turn, assert_equal, tell, wait_for_state, wait_until_active};

/// Good records before the bad one.
const BEFORE: u64 = 10;
/// Most offsets that a mirror here may skip.
const MAX_GAP: u32 = 10;

/// A topic and what becomes of its mirror.
struct Unfit {
    topic: String,
    code: &'static str,
    /// Where, as the detail names it; the whole topic has no place.
    place: &'static str,
    reason: &'static str,
}

impl Unfit {
    fn new(name: &str, code: &'static str, place: &'static str, reason: &'static str) -> Self {
        Self { topic: unique_name(name), code, place, reason }
    }

    /// Both ends name the topic, the place and the reason, in their status and in their logs.
    async fn assert_failed(&self, rig: &Rig) {
        for daemon in [&rig.agent, &rig.gateway] {
            let shown = wait_for_state(daemon, &self.topic, "FAILED").await;
            assert_eq!(shown["mirror_topic_error"], self.code, "{shown}");
            let detail = shown["detail"].as_str().unwrap_or_default();
            for part in [self.place, self.reason] {
                assert!(detail.contains(part), "{}: no {part:?} in {detail:?}", self.topic);
            }
            let log = daemon.log();
            let told = log
                .lines()
                .any(|line| line.contains("mirror FAILED") && line.contains(&self.topic) && line.contains(self.place));
            assert!(told, "{} is not in the log", self.topic);
        }
    }
}

/// Starts a link on which mirrors fail.
async fn start(source: &KafkaCluster, cloud: &KafkaCluster, spec: RigSpec) -> Rig {
    let mut rig = Rig::start(source, cloud, spec).await;
    for daemon in [&mut rig.agent, &mut rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    rig.agent.allow("mirror will be FAILED");
    rig
}

#[tokio::test]
async fn logs_that_cannot_be_mirrored_fail_alone_with_place_and_reason() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (source, config) = (&pair.source, pair.source.client_config());
    let unfit = [
        Unfit::new("large", "BATCH_TOO_LARGE", "partition 0 offset", "memory.max_frame"),
        Unfit::new("gaping", "GAP_LIMIT", "partition 0 offset", "max_gap_offsets"),
    ];
    let [large, gaping] = &unfit;
    source.create_topic(&large.topic, 1, 1, &[("max.message.bytes", "4000000")]).await;
    source.create_topic(&gaping.topic, 1, 1, &[]).await;
    for unfit in &unfit {
        Workload::new().topic(&unfit.topic, 1).produce(&config, BEFORE).await;
    }
    let workload = Workload::new().topic(&large.topic, 1).shape(Shape::Plain(3_000_000));
    workload.set("message.max.bytes", "4000000").produce(&config, 1).await;
    // Aborted records and a marker behind them.
    Transactions::new(&gaping.topic, 1).records(MAX_GAP).abort_every(Some(1)).write(&config, 1).await;
    let fit = unique_name("fit");
    source.create_topic(&fit, 2, 1, &[]).await;

    let began = Instant::now();
    let mut topics: Vec<&str> = unfit.iter().map(|unfit| unfit.topic.as_str()).collect();
    topics.push(&fit);
    let rig = start(source, &pair.cloud, RigSpec::new(&topics).mirror("max_gap_offsets", MAX_GAP)).await;
    for unfit in &unfit {
        unfit.assert_failed(&rig).await;
    }
    Workload::new().topic(&fit, 2).shape(Shape::Mixed).produce(&config, 200).await;
    wait_until_active(&rig, &[&fit]).await;
    assert_equal(source, &pair.cloud, &[&fit], 200).await;
    // What stands before the bad place may be there; nothing of it or after it is.
    let (_, end) = pair.cloud.log_range(&large.topic, 0).await.unwrap();
    assert!(end <= i64::try_from(BEFORE).unwrap(), "{} ends at {end}", large.topic);
    // Of a gap, as much as the limit allows may be.
    let (_, end) = pair.cloud.log_range(&gaping.topic, 0).await.unwrap();
    assert!(end <= i64::try_from(BEFORE).unwrap() + i64::from(MAX_GAP), "{} ends at {end}", gaping.topic);
    tell("two failed mirrors, and one that goes on", 200, began);
}

#[tokio::test]
async fn a_damaged_batch_fails_its_mirror_alone() {
    let _turn = Turn::apart().await;
    let cloud = &shared_pair().await.cloud;
    let source = KafkaCluster::start(ClusterSpec::single()).await;
    let damaged = Unfit::new("damaged", "CORRUPT_SOURCE_BATCH", "partition 0 offsets 10 to 19", "CRC-32C is wrong");
    let sound = unique_name("sound");
    source.create_topic(&damaged.topic, 1, 1, &[]).await;
    source.create_topic(&sound, 1, 1, &[]).await;
    // Each run waits for all its records: ten to a batch, three batches.
    let workload = Workload::new().topic(&damaged.topic, 1).set("linger.ms", "1000");
    for _ in 0..3 {
        workload.produce(&source.client_config(), BEFORE).await;
    }
    Workload::new().topic(&sound, 1).produce(&source.client_config(), 100).await;

    source.stop_broker(1).await;
    let log = source.stored_log(1, &damaged.topic, 0);
    let batches: Vec<_> = split(log.into()).map(Result::unwrap).collect();
    let bases: Vec<i64> = batches.iter().map(tombolo_proto::batch::Batch::base_offset).collect();
    assert_eq!(bases, [0, 10, 20], "the producer was to make three batches");
    let last_of_second = batches[0].len() + batches[1].len() - 1;
    source.damage_log(1, &damaged.topic, 0, last_of_second);
    source.restart_broker(1).await;

    let began = Instant::now();
    let rig = start(&source, cloud, RigSpec::new(&[&damaged.topic, &sound])).await;
    damaged.assert_failed(&rig).await;
    Workload::new().topic(&sound, 1).produce(&source.client_config(), 100).await;
    wait_until_active(&rig, &[&sound]).await;
    assert_equal(&source, cloud, &[&sound], 200).await;
    let (_, end) = cloud.log_range(&damaged.topic, 0).await.unwrap();
    assert!(end <= 10, "the mirror ends at {end}");
    tell("a damaged source batch, and the mirror beside it", 200, began);
}
