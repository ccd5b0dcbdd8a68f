//! What is compared of a batch, read from a log or from a digest.

use tombolo_proto::batch::Batch;

use crate::records::{Piece, RecordSums, UNPACKED_BYTES, Unfit, decode_batch};

/// `ControlRecordType.ABORT`: version and type of the control record's key.
const ABORT_KEY: [u8; 4] = [0, 0, 0, 0];

/// One batch.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) base_offset: i64,
    pub(super) last_offset: i64,
    pub(super) canonical_crc: u32,
    /// Size of the whole batch.
    pub(super) bytes: u32,
    pub(super) records: i32,
    pub(super) producer_id: i64,
    pub(super) kind: Kind,
    /// Whether its stored CRC is right.
    pub(super) sound: bool,
    /// The batch itself, where a log was read.
    pub(super) batch: Option<Batch>,
}

/// What a batch is for a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records.
    Data,
    /// Records that count once their transaction is committed.
    Transactional,
    /// The end of an aborted transaction.
    Abort,
    /// Any other control record.
    Control,
}

impl Entry {
    pub(super) fn of(batch: &Batch) -> Self {
        Self {
            base_offset: batch.base_offset(),
            last_offset: batch.last_offset(),
            canonical_crc: batch.canonical_crc(),
            bytes: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            records: batch.record_count(),
            producer_id: batch.producer_id(),
            kind: kind(batch),
            sound: batch.crc_is_valid(),
            batch: Some(batch.clone()),
        }
    }

    pub(super) fn next_offset(&self) -> i64 {
        self.last_offset + 1
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.kind == Kind::Transactional
    }

    /// Whether the batch may stand for others in a mirror, or others for it: a log begins within it, it was thinned, or its
    /// times are of append.
    pub(super) fn is_unfit(&self, log_start: i64) -> bool {
        let remade = |batch: &Batch| batch.is_log_append_time() || batch.may_be_cleaned();
        !self.is_control() && (self.base_offset < log_start || self.batch.as_ref().is_some_and(remade))
    }

    /// What a mirror is to hold of the batch, from this offset on, where the log begins: itself, or what is made of it.
    pub(super) fn mirrored(&self, log_start: i64) -> Vec<Self> {
        let Some(batch) = self.batch.as_ref().filter(|_| self.sound && self.is_unfit(log_start)) else {
            return vec![self.clone()];
        };
        let unfit = Unfit::new(batch.clone()).or_else(|batch| Unfit::begun(batch, log_start));
        let Ok(runs) = unfit.map(|unfit| unfit.runs(log_start, UNPACKED_BYTES)) else { return vec![self.clone()] };
        let pieces = runs.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let Ok(pieces) = pieces else { return vec![self.clone()] };
        let runs = pieces.iter().filter_map(|piece| match piece {
            Piece::Run(run) => Some(Self { producer_id: self.producer_id, kind: self.kind, ..Self::of(run) }),
            Piece::Gap { .. } => None,
        });
        runs.collect()
    }

    /// Checksums of its records; `None` where it cannot be read.
    pub(super) fn sums(&self) -> Option<RecordSums> {
        self.batch.as_ref().and_then(|batch| RecordSums::new(batch, UNPACKED_BYTES).ok())
    }

    pub(super) fn is_control(&self) -> bool {
        matches!(self.kind, Kind::Abort | Kind::Control)
    }

    /// Whether both hold the same records, wherever they stand.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        let same_section = match (&self.batch, &other.batch) {
            (Some(ours), Some(theirs)) => ours.record_section() == theirs.record_section(),
            (Some(_) | None, None) | (None, Some(_)) => self.bytes == other.bytes,
        };
        self.canonical_crc == other.canonical_crc && same_section
    }
}

fn kind(batch: &Batch) -> Kind {
    if !batch.is_control() {
        return if batch.is_transactional() { Kind::Transactional } else { Kind::Data };
    }
    // Control batches are never compressed and hold one record.
    let records = decode_batch(batch).unwrap_or_default();
    match records.first().and_then(|record| record.key.as_deref()) {
        Some(key) if key == ABORT_KEY => Kind::Abort,
        Some(_) | None => Kind::Control,
    }
}
