//! The five codecs of record sections, as streams: decompression stops at a limit, compression needs no second buffer.
//!
//! What a Kafka client reads and writes: gzip members, snappy in xerial's framing ([`super::snappy`]), one LZ4 frame of
//! independent blocks (`org.apache.kafka.common.compress.Lz4BlockOutputStream`), zstd frames.
//! Must never: reserve memory above the limit for a size it has only been told.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use bytes::buf::{Buf, Reader};
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use tombolo_proto::batch::Codec;

use super::snappy::{SnappyReader, SnappyWriter};

/// Largest window a zstd frame may ask for, as a power of two: what `zstd -22` writes, and libzstd's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A decompressed record section, never longer than a limit.
pub(super) struct Section {
    stream: BufReader<Capped>,
}

/// A reader that fails instead of giving more than `left` bytes.
struct Capped {
    stream: Box<dyn Read + Send>,
    left: usize,
    over: bool,
}

impl Section {
    /// `None` for a codec that no Kafka release defines.
    pub(super) fn new(codec: Codec, section: Bytes, limit: usize) -> io::Result<Option<Self>> {
        let section: Reader<Bytes> = section.reader();
        let stream: Box<dyn Read + Send> = match codec {
            Codec::None => Box::new(section),
            Codec::Gzip => Box::new(MultiGzDecoder::new(section)),
            Codec::Snappy => Box::new(SnappyReader::new(section.into_inner(), limit)),
            Codec::Lz4 => Box::new(FrameDecoder::new(section)),
            Codec::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(section)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Codec::Unknown(_) => return Ok(None),
        };
        Ok(Some(Self { stream: BufReader::new(Capped { stream, left: limit, over: false }) }))
    }

    /// Whether reading failed because the section is longer than the limit.
    pub(super) fn is_over_limit(&self) -> bool {
        self.stream.get_ref().over
    }

    /// Whether everything was read.
    pub(super) fn is_at_end(&mut self) -> io::Result<bool> {
        self.stream.fill_buf().map(<[u8]>::is_empty)
    }

    /// All of it.
    pub(super) fn read_to_limit(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Replaces `buffer` by the next `size` bytes. The buffer grows with what is there, not with what is asked for.
    pub(super) fn read_into(&mut self, buffer: &mut Vec<u8>, size: usize) -> io::Result<()> {
        buffer.clear();
        let found = (&mut self.stream).take(size as u64).read_to_end(buffer)?;
        if found == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Read for Capped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let found = self.stream.read(buffer).inspect_err(|error| self.over |= SnappyReader::is_over_limit(error))?;
        let left = self.left.checked_sub(found).ok_or(io::ErrorKind::FileTooLarge);
        self.over |= left.is_err();
        self.left = left?;
        Ok(found)
    }
}

/// A compressor that appends to bytes which are there already.
pub(super) enum Packer {
    None(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
    Snappy(SnappyWriter),
    Lz4(Box<FrameEncoder<Vec<u8>>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

impl Packer {
    /// Levels are the producers' defaults. `None` for a codec that no Kafka release defines.
    pub(super) fn new(codec: Codec, onto: Vec<u8>) -> io::Result<Option<Self>> {
        Ok(Some(match codec {
            Codec::None => Self::None(onto),
            Codec::Gzip => Self::Gzip(GzEncoder::new(onto, Compression::default())),
            Codec::Snappy => Self::Snappy(SnappyWriter::new(onto)),
            Codec::Lz4 => {
                // Java reads no linked blocks, and writes blocks of this size.
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                Self::Lz4(Box::new(FrameEncoder::with_frame_info(info, onto)))
            }
            Codec::Zstd => Self::Zstd(zstd::Encoder::new(onto, zstd::DEFAULT_COMPRESSION_LEVEL)?),
            Codec::Unknown(_) => return Ok(None),
        }))
    }

    /// What was there, and after it all that was written.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::None(bytes) => Ok(bytes),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Snappy(encoder) => encoder.finish(),
            Self::Lz4(encoder) => encoder.finish().map_err(Into::into),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(to) => to.write(bytes),
            Self::Gzip(to) => to.write(bytes),
            Self::Snappy(to) => to.write(bytes),
            Self::Lz4(to) => to.write(bytes),
            Self::Zstd(to) => to.write(bytes),
        }
    }

    /// Does nothing: a flushed block could not be filled any more.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a zigzag varint of at most 64 bits (`org.apache.kafka.common.utils.ByteUtils.readVarlong`).
pub(super) fn read_varint(from: &mut impl Read) -> io::Result<i64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0_u8];
        from.read_exact(&mut byte)?;
        let [byte] = byte;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Appends a zigzag varint.
pub(super) fn put_varint(to: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        let [low, ..] = left.to_le_bytes();
        to.push(low | 0x80);
        left >>= 7;
    }
    let [low, ..] = left.to_le_bytes();
    to.push(low);
}
