//! Logs that do not start at offset 0, and such that lose their beginning before it was mirrored.

use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps, consumers_equal_from, wait_until_mirrored};
use tombolo_tests::consumer::{Isolation, read_all};
use tombolo_tests::process::Daemon;
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, mirrored_end, tell, wait_for_state, wait_until_active};

/// Where a log with years behind it starts; `TOMBOLO_LOG_START=n` takes another.
const FAR: i64 = 200_000_000;
/// Offsets a second that are waited for, however busy the machine.
const LEAST_SPEED: i64 = 1_000_000;
const LOST: &str = "tombolo_gateway_lost_offsets_total";

#[tokio::test]
async fn logs_that_start_anywhere_are_mirrored_at_their_offsets() {
    const RECORDS: u64 = 300;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (topic, compacted) = (unique_name("trimmed"), unique_name("trimmed-compacted"));
    pair.source.create_topic(&topic, 3, 1, &[]).await;
    pair.source.create_topic(&compacted, 1, 1, &[("cleanup.policy", "compact,delete")]).await;
    let config = pair.source.client_config();
    let workload = Workload::new().topic(&topic, 3).codec(Codec::Zstd).shape(Shape::Mixed);
    let keyed = Workload::new().topic(&compacted, 1).shape(Shape::Keyed);
    workload.produce(&config, RECORDS).await;
    keyed.produce(&config, RECORDS).await;
    // One from its beginning, one from amid a batch, one that has nothing left.
    pair.source.delete_records(&topic, 1, 37).await;
    pair.source.delete_records(&topic, 2, 100).await;
    pair.source.delete_records(&compacted, 0, 123).await;

    let start = Instant::now();
    let topics = [topic.as_str(), compacted.as_str()];
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&topics)).await;
    wait_until_active(&rig, &topics).await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &topics, rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS - 37 - 100 - 123, aborted: 0 });
    workload.produce(&config, RECORDS).await;
    keyed.produce(&config, RECORDS).await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &topics, rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 4 * RECORDS - 37 - 100 - 123, aborted: 0 });
    tell("logs that start at 0, 37, 100 and 123", seen.records, start);
}

#[tokio::test]
async fn a_log_that_starts_at_two_hundred_million_is_mirrored_there_though_the_gateway_dies_half_way() {
    const RECORDS: u64 = 2_000;
    let _turn = Turn::alone().await;
    let given = std::env::var("TOMBOLO_LOG_START").ok();
    let far = given.map_or(FAR, |given| given.parse().expect("TOMBOLO_LOG_START is an offset"));
    let cloud = &shared_pair().await.cloud;
    let source = KafkaCluster::start(ClusterSpec::single()).await;
    let topic = unique_name("old");
    source.create_topic(&topic, 1, 1, &[]).await;
    source.stop_broker(1).await;
    source.place_log(1, &topic, 0, far);
    source.restart_broker(1).await;
    assert_eq!(source.log_range(&topic, 0).await, Ok((far, far)));
    let workload = Workload::new().topic(&topic, 1);
    workload.produce(&source.client_config(), RECORDS).await;

    let start = Instant::now();
    // A broker that takes in filler as fast as it can may keep a look at the registry waiting until the lease has lapsed.
    let mut rig = Rig::start(&source, cloud, RigSpec::new(&[&topic]).impatient()).await;
    // Said in the dark of a mirror that is not as far as its source's start.
    rig.agent.allow("cannot be read on in the dark");
    let reached = wait_until_beyond(cloud, &topic, far / 4).await;
    rig.gateway.restart();
    let killed = start.elapsed();
    rig.gateway.wait_ready().await;
    assert!(reached < far, "the gateway was killed too late");
    wait_until_beyond(cloud, &topic, far - 1).await;
    tell_speed(far, reached, killed, start.elapsed());
    let seen = await_equal_with_gaps(&source, cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: RECORDS, aborted: 0 });
    assert_eq!(cloud.log_range(&topic, 0).await.map(|(first, _)| first), Ok(far), "filler is left in the mirror");
    // It goes on from there, and a session that begins finds nothing to do.
    rig.agent.restart();
    workload.produce(&source.client_config(), RECORDS).await;
    let seen = await_equal_with_gaps(&source, cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS, aborted: 0 });
    tell("a log that starts far above 0, gateway killed half way", seen.records, start);
}

async fn wait_for_policy(cloud: &KafkaCluster, topic: &str, wanted: &str) {
    until(&format!("{topic} has cleanup.policy={wanted}"), DEADLINE, async || {
        let seen = cloud.topic_configs(topic).await.remove("cleanup.policy");
        if seen.as_deref() == Some(wanted) { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn a_partition_of_a_mirror_that_is_compacted_already_starts_where_its_source_does() {
    const RECORDS: u64 = 100;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (thinned, both) = (unique_name("grown-compacted"), unique_name("grown-both"));
    for (topic, policy) in [(&thinned, "compact"), (&both, "compact,delete")] {
        pair.source.create_topic(topic, 1, 1, &[("cleanup.policy", policy)]).await;
    }
    let config = pair.source.client_config();
    let keyed = |partitions| Workload::new().topic(&thinned, partitions).topic(&both, partitions).shape(Shape::Keyed);
    keyed(1).produce(&config, 2 * RECORDS).await;
    let start = Instant::now();
    let topics = [thinned.as_str(), both.as_str()];
    let spec = RigSpec::new(&topics).impatient().gateway("retention.hold", false);
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec.clone()).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &topics, DEADLINE).await;
    wait_for_policy(&pair.cloud, &thinned, "compact").await;
    wait_for_policy(&pair.cloud, &both, "compact,delete").await;

    // A new partition has lost its beginning before the agent sees it.
    assert!(rig.agent.terminate(Duration::from_secs(20)).await.success());
    for topic in topics {
        pair.source.grow_topic(topic, 2).await;
    }
    keyed(2).produce(&config, 4 * RECORDS).await;
    pair.source.alter_topic(&thinned, &[("cleanup.policy", "delete")]).await;
    for topic in topics {
        pair.source.delete_records(topic, 1, 37).await;
    }
    pair.source.alter_topic(&thinned, &[("cleanup.policy", "compact")]).await;

    // Who may not hold the retention must not change the policy either.
    rig.gateway.allow("mirror FAILED");
    rig.agent.allow("mirror FAILED");
    rig.agent.allow("cannot be read on in the dark");
    restart(&mut rig.agent).await;
    for topic in topics {
        let shown = wait_for_state(&rig.gateway, topic, "FAILED").await;
        assert_eq!(shown["mirror_topic_error"], "CLOUD_REFUSED", "{shown}");
        let detail = shown["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("kafka-configs.sh --alter") && detail.contains("retention.hold is off"), "{detail}");
    }
    let settings = rig.gateway_settings(&spec.gateway("retention.hold", true));
    rig.gateway.reconfigure(&settings);
    restart(&mut rig.gateway).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &topics, DEADLINE).await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &topics, rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 6 * RECORDS - 2 * 37, aborted: 0 });
    for (topic, policy) in [(&thinned, "compact"), (&both, "compact,delete")] {
        assert_eq!(pair.cloud.log_range(topic, 1).await.map(|(first, _)| first), Ok(37), "filler is left in {topic}");
        wait_for_policy(&pair.cloud, topic, policy).await;
    }
    tell("a new partition of compacted mirrors that starts at 37", seen.records, start);
}

async fn wait_until_beyond(cloud: &KafkaCluster, topic: &str, offset: i64) -> i64 {
    let deadline = DEADLINE.max(Duration::from_secs((offset / LEAST_SPEED).unsigned_abs()));
    until(&format!("the mirror is longer than {offset}"), deadline, async || {
        let end = mirrored_end(cloud, topic, 0).await;
        if end > offset { Ok(end) } else { Err(end) }
    })
    .await
}

#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "figures for people, shown with --nocapture")]
fn tell_speed(far: i64, reached: i64, killed: Duration, all: Duration) {
    let (first, whole) = (killed.as_secs_f64(), all.as_secs_f64());
    let speed = reached as f64 / first / 1e6;
    println!("{far} offsets in {whole:.1} s; {reached} in the first {first:.1} s, {speed:.1} million/s");
}

/// A mirror of 100 records whose source has deleted 50 of the next 100 while the agent was away.
struct Loss {
    topic: String,
    other: String,
    spec: RigSpec,
    rig: Rig,
}

impl Loss {
    async fn bring(name: &str) -> Self {
        let pair = shared_pair().await;
        let (topic, other) = (unique_name(name), unique_name("unharmed"));
        for topic in [&topic, &other] {
            pair.source.create_topic(topic, 1, 1, &[]).await;
        }
        let spec = RigSpec::new(&[&topic, &other]).impatient();
        let mut rig = Rig::start(&pair.source, &pair.cloud, spec.clone()).await;
        rig.agent.allow("mirror FAILED");
        rig.gateway.allow("mirror FAILED");
        wait_until_active(&rig, &[&topic, &other]).await;
        let config = pair.source.client_config();
        let workload = Workload::new().topic(&topic, 1).topic(&other, 1);
        workload.produce(&config, 200).await;
        wait_until_mirrored(&pair.source, &pair.cloud, &[&topic, &other], DEADLINE).await;
        rig.agent.allow("cannot be read on in the dark");
        assert!(rig.agent.terminate(Duration::from_secs(20)).await.success());
        workload.produce(&config, 200).await;
        pair.source.delete_records(&topic, 0, 150).await;
        Self { topic, other, spec, rig }
    }

    async fn assert_halted(&self) {
        for daemon in [&self.rig.agent, &self.rig.gateway] {
            let shown = wait_for_state(daemon, &self.topic, "FAILED").await;
            assert_eq!(shown["mirror_topic_error"], "SOURCE_DATA_LOST", "{shown}");
            let detail = shown["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("partition 0 offsets 100 to 149"), "{detail}");
        }
        let pair = shared_pair().await;
        wait_until_mirrored(&pair.source, &pair.cloud, &[&self.other], DEADLINE).await;
        assert_eq!(mirrored_end(&pair.cloud, &self.topic, 0).await, 100, "something was written behind the loss");
    }

    /// The gateway shows what was lost, in status and metrics.
    async fn assert_in_ledger(&self) {
        until("the loss is on record", DEADLINE, async || {
            let status = self.rig.gateway.status().await;
            let losses = status["links"].as_array().into_iter().flatten().filter_map(|link| link["losses"].as_array());
            let is_this = |loss: &Value| {
                let range = (loss["partition"].as_i64(), loss["from"].as_i64(), loss["to"].as_i64());
                loss["topic"] == self.topic.as_str() && range == (Some(0), Some(100), Some(150))
            };
            if losses.flatten().any(is_this) { Ok(()) } else { Err(status) }
        })
        .await;
        let lost = self.rig.gateway.metric(LOST).await;
        assert!((lost - 50.0).abs() < 0.5, "{lost} offsets are counted as lost");
    }
}

async fn restart(daemon: &mut Daemon) {
    daemon.restart();
    daemon.wait_ready().await;
}

#[tokio::test]
async fn what_the_source_lost_halts_its_mirror_until_the_loss_is_accepted() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let mut loss = Loss::bring("lossy").await;
    let start = Instant::now();
    restart(&mut loss.rig.agent).await;
    loss.assert_halted().await;

    // What is known of a mirror that FAILED is given up, and the source has deleted what it shipped.
    loss.rig.agent.allow("nothing left at the source to compare the mirror's end with");
    loss.rig.gateway.allow("the agent had nothing to compare the mirror's tail with");
    // The operator accepts it: the lost range becomes a gap, and stays on record.
    loss.rig.gateway.allow("the source deleted offsets before they were mirrored");
    let settings = loss.rig.gateway_settings(&loss.spec.clone().mirror("on_loss", "skip"));
    loss.rig.gateway.reconfigure(&settings);
    restart(&mut loss.rig.gateway).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&loss.topic], DEADLINE).await;
    loss.assert_in_ledger().await;
    let topic = &loss.topic;
    Workload::new().topic(topic, 1).produce(&pair.source.client_config(), 100).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[topic], DEADLINE).await;
    let seen = consumers_equal_from(&pair.source, &pair.cloud, topic, 0, 150).await;
    assert_eq!(seen, Seen { records: 150, aborted: 0 });
    let offsets: Vec<i64> =
        read_all(&pair.cloud, topic, 0, Isolation::Uncommitted).await.into_iter().map(|record| record.offset).collect();
    let expected: Vec<i64> = (0..100).chain(150..300).collect();
    assert_eq!(offsets, expected, "what was mirrored before the loss, and what came after it");
    // For ever: a gateway that was not there shows it too.
    restart(&mut loss.rig.gateway).await;
    loss.assert_in_ledger().await;
    tell("fifty records lost, one hundred before and after", 250, start);
}
