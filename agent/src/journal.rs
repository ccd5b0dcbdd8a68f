//! The journal: frames that the link does not take for now, on disk.
//!
//! Of each partition the journal holds one run of joined frames: `first < next`, and no offset between them is missing.
//! [`Journal::append`] is durable when it returns; whatever was appended before a power cut is there after it.
//!
//! | module | job |
//! |---|---|
//! | `segments` | [`SegmentJournal`]: a folder of redb files, the *segments*; `merge` copies survivors together, `readers` keeps a few files open |
//! | `index` | what the segments hold of each partition |
//! | `segment`, `schema` | one file: writing, reading; its tables and rows |
//! | `disk`, `gauge` | the folder; how much of a file is written |
//! | `store` | what redb's errors say about a file |
//! | `memory` | [`MemoryJournal`]: the contract without a disk, and with its failures to order, for the simulation |
//!
//! Must never: drop a frame whose end lies above the confirmed offset, unless it was told to discard it; answer a read
//! with a frame whose checksum does not hold; go on after a failed write.

#[cfg(test)]
mod crash_disk;
#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod damage_test;
mod disk;
mod gauge;
mod index;
mod memory;
mod schema;
mod segment;
mod segments;
#[cfg(test)]
mod size_test;
#[cfg(test)]
mod spec_test;
pub(crate) mod store;

use std::path::PathBuf;

pub use disk::{Disk, Folder, FolderFile};
pub use memory::MemoryJournal;
pub use segments::{Limits, SegmentJournal};

pub use tombolo_proto::edge::JournalRange;
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};

/// A frame to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalFrame {
    /// The source topic.
    pub topic: TopicName,
    /// Its id, where it is known. Frames of another id start a new run.
    pub topic_id: Option<[u8; 16]>,
    /// The partition.
    pub partition: Partition,
    /// Its batches, encoded.
    pub packed: Packed,
}

/// Offsets that damage has cost: to be fetched again where the source still has them. What was confirmed is not told
/// apart after a restart, so a range may begin below the confirmed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRange {
    /// The source topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: Partition,
    /// First offset lost.
    pub first: Offset,
    /// Offset after the last one lost, where it is known.
    pub next: Option<Offset>,
}

/// Figures of the whole journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of frames that are not confirmed: the sum over [`Journal::ranges`].
    pub frame_bytes: u64,
    /// Bytes of its files, those set aside as damaged included.
    pub file_bytes: u64,
    /// Most bytes its files may take.
    pub max_bytes: u64,
    /// Number of files in use.
    pub segments: usize,
    /// Bytes of frames written since it was opened, copies included.
    pub written_bytes: u64,
    /// Segments found damaged since it was opened.
    pub damaged_segments: u64,
}

/// Why the journal did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The frames would take it above its cap, or the disk is full: nothing was written, and it works on once there is room.
    #[error("the journal is full: {used} of {max} bytes{}", if *.disk { ", and the disk has no room" } else { "" })]
    Full {
        /// Bytes of its files.
        used: u64,
        /// Its cap.
        max: u64,
        /// The file system said so, not the cap.
        disk: bool,
    },
    /// A write or sync failed; the same cause is given until it is opened anew.
    #[error("the journal must be opened anew: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// A frame could not be read or its checksum does not hold. The file that held it is out of use; the call may be
    /// repeated and then answers for what is left.
    #[error("the journal is damaged: {cause}")]
    Damaged {
        /// What is wrong, and where.
        cause: String,
        /// What it costs.
        lost: Vec<LostRange>,
    },
    /// Another process has the folder open.
    #[error("another agent uses the journal: it has locked {}", .lock.display())]
    InUse {
        /// The file whose lock is taken.
        lock: PathBuf,
    },
    /// A newer release wrote a segment.
    #[error("journal file {file} has format {found}, this release reads up to {known}: run the release that wrote it")]
    Version {
        /// Name of the file.
        file: String,
        /// Its format.
        found: u64,
        /// The newest format this release knows.
        known: u64,
    },
    /// The folder cannot be read, or none of the files in it.
    #[error("the journal cannot be opened: {cause}")]
    Unusable {
        /// What the system said.
        cause: String,
    },
}

/// Frames on disk. Calls block; one owner.
///
/// What [`Journal::trim`] and [`Journal::discard`] were told need not outlive a restart: the owner tells it again from its
/// checkpoint. Until then a range may begin lower than before, and a discarded partition may be back.
pub trait Journal {
    /// Keeps frames, in this order, in one commit; durable when it returns. Frames of a partition are in offset order. An
    /// error means that none of them counts; after a failed write, they may yet be found when the journal is opened anew.
    fn append(&mut self, frames: &[JournalFrame]) -> Result<(), JournalError>;

    /// Frames of a partition, in order: first the one that holds `offset`, then those that join it, as many as have
    /// `max_bytes` of bodies in all; at least one where `offset` lies in the partition's range, none where it does not.
    fn read(
        &mut self,
        topic: &TopicName,
        partition: Partition,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Packed>, JournalError>;

    /// What lies below these offsets may go; gives space back where it can. Offsets that go back, and partitions that
    /// it does not hold, are ignored. Survivors may be copied together, in bounded steps; [`JournalError::Damaged`] where
    /// that met damage: what was told holds all the same.
    fn trim(&mut self, confirmed: &[(TopicName, Partition, Offset)]) -> Result<(), JournalError>;

    /// Forgets partitions, confirmed or not: their mirror is FAILED or gone.
    fn discard(&mut self, partitions: &[(TopicName, Partition)]) -> Result<(), JournalError>;

    /// What there is of each partition, ordered by topic and partition.
    fn ranges(&self) -> Vec<JournalRange>;

    /// The figures.
    fn usage(&self) -> Usage;
}
