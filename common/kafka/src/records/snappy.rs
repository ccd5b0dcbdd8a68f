//! Snappy as Kafka has it: raw blocks in the framing of xerial's `snappy-java`, whose sixteen bytes of header are followed
//! by blocks with a length of four bytes each. librdkafka writes one raw block without framing; Java reads that too.
//! Source: `org.xerial.snappy.SnappyOutputStream`, `SnappyInputStream`.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use snap::raw::{Decoder, Encoder, decompress_len};

/// Magic, version 1, compatible since version 1.
const HEADER: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// Block size of the Java client.
const BLOCK_BYTES: usize = 32 << 10;

pub(super) struct SnappyReader {
    rest: Bytes,
    framed: bool,
    block: Vec<u8>,
    read: usize,
    /// Bytes that may still come out.
    left: usize,
}

impl SnappyReader {
    pub(super) fn new(mut rest: Bytes, limit: usize) -> Self {
        let framed = rest.starts_with(HEADER.get(..8).unwrap_or_default()) && rest.len() >= HEADER.len();
        if framed {
            rest.advance(HEADER.len());
        }
        Self { rest, framed, block: Vec::new(), read: 0, left: limit }
    }

    /// Whether this is the error of a block that would go over the limit.
    pub(super) fn is_over_limit(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::FileTooLarge
    }

    /// The next block, compressed.
    fn take_block(&mut self) -> io::Result<Bytes> {
        if !self.framed {
            return Ok(self.rest.split_off(0));
        }
        let size = self.rest.try_get_u32().map_err(|_| io::ErrorKind::UnexpectedEof)?;
        match usize::try_from(size) {
            Ok(size) if size <= self.rest.len() => Ok(self.rest.split_to(size)),
            Ok(_) | Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for SnappyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if self.rest.is_empty() {
                return Ok(0);
            }
            let packed = self.take_block()?;
            let size = decompress_len(&packed)?;
            self.left = self.left.checked_sub(size).ok_or(io::ErrorKind::FileTooLarge)?;
            self.block.resize(size, 0);
            self.read = 0;
            Decoder::new().decompress(&packed, &mut self.block)?;
        }
        let mut block = self.block.get(self.read..).unwrap_or_default();
        let found = block.read(buffer)?;
        self.read += found;
        Ok(found)
    }
}

pub(super) struct SnappyWriter {
    to: Vec<u8>,
    block: Vec<u8>,
}

impl SnappyWriter {
    pub(super) fn new(mut to: Vec<u8>) -> Self {
        to.extend_from_slice(HEADER);
        Self { to, block: Vec::with_capacity(BLOCK_BYTES) }
    }

    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        if !self.block.is_empty() {
            self.pack()?;
        }
        Ok(self.to)
    }

    fn pack(&mut self) -> io::Result<()> {
        let packed = Encoder::new().compress_vec(&self.block)?;
        let size = u32::try_from(packed.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        self.to.extend_from_slice(&size.to_be_bytes());
        self.to.extend_from_slice(&packed);
        self.block.clear();
        Ok(())
    }
}

impl Write for SnappyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (now, _) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
        self.block.extend_from_slice(now);
        if self.block.len() == BLOCK_BYTES {
            self.pack()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
