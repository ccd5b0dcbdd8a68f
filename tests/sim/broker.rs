//! What a Kafka partition does with a Produce request: the rules tombolo stands on, as a program.
//!
//! Each rule names its twin, a test of the same name in `tests/rules` that holds a real broker against it. Sources are
//! named as in Apache Kafka's tree.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use tombolo_proto::batch::Batch;
use tombolo_proto::id::{Offset, Term};
use tombolo_proto::testing::BatchBuilder;

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
    CoordinatorFenced,
    OffsetOutOfRange,
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
    /// It was known by markers only, so none but 0 would have done.
    pub(crate) marker_only: bool,
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
    /// Of a marker: who wrote it.
    coordinator_epoch: Option<i32>,
}

impl Stored {
    /// Whether it is a control batch, which no consumer sees.
    pub(crate) fn is_marker(&self) -> bool {
        self.batch.is_control()
    }

    /// Whether it is filler of a fast-forward: no record of a source is empty here.
    pub(crate) fn is_filler(&self) -> bool {
        !self.is_marker() && self.batch.record_section().is_empty()
    }
}

/// Who writes a marker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coordinator {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i32,
}

/// Bytes of a marker's record.
const MARKER_RECORD: usize = 17;

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
    /// Of the newest marker; -1 where there was none.
    coordinator_epoch: i32,
    last_timestamp: i64,
    batches: VecDeque<Remembered>,
}

/// One partition on its leader.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    start: Offset,
    end: Offset,
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
            end: start,
            batches: Vec::new(),
            high_watermark: start,
            producers: BTreeMap::new(),
            max_message_bytes,
            short_of_replicas: false,
        }
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.start
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.end
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub(crate) fn batches(&self) -> &[Stored] {
        &self.batches
    }

    /// `DescribeProducers`: the last sequence of a producer; -1 where only a marker made the entry.
    /// Twins: `broker_tells_the_last_sequence`, `broker_starts_at_zero_after_a_marker_alone`.
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
        let producer = self.producers.get(&batch.producer_id());
        let (unknown_producer, marker_only) =
            (producer.is_none(), producer.is_some_and(|producer| producer.batches.is_empty()));
        if batch.producer_id() >= 0
            && let Some(known) = self.check_producer(&batch)?
        {
            return Ok(Accepted {
                base_offset: known.base_offset,
                next_offset: known.next_offset,
                duplicate: true,
                unknown_producer,
                marker_only,
            });
        }
        // Twin: broker_shifts_the_next_batch_after_a_foreign_write. Sequences are compared, not the log's end.
        let base_offset = self.log_end();
        self.store(sent, base_offset, intent);
        Ok(Accepted { base_offset, next_offset: self.log_end(), duplicate: false, unknown_producer, marker_only })
    }

    /// One marker of `WriteTxnMarkers`, acks=all, as far as the append. Nothing is deduplicated; no consumer sees it.
    /// Returns its offset.
    /// Twins: `broker_takes_a_marker_that_no_consumer_sees`, `broker_appends_as_many_markers_as_one_request_holds`,
    /// `broker_takes_markers_at_the_start_and_at_the_end_of_a_log`.
    pub(crate) fn mark(&mut self, by: Coordinator, now_ms: i64, intent: Intent) -> Result<Offset, Refusal> {
        if self.short_of_replicas {
            return Err(Refusal::NotEnoughReplicas);
        }
        if let Some(producer) = self.producers.get(&by.producer_id) {
            // Twin: broker_refuses_data_of_an_epoch_older_than_a_marker. The link's markers have epoch 0.
            if producer.epoch > 0 {
                return Err(Refusal::InvalidProducerEpoch);
            }
            // Twins: broker_refuses_a_marker_of_an_older_coordinator, broker_refuses_no_data_of_an_older_term.
            if by.epoch < producer.coordinator_epoch {
                return Err(Refusal::CoordinatorFenced);
            }
        }
        let offset = self.end;
        // A control batch: transactional, no sequence, the broker's time.
        let batch = BatchBuilder::new(offset)
            .attributes(0x30)
            .stamp(by.producer_id, 0, -1)
            .timestamps(now_ms, now_ms)
            .payload(MARKER_RECORD)
            .build();
        self.push(Stored { crc: 0, batch, intent: Some(intent), coordinator_epoch: Some(by.epoch) });
        Ok(offset)
    }

    /// `DeleteRecords` below `offset`. Returns where the log begins then. What is remembered of producers stays.
    /// Twins: `broker_fast_forwards_an_empty_log`, `broker_deletes_nothing_above_the_high_watermark`.
    pub(crate) fn delete_below(&mut self, offset: Offset) -> Result<Offset, Refusal> {
        if offset > self.high_watermark {
            return Err(Refusal::OffsetOutOfRange);
        }
        self.start = self.start.max(offset);
        let start = self.start;
        self.batches.retain(|stored| stored.batch.next_offset() > start);
        Ok(start)
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
        // Twins: broker_refuses_a_sequence_ahead_or_behind, broker_takes_the_next_in_sequence_after_markers.
        if first == expected { Ok(None) } else { Err(Refusal::OutOfOrderSequence) }
    }

    /// Twin: `broker_keeps_every_byte_from_attributes_on`.
    fn store(&mut self, sent: &Bytes, base_offset: Offset, intent: Option<Intent>) {
        let mut bytes = BytesMut::with_capacity(sent.len());
        bytes.put_i64(base_offset);
        bytes.extend_from_slice(sent.get(8..).unwrap_or_default());
        let batch = Batch::parse(bytes.freeze()).expect("was one before its base offset changed");
        self.push(Stored { crc: batch.canonical_crc(), batch, intent, coordinator_epoch: None });
    }

    fn push(&mut self, stored: Stored) {
        self.end = stored.batch.next_offset();
        self.remember(&stored.batch, stored.coordinator_epoch);
        self.batches.push(stored);
    }

    fn remember(&mut self, batch: &Batch, coordinator_epoch: Option<i32>) {
        if batch.producer_id() < 0 {
            return;
        }
        let epoch = batch.producer_epoch();
        let producer = self.producers.entry(batch.producer_id()).or_insert_with(|| Producer {
            epoch,
            coordinator_epoch: -1,
            last_timestamp: batch.max_timestamp(),
            batches: VecDeque::new(),
        });
        if let Some(coordinator_epoch) = coordinator_epoch {
            producer.coordinator_epoch = coordinator_epoch;
            producer.last_timestamp = batch.max_timestamp();
            return;
        }
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
        self.end = end;
        self.high_watermark = self.high_watermark.min(end);
        self.producers.clear();
        let batches = std::mem::take(&mut self.batches);
        for stored in &batches {
            self.remember(&stored.batch, stored.coordinator_epoch);
        }
        self.batches = batches;
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

    fn mark(log: &mut PartitionLog, epoch: i32) -> Result<Offset, Refusal> {
        log.mark(Coordinator { producer_id: ID, epoch }, 5_000, Intent { term: Term(1), offset: 0 })
    }

    #[test]
    fn model_takes_markers_and_deletes_records() {
        let mut log = PartitionLog::new(0, 1_000);
        assert_eq!((mark(&mut log, 6), mark(&mut log, 6)), (Ok(0), Ok(1)));
        assert_eq!(log.last_sequence(ID), Some(-1));
        assert_eq!(append(&mut log, &sent(1, 0, 100)), Err(Refusal::OutOfOrderSequence));
        assert_eq!(append(&mut log, &sent(2, 0, 0)), Ok((2, false)));
        assert_eq!(mark(&mut log, 5), Err(Refusal::CoordinatorFenced));
        assert_eq!(mark(&mut log, 7), Ok(4));
        assert_eq!(append(&mut log, &sent(2, 0, 0)), Ok((2, true)), "a marker forgets no batch");
        assert_eq!(append(&mut log, &sent(1, 0, 2)), Ok((5, false)));
        assert_eq!(log.delete_below(6), Err(Refusal::OffsetOutOfRange));
        log.replicated(6);
        assert_eq!(log.delete_below(6), Ok(6));
        assert_eq!((log.log_start(), log.log_end(), log.tail(16).len()), (6, 6, 0));
        assert_eq!(append(&mut log, &sent(1, 0, 3)), Ok((6, false)));
    }

    #[test]
    fn model_knows_the_coordinator_after_a_leader_change() {
        let mut log = PartitionLog::new(0, 1_000);
        assert_eq!((mark(&mut log, 6), mark(&mut log, 7)), (Ok(0), Ok(1)));
        log.truncate(1);
        assert_eq!((log.log_end(), log.last_sequence(ID)), (1, Some(-1)));
        assert_eq!((mark(&mut log, 5), mark(&mut log, 6)), (Err(Refusal::CoordinatorFenced), Ok(1)));
    }
}
