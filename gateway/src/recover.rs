//! Where a partition of a mirror stands: log end, producer state and the last batches, read from its leader.

use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::admin::{self, OffsetQuery, OffsetSpec};
use tombolo_kafka::cluster::Leader;
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::fetch::{self, FetchOnce, Isolation};
use tombolo_kafka::{Cluster, Connection, KafkaError};
use tombolo_proto::batch::{self, Batch};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::limits::MAX_TAIL;
use tombolo_proto::mirror::{Recovery, advance};

/// For the high watermark to reach the log end, and for both looks at the end to agree.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes read beyond the last batch, as evidence against another history of the source.
const TAIL_BYTES: i32 = 32 << 10;
/// How many batches of the last one's record count are hoped to lie within [`TAIL_BYTES`].
const TAIL_BATCHES: i64 = 8;

/// Why a partition could not be read; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("{topic}[{partition}]: {code}")]
    Partition { topic: TopicName, partition: Partition, code: ErrorCode },
    #[error("the high watermark {high_watermark} did not reach the log end {log_end} within {SETTLE_DEADLINE:?}")]
    Unreplicated { log_end: Offset, high_watermark: Offset },
    #[error("the log end moves though nobody writes: {from}, then {to}")]
    Moving { from: Offset, to: Offset },
    #[error("the log of the mirror holds what is no batch: {0}")]
    Batch(#[from] batch::BatchError),
}

/// What a partition holds, and the leader that told it: batches go to that leader and no other, until the next look.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) recovery: Recovery,
    pub(crate) leader: Leader,
    pub(crate) topic: TopicName,
}

/// A partition to look at.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) topic: TopicName,
    pub(crate) partition: Partition,
    pub(crate) producer_id: i64,
}

/// Looks at a partition. Forgets its leader where the answer says that it is another.
pub(crate) async fn recover(cluster: &Cluster, place: &Place) -> Result<Found, RecoverError> {
    let found = look(cluster, place).await;
    if found.is_err() {
        cluster.forget_leader(place.topic.as_str(), place.partition);
    }
    found
}

async fn look(cluster: &Cluster, place: &Place) -> Result<Found, RecoverError> {
    let leader = cluster.leader(place.topic.as_str(), place.partition).await?;
    let reader =
        Reader { connection: cluster.shared(leader.broker).await?, topic: place.topic.shared(), place, leader };
    let deadline = tokio::time::Instant::now() + SETTLE_DEADLINE;
    loop {
        let log_end = reader.settled_end(deadline).await?;
        let tail = if log_end > 0 { reader.tail(log_end).await? } else { Vec::new() };
        let last_sequence = if log_end > 0 { reader.last_sequence(&tail).await? } else { None };
        let again = if log_end > 0 { reader.offset(OffsetSpec::LogEnd).await? } else { 0 };
        if again == log_end {
            let recovery = Recovery { log_end, last_sequence, tail };
            return Ok(Found { recovery, leader, topic: place.topic.clone() });
        }
        if tokio::time::Instant::now() > deadline {
            return Err(RecoverError::Moving { from: log_end, to: again });
        }
    }
}

struct Reader<'a> {
    connection: Connection,
    topic: Arc<str>,
    place: &'a Place,
    leader: Leader,
}

impl Reader<'_> {
    /// The log end, once the high watermark has reached it.
    async fn settled_end(&self, deadline: tokio::time::Instant) -> Result<Offset, RecoverError> {
        loop {
            let log_end = self.offset(OffsetSpec::LogEnd).await?;
            if log_end == 0 {
                return Ok(0);
            }
            let high_watermark = self.offset(OffsetSpec::HighWatermark).await?;
            if high_watermark >= log_end {
                return Ok(log_end);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(RecoverError::Unreplicated { log_end, high_watermark });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn offset(&self, spec: OffsetSpec) -> Result<Offset, RecoverError> {
        let query = OffsetQuery {
            topic: Arc::clone(&self.topic),
            partition: self.place.partition,
            leader_epoch: self.leader.epoch,
        };
        let answers = admin::list_offsets(&self.connection, spec, &[query]).await?;
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(found)) => Ok(found.offset),
            Some(Err(code)) => Err(self.error(code)),
            None => Err(self.error(ErrorCode::OFFSET_NOT_AVAILABLE)),
        }
    }

    /// The broker's memory of the link's producer id. A broker that does not tell has the last batch to look at.
    async fn last_sequence(&self, tail: &[Batch]) -> Result<Option<i32>, RecoverError> {
        let wanted = [(Arc::clone(&self.topic), self.place.partition)];
        let answers = match admin::describe_producers(&self.connection, &wanted).await {
            Err(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }) => {
                return Ok(sequence_of_tail(tail, self.place.producer_id));
            }
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(producers)) => Ok(producers
                .iter()
                .find(|producer| producer.producer_id == self.place.producer_id)
                .map(|producer| producer.last_sequence)),
            Some(Err(refusal)) => Err(self.error(refusal.code)),
            None => Ok(None),
        }
    }

    /// The last batches, joined up to `log_end`; none where the log holds no record any more.
    async fn tail(&self, log_end: Offset) -> Result<Vec<Batch>, RecoverError> {
        let last = self.batches_from(log_end - 1).await?;
        let Some((base, count)) = last.first().map(|batch| (batch.base_offset(), i64::from(batch.record_count())))
        else {
            return Ok(Vec::new());
        };
        let from = (base - TAIL_BATCHES * count.max(1)).max(0);
        let mut batches = if from < base { self.batches_from(from).await? } else { Vec::new() };
        batches.retain(|batch| batch.base_offset() < base);
        batches.extend(last);
        Ok(joined_tail(batches, log_end))
    }

    /// None where the offset lies below the log's start.
    async fn batches_from(&self, offset: Offset) -> Result<Vec<Batch>, RecoverError> {
        let once = FetchOnce {
            topic: &self.topic,
            topic_id: None,
            partition: self.place.partition,
            offset,
            leader_epoch: self.leader.epoch,
            max_bytes: TAIL_BYTES,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
        };
        let fetched = fetch::fetch_once(&self.connection, once).await?;
        match fetched.error {
            None => Ok(batch::split(fetched.records).collect::<Result<_, _>>()?),
            Some(ErrorCode::OFFSET_OUT_OF_RANGE) => Ok(Vec::new()),
            Some(code) => Err(self.error(code)),
        }
    }

    fn error(&self, code: ErrorCode) -> RecoverError {
        RecoverError::Partition { topic: self.place.topic.clone(), partition: self.place.partition, code }
    }
}

/// The longest run of batches at the end that join and end at `log_end`, at most [`MAX_TAIL`].
fn joined_tail(batches: Vec<Batch>, log_end: Offset) -> Vec<Batch> {
    let mut tail = Vec::new();
    let mut next = log_end;
    for batch in batches.into_iter().rev() {
        if batch.next_offset() != next || tail.len() == MAX_TAIL {
            break;
        }
        next = batch.base_offset();
        tail.push(batch);
    }
    tail.reverse();
    tail
}

fn sequence_of_tail(tail: &[Batch], producer_id: i64) -> Option<i32> {
    let last = tail.iter().rfind(|batch| batch.producer_id() == producer_id)?;
    (last.base_sequence() >= 0).then(|| advance(last.base_sequence(), last.record_count() - 1))
}

#[cfg(test)]
mod tests {
    use tombolo_proto::testing::BatchBuilder;

    use super::*;

    fn batch(base: Offset, records: i32, id: i64, sequence: i32) -> Batch {
        BatchBuilder::new(base).records(records).stamp(id, 0, sequence).build()
    }

    #[test]
    fn the_tail_joins_and_ends_at_the_log_end() {
        let all = || vec![batch(0, 2, 9, 0), batch(3, 2, 9, 2), batch(5, 1, 9, 4)];
        assert_eq!(joined_tail(all(), 6), all()[1..]);
        assert_eq!(joined_tail(all(), 7), []);
        assert_eq!(joined_tail(Vec::new(), 0), []);
        let many: Vec<Batch> = (0..40).map(|at| batch(at, 1, 9, 0)).collect();
        assert_eq!(joined_tail(many, 40).len(), MAX_TAIL);
    }

    #[test]
    fn the_sequence_is_that_of_the_links_last_record() {
        let tail = [batch(0, 3, 9, 10), batch(3, 1, 4, 0)];
        assert_eq!(sequence_of_tail(&tail, 9), Some(12));
        assert_eq!(sequence_of_tail(&tail, 5), None);
        let wrapped = [batch(0, 3, 9, i32::MAX - 1)];
        assert_eq!(sequence_of_tail(&wrapped, 9), Some(0));
        assert_eq!(sequence_of_tail(&[batch(0, 1, 9, -1)], 9), None);
    }
}
