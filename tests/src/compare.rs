//! The proof that two clusters hold the same: the product's raw compare, batch for batch, and a second opinion from
//! rdkafka, record for record, which shares no code with the product.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use tombolo_kafka::compare::{CompareOptions, Comparison, Extent, LogPair, compare};

use crate::broker::KafkaCluster;
use crate::wait::until;

/// One read of a partition's next record; a broker that fails over is waited for.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Waits until every mirror is as long as its source, which nobody may write to meanwhile, and panics unless both logs
/// are equal: the same batches at the same offsets, and the same records for a consumer. Returns how many records.
pub async fn await_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str], deadline: Duration) -> u64 {
    wait_until_mirrored(source, cloud, topics, deadline).await;
    let raw = raw_compare(source, cloud, topics).await;
    let differences: Vec<String> = raw.differences.iter().map(ToString::to_string).collect();
    assert!(raw.is_identical(), "{} differences, the first are:\n{}", raw.difference_count, differences.join("\n"));
    let records = consumer_equal(source, cloud, topics).await;
    assert_eq!(raw.records, records, "the raw compare saw another number of records than a consumer");
    records
}

/// What the product's compare says of these topics.
pub async fn raw_compare(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> Comparison {
    let pairs: Vec<LogPair> = partitions(source, topics)
        .await
        .into_iter()
        .map(|(topic, partition)| {
            let topic: Arc<str> = topic.into();
            LogPair { source: Arc::clone(&topic), mirror: topic, partition, extent: Extent::Whole }
        })
        .collect();
    let compared = compare(&source.raw_client(), &cloud.raw_client(), &pairs, CompareOptions::default()).await;
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
/// offset, key, value, headers or timestamp. Nobody may write meanwhile. Returns how many records were equal.
pub async fn consumer_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> u64 {
    let partitions = partitions(source, topics).await;
    assert_eq!(partitions, self::partitions(cloud, topics).await, "the clusters differ in partitions");
    let (source, cloud) = (source.client_config(), cloud.client_config());
    let compared = spawn_blocking(move || {
        let (source, cloud) = (Reader::new(source), Reader::new(cloud));
        partitions.iter().map(|(topic, partition)| same_records(&source, &cloud, topic, *partition)).sum()
    });
    match compared.await {
        Ok(records) => records,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// How many records a consumer sees in these topics from first to last offset.
pub async fn consumed_records(cluster: &KafkaCluster, topics: &[&str]) -> u64 {
    let partitions = partitions(cluster, topics).await;
    let config = cluster.client_config();
    let counted = spawn_blocking(move || {
        let reader = Reader::new(config);
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
        match (source.next(), cloud.next()) {
            (None, None) => return records,
            (Some(ours), Some(theirs)) => {
                let (ours, theirs) = (Record::of(&ours), Record::of(&theirs));
                assert_eq!(ours, theirs, "{topic}/{partition}: records differ");
                records += 1;
            }
            (ours, theirs) => {
                let offset = |record: Option<BorrowedMessage<'_>>| record.map(|record| record.offset());
                panic!("{topic}/{partition}: one log ends early: {:?}, {:?}", offset(ours), offset(theirs));
            }
        }
    }
}

/// What a consumer sees of a record.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    offset: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    timestamp: rdkafka::Timestamp,
}

impl<'a> Record<'a> {
    fn of(message: &'a BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            offset: message.offset(),
            key: message.key(),
            value: message.payload(),
            headers: headers.map(|header| (header.key, header.value)).collect(),
            timestamp: message.timestamp(),
        }
    }
}

/// A consumer of one partition at a time.
struct Reader(BaseConsumer);

impl Reader {
    fn new(mut config: ClientConfig) -> Self {
        config
            .set("group.id", "tombolo-tests-compare")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", "32768");
        Self(config.create().expect("librdkafka takes the consumer's settings"))
    }

    /// Starts to read a partition; its first and next offset.
    fn open(&self, topic: &str, partition: i32) -> (i64, i64) {
        let range = self.0.fetch_watermarks(topic, partition, READ_DEADLINE);
        let range = range.unwrap_or_else(|error| panic!("{topic}/{partition}: {error}"));
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset to begin with");
        self.0.assign(&list).expect("a partition can be assigned");
        range
    }

    /// The next record; `None` at the end.
    fn next(&self) -> Option<BorrowedMessage<'_>> {
        let start = Instant::now();
        while start.elapsed() < READ_DEADLINE {
            match self.0.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => return Some(message),
                Some(Err(KafkaError::PartitionEOF(_))) => return None,
                // Reports of lost connections: librdkafka dials again by itself.
                Some(Err(KafkaError::MessageConsumption(_) | KafkaError::Global(_))) | None => {}
                Some(Err(error)) => panic!("cannot read: {error}"),
            }
        }
        panic!("no record and no end within {READ_DEADLINE:?}");
    }
}
