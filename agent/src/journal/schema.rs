//! What stands in a segment's file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | version of what is described here |
//! | `data` | position in the stream of bodies | the bytes from there on, up to the next row |
//! | `frames` | topic, partition, run, first offset | [`FrameRow`] |
//! | `ranges` | topic, partition | [`RangeRow`]: the part of its last run that this segment holds |
//!
//! Bodies of one commit are one stream, cut in rows that fill redb's pages (a power of two of 4 KiB, from which a key
//! and a header are taken): a row of its own for each frame would waste up to half of a page.

use prost::Message;
use redb::TableDefinition;
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition};
use tombolo_proto::wire::TailBatch;

/// Newest version of the format that is read: frames whose evidence has gaps.
pub(super) const FORMAT: u64 = 2;
/// What is written as long as there are none: the releases before gaps read it too.
pub(super) const FORMAT_WITHOUT_GAPS: u64 = 1;
pub(super) const FORMAT_KEY: &str = "format";

pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
pub(super) const DATA: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("data");
pub(super) const FRAMES: TableDefinition<'static, (&str, Partition, u64, Offset), &[u8]> =
    TableDefinition::new("frames");
pub(super) const RANGES: TableDefinition<'static, (&str, Partition), RangeTuple> = TableDefinition::new("ranges");

/// Sizes of rows: what is left of 64, 32, 16, 8, 4, 2 and 1 pages of 4 KiB. The rest of a stream is a row as it is.
const ROWS: [usize; 7] = [262_000, 131_000, 65_300, SMALL_ROW, 16_200, 8_000, LEAST_ROW];
const LEAST_ROW: usize = 3_900;
/// Largest row where little of a partition is written at once.
const SMALL_ROW: usize = 32_500;

/// [`RangeRow`] as redb has it.
pub(super) type RangeTuple = (u64, u128, Offset, Offset, Offset, i32, u64);

/// What a segment holds of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RangeRow {
    /// Number of the run. Later runs of a partition have higher numbers.
    pub(super) run: u64,
    /// The topic's id; 0 where it was not known.
    pub(super) topic_id: u128,
    /// Offset that the run began with, here or in an earlier segment.
    pub(super) start: Offset,
    /// First offset in this segment.
    pub(super) first: Offset,
    /// Offset after the last.
    pub(super) next: Offset,
    /// Leader epoch of the last batch; -1 where it is not known.
    pub(super) last_epoch: i32,
    /// Bytes of the bodies.
    pub(super) bytes: u64,
}

impl RangeRow {
    pub(super) fn to_tuple(self) -> RangeTuple {
        (self.run, self.topic_id, self.start, self.first, self.next, self.last_epoch, self.bytes)
    }

    /// `None` where the offsets cannot be.
    pub(super) fn from_tuple((run, topic_id, start, first, next, last_epoch, bytes): RangeTuple) -> Option<Self> {
        (start <= first && first < next).then_some(Self { run, topic_id, start, first, next, last_epoch, bytes })
    }
}

/// A frame but for its body.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct FrameRow {
    /// Where its body begins in the stream.
    #[prost(uint64, tag = "1")]
    pub(super) position: u64,
    /// Bytes of the body.
    #[prost(uint64, tag = "2")]
    pub(super) length: u64,
    #[prost(int64, tag = "3")]
    pub(super) next_offset: Offset,
    #[prost(uint32, tag = "4")]
    entries: u32,
    #[prost(uint64, tag = "5")]
    raw_bytes: u64,
    #[prost(bool, tag = "6")]
    compressed: bool,
    #[prost(sint32, tag = "7")]
    last_epoch: i32,
    /// Offsets in each batch or gap of the tail, which are joined up to `next_offset`.
    #[prost(uint64, repeated, tag = "8")]
    tail_counts: Vec<u64>,
    #[prost(fixed32, repeated, tag = "9")]
    tail_crcs: Vec<u32>,
    /// Which of them are gaps; empty where none is.
    #[prost(bool, repeated, tag = "10")]
    tail_gaps: Vec<bool>,
    /// CRC-32C of key, row (with 0 here) and body.
    #[prost(fixed32, tag = "15")]
    crc: u32,
}

/// Key of a frame, without its first offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunKey<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Partition,
    pub(super) run: u64,
}

impl RunKey<'_> {
    fn crc(self, first: Offset) -> u32 {
        let crc = crc32c::crc32c(self.topic.as_bytes());
        let crc = crc32c::crc32c_append(crc, &self.partition.to_be_bytes());
        let crc = crc32c::crc32c_append(crc, &self.run.to_be_bytes());
        crc32c::crc32c_append(crc, &first.to_be_bytes())
    }
}

impl FrameRow {
    pub(super) fn new(key: RunKey<'_>, position: u64, packed: &Packed) -> Self {
        let has_gaps = Self::has_gaps(packed);
        let mut row = Self {
            position,
            length: packed.body_bytes() as u64,
            next_offset: packed.next_offset,
            entries: packed.entries,
            raw_bytes: packed.raw_bytes as u64,
            compressed: packed.compressed,
            last_epoch: packed.last_epoch,
            tail_counts: packed
                .tail
                .iter()
                .map(|batch| (batch.last_offset - batch.base_offset + 1).cast_unsigned())
                .collect(),
            tail_crcs: packed.tail.iter().map(|batch| batch.crc).collect(),
            tail_gaps: packed.tail.iter().filter(|_| has_gaps).map(|one| one.gap).collect(),
            crc: 0,
        };
        let crc = crc32c::crc32c_append(key.crc(packed.first_offset), &row.encode_to_vec());
        row.crc = packed.body.iter().fold(crc, |crc, piece| crc32c::crc32c_append(crc, piece));
        row
    }

    /// Whether only [`FORMAT`] has such rows.
    pub(super) fn has_gaps(packed: &Packed) -> bool {
        packed.tail.iter().any(|one| one.gap)
    }

    /// The frame, if the checksum holds.
    pub(super) fn unpack(mut self, key: RunKey<'_>, first_offset: Offset, body: Vec<u8>) -> Option<Packed> {
        let stored = std::mem::take(&mut self.crc);
        let crc = crc32c::crc32c_append(key.crc(first_offset), &self.encode_to_vec());
        if crc32c::crc32c_append(crc, &body) != stored {
            return None;
        }
        let tail = self.tail();
        Some(Packed {
            first_offset,
            next_offset: self.next_offset,
            entries: self.entries,
            raw_bytes: usize::try_from(self.raw_bytes).ok()?,
            compressed: self.compressed,
            body: vec![body.into()],
            tail,
            last_epoch: self.last_epoch,
        })
    }

    fn tail(&self) -> Vec<TailBatch> {
        let mut next = self.next_offset;
        let mut gaps = self.tail_gaps.iter().rev();
        let mut tail: Vec<TailBatch> = (self.tail_counts.iter().zip(&self.tail_crcs).rev())
            .map(|(count, crc)| {
                let last_offset = next - 1;
                next -= count.cast_signed();
                let gap = gaps.next().copied().unwrap_or_default();
                TailBatch { base_offset: next, last_offset, crc: *crc, gap }
            })
            .collect();
        tail.reverse();
        tail
    }
}

/// Largest row where so many bytes of a partition are written together: large rows are fewer and longer writes, and whoever
/// reads some of a row reads all of it.
pub(super) fn largest_row(partition_bytes: usize) -> usize {
    partition_bytes.max(SMALL_ROW)
}

/// Size of the next row of a stream of which `left` bytes are to be written, at most `largest` or what a page holds.
pub(super) fn row_bytes(left: usize, largest: usize) -> usize {
    let most = left.min(largest);
    ROWS.into_iter().find(|row| *row <= most).unwrap_or_else(|| left.min(LEAST_ROW))
}

#[cfg(test)]
mod tests {
    use super::super::spec_test::frame;
    use super::*;

    const KEY: RunKey<'static> = RunKey { topic: "t", partition: 3, run: 7 };

    #[test]
    fn rows_are_read_as_written() {
        let mut packed = frame("t", 3, 100, 30).packed;
        packed.tail = [(100, 109), (110, 110), (111, 129)]
            .map(|(base_offset, last_offset)| TailBatch { base_offset, last_offset, crc: 0xdead_beef, gap: false })
            .to_vec();
        let without_gaps = FrameRow::new(KEY, 5, &packed);
        assert!(without_gaps.tail_gaps.is_empty(), "as it was before there were gaps");
        assert_eq!(without_gaps.tail(), packed.tail);
        packed.tail[1] = TailBatch::gap(110, 111);
        let row = FrameRow::new(KEY, 5, &packed);
        let read = FrameRow::decode(row.encode_to_vec().as_slice()).expect("valid");
        let body = packed.body.concat();
        let whole = Packed { body: vec![body.clone().into()], ..packed };
        assert_eq!(read.unpack(KEY, 100, body), Some(whole));
    }

    #[test]
    fn checksum_covers_key_row_and_body() {
        let packed = frame("t", 3, 100, 30).packed;
        let row = FrameRow::new(KEY, 5, &packed);
        let body = packed.body.concat();
        assert!(row.clone().unpack(KEY, 100, body.clone()).is_some());
        assert_eq!(row.clone().unpack(KEY, 101, body.clone()), None);
        assert_eq!(row.clone().unpack(RunKey { run: 8, ..KEY }, 100, body.clone()), None);
        assert_eq!(FrameRow { next_offset: 131, ..row.clone() }.unpack(KEY, 100, body.clone()), None);
        let mut flipped = body;
        flipped[3] ^= 1;
        assert_eq!(row.unpack(KEY, 100, flipped), None);
    }

    #[test]
    fn rows_fill_pages() {
        let rows = |mut left: usize, partition_bytes| {
            let mut rows = Vec::new();
            while left > 0 {
                let row = row_bytes(left, largest_row(partition_bytes));
                rows.push(row);
                left -= row;
            }
            rows
        };
        assert_eq!(rows(70_000, 1_000), [32_500, 32_500, 3_900, 1_100]);
        assert_eq!(rows(70_000, 70_000), [65_300, 3_900, 800]);
        assert_eq!(rows(600_000, 200_000), [131_000, 131_000, 131_000, 131_000, 65_300, 8_000, 2_700]);
        assert_eq!(rows(600_000, 600_000), [262_000, 262_000, 65_300, 8_000, 2_700]);
        assert_eq!(row_bytes(70_000, 100), 3_900, "never more than a page holds");
    }
}
