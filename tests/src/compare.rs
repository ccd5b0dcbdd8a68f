//! The proof that two clusters hold the same: the product's raw compare, batch for batch, and, record for record, a
//! second opinion from librdkafka and a third from Kafka's own consumer, which share no code with the product.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset};
use tokio::task::{JoinHandle, spawn_blocking};
use tombolo_kafka::compare::{CompareOptions, Comparison, Extent, LogPair, compare};

use crate::broker::KafkaCluster;
use crate::consumer::{Isolation, Reader, Record};
use crate::java;
use crate::wait::until;

/// Waits until every mirror is as long as its source, which nobody may write to meanwhile, and panics unless both logs
/// are equal: the same batches at the same offsets, and the same records for a consumer. Returns how many records.
pub async fn await_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str], deadline: Duration) -> u64 {
    wait_until_mirrored(source, cloud, topics, deadline).await;
    let raw = raw_compare(source, cloud, topics).await;
    assert_identical(&raw);
    let records = consumer_equal(source, cloud, topics).await;
    assert_eq!(raw.records, records, "the raw compare saw another number of records than a consumer");
    records
}

/// As [`await_equal`], of mirrors that have gaps where their sources hold nothing that counts. All of them are of this
/// producer id, and consumers of both isolation levels see in the mirror what one of committed records sees in the source.
pub async fn await_equal_with_gaps(
    source: &KafkaCluster,
    cloud: &KafkaCluster,
    topics: &[&str],
    writer: i64,
    deadline: Duration,
) -> Seen {
    wait_until_mirrored(source, cloud, topics, deadline).await;
    let raw = compare_logs(source, cloud, topics, Some(writer)).await;
    assert_identical(&raw);
    let seen = consumers_equal(source, cloud, topics).await;
    assert_eq!(raw.records, seen.records, "the raw compare saw another number of records than a consumer");
    seen
}

fn assert_identical(raw: &Comparison) {
    let differences: Vec<String> = raw.differences.iter().map(ToString::to_string).collect();
    assert!(raw.is_identical(), "{} differences, the first are:\n{}", raw.difference_count, differences.join("\n"));
}

/// What the product's compare says of these topics, whose mirrors may have no gaps.
pub async fn raw_compare(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> Comparison {
    compare_logs(source, cloud, topics, None).await
}

/// With the producer id of the mirror's writer its control batches are gaps.
async fn compare_logs(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str], writer: Option<i64>) -> Comparison {
    let pairs: Vec<LogPair> = partitions(source, topics)
        .await
        .into_iter()
        .map(|(topic, partition)| {
            let topic: Arc<str> = topic.into();
            LogPair { source: Arc::clone(&topic), mirror: topic, partition, extent: Extent::Whole }
        })
        .collect();
    let options = CompareOptions { writer, ..CompareOptions::default() };
    let compared = compare(&source.raw_client(), &cloud.raw_client(), &pairs, options).await;
    compared.unwrap_or_else(|error| panic!("the logs cannot be compared: {error}"))
}

/// Waits until the mirror of every partition is as long as the source, which nobody may write to meanwhile. Panics with
/// the partitions that are behind.
pub async fn wait_until_mirrored(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str], deadline: Duration) {
    let mut ends = Vec::new();
    for (topic, partition) in partitions(source, topics).await {
        let (_, end) = source.log_range(&topic, partition).await.expect("the source answers");
        ends.push((topic, partition, end));
    }
    until("the mirrors are as long as their sources", deadline, async || {
        let mut behind = Vec::new();
        for (topic, partition, end) in &ends {
            // Mirror topics that are not there yet have no log.
            let seen = cloud.log_range(topic, *partition).await.map_or(-1, |(_, end)| end);
            if seen < *end {
                behind.push(format!("{topic}/{partition}: {seen} of {end}"));
            }
        }
        if behind.is_empty() { Ok(()) } else { Err(behind) }
    })
    .await;
}

async fn partitions(cluster: &KafkaCluster, topics: &[&str]) -> Vec<(String, i32)> {
    let counts = cluster.topics().await;
    let count = |topic: &str| *counts.get(topic).unwrap_or_else(|| panic!("no topic {topic}"));
    let of_topic = |topic: &&str| (0..count(topic)).map(|partition| ((*topic).to_owned(), partition)).collect();
    topics.iter().flat_map(|topic| -> Vec<(String, i32)> { of_topic(topic) }).collect()
}

/// Reads the topics of both clusters from first to last offset and panics at the first difference in log start, log end,
/// offset, key, value, headers or timestamp, or at the first record that only readers of uncommitted ones see. Nobody may
/// write meanwhile. Returns how many records were equal.
pub async fn consumer_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> u64 {
    let partitions = partitions(source, topics).await;
    assert_eq!(partitions, self::partitions(cloud, topics).await, "the clusters differ in partitions");
    let third = java::Request::new(source, cloud, partitions.clone(), None);
    let (source, cloud) = (source.client_config(), cloud.client_config());
    let compared = spawn_blocking(move || {
        let (source, cloud) = (Reader::new(source, Isolation::Committed), Reader::new(cloud, Isolation::Committed));
        let records = |(topic, partition): &(String, i32)| same_records(&source, &cloud, topic, *partition);
        Seen { records: partitions.iter().map(records).sum(), aborted: 0 }
    });
    agreed(compared, third).await.records
}

/// What consumers saw in a mirror and in its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Records that were equal.
    pub records: u64,
    /// Records of the source that were aborted: only a consumer of uncommitted records sees them, and only there.
    pub aborted: u64,
}

/// As [`consumer_equal`], of sources with transactions: what a consumer of committed records sees in the source is what
/// consumers of both isolation levels see in the mirror.
pub async fn consumers_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> Seen {
    let partitions = partitions(source, topics).await;
    assert_eq!(partitions, self::partitions(cloud, topics).await, "the clusters differ in partitions");
    let consumers = Consumers::of(source, cloud);
    let third = java::Request::new(source, cloud, partitions.clone(), None);
    let compared = spawn_blocking(move || {
        let mut seen = Seen::default();
        for (topic, partition) in &partitions {
            let range = consumers.source.open(topic, *partition);
            assert_eq!(range, consumers.mirror.open(topic, *partition), "{topic}/{partition}: log ranges differ");
            consumers.compare(topic, *partition, range.0, &mut seen);
        }
        seen
    });
    agreed(compared, third).await
}

/// As [`consumers_equal`] says what the consumers in Java alone find: `Err` is the first difference.
pub async fn java_consumers_equal(
    source: &KafkaCluster,
    cloud: &KafkaCluster,
    topics: &[&str],
) -> Result<Seen, String> {
    let partitions = partitions(source, topics).await;
    java::Request::new(source, cloud, partitions, None).compare().await
}

/// What librdkafka's consumers saw; those in Java must see as much.
async fn agreed(compared: JoinHandle<Seen>, third: java::Request) -> Seen {
    let seen = match compared.await {
        Ok(seen) => seen,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    };
    let confirmed = third.compare().await.unwrap_or_else(|difference| panic!("{difference}"));
    assert_eq!(confirmed, seen, "the consumers in Java saw other numbers of records");
    seen
}

/// As [`consumers_equal`], of one partition from this offset on: for logs that do not begin at the same one.
pub async fn consumers_equal_from(
    source: &KafkaCluster,
    cloud: &KafkaCluster,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Seen {
    let consumers = Consumers::of(source, cloud);
    let topic = topic.to_owned();
    let third = java::Request::new(source, cloud, vec![(topic.clone(), partition)], Some(offset));
    let compared = spawn_blocking(move || {
        let mut seen = Seen::default();
        consumers.compare(&topic, partition, offset, &mut seen);
        seen
    });
    agreed(compared, third).await
}

/// Both logs at both isolation levels.
struct Consumers {
    source: Reader,
    uncommitted_source: Reader,
    mirror: Reader,
    uncommitted_mirror: Reader,
}

impl Consumers {
    fn of(source: &KafkaCluster, cloud: &KafkaCluster) -> Self {
        Self {
            source: Reader::new(source.client_config(), Isolation::Committed),
            uncommitted_source: Reader::new(source.client_config(), Isolation::Uncommitted),
            mirror: Reader::new(cloud.client_config(), Isolation::Committed),
            uncommitted_mirror: Reader::new(cloud.client_config(), Isolation::Uncommitted),
        }
    }

    fn compare(&self, topic: &str, partition: i32, from: i64, seen: &mut Seen) {
        for reader in [&self.source, &self.uncommitted_source, &self.mirror, &self.uncommitted_mirror] {
            reader.seek(topic, partition, Offset::Offset(from));
        }
        loop {
            let ours = self.source.next();
            for mirrored in [self.mirror.next(), self.uncommitted_mirror.next()] {
                assert_same(topic, partition, ours.as_ref(), mirrored.as_ref());
            }
            let wanted = ours.as_ref().map_or(i64::MAX, Message::offset);
            let mut uncommitted = self.uncommitted_source.next();
            while uncommitted.as_ref().is_some_and(|record| record.offset() < wanted) {
                seen.aborted += 1;
                uncommitted = self.uncommitted_source.next();
            }
            assert_same(topic, partition, ours.as_ref(), uncommitted.as_ref());
            if ours.is_none() {
                return;
            }
            seen.records += 1;
        }
    }
}

/// How many records a consumer sees in these topics from first to last offset.
pub async fn consumed_records(cluster: &KafkaCluster, topics: &[&str]) -> u64 {
    let partitions = partitions(cluster, topics).await;
    let config = cluster.client_config();
    let counted = spawn_blocking(move || {
        let reader = Reader::new(config, Isolation::Committed);
        let count = |(topic, partition): &(String, i32)| {
            reader.open(topic, *partition);
            std::iter::from_fn(|| reader.next().map(|_| ())).count() as u64
        };
        partitions.iter().map(count).sum()
    });
    counted.await.expect("counting does not panic")
}

fn same_records(source: &Reader, cloud: &Reader, topic: &str, partition: i32) -> u64 {
    let range = source.open(topic, partition);
    assert_eq!(range, cloud.open(topic, partition), "{topic}/{partition}: first and next offset differ");
    let mut records = 0;
    loop {
        let (ours, theirs) = (source.next(), cloud.next());
        assert_same(topic, partition, ours.as_ref(), theirs.as_ref());
        if ours.is_none() {
            return records;
        }
        records += 1;
    }
}

fn assert_same(topic: &str, partition: i32, ours: Option<&BorrowedMessage<'_>>, theirs: Option<&BorrowedMessage<'_>>) {
    match (ours, theirs) {
        (None, None) => {}
        (Some(ours), Some(theirs)) => {
            let (ours, theirs) = (Record::of(ours), Record::of(theirs));
            assert_eq!(ours, theirs, "{topic}/{partition}: records differ");
        }
        (ours, theirs) => {
            let offset = |record: Option<&BorrowedMessage<'_>>| record.map(Message::offset);
            panic!("{topic}/{partition}: one log ends early: {:?}, {:?}", offset(ours), offset(theirs));
        }
    }
}
