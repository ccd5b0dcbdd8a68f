//! An export: what a site's journal holds, in a folder that is carried to the cloud by hand.
//!
//! | file | what |
//! |---|---|
//! | `manifest.pb` | [`Manifest`]: what there is, with size and SHA-256 of every data file |
//! | `manifest.sig` | [`ManifestSignature`]: by the link's key over [`signed_bytes`] |
//! | `certificate.pem` | the link's certificate chain, leaf first |
//! | `frames-0.bin`, `frames-1.bin`, ... | frames as they go over the link, back to back |
//!
//! A frame's mirror is the index of its topic in the manifest, its run is 0, and it never crosses two files. Partitions
//! stand in the manifest's order, each in one piece: its frames join from its first offset to its next offset. So a reader
//! needs one place per partition and no index.
//!
//! Pure: bytes in, bytes out. Must never: believe a manifest that [`Manifest::decode_checked`] did not pass.

mod writer;

pub use writer::{Chunk, ExportWriter, Origin};

use std::collections::BTreeSet;

use crate::frame::{FrameError, FrameHeader};
use crate::id::{LinkName, NameError, Offset, Partition, TopicName};
use crate::limits::{MAX_CONFIGS, MAX_MIRRORS, MAX_PARTITIONS};
use crate::wire::TopicConfig;

/// File of the manifest.
pub const MANIFEST_FILE: &str = "manifest.pb";
/// File of its signature.
pub const SIGNATURE_FILE: &str = "manifest.sig";
/// File of the link's certificate chain.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// Version of the format that this build writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Largest data file in bytes: it ends before the frame that would take it above this. A frame of any size fits.
pub const FILE_BYTES: u64 = 256 << 20;
/// Most data files: 4 TiB.
pub const MAX_FILES: usize = 16_384;
/// Most partitions with frames.
const MAX_RANGES: usize = 200_000;
/// Largest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 64 << 20;
/// Largest signature file in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 4 << 10;
/// Largest certificate file in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 256 << 10;
/// What is signed begins with this, so that the link's key signs nothing here that means something elsewhere.
const SIGNATURE_CONTEXT: &[u8] = b"tombolo/1 export manifest\0";

/// Name of a data file.
pub fn data_file(number: usize) -> String {
    format!("frames-{number}.bin")
}

/// What the link's key signs.
pub fn signed_bytes(manifest: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, manifest].concat()
}

/// What an export holds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Manifest {
    /// [`VERSION`]; field numbers are never used twice.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Name of the link.
    #[prost(string, tag = "2")]
    pub link: String,
    /// When it was made, in seconds since 1970, by the site's clock.
    #[prost(uint64, tag = "3")]
    pub created_unix_seconds: u64,
    /// Release that made it, for people.
    #[prost(string, tag = "4")]
    pub software: String,
    /// The source cluster's id, empty where it is not known.
    #[prost(string, tag = "5")]
    pub source_cluster_id: String,
    /// The topics; frames name them by index.
    #[prost(message, repeated, tag = "6")]
    pub topics: Vec<ExportTopic>,
    /// The data files, in order.
    #[prost(message, repeated, tag = "7")]
    pub files: Vec<ExportFile>,
}

/// A source topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExportTopic {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its id (16 bytes), empty where it is not known.
    #[prost(bytes = "vec", tag = "2")]
    pub topic_id: Vec<u8>,
    /// Number of its partitions at the source.
    #[prost(int32, tag = "3")]
    pub partitions: i32,
    /// Its configs that are not the default.
    #[prost(message, repeated, tag = "4")]
    pub configs: Vec<TopicConfig>,
    /// The partitions that have frames here, in order.
    #[prost(message, repeated, tag = "5")]
    pub ranges: Vec<ExportRange>,
}

/// What there is of a partition.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ExportRange {
    /// The partition.
    #[prost(int32, tag = "1")]
    pub partition: Partition,
    /// First offset.
    #[prost(int64, tag = "2")]
    pub first_offset: Offset,
    /// Offset after the last.
    #[prost(int64, tag = "3")]
    pub next_offset: Offset,
    /// Data file that its first frame is in.
    #[prost(uint32, tag = "4")]
    pub file: u32,
    /// Where the frame begins in it.
    #[prost(uint64, tag = "5")]
    pub position: u64,
    /// Bytes of its frames, decompressed.
    #[prost(uint64, tag = "6")]
    pub raw_bytes: u64,
}

/// A data file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExportFile {
    /// Its size in bytes.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Its SHA-256.
    #[prost(bytes = "vec", tag = "2")]
    pub sha256: Vec<u8>,
}

/// The signature of a manifest.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ManifestSignature {
    /// TLS `SignatureScheme` (RFC 8446, 4.2.3).
    #[prost(uint32, tag = "1")]
    pub scheme: u32,
    /// The signature.
    #[prost(bytes = "vec", tag = "2")]
    pub signature: Vec<u8>,
}

/// Why bytes are no export, or something is none that can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Not protobuf, or not of this message.
    #[error("malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Made by a later release.
    #[error("the export has format version {found}, this release reads up to {VERSION}: update the gateway")]
    Version {
        /// Its version.
        found: u32,
    },
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A count is above its limit.
    #[error("{count} {what}, allowed are {allowed}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        allowed: usize,
    },
    /// A topic that is there twice, or whose partition count or id is out of range.
    #[error("topic {topic} is there twice, or its partition count or id is out of range")]
    Topic {
        /// The topic.
        topic: TopicName,
    },
    /// A range that is out of order, empty, or of no partition of the topic, or begins in no data file.
    #[error("range of {topic}[{partition}]: offsets {first} to {next} from byte {position} of file {file}")]
    Range {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// First offset.
        first: Offset,
        /// Offset after the last.
        next: Offset,
        /// The data file.
        file: u32,
        /// The place in it.
        position: u64,
    },
    /// A data file that is empty, too large or without a hash.
    #[error("data file {number}: {bytes} bytes, hash of {hash_bytes} bytes")]
    File {
        /// Its number.
        number: usize,
        /// Its size.
        bytes: u64,
        /// Size of its hash.
        hash_bytes: usize,
    },
    /// A frame whose bytes are wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that does not stand where it should.
    #[error(
        "a frame of topic {found_topic} partition {found_partition} at offset {found_offset} where topic {topic} partition \
         {partition} goes on at offset {offset}"
    )]
    Misplaced {
        /// Index of the topic that is read.
        topic: u32,
        /// Partition that is read.
        partition: Partition,
        /// Offset at which it goes on.
        offset: Offset,
        /// Index of the frame's topic.
        found_topic: u32,
        /// The frame's partition.
        found_partition: Partition,
        /// The frame's first offset.
        found_offset: Offset,
    },
}

impl Manifest {
    /// Reads a manifest and checks every count, name and range in it. `bytes` are at most [`MAX_MANIFEST_BYTES`].
    pub fn decode_checked(bytes: &[u8]) -> Result<Self, ExportError> {
        limit("manifest bytes", bytes.len(), MAX_MANIFEST_BYTES)?;
        let manifest = <Self as prost::Message>::decode(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The link that made it.
    pub fn link_name(&self) -> Result<LinkName, ExportError> {
        Ok(LinkName::new(&self.link)?)
    }

    /// Checks what a reader relies on.
    pub fn check(&self) -> Result<(), ExportError> {
        // Version 0 is what protobuf reads from nothing at all.
        if self.version == 0 || self.version > VERSION {
            return Err(ExportError::Version { found: self.version });
        }
        self.link_name()?;
        limit("topics", self.topics.len(), MAX_MIRRORS)?;
        limit("data files", self.files.len(), MAX_FILES)?;
        for (number, file) in self.files.iter().enumerate() {
            if file.bytes == 0 || file.bytes > FILE_BYTES || file.sha256.len() != 32 {
                return Err(ExportError::File { number, bytes: file.bytes, hash_bytes: file.sha256.len() });
            }
        }
        limit("partitions", self.topics.iter().map(|topic| topic.ranges.len()).sum(), MAX_RANGES)?;
        let mut names = BTreeSet::new();
        let mut place = (0, 0);
        for topic in &self.topics {
            let name = TopicName::new(&topic.name)?;
            limit("configs", topic.configs.len(), MAX_CONFIGS)?;
            let id_fits = [0, 16].contains(&topic.topic_id.len());
            if !id_fits || !(1..=MAX_PARTITIONS).contains(&topic.partitions) || !names.insert(name.clone()) {
                return Err(ExportError::Topic { topic: name });
            }
            let mut least = 0;
            for range in &topic.ranges {
                if !(least..topic.partitions).contains(&range.partition) || !self.fits(range, place) {
                    return Err(out_of_place(name, range));
                }
                least = range.partition + 1;
                place = (range.file, range.position + 1);
            }
        }
        Ok(())
    }

    /// Whether a range has offsets, and a place not before `place`.
    fn fits(&self, range: &ExportRange, place: (u32, u64)) -> bool {
        let file = self.files.get(range.file as usize);
        0 <= range.first_offset
            && range.first_offset < range.next_offset
            && (range.file, range.position) >= place
            && file.is_some_and(|file| range.position < file.bytes)
    }
}

fn out_of_place(topic: TopicName, range: &ExportRange) -> ExportError {
    let &ExportRange { partition, first_offset: first, next_offset: next, file, position, .. } = range;
    ExportError::Range { topic, partition, first, next, file, position }
}

fn limit(what: &'static str, count: usize, allowed: usize) -> Result<(), ExportError> {
    if count > allowed { Err(ExportError::TooMany { what, count, allowed }) } else { Ok(()) }
}

/// Checks that a frame is the next one of a partition: of the topic with this index, and going on at `offset` without
/// leaving the range.
pub fn check_frame(header: &FrameHeader, topic: u32, range: &ExportRange, offset: Offset) -> Result<(), ExportError> {
    let joins = header.first_offset == offset && header.next_offset <= range.next_offset;
    if header.mirror.0 == topic && header.run == 0 && header.partition == range.partition && joins {
        return Ok(());
    }
    Err(ExportError::Misplaced {
        topic,
        partition: range.partition,
        offset,
        found_topic: header.mirror.0,
        found_partition: header.partition,
        found_offset: header.first_offset,
    })
}

#[cfg(test)]
#[path = "export/export_test.rs"]
mod tests;
