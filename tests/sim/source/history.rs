//! What a source's log held, ever: what each stretch of offsets may be in a mirror.

use std::collections::BTreeMap;

use tombolo_proto::batch::Batch;
use tombolo_proto::id::Offset;

/// What identifies a batch: where it lies, and its canonical CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) base_offset: Offset,
    pub(crate) next_offset: Offset,
    pub(crate) crc: u32,
}

impl Mark {
    pub(crate) fn of(batch: &Batch) -> Self {
        Self { base_offset: batch.base_offset(), next_offset: batch.next_offset(), crc: batch.canonical_crc() }
    }
}

/// One log since its beginning. What is true of an offset may depend on a marker that comes later: with that, it goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// Batches whose records are committed, as they were written and as they became; by base offset, with the log's end
    /// when that was decided.
    batches: BTreeMap<Offset, Vec<(Mark, Offset)>>,
    /// Stretches without a committed record: to where, and the log's end when that was decided.
    nothing: BTreeMap<Offset, (Offset, Offset)>,
}

impl History {
    /// Records are committed.
    pub(super) fn holds(&mut self, mark: Mark, decided: Offset) {
        let there = self.batches.entry(mark.base_offset).or_default();
        if there.iter().all(|(known, _)| *known != mark) {
            there.push((mark, decided));
        }
    }

    /// A stretch holds no record, or no more. Does not overlap with one that did not before.
    pub(super) fn lacks(&mut self, from: Offset, to: Offset, decided: Offset) {
        if from < to && !self.is_nothing(from) {
            self.nothing.insert(from, (to, decided));
        }
    }

    /// The log was cut.
    pub(super) fn cut(&mut self, end: Offset) {
        for there in self.batches.values_mut() {
            there.retain(|&(_, decided)| decided <= end);
        }
        self.batches.retain(|_, there| !there.is_empty());
        self.nothing.retain(|_, &mut (_, decided)| decided <= end);
    }

    /// Whether a mirror may hold such a batch.
    pub(crate) fn has(&self, mark: Mark) -> bool {
        self.batches.get(&mark.base_offset).is_some_and(|there| there.iter().any(|(known, _)| *known == mark))
    }

    /// Whether a mirror may hold nothing at an offset.
    pub(crate) fn is_nothing(&self, offset: Offset) -> bool {
        self.nothing.range(..=offset).next_back().is_some_and(|(_, &(to, _))| to > offset)
    }

    /// Whether a mirror that ends at an offset ends within a gap.
    pub(crate) fn is_within_gap(&self, offset: Offset) -> bool {
        self.is_nothing(offset - 1) && self.is_nothing(offset)
    }

    /// Where the stretch without records ends that an offset lies in; the offset itself where there is none.
    pub(crate) fn gap_end(&self, offset: Offset) -> Offset {
        let mut end = offset;
        while let Some((_, &(to, _))) = self.nothing.range(..=end).next_back()
            && to > end
        {
            end = to;
        }
        end
    }

    /// Whether something that may be in a mirror begins there.
    pub(crate) fn begins_at(&self, offset: Offset) -> bool {
        self.batches.contains_key(&offset) || self.is_nothing(offset)
    }
}
