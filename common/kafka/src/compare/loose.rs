//! Records one by one, where the batches of two logs are not cut alike: what was re-encoded, what a log begins within, and
//! what compaction has thinned on either side.
//!
//! A hole among a log's offsets is compaction's: brokers leave none. So a record that only the mirror has was mirrored before
//! the source's cleaner took it. One that only the source has, in a topic that is compacted, may have been taken by the
//! mirror's: see [`super::doubts`].
//! Memory: a record of each batch at hand, which is one of each log, or few.

use std::collections::VecDeque;
use std::ops::Range;

use super::entry::Entry;
use crate::records::{RecordSum, RecordSums};

/// What both logs hold at offsets that were read of both only in part.
#[derive(Debug, Default)]
pub(super) struct Loose {
    ours: Stretch,
    theirs: Stretch,
}

/// One log's part.
#[derive(Debug, Default)]
struct Stretch {
    batches: VecDeque<(Content, Within)>,
    /// The first of what the batches hold.
    head: Option<Held>,
    /// Offset after what was read.
    to: i64,
}

/// What a batch holds from where a log begins.
#[derive(Debug)]
enum Content {
    Records { sums: Box<RecordSums>, from: i64 },
    Markers(Range<i64>),
}

/// What stands at an offset.
#[derive(Debug, Clone, Copy)]
struct Held {
    offset: i64,
    what: What,
    /// Of the batch it is in.
    batch: Within,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Record(RecordSum),
    Marker,
    /// The rest of the batch cannot be read.
    Unreadable,
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
    /// A batch that cannot be read from here on.
    Unreadable(Behind, Within),
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
                stretch.batches.push_back((Content::Markers(offsets), batch));
            }
            return true;
        }
        let Some(sums) = entry.sums() else { return false };
        let from = from.max(entry.base_offset);
        stretch.batches.push_back((Content::Records { sums: Box::new(sums), from }, batch));
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
        let offset = |stretch: &mut Stretch| stretch.peek().map(|held| held.offset).filter(|at| *at < both);
        let (ours, theirs) = (offset(&mut self.ours), offset(&mut self.theirs));
        let at = ours.into_iter().chain(theirs).min()?;
        for (of, stretch) in [(Behind::Source, &mut self.ours), (Behind::Mirror, &mut self.theirs)] {
            if let Some(held) = stretch.head.take_if(|head| head.offset == at && matches!(head.what, What::Unreadable))
            {
                return Some(Meeting::Unreadable(of, held.batch));
            }
        }
        let take = |stretch: &mut Stretch| stretch.head.take_if(|head| head.offset == at);
        let record = |held: Held| match held.what {
            What::Record(sum) => Some((sum, held.batch)),
            What::Marker | What::Unreadable => None,
        };
        // The source's markers are not taken in: all of its are records.
        let ours = take(&mut self.ours).and_then(record);
        let theirs = take(&mut self.theirs).map(record);
        Some(match (ours, theirs.map(|theirs| theirs.map(|(sum, _)| sum))) {
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

impl Stretch {
    /// The first of what is held, which is read from its batch here.
    fn peek(&mut self) -> Option<&Held> {
        while self.head.is_none() {
            let (content, batch) = self.batches.front_mut()?;
            self.head = content.next(batch.last_offset).map(|(offset, what)| Held { offset, what, batch: *batch });
            if self.head.is_none() {
                self.batches.pop_front();
            }
        }
        self.head.as_ref()
    }
}

impl Content {
    fn next(&mut self, last_offset: i64) -> Option<(i64, What)> {
        match self {
            Self::Markers(offsets) => offsets.next().map(|offset| (offset, What::Marker)),
            Self::Records { sums, from } => {
                let first = *from;
                let next = sums.find(|sum| sum.as_ref().map_or(true, |sum| sum.offset >= first))?;
                // An error stands where the batch was read to.
                *from = next.as_ref().map_or(first, |sum| sum.offset + 1);
                Some(match next {
                    Ok(sum) => (sum.offset, What::Record(sum)),
                    Err(_) => (first.min(last_offset), What::Unreadable),
                })
            }
        }
    }
}
