//! What a log held at a moment: for a source that has deleted its records since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::Cluster;
use tombolo_kafka::fetch::{FetchOnce, Isolation, fetch_once};
use tombolo_proto::batch::{Batch, split};
use tombolo_proto::wire::TailBatch;

use crate::broker::KafkaCluster;

/// Bytes of records in one answer.
const FETCH_BYTES: i32 = 4 << 20;

/// Every batch of some topics, by partition: offsets and canonical CRCs.
pub type LogImage = BTreeMap<(String, i32), Vec<TailBatch>>;

/// Reads these topics from first to last offset. Nobody may write meanwhile.
pub async fn log_image(cluster: &KafkaCluster, topics: &[&str]) -> LogImage {
    let counts = cluster.topics().await;
    let raw = cluster.raw_client();
    let mut image = LogImage::new();
    for topic in topics {
        let count = *counts.get(*topic).unwrap_or_else(|| panic!("no topic {topic}"));
        for partition in 0..count {
            let range = cluster.log_range(topic, partition).await.expect("the cluster answers");
            let batches = read(&raw, topic, partition, range).await;
            image.insert(((*topic).to_owned(), partition), batches.iter().map(TailBatch::of).collect());
        }
    }
    image
}

/// Records in it.
pub fn records_of(image: &LogImage) -> u64 {
    let records = |batch: &TailBatch| u64::try_from(batch.last_offset - batch.base_offset + 1).expect("in order");
    image.values().flatten().map(records).sum()
}

/// Every batch of a partition from first to last offset, as a broker serves it.
pub async fn batches(cluster: &KafkaCluster, topic: &str, partition: i32) -> Vec<Batch> {
    let range = cluster.log_range(topic, partition).await.expect("the cluster answers");
    read(&cluster.raw_client(), topic, partition, range).await
}

async fn read(raw: &Cluster, topic: &str, partition: i32, (first, end): (i64, i64)) -> Vec<Batch> {
    let name: Arc<str> = topic.into();
    let mut found: Vec<Batch> = Vec::new();
    let mut offset = first;
    while offset < end {
        let leader = raw.leader(topic, partition).await.expect("the partition has a leader");
        let connection = raw.shared(leader.broker).await.expect("the leader answers");
        let once = FetchOnce {
            topic: &name,
            topic_id: None,
            partition,
            offset,
            leader_epoch: leader.epoch,
            max_bytes: FETCH_BYTES,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
        };
        let fetched = fetch_once(&connection, once).await.expect("the leader answers");
        assert_eq!(fetched.error, None, "{topic}/{partition} at {offset}");
        let before = offset;
        for batch in split(fetched.records).map_while(Result::ok).filter(|batch| batch.next_offset() > before) {
            offset = batch.next_offset();
            found.push(batch);
        }
        assert!(offset > before, "{topic}/{partition}: nothing at offset {before} below {end}");
    }
    found
}
