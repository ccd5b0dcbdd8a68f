//! Writes a digest, batch after batch.

use std::io::Write;
use std::sync::Arc;

use super::{
    ABORT, BATCH, CONTROL, DigestError, END, HEADER, Header, MAGIC, MAX_TEXT, PARTITION, Section, TRANSACTIONAL,
    UNSOUND,
};
use crate::cluster::Cluster;
use crate::compare::entry::{Entry, Kind};
use crate::compare::reader::Reader;
use crate::compare::{CompareOptions, Passed};

/// zstd's default: CRCs do not compress, and the rest does well at any level.
const LEVEL: i32 = 3;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Partitions.
    pub partitions: u64,
    /// Batches.
    pub batches: u64,
    /// Bytes of the batches.
    pub bytes: u64,
}

/// A digest that is being written. Without [`DigestWriter::finish`] the file is taken for one that was cut.
pub struct DigestWriter<W: Write> {
    encoder: zstd::Encoder<'static, W>,
    topics: Vec<Arc<str>>,
    crc: u32,
    totals: Totals,
}

impl<W: Write> std::fmt::Debug for DigestWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestWriter").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl<W: Write> DigestWriter<W> {
    /// Writes the header.
    pub fn create(mut out: W, header: &Header) -> Result<Self, DigestError> {
        out.write_all(&MAGIC)?;
        let encoder = zstd::Encoder::new(out, LEVEL)?;
        let topics = header.topics.iter().map(|topic| Arc::clone(&topic.name)).collect();
        let mut writer = Self { encoder, topics, crc: 0, totals: Totals::default() };
        writer.put(&[HEADER])?;
        writer.put(&header.created_unix_seconds.to_be_bytes())?;
        writer.text(&header.cluster_id)?;
        writer.text(&header.software)?;
        let count = u32::try_from(header.topics.len()).map_err(|_| DigestError::TooLong("the list of topics"))?;
        writer.put(&count.to_be_bytes())?;
        for topic in &header.topics {
            writer.text(&topic.name)?;
            writer.put(&topic.id)?;
            writer.put(&topic.partitions.to_be_bytes())?;
        }
        Ok(writer)
    }

    /// Begins a partition of one of the header's topics.
    pub fn section(&mut self, section: &Section) -> Result<(), DigestError> {
        let topic = self.topics.iter().position(|topic| *topic == section.topic);
        let Some(topic) = topic.and_then(|topic| u32::try_from(topic).ok()) else {
            return Err(DigestError::Damaged("a partition of no topic"));
        };
        self.totals.partitions += 1;
        self.put(&[PARTITION])?;
        self.put(&topic.to_be_bytes())?;
        self.put(&section.partition.to_be_bytes())?;
        self.put(&section.offsets.start.to_be_bytes())?;
        self.put(&section.offsets.end.to_be_bytes())
    }

    pub(in crate::compare) fn batch(&mut self, entry: &Entry) -> Result<(), DigestError> {
        let kind = match entry.kind {
            Kind::Data => 0,
            Kind::Transactional => TRANSACTIONAL,
            Kind::Abort => CONTROL | ABORT,
            Kind::Control => CONTROL,
        };
        let flags = kind | if entry.sound { 0 } else { UNSOUND };
        // Deltas fit: a batch's field has this size.
        let delta = i32::try_from(entry.last_offset - entry.base_offset).unwrap_or(i32::MAX);
        self.totals.batches += 1;
        self.totals.bytes += u64::from(entry.bytes);
        self.put(&[BATCH])?;
        self.put(&entry.base_offset.to_be_bytes())?;
        self.put(&delta.to_be_bytes())?;
        self.put(&entry.canonical_crc.to_be_bytes())?;
        self.put(&entry.bytes.to_be_bytes())?;
        self.put(&entry.records.to_be_bytes())?;
        self.put(&entry.producer_id.to_be_bytes())?;
        self.put(&[flags])
    }

    /// Writes the end. What the file system still holds back is the caller's to sync.
    pub fn finish(mut self) -> Result<(W, Totals), DigestError> {
        self.put(&[END])?;
        let batches = self.totals.batches;
        self.put(&batches.to_be_bytes())?;
        let crc = self.crc;
        self.put(&crc.to_be_bytes())?;
        Ok((self.encoder.finish()?, self.totals))
    }

    fn text(&mut self, text: &str) -> Result<(), DigestError> {
        let length = u16::try_from(text.len()).ok().filter(|length| usize::from(*length) <= MAX_TEXT);
        let length = length.ok_or(DigestError::TooLong("a name"))?;
        self.put(&length.to_be_bytes())?;
        self.put(text.as_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DigestError> {
        self.encoder.write_all(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }
}

/// Digests one partition, from its log start to the high watermark that it has now.
pub async fn write_log<W: Write + Send>(
    digest: &mut DigestWriter<W>,
    cluster: &Cluster,
    topic: &Arc<str>,
    partition: i32,
    options: CompareOptions,
    passed: Passed<'_>,
) -> Result<(), DigestError> {
    let mut reader = Reader::new(cluster, topic, partition, options);
    let offsets = reader.extent().await?;
    let mut told = offsets.start;
    let log_start = offsets.start;
    reader.seek(offsets.clone());
    digest.section(&Section { topic: Arc::clone(topic), partition, offsets })?;
    while let Some(entry) = reader.peek().await? {
        match entry {
            Ok(entry) => {
                for mirrored in entry.mirrored(log_start) {
                    digest.batch(&mirrored)?;
                }
            }
            Err(error) => return Err(DigestError::Log { topic: Arc::clone(topic), partition, error }),
        }
        reader.pass();
        passed(u64::try_from(reader.position() - told).unwrap_or(0));
        told = reader.position();
    }
    Ok(())
}
