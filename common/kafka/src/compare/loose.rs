//! Records one by one, where the batches of two logs are not cut alike: what was re-encoded, what a log begins within, and
//! what compaction has thinned on either side.
//!
//! A hole among a log's offsets is compaction's: brokers leave none. So a record that only the mirror has was mirrored before
//! the source's cleaner took it. One that only the source has, in a topic that is compacted, may have been taken by the
//! mirror's: see [`super::doubts`].
//! Memory: the checksums of one batch of each log.

use std::collections::VecDeque;

use super::entry::Entry;
use crate::records::RecordSum;

/// What both logs hold at offsets that were read of both only in part.
#[derive(Debug, Default)]
pub(super) struct Loose {
    ours: Stretch,
    theirs: Stretch,
}

/// One log's part.
#[derive(Debug, Default)]
struct Stretch {
    held: VecDeque<Held>,
    /// Offset after what was read.
    to: i64,
}

/// What stands at an offset.
#[derive(Debug, Clone, Copy)]
struct Held {
    offset: i64,
    /// `None` for a marker.
    record: Option<RecordSum>,
    /// Of the batch it is in.
    batch: Within,
}

/// A batch that a record is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Within {
    pub(super) base_offset: i64,
    pub(super) last_offset: i64,
    /// The producer, where it belongs to a transaction.
    pub(super) transaction: Option<i64>,
}

/// What is at one offset of the two logs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// The same record.
    Equal(RecordSum),
    /// A record of the source, by its checksum, and another one of the mirror.
    Different { source: u32, mirror: RecordSum },
    /// A record of the source where the mirror has a marker.
    Covered(Within),
    /// A record of the source where the mirror has nothing.
    OursOnly(RecordSum, Within),
    /// A record of the mirror where the source has nothing.
    TheirsOnly(RecordSum),
    /// A marker of the mirror where the source has nothing.
    Gap,
}

/// Which log is to be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    Source,
    Mirror,
}

impl Loose {
    /// Whether one log was read further than the other.
    pub(super) fn behind(&self) -> Option<Behind> {
        match self.ours.to.cmp(&self.theirs.to) {
            std::cmp::Ordering::Less => Some(Behind::Source),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Behind::Mirror),
        }
    }

    /// Whether a batch that begins there has to do with what the other log was read to.
    pub(super) fn reaches(&self, offset: i64) -> bool {
        offset < self.ours.to.max(self.theirs.to)
    }

    /// Begins at this offset, where both logs have been read to.
    pub(super) fn begin(&mut self, offset: i64) {
        self.ours.to = offset;
        self.theirs.to = offset;
    }

    /// Takes a batch in, from offset `from` on; false where its records cannot be read.
    pub(super) fn take(&mut self, side: Behind, entry: &Entry, from: i64, marker: bool) -> bool {
        let batch = Within {
            base_offset: entry.base_offset,
            last_offset: entry.last_offset,
            transaction: entry.is_transactional().then_some(entry.producer_id),
        };
        let stretch = match side {
            Behind::Source => &mut self.ours,
            Behind::Mirror => &mut self.theirs,
        };
        stretch.to = stretch.to.max(entry.next_offset());
        if entry.is_control() {
            if marker {
                let offsets = entry.base_offset.max(from)..entry.next_offset();
                stretch.held.extend(offsets.map(|offset| Held { offset, record: None, batch }));
            }
            return true;
        }
        let Some(sums) = entry.sums() else { return false };
        let held = |sum: RecordSum| Held { offset: sum.offset, record: Some(sum), batch };
        stretch.held.extend(sums.into_iter().filter(|sum| sum.offset >= from).map(held));
        true
    }

    /// A log has nothing up to where the other was read to.
    pub(super) fn pass(&mut self, side: Behind) {
        match side {
            Behind::Source => self.ours.to = self.theirs.to,
            Behind::Mirror => self.theirs.to = self.ours.to,
        }
    }

    /// The next offset that both logs were read beyond, and at which one of them has something.
    pub(super) fn meet(&mut self) -> Option<Meeting> {
        let both = self.ours.to.min(self.theirs.to);
        let offset = |stretch: &Stretch| stretch.held.front().map(|held| held.offset).filter(|at| *at < both);
        let (ours, theirs) = (offset(&self.ours), offset(&self.theirs));
        let at = ours.into_iter().chain(theirs).min()?;
        let ours = if ours == Some(at) { self.ours.held.pop_front() } else { None };
        let theirs = if theirs == Some(at) { self.theirs.held.pop_front() } else { None };
        // The source's markers are not taken in: all of its are records.
        let ours = ours.and_then(|held| held.record.map(|record| (record, held.batch)));
        Some(match (ours, theirs.map(|theirs| theirs.record)) {
            (Some((_, batch)), Some(None)) => Meeting::Covered(batch),
            (Some((record, batch)), None) => Meeting::OursOnly(record, batch),
            (None, Some(None) | None) => Meeting::Gap,
            (None, Some(Some(mirror))) => Meeting::TheirsOnly(mirror),
            (Some((source, _)), Some(Some(mirror))) if source.crc != mirror.crc => {
                Meeting::Different { source: source.crc, mirror }
            }
            (Some(_), Some(Some(mirror))) => Meeting::Equal(mirror),
        })
    }
}
