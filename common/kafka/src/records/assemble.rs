//! Builds dense v2 batches from records that come one by one, and tells the offsets in between as gaps.
//!
//! Layout: `org.apache.kafka.common.record.DefaultRecordBatch`, `DefaultRecord`. Memory: one compressed batch.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::{BufMut, Bytes};
use tombolo_proto::batch::{Batch, Codec, HEADER_BYTES};

use super::codec::{Packer, put_varint};
use super::{Piece, ReencodeError};

/// Where the part begins that the CRC covers.
const ATTRIBUTES: usize = 21;
/// Bytes before what the batch's length field counts.
const LOG_OVERHEAD: usize = 12;
/// `RecordBatch.NO_TIMESTAMP`: the broker's search for the largest timestamp starts here.
const NO_TIMESTAMP: i64 = -1;

/// One record on its way from one batch to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    /// The record's own attributes; no Kafka release gives them a meaning.
    pub(super) attributes: u8,
    /// Key, value and headers with their lengths, as a v2 record has them.
    pub(super) tail: &'a [u8],
}

/// Takes records in the order of their offsets.
pub(super) struct Assembler {
    codec: Codec,
    /// Offset that follows what was taken.
    next: i64,
    /// Most payload bytes of a run, but for one of a single record.
    limit: usize,
    run: Option<Run>,
    ready: VecDeque<Piece>,
}

impl Assembler {
    pub(super) fn new(codec: Codec, from: i64) -> Self {
        Self { codec, next: from, limit: usize::MAX, run: None, ready: VecDeque::new() }
    }

    /// Ends runs before they have more than so many payload bytes.
    pub(super) fn cut_at(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn next_offset(&self) -> i64 {
        self.next
    }

    pub(super) fn take_ready(&mut self) -> Option<Piece> {
        self.ready.pop_front()
    }

    /// Records that follow are packed with this codec. What was taken is a batch of its own if it has another.
    pub(super) fn set_codec(&mut self, codec: Codec) -> Result<(), ReencodeError> {
        if codec != self.codec {
            self.close_run()?;
            self.codec = codec;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, record: Content<'_>) -> Result<(), ReencodeError> {
        self.skip_to(record.offset)?;
        if self.run_bytes().saturating_add(record.tail.len()) > self.limit {
            self.close_run()?;
        }
        let failed = |source| ReencodeError::Pack { offset: record.offset, source };
        let next = record.offset.checked_add(1).filter(|next| *next < i64::MAX);
        let next =
            next.ok_or(ReencodeError::Malformed { offset: record.offset, reason: "an offset is out of range" })?;
        let run = match &mut self.run {
            Some(run) => run,
            none => none.insert(
                Run::new(self.codec, record.offset, record.timestamp)
                    .map_err(failed)?
                    .ok_or(ReencodeError::Codec { offset: record.offset, codec: self.codec })?,
            ),
        };
        run.push(record).map_err(failed)?;
        self.next = next;
        Ok(())
    }

    /// Tells offsets up to `offset` that hold no record.
    pub(super) fn skip_to(&mut self, offset: i64) -> Result<(), ReencodeError> {
        if offset < self.next {
            return Err(ReencodeError::Malformed { offset, reason: "offsets do not ascend" });
        }
        if offset > self.next {
            self.close_run()?;
            self.ready.push_back(Piece::Gap { first: self.next, next: offset });
            self.next = offset;
        }
        Ok(())
    }

    pub(super) fn close_run(&mut self) -> Result<(), ReencodeError> {
        if let Some(run) = self.run.take() {
            let offset = run.base_offset;
            let bytes = run.finish(self.codec).map_err(|source| ReencodeError::Pack { offset, source })?;
            let batch = Batch::parse(bytes);
            let batch = batch.map_err(|_| ReencodeError::Malformed { offset, reason: "a run is out of range" })?;
            self.ready.push_back(Piece::Run(batch));
        }
        Ok(())
    }

    /// Payload bytes in the run that is being filled.
    pub(super) fn run_bytes(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.bytes)
    }
}

/// A batch that is being filled.
struct Run {
    packer: Packer,
    base_offset: i64,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
    bytes: usize,
    head: Vec<u8>,
}

impl Run {
    fn new(codec: Codec, base_offset: i64, base_timestamp: i64) -> io::Result<Option<Self>> {
        let packer = Packer::new(codec, vec![0; HEADER_BYTES])?;
        Ok(packer.map(|packer| Self {
            packer,
            base_offset,
            base_timestamp,
            max_timestamp: NO_TIMESTAMP,
            count: 0,
            bytes: 0,
            head: Vec::new(),
        }))
    }

    fn push(&mut self, record: Content<'_>) -> io::Result<()> {
        // Java's arithmetic wraps; so does its reader's.
        let timestamp_delta = record.timestamp.wrapping_sub(self.base_timestamp);
        let mut body = vec![record.attributes];
        put_varint(&mut body, timestamp_delta);
        put_varint(&mut body, i64::from(self.count));
        self.head.clear();
        put_varint(&mut self.head, (body.len() + record.tail.len()).try_into().map_err(out_of_range)?);
        self.head.extend_from_slice(&body);
        self.packer.write_all(&self.head)?;
        self.packer.write_all(record.tail)?;
        self.bytes += self.head.len() + record.tail.len();
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        self.count = self.count.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }

    /// The batch, of no producer and no transaction: who appends it gives it a place in a sequence of its own. No leader
    /// epoch: it is not in the source's log.
    fn finish(self, codec: Codec) -> io::Result<Bytes> {
        let mut bytes = self.packer.finish()?;
        let length = i32::try_from(bytes.len() - LOG_OVERHEAD).map_err(out_of_range)?;
        let mut covered = Vec::with_capacity(HEADER_BYTES - ATTRIBUTES);
        covered.put_u16(number(codec));
        covered.put_i32(self.count - 1);
        covered.put_i64(self.base_timestamp);
        covered.put_i64(self.max_timestamp);
        covered.put_i64(-1);
        covered.put_i16(-1);
        covered.put_i32(-1);
        covered.put_i32(self.count);
        let section = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&covered), section);
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.put_i64(self.base_offset);
        header.put_i32(length);
        header.put_i32(-1);
        header.put_i8(2);
        header.put_u32(crc);
        header.extend_from_slice(&covered);
        if let Some(place) = bytes.get_mut(..HEADER_BYTES) {
            place.copy_from_slice(&header);
        }
        Ok(bytes.into())
    }
}

fn number(codec: Codec) -> u16 {
    match codec {
        Codec::None => 0,
        Codec::Gzip => 1,
        Codec::Snappy => 2,
        Codec::Lz4 => 3,
        Codec::Zstd => 4,
        Codec::Unknown(number) => u16::from(number),
    }
}

fn out_of_range(_: std::num::TryFromIntError) -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}
