//! What each stretch of a source's log is to become in the mirror: a batch as it is, a batch made anew, or a gap.
//!
//! ```text
//!   wrong CRC                        CORRUPT_SOURCE_BATCH
//!   marker, aborted                  gap
//!   no records, or no batch at all   gap; where the log begins above it, the source has lost it
//!   thinned, LogAppendTime, v0, v1   made anew: runs and gaps
//!   else                             as it is
//! ```
//!
//! Must never: touch a dense `CreateTime` batch, or read more of the log than the batch it is at.

use std::collections::VecDeque;

use bytes::Bytes;
use tombolo_kafka::fetch::AbortedTransaction;
use tombolo_kafka::records::{Legacy, Piece, ReencodeError, Runs, UNPACKED_BYTES, Unfit, from_legacy};
use tombolo_proto::batch::{Batch, BatchError, Codec, Split, split};
use tombolo_proto::edge::{corrupt_batch, large_batch};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::frame::Entry;
use tombolo_proto::id::{Offset, Partition};

use super::transactions::Transactions;

/// An answer of a source's broker, and what is wanted of it.
#[derive(Debug, Clone)]
pub(in crate::source) struct Answer {
    pub(in crate::source) partition: Partition,
    /// Offset to read from; the first batch may begin below it.
    pub(in crate::source) offset: Offset,
    /// Where the source's log begins.
    pub(in crate::source) log_start: Offset,
    pub(in crate::source) records: Bytes,
    pub(in crate::source) aborted: Vec<AbortedTransaction>,
    /// What this process has read before, at most.
    pub(in crate::source) read_before: Offset,
    /// Largest batch that a frame carries, as an entry.
    pub(in crate::source) max_batch: usize,
}

/// Where an entry comes from: what it can prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) enum Origin {
    /// The batch as the source holds it, or one that is always made of it alike.
    Whole,
    /// A batch made anew, or written anew by the cleaner: whoever read the log before may have seen more records in it,
    /// or the same in other bytes.
    Remade,
    /// As [`Origin::Remade`], of a format that does not tell where its batches end.
    Joined,
    /// Offsets that hold nothing, but may have.
    Absent,
    /// Offsets of markers and aborted records.
    Hidden,
}

/// An entry of the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Found {
    pub(in crate::source) entry: Entry,
    pub(in crate::source) origin: Origin,
    /// Whether its bytes were made here; else they are a slice of the answer.
    pub(in crate::source) made: bool,
    /// Leader epoch of the batch it is of.
    pub(in crate::source) epoch: Option<i32>,
}

/// Why a walk ends before its answer does.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) enum Stop {
    /// What comes next cannot be mirrored.
    Failed(Failure),
    /// What comes next is no more: the log begins above it.
    Overtaken,
}

/// Iterator over the entries of an answer, joined from its offset on. After an error it ends.
pub(in crate::source) struct Walk {
    partition: Partition,
    /// Offset after what was given.
    next: Offset,
    log_start: Offset,
    max_batch: usize,
    read_before: Offset,
    read: Read,
    transactions: Transactions,
    records: Bytes,
    split: Split,
    current: Option<Current>,
    ready: VecDeque<Found>,
    /// Leader epoch of the batch that is being made anew.
    epoch: Option<i32>,
    ended: bool,
    /// Why it ends before its answer does; to be told when what was found before it was given.
    stop: Option<Stop>,
}

/// Bytes of the source's batches that were walked over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::source) struct Read {
    pub(in crate::source) bytes: usize,
    /// Of these, bytes that this process had read before.
    pub(in crate::source) again: usize,
}

/// What is being made anew, and of what.
enum Current {
    Runs { unfit: Unfit, runs: Runs, origin: Origin },
    Legacy(Legacy),
}

/// Whether something of the answer must be made anew, which is work. Looks at headers only.
pub(in crate::source) fn makes_anew(answer: &Answer) -> bool {
    split(answer.records.clone()).any(|batch| match batch {
        Ok(batch) if batch.is_control() || batch.next_offset() <= answer.offset => false,
        Ok(batch) => !batch.is_dense() || batch.is_log_append_time() || batch.base_offset() < answer.log_start,
        Err(_) => true,
    })
}

impl Walk {
    pub(in crate::source) fn new(answer: Answer) -> Self {
        let Answer { partition, offset, log_start, records, aborted, read_before, max_batch } = answer;
        Self {
            partition,
            next: offset,
            log_start,
            max_batch,
            read_before,
            read: Read::default(),
            transactions: Transactions::new(aborted),
            split: split(records.clone()),
            records,
            current: None,
            ready: VecDeque::new(),
            epoch: None,
            ended: false,
            stop: None,
        }
    }

    /// What was read so far.
    pub(in crate::source) fn read(&self) -> Read {
        self.read
    }

    fn count(&mut self, bytes: usize, next: Offset) {
        self.read.bytes += bytes;
        if next <= self.read_before {
            self.read.again += bytes;
        }
    }

    /// Goes on by one batch or piece; false at the end.
    fn step(&mut self) -> Result<bool, Stop> {
        match &mut self.current {
            Some(Current::Runs { runs, origin, .. }) => {
                let (piece, origin) = (runs.next(), *origin);
                self.piece(piece, origin)
            }
            Some(Current::Legacy(legacy)) => {
                let piece = legacy.next();
                if piece.is_none() {
                    let taken = self.records.len() - legacy.remaining();
                    if taken == 0 {
                        // Cut off.
                        return Ok(false);
                    }
                    self.count(taken, self.next);
                    self.records = self.records.slice(taken..);
                    self.split = split(self.records.clone());
                }
                self.piece(piece, Origin::Joined)
            }
            None => self.batch(),
        }
    }

    fn batch(&mut self) -> Result<bool, Stop> {
        let left = self.split.remaining();
        match self.split.next() {
            // It may be the end of an aborted transaction all the same: the answer may be of an earlier request.
            Some(Ok(batch)) if batch.next_offset() <= self.next => {
                self.transactions.hides(&batch);
            }
            Some(Ok(batch)) => self.classify(batch)?,
            Some(Err(BatchError::Magic { magic: 0 | 1, .. })) => {
                self.records = self.records.slice(self.records.len() - left..);
                let legacy = from_legacy(self.records.clone(), self.next, UNPACKED_BYTES);
                self.epoch = None;
                self.current = Some(Current::Legacy(legacy));
            }
            Some(Err(error)) => {
                let code = FailureCode::UnsupportedMessageFormat;
                return Err(Stop::Failed(Failure::at(code, self.partition, self.next, error.to_string())));
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    fn classify(&mut self, batch: Batch) -> Result<(), Stop> {
        let (base, next) = (batch.base_offset(), batch.next_offset());
        if !batch.crc_is_valid() {
            return Err(Stop::Failed(corrupt_batch(self.partition, &batch)));
        }
        self.count(batch.len(), next);
        let hidden = self.transactions.hides(&batch);
        self.epoch = None;
        if base > self.next {
            self.gap(self.next, base, Origin::Absent)?;
        }
        self.epoch = Some(batch.leader_epoch());
        if hidden {
            return self.gap(self.next, next, Origin::Hidden);
        }
        if batch.record_count() == 0 {
            return self.gap(self.next, next, Origin::Absent);
        }
        let cut = base < self.next && self.log_start > base;
        let dense = batch.is_dense();
        // Uncompressed, its records are always written alike; and its borders are the source's.
        let origin = if dense && !cut && batch.codec() == Codec::None { Origin::Whole } else { Origin::Remade };
        // Where the mirror ends within a dense batch without a reason, whoever takes the batch sees that.
        let from = if dense && !cut { base } else { self.next };
        let unfit = match Unfit::new(batch) {
            Err(batch) if cut => Unfit::begun(batch, self.next),
            other => other,
        };
        match unfit {
            Err(batch) => self.whole(batch),
            Ok(unfit) => {
                let runs = unfit.clone().runs(from, UNPACKED_BYTES).map_err(|error| self.unreadable(&error))?;
                self.current = Some(Current::Runs { unfit, runs, origin });
                Ok(())
            }
        }
    }

    fn whole(&mut self, batch: Batch) -> Result<(), Stop> {
        let origin = if batch.has_delete_horizon() { Origin::Remade } else { Origin::Whole };
        self.give(Entry::Batch(batch), origin, false)
    }

    /// A piece of what is being made anew, or its end.
    fn piece(&mut self, piece: Option<Result<Piece, ReencodeError>>, origin: Origin) -> Result<bool, Stop> {
        match piece {
            Some(Ok(Piece::Run(batch))) if !self.fits(&batch) => self.cut()?,
            Some(Ok(Piece::Run(batch))) => self.give(Entry::Batch(batch), origin, true)?,
            Some(Ok(Piece::Gap { first, next })) => self.gap(first, next, Origin::Absent)?,
            Some(Err(error)) => return Err(self.unreadable(&error)),
            None => self.current = None,
        }
        Ok(true)
    }

    /// Whether a frame carries what was made, or no cut would make it smaller.
    fn fits(&self, batch: &Batch) -> bool {
        batch.record_count() == 1 || Entry::Batch(batch.clone()).bytes() <= self.max_batch
    }

    /// Begins what is being made once more, from where it would be too large for a frame: packed by another level, or of
    /// messages that were packed one by one. Only there: elsewhere borders are the source's.
    fn cut(&mut self) -> Result<(), Stop> {
        let most = self.max_batch / 2;
        self.current = match self.current.take() {
            Some(Current::Runs { unfit, origin, .. }) => {
                let runs = unfit.clone().runs(self.next, UNPACKED_BYTES).map_err(|error| self.unreadable(&error))?;
                Some(Current::Runs { unfit, runs: runs.cut_at(most), origin })
            }
            Some(Current::Legacy(_)) => {
                Some(Current::Legacy(from_legacy(self.records.clone(), self.next, UNPACKED_BYTES).cut_at(most)))
            }
            None => None,
        };
        Ok(())
    }

    fn gap(&mut self, first: Offset, next: Offset, origin: Origin) -> Result<(), Stop> {
        if origin == Origin::Absent && first < self.log_start {
            return Err(Stop::Overtaken);
        }
        self.give(Entry::Gap { offset: first, count: next - first }, origin, false)
    }

    fn give(&mut self, entry: Entry, origin: Origin, made: bool) -> Result<(), Stop> {
        if let Entry::Batch(batch) = &entry
            && entry.bytes() > self.max_batch
        {
            return Err(Stop::Failed(large_batch(self.partition, batch, self.max_batch)));
        }
        self.next = entry.next_offset();
        self.ready.push_back(Found { entry, origin, made, epoch: self.epoch });
        Ok(())
    }

    /// The source's batch has a right CRC, and records that are none.
    fn unreadable(&self, error: &ReencodeError) -> Stop {
        let code = match error {
            ReencodeError::TooLong { .. } | ReencodeError::Pack { .. } => FailureCode::BatchTooLarge,
            ReencodeError::Codec { .. } => FailureCode::UnsupportedMessageFormat,
            ReencodeError::Crc { .. }
            | ReencodeError::Control { .. }
            | ReencodeError::Unpack { .. }
            | ReencodeError::Malformed { .. } => FailureCode::CorruptSourceBatch,
        };
        let detail = format!("records that must be re-encoded cannot be read: {error}");
        Stop::Failed(Failure::at(code, self.partition, self.next, detail))
    }
}

impl Iterator for Walk {
    type Item = Result<Found, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Some(Ok(found));
            }
            if self.ended {
                return self.stop.take().map(Err);
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                Err(stop) => (self.ended, self.stop) = (true, Some(stop)),
            }
        }
    }
}
