//! From the record set of a fetch answer to entries that can be mirrored. Pure.

mod transactions;
mod walk;

pub(super) use walk::{Answer, Found, Origin, Read, Stop, Walk, makes_anew};

use std::ops::Range;

use bytes::Bytes;
use tombolo_proto::batch::Batch;
use tombolo_proto::frame::Entry;
use tombolo_proto::id::Offset;

/// What a record set holds for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// To be mirrored: each batch checked, all joined, gaps side by side made one.
    pub(super) entries: Vec<Entry>,
    /// Why the offset after them cannot be mirrored, where it cannot.
    pub(super) stop: Option<Stop>,
    /// Offset to go on from.
    pub(super) next: Offset,
    /// Leader epoch of what stands before it, where it is known.
    pub(super) epoch: Option<i32>,
    /// There are bytes, but not one whole batch that the reader needs: it must ask for more.
    pub(super) starved: bool,
    pub(super) read: Read,
    /// Batches that were made anew.
    pub(super) remade: u64,
    /// Offsets that hold nothing at all, not even a marker.
    pub(super) holes: Vec<Range<Offset>>,
}

/// Reads an answer from its offset on. What is made anew may take twice as much memory as the answer: each run is compressed
/// by itself. Where that is not enough, the rest is left to be fetched again.
pub(super) fn take(answer: Answer) -> Taken {
    let size = answer.records.len();
    let mut taken = Taken {
        entries: Vec::new(),
        stop: None,
        next: answer.offset,
        epoch: None,
        starved: false,
        read: Read::default(),
        remade: 0,
        holes: Vec::new(),
    };
    let (mut kept, mut made_bytes) = (Kept::default(), 0);
    let mut walk = Walk::new(answer);
    for found in walk.by_ref() {
        let Found { entry, made, epoch, origin } = match found {
            Ok(found) => found,
            Err(stop) => {
                taken.stop = Some(stop);
                break;
            }
        };
        (taken.next, taken.epoch) = (entry.next_offset(), epoch);
        if made {
            taken.remade += 1;
            made_bytes += entry.bytes();
        } else if let Entry::Batch(batch) = &entry {
            kept.add(taken.entries.len(), batch);
        }
        if origin == Origin::Absent {
            add(&mut taken.holes, entry.offset()..entry.next_offset());
        }
        push(&mut taken.entries, entry);
        if made_bytes > 2 * size {
            break;
        }
    }
    taken.read = walk.read();
    taken.starved = size > 0 && taken.entries.is_empty() && taken.stop.is_none();
    kept.unshare(&mut taken.entries, size);
    taken
}

/// Appends an entry that joins the others; a gap behind a gap makes that longer.
fn push(entries: &mut Vec<Entry>, entry: Entry) {
    if let (Some(Entry::Gap { count, .. }), Entry::Gap { count: more, .. }) = (entries.last_mut(), &entry) {
        *count += more;
    } else {
        entries.push(entry);
    }
}

/// Appends a range; one that joins the last makes that longer.
fn add(ranges: &mut Vec<Range<Offset>>, range: Range<Offset>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        Some(_) | None => ranges.push(range),
    }
}

/// Batches that are slices of the answer.
#[derive(Debug, Default)]
struct Kept {
    places: Vec<usize>,
    bytes: usize,
}

impl Kept {
    fn add(&mut self, place: usize, batch: &Batch) {
        self.places.push(place);
        self.bytes += batch.len();
    }

    /// Gives them memory of their own, where less than half of the answer is kept: its memory is not counted.
    fn unshare(self, entries: &mut [Entry], size: usize) {
        if self.bytes * 2 >= size {
            return;
        }
        for place in self.places {
            if let Some(Entry::Batch(batch)) = entries.get_mut(place)
                && let Ok(copy) = Batch::parse(Bytes::copy_from_slice(batch.bytes()))
            {
                *batch = copy;
            }
        }
    }
}

/// A copy with memory of its own, where the bytes are a slice of an answer that holds other partitions' records too.
/// Without it a batch of one quiet partition would keep the whole answer in memory.
pub(super) fn unshared(records: Bytes, others: bool) -> Bytes {
    if others { Bytes::copy_from_slice(&records) } else { records }
}

#[cfg(test)]
#[path = "records/records_test.rs"]
mod tests;
