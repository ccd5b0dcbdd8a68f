//! A digest of logs: what a compare needs of each batch, in a file that is carried where its source cannot be reached.
//!
//! Eight bytes [`MAGIC`], then one zstd frame of items, each a byte that says which, all numbers big-endian:
//!
//! | item | fields |
//! |---|---|
//! | `H` header, once, first | created u64 (seconds since 1970), cluster id, software (texts), topics u32: name (text), id 16 bytes, partitions u32 |
//! | `P` partition | topic u32 (index in the header), partition i32, log start i64, high watermark i64 |
//! | `B` batch of that partition | base offset i64, last offset delta i32, canonical CRC u32, bytes u32, records i32, producer id i64, flags u8 |
//! | `E` end, last | number of batches u64, CRC-32C u32 of all bytes of the frame before it |
//!
//! A batch that cannot be mirrored as it is (thinned, append times, cut by the log's start) is written as what is made of it.
//! A text is its length as u16 and its bytes. Flags: 1 control, 2 transactional, 4 end of an aborted transaction, 8 the
//! stored CRC was wrong. A file that was cut has no end; one that was changed has another CRC.

mod writer;

pub use writer::{DigestWriter, Totals, write_log};

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Entry, Kind};
use crate::TopicId;

/// The first bytes of a file, which end in the version of the format.
pub const MAGIC: [u8; 8] = *b"tmbdig\0\x01";
const HEADER: u8 = b'H';
const PARTITION: u8 = b'P';
const BATCH: u8 = b'B';
const END: u8 = b'E';
const CONTROL: u8 = 1;
const TRANSACTIONAL: u8 = 2;
const ABORT: u8 = 4;
const UNSOUND: u8 = 8;
/// Longest text.
const MAX_TEXT: usize = 1_000;
/// Most topics.
const MAX_TOPICS: u32 = 200_000;
/// The decoder's window is at most two to the power of this: 8 MiB.
const WINDOW_LOG: u32 = 23;

/// Why a digest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The file cannot be read or written, or zstd finds it damaged.
    #[error("the digest cannot be read or written: {0}")]
    File(#[from] io::Error),
    /// Something else, or of another version.
    #[error("no digest of this version")]
    Magic,
    /// The file ends before its end.
    #[error("the digest was cut off: copy it again")]
    Cut,
    /// The content is not what was written.
    #[error("the digest is damaged ({0}): copy it again")]
    Damaged(&'static str),
    /// A text or a list is longer than the format takes.
    #[error("too long for a digest: {0}")]
    TooLong(&'static str),
    /// A log holds something that is no batch of format v2.
    #[error("{topic}[{partition}] cannot be digested: {error}")]
    Log {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// What stands there.
        error: tombolo_proto::batch::BatchError,
    },
    /// A log cannot be reached.
    #[error(transparent)]
    Kafka(#[from] crate::KafkaError),
}

/// Whose logs they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Seconds since 1970, by the clock of whoever wrote it.
    pub created_unix_seconds: u64,
    /// The cluster's id; empty where it has none.
    pub cluster_id: String,
    /// Release that wrote it, for people.
    pub software: String,
    /// Topics in the digest.
    pub topics: Vec<DigestTopic>,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestTopic {
    /// Name.
    pub name: Arc<str>,
    /// Id, zeros where the cluster has none.
    pub id: TopicId,
    /// How many partitions it had.
    pub partitions: u32,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Log start and high watermark.
    pub offsets: Range<i64>,
}

/// What a whole digest holds, from a first pass over it.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Whose logs they are.
    pub header: Header,
    /// The partitions in the order of the file.
    pub sections: Vec<Section>,
}

/// Reads a digest from front to back.
pub struct DigestReader {
    input: Input,
    header: Header,
    section: Option<Section>,
    /// Offset that the next batch of the section may begin at.
    next_offset: i64,
    batches: u64,
    /// An item whose first byte was read, and not the rest.
    tag: Option<u8>,
    ended: bool,
}

impl std::fmt::Debug for DigestReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestReader")
            .field("section", &self.section)
            .field("batches", &self.batches)
            .finish_non_exhaustive()
    }
}

impl Summary {
    /// Reads all of a digest: after it, the file is known to be whole.
    pub fn read(file: impl Read + Send + 'static) -> Result<Self, DigestError> {
        let mut reader = DigestReader::open(file)?;
        let mut sections = Vec::new();
        while let Some(section) = reader.next_section()? {
            sections.push(section);
        }
        Ok(Self { header: reader.header, sections })
    }
}

impl DigestReader {
    /// Reads the header.
    pub fn open(file: impl Read + Send + 'static) -> Result<Self, DigestError> {
        let mut file: Box<dyn Read + Send> = Box::new(file);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(cut)?;
        if magic != MAGIC {
            return Err(DigestError::Magic);
        }
        let mut decoder = zstd::Decoder::new(file)?;
        decoder.window_log_max(WINDOW_LOG)?;
        let mut input = Input { decoder, crc: 0 };
        if input.u8()? != HEADER {
            return Err(DigestError::Damaged("no header"));
        }
        let header = input.header()?;
        Ok(Self { input, header, section: None, next_offset: 0, batches: 0, tag: None, ended: false })
    }

    /// Goes to the next partition, past what is left of this one. `None` at the end, which was checked then.
    pub fn next_section(&mut self) -> Result<Option<Section>, DigestError> {
        while self.next_batch()?.is_some() {}
        if self.ended {
            return Ok(None);
        }
        let tag = self.tag()?;
        if tag == END {
            self.end()?;
            return Ok(None);
        }
        let topic = self.input.u32()?;
        let partition = self.input.i32()?;
        let offsets = self.input.i64()?..self.input.i64()?;
        let topic = usize::try_from(topic).ok().and_then(|topic| self.header.topics.get(topic));
        let Some(topic) = topic.map(|topic| Arc::clone(&topic.name)) else {
            return Err(DigestError::Damaged("a partition of no topic"));
        };
        if partition < 0 || offsets.start < 0 || offsets.start > offsets.end {
            return Err(DigestError::Damaged("a partition out of range"));
        }
        self.next_offset = 0;
        let section = Section { topic, partition, offsets };
        self.section = Some(section.clone());
        Ok(Some(section))
    }

    /// The partition's next batch; `None` at its end.
    pub(super) fn next_batch(&mut self) -> Result<Option<Entry>, DigestError> {
        if self.ended {
            return Ok(None);
        }
        let tag = self.tag()?;
        if tag != BATCH {
            self.tag = Some(tag);
            return Ok(None);
        }
        if self.section.is_none() {
            return Err(DigestError::Damaged("a batch of no partition"));
        }
        let entry = self.input.batch()?;
        if entry.base_offset < self.next_offset {
            return Err(DigestError::Damaged("batches out of order"));
        }
        self.next_offset = entry.next_offset();
        self.batches += 1;
        Ok(Some(entry))
    }

    /// The first byte of the next item: one of a partition's, a batch's or the end's.
    fn tag(&mut self) -> Result<u8, DigestError> {
        let tag = match self.tag.take() {
            Some(tag) => tag,
            None => self.input.u8()?,
        };
        if [PARTITION, BATCH, END].contains(&tag) { Ok(tag) } else { Err(DigestError::Damaged("an unknown item")) }
    }

    fn end(&mut self) -> Result<(), DigestError> {
        let batches = self.input.u64()?;
        let expected = self.input.crc;
        if self.input.u32()? != expected {
            return Err(DigestError::Damaged("wrong CRC"));
        }
        if batches != self.batches {
            return Err(DigestError::Damaged("wrong number of batches"));
        }
        if self.input.decoder.read(&mut [0])? != 0 {
            return Err(DigestError::Damaged("something follows its end"));
        }
        self.ended = true;
        Ok(())
    }
}

/// A stream of fields, checksummed.
struct Input {
    decoder: zstd::Decoder<'static, BufReader<Box<dyn Read + Send>>>,
    crc: u32,
}

impl Input {
    fn header(&mut self) -> Result<Header, DigestError> {
        let created_unix_seconds = self.u64()?;
        let (cluster_id, software) = (self.text()?, self.text()?);
        let count = self.u32()?;
        if count > MAX_TOPICS {
            return Err(DigestError::Damaged("too many topics"));
        }
        let mut topics = Vec::new();
        for _ in 0..count {
            let name = self.text()?.into();
            topics.push(DigestTopic { name, id: self.array()?, partitions: self.u32()? });
        }
        Ok(Header { created_unix_seconds, cluster_id, software, topics })
    }

    fn batch(&mut self) -> Result<Entry, DigestError> {
        let (base_offset, delta) = (self.i64()?, self.i32()?);
        let (canonical_crc, bytes, records) = (self.u32()?, self.u32()?, self.i32()?);
        let (producer_id, flags) = (self.i64()?, self.u8()?);
        let last_offset = base_offset.checked_add(i64::from(delta)).filter(|last| *last < i64::MAX);
        let Some(last_offset) = last_offset.filter(|_| base_offset >= 0 && delta >= 0 && records >= 0) else {
            return Err(DigestError::Damaged("a batch out of range"));
        };
        let kind = match (flags & CONTROL != 0, flags & ABORT != 0, flags & TRANSACTIONAL != 0) {
            (true, true, _) => Kind::Abort,
            (true, false, _) => Kind::Control,
            (false, _, true) => Kind::Transactional,
            (false, _, false) => Kind::Data,
        };
        let sound = flags & UNSOUND == 0;
        Ok(Entry { base_offset, last_offset, canonical_crc, bytes, records, producer_id, kind, sound, batch: None })
    }

    fn text(&mut self) -> Result<String, DigestError> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        if length > MAX_TEXT {
            return Err(DigestError::Damaged("a text that is too long"));
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        String::from_utf8(text).map_err(|_| DigestError::Damaged("a text that is none"))
    }

    fn u8(&mut self) -> Result<u8, DigestError> {
        self.array().map(u8::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, DigestError> {
        self.array().map(i32::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DigestError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, DigestError> {
        self.array().map(i64::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DigestError> {
        self.array().map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DigestError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DigestError> {
        self.decoder.read_exact(bytes).map_err(cut)?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }
}

fn cut(error: io::Error) -> DigestError {
    if error.kind() == io::ErrorKind::UnexpectedEof { DigestError::Cut } else { DigestError::File(error) }
}

#[cfg(test)]
#[path = "digest/digest_test.rs"]
mod tests;
