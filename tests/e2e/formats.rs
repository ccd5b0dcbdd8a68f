//! A source of an old release, whose logs hold messages of formats v0 and v1: the mirror's consumers see the same records at
//! the same offsets, and where a log goes over to v2 its mirror does.

use std::time::Instant;

use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, java_consumers_equal, wait_until_mirrored};
use tombolo_tests::consumer::{Isolation, Kept, read_all};
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

/// What `message.format.version` makes of new messages.
const V0: &str = "0.9.0";
const V1: &str = "0.10.2";
const V2: &str = "2.8";
/// Of each topic, before the link is there and again while it is up.
const RECORDS: u64 = 220;
/// zstd came with v2.
const CODECS: [Codec; 4] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4];

/// A topic of one format.
struct Old {
    topic: String,
    magic: u8,
    workload: Workload,
}

impl Old {
    async fn new(source: &KafkaCluster, format: &str, codec: Codec, configs: &[(&str, &str)]) -> Self {
        let topic = unique_name(&format!("format-{format}-{}", codec.name()));
        let configs: Vec<_> = configs.iter().copied().chain([("message.format.version", format)]).collect();
        source.create_topic(&topic, 1, 1, &configs).await;
        let workload = Workload::new().topic(&topic, 1).codec(codec).shape(Shape::Mixed);
        // Only v2 has what headers and an idempotent producer need.
        let workload = workload.without_headers().idempotent(false).set("batch.num.messages", "50");
        let magic = match format {
            V0 => 0,
            V1 => 1,
            _ => 2,
        };
        Self { topic, magic, workload }
    }

    /// The broker keeps what it gets as that format.
    fn assert_format(&self, source: &KafkaCluster) {
        let log = source.stored_log(1, &self.topic, 0);
        assert_eq!(log.get(16), Some(&self.magic), "the source keeps {} in another format", self.topic);
    }
}

async fn write(source: &KafkaCluster, logs: &[Old]) {
    let config = source.client_config();
    futures_util::future::join_all(logs.iter().map(|log| log.workload.produce(&config, RECORDS))).await;
}

/// A log that holds all three formats: the topic went over to the next one twice.
async fn write_upgraded(source: &KafkaCluster, log: &Old) {
    for format in [V1, V2] {
        source.alter_topic(&log.topic, &[("message.format.version", format)]).await;
        log.workload.produce(&source.client_config(), RECORDS).await;
    }
}

#[tokio::test]
async fn messages_of_formats_v0_and_v1_are_mirrored_at_their_offsets() {
    let _turn = Turn::apart().await;
    let cloud = &shared_pair().await.cloud;
    let source = KafkaCluster::start(ClusterSpec::old()).await;
    let mut logs = Vec::new();
    for codec in CODECS {
        for format in [V0, V1] {
            logs.push(Old::new(&source, format, codec, &[]).await);
        }
    }
    for codec in [Codec::None, Codec::Gzip] {
        logs.push(Old::new(&source, V1, codec, &[("message.timestamp.type", "LogAppendTime")]).await);
    }
    let current = Old::new(&source, V2, Codec::Snappy, &[]).await;
    let compared = current.topic.clone();
    let upgraded = Old::new(&source, V0, Codec::Gzip, &[]).await;
    logs.extend([current, upgraded]);
    write(&source, &logs).await;
    for log in &logs {
        log.assert_format(&source);
    }
    write_upgraded(&source, logs.last().unwrap()).await;

    let start = Instant::now();
    let topics: Vec<&str> = logs.iter().map(|log| log.topic.as_str()).collect();
    let rig = Rig::start(&source, cloud, RigSpec::new(&topics)).await;
    wait_until_active(&rig, &topics).await;
    write(&source, &logs).await;
    wait_until_mirrored(&source, cloud, &topics, DEADLINE).await;
    let kept = source.dumped_logs(&topics).await;
    let mut seen = 0;
    for log in &logs {
        for isolation in [Isolation::Committed, Isolation::Uncommitted] {
            let mirrored = read_all(cloud, &log.topic, 0, isolation).await;
            seen += mirrored.len() as u64;
            assert_same(&kept[&log.topic], &mirrored, &log.topic);
        }
    }
    let records = RECORDS * 2 * (topics.len() as u64 + 1);
    assert_eq!(seen, 2 * records);
    let confirmed = java_consumers_equal(&source, cloud, &topics).await;
    assert_eq!(confirmed, Ok(Seen { records, aborted: 0 }));
    // What the raw compare and librdkafka read of them.
    assert_equal(&source, cloud, &[&compared], 2 * RECORDS).await;
    tell(&format!("{} logs of a Kafka 2.8 with messages of v0 to v2", topics.len()), records, start);
    assert!(rig.agent.metric("tombolo_reencoded_batches_total").await > 0.0, "they cannot go as they are");

    for (log, timed) in logs.iter().zip([false, true].into_iter().cycle()).take(2 * CODECS.len()) {
        let records = read_all(cloud, &log.topic, 0, Isolation::Committed).await;
        assert!(
            records.iter().all(|record| record.timestamp.is_some() == timed),
            "{}: v0 has no timestamps",
            log.topic
        );
        let some =
            [records.iter().any(|record| record.key.is_none()), records.iter().any(|record| record.value.is_none())];
        assert_eq!(some, [true; 2], "{}: null keys and null values", log.topic);
    }
}

fn assert_same(source: &[Kept], mirror: &[Kept], topic: &str) {
    assert_eq!(source.len(), mirror.len(), "{topic}");
    for (ours, theirs) in source.iter().zip(mirror) {
        // What the source's broker does not print of a record that deletes its key.
        let unseen = ours.value.is_none() && ours.key.as_ref().map(Vec::len) == theirs.key.as_ref().map(Vec::len);
        let key = if unseen { &theirs.key } else { &ours.key };
        let ours = (ours.offset, key, &ours.value, ours.timestamp);
        assert_eq!(ours, (theirs.offset, &theirs.key, &theirs.value, theirs.timestamp), "{topic}: records differ");
    }
}
