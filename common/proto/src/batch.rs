//! One Kafka record batch of format v2, viewed in place, and the walk over a record set.
//!
//! Layout: `org.apache.kafka.common.record.DefaultRecordBatch`. The record section is never touched or read.
//! Must never: trust a length before it was compared with the bytes at hand.

mod shift;
mod stamp;

pub use stamp::Stamp;

use bytes::Bytes;

use crate::id::Offset;

/// Bytes before a batch's length field ends: baseOffset and batchLength.
const LOG_OVERHEAD: usize = 12;
/// Size of a v2 batch header; the record section follows.
pub const HEADER_BYTES: usize = 61;
const MAGIC: usize = 16;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;
const LAST_OFFSET_DELTA: usize = 23;
const BASE_TIMESTAMP: usize = 27;
const MAX_TIMESTAMP: usize = 35;
const PRODUCER_ID: usize = 43;
const PRODUCER_EPOCH: usize = 51;
const BASE_SEQUENCE: usize = 53;
const RECORD_COUNT: usize = 57;

const CODEC_MASK: u16 = 0x07;
const LOG_APPEND_TIME: u16 = 0x08;
const TRANSACTIONAL: u16 = 0x10;
const CONTROL: u16 = 0x20;
const DELETE_HORIZON: u16 = 0x40;

/// Why bytes are no batch, or not one that can be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The length field is smaller than a header or larger than the bytes that hold it may be.
    #[error("batch length {length} at offset {offset}: a v2 batch has at least {min} bytes", min = HEADER_BYTES - LOG_OVERHEAD)]
    Length {
        /// Offset the batch claims.
        offset: Offset,
        /// Length the batch claims, in bytes after the length field.
        length: i32,
    },
    /// Message format v0 or v1, or one that does not exist.
    #[error("message format v{magic} at offset {offset}: only v2 batches are mirrored")]
    Magic {
        /// Offset the batch claims.
        offset: Offset,
        /// Value of the magic byte.
        magic: i8,
    },
    /// Counts or offsets that no broker writes.
    #[error("batch header at offset {offset} is out of range: last offset delta {last_offset_delta}, {count} records")]
    Range {
        /// Offset the batch claims.
        offset: Offset,
        /// Last offset delta the batch claims.
        last_offset_delta: i32,
        /// Record count the batch claims.
        count: i32,
    },
    /// Bytes follow that do not make up a whole batch, where whole batches were promised.
    #[error("{left} bytes after the last whole batch")]
    Truncated {
        /// Number of bytes left over.
        left: usize,
    },
}

/// Compression of a batch's record section (`org.apache.kafka.common.record.CompressionType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Uncompressed.
    None,
    /// gzip.
    Gzip,
    /// Snappy, in xerial framing.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// A number no Kafka release defines.
    Unknown(u8),
}

/// A whole v2 batch: header fields are in range and the length fits; the CRC is checked by [`Batch::crc_is_valid`].
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("base_offset", &self.base_offset())
            .field("last_offset", &self.last_offset())
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl Batch {
    /// Takes exactly one batch: `bytes` must end where the batch ends.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let total = bytes.len();
        let mut split = split(bytes);
        let batch = split.next().unwrap_or(Err(BatchError::Truncated { left: total }))?;
        match split.remaining() {
            0 => Ok(batch),
            left => Err(BatchError::Truncated { left }),
        }
    }

    /// Offset of the first record. The field lies outside the CRC.
    pub fn base_offset(&self) -> Offset {
        self.i64_at(0)
    }

    /// Offset of the last record (of the batch as produced; compaction may have removed it).
    pub fn last_offset(&self) -> Offset {
        self.base_offset() + i64::from(self.last_offset_delta())
    }

    /// Offset after the batch.
    pub fn next_offset(&self) -> Offset {
        self.last_offset() + 1
    }

    /// `partitionLeaderEpoch`, set by the broker that stored the batch; outside the CRC.
    pub fn leader_epoch(&self) -> i32 {
        self.i32_at(12)
    }

    /// Distance of the last offset from the first.
    pub fn last_offset_delta(&self) -> i32 {
        self.i32_at(LAST_OFFSET_DELTA)
    }

    /// Records in the batch.
    pub fn record_count(&self) -> i32 {
        self.i32_at(RECORD_COUNT)
    }

    /// Whether every offset from base to last holds a record. A broker takes nothing else from a client
    /// (`LogValidator.validateBatch`).
    pub fn is_dense(&self) -> bool {
        self.record_count() > 0 && self.record_count() == self.last_offset_delta() + 1
    }

    /// The stored CRC-32C.
    pub fn crc(&self) -> u32 {
        u32::from_be_bytes(self.array_at(CRC))
    }

    /// Computes the CRC over `attributes` to the end and compares.
    pub fn crc_is_valid(&self) -> bool {
        crc32c::crc32c(self.from(ATTRIBUTES)) == self.crc()
    }

    /// Compression of the record section.
    pub fn codec(&self) -> Codec {
        match self.attributes() & CODEC_MASK {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            4 => Codec::Zstd,
            other => Codec::Unknown(u8::try_from(other).expect("three bits fit a byte")),
        }
    }

    /// Whether timestamps were set by the broker (`LogAppendTime`).
    pub fn is_log_append_time(&self) -> bool {
        self.attributes() & LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a control record (commit, abort, ...).
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL != 0
    }

    /// Whether the cleaner has written the batch anew, to note when its tombstones may go (KIP-534).
    pub fn has_delete_horizon(&self) -> bool {
        self.attributes() & DELETE_HORIZON != 0
    }

    /// Whether log compaction has changed, or may have changed, the batch since it was produced: records are missing, or
    /// its base timestamp tells when tombstones go (`RecordBatch.deleteHorizonMs`).
    pub fn may_be_cleaned(&self) -> bool {
        !self.is_dense() || self.has_delete_horizon()
    }

    /// Timestamp that the records' deltas count from, in milliseconds since 1970.
    pub fn base_timestamp(&self) -> i64 {
        self.i64_at(BASE_TIMESTAMP)
    }

    /// Largest timestamp, in milliseconds since 1970.
    pub fn max_timestamp(&self) -> i64 {
        self.i64_at(MAX_TIMESTAMP)
    }

    /// Producer id, -1 where the producer was not idempotent.
    pub fn producer_id(&self) -> i64 {
        self.i64_at(PRODUCER_ID)
    }

    /// Producer epoch, -1 where the producer was not idempotent.
    pub fn producer_epoch(&self) -> i16 {
        i16::from_be_bytes(self.array_at(PRODUCER_EPOCH))
    }

    /// Sequence of the first record, -1 where the producer was not idempotent.
    pub fn base_sequence(&self) -> i32 {
        self.i32_at(BASE_SEQUENCE)
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records, compressed as the batch says.
    pub fn record_section(&self) -> &[u8] {
        self.from(HEADER_BYTES)
    }

    /// Size of the whole batch in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a batch has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn attributes(&self) -> u16 {
        u16::from_be_bytes(self.array_at(ATTRIBUTES))
    }

    fn i32_at(&self, at: usize) -> i32 {
        i32::from_be_bytes(self.array_at(at))
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_be_bytes(self.array_at(at))
    }

    fn array_at<const N: usize>(&self, at: usize) -> [u8; N] {
        array_at(&self.bytes, at).expect("a batch holds a whole header")
    }

    fn from(&self, at: usize) -> &[u8] {
        self.bytes.get(at..).expect("a batch holds a whole header")
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok())
}

/// Walks the batches of a record set as a broker serves it. A batch cut off at the end is left out, as every Kafka
/// client does; [`Split::remaining`] tells how much was. After an error the walk ends.
pub fn split(records: Bytes) -> Split {
    Split { rest: records, broken: false }
}

/// Iterator over the batches of a record set; see [`split`].
#[derive(Debug, Clone)]
pub struct Split {
    rest: Bytes,
    broken: bool,
}

impl Split {
    /// Bytes not yet walked over.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self) -> Option<Result<Batch, BatchError>> {
        let offset = i64::from_be_bytes(array_at(&self.rest, 0)?);
        let length = i32::from_be_bytes(array_at(&self.rest, 8)?);
        // Formats v0 and v1 keep their magic byte at the same place.
        let magic = i8::from_be_bytes(array_at(&self.rest, MAGIC)?);
        if magic != 2 {
            return Some(Err(BatchError::Magic { offset, magic }));
        }
        let size = match usize::try_from(length) {
            Ok(length) if length >= HEADER_BYTES - LOG_OVERHEAD => length + LOG_OVERHEAD,
            _ => return Some(Err(BatchError::Length { offset, length })),
        };
        if self.rest.len() < size {
            return None;
        }
        let batch = Batch { bytes: self.rest.split_to(size) };
        let (last_offset_delta, count) = (batch.last_offset_delta(), batch.record_count());
        let in_range = offset >= 0
            && last_offset_delta >= 0
            && count >= 0
            && i64::from(count) <= i64::from(last_offset_delta) + 1
            && offset.checked_add(i64::from(last_offset_delta)).is_some_and(|last| last < i64::MAX);
        if in_range { Some(Ok(batch)) } else { Some(Err(BatchError::Range { offset, last_offset_delta, count })) }
    }
}

impl Iterator for Split {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let item = self.take();
        self.broken = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    #[test]
    fn reads_every_header_field() {
        let batch = BatchBuilder::new(41).records(3).timestamps(1_000, 1_002).stamp(7, 2, 90).build();
        assert_eq!((batch.base_offset(), batch.last_offset(), batch.next_offset()), (41, 43, 44));
        assert_eq!((batch.record_count(), batch.is_dense()), (3, true));
        assert_eq!((batch.base_timestamp(), batch.max_timestamp()), (1_000, 1_002));
        assert_eq!((batch.producer_id(), batch.producer_epoch(), batch.base_sequence()), (7, 2, 90));
        assert!(batch.crc_is_valid());
        assert!(!batch.is_control() && !batch.is_transactional() && !batch.is_log_append_time());
        assert_eq!(batch.codec(), Codec::None);
    }

    #[test]
    fn walks_whole_batches_and_drops_a_cut_tail() {
        let mut set = Vec::new();
        for base in [0, 2, 4] {
            set.extend_from_slice(BatchBuilder::new(base).records(2).build().bytes());
        }
        let whole = set.len() / 3;
        for cut in 1..whole {
            let mut walk = split(Bytes::copy_from_slice(&set[..set.len() - cut]));
            let bases: Vec<_> = walk.by_ref().map(|batch| batch.expect("whole").base_offset()).collect();
            assert_eq!(bases, [0, 2]);
            assert_eq!(walk.remaining(), whole - cut);
        }
    }

    #[test]
    fn refuses_old_formats_and_bad_lengths() {
        let good = BatchBuilder::new(9).records(1).build();
        let mut old = good.bytes().to_vec();
        old[MAGIC] = 1;
        assert_eq!(Batch::parse(old.into()), Err(BatchError::Magic { offset: 9, magic: 1 }));
        let mut short = good.bytes().to_vec();
        short[8..12].copy_from_slice(&48_i32.to_be_bytes());
        assert_eq!(Batch::parse(short.into()), Err(BatchError::Length { offset: 9, length: 48 }));
        let mut longer = good.bytes().to_vec();
        longer.push(0);
        assert_eq!(Batch::parse(longer.into()), Err(BatchError::Truncated { left: 1 }));
        let mut count = good.bytes().to_vec();
        count[RECORD_COUNT..RECORD_COUNT + 4].copy_from_slice(&5_i32.to_be_bytes());
        assert!(matches!(Batch::parse(count.into()), Err(BatchError::Range { count: 5, .. })));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            for batch in split(Bytes::from(bytes)).flatten() {
                let _ = (batch.crc_is_valid(), batch.canonical_crc(), batch.next_offset());
            }
        }

        #[test]
        fn damaged_headers_never_panic(at in 0_usize..HEADER_BYTES, byte in proptest::num::u8::ANY) {
            let mut bytes = BatchBuilder::new(5).records(2).build().bytes().to_vec();
            bytes[at] = byte;
            for batch in split(Bytes::from(bytes)).flatten() {
                drop((batch.canonical_crc(), batch.stamped(Stamp { producer_id: 1, sequence: 0 })));
            }
        }
    }
}
