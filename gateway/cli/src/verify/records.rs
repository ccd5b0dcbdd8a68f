//! The second reading: librdkafka's consumer, record by record. It shares no code with the raw compare.
//!
//! It reads what is committed, as an application would: records of aborted transactions and gaps are not seen.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use tombolo_kafka::compare::{Extent, LogPair};

use super::VerifyError;
use super::plan::Plan;
use super::settings::Settings;

/// For an answer, and for the next record or the end: a broker that fails over is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// What librdkafka holds of each cluster.
const QUEUE_KIB: &str = "4096";

/// Why the records could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("librdkafka refuses the settings of the {side}: {source}")]
    Settings {
        side: &'static str,
        #[source]
        source: KafkaError,
    },
    #[error("{topic}[{partition}] of the {side} cannot be read: {source}")]
    Read {
        side: &'static str,
        topic: String,
        partition: i32,
        #[source]
        source: Box<KafkaError>,
    },
    #[error("{topic}[{partition}] of the {side} gives no record and no end within {PATIENCE:?}")]
    Silent { side: &'static str, topic: String, partition: i32 },
}

/// What the second reading found.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Records that are equal.
    pub(super) equal: u64,
    pub(super) difference_count: u64,
    /// The first differences.
    pub(super) differences: Vec<RecordDifference>,
}

/// A record that is not the same on both sides, or only on one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordDifference {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) what: &'static str,
}

/// Reads all that was planned, one partition after another.
pub(super) async fn compare(settings: &Settings, plan: &Plan, listed: usize) -> Result<Records, VerifyError> {
    let source = Reader::new("source", &settings.source_properties)?;
    let mirror = Reader::new("mirror", &settings.cloud_properties)?;
    let pairs: Vec<LogPair> = plan.partitions.iter().map(|planned| planned.pair.clone()).collect();
    let read = spawn_blocking(move || {
        let mut found = Records::default();
        for pair in &pairs {
            compare_pair(&source, &mirror, pair, listed, &mut found)?;
        }
        Ok::<_, RecordsError>(found)
    });
    Ok(read.await??)
}

fn compare_pair(
    source: &Reader,
    mirror: &Reader,
    pair: &LogPair,
    listed: usize,
    found: &mut Records,
) -> Result<(), RecordsError> {
    // The mirror's end first: it may grow meanwhile.
    let theirs = mirror.watermarks(&pair.mirror, pair.partition)?;
    let ours = source.watermarks(&pair.source, pair.partition)?;
    let wanted = match &pair.extent {
        Extent::Offsets(range) => range.clone(),
        Extent::Whole | Extent::Windows(_) => 0..i64::MAX,
    };
    let start = ours.0.max(theirs.0).max(wanted.start);
    let end = ours.1.min(theirs.1).min(wanted.end);
    if start >= end {
        return Ok(());
    }
    let mut ours = Cursor::open(source, &pair.source, pair.partition, start, end)?;
    let mut theirs = Cursor::open(mirror, &pair.mirror, pair.partition, start, end)?;
    loop {
        let (left, right) = (ours.record(), theirs.record());
        let (offset, what) = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(left), Some(right)) if left.offset == right.offset => (left.offset, difference(left, right)),
            (Some(left), Some(right)) if left.offset > right.offset => (right.offset, Some(IN_MIRROR_ONLY)),
            (Some(left), _) => (left.offset, Some(MISSING)),
            (None, Some(right)) => (right.offset, Some(IN_MIRROR_ONLY)),
        };
        match what {
            None => found.equal += 1,
            Some(what) => {
                found.difference_count += 1;
                if found.differences.len() < listed {
                    let (topic, partition) = (pair.source.to_string(), pair.partition);
                    found.differences.push(RecordDifference { topic, partition, offset, what });
                }
            }
        }
        if what != Some(IN_MIRROR_ONLY) {
            ours.pass()?;
        }
        if what != Some(MISSING) {
            theirs.pass()?;
        }
    }
}

const MISSING: &str = "the record is missing in the mirror";
const IN_MIRROR_ONLY: &str = "the record is in the mirror only";

/// What a consumer sees of a record.
struct Record<'a> {
    offset: i64,
    timestamp: rdkafka::Timestamp,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl<'a> Record<'a> {
    fn of(message: &'a BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            offset: message.offset(),
            timestamp: message.timestamp(),
            key: message.key(),
            value: message.payload(),
            headers: headers.map(|header| (header.key, header.value)).collect(),
        }
    }
}

fn difference(ours: &Record<'_>, theirs: &Record<'_>) -> Option<&'static str> {
    if ours.timestamp.to_millis() != theirs.timestamp.to_millis() {
        Some("the record has another timestamp")
    } else if ours.key != theirs.key {
        Some("the record has another key")
    } else if ours.value != theirs.value {
        Some("the record has another value")
    } else if ours.headers != theirs.headers {
        Some("the record has other headers")
    } else {
        None
    }
}

/// A consumer of one partition at a time.
struct Reader {
    side: &'static str,
    consumer: BaseConsumer,
}

impl Reader {
    fn new(side: &'static str, properties: &[(String, String)]) -> Result<Self, RecordsError> {
        let mut config: ClientConfig = properties.iter().cloned().collect();
        config
            // librdkafka wants one even where partitions are assigned by hand; nothing is committed.
            .set("group.id", "tombolo-verify")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            .set("queued.max.messages.kbytes", QUEUE_KIB);
        let consumer = config.create().map_err(|source| RecordsError::Settings { side, source })?;
        Ok(Self { side, consumer })
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), RecordsError> {
        let range = self.consumer.fetch_watermarks(topic, partition, PATIENCE);
        range.map_err(|source| self.failed(topic, partition, source))
    }

    fn failed(&self, topic: &str, partition: i32, source: KafkaError) -> RecordsError {
        RecordsError::Read { side: self.side, topic: topic.to_owned(), partition, source: Box::new(source) }
    }
}

/// A partition being read.
struct Cursor<'a> {
    reader: &'a Reader,
    topic: &'a str,
    partition: i32,
    end: i64,
    head: Option<BorrowedMessage<'a>>,
}

impl<'a> Cursor<'a> {
    fn open(reader: &'a Reader, topic: &'a str, partition: i32, start: i64, end: i64) -> Result<Self, RecordsError> {
        let failed = |source| reader.failed(topic, partition, source);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(start)).map_err(failed)?;
        reader.consumer.assign(&list).map_err(failed)?;
        let mut cursor = Self { reader, topic, partition, end, head: None };
        cursor.pass()?;
        Ok(cursor)
    }

    /// The record at hand; `None` at the end.
    fn record(&self) -> Option<Record<'_>> {
        self.head.as_ref().map(Record::of)
    }

    /// Goes on to the next record.
    fn pass(&mut self) -> Result<(), RecordsError> {
        if self.head.take().is_some_and(|last| last.offset() + 1 >= self.end) {
            return Ok(());
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.reader.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    // What was fetched of another partition before this one was assigned is none of it.
                    let is_ours = message.topic() == self.topic && message.partition() == self.partition;
                    if is_ours {
                        self.head = Some(message).filter(|message| message.offset() < self.end);
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == self.partition => return Ok(()),
                // Of a partition before; and reports of lost connections: librdkafka dials again by itself.
                Some(Err(KafkaError::PartitionEOF(_) | KafkaError::Global(_))) | None => {}
                Some(Err(error)) => return Err(self.reader.failed(self.topic, self.partition, error)),
            }
        }
        let topic = self.topic.to_owned();
        Err(RecordsError::Silent { side: self.reader.side, topic, partition: self.partition })
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;

    fn record() -> Record<'static> {
        Record {
            offset: 4,
            timestamp: Timestamp::CreateTime(7),
            key: Some(b"k"),
            value: None,
            headers: vec![("h", None)],
        }
    }

    #[test]
    fn every_part_of_a_record_counts() {
        assert_eq!(difference(&record(), &record()), None);
        let changed = [
            (Record { timestamp: Timestamp::CreateTime(8), ..record() }, "the record has another timestamp"),
            (Record { key: None, ..record() }, "the record has another key"),
            (Record { value: Some(b""), ..record() }, "the record has another value"),
            (Record { headers: Vec::new(), ..record() }, "the record has other headers"),
        ];
        for (theirs, what) in changed {
            assert_eq!(difference(&record(), &theirs), Some(what));
        }
    }
}
