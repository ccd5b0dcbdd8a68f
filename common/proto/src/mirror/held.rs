//! What a partition holds in memory: entries that came and are not confirmed, joined, gaps that meet as one.
//!
//! Must never: lose count of its bytes, which are credit.

use std::collections::VecDeque;

use crate::frame::Entry;
use crate::id::Offset;

#[derive(Debug, Default)]
pub(super) struct Held {
    entries: VecDeque<Entry>,
    bytes: usize,
    gap_offsets: i64,
}

impl Held {
    /// Bytes, as frames count them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Offsets that hold no record.
    pub(super) fn gap_offsets(&self) -> i64 {
        self.gap_offsets
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry that follows the last.
    pub(super) fn push(&mut self, entry: Entry) {
        if let Entry::Gap { count, .. } = entry {
            self.gap_offsets += count;
            if let Some(Entry::Gap { count: before, .. }) = self.entries.back_mut() {
                *before += count;
                return;
            }
        }
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// Lets go of what ends at or below `offset`, and of the part of a gap that lies below it. Returns the offsets of gaps
    /// that were let go.
    pub(super) fn release(&mut self, offset: Offset) -> i64 {
        let before = self.gap_offsets;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.next_offset() <= offset) {
            self.bytes -= entry.bytes();
            if let Entry::Gap { count, .. } = entry {
                self.gap_offsets -= count;
            }
        }
        if let Some(Entry::Gap { offset: first, count }) = self.entries.front_mut()
            && *first < offset
        {
            let cut = offset - *first;
            *first = offset;
            *count -= cut;
            self.gap_offsets -= cut;
        }
        before - self.gap_offsets
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The entry that begins at `offset`.
    pub(super) fn starting_at(&self, offset: Offset) -> Option<&Entry> {
        self.containing(offset).filter(|entry| entry.offset() == offset)
    }

    /// The entry that `offset` lies in.
    pub(super) fn containing(&self, offset: Offset) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| entry.next_offset() <= offset);
        self.entries.get(at).filter(|entry| entry.offset() <= offset)
    }

    /// Offset after the gap that comes first, if a gap does.
    pub(super) fn first_gap_end(&self) -> Option<Offset> {
        self.entries.front().filter(|entry| matches!(entry, Entry::Gap { .. })).map(Entry::next_offset)
    }

    /// Whether it holds exactly the offsets from `first` up to, not including, `next`, and its sums are right.
    pub(super) fn spans(&self, first: Offset, next: Offset) -> bool {
        let gap = |entry: &Entry| if let Entry::Gap { count, .. } = entry { Some(*count) } else { None };
        let joined = self.entries.iter().zip(self.entries.iter().skip(1)).all(|(before, after)| {
            before.next_offset() == after.offset() && (gap(before).is_none() || gap(after).is_none())
        });
        joined
            && self.entries.front().map_or(next, Entry::offset) == first
            && self.entries.back().map_or(first, Entry::next_offset) == next
            && self.bytes == self.entries.iter().map(Entry::bytes).sum::<usize>()
            && self.gap_offsets == self.entries.iter().filter_map(gap).sum::<i64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    #[test]
    fn gaps_that_meet_are_one_and_are_cut_where_they_are_confirmed() {
        let batch = Entry::Batch(BatchBuilder::new(9).records(2).build());
        let mut held = Held::default();
        held.push(Entry::Gap { offset: 3, count: 2 });
        held.push(Entry::Gap { offset: 5, count: 4 });
        held.push(batch.clone());
        held.push(Entry::Gap { offset: 11, count: 1 });
        assert!(held.spans(3, 12));
        assert_eq!((held.bytes(), held.gap_offsets(), held.first_gap_end()), (18 + batch.bytes(), 7, Some(9)));
        assert_eq!((held.starting_at(5), held.containing(5)), (None, Some(&Entry::Gap { offset: 3, count: 6 })));
        assert_eq!(held.release(8), 5);
        assert!(held.spans(8, 12));
        assert_eq!(held.starting_at(8), Some(&Entry::Gap { offset: 8, count: 1 }));
        assert_eq!((held.release(9), held.first_gap_end()), (1, None));
        assert_eq!((held.release(11), held.bytes()), (0, 9));
        assert_eq!((held.release(12), held.bytes(), held.gap_offsets()), (1, 0, 0));
        assert!(held.is_empty() && held.spans(12, 12));
    }
}
