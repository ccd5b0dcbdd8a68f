//! What is known of a log held against the end of its mirror.
//!
//! Compaction takes records away and never adds any: what was read of a compacted log may lack records that the mirror
//! has, because it was read later. The other way round the two are not of one log.

use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::Partition;
use crate::wire::TailBatch;

/// Whether two stretches of offsets, one read from the source and one of the mirror, cannot be of the same log.
/// `compacted`: the source may have lost records since the mirror got its own.
pub fn contradicts(ours: &TailBatch, theirs: &TailBatch, compacted: bool) -> bool {
    if !ours.overlaps(theirs) || ours.agrees(theirs) {
        return false;
    }
    let lies_within = theirs.base_offset <= ours.base_offset && ours.last_offset <= theirs.last_offset;
    let is_less = !theirs.gap && (ours.gap || lies_within);
    !(compacted && is_less)
}

/// Whether an entry, as it was read from the source, contradicts a stretch of the mirror. A batch that was made anew says
/// nothing against another of the same records: where it ends may depend on where reading began, and its bytes on the
/// release that made it.
pub fn entry_contradicts(entry: &Entry, ours: &TailBatch, theirs: &TailBatch, compacted: bool) -> bool {
    let made = entry.leader_epoch() < 0;
    !(made && !ours.gap && !theirs.gap) && contradicts(ours, theirs, compacted)
}

/// Whether what is known proves that the mirror's end is of the same log: its last stretch is known, and the last records
/// in it. A gap alone, which looks like any other, proves nothing where there are records before it.
pub fn proves(known: &[TailBatch], tail: &[TailBatch]) -> bool {
    let is_known = |theirs: &TailBatch| {
        known.iter().any(|ours| ours.overlaps(theirs) && ours.agrees(theirs) && ours.last_offset >= theirs.last_offset)
    };
    let records = tail.iter().rev().find(|theirs| !theirs.gap);
    tail.last().is_some_and(is_known) && records.is_none_or(is_known)
}

/// The failure of two stretches that should be one.
pub fn differs(partition: Partition, ours: &TailBatch, theirs: &TailBatch) -> Failure {
    let say = |one: &TailBatch| {
        let TailBatch { base_offset, last_offset, crc, gap } = *one;
        if gap {
            format!("no records at offsets {base_offset} to {last_offset}")
        } else {
            format!("a batch of offsets {base_offset} to {last_offset} with canonical CRC {crc:#010x}")
        }
    };
    let detail = format!("the source has {}, the mirror {}", say(ours), say(theirs));
    let at = ours.base_offset.max(theirs.base_offset);
    Failure::at(FailureCode::Diverged, partition, at, detail).until(theirs.last_offset.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    fn batch(base_offset: i64, last_offset: i64, crc: u32) -> TailBatch {
        TailBatch { base_offset, last_offset, crc, gap: false }
    }

    #[test]
    fn a_compacted_log_may_have_less_and_never_more() {
        let gap = TailBatch::gap;
        // Ours, theirs; whether they contradict each other in a log that is not compacted, and in one that is.
        let table = [
            (batch(5, 9, 1), batch(5, 9, 1), false, false),
            (batch(5, 9, 1), batch(5, 9, 2), true, false),
            (batch(6, 7, 1), batch(5, 9, 2), true, false),
            (batch(5, 10, 1), batch(5, 9, 2), true, true),
            (gap(4, 8), batch(5, 9, 2), true, false),
            (batch(5, 9, 1), gap(7, 8), true, true),
            (gap(5, 10), gap(7, 8), false, false),
            (batch(5, 9, 1), batch(10, 12, 2), false, false),
        ];
        for (ours, theirs, plain, compacted) in table {
            let found = (contradicts(&ours, &theirs, false), contradicts(&ours, &theirs, true));
            assert_eq!(found, (plain, compacted), "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn a_batch_made_anew_contradicts_gaps_only() {
        for (epoch, differs) in [(-1, false), (0, true)] {
            let entry = Entry::Batch(BatchBuilder::new(5).records(5).leader_epoch(epoch).build());
            let ours = TailBatch::of_entry(&entry);
            let against = |theirs| entry_contradicts(&entry, &ours, &theirs, false);
            assert!(!against(ours) && !against(batch(10, 12, 1)) && against(TailBatch::gap(7, 8)));
            for theirs in [batch(5, 9, !ours.crc), batch(3, 7, 1), batch(8, 12, 1)] {
                assert_eq!(against(theirs), differs, "{theirs:?}");
            }
        }
        let (gap, ours) = (Entry::Gap { offset: 5, count: 3 }, TailBatch::gap(5, 8));
        assert!(entry_contradicts(&gap, &ours, &batch(5, 9, 1), false));
    }

    #[test]
    fn the_end_is_proved_by_its_last_records() {
        let (one, two, gap) = (batch(0, 4, 1), batch(5, 9, 2), TailBatch::gap(10, 20));
        assert!(proves(&[one, two], &[one, two]) && proves(&[two], &[one, two]));
        assert!(!proves(&[one], &[one, two]) && !proves(&[], &[one]) && !proves(&[one], &[]));
        assert!(proves(&[two, gap], &[one, two, gap]) && proves(&[gap], &[gap]));
        assert!(!proves(&[gap], &[two, gap]), "a gap looks like any other");
        assert!(!proves(&[two], &[two, gap]), "what lies behind it is not known");
        assert!(proves(&[two, gap], &[two, TailBatch::gap(10, 15)]), "the mirror ends within it");
        assert!(!proves(&[two, TailBatch::gap(10, 15)], &[two, gap]));
    }

    #[test]
    fn says_what_each_side_has() {
        let failure = differs(3, &TailBatch::gap(5, 9), &batch(6, 9, 0xab));
        assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::Diverged, Some(6), Some(10)));
        assert!(failure.detail.contains("no records at offsets 5 to 8"), "{failure}");
        assert!(failure.detail.contains("offsets 6 to 9 with canonical CRC 0x000000ab"), "{failure}");
    }
}
