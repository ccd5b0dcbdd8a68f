//! The independent witness: librdkafka's consumer reads both clusters, decoding every record, and shares no code with
//! the product.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{Message, Offset, Timestamp, TopicPartitionList};

/// One question to a cluster.
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
/// One wait for the next record.
const POLL: Duration = Duration::from_millis(100);

/// Topic and partition.
pub(crate) type Place = (String, i32);

/// First and next offset of every partition.
pub(crate) type Ranges = BTreeMap<Place, (i64, i64)>;

/// Why a cluster could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WitnessError {
    #[error("librdkafka refuses the consumer's settings: {0}")]
    Settings(#[source] KafkaError),
    #[error("{bootstrap} does not tell the offsets of {topic}/{partition}: {source}")]
    Offsets {
        bootstrap: String,
        topic: String,
        partition: i32,
        #[source]
        source: Box<KafkaError>,
    },
    #[error("cannot read from {bootstrap}: {source}")]
    Read {
        bootstrap: String,
        #[source]
        source: KafkaError,
    },
    #[error("{bootstrap} does not give all records within {deadline:?}; {lacking} partitions are not at their end")]
    Deadline { bootstrap: String, deadline: Duration, lacking: usize },
}

/// What a consumer sees of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    offset: i64,
    timestamp: Timestamp,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// All records of a cluster's partitions.
pub(crate) type Records = BTreeMap<Place, Vec<Record>>;

/// A record that is not the same on both clusters, or only on one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// Offset at the source, or in the cloud where the source has none.
    pub(crate) offset: i64,
    pub(crate) what: &'static str,
}

/// First and next offsets as a consumer sees them. Blocks.
pub(crate) fn ranges(bootstrap: &str, topics: &[(String, i32)]) -> Result<Ranges, WitnessError> {
    let consumer = consumer(bootstrap)?;
    let mut ranges = Ranges::new();
    for (topic, count) in topics {
        for partition in 0..*count {
            let range = consumer.fetch_watermarks(topic, partition, QUESTION_DEADLINE).map_err(|error| {
                let (bootstrap, topic) = (bootstrap.to_owned(), topic.clone());
                WitnessError::Offsets { bootstrap, topic, partition, source: Box::new(error) }
            })?;
            ranges.insert((topic.clone(), partition), range);
        }
    }
    Ok(ranges)
}

/// Reads every record from first to last. Nobody may write meanwhile. Blocks.
pub(crate) fn read(bootstrap: &str, topics: &[(String, i32)], deadline: Duration) -> Result<Records, WitnessError> {
    let failed = |source| WitnessError::Read { bootstrap: bootstrap.to_owned(), source };
    let ranges = ranges(bootstrap, topics)?;
    let consumer = consumer(bootstrap)?;
    let mut assignment = TopicPartitionList::new();
    let mut records = Records::new();
    let mut lacking = BTreeMap::new();
    for ((topic, partition), (first, next)) in ranges {
        records.insert((topic.clone(), partition), Vec::new());
        if first < next {
            assignment.add_partition_offset(&topic, partition, Offset::Beginning).map_err(failed)?;
            lacking.insert((topic, partition), next);
        }
    }
    consumer.assign(&assignment).map_err(failed)?;
    let start = Instant::now();
    while !lacking.is_empty() {
        if start.elapsed() > deadline {
            return Err(WitnessError::Deadline { bootstrap: bootstrap.to_owned(), deadline, lacking: lacking.len() });
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                let place = (message.topic().to_owned(), message.partition());
                if lacking.get(&place).is_some_and(|next| message.offset() + 1 >= *next) {
                    lacking.remove(&place);
                }
                records.entry(place).or_default().push(Record::of(&message));
            }
            // Reports of lost connections: librdkafka dials again by itself.
            Some(Err(KafkaError::Global(_))) | None => {}
            Some(Err(error)) => return Err(failed(error)),
        }
    }
    Ok(records)
}

/// The first `most` differences, partition by partition.
pub(crate) fn differences(source: &Records, cloud: &Records, most: usize) -> Vec<Difference> {
    let mut found = Vec::new();
    for (place, ours) in source {
        let theirs = cloud.get(place).map_or(&[][..], Vec::as_slice);
        let longer = ours.len().max(theirs.len());
        let differing = (0..longer).filter_map(|at| difference(place, ours.get(at), theirs.get(at)));
        found.extend(differing.take(most - found.len()));
    }
    found
}

fn difference(place: &Place, ours: Option<&Record>, theirs: Option<&Record>) -> Option<Difference> {
    let (offset, what) = match (ours, theirs) {
        (None, None) => return None,
        (Some(ours), None) => (ours.offset, "is missing in the cloud"),
        (None, Some(theirs)) => (theirs.offset, "is only in the cloud"),
        (Some(ours), Some(theirs)) => {
            let what = if ours.offset != theirs.offset {
                "has another offset in the cloud"
            } else if ours.timestamp != theirs.timestamp {
                "has another timestamp"
            } else if ours.key != theirs.key {
                "has another key"
            } else if ours.value != theirs.value {
                "has another value"
            } else if ours.headers != theirs.headers {
                "has other headers"
            } else {
                return None;
            };
            (ours.offset, what)
        }
    };
    Some(Difference { topic: place.0.clone(), partition: place.1, offset, what })
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            offset: message.offset(),
            timestamp: message.timestamp(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
        }
    }
}

fn consumer(bootstrap: &str) -> Result<BaseConsumer, WitnessError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // librdkafka wants one even where partitions are assigned by hand; nothing is committed.
        .set("group.id", "tombolo-demo-witness")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "50")
        .set("queued.max.messages.kbytes", "32768")
        .create()
        .map_err(WitnessError::Settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> Record {
        Record {
            offset,
            timestamp: Timestamp::CreateTime(1_000 + offset),
            key: Some(b"k".to_vec()),
            value: None,
            headers: vec![("h".to_owned(), None)],
        }
    }

    fn log(records: Vec<Record>) -> Records {
        Records::from([(("t".to_owned(), 3), records)])
    }

    fn found(ours: Vec<Record>, theirs: Vec<Record>) -> Vec<(i64, &'static str)> {
        let found = differences(&log(ours), &log(theirs), 10);
        assert!(found.iter().all(|difference| (&*difference.topic, difference.partition) == ("t", 3)));
        found.into_iter().map(|difference| (difference.offset, difference.what)).collect()
    }

    #[test]
    fn equal_logs_have_no_difference() {
        assert_eq!(found(vec![record(0), record(1)], vec![record(0), record(1)]), []);
    }

    #[test]
    fn every_part_of_a_record_counts() {
        let changed = [
            (Record { offset: 9, ..record(1) }, "has another offset in the cloud"),
            (Record { timestamp: Timestamp::LogAppendTime(1_001), ..record(1) }, "has another timestamp"),
            (Record { key: None, ..record(1) }, "has another key"),
            (Record { value: Some(Vec::new()), ..record(1) }, "has another value"),
            (Record { headers: Vec::new(), ..record(1) }, "has other headers"),
        ];
        for (changed, what) in changed {
            assert_eq!(found(vec![record(0), record(1)], vec![record(0), changed]), [(1, what)]);
        }
    }

    #[test]
    fn one_log_may_end_early() {
        assert_eq!(found(vec![record(0), record(1)], vec![record(0)]), [(1, "is missing in the cloud")]);
        assert_eq!(found(vec![], vec![record(0)]), [(0, "is only in the cloud")]);
        assert_eq!(differences(&log(vec![record(4)]), &Records::new(), 10).len(), 1);
    }

    #[test]
    fn differences_are_limited() {
        let many: Vec<_> = (0..50).map(record).collect();
        assert_eq!(found(many, vec![]).len(), 10);
    }
}
