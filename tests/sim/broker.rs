//! What a Kafka partition does with a Produce request: the rules tombolo stands on, as a program.
//!
//! Each rule names its twin, a test of the same name in `tests/rules` that holds a real broker against it. Sources are
//! named as in Apache Kafka's tree.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use tombolo_proto::batch::Batch;
use tombolo_proto::id::{Offset, Term};

/// Batches of one producer that are remembered (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
const REMEMBERED: usize = 5;

/// Why a batch was not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    InvalidRecord,
    CorruptMessage,
    MessageTooLarge,
    NotEnoughReplicas,
    InvalidProducerEpoch,
    OutOfOrderSequence,
}

/// A success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) base_offset: Offset,
    pub(crate) next_offset: Offset,
    /// One of the last five: nothing was appended.
    pub(crate) duplicate: bool,
    /// The producer was unknown, so any sequence would have done.
    pub(crate) unknown_producer: bool,
}

/// Who sent a batch and where it was meant to go: what the properties judge by, unknown to any broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) term: Term,
    pub(crate) offset: Offset,
}

/// A batch of the log.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) batch: Batch,
    pub(crate) crc: u32,
    pub(crate) intent: Option<Intent>,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: Offset,
    next_offset: Offset,
}

#[derive(Debug, Clone)]
struct Producer {
    epoch: i16,
    last_timestamp: i64,
    batches: VecDeque<Remembered>,
}

/// One partition on its leader.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    start: Offset,
    batches: Vec<Stored>,
    high_watermark: Offset,
    producers: BTreeMap<i64, Producer>,
    /// `max.message.bytes` of the topic.
    pub(crate) max_message_bytes: usize,
    /// Fewer replicas in sync than `min.insync.replicas`.
    pub(crate) short_of_replicas: bool,
}

impl PartitionLog {
    /// An empty log whose next offset is `start`.
    pub(crate) fn new(start: Offset, max_message_bytes: usize) -> Self {
        Self {
            start,
            batches: Vec::new(),
            high_watermark: start,
            producers: BTreeMap::new(),
            max_message_bytes,
            short_of_replicas: false,
        }
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.batches.last().map_or(self.start, |stored| stored.batch.next_offset())
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub(crate) fn batches(&self) -> &[Stored] {
        &self.batches
    }

    /// `DescribeProducers`: the last sequence of a producer.
    /// Twin: `broker_tells_the_last_sequence`.
    pub(crate) fn last_sequence(&self, producer_id: i64) -> Option<i32> {
        let producer = self.producers.get(&producer_id)?;
        Some(producer.batches.back().map_or(-1, |last| last.last_sequence))
    }

    /// The last `count` batches below the high watermark, which is where a consumer's Fetch ends.
    /// Twin: `broker_holds_the_high_watermark_until_followers_have_the_batch`.
    pub(crate) fn tail(&self, count: usize) -> Vec<Batch> {
        let visible = self.batches.iter().filter(|stored| stored.batch.next_offset() <= self.high_watermark);
        let mut tail: Vec<_> = visible.rev().take(count).map(|stored| stored.batch.clone()).collect();
        tail.reverse();
        tail
    }

    /// A Produce of one batch, acks=all, as far as the append (`UnifiedLog.append`). Appending and answering are two
    /// things: the answer waits for the high watermark.
    /// Twin: `broker_holds_the_high_watermark_until_followers_have_the_batch`.
    pub(crate) fn append(&mut self, sent: &Bytes, intent: Option<Intent>) -> Result<Accepted, Refusal> {
        // Twin: broker_appends_nothing_with_too_few_replicas_in_sync.
        if self.short_of_replicas {
            return Err(Refusal::NotEnoughReplicas);
        }
        let batch = self.validate(sent)?;
        let unknown_producer = !self.producers.contains_key(&batch.producer_id());
        if batch.producer_id() >= 0
            && let Some(known) = self.check_producer(&batch)?
        {
            return Ok(Accepted {
                base_offset: known.base_offset,
                next_offset: known.next_offset,
                duplicate: true,
                unknown_producer,
            });
        }
        // Twin: broker_shifts_the_next_batch_after_a_foreign_write. Sequences are compared, not the log's end.
        let base_offset = self.log_end();
        self.store(sent, base_offset, intent);
        Ok(Accepted { base_offset, next_offset: self.log_end(), duplicate: false, unknown_producer })
    }

    /// Twins: `broker_refuses_a_base_offset_other_than_zero`, `broker_refuses_a_control_batch`,
    /// `broker_refuses_a_transactional_batch_without_a_transaction`, `broker_refuses_a_batch_above_the_topics_limit`,
    /// `broker_refuses_a_bad_crc`, `broker_refuses_a_batch_with_holes`.
    fn validate(&self, sent: &Bytes) -> Result<Batch, Refusal> {
        let batch = Batch::parse(sent.clone()).map_err(|_| Refusal::InvalidRecord)?;
        let numbered = batch.producer_id() < 0 || batch.base_sequence() >= 0;
        if batch.base_offset() != 0 || batch.is_control() || batch.is_transactional() {
            return Err(Refusal::InvalidRecord);
        }
        if batch.len() > self.max_message_bytes {
            return Err(Refusal::MessageTooLarge);
        }
        if !batch.crc_is_valid() {
            return Err(Refusal::CorruptMessage);
        }
        if !batch.is_dense() || !numbered {
            return Err(Refusal::InvalidRecord);
        }
        Ok(batch)
    }

    /// `ProducerAppendInfo.append` and `ProducerStateEntry.findDuplicateBatch`.
    fn check_producer(&self, batch: &Batch) -> Result<Option<Remembered>, Refusal> {
        // Twin: broker_takes_unknown_producer_at_any_sequence.
        let Some(producer) = self.producers.get(&batch.producer_id()) else {
            return Ok(None);
        };
        let (first, last) = (batch.base_sequence(), last_sequence(batch));
        // Twin: broker_answers_a_repeat_of_the_last_five_with_the_old_offset. Looked up before epoch and sequence.
        let known = producer.batches.iter().find(|known| (known.first_sequence, known.last_sequence) == (first, last));
        if batch.producer_epoch() == producer.epoch
            && let Some(known) = known
        {
            return Ok(Some(*known));
        }
        // Twin: broker_refuses_a_lower_epoch.
        if batch.producer_epoch() < producer.epoch {
            return Err(Refusal::InvalidProducerEpoch);
        }
        // Twin: broker_starts_a_higher_epoch_at_zero.
        let expected = if batch.producer_epoch() > producer.epoch {
            0
        } else {
            // Twin: broker_wraps_the_sequence_after_two_to_the_31. An entry made by a marker holds -1 and wants 0.
            producer.batches.back().map_or(0, |last| next_sequence(last.last_sequence))
        };
        // Twin: broker_refuses_a_sequence_ahead_or_behind.
        if first == expected { Ok(None) } else { Err(Refusal::OutOfOrderSequence) }
    }

    /// Twin: `broker_keeps_every_byte_from_attributes_on`.
    fn store(&mut self, sent: &Bytes, base_offset: Offset, intent: Option<Intent>) {
        let mut bytes = BytesMut::with_capacity(sent.len());
        bytes.put_i64(base_offset);
        bytes.extend_from_slice(sent.get(8..).unwrap_or_default());
        let batch = Batch::parse(bytes.freeze()).expect("was one before its base offset changed");
        self.remember(&batch);
        self.batches.push(Stored { crc: batch.canonical_crc(), batch, intent });
    }

    fn remember(&mut self, batch: &Batch) {
        if batch.producer_id() < 0 {
            return;
        }
        let epoch = batch.producer_epoch();
        let producer = self.producers.entry(batch.producer_id()).or_insert_with(|| Producer {
            epoch,
            last_timestamp: batch.max_timestamp(),
            batches: VecDeque::new(),
        });
        if producer.epoch != epoch {
            producer.batches.clear();
        }
        producer.epoch = epoch;
        producer.last_timestamp = batch.max_timestamp();
        producer.batches.push_back(Remembered {
            first_sequence: batch.base_sequence(),
            last_sequence: last_sequence(batch),
            base_offset: batch.base_offset(),
            next_offset: batch.next_offset(),
        });
        if producer.batches.len() > REMEMBERED {
            producer.batches.pop_front();
        }
    }

    /// The replicas in sync hold everything below `offset`.
    pub(crate) fn replicated(&mut self, offset: Offset) {
        self.high_watermark = self.high_watermark.max(offset.min(self.log_end()));
    }

    /// The sweep of `producer.id.expiration.ms`, which goes by *record* time (`ProducerStateManager.removeExpired`).
    /// Returns how many producers were forgotten.
    /// Twin: `broker_forgets_a_producer_by_the_time_of_its_records`.
    pub(crate) fn forget_producers(&mut self, now_ms: i64, expiration_ms: i64) -> usize {
        let before = self.producers.len();
        self.producers.retain(|_, producer| now_ms - producer.last_timestamp < expiration_ms);
        before - self.producers.len()
    }

    /// Another replica leads, whose log ends at `end`. Below the high watermark that is an unclean election: what was
    /// confirmed is gone. Producer state is what the batches left over tell.
    /// Twins: `broker_loses_an_unreplicated_tail_with_its_leader`, `broker_knows_repeats_after_a_leader_change`.
    pub(crate) fn truncate(&mut self, end: Offset) {
        self.batches.retain(|stored| stored.batch.next_offset() <= end);
        self.high_watermark = self.high_watermark.min(self.log_end());
        self.producers.clear();
        for batch in self.batches.iter().map(|stored| stored.batch.clone()).collect::<Vec<_>>() {
            self.remember(&batch);
        }
    }

    /// Offsets at which a batch ends, with the log's start: where a log may be cut.
    pub(crate) fn borders(&self) -> Vec<Offset> {
        let ends = self.batches.iter().map(|stored| stored.batch.next_offset());
        std::iter::once(self.start).chain(ends).collect()
    }
}

fn last_sequence(batch: &Batch) -> i32 {
    let last = i64::from(batch.base_sequence()) + i64::from(batch.last_offset_delta());
    i32::try_from(last & i64::from(i32::MAX)).expect("masked")
}

/// `DefaultRecordBatch.incrementSequence` by one.
fn next_sequence(sequence: i32) -> i32 {
    if sequence == i32::MAX { 0 } else { sequence + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::testing::BatchBuilder;

    const ID: i64 = (1 << 62) | 3;

    fn sent(records: i32, epoch: i16, sequence: i32) -> Bytes {
        BatchBuilder::new(0).records(records).stamp(ID, epoch, sequence).bytes()
    }

    fn append(log: &mut PartitionLog, sent: &Bytes) -> Result<(Offset, bool), Refusal> {
        log.append(sent, None).map(|accepted| (accepted.base_offset, accepted.duplicate))
    }

    #[test]
    fn model_answers_duplicates_and_refuses_other_sequences() {
        let mut log = PartitionLog::new(0, 1_000);
        for at in 0..6 {
            assert_eq!(append(&mut log, &sent(2, 0, 100 + 2 * at)), Ok((i64::from(2 * at), false)));
        }
        assert_eq!(append(&mut log, &sent(2, 0, 102)), Ok((2, true)));
        assert_eq!(append(&mut log, &sent(2, 0, 100)), Err(Refusal::OutOfOrderSequence));
        assert_eq!(append(&mut log, &sent(1, 0, 102)), Err(Refusal::OutOfOrderSequence));
        assert_eq!(append(&mut log, &sent(1, 0, 113)), Err(Refusal::OutOfOrderSequence));
        assert_eq!(append(&mut log, &sent(1, 1, 112)), Err(Refusal::OutOfOrderSequence));
        assert_eq!(append(&mut log, &sent(1, 1, 0)), Ok((12, false)));
        assert_eq!(append(&mut log, &sent(1, 0, 112)), Err(Refusal::InvalidProducerEpoch));
        assert_eq!(log.last_sequence(ID), Some(0));
    }

    #[test]
    fn model_wraps_forgets_and_rebuilds() {
        let mut log = PartitionLog::new(7, 1_000);
        assert_eq!(append(&mut log, &sent(2, 0, i32::MAX)), Ok((7, false)));
        assert_eq!(append(&mut log, &sent(1, 0, 1)), Ok((9, false)));
        log.replicated(9);
        assert_eq!(log.tail(16).len(), 1);
        log.truncate(9);
        assert_eq!((log.log_end(), log.last_sequence(ID)), (9, Some(0)));
        assert_eq!(log.forget_producers(1_000, 1_000), 1);
        assert_eq!(log.last_sequence(ID), None);
        assert_eq!(append(&mut log, &sent(1, 0, 55)), Ok((9, false)));
    }

    #[test]
    fn model_refuses_what_a_broker_refuses() {
        let mut log = PartitionLog::new(0, 200);
        let batch = |base| BatchBuilder::new(base).stamp(ID, 0, 0);
        let mut corrupt = batch(0).bytes().to_vec();
        *corrupt.last_mut().expect("bytes") ^= 1;
        let table = [
            (batch(4).bytes(), Refusal::InvalidRecord),
            (corrupt.into(), Refusal::CorruptMessage),
            (batch(0).records(2).last_offset_delta(4).bytes(), Refusal::InvalidRecord),
            (batch(0).payload(500).bytes(), Refusal::MessageTooLarge),
            (batch(0).transactional().bytes(), Refusal::InvalidRecord),
        ];
        for (sent, refusal) in table {
            assert_eq!(append(&mut log, &sent), Err(refusal));
        }
        log.short_of_replicas = true;
        assert_eq!(append(&mut log, &batch(0).bytes()), Err(Refusal::NotEnoughReplicas));
        assert_eq!(log.log_end(), 0);
    }
}
