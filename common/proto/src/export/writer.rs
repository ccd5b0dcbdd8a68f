//! The writing half: cuts frames into data files and keeps the manifest meanwhile.

use bytes::Bytes;

use super::{
    ExportError, ExportFile, ExportRange, ExportTopic, FILE_BYTES, MAX_FILES, Manifest, VERSION, limit, out_of_place,
};
use crate::frame::{EncodedFrame, HEADER_BYTES, Packed};
use crate::id::{LinkName, MirrorId, Partition, TopicName};
use crate::wire::TopicConfig;

/// Who makes an export, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The link.
    pub link: LinkName,
    /// Seconds since 1970.
    pub created_unix_seconds: u64,
    /// Release, for people.
    pub software: String,
    /// The source cluster's id, empty where it is not known.
    pub source_cluster_id: String,
}

/// Bytes to be written next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Number of the data file; the one before is done when it grows.
    pub file: usize,
    /// What to append to it, in pieces.
    pub pieces: Vec<Bytes>,
}

/// Builds an export. Calls: [`ExportWriter::topic`], then for each of its partitions [`ExportWriter::frame`] with its
/// frames in order; the next topic; [`ExportWriter::finish`].
#[derive(Debug)]
pub struct ExportWriter {
    manifest: Manifest,
    /// Sizes of the data files begun.
    sizes: Vec<u64>,
    file_bytes: u64,
}

impl ExportWriter {
    /// An export without topics.
    pub fn new(origin: Origin) -> Self {
        Self::with_file_bytes(origin, FILE_BYTES)
    }

    /// With smaller data files than [`FILE_BYTES`].
    pub fn with_file_bytes(origin: Origin, file_bytes: u64) -> Self {
        let manifest = Manifest {
            version: VERSION,
            link: origin.link.as_str().to_owned(),
            created_unix_seconds: origin.created_unix_seconds,
            software: origin.software,
            source_cluster_id: origin.source_cluster_id,
            topics: Vec::new(),
            files: Vec::new(),
        };
        Self { manifest, sizes: Vec::new(), file_bytes: file_bytes.min(FILE_BYTES) }
    }

    /// Begins a topic, which must not have been there before; `partitions` as the source has them.
    pub fn topic(&mut self, name: &TopicName, topic_id: Option<[u8; 16]>, partitions: i32, configs: Vec<TopicConfig>) {
        self.manifest.topics.push(ExportTopic {
            name: name.as_str().to_owned(),
            topic_id: topic_id.map_or_else(Vec::new, |id| id.to_vec()),
            partitions,
            configs,
            ranges: Vec::new(),
        });
    }

    /// Takes the next frame of a partition of the topic begun last. It must join the one before; partitions come in order.
    pub fn frame(&mut self, partition: Partition, packed: &Packed) -> Result<Chunk, ExportError> {
        let bytes = (HEADER_BYTES + packed.body_bytes()) as u64;
        let fits = self.sizes.last().is_some_and(|size| size + bytes <= self.file_bytes);
        let position = if fits { self.sizes.last().copied().unwrap_or(0) } else { 0 };
        let file = if fits { self.sizes.len() - 1 } else { self.sizes.len() };
        limit("data files", file + 1, MAX_FILES)?;
        let index = self.manifest.topics.len().saturating_sub(1);
        let fresh = ExportRange {
            partition,
            first_offset: packed.first_offset,
            next_offset: packed.next_offset,
            file: u32::try_from(file).unwrap_or(u32::MAX),
            position,
            raw_bytes: packed.raw_bytes as u64,
        };
        if let Some(topic) = self.manifest.topics.last_mut() {
            match topic.ranges.last_mut() {
                Some(range) if range.partition == partition => {
                    if range.next_offset != packed.first_offset {
                        return Err(out_of_place(TopicName::new(&topic.name)?, &fresh));
                    }
                    range.next_offset = packed.next_offset;
                    range.raw_bytes += packed.raw_bytes as u64;
                }
                Some(_) | None => topic.ranges.push(fresh),
            }
        }
        if fits {
            if let Some(size) = self.sizes.last_mut() {
                *size += bytes;
            }
        } else {
            self.sizes.push(bytes);
        }
        let mirror = MirrorId(u32::try_from(index).unwrap_or(u32::MAX));
        let frame = EncodedFrame { mirror, run: 0, partition, packed: packed.clone() };
        Ok(Chunk { file, pieces: frame.encode() })
    }

    /// The manifest, given the SHA-256 of every data file. Checked: what is refused here would be at the import.
    pub fn finish(mut self, sha256: &[[u8; 32]]) -> Result<Manifest, ExportError> {
        self.manifest.files = self
            .sizes
            .iter()
            .enumerate()
            .map(|(at, &bytes)| ExportFile {
                bytes,
                sha256: sha256.get(at).map_or_else(Vec::new, |hash| hash.to_vec()),
            })
            .collect();
        self.manifest.check()?;
        Ok(self.manifest)
    }
}
