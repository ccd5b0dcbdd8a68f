//! Where a partition of a mirror stands: log start and end, producer state and the last batches, read from its leader.
//! Filler that a killed fast-forward left is deleted before anybody takes it for records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::admin::{self, OffsetQuery, OffsetSpec};
use tombolo_kafka::cluster::{Leader, Topic};
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::fetch::{self, FetchOnce, Isolation};
use tombolo_kafka::{Cluster, Connection, KafkaError, TopicId, records};
use tombolo_proto::batch::{self, Batch, Stamp};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::mirror::{Recovery, advance};

use crate::fast_forward::{DeleteError, delete_before};
use crate::leased::LeasedCluster;
use crate::registry::Ledger;

/// For the high watermark to reach the log end, and for both looks at the end to agree.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes read beyond the last batch, as evidence against another history of the source.
const TAIL_BYTES: i32 = 32 << 10;
/// How many batches of the last one's record count are hoped to lie within [`TAIL_BYTES`].
const TAIL_BATCHES: i64 = 8;
/// How far back a batch with records is looked for where the log ends in markers, and how many bytes that may take: a
/// marker has 78. Beyond that the gap alone is the evidence.
const REACHES: [i64; 3] = [64, 512, 4_096];
const REACH_BYTES: i32 = 384 << 10;

/// Why a partition could not be read; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("{topic}[{partition}]: {code}")]
    Partition { topic: TopicName, partition: Partition, code: ErrorCode },
    #[error("{topic}: {code}")]
    Topic { topic: TopicName, code: ErrorCode },
    #[error("the high watermark {high_watermark} did not reach the log end {log_end} within {SETTLE_DEADLINE:?}")]
    Unreplicated { log_end: Offset, high_watermark: Offset },
    #[error("the log end moves though nobody writes: {from}, then {to}")]
    Moving { from: Offset, to: Offset },
    #[error("the log of the mirror holds what is no batch: {0}")]
    Batch(#[from] batch::BatchError),
    #[error("filler of a start that was not finished: {0}")]
    Filler(#[from] DeleteError),
}

/// What a partition holds, and the leader that told it: batches go to that leader and no other, until the next look.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) recovery: Recovery,
    pub(crate) leader: Leader,
    pub(crate) topic: TopicName,
    /// Whose log end it is, where brokers tell: batches go to that topic and no other of its name.
    pub(crate) topic_id: Option<TopicId>,
}

/// A partition to look at.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) topic: TopicName,
    pub(crate) partition: Partition,
    /// As [`Found::topic_id`], where it was looked at before.
    pub(crate) topic_id: Option<TopicId>,
    pub(crate) producer_id: i64,
    /// Under which the link's empty transactions were written.
    pub(crate) skippers: BTreeSet<i64>,
}

/// Where a partition stands, its records left aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    pub(crate) leader: Leader,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    /// As [`Recovery::last_sequence`].
    last_sequence: Option<i32>,
}

impl Stand {
    /// Sequence that the broker takes next, or any where it remembers none.
    pub(crate) fn next_sequence(&self) -> i32 {
        match self.last_sequence {
            Some(last) if last >= 0 => advance(last, 1),
            Some(_) => 0,
            None => i32::try_from(self.log_end & i64::from(i32::MAX)).unwrap_or(0),
        }
    }
}

/// Looks at a partition, of which the registry has `ledger`. Forgets its leader where the answer says that it is another.
pub(crate) async fn recover(cloud: &LeasedCluster, place: &Place, ledger: &Ledger) -> Result<Found, RecoverError> {
    let found = look(cloud, place, ledger).await;
    if found.is_err() {
        cloud.cluster.forget_leader(place.topic.as_str(), place.partition);
    }
    found
}

/// Looks at a partition that nobody writes to, and that is told to start at `told`.
pub(crate) async fn stand(cloud: &LeasedCluster, place: &Place, told: Offset) -> Result<Stand, RecoverError> {
    let reader = Reader::open(cloud, place).await?;
    let log_end = reader.settled_end(tokio::time::Instant::now() + SETTLE_DEADLINE).await?;
    let log_start = reader.start(log_end, Some(told)).await?;
    let tail = reader.tail(log_start, log_end).await?;
    let last_sequence = reader.last_sequence(&tail).await?;
    Ok(Stand { leader: reader.leader, log_start, log_end, last_sequence })
}

/// The mirror topic's id; `None` where brokers tell none, and told none when `ledger` was written.
pub(crate) async fn topic_id(
    cluster: &Cluster,
    topic: &TopicName,
    ledger: &Ledger,
) -> Result<Option<TopicId>, RecoverError> {
    let seen = cluster.metadata(Some(&[topic.to_string()])).await?;
    id_of(seen.topics, topic, ledger)
}

/// A broker that has just started may not know the topic yet, or not all of it.
fn id_of(seen: Vec<Topic>, topic: &TopicName, ledger: &Ledger) -> Result<Option<TopicId>, RecoverError> {
    let unknown = |code| RecoverError::Topic { topic: topic.clone(), code };
    let found = seen.into_iter().find(|seen| *seen.name == *topic.as_str());
    let found = found.ok_or_else(|| unknown(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION))?;
    match (found.error, found.topic_id) {
        (Some(code), _) => Err(unknown(code)),
        (None, None) if ledger.has_id() => Err(unknown(ErrorCode::UNKNOWN_TOPIC_ID)),
        (None, id) => Ok(id),
    }
}

async fn look(cloud: &LeasedCluster, place: &Place, ledger: &Ledger) -> Result<Found, RecoverError> {
    let reader = Reader::open(cloud, place).await?;
    let deadline = tokio::time::Instant::now() + SETTLE_DEADLINE;
    loop {
        let log_end = reader.settled_end(deadline).await?;
        // Asked for after the log end, which is then not that of a topic made later.
        let topic_id = topic_id(&cloud.cluster, &place.topic, ledger).await?;
        let told = if ledger.has_start() { ledger.start(topic_id) } else { None };
        let log_start = if log_end > 0 { reader.start(log_end, told).await? } else { 0 };
        let tail = reader.tail(log_start, log_end).await?;
        let last_sequence = if log_end > 0 { reader.last_sequence(&tail).await? } else { None };
        let again = if log_end > 0 { reader.offset(OffsetSpec::LogEnd).await? } else { 0 };
        if again == log_end {
            let starting = told.map(|told| starting(told, log_start, log_end));
            let recovery = Recovery { log_start, log_end, starting, last_sequence, tail };
            return Ok(Found { recovery, leader: reader.leader, topic: place.topic.clone(), topic_id });
        }
        if tokio::time::Instant::now() > deadline {
            return Err(RecoverError::Moving { from: log_end, to: again });
        }
    }
}

/// Where the mirror starts. One that was made to start, and holds nothing yet, may still be made to start higher: the
/// source's log may have moved on meanwhile.
fn starting(told: Offset, log_start: Offset, log_end: Offset) -> Offset {
    if log_start == log_end && told == log_end { told + 1 } else { told }
}

struct Reader<'a> {
    cloud: &'a LeasedCluster,
    connection: Connection,
    topic: Arc<str>,
    place: &'a Place,
    leader: Leader,
}

impl<'a> Reader<'a> {
    async fn open(cloud: &'a LeasedCluster, place: &'a Place) -> Result<Self, RecoverError> {
        let leader = cloud.cluster.leader(place.topic.as_str(), place.partition).await?;
        let connection = cloud.cluster.shared(leader.broker).await?;
        Ok(Self { cloud, connection, topic: place.topic.shared(), place, leader })
    }

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

    /// The log's first offset. A log that does not reach beyond the start it was told holds filler, which goes.
    async fn start(&self, log_end: Offset, told: Option<Offset>) -> Result<Offset, RecoverError> {
        let log_start = self.offset(OffsetSpec::LogStart).await?;
        let filled = log_start < log_end && told.is_some_and(|told| log_end <= told);
        if !filled || !self.ends_in_filler(log_end).await? {
            return Ok(log_start);
        }
        delete_before(self.cloud, self.leader.broker, self.place, log_end).await?;
        tracing::info!(topic = %self.place.topic, partition = self.place.partition, log_end, "filler deleted");
        Ok(log_end)
    }

    async fn ends_in_filler(&self, log_end: Offset) -> Result<bool, RecoverError> {
        let last = self.batches_from(log_end - 1, TAIL_BYTES).await?;
        let ours = |batch: &Batch| batch.producer_id() == self.place.producer_id && records::is_filler(batch);
        Ok(last.last().is_some_and(ours))
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

    /// The last batches, markers too, joined up to `log_end`; none where the log holds nothing any more. Behind markers it
    /// looks for a batch with records: markers say little.
    async fn tail(&self, log_start: Offset, log_end: Offset) -> Result<Vec<Batch>, RecoverError> {
        if log_start >= log_end {
            return Ok(Vec::new());
        }
        let last = joined_tail(self.batches_from(log_end - 1, TAIL_BYTES).await?, log_end, self.place.producer_id);
        let Some(first) = last.first() else { return Ok(last) };
        let base = first.base_offset();
        if !first.is_control() {
            let from = base - TAIL_BATCHES * i64::from(first.record_count()).max(1);
            return self.longer(from.max(log_start), last, log_end, TAIL_BYTES).await;
        }
        let mut tail = last;
        for reach in REACHES {
            let from = (base - reach).max(log_start);
            tail = self.longer(from, tail, log_end, REACH_BYTES).await?;
            if from == log_start || tail.iter().any(|batch| !batch.is_control()) {
                break;
            }
        }
        Ok(tail)
    }

    /// The tail with what lies between `from` and it, as far as that joins.
    async fn longer(
        &self,
        from: Offset,
        tail: Vec<Batch>,
        log_end: Offset,
        bytes: i32,
    ) -> Result<Vec<Batch>, RecoverError> {
        let Some(base) = tail.first().map(Batch::base_offset).filter(|&base| from < base) else { return Ok(tail) };
        let mut batches = self.batches_from(from, bytes).await?;
        batches.retain(|batch| batch.base_offset() < base);
        batches.extend(tail);
        Ok(joined_tail(batches, log_end, self.place.producer_id))
    }

    /// None where the offset lies below the log's start.
    async fn batches_from(&self, offset: Offset, bytes: i32) -> Result<Vec<Batch>, RecoverError> {
        let once = FetchOnce {
            topic: &self.topic,
            topic_id: None,
            partition: self.place.partition,
            offset,
            leader_epoch: self.leader.epoch,
            max_bytes: bytes,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
        };
        let fetched = fetch::fetch_once(&self.connection, once).await?;
        match fetched.error {
            None => Ok(batch::split(fetched.records)
                .map(|batch| Ok(self.own(batch?)))
                .collect::<Result<_, RecoverError>>()?),
            Some(ErrorCode::OFFSET_OUT_OF_RANGE) => Ok(Vec::new()),
            Some(code) => Err(self.error(code)),
        }
    }

    /// The marker of an empty transaction of the link's is as good as one of its own.
    fn own(&self, batch: Batch) -> Batch {
        if batch.is_control() && self.place.skippers.contains(&batch.producer_id()) {
            return under(&batch, self.place.producer_id).unwrap_or(batch);
        }
        batch
    }

    fn error(&self, code: ErrorCode) -> RecoverError {
        RecoverError::Partition { topic: self.place.topic.clone(), partition: self.place.partition, code }
    }
}

/// The longest run of batches at the end that join, end at `log_end` and are as they were appended: one that the mirror's
/// own compaction has rewritten is no evidence. A foreign one is, of something else, and ends the run too.
fn joined_tail(batches: Vec<Batch>, log_end: Offset, producer_id: i64) -> Vec<Batch> {
    let mut tail = Vec::new();
    let mut next = log_end;
    for batch in batches.into_iter().rev() {
        let foreign = batch.producer_id() != producer_id;
        let as_appended = batch.is_control() || !batch.may_be_cleaned();
        if batch.next_offset() != next || !(foreign || as_appended) {
            break;
        }
        next = batch.base_offset();
        tail.push(batch);
    }
    tail.reverse();
    tail
}

/// The batch as another producer would have written it.
fn under(batch: &Batch, producer_id: i64) -> Option<Batch> {
    let mut bytes = Vec::from(batch.stamped(Stamp { producer_id, sequence: batch.base_sequence() }));
    bytes.get_mut(..8)?.copy_from_slice(&batch.base_offset().to_be_bytes());
    Batch::parse(bytes.into()).ok()
}

fn sequence_of_tail(tail: &[Batch], producer_id: i64) -> Option<i32> {
    let of_records = |batch: &&Batch| batch.producer_id() == producer_id && !batch.is_control();
    let last = tail.iter().rfind(of_records)?;
    (last.base_sequence() >= 0).then(|| advance(last.base_sequence(), last.record_count() - 1))
}

#[cfg(test)]
mod tests {
    use tombolo_proto::testing::BatchBuilder;

    use super::*;
    use crate::registry::{LedgerEntry, LedgerKind};

    /// Control, as in the attributes of a batch.
    const CONTROL: u16 = 0x20;
    const DELETE_HORIZON: u16 = 0x40;

    #[test]
    fn a_topic_without_its_id_is_asked_for_again() {
        let name = TopicName::new("orders").unwrap();
        let seen =
            |topic_id, error| Topic { name: name.shared(), topic_id, internal: false, partitions: Vec::new(), error };
        let entry =
            |topic_id| LedgerEntry { kind: LedgerKind::Start, from: 0, to: 9, at: 0, reason: String::new(), topic_id };
        let (without, with) = (Ledger::of(&[entry(None)]), Ledger::of(&[entry(Some([7; 16]))]));
        assert_eq!(id_of(vec![seen(Some([7; 16]), None)], &name, &with).unwrap(), Some([7; 16]));
        assert_eq!(id_of(vec![seen(None, None)], &name, &without).unwrap(), None, "brokers that tell none");
        assert!(id_of(vec![seen(None, None)], &name, &with).is_err());
        assert!(id_of(Vec::new(), &name, &without).is_err());
        assert!(id_of(vec![seen(None, Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION))], &name, &without).is_err());
    }

    fn batch(base: Offset, records: i32, id: i64, sequence: i32) -> Batch {
        BatchBuilder::new(base).records(records).stamp(id, 0, sequence).build()
    }

    fn marker(base: Offset, id: i64) -> Batch {
        BatchBuilder::new(base).attributes(CONTROL).stamp(id, 0, -1).build()
    }

    #[test]
    fn the_tail_joins_and_ends_at_the_log_end() {
        let all = || vec![batch(0, 2, 9, 0), batch(3, 2, 9, 2), batch(5, 1, 9, 4)];
        assert_eq!(joined_tail(all(), 6, 9), all()[1..]);
        assert_eq!(joined_tail(all(), 7, 9), []);
        assert_eq!(joined_tail(Vec::new(), 0, 9), []);
    }

    #[test]
    fn markers_are_part_of_the_tail() {
        let all = || vec![batch(0, 2, 9, 0), marker(2, 9), marker(3, 9), batch(4, 1, 9, 2), marker(5, 9)];
        assert_eq!(joined_tail(all(), 6, 9), all());
        assert_eq!(sequence_of_tail(&all(), 9), Some(2));
        let foreign = || vec![batch(0, 2, 9, 0), marker(2, 4)];
        assert_eq!(joined_tail(foreign(), 3, 9), foreign(), "to be judged");
    }

    #[test]
    fn markers_of_the_links_empty_transactions_are_its_own() {
        let own = under(&marker(7, 2_000), 9).unwrap();
        assert_eq!((own.base_offset(), own.next_offset(), own.producer_id(), own.is_control()), (7, 8, 9, true));
        assert!(own.crc_is_valid());
    }

    #[test]
    fn what_compaction_rewrote_is_no_evidence() {
        let horizon = BatchBuilder::new(0).records(2).attributes(DELETE_HORIZON).stamp(9, 0, 0).build();
        let after = || batch(2, 1, 9, 2);
        assert_eq!(joined_tail(vec![horizon, after()], 3, 9), [after()]);
        let marked = || BatchBuilder::new(1).attributes(CONTROL | DELETE_HORIZON).stamp(9, 0, -1).build();
        assert_eq!(joined_tail(vec![marked(), after()], 3, 9), [marked(), after()]);
    }

    #[test]
    fn a_mirror_that_holds_nothing_yet_may_start_higher() {
        assert_eq!(starting(100, 40, 40), 100, "half way");
        assert_eq!(starting(100, 100, 100), 101);
        assert_eq!(starting(100, 100, 101), 100, "it holds a record");
        assert_eq!(starting(100, 130, 130), 100, "its records were deleted");
    }

    #[test]
    fn the_sequence_is_that_of_the_links_last_record() {
        let tail = [batch(0, 3, 9, 10), batch(3, 1, 4, 0), marker(4, 9)];
        assert_eq!(sequence_of_tail(&tail, 9), Some(12));
        assert_eq!(sequence_of_tail(&tail, 5), None);
        let wrapped = [batch(0, 3, 9, i32::MAX - 1)];
        assert_eq!(sequence_of_tail(&wrapped, 9), Some(0));
        assert_eq!(sequence_of_tail(&[marker(0, 9)], 9), None);
    }
}
