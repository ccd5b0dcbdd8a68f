//! The one decision about the next entry of a partition.

use crate::frame::Entry;
use crate::id::Offset;

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is next: append it.
    Append,
    /// It is next, or reaches beyond what is next, and holds no record: the log end has to be moved past it.
    Skip,
    /// It lies ahead: what comes before it is still missing.
    Wait,
    /// The mirror holds it.
    AlreadyThere,
    /// It starts below the mirror's end and ends above it: the two logs disagree.
    Diverged,
}

/// Decides by offsets alone, `next` being the offset after the last one taken.
pub fn decide(next: Offset, entry: &Entry) -> Decision {
    let (first, end) = (entry.offset(), entry.next_offset());
    match entry {
        _ if end <= next => Decision::AlreadyThere,
        _ if first > next => Decision::Wait,
        Entry::Gap { .. } => Decision::Skip,
        Entry::Batch(_) if first < next => Decision::Diverged,
        Entry::Batch(_) => Decision::Append,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    #[test]
    fn every_place_has_its_decision() {
        let batch = Entry::Batch(BatchBuilder::new(10).records(5).build());
        let gap = Entry::Gap { offset: 10, count: 5 };
        let table = [
            (9, Decision::Wait, Decision::Wait),
            (10, Decision::Append, Decision::Skip),
            (11, Decision::Diverged, Decision::Skip),
            (14, Decision::Diverged, Decision::Skip),
            (15, Decision::AlreadyThere, Decision::AlreadyThere),
        ];
        for (next, for_batch, for_gap) in table {
            assert_eq!((decide(next, &batch), decide(next, &gap)), (for_batch, for_gap), "next {next}");
        }
    }
}
