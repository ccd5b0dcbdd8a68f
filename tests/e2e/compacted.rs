//! Compacted topics: what the cleaner left is in the mirror at its offsets, and what the cleaner of the mirror leaves later
//! is what the source keeps.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::compare::{await_equal_with_gaps, wait_until_mirrored};
use tombolo_tests::consumer::{Isolation, Kept, read_all};
use tombolo_tests::image::batches;
use tombolo_tests::producer::{BackgroundProducer, Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::Transactions;
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, tell, wait_until_active};
use crate::verify::{PASSES, Verifier};

/// Cleaned about every second: all but the segment that is written to.
const COMPACT: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("segment.ms", "500"),
    ("delete.retention.ms", "86400000"),
];
const NEVER: &str = "9223372036854775807";
/// Of each topic.
const HISTORY: u64 = 15_000;
const KEYS: u64 = 2_000;
/// Records a second of each topic, so that its segments roll.
const RATE: u32 = 5_000;
/// In all, into logs that are cleaned while they are mirrored, over at least [`KEYS`] keys and one for a hundred writes;
/// `TOMBOLO_COMPACTED_WRITES=n` takes another number.
const WRITES: u64 = 60_000;
/// For millions of writes.
const LONG: Duration = Duration::from_mins(10);

/// A topic and what writes into it.
struct Held {
    topic: String,
    workload: Workload,
}

impl Held {
    async fn new(source: &KafkaCluster, codec: Codec, configs: &[(&str, &str)]) -> Self {
        Self::with_keys(source, codec, configs, KEYS).await
    }

    async fn with_keys(source: &KafkaCluster, codec: Codec, configs: &[(&str, &str)], keys: u64) -> Self {
        let topic = unique_name(&format!("compacted-{}", codec.name()));
        let configs: Vec<_> = COMPACT.iter().chain(configs).copied().collect();
        source.create_topic(&topic, 1, 1, &configs).await;
        let workload = Workload::new().topic(&topic, 1).codec(codec).shape(Shape::Keyed).keys(keys);
        Self { workload: workload.set("batch.num.messages", "100"), topic }
    }
}

/// Clusters whose cleaners hardly rest.
async fn clusters() -> (KafkaCluster, KafkaCluster) {
    let spec = ClusterSpec::single().set("log.cleaner.backoff.ms", "100");
    tokio::join!(KafkaCluster::start(spec.clone()), KafkaCluster::start(spec))
}

/// Waits until the cleaner has taken records out of batches in the middle of the log, and whole batches.
async fn wait_until_thinned(cluster: &KafkaCluster, held: &Held) {
    until(&format!("{} is thinned", held.topic), DEADLINE, async || {
        // Only a later record makes the broker roll the segment, which is then cleaned.
        held.workload.produce(&cluster.client_config(), 1).await;
        let batches = batches(cluster, &held.topic, 0).await;
        let thinned = batches.iter().filter(|batch| !batch.is_dense()).count();
        let holes = batches.windows(2).filter(|pair| pair[0].next_offset() < pair[1].base_offset()).count();
        if thinned >= 20 && (holes > 0 || batches[0].base_offset() > 0) { Ok(()) } else { Err((thinned, holes)) }
    })
    .await;
}

/// The cleaner leaves this log alone once this returns.
async fn freeze(cluster: &KafkaCluster, topic: &str) {
    cluster.alter_topic(topic, &[("min.compaction.lag.ms", NEVER)]).await;
    let mut before = Vec::new();
    until("the cleaner rests", DEADLINE, async || {
        let now = batches(cluster, topic, 0).await;
        let same = now == before;
        before = now;
        if same { Ok(()) } else { Err("it works") }
    })
    .await;
}

#[tokio::test]
async fn what_the_cleaner_left_is_mirrored_at_its_offsets() {
    let _turn = Turn::apart().await;
    let (source, cloud) = clusters().await;
    let config = source.client_config();
    let mut logs = Vec::new();
    for codec in Codec::ALL {
        logs.push(Held::new(&source, codec, &[]).await);
    }
    logs.push(Held::new(&source, Codec::Zstd, &[("message.timestamp.type", "LogAppendTime")]).await);
    // Tombstones go too, after a while: their batches carry the time at which they may.
    logs.push(Held::new(&source, Codec::None, &[("delete.retention.ms", "100")]).await);
    let settled = unique_name("compacted-transactions");
    source.create_topic(&settled, 1, 1, &COMPACT).await;
    let transactions = Transactions::new(&settled, 1).keys(40).records(5).rate(100);
    let written = logs.iter().map(|held| {
        let workload = held.workload.clone().rate(RATE);
        let config = &config;
        async move { workload.produce(config, HISTORY).await.acknowledged() }
    });
    let (_, written) = tokio::join!(transactions.write(&config, 200), join_all(written));
    join_all(logs.iter().map(|held| wait_until_thinned(&source, held))).await;
    let topics: Vec<&str> = logs.iter().map(|held| held.topic.as_str()).chain([settled.as_str()]).collect();
    join_all(topics.iter().map(|topic| freeze(&source, topic))).await;

    let start = Instant::now();
    let rig = Rig::start(&source, &cloud, RigSpec::new(&topics)).await;
    wait_until_mirrored(&source, &cloud, &topics, DEADLINE).await;
    let seen = await_equal_with_gaps(&source, &cloud, &topics, rig.producer_id(), DEADLINE).await;
    let written: u64 = written.iter().sum();
    tell(&format!("what was left of {written} records in {} compacted logs", topics.len()), seen.records, start);
    assert!(seen.records < written / 2 && seen.records > KEYS, "{} of {written} records were left", seen.records);
    let verifier = Verifier::of(&source, &cloud);
    let file = rig.agent.folder().join("source.digest").display().to_string();
    let digest: Vec<&str> = topics.iter().flat_map(|topic| ["--topic", topic]).chain([file.as_str()]).collect();
    let written = rig.agent.command(&[&["digest"], &digest[..]].concat()).await;
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    for how in [["--digest", file.as_str()], ["--records", "--strict"]] {
        let patterns = topics.iter().flat_map(|topic| ["--topic", topic]);
        let words: Vec<&str> = ["--link", &rig.name].into_iter().chain(patterns).chain(how).collect();
        let verified = verifier.run(&words).await;
        assert_eq!(verified.code, PASSES, "{verified:?}");
    }
    assert!(rig.agent.metric("tombolo_reencoded_batches_total").await > 0.0, "thinned batches can not go as they are");
}

#[tokio::test]
async fn a_log_that_is_cleaned_while_it_is_mirrored_loses_nothing_that_it_keeps() {
    let _turn = Turn::apart().await;
    let writes = std::env::var("TOMBOLO_COMPACTED_WRITES").ok();
    let writes = writes.map_or(WRITES, |given| given.parse().expect("TOMBOLO_COMPACTED_WRITES is a number"));
    let (source, cloud) = clusters().await;
    let mut logs = Vec::new();
    for codec in [Codec::None, Codec::Zstd] {
        logs.push(Held::with_keys(&source, codec, &[("segment.bytes", "4194304")], KEYS.max(writes / 100)).await);
    }
    let topics: Vec<&str> = logs.iter().map(|held| held.topic.as_str()).collect();
    let start = Instant::now();
    let config = source.client_config();
    let producers: Vec<BackgroundProducer> =
        logs.iter().map(|held| held.workload.clone().rate(RATE).start(&config)).collect();
    until("the sources are cleaned", DEADLINE, async || {
        let batches = batches(&source, topics[0], 0).await;
        let thinned = batches.iter().filter(|batch| !batch.is_dense()).count();
        if thinned >= 20 { Ok(()) } else { Err(thinned) }
    })
    .await;
    let mut rig = Rig::start(&source, &cloud, RigSpec::new(&topics).impatient()).await;
    wait_until_active(&rig, &topics).await;
    // The mirror's cleaner waits: what is missing then was never mirrored.
    for topic in &topics {
        cloud.alter_topic(topic, &[("min.compaction.lag.ms", NEVER)]).await;
    }
    until("more is written while the cleaner works", LONG, async || {
        let written: u64 = producers.iter().map(BackgroundProducer::acknowledged).sum();
        if written >= writes { Ok(()) } else { Err(written) }
    })
    .await;
    let mut written = 0;
    for producer in producers {
        written += producer.stop().await.acknowledged();
    }
    wait_until_mirrored(&source, &cloud, &topics, LONG).await;
    for topic in &topics {
        Logs::read(&source, &cloud, topic).await.assert_complete();
    }
    tell("mirrored while it was cleaned", written, start);

    // The first pass is done: the mirror gets the source's policy, and its cleaner works.
    for topic in &topics {
        until("the mirror is compacted", DEADLINE, async || {
            let policy = cloud.topic_configs(topic).await.remove("cleanup.policy");
            if policy.as_deref() == Some("compact") { Ok(()) } else { Err(policy) }
        })
        .await;
        cloud.alter_topic(topic, &[("min.compaction.lag.ms", "0")]).await;
    }
    for held in &logs {
        wait_until_mirror_cleaned(&source, &cloud, held).await;
    }
    // Both ends look at what is left of the mirror's end, and go on.
    rig.agent.restart();
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    rig.agent.wait_ready().await;
    for held in &logs {
        held.workload.produce(&config, 500).await;
    }
    wait_until_mirrored(&source, &cloud, &topics, DEADLINE).await;
    for topic in &topics {
        Logs::read(&source, &cloud, topic).await.assert_current();
    }
    // The cleaners left different records, each for a reason.
    let patterns = topics.iter().flat_map(|topic| ["--topic", topic]);
    let words: Vec<&str> = ["--link", &rig.name, "--strict", "--output", "json"].into_iter().chain(patterns).collect();
    let verified = Verifier::of(&source, &cloud).run(&words).await;
    assert_eq!(verified.code, PASSES, "{verified:?}");
    tell("the same, and its mirror cleaned", written, start);
}

/// Writes on until the mirror's cleaner has taken most records.
async fn wait_until_mirror_cleaned(source: &KafkaCluster, cloud: &KafkaCluster, held: &Held) {
    let before = read_all(cloud, &held.topic, 0, Isolation::Committed).await.len();
    until("the mirror is cleaned", DEADLINE, async || {
        held.workload.produce(&source.client_config(), 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = read_all(cloud, &held.topic, 0, Isolation::Committed).await.len();
        if now < before * 2 / 3 { Ok(()) } else { Err(format!("{now} of {before} records")) }
    })
    .await;
}

/// What consumers see of a source and its mirror.
struct Logs {
    topic: String,
    source: HashMap<i64, Kept>,
    mirror: HashMap<i64, Kept>,
    /// The last offset of each key, in either.
    last: HashMap<Vec<u8>, i64>,
}

impl Logs {
    /// The mirror last: what its source keeps then, it has.
    async fn read(source: &KafkaCluster, cloud: &KafkaCluster, topic: &str) -> Self {
        let by_offset = |records: Vec<Kept>| records.into_iter().map(|record| (record.offset, record)).collect();
        let source: HashMap<i64, Kept> = by_offset(read_all(source, topic, 0, Isolation::Committed).await);
        let committed = read_all(cloud, topic, 0, Isolation::Committed).await;
        let uncommitted = read_all(cloud, topic, 0, Isolation::Uncommitted).await;
        assert!(uncommitted.len() <= committed.len(), "{topic}: more is seen by a reader of uncommitted records");
        let current = |records: &[Kept]| -> HashMap<Option<Vec<u8>>, Kept> {
            records.iter().map(|record| (record.key.clone(), record.clone())).collect()
        };
        let same = current(&committed) == current(&uncommitted);
        assert!(same, "{topic}: a reader of uncommitted records sees other values of the keys");
        let mirror: HashMap<i64, Kept> = by_offset(committed);
        let mut last = HashMap::new();
        for record in source.values().chain(mirror.values()) {
            let end: &mut i64 = last.entry(record.key.clone().unwrap()).or_default();
            *end = record.offset.max(*end);
        }
        Self { topic: topic.to_owned(), source, mirror, last }
    }

    /// Whether a cleaner may take it.
    fn superseded(&self, record: &Kept) -> bool {
        record.key.as_ref().is_some_and(|key| self.last[key] > record.offset)
    }

    /// The mirror has every record of the source, and beyond that none but those that the cleaner took from the source.
    fn assert_complete(&self) {
        let missing = self.source.keys().find(|offset| !self.mirror.contains_key(offset));
        assert_eq!(missing, None, "{}: a record of the source is not in the mirror", self.topic);
        self.assert_current();
    }

    /// As a reader of current values wants it: the last record of every key is in both logs, and what is at one offset is
    /// the same.
    fn assert_current(&self) {
        let topic = &self.topic;
        for (ours, theirs) in [(&self.source, &self.mirror), (&self.mirror, &self.source)] {
            for record in ours.values() {
                match theirs.get(&record.offset) {
                    Some(other) => assert_eq!(record, other, "{topic}: records differ"),
                    None => assert!(self.superseded(record), "{topic}: the other log has no {record:?}"),
                }
            }
        }
    }
}
