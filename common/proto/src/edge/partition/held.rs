//! What a partition keeps in memory, sent or not.

use crate::frame::Entry;
use crate::id::{Offset, Time};
use crate::wire::TailBatch;

/// An entry that was fetched and is neither confirmed nor in the journal.
#[derive(Debug)]
pub(super) struct Held {
    entry: Entry,
    /// Canonical CRC; 0 of a gap.
    crc: u32,
    /// Leader epoch of the record before its end at the source; -1 where it is not known.
    epoch: i32,
    pub(super) since: Time,
}

impl Held {
    pub(super) fn new(entry: Entry, epoch: i32, since: Time) -> Self {
        let crc = if let Entry::Batch(batch) = &entry { batch.canonical_crc() } else { 0 };
        Self { entry, crc, epoch, since }
    }

    pub(super) fn first(&self) -> Offset {
        self.entry.offset()
    }

    pub(super) fn next(&self) -> Offset {
        self.entry.next_offset()
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether a mirror that ends at `offset` can go on with it.
    pub(super) fn goes_on_at(&self, offset: Offset) -> bool {
        match self.entry {
            Entry::Batch(_) => self.first() == offset,
            Entry::Gap { .. } => (self.first()..self.next()).contains(&offset),
        }
    }

    /// What a frame that begins at `offset`, or after it, has of it.
    pub(super) fn entry_from(&self, offset: Offset) -> Entry {
        match self.entry {
            Entry::Gap { .. } if self.first() < offset => Entry::Gap { offset, count: self.next() - offset },
            Entry::Gap { .. } | Entry::Batch(_) => self.entry.clone(),
        }
    }

    /// Takes away the part of a gap that lies below `offset`, which lies within it.
    pub(super) fn clip(&mut self, offset: Offset) -> Option<TailBatch> {
        let (first, next) = (self.first(), self.next());
        let Entry::Gap { .. } = self.entry else { return None };
        (first < offset && offset < next).then(|| {
            self.entry = Entry::Gap { offset, count: next - offset };
            TailBatch::gap(first, offset)
        })
    }

    /// Makes a gap longer by one that follows it; false where the two are not gaps side by side.
    pub(super) fn extend(&mut self, more: &Entry, epoch: i32) -> bool {
        let next = self.next();
        match (&mut self.entry, more) {
            (Entry::Gap { count, .. }, Entry::Gap { offset, count: more }) if next == *offset => {
                *count += more;
                self.epoch = epoch;
                true
            }
            (Entry::Gap { .. } | Entry::Batch(_), Entry::Gap { .. } | Entry::Batch(_)) => false,
        }
    }

    pub(super) fn tail(&self) -> TailBatch {
        match self.entry {
            Entry::Batch(_) => {
                TailBatch { base_offset: self.first(), last_offset: self.next() - 1, crc: self.crc, gap: false }
            }
            Entry::Gap { .. } => TailBatch::gap(self.first(), self.next()),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.entry.bytes()
    }

    /// Leader epoch of the record before [`Held::next`] at the source; -1 where it is not known.
    pub(super) fn epoch(&self) -> i32 {
        self.epoch
    }

    /// Timestamp that the records' deltas count from.
    pub(super) fn timestamp(&self) -> Option<i64> {
        if let Entry::Batch(batch) = &self.entry { Some(batch.base_timestamp()) } else { None }
    }
}

/// Something that was sent in this session.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) offset: Offset,
    pub(super) next_offset: Offset,
    pub(super) credit: usize,
    pub(super) epoch: i32,
    pub(super) what: SentWhat,
}

#[derive(Debug)]
pub(super) enum SentWhat {
    /// Kept until it is confirmed or in the journal.
    Held(Held),
    /// The journal has it.
    Journaled(Vec<TailBatch>),
}

impl From<Held> for Sent {
    fn from(held: Held) -> Self {
        let (offset, next_offset, credit, epoch) = (held.first(), held.next(), held.bytes(), held.epoch());
        Self { offset, next_offset, credit, epoch, what: SentWhat::Held(held) }
    }
}
