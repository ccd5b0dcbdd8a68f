//! The one raw log compare: two logs, batch for batch, as the brokers store them. Demo, tests and `verify` use it.
//!
//! Equal means: at the same offsets, the same canonical CRC and the same record section. Memory is bounded by one
//! answer of each side; partitions are compared one after another.

mod reader;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tombolo_proto::batch::{Batch, BatchError};

use crate::cluster::Cluster;
use crate::error::KafkaError;
use reader::Reader;

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
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { max_differences: 20, fetch_bytes: 1 << 20, patience: Duration::from_secs(30) }
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
}

impl Comparison {
    /// Whether no difference was found. Two empty logs are identical: look at `batches` too.
    pub fn is_identical(&self) -> bool {
        self.difference_count == 0
    }
}

/// One difference between two logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Topic at the source.
    pub source: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset at the source; for [`DifferenceKind::Extra`], in the mirror.
    pub offset: i64,
    /// What differs.
    pub kind: DifferenceKind,
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
    /// A batch of the source is not in the mirror.
    Missing,
    /// A batch of the mirror is not in the source.
    Extra,
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
        write!(f, "{}[{}]@{}: ", self.source, self.partition, self.offset)?;
        match &self.kind {
            DifferenceKind::Start { source, mirror } => {
                write!(f, "log starts differ: source {source}, mirror {mirror}")
            }
            DifferenceKind::End { source, mirror } => write!(f, "log ends differ: source {source}, mirror {mirror}"),
            DifferenceKind::Missing => write!(f, "missing in the mirror"),
            DifferenceKind::Extra => write!(f, "in the mirror only"),
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
        let mut source = Reader::new(source, &pair.source, pair.partition, options);
        let mut mirror = Reader::new(mirror, &pair.mirror, pair.partition, options);
        let (ours, theirs) = tokio::try_join!(source.extent(), mirror.extent())?;
        let mut merge = Merge { pair, options, found: &mut found };
        let range = merge.bounds(ours, theirs);
        source.seek(range.clone());
        mirror.seek(range);
        merge.run(&mut source, &mut mirror).await?;
    }
    Ok(found)
}

struct Merge<'a> {
    pair: &'a LogPair,
    options: CompareOptions,
    found: &'a mut Comparison,
}

/// Which log goes on after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Both,
    Source,
    Mirror,
}

impl Merge<'_> {
    /// What both logs have of the extent, and a difference for what only one has.
    fn bounds(&mut self, source: Range<i64>, mirror: Range<i64>) -> Range<i64> {
        let wanted = match &self.pair.extent {
            Extent::Whole => 0..i64::MAX,
            Extent::Offsets(range) => range.clone(),
        };
        let last = wanted.end.max(wanted.start);
        let within = |log: Range<i64>| log.start.clamp(wanted.start, last)..log.end.clamp(wanted.start, last);
        let (source, mirror) = (within(source), within(mirror));
        if source.start != mirror.start {
            self.note(source.start, DifferenceKind::Start { source: source.start, mirror: mirror.start });
        }
        if source.end != mirror.end {
            self.note(source.end, DifferenceKind::End { source: source.end, mirror: mirror.end });
        }
        source.start.max(mirror.start)..source.end.min(mirror.end)
    }

    async fn run(&mut self, source: &mut Reader<'_>, mirror: &mut Reader<'_>) -> Result<(), KafkaError> {
        loop {
            let at = (source.position(), mirror.position());
            let (ours, theirs) = tokio::try_join!(source.peek(), mirror.peek())?;
            let step = match (ours, theirs) {
                (None, None) => return Ok(()),
                (Some(Err(error)), _) => {
                    self.unreadable(at.0, Side::Source, *error);
                    return Ok(());
                }
                (_, Some(Err(error))) => {
                    self.unreadable(at.1, Side::Mirror, *error);
                    return Ok(());
                }
                (Some(Ok(ours)), None) => self.missing(ours),
                (None, Some(Ok(theirs))) => self.extra(theirs),
                (Some(Ok(ours)), Some(Ok(theirs))) => self.both(ours, theirs),
            };
            if step != Step::Mirror {
                source.pass();
            }
            if step != Step::Source {
                mirror.pass();
            }
        }
    }

    fn both(&mut self, ours: &Batch, theirs: &Batch) -> Step {
        for (side, batch) in [(Side::Source, ours), (Side::Mirror, theirs)] {
            if !batch.crc_is_valid() {
                self.note(batch.base_offset(), DifferenceKind::Corrupt { side });
            }
        }
        let (our_crc, their_crc) = (ours.canonical_crc(), theirs.canonical_crc());
        let same_bytes = our_crc == their_crc && ours.record_section() == theirs.record_section();
        let same_place = (ours.base_offset(), ours.last_offset()) == (theirs.base_offset(), theirs.last_offset());
        if same_bytes && same_place {
            self.found.batches += 1;
            self.found.records += u64::try_from(ours.record_count()).unwrap_or(0);
            self.found.bytes += ours.len() as u64;
            Step::Both
        } else if same_bytes {
            self.note(ours.base_offset(), DifferenceKind::Shifted { mirror: theirs.base_offset() });
            Step::Both
        } else if ours.base_offset() == theirs.base_offset() {
            let kind = DifferenceKind::Changed {
                source: (ours.last_offset(), our_crc),
                mirror: (theirs.last_offset(), their_crc),
            };
            self.note(ours.base_offset(), kind);
            Step::Both
        } else if ours.base_offset() < theirs.base_offset() {
            self.missing(ours)
        } else {
            self.extra(theirs)
        }
    }

    fn missing(&mut self, ours: &Batch) -> Step {
        self.note(ours.base_offset(), DifferenceKind::Missing);
        Step::Source
    }

    fn extra(&mut self, theirs: &Batch) -> Step {
        self.note(theirs.base_offset(), DifferenceKind::Extra);
        Step::Mirror
    }

    fn unreadable(&mut self, offset: i64, side: Side, error: BatchError) {
        self.note(offset, DifferenceKind::Unreadable { side, error });
    }

    fn note(&mut self, offset: i64, kind: DifferenceKind) {
        self.found.difference_count += 1;
        if self.found.differences.len() < self.options.max_differences {
            let (source, partition) = (Arc::clone(&self.pair.source), self.pair.partition);
            self.found.differences.push(Difference { source, partition, offset, kind });
        }
    }
}

#[cfg(test)]
#[path = "compare/compare_test.rs"]
mod tests;
