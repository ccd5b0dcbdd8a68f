//! Makes a mirror start where its source's log does: filler up to that offset, then all of it is deleted. The log is empty
//! then, and ends, with its sequence, where the first record is to go.
//!
//! Filler is appended like data: compare-and-append, so that two gateways at it are harmless, and one that was killed half
//! way is gone on from. What it has appended is deleted as it goes, and what one that was killed left, before anything else
//! is done with the partition ([`crate::recover`]).
//!
//! Must never: begin before the registry holds the start; append beyond it; be used on a log that holds records.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use tombolo_kafka::admin::{self, DeleteBefore};
use tombolo_kafka::error::ErrorCode;
use tombolo_kafka::produce::{self, ProduceAnswer, ProduceBatch};
use tombolo_kafka::records::{self, ReencodeError};
use tombolo_kafka::{Connection, KafkaError};
use tombolo_proto::batch::{Batch, Stamp};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::lease::LeaseError;
use tombolo_proto::limits::MAX_IN_FLIGHT;
use tombolo_proto::mirror::advance;

use crate::leased::LeasedCluster;
use crate::metrics;
use crate::recover::{self, Place, RecoverError, Stand};
use crate::registry::Lapse;

/// Records of a batch. A broker walks them all: more would not be faster, and hold it up for longer.
const BATCH: i32 = 100_000;
/// Where the topic takes no larger batch.
const LEAST_BATCH: i32 = 100;
/// Offsets after which filler is deleted: a reader of the mirror finds as little of it as may be, and it takes no disk.
const DELETE_EVERY: i64 = 1_000_000;
/// For the brokers to delete records on all replicas.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a mirror could not be made to start; it is tried again, from where it is then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FastForwardError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Stand(#[from] RecoverError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Filler(#[from] ReencodeError),
    #[error("the log ends at {found} by now, not at {expected}")]
    Moved { expected: Offset, found: Offset },
    #[error("the log holds offsets {log_start} to {log_end}: a mirror that holds something has started")]
    Started { log_start: Offset, log_end: Offset },
    #[error("{topic}[{partition}]: filler for offset {offset}: {reason}")]
    Append { topic: TopicName, partition: Partition, offset: Offset, reason: String },
    #[error(transparent)]
    Delete(#[from] DeleteError),
}

/// Why records could not be deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(
        "{topic}: the gateway may not delete records: kafka-acls.sh --add --allow-principal \
         User:NAME-OF-THE-GATEWAY --operation Delete --topic {topic}"
    )]
    Forbidden { topic: TopicName },
    #[error(
        "{topic}: records cannot be deleted without cleanup.policy=delete, which the mirror topic must have until the \
         first pass is done"
    )]
    Policy { topic: TopicName },
    #[error("{topic}[{partition}]: records below {offset} not deleted: {code}")]
    Refused { topic: TopicName, partition: Partition, offset: Offset, code: ErrorCode },
    #[error("{topic}[{partition}]: the log starts at {found} after records below {offset} were deleted")]
    Short { topic: TopicName, partition: Partition, offset: Offset, found: Offset },
}

impl Lapse for FastForwardError {
    fn is_lapse(&self) -> bool {
        match self {
            Self::Stand(RecoverError::Kafka(error)) | Self::Kafka(error) => error.is_lapse(),
            Self::Delete(error) | Self::Stand(RecoverError::Filler(error)) => error.is_lapse(),
            Self::Lease(_)
            | Self::Stand(_)
            | Self::Filler(_)
            | Self::Moved { .. }
            | Self::Started { .. }
            | Self::Append { .. } => false,
        }
    }
}

impl Lapse for DeleteError {
    fn is_lapse(&self) -> bool {
        match self {
            Self::Kafka(error) => error.is_lapse(),
            Self::Lease(_)
            | Self::Forbidden { .. }
            | Self::Policy { .. }
            | Self::Refused { .. }
            | Self::Short { .. } => false,
        }
    }
}

/// Brings the log of a partition from `from`, where it is empty, to `to`. Goes on from where it is after a lapse of the
/// lease.
pub(crate) async fn fast_forward(
    cloud: &LeasedCluster,
    place: &Place,
    timeout: Duration,
    from: Offset,
    to: Offset,
) -> Result<(), FastForwardError> {
    let mut begins = from..=from;
    let again = || {
        let expected = std::mem::replace(&mut begins, from..=to);
        fill_up(cloud, place, timeout, expected, to)
    };
    cloud.lease.patiently(again).await
}

async fn fill_up(
    cloud: &LeasedCluster,
    place: &Place,
    timeout: Duration,
    expected: RangeInclusive<Offset>,
    to: Offset,
) -> Result<(), FastForwardError> {
    let stand = recover::stand(cloud, place, to).await?;
    if !expected.contains(&stand.log_end) {
        return Err(FastForwardError::Moved { expected: *expected.start(), found: stand.log_end });
    }
    let Stand { leader, log_start, log_end, .. } = stand;
    if log_start != log_end {
        return Err(FastForwardError::Started { log_start, log_end: log_end - 1 });
    }
    // Filler has a connection of its own: batches of this size would hold up everybody's answers, and deletions, which wait
    // for the replicas, would hold up filler.
    let connection = cloud.cluster.connect(leader.broker).await?;
    // Changes nothing, and says before anything is filled whether it may be deleted.
    delete_before(cloud, leader.broker, place, log_start).await?;
    let filler = Filler { cloud, broker: leader.broker, connection, place, timeout };
    filler.fill(&stand, to).await?;
    delete_before(cloud, leader.broker, place, to).await?;
    Ok(())
}

/// Moves the log start of a partition up to `offset`, at its leader. Returns where it is. Waits for the lease.
pub(crate) async fn delete_before(
    cloud: &LeasedCluster,
    broker: i32,
    place: &Place,
    offset: Offset,
) -> Result<Offset, DeleteError> {
    cloud.lease.patiently(|| delete_once(cloud, broker, place, offset)).await
}

async fn delete_once(cloud: &LeasedCluster, broker: i32, place: &Place, offset: Offset) -> Result<Offset, DeleteError> {
    let (topic, partition) = (place.topic.clone(), place.partition);
    let wanted = [DeleteBefore { topic: topic.shared(), partition, offset }];
    let connection = cloud.cluster.shared(broker).await?;
    let answers = admin::delete_records(&connection, &wanted, DELETE_TIMEOUT).await?;
    match answers.into_iter().next().map(|answer| answer.result) {
        Some(Ok(found)) if found >= offset => Ok(found),
        Some(Ok(found)) => Err(DeleteError::Short { topic, partition, offset, found }),
        Some(Err(ErrorCode::TOPIC_AUTHORIZATION_FAILED)) => Err(DeleteError::Forbidden { topic }),
        Some(Err(ErrorCode::POLICY_VIOLATION)) => Err(DeleteError::Policy { topic }),
        Some(Err(code)) => Err(DeleteError::Refused { topic, partition, offset, code }),
        None => Err(DeleteError::Refused { topic, partition, offset, code: ErrorCode::UNKNOWN_SERVER_ERROR }),
    }
}

struct Filler<'a> {
    cloud: &'a LeasedCluster,
    /// That leads the partition.
    broker: i32,
    connection: Connection,
    place: &'a Place,
    timeout: Duration,
}

/// A batch on its way.
struct Sent {
    offset: Offset,
    count: i32,
    sequence: i32,
    answer: BoxFuture<'static, Result<Vec<ProduceAnswer>, KafkaError>>,
}

/// What came of a batch.
enum Filled {
    Appended,
    /// The topic takes no batch of this size.
    TooLarge,
}

impl Filler<'_> {
    async fn fill(&self, stand: &Stand, to: Offset) -> Result<(), FastForwardError> {
        let mut next = stand.log_end;
        let mut sequence = stand.next_sequence();
        let mut size = BATCH;
        let mut full = filler(size).await?;
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let mut deletion = Deletion { offset: stand.log_start, work: None };
        // A broker that does not know the id takes any sequence: the second batch must not come before the first.
        let mut depth = 1;
        while next < to || !sent.is_empty() {
            if next < to && sent.len() < depth {
                let count = i32::try_from((to - next).min(i64::from(size))).unwrap_or(size);
                let batch = if count == size { full.clone() } else { filler(count).await? };
                if let Err(error) = self.cloud.lease.settled().await {
                    settle_all(sent).await;
                    return Err(error.into());
                }
                sent.push_back(self.send(&batch, next, count, sequence));
                next += i64::from(count);
                sequence = advance(sequence, count);
                continue;
            }
            let Some(first) = sent.pop_front() else { continue };
            let (offset, count, of_first) = (first.offset, first.count, first.sequence);
            match self.settle(first, &mut deletion).await {
                Ok(Filled::Appended) => {
                    depth = MAX_IN_FLIGHT;
                    metrics::filler_appended(count);
                    self.delete_some(offset + i64::from(count), &mut deletion);
                }
                Ok(Filled::TooLarge) if depth == 1 && size > LEAST_BATCH => {
                    size /= 10;
                    full = filler(size).await?;
                    (next, sequence) = (offset, of_first);
                }
                Ok(Filled::TooLarge) => {
                    settle_all(sent).await;
                    return Err(self.refused(offset, ErrorCode::MESSAGE_TOO_LARGE.to_string()));
                }
                Err(error) => {
                    settle_all(sent).await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn send(&self, batch: &Batch, offset: Offset, count: i32, sequence: i32) -> Sent {
        let batch = ProduceBatch {
            topic: self.place.topic.shared(),
            topic_id: self.place.topic_id,
            partition: self.place.partition,
            batch: batch.stamped(Stamp { producer_id: self.place.producer_id, sequence }),
        };
        let answer = Box::pin(produce::send_produce(&self.connection, vec![batch], self.timeout));
        Sent { offset, count, sequence, answer }
    }

    /// The answer to a batch, and what becomes of the deletion meanwhile.
    async fn settle(&self, sent: Sent, deletion: &mut Deletion<'_>) -> Result<Filled, FastForwardError> {
        let Sent { offset, mut answer, .. } = sent;
        let answers = loop {
            tokio::select! {
                answers = &mut answer => break answers?,
                deleted = deletion.ended() => {
                    if let Err(error) = deleted {
                        // It is behind the batch in no way, but who looks at the log next must see all of it.
                        drop(answer.await);
                        return Err(error.into());
                    }
                }
            }
        };
        match answers.into_iter().next().map(|answer| (answer.result, answer.message)) {
            Some((Ok(ack), _)) if ack.base_offset == offset => Ok(Filled::Appended),
            Some((Ok(ack), _)) => Err(self.refused(offset, format!("it ended up at offset {}", ack.base_offset))),
            Some((Err(ErrorCode::MESSAGE_TOO_LARGE), _)) => Ok(Filled::TooLarge),
            Some((Err(code), message)) => Err(self.refused(offset, format!("{code} {}", message.unwrap_or_default()))),
            None => Err(self.refused(offset, "no answer".to_owned())),
        }
    }

    /// Begins to delete what is filled, unless that is little, or some is being deleted.
    fn delete_some<'d>(&'d self, filled: Offset, deletion: &mut Deletion<'d>) {
        if deletion.work.is_none() && filled - deletion.offset >= DELETE_EVERY {
            deletion.offset = filled;
            deletion.work = Some(Box::pin(delete_before(self.cloud, self.broker, self.place, filled)));
        }
    }

    fn refused(&self, offset: Offset, reason: String) -> FastForwardError {
        FastForwardError::Append { topic: self.place.topic.clone(), partition: self.place.partition, offset, reason }
    }
}

/// Filler that is being deleted behind what is appended.
struct Deletion<'a> {
    /// Below this it is, or was.
    offset: Offset,
    work: Option<BoxFuture<'a, Result<Offset, DeleteError>>>,
}

impl Deletion<'_> {
    /// Waits for the end of what is being deleted.
    async fn ended(&mut self) -> Result<(), DeleteError> {
        let Some(work) = &mut self.work else { return std::future::pending().await };
        let result = work.await;
        self.work = None;
        result.map(drop)
    }
}

/// Waits for what is still on its way, which is refused as a matter of course: who looks at the log next must see all of
/// it.
async fn settle_all(sent: VecDeque<Sent>) {
    for later in sent {
        drop(later.answer.await);
    }
}

/// Packing takes some milliseconds.
async fn filler(count: i32) -> Result<Batch, ReencodeError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let packed = tokio::task::spawn_blocking(move || records::filler(count, timestamp)).await;
    packed.unwrap_or(Err(ReencodeError::Malformed { offset: 0, reason: "filler was not packed" }))
}
