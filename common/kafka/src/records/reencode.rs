//! Batches that cannot be produced as the source holds them, made into batches that can: runs of consecutive offsets with
//! `CreateTime` timestamps, and gaps.
//!
//! Records keep their bytes: key, value and headers are copied without being looked into (the broker that takes the
//! batch walks them), the codec stays, a consumer sees the same timestamps. Only deltas and the header are new.
//! Memory: one record and one compressed batch; a record longer than the caller's limit is an error.
//! Must never: be entered for a dense `CreateTime` batch. [`Unfit`] is the proof that it is not one.

use std::io;

use bytes::Bytes;
use tombolo_proto::batch::{Batch, Codec, HEADER_BYTES};
use tombolo_proto::limits::MAX_FRAME_BYTES;

use super::assemble::{Assembler, Content};
use super::codec::{Section, read_varint};

/// Largest decompressed size of a record that is looked at, whether to mirror it or to compare it: what it may take in
/// memory.
pub const UNPACKED_BYTES: usize = MAX_FRAME_BYTES;
/// Records are streamed, so that a batch may unpack to much more than one of them may have. Not without bounds: a bomb costs
/// time.
pub(super) const RECORDS_OF_THE_LIMIT: usize = 16;

/// A batch that no broker takes from a client (a hole in its offsets: `LogValidator.validateBatch`), or whose timestamps
/// would change (`LogAppendTime`: the bit is cleared in place and consumers see the producers' times instead); or one
/// that a log begins within.
#[derive(Debug, Clone)]
pub struct Unfit(Batch);

/// What one stretch of offsets becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A dense `CreateTime` batch of no producer, at the offsets of its records.
    Run(Batch),
    /// Offsets without a record: `first` to `next - 1`.
    Gap {
        /// First offset of the gap.
        first: i64,
        /// Offset after the gap.
        next: i64,
    },
}

/// Why a batch cannot be re-encoded. Offsets are of the record where it is known, else of the batch.
#[derive(Debug, thiserror::Error)]
pub enum ReencodeError {
    /// The CRC is wrong.
    #[error("wrong CRC at offset {offset}")]
    Crc {
        /// Where.
        offset: i64,
    },
    /// Control records have a meaning of their own; their offsets are gaps.
    #[error("control batch at offset {offset}")]
    Control {
        /// Where.
        offset: i64,
    },
    /// A codec that no Kafka release defines, or not for this message format.
    #[error("unknown codec {codec:?} at offset {offset}")]
    Codec {
        /// Where.
        offset: i64,
        /// What the batch says.
        codec: Codec,
    },
    /// The records are longer than the limit.
    #[error("the records at offset {offset} take more than {limit} bytes when decompressed")]
    TooLong {
        /// Where.
        offset: i64,
        /// The caller's limit in bytes.
        limit: usize,
    },
    /// The records cannot be decompressed or end too early.
    #[error("the records at offset {offset} ({codec:?}) cannot be read: {source}")]
    Unpack {
        /// Where.
        offset: i64,
        /// Codec of the batch.
        codec: Codec,
        /// What the codec says.
        source: io::Error,
    },
    /// The bytes are no records.
    #[error("malformed records at offset {offset}: {reason}")]
    Malformed {
        /// Where.
        offset: i64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The new batch cannot be written: the format has no room for it.
    #[error("the records at offset {offset} cannot be encoded: {source}")]
    Pack {
        /// Where.
        offset: i64,
        /// What the codec says.
        source: io::Error,
    },
}

impl Unfit {
    /// `Err` gives back a batch that is produced as it is: dense, `CreateTime`.
    pub fn new(batch: Batch) -> Result<Self, Batch> {
        if batch.is_dense() && !batch.is_log_append_time() { Err(batch) } else { Ok(Self(batch)) }
    }

    /// A batch whose first records are no more: `DeleteRecords` moves the start of a log to any offset. `Err` gives back
    /// a batch that `start` does not lie within.
    pub fn begun(batch: Batch, start: i64) -> Result<Self, Batch> {
        if batch.base_offset() < start && start < batch.next_offset() { Ok(Self(batch)) } else { Err(batch) }
    }

    /// The batch as the source holds it.
    pub fn batch(&self) -> &Batch {
        &self.0
    }

    /// What becomes of the batch's offsets, `from` and later (a mirror may end within a batch): each stretch of
    /// consecutive offsets one batch (without leader epoch: it is none of the source's), the rest gaps, in order and without an offset left out. A batch without records is
    /// one gap. Every record of a `LogAppendTime` batch gets the append time.
    ///
    /// `limit` is the largest size of a decompressed record, in bytes; of all together, 16 times that.
    pub fn runs(self, from: i64, limit: usize) -> Result<Runs, ReencodeError> {
        let batch = self.0;
        let (offset, codec) = (batch.base_offset(), batch.codec());
        if !batch.crc_is_valid() {
            return Err(ReencodeError::Crc { offset });
        }
        if batch.is_control() {
            return Err(ReencodeError::Control { offset });
        }
        let from = from.clamp(offset, batch.next_offset());
        Ok(Runs {
            source: Source::new(&batch, limit)?,
            from,
            assembler: Assembler::new(codec, from),
            batch,
            ended: false,
        })
    }
}

/// Iterator over the pieces of one batch; see [`Unfit::runs`]. After an error it ends.
pub struct Runs {
    batch: Batch,
    source: Source,
    from: i64,
    assembler: Assembler,
    ended: bool,
}

/// The records of a batch, one after the other.
pub(super) struct Source {
    section: Section,
    limit: usize,
    left: i32,
    append_time: Option<i64>,
    record: Vec<u8>,
    /// Offset delta of the record read last.
    last: Option<i64>,
}

impl Runs {
    /// Cuts runs before they have more than so many bytes of records, uncompressed; a single record goes alone.
    #[must_use]
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.assembler.cut_at(bytes);
        self
    }

    fn step(&mut self) -> Result<(), ReencodeError> {
        let batch = &self.batch;
        if let Some(record) = self.source.next(batch)? {
            return if record.offset < self.from { Ok(()) } else { self.assembler.push(record) };
        }
        self.assembler.skip_to(batch.next_offset())?;
        self.assembler.close_run()?;
        self.ended = true;
        Ok(())
    }
}

impl Source {
    /// Of a batch whose CRC is right. `limit` is the largest size of one record, of all together 16 times that.
    pub(super) fn new(batch: &Batch, limit: usize) -> Result<Self, ReencodeError> {
        let (offset, codec) = (batch.base_offset(), batch.codec());
        // The cleaner keeps the bare header of a batch that lost all its records (`DefaultRecordBatch.writeEmptyHeader`).
        let records = if batch.record_count() == 0 { Bytes::new() } else { batch.bytes().slice(HEADER_BYTES..) };
        let readable = if records.is_empty() { Codec::None } else { codec };
        let section = Section::new(readable, records, limit.saturating_mul(RECORDS_OF_THE_LIMIT))
            .map_err(|source| ReencodeError::Unpack { offset, codec, source })?
            .ok_or(ReencodeError::Codec { offset, codec })?;
        Ok(Self {
            section,
            limit,
            left: batch.record_count(),
            append_time: batch.is_log_append_time().then(|| batch.max_timestamp()),
            record: Vec::new(),
            last: None,
        })
    }

    /// The next record; its tail stays in the buffer. `None` at the end, which was looked at.
    pub(super) fn next(&mut self, batch: &Batch) -> Result<Option<Content<'_>>, ReencodeError> {
        if self.left == 0 {
            return self.end(batch).map(|()| None);
        }
        self.left -= 1;
        self.read(batch).map(Some)
    }

    fn read(&mut self, batch: &Batch) -> Result<Content<'_>, ReencodeError> {
        let offset = batch.base_offset() + self.last.map_or(0, |delta| delta + 1);
        let malformed = |reason| ReencodeError::Malformed { offset, reason };
        let read = read_varint(&mut self.section).and_then(|size| match usize::try_from(size) {
            Ok(size) if size > self.limit => Err(io::ErrorKind::FileTooLarge.into()),
            Ok(size) => self.section.read_into(&mut self.record, size),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        });
        read.map_err(|source| self.failed(batch, offset, source))?;
        let mut body = self.record.as_slice();
        let short = |_| malformed("a record is too short");
        let (&attributes, rest) = body.split_first().ok_or_else(|| malformed("a record without bytes"))?;
        body = rest;
        let timestamp_delta = read_varint(&mut body).map_err(short)?;
        let delta = read_varint(&mut body).map_err(short)?;
        let last_delta = i64::from(batch.last_offset_delta());
        if delta > last_delta || self.last.map_or(delta < 0, |last| delta <= last) {
            return Err(malformed("offset deltas do not ascend within the batch"));
        }
        self.last = Some(delta);
        Ok(Content {
            offset: batch.base_offset() + delta,
            timestamp: self.append_time.unwrap_or_else(|| batch.base_timestamp().wrapping_add(timestamp_delta)),
            attributes,
            tail: body,
        })
    }

    fn end(&mut self, batch: &Batch) -> Result<(), ReencodeError> {
        let offset = batch.last_offset();
        match self.section.is_at_end() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReencodeError::Malformed { offset, reason: "bytes after the last record" }),
            Err(source) => Err(self.failed(batch, offset, source)),
        }
    }

    fn failed(&self, batch: &Batch, offset: i64, source: io::Error) -> ReencodeError {
        if self.section.is_over_limit() || source.kind() == io::ErrorKind::FileTooLarge {
            ReencodeError::TooLong { offset, limit: self.limit }
        } else {
            ReencodeError::Unpack { offset, codec: batch.codec(), source }
        }
    }
}

impl Iterator for Runs {
    type Item = Result<Piece, ReencodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.assembler.take_ready() {
                return Some(Ok(piece));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.step() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

impl std::fmt::Debug for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runs")
            .field("batch", &self.batch)
            .field("next", &self.assembler.next_offset())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "reencode_test.rs"]
mod tests;
