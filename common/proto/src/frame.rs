//! A frame: batches and gaps of one partition, the unit of the wire.
//!
//! Header of [`HEADER_BYTES`] bytes, big-endian, then the body, compressed where that saves at least 5 %:
//!
//! ```text
//! magic u16 | version u8 | flags u8 (1 = zstd) | mirror u32 | run u32 | partition i32
//! first offset i64 | next offset i64 | entries u32 | raw bytes u32 | body bytes u32
//! crc u32: CRC-32C of all that stands before it and of the body as sent
//! body: entries, each: 0 and a whole batch | 1 and a count of offsets i64
//! ```
//!
//! Must never: allocate by a length that was not compared with [`FrameLimits`] first.

use std::cell::RefCell;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zstd::bulk::{Compressor, Decompressor};

use crate::batch::{Batch, BatchError, Codec};
use crate::id::{MirrorId, Offset, Partition};
use crate::limits::{MAX_FRAME_ENTRIES, MAX_TAIL};
use crate::wire::TailBatch;

/// Size of a frame's header in bytes.
pub const HEADER_BYTES: usize = 48;
/// Bytes an entry takes beyond its batch.
const ENTRY_OVERHEAD: usize = 1;
const GAP_BYTES: usize = 9;
const MAGIC: u16 = 0x7462;
const VERSION: u8 = 1;
const FLAG_ZSTD: u8 = 1;
const ENTRY_BATCH: u8 = 0;
const ENTRY_GAP: u8 = 1;
/// Bodies below this are sent as they are: a zstd frame's own header eats the gain.
const COMPRESS_FROM: usize = 256;
const ZSTD_LEVEL: i32 = 1;

/// Why bytes are no frame. The connection they came from is closed with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not a frame's.
    #[error("no frame: starts with {magic:#06x}, version {version}")]
    Magic {
        /// First two bytes.
        magic: u16,
        /// Third byte.
        version: u8,
    },
    /// A length or count is above its limit.
    #[error("frame field {field} is {value}, allowed are {allowed}")]
    Limit {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be at most.
        allowed: u64,
    },
    /// The checksum does not hold.
    #[error("frame checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Over what arrived.
        computed: u32,
    },
    /// The body does not decompress to what the header says.
    #[error("frame body does not decompress to {raw_bytes} bytes")]
    Decompress {
        /// Size the header gives.
        raw_bytes: u32,
    },
    /// The entries do not cover exactly the offsets of the header.
    #[error("frame entries do not join: expected offset {expected}, found {found}")]
    Offsets {
        /// Offset the entry should have.
        expected: Offset,
        /// Offset it has.
        found: Offset,
    },
    /// An entry of a kind that does not exist, or bytes left over.
    #[error("frame body is malformed at entry {entry}")]
    Entry {
        /// Number of the entry.
        entry: u32,
    },
    /// An entry is no batch.
    #[error("frame holds no valid batch")]
    Batch(#[from] BatchError),
    /// A batch's own CRC is wrong.
    #[error("batch at offset {offset} has a wrong CRC")]
    BatchCrc {
        /// Its base offset.
        offset: Offset,
    },
}

/// What a frame holds, in offset order without holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A batch as the source's broker stores it.
    Batch(Batch),
    /// Offsets that hold no record.
    Gap {
        /// First offset.
        offset: Offset,
        /// Number of offsets, at least 1.
        count: i64,
    },
}

impl Entry {
    /// First offset.
    pub fn offset(&self) -> Offset {
        match self {
            Self::Batch(batch) => batch.base_offset(),
            Self::Gap { offset, .. } => *offset,
        }
    }

    /// Offset after the last.
    pub fn next_offset(&self) -> Offset {
        match self {
            Self::Batch(batch) => batch.next_offset(),
            Self::Gap { offset, count } => offset + count,
        }
    }

    /// Leader epoch that the source's broker wrote into it; -1 of a batch that was made anew, and of a gap: the markers in it may be of a later epoch than the
    /// batch before.
    pub fn leader_epoch(&self) -> i32 {
        match self {
            Self::Batch(batch) => batch.leader_epoch(),
            Self::Gap { .. } => -1,
        }
    }

    /// Bytes that the entry takes in a frame's raw body, and in every memory budget.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => ENTRY_OVERHEAD + batch.len(),
            Self::Gap { .. } => GAP_BYTES,
        }
    }
}

/// Entries of one partition, encoded: what the journal keeps and the link carries. Made once; the header that a session
/// needs is written anew for each sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// First offset.
    pub first_offset: Offset,
    /// Offset after the last.
    pub next_offset: Offset,
    /// Number of entries, at least 1.
    pub entries: u32,
    /// Bytes of the body once decompressed: what credit is counted in.
    pub raw_bytes: usize,
    /// Whether the body is a zstd frame.
    pub compressed: bool,
    /// The body, in pieces to be joined.
    pub body: Vec<Bytes>,
    /// The last batches and gaps in it, at most [`MAX_TAIL`], joined up to `next_offset`: evidence for a later
    /// resume.
    pub tail: Vec<TailBatch>,
    /// Leader epoch of the source's record right before the end; -1 where it is not known, as of a gap that does not tell it.
    pub last_epoch: i32,
}

impl Packed {
    /// Encodes entries, which must be joined and at least one. Compresses where some batch is not, and that saves at
    /// least 5 %.
    pub fn new(entries: &[Entry]) -> Self {
        let raw_bytes = entries.iter().map(Entry::bytes).sum();
        // A batch that its producer compressed does not shrink again.
        let plain = |entry: &Entry| matches!(entry, Entry::Batch(batch) if batch.codec() == Codec::None);
        let pieces = pieces(entries);
        let packed =
            if raw_bytes >= COMPRESS_FROM && entries.iter().any(plain) { compressed(&pieces, raw_bytes) } else { None };
        Self {
            first_offset: entries.first().map_or(0, Entry::offset),
            next_offset: entries.last().map_or(0, Entry::next_offset),
            entries: u32::try_from(entries.len()).expect("entries are bounded"),
            raw_bytes,
            compressed: packed.is_some(),
            body: packed.map_or(pieces, |packed| vec![packed]),
            tail: tail(entries),
            last_epoch: entries.last().map_or(-1, Entry::leader_epoch),
        }
    }

    /// Bytes of the body as it is kept and sent.
    pub fn body_bytes(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    /// The entries. Checked like a frame from the link: the body may come from a disk.
    pub fn unpack(&self, limits: FrameLimits) -> Result<Vec<Entry>, FrameError> {
        let frame = EncodedFrame { mirror: MirrorId(0), run: 0, partition: 0, packed: self.clone() };
        let pieces = frame.encode();
        let (header, body) = pieces.split_first().expect("a frame has a header");
        let header = header.first_chunk().expect("the header is whole");
        let body = body.concat().into();
        Ok(FrameHeader::decode(header, limits)?.decode_body(body)?.entries)
    }
}

fn tail(entries: &[Entry]) -> Vec<TailBatch> {
    let mut tail = Vec::new();
    // Enough to fill it where gaps lie between the batches; each CRC is work.
    for entry in entries.get(entries.len().saturating_sub(2 * MAX_TAIL)..).unwrap_or_default() {
        TailBatch::of_entry(entry).append(&mut tail);
    }
    tail
}

/// What the agent sends: encoded entries and where they belong in the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// Mirror of this session.
    pub mirror: MirrorId,
    /// Run the frame belongs to.
    pub run: u32,
    /// Partition.
    pub partition: Partition,
    /// The entries.
    pub packed: Packed,
}

impl EncodedFrame {
    /// The frame's bytes, in pieces to be sent one after another.
    pub fn encode(&self) -> Vec<Bytes> {
        let packed = &self.packed;
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_u16(MAGIC);
        header.put_u8(VERSION);
        header.put_u8(if packed.compressed { FLAG_ZSTD } else { 0 });
        header.put_u32(self.mirror.0);
        header.put_u32(self.run);
        header.put_i32(self.partition);
        header.put_i64(packed.first_offset);
        header.put_i64(packed.next_offset);
        header.put_u32(packed.entries);
        header.put_u32(u32::try_from(packed.raw_bytes).expect("frames are bounded"));
        header.put_u32(u32::try_from(packed.body_bytes()).expect("frames are bounded"));
        let crc = packed.body.iter().fold(crc32c::crc32c(&header), |crc, piece| crc32c::crc32c_append(crc, piece));
        header.put_u32(crc);
        let mut pieces = vec![header.freeze()];
        pieces.extend(packed.body.iter().cloned());
        pieces
    }
}

/// Batches and gaps of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Mirror of this session.
    pub mirror: MirrorId,
    /// Run the frame belongs to: the gateway drops frames of an older run of the partition.
    pub run: u32,
    /// Partition.
    pub partition: Partition,
    /// At least one entry, joined without holes.
    pub entries: Vec<Entry>,
}

impl Frame {
    /// Bytes of the raw body: what credit is counted in.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::bytes).sum()
    }

    /// Encodes the entries.
    pub fn pack(&self) -> EncodedFrame {
        let Self { mirror, run, partition, ref entries } = *self;
        EncodedFrame { mirror, run, partition, packed: Packed::new(entries) }
    }
}

fn pieces(entries: &[Entry]) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(entries.len() * 2);
    for entry in entries {
        match entry {
            Entry::Batch(batch) => {
                pieces.push(Bytes::from_static(&[ENTRY_BATCH]));
                pieces.push(batch.bytes().clone());
            }
            Entry::Gap { count, .. } => {
                let mut gap = BytesMut::with_capacity(GAP_BYTES);
                gap.put_u8(ENTRY_GAP);
                gap.put_i64(*count);
                pieces.push(gap.freeze());
            }
        }
    }
    pieces
}

thread_local! {
    // A context made for every frame costs more than a small frame's compression.
    static COMPRESSOR: RefCell<Compressor<'static>> =
        RefCell::new(Compressor::new(ZSTD_LEVEL).expect("zstd knows the level"));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("zstd without a dictionary takes nothing that could be wrong"));
}

/// The compressed body, unless that saves less than 5 %.
fn compressed(pieces: &[Bytes], raw_bytes: usize) -> Option<Bytes> {
    let packed = COMPRESSOR.with_borrow_mut(|compressor| compressor.compress(&pieces.concat())).ok()?;
    // What was kept ready for a body that does not shrink is given back: frames wait in memory.
    (packed.len() <= raw_bytes - raw_bytes / 20).then(|| packed.into_boxed_slice().into())
}

/// What a receiver takes.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Largest raw body in bytes; also the largest body as sent.
    pub max_bytes: usize,
}

/// A frame's header, checked against the limits; the body is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHeader {
    /// Mirror of this session.
    pub mirror: MirrorId,
    /// Run of the partition.
    pub run: u32,
    /// Partition.
    pub partition: Partition,
    /// First offset.
    pub first_offset: Offset,
    /// Offset after the last.
    pub next_offset: Offset,
    /// Bytes of the body as sent.
    pub body_bytes: usize,
    /// Bytes of the body once decompressed.
    pub raw_bytes: usize,
    entries: u32,
    compressed: bool,
    crc: u32,
    crc_so_far: u32,
}

impl FrameHeader {
    /// Reads a header. Nothing is allocated.
    pub fn decode(bytes: &[u8; HEADER_BYTES], limits: FrameLimits) -> Result<Self, FrameError> {
        let mut at = bytes.as_slice();
        let (magic, version, flags) = (at.get_u16(), at.get_u8(), at.get_u8());
        if magic != MAGIC || version != VERSION || flags & !FLAG_ZSTD != 0 {
            return Err(FrameError::Magic { magic, version });
        }
        let mirror = MirrorId(at.get_u32());
        let run = at.get_u32();
        let partition = at.get_i32();
        let (first_offset, next_offset) = (at.get_i64(), at.get_i64());
        let (entries, raw_bytes, body_bytes) = (at.get_u32(), at.get_u32(), at.get_u32());
        let crc = at.get_u32();
        let limit = |field, value: u32, allowed: usize| {
            let (value, allowed) = (u64::from(value), allowed as u64);
            if value > allowed { Err(FrameError::Limit { field, value, allowed }) } else { Ok(()) }
        };
        limit("entries", entries, MAX_FRAME_ENTRIES)?;
        limit("raw bytes", raw_bytes, limits.max_bytes)?;
        limit("body bytes", body_bytes, limits.max_bytes)?;
        if partition < 0 || first_offset < 0 || next_offset <= first_offset {
            return Err(FrameError::Offsets { expected: first_offset, found: next_offset });
        }
        let crc_so_far = crc32c::crc32c(bytes.get(..HEADER_BYTES - 4).unwrap_or_default());
        Ok(Self {
            mirror,
            run,
            partition,
            first_offset,
            next_offset,
            body_bytes: body_bytes as usize,
            raw_bytes: raw_bytes as usize,
            entries,
            compressed: flags & FLAG_ZSTD != 0,
            crc,
            crc_so_far,
        })
    }

    /// Reads the body that goes with this header: checks the frame's checksum, every batch's header and CRC, and that
    /// the entries join.
    pub fn decode_body(&self, body: Bytes) -> Result<Frame, FrameError> {
        let computed = crc32c::crc32c_append(self.crc_so_far, &body);
        if computed != self.crc {
            return Err(FrameError::Checksum { found: self.crc, computed });
        }
        let mut raw = if self.compressed { self.decompress(&body)? } else { body };
        if raw.len() != self.raw_bytes {
            return Err(self.decompress_error());
        }
        let mut entries = Vec::with_capacity(self.entries as usize);
        let mut expected = self.first_offset;
        for number in 0..self.entries {
            let entry = take_entry(&mut raw, expected).ok_or(FrameError::Entry { entry: number })??;
            if entry.offset() != expected {
                return Err(FrameError::Offsets { expected, found: entry.offset() });
            }
            expected = entry.next_offset();
            entries.push(entry);
        }
        if !raw.is_empty() || entries.is_empty() {
            return Err(FrameError::Entry { entry: self.entries });
        }
        if expected != self.next_offset {
            return Err(FrameError::Offsets { expected, found: self.next_offset });
        }
        Ok(Frame { mirror: self.mirror, run: self.run, partition: self.partition, entries })
    }

    fn decompress(&self, body: &[u8]) -> Result<Bytes, FrameError> {
        let unpacked = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(body, self.raw_bytes));
        unpacked.map(Bytes::from).map_err(|_| self.decompress_error())
    }

    fn decompress_error(&self) -> FrameError {
        FrameError::Decompress { raw_bytes: u32::try_from(self.raw_bytes).unwrap_or(u32::MAX) }
    }
}

/// Takes the next entry; `None` where the bytes end or its kind is unknown.
fn take_entry(raw: &mut Bytes, expected: Offset) -> Option<Result<Entry, FrameError>> {
    match raw.try_get_u8().ok()? {
        ENTRY_BATCH => {
            let size = raw.get(8..12).and_then(|at| Some(i32::from_be_bytes(at.try_into().ok()?)))?;
            let size = usize::try_from(size).ok()?.checked_add(12).filter(|&size| size <= raw.len())?;
            Some(match Batch::parse(raw.split_to(size)) {
                Ok(batch) if !batch.crc_is_valid() => Err(FrameError::BatchCrc { offset: batch.base_offset() }),
                Ok(batch) => Ok(Entry::Batch(batch)),
                Err(error) => Err(error.into()),
            })
        }
        ENTRY_GAP => {
            let count = raw.try_get_i64().ok().filter(|&count| count > 0)?;
            expected.checked_add(count)?;
            Some(Ok(Entry::Gap { offset: expected, count }))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "frame/frame_test.rs"]
mod tests;
