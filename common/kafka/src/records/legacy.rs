//! Message sets of formats v0 and v1, which old segments may still hold and brokers serve as they are, made into v2
//! batches. Layout and rules: `org.apache.kafka.common.record.LegacyRecord`, `AbstractLegacyRecordBatch`.
//!
//! Keys, values and `CreateTime` timestamps stay; v0 has no timestamps, so its records get -1 as with Kafka's own
//! conversion. A compressed message (the wrapper of a message set) becomes a batch with its codec; plain messages in a row
//! are joined. Memory: one decompressed message set, at most the caller's limit.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes};
use flate2::Crc;
use tombolo_proto::batch::Codec;

use super::assemble::{Assembler, Content};
use super::codec::{Section, put_varint};
use super::{Piece, ReencodeError};

/// Offset, size, CRC, magic: where the format shows.
const HEAD_BYTES: usize = 8 + 4 + 4 + 1;
/// Bytes before what the size field counts.
const LOG_OVERHEAD: usize = 12;
/// Plain messages are joined to batches of about this size.
const JOIN_BYTES: usize = 256 << 10;
const CODEC_MASK: u8 = 0x07;
const LOG_APPEND_TIME: u8 = 0x08;
/// `RecordBatch.NO_TIMESTAMP`
const NO_TIMESTAMP: i64 = -1;

/// The v0 and v1 messages at the beginning of a record set as a broker serves it: consecutive offsets become dense v2
/// batches, offsets missing between them gaps, from offset `from` on. Ends before the first v2 batch and before a message
/// that is cut off; [`Legacy::remaining`] tells how many bytes were left. `limit` is the largest decompressed size of one
/// message set, in bytes.
pub fn from_legacy(records: Bytes, from: i64, limit: usize) -> Legacy {
    Legacy { rest: records, from, limit, assembler: Assembler::new(Codec::None, from), ended: false }
}

/// Iterator over what becomes of a legacy message set; see [`from_legacy`]. After an error it ends.
pub struct Legacy {
    rest: Bytes,
    from: i64,
    limit: usize,
    assembler: Assembler,
    ended: bool,
}

/// One message.
#[derive(Debug)]
struct Message {
    offset: i64,
    magic: u8,
    attributes: u8,
    timestamp: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
}

impl Legacy {
    /// Cuts batches before they have more than so many bytes of records, uncompressed; a single record goes alone.
    #[must_use]
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.assembler.cut_at(bytes);
        self
    }

    /// Bytes that were not taken.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn step(&mut self) -> Result<(), ReencodeError> {
        let Some(message) = take_message(&mut self.rest)? else {
            self.ended = true;
            return self.assembler.close_run();
        };
        match message.codec() {
            Codec::None => {
                self.assembler.set_codec(Codec::None)?;
                self.push(&message)?;
                if self.assembler.run_bytes() >= JOIN_BYTES { self.assembler.close_run() } else { Ok(()) }
            }
            codec @ (Codec::Gzip | Codec::Snappy | Codec::Lz4 | Codec::Zstd | Codec::Unknown(_)) => {
                self.assembler.close_run()?;
                self.assembler.set_codec(codec)?;
                for inner in unwrap(message, codec, self.limit)? {
                    self.push(&inner)?;
                }
                self.assembler.close_run()
            }
        }
    }

    fn push(&mut self, message: &Message) -> Result<(), ReencodeError> {
        if message.offset < self.from {
            return Ok(());
        }
        let mut tail = Vec::new();
        for field in [&message.key, &message.value] {
            match field {
                Some(bytes) => {
                    let size = i64::try_from(bytes.len());
                    put_varint(&mut tail, size.map_err(|_| message.malformed("a message is too large"))?);
                    tail.extend_from_slice(bytes);
                }
                None => put_varint(&mut tail, -1),
            }
        }
        // No headers.
        put_varint(&mut tail, 0);
        let (offset, timestamp) = (message.offset, message.timestamp);
        self.assembler.push(Content { offset, timestamp, attributes: 0, tail: &tail })
    }
}

impl Iterator for Legacy {
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

impl std::fmt::Debug for Legacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Legacy")
            .field("next", &self.assembler.next_offset())
            .field("remaining", &self.rest.len())
            .finish_non_exhaustive()
    }
}

impl Message {
    fn codec(&self) -> Codec {
        match self.attributes & CODEC_MASK {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            // zstd came with v2 only (KIP-110).
            other => Codec::Unknown(other),
        }
    }

    fn malformed(&self, reason: &'static str) -> ReencodeError {
        ReencodeError::Malformed { offset: self.offset, reason }
    }
}

/// The next v0 or v1 message; `None` where none is left, a v2 batch follows, or the rest is cut off.
fn take_message(rest: &mut Bytes) -> Result<Option<Message>, ReencodeError> {
    if rest.len() < HEAD_BYTES {
        return Ok(None);
    }
    let mut head = rest.slice(..HEAD_BYTES);
    let (offset, size, crc, magic) = (head.get_i64(), head.get_i32(), head.get_u32(), head.get_u8());
    let malformed = |reason| ReencodeError::Malformed { offset, reason };
    let timestamp_bytes = match magic {
        0 => 0,
        1 => 8,
        2 => return Ok(None),
        _ => return Err(malformed("a message format that does not exist")),
    };
    // CRC, magic, attributes, timestamp, and the lengths of key and value.
    let least = 4 + 1 + 1 + timestamp_bytes + 4 + 4;
    let size = usize::try_from(size).ok().filter(|size| *size >= least);
    let size = size.ok_or_else(|| malformed("the size of a message is out of range"))?;
    if offset < 0 {
        return Err(malformed("a negative offset"));
    }
    if rest.len() - LOG_OVERHEAD < size {
        return Ok(None);
    }
    let mut body = rest.split_to(LOG_OVERHEAD + size).split_off(LOG_OVERHEAD + 4);
    let mut found = Crc::new();
    found.update(&body);
    if found.sum() != crc {
        return Err(ReencodeError::Crc { offset });
    }
    body.advance(1);
    let attributes = body.get_u8();
    let timestamp = if magic == 1 { body.get_i64() } else { NO_TIMESTAMP };
    let key = take_bytes(&mut body).map_err(malformed)?;
    let value = take_bytes(&mut body).map_err(malformed)?;
    if !body.is_empty() {
        return Err(malformed("bytes after the value of a message"));
    }
    Ok(Some(Message { offset, magic, attributes, timestamp, key, value }))
}

/// Bytes with a length of four bytes, -1 for null.
fn take_bytes(body: &mut Bytes) -> Result<Option<Bytes>, &'static str> {
    match body.try_get_i32().map_err(|_| "a length is cut off")? {
        -1 => Ok(None),
        size => match usize::try_from(size) {
            Ok(size) if size <= body.len() => Ok(Some(body.split_to(size))),
            Ok(_) | Err(_) => Err("a field is longer than its message"),
        },
    }
}

/// The messages within a compressed message, with their own offsets and timestamps
/// (`AbstractLegacyRecordBatch.DeepRecordsIterator`).
fn unwrap(wrapper: Message, codec: Codec, limit: usize) -> Result<VecDeque<Message>, ReencodeError> {
    let offset = wrapper.offset;
    let malformed = |reason| ReencodeError::Malformed { offset, reason };
    let packed = wrapper.value.ok_or_else(|| malformed("a compressed message without a value"))?;
    let packed = if codec == Codec::Lz4 && wrapper.magic == 0 { with_right_checksum(packed) } else { packed };
    let mut set = unpack(packed, codec, offset, limit)?;
    let mut messages = VecDeque::new();
    while let Some(message) = take_message(&mut set)? {
        if message.codec() != Codec::None {
            return Err(malformed("a compressed message within a compressed message"));
        }
        if message.magic != wrapper.magic {
            return Err(malformed("messages of one format within a message of another"));
        }
        messages.push_back(message);
    }
    if !set.is_empty() {
        return Err(malformed("a message within a compressed message is cut off"));
    }
    let last = messages.back().ok_or_else(|| malformed("a compressed message without messages"))?.offset;
    if wrapper.magic == 1 {
        // Inner offsets count from the first; the wrapper has the offset of the last. Some versions of librdkafka left it
        // at 0, and then the inner ones are the offsets.
        let base = if offset == 0 { 0 } else { offset - last };
        if base < 0 {
            return Err(malformed("the offset of a compressed message is below its last message's"));
        }
        for message in &mut messages {
            message.offset = message
                .offset
                .checked_add(base)
                .ok_or_else(|| malformed("an offset within a message is out of range"))?;
            if wrapper.attributes & LOG_APPEND_TIME != 0 {
                message.timestamp = wrapper.timestamp;
            }
        }
    }
    Ok(messages)
}

fn unpack(packed: Bytes, codec: Codec, offset: i64, limit: usize) -> Result<Bytes, ReencodeError> {
    let failed = |source: io::Error| ReencodeError::Unpack { offset, codec, source };
    let mut section =
        Section::new(codec, packed, limit).map_err(failed)?.ok_or(ReencodeError::Codec { offset, codec })?;
    match section.read_to_limit() {
        Ok(bytes) => Ok(bytes.into()),
        Err(_) if section.is_over_limit() => Err(ReencodeError::TooLong { offset, limit }),
        Err(source) => Err(failed(source)),
    }
}

/// Clients of v0 computed the checksum of an LZ4 frame's header over its magic number too (KAFKA-3160).
fn with_right_checksum(frame: Bytes) -> Bytes {
    const MAGIC_BYTES: usize = 4;
    const CONTENT_SIZE: u8 = 0x08;
    let flags = frame.get(MAGIC_BYTES).copied().unwrap_or_default();
    let end = MAGIC_BYTES + if flags & CONTENT_SIZE == 0 { 2 } else { 2 + 8 };
    let Some(descriptor) = frame.get(MAGIC_BYTES..end) else { return frame };
    let [_, _, checksum, _] = twox_hash::XxHash32::oneshot(0, descriptor).to_be_bytes();
    let mut frame = Vec::from(frame);
    if let Some(place) = frame.get_mut(end) {
        *place = checksum;
    }
    frame.into()
}

#[cfg(test)]
#[path = "legacy_test.rs"]
mod tests;
