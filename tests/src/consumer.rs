//! What a librdkafka consumer sees of a partition, at either isolation level.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use crate::broker::KafkaCluster;

/// One read of a partition's next record; a broker that fails over is waited for.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// How much of unsettled transactions a consumer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Committed records, up to the first transaction that is open.
    Committed,
    /// Everything below the high watermark, aborted records too.
    Uncommitted,
}

impl Isolation {
    fn name(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// What a consumer sees of a record. Whether its time is one of creation or of append is not looked at: a mirror keeps
/// the time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) offset: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    timestamp: Option<i64>,
}

impl<'a> Record<'a> {
    pub(crate) fn of(message: &'a BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            offset: message.offset(),
            key: message.key(),
            value: message.payload(),
            headers: headers.map(|header| (header.key, header.value)).collect(),
            timestamp: message.timestamp().to_millis(),
        }
    }
}

/// A record that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
}

impl From<Record<'_>> for Kept {
    fn from(record: Record<'_>) -> Self {
        let header = |(name, value): (&str, Option<&[u8]>)| (name.to_owned(), value.map(<[u8]>::to_vec));
        Self {
            offset: record.offset,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.into_iter().map(header).collect(),
            timestamp: record.timestamp,
        }
    }
}

/// All records of a partition, from first to last.
pub async fn read_all(cluster: &KafkaCluster, topic: &str, partition: i32, isolation: Isolation) -> Vec<Kept> {
    let (config, topic) = (cluster.client_config(), topic.to_owned());
    let read = move || {
        let reader = Reader::new(config, isolation);
        reader.open(&topic, partition);
        std::iter::from_fn(|| reader.next().map(|message| Kept::from(Record::of(&message)))).collect()
    };
    spawn_blocking(read).await.expect("reading does not panic")
}

/// A consumer of one partition at a time.
pub(crate) struct Reader(BaseConsumer);

impl Reader {
    pub(crate) fn new(mut config: ClientConfig, isolation: Isolation) -> Self {
        config
            .set("group.id", "tombolo-tests-compare")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("isolation.level", isolation.name())
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", "32768");
        Self(config.create().expect("librdkafka takes the consumer's settings"))
    }

    /// Starts to read a partition; its first and next offset.
    pub(crate) fn open(&self, topic: &str, partition: i32) -> (i64, i64) {
        let range = self.0.fetch_watermarks(topic, partition, READ_DEADLINE);
        let range = range.unwrap_or_else(|error| panic!("{topic}/{partition}: {error}"));
        self.seek(topic, partition, Offset::Beginning);
        range
    }

    /// Starts to read a partition at this offset.
    pub(crate) fn seek(&self, topic: &str, partition: i32, offset: Offset) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, offset).expect("an offset to begin with");
        self.0.assign(&list).expect("a partition can be assigned");
    }

    /// The next record; `None` at the end.
    pub(crate) fn next(&self) -> Option<BorrowedMessage<'_>> {
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
