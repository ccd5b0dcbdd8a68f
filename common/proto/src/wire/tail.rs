//! The end of a log as evidence: what a resume compares before one byte goes out.

use crate::batch::Batch;
use crate::frame::Entry;
use crate::id::Offset;
use crate::limits::MAX_TAIL;

/// A batch, or a gap, at the end of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TailBatch {
    /// First offset.
    #[prost(int64, tag = "1")]
    pub base_offset: Offset,
    /// Last offset.
    #[prost(int64, tag = "2")]
    pub last_offset: Offset,
    /// Canonical CRC; 0 of a gap.
    #[prost(fixed32, tag = "3")]
    pub crc: u32,
    /// The offsets hold no record.
    #[prost(bool, tag = "4")]
    pub gap: bool,
}

impl TailBatch {
    /// What is told of a batch that holds records.
    pub fn of(batch: &Batch) -> Self {
        Self {
            base_offset: batch.base_offset(),
            last_offset: batch.last_offset(),
            crc: batch.canonical_crc(),
            gap: false,
        }
    }

    /// What is told of the offsets from `first` up to, not including, `next`, which hold no record.
    pub fn gap(first: Offset, next: Offset) -> Self {
        Self { base_offset: first, last_offset: next - 1, crc: 0, gap: true }
    }

    /// What is told of an entry.
    pub fn of_entry(entry: &Entry) -> Self {
        match entry {
            Entry::Batch(batch) => Self::of(batch),
            Entry::Gap { .. } => Self::gap(entry.offset(), entry.next_offset()),
        }
    }

    /// Whether the two have offsets in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.base_offset <= other.last_offset && other.base_offset <= self.last_offset
    }

    /// Whether two that overlap can be of the same log: batches only if they are equal, gaps whatever their borders.
    pub fn agrees(&self, other: &Self) -> bool {
        if self.gap && other.gap { true } else { self == other }
    }

    /// Adds `next` to the end of a tail: joins it with a gap before it, starts anew where it does not follow, and keeps
    /// the last [`MAX_TAIL`].
    pub fn append(self, tail: &mut Vec<Self>) {
        match tail.last_mut() {
            Some(last) if last.last_offset.checked_add(1) != Some(self.base_offset) => tail.clear(),
            Some(last) if last.gap && self.gap => {
                last.last_offset = self.last_offset;
                return;
            }
            Some(_) | None => {}
        }
        tail.push(self);
        if tail.len() > MAX_TAIL {
            tail.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    fn batch(first: Offset, next: Offset) -> TailBatch {
        let records = i32::try_from(next - first).expect("small");
        TailBatch::of(&BatchBuilder::new(first).records(records).build())
    }

    #[test]
    fn gaps_agree_whatever_their_borders_and_batches_only_if_equal() {
        let other = TailBatch { crc: 1, ..batch(5, 8) };
        let table = [
            (batch(5, 8), batch(5, 8), true),
            (batch(5, 8), other, false),
            (batch(5, 8), batch(5, 7), false),
            (batch(5, 8), TailBatch::gap(5, 8), false),
            (TailBatch::gap(7, 9), batch(5, 8), false),
            (TailBatch::gap(5, 8), TailBatch::gap(5, 8), true),
            (TailBatch::gap(5, 8), TailBatch::gap(7, 20), true),
        ];
        for (ours, theirs, agrees) in table {
            assert!(ours.overlaps(&theirs) && theirs.overlaps(&ours), "{ours:?} {theirs:?}");
            assert_eq!((ours.agrees(&theirs), theirs.agrees(&ours)), (agrees, agrees), "{ours:?} {theirs:?}");
        }
        assert!(!batch(5, 8).overlaps(&TailBatch::gap(8, 9)) && !TailBatch::gap(3, 5).overlaps(&batch(5, 8)));
    }

    #[test]
    fn an_entry_is_told_as_what_it_is() {
        let entry = Entry::Batch(BatchBuilder::new(5).records(3).build());
        assert_eq!(TailBatch::of_entry(&entry), batch(5, 8));
        assert_eq!(TailBatch::of_entry(&Entry::Gap { offset: 8, count: 4 }), TailBatch::gap(8, 12));
    }

    #[test]
    fn a_tail_stays_joined_and_bounded() {
        let mut tail = Vec::new();
        for next in [batch(0, 3), TailBatch::gap(3, 5), TailBatch::gap(5, 9), batch(9, 10)] {
            next.append(&mut tail);
        }
        assert_eq!(tail, [batch(0, 3), TailBatch::gap(3, 9), batch(9, 10)]);
        for base in 10..40 {
            batch(base, base + 1).append(&mut tail);
        }
        assert_eq!((tail.len(), tail.first()), (MAX_TAIL, Some(&batch(24, 25))));
        TailBatch::gap(41, 43).append(&mut tail);
        assert_eq!(tail, [TailBatch::gap(41, 43)], "offset 40 is missing");
    }
}
