//! What the journal says about a mirror's end. After a restart the checkpoint is up to half a minute old, and the frames that
//! the cloud took since are the best evidence there is.

use tombolo_proto::edge::{Verdict, differs, entry_contradicts, proves};
use tombolo_proto::frame::{Entry, FrameLimits};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::limits::MAX_FRAME_BYTES;
use tombolo_proto::wire::TailBatch;

use crate::journal::{Journal, JournalError};

/// Bytes of frames that are read for a comparison, about.
const READ_BYTES: usize = 1 << 20;
const LIMITS: FrameLimits = FrameLimits { max_bytes: MAX_FRAME_BYTES };

/// Compares a mirror's tail with the journal. `None` where the journal does not go on from there, or does not hold the
/// tail's last records: then the source is to be asked. Fails where the journal cannot be read. `compacted`: the frames may
/// have been read after the source had lost records that the mirror has.
pub(crate) fn compare(
    journal: &mut impl Journal,
    topic: &TopicName,
    partition: Partition,
    tail: &[TailBatch],
    next_offset: Offset,
    compacted: bool,
) -> Result<Option<Verdict>, JournalError> {
    let Some(last) = tail.last() else { return Ok(None) };
    let goes_on = journal.ranges().iter().any(|range| {
        range.topic == *topic && range.partition == partition && (range.first..=range.next).contains(&next_offset)
    });
    if !goes_on {
        return Ok(None);
    }
    // A long gap is no evidence: its records before it are.
    let from = tail.iter().rev().find(|theirs| !theirs.gap).unwrap_or(last);
    let frames = journal.read(topic, partition, from.base_offset, READ_BYTES)?;
    let read: Vec<(Entry, TailBatch)> = frames
        .iter()
        .map_while(|packed| packed.unpack(LIMITS).ok())
        .flatten()
        .map(|entry| {
            let ours = TailBatch::of_entry(&entry);
            (entry, ours)
        })
        .collect();
    for theirs in tail {
        let against = read.iter().find(|(entry, ours)| entry_contradicts(entry, ours, theirs, compacted));
        if let Some((_, ours)) = against {
            return Ok(Some(Verdict::Failed(differs(partition, ours, theirs))));
        }
    }
    let ours: Vec<TailBatch> = read.into_iter().map(|(_, ours)| ours).collect();
    Ok(proves(&ours, tail).then_some(Verdict::Agrees))
}

#[cfg(test)]
mod tests {
    use tombolo_proto::frame::Packed;
    use tombolo_proto::testing::BatchBuilder;

    use super::*;
    use crate::journal::{JournalFrame, MemoryJournal};

    fn batch(base: Offset, payload: usize) -> tombolo_proto::batch::Batch {
        BatchBuilder::new(base).records(2).payload(payload).build()
    }

    #[test]
    fn the_journal_agrees_differs_or_does_not_know() {
        let topic = TopicName::new("orders").unwrap();
        let mut journal = MemoryJournal::new(1 << 20);
        for base in [10, 14] {
            let packed = Packed::new(&[Entry::Batch(batch(base, 300)), Entry::Batch(batch(base + 2, 300))]);
            journal.append(&[JournalFrame { topic: topic.clone(), topic_id: None, partition: 0, packed }]).unwrap();
        }
        let mut ask = |tail: &[TailBatch], next| compare(&mut journal, &topic, 0, tail, next, false).unwrap();
        let ours = |base| TailBatch::of(&batch(base, 300));
        assert_eq!(ask(&[ours(12)], 14), Some(Verdict::Agrees));
        assert_eq!(ask(&[ours(16)], 18), Some(Verdict::Agrees));
        assert_eq!(ask(&[ours(8)], 10), None, "before its first frame");
        assert_eq!(ask(&[ours(30)], 32), None, "beyond its end");
        assert_eq!(ask(&[], 12), None);
        let other = TailBatch::of(&batch(12, 301));
        assert!(matches!(ask(&[other], 14), Some(Verdict::Failed(_))));
    }

    #[test]
    fn what_was_made_anew_is_no_evidence_against_a_batch() {
        let topic = TopicName::new("orders").unwrap();
        let mut journal = MemoryJournal::new(1 << 20);
        let made = BatchBuilder::new(10).records(4).leader_epoch(-1).build();
        let packed = Packed::new(&[Entry::Batch(made)]);
        journal.append(&[JournalFrame { topic: topic.clone(), topic_id: None, partition: 0, packed }]).unwrap();
        let mut ask = |tail: &[TailBatch], next| compare(&mut journal, &topic, 0, tail, next, false).unwrap();
        let theirs = TailBatch::of(&BatchBuilder::new(10).records(2).build());
        assert_eq!(ask(&[theirs], 12), None, "the source is to be asked");
        assert!(matches!(ask(&[TailBatch::gap(10, 12)], 12), Some(Verdict::Failed(_))));
    }
}
