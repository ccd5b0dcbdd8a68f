//! The one raw log compare: two logs, batch for batch, as the brokers store them. Demo, tests and `verify` use it.
//!
//! Equal means: at the same offsets, the same canonical CRC and the same record section; the same records, where batches are
//! not cut alike: re-encoded ones, and what compaction and the start of a log leave of others. In place of the source's log a
//! [`digest`] of it does: its canonical CRCs, without the records. Memory is bounded by one answer of each side.

pub mod digest;
mod doubts;
mod entry;
mod loose;
mod merge;
mod original;
mod reader;
mod survey;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tombolo_proto::batch::BatchError;

use crate::cluster::Cluster;
use crate::error::KafkaError;
use digest::{DigestError, DigestReader, Section};
use merge::Merge;
use original::Original;
use reader::Reader;

pub use survey::Survey;

/// Two partitions that should hold the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPair {
    /// Topic at the source.
    pub source: Arc<str>,
    /// Topic in the cloud.
    pub mirror: Arc<str>,
    /// Partition of both.
    pub partition: i32,
    /// What to compare.
    pub extent: Extent,
}

/// Part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// All of both, from the log starts to the high watermarks.
    Whole,
    /// The batches that hold these offsets, as far as the logs have them.
    Offsets(Range<i64>),
    /// The batches that hold these offsets, in ascending order; log starts and high watermarks as in `Whole`.
    Windows(Vec<Range<i64>>),
}

/// Limits of a compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompareOptions {
    /// Differences to list; the others are only counted.
    pub max_differences: usize,
    /// Bytes of one answer; one batch larger than that still comes whole. Twice this is held in memory.
    pub fetch_bytes: i32,
    /// How long a log may give no batch (leader lost, broker down) before the compare fails.
    pub patience: Duration,
    /// Producer id of the mirror's only writer, where it is known. Its control batches are gaps then, which stand where
    /// the source holds nothing that a consumer sees; what others wrote is told as such.
    pub writer: Option<i64>,
    /// Whether the topic is compacted: the mirror's cleaner may have taken records that the source still has, where it
    /// has a later one of the same key.
    pub compacted: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            max_differences: 20,
            fetch_bytes: 1 << 20,
            patience: Duration::from_secs(30),
            writer: None,
            compacted: false,
        }
    }
}

/// What a compare found.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Batches found equal.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The first differences.
    pub differences: Vec<Difference>,
    /// How many differences there are, listed or not.
    pub difference_count: u64,
    /// How many of them are only that a log begins or ends elsewhere: [`Difference::is_extent`].
    pub extent_count: u64,
    /// How many of them are batches that somebody else wrote into the mirror.
    pub foreign_count: u64,
    /// Batches of the source that were compared record by record: re-encoded, thinned, or cut by the start of a log.
    pub remade: u64,
    /// Records that compaction took from the source after they were mirrored, and from the mirror. No difference.
    pub cleaned: [u64; 2],
    /// Records that only the source has, of which it was not found out whether the mirror's cleaner took them: more than
    /// are remembered, or only windows were read. The first are differences too.
    pub undecided: u64,
    /// Offsets that are gaps in the mirror and hold nothing that a consumer sees at the source. No difference.
    pub gaps: u64,
    /// What was read of the source, and of the mirror.
    pub reads: [Reads; 2],
}

/// What was read of one log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// Bytes of answers.
    pub bytes: u64,
    /// Time until they had come.
    pub waited: Duration,
}

impl Comparison {
    /// Whether no difference was found. Two empty logs are identical: look at `batches` too.
    pub fn is_identical(&self) -> bool {
        self.difference_count == 0
    }

    /// Adds what was found elsewhere; lists at most `max_differences`.
    pub fn add(&mut self, other: Self, max_differences: usize) {
        self.batches += other.batches;
        self.records += other.records;
        self.bytes += other.bytes;
        let room = max_differences.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.into_iter().take(room));
        self.difference_count += other.difference_count;
        self.extent_count += other.extent_count;
        self.foreign_count += other.foreign_count;
        self.gaps += other.gaps;
        self.undecided += other.undecided;
        self.remade += other.remade;
        for (cleaned, more) in self.cleaned.iter_mut().zip(other.cleaned) {
            *cleaned += more;
        }
        for (reads, more) in self.reads.iter_mut().zip(other.reads) {
            reads.bytes += more.bytes;
            reads.waited += more.waited;
        }
    }
}

/// One difference between two logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Topic at the source.
    pub source: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset at the source; for [`DifferenceKind::Extra`] and [`DifferenceKind::Foreign`], in the mirror.
    pub offset: i64,
    /// What differs.
    pub kind: DifferenceKind,
}

impl Difference {
    /// What differs, without the place.
    pub fn what(&self) -> impl fmt::Display + '_ {
        What(self)
    }

    /// Whether the logs may still hold the same where both have something: the mirror is behind its source, or they
    /// begin at different offsets, as retention leaves them.
    pub fn is_extent(&self) -> bool {
        match self.kind {
            DifferenceKind::Start { .. } => true,
            DifferenceKind::End { source, mirror } => mirror < source,
            DifferenceKind::Missing
            | DifferenceKind::Extra
            | DifferenceKind::Foreign { .. }
            | DifferenceKind::Undecided { .. }
            | DifferenceKind::Covered { .. }
            | DifferenceKind::Changed { .. }
            | DifferenceKind::Shifted { .. }
            | DifferenceKind::Corrupt { .. }
            | DifferenceKind::Unreadable { .. } => false,
        }
    }
}

/// Kinds of differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The logs, or what they have of the extent, begin at different offsets.
    Start {
        /// Log start at the source.
        source: i64,
        /// Log start of the mirror.
        mirror: i64,
    },
    /// The logs, or what they have of the extent, end at different offsets.
    End {
        /// High watermark of the source.
        source: i64,
        /// High watermark of the mirror.
        mirror: i64,
    },
    /// A batch of the source is not in the mirror, or a record that no cleaner took.
    Missing,
    /// Records from here on are not in the mirror, and they are too many to tell which of them its cleaner took.
    Undecided {
        /// How many.
        records: u64,
    },
    /// A batch of the mirror is not in the source.
    Extra,
    /// A batch of the mirror that is not in the source, and whose producer is not the mirror's writer.
    Foreign {
        /// Its last offset.
        last: i64,
        /// Its producer id, -1 for a plain producer.
        producer_id: i64,
    },
    /// A gap of the mirror stands where the source holds records.
    Covered {
        /// Last offset of the source's batch.
        last: i64,
    },
    /// Other bytes, or another last offset, at the same base offset.
    Changed {
        /// Last offset and canonical CRC at the source.
        source: (i64, u32),
        /// Last offset and canonical CRC in the mirror.
        mirror: (i64, u32),
    },
    /// The same batch at another offset.
    Shifted {
        /// Its base offset in the mirror.
        mirror: i64,
    },
    /// A batch whose CRC is wrong as the broker serves it.
    Corrupt {
        /// Whose log.
        side: Side,
    },
    /// Bytes that are no batch of format v2; the rest of the partition was not compared.
    Unreadable {
        /// Whose log.
        side: Side,
        /// Why.
        error: BatchError,
    },
}

/// One of the two logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source's.
    Source,
    /// The mirror's.
    Mirror,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}: {}", self.source, self.partition, self.offset, self.what())
    }
}

/// See [`Difference::what`].
struct What<'a>(&'a Difference);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.0.offset;
        match &self.0.kind {
            DifferenceKind::Start { source, mirror } => {
                write!(f, "log starts differ: source {source}, mirror {mirror}")
            }
            DifferenceKind::End { source, mirror } => write!(f, "log ends differ: source {source}, mirror {mirror}"),
            DifferenceKind::Missing => write!(f, "missing in the mirror"),
            DifferenceKind::Undecided { records } => write!(
                f,
                "undecided: {records} records from here on are not in the mirror, too many to tell whether its cleaner took \
                 them; compare less at a time (--from, --to)"
            ),
            DifferenceKind::Extra => write!(f, "in the mirror only"),
            DifferenceKind::Foreign { last, producer_id } => {
                write!(f, "offsets {offset} to {last} were written by producer id {producer_id}")
            }
            DifferenceKind::Covered { last } => {
                write!(f, "the mirror has a gap among offsets {offset} to {last}, which hold records")
            }
            DifferenceKind::Changed { source, mirror } => write!(
                f,
                "batches differ: source to {} with CRC {:08x}, mirror to {} with CRC {:08x}",
                source.0, source.1, mirror.0, mirror.1
            ),
            DifferenceKind::Shifted { mirror } => write!(f, "the same batch stands at {mirror} in the mirror"),
            DifferenceKind::Corrupt { side } => write!(f, "wrong CRC in the {side} log"),
            DifferenceKind::Unreadable { side, error } => write!(f, "the {side} log cannot be read: {error}"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Mirror => "mirror",
        })
    }
}

/// Told how many more offsets a compare has left behind.
pub type Passed<'a> = &'a (dyn Fn(u64) + Sync);

/// Reads both logs of every pair and compares them. `Err` only where a log cannot be reached; whatever is found in the
/// logs is in the result. Logs that grow meanwhile are compared up to where they ended at the beginning.
pub async fn compare(
    source: &Cluster,
    mirror: &Cluster,
    pairs: &[LogPair],
    options: CompareOptions,
) -> Result<Comparison, KafkaError> {
    let mut found = Comparison::default();
    for pair in pairs {
        found.add(compare_pair(source, mirror, pair, options, &|_| ()).await?, options.max_differences);
    }
    Ok(found)
}

/// As [`compare`], of one pair, telling how far it is.
pub async fn compare_pair(
    source: &Cluster,
    mirror: &Cluster,
    pair: &LogPair,
    options: CompareOptions,
    passed: Passed<'_>,
) -> Result<Comparison, KafkaError> {
    let mut source = Reader::new(source, &pair.source, pair.partition, options);
    let mut mirror = Reader::new(mirror, &pair.mirror, pair.partition, options);
    // The mirror's end first: a mirror that keeps up is never longer than its source then.
    let theirs = mirror.extent().await?;
    let ours = source.extent().await?;
    let merge = Merge::new(pair, options, passed);
    merge.compare(Original::Log(source), ours, mirror, theirs).await.map_err(|error| match error {
        CompareError::Kafka(error) => error,
        CompareError::Digest(error) => unreachable!("a log is read, no digest: {error}"),
    })
}

/// Why a mirror could not be compared with a digest.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The mirror cannot be read.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The digest cannot be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// As [`compare_pair`], with the partition that the digest has come to. What the mirror has beyond the end that the
/// source had then is not looked at.
pub async fn compare_digest(
    digest: &mut DigestReader,
    section: &Section,
    mirror: &Cluster,
    pair: &LogPair,
    options: CompareOptions,
    passed: Passed<'_>,
) -> Result<Comparison, CompareError> {
    let mut mirror = Reader::new(mirror, &pair.mirror, pair.partition, options);
    let theirs = mirror.extent().await?;
    let ours = section.offsets.clone();
    Merge::new(pair, options, passed).compare(Original::digest(digest), ours, mirror, theirs).await
}

/// Log start and high watermark of a partition.
pub async fn extent(
    cluster: &Cluster,
    topic: &Arc<str>,
    partition: i32,
    options: CompareOptions,
) -> Result<Range<i64>, KafkaError> {
    Reader::new(cluster, topic, partition, options).extent().await
}

#[cfg(test)]
#[path = "compare/compare_test.rs"]
mod tests;
