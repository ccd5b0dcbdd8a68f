//! From the record set of a fetch answer to batches that can be mirrored. Pure.

use bytes::Bytes;
use tombolo_proto::batch::{Batch, split};
use tombolo_proto::edge::check_batch;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{Offset, Partition};

/// What a record set holds for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Batches to be mirrored, each checked.
    pub(super) batches: Vec<Batch>,
    /// What the batch after them is, where it cannot be mirrored.
    pub(super) failure: Option<Failure>,
    /// Offset to go on from.
    pub(super) next: Offset,
    /// Leader epoch of the last batch.
    pub(super) epoch: Option<i32>,
    /// There are bytes, but not one whole batch that the reader needs: it must ask for more.
    pub(super) starved: bool,
}

/// Walks the batches from `offset` on. Those that end below it are left out: brokers begin with the batch that holds
/// the offset. `max_batch` is the largest that a frame carries.
pub(super) fn take(partition: Partition, offset: Offset, records: Bytes, max_batch: usize) -> Taken {
    let some = !records.is_empty();
    let mut taken = Taken { batches: Vec::new(), failure: None, next: offset, epoch: None, starved: false };
    for batch in split(records) {
        let checked = match batch {
            Ok(batch) if batch.next_offset() <= taken.next => continue,
            Ok(batch) => check_batch(partition, &batch, max_batch).map(|()| batch),
            Err(error) => {
                Err(Failure::at(FailureCode::UnsupportedMessageFormat, partition, taken.next, error.to_string()))
            }
        };
        match checked {
            Ok(batch) => {
                taken.next = batch.next_offset();
                taken.epoch = Some(batch.leader_epoch());
                taken.batches.push(batch);
            }
            Err(failure) => {
                taken.failure = Some(failure);
                break;
            }
        }
    }
    taken.starved = some && taken.batches.is_empty() && taken.failure.is_none();
    taken
}

/// A copy with memory of its own, where the bytes are a slice of an answer that holds other partitions' records too.
/// Without it a batch of one quiet partition would keep the whole answer in memory.
pub(super) fn unshared(records: Bytes, others: bool) -> Bytes {
    if others { Bytes::copy_from_slice(&records) } else { records }
}

#[cfg(test)]
mod tests {
    use tombolo_proto::testing::BatchBuilder;

    use super::*;

    fn set(batches: &[BatchBuilder]) -> Bytes {
        batches.iter().flat_map(|batch| batch.bytes().to_vec()).collect()
    }

    #[test]
    fn begins_at_the_batch_that_holds_the_offset() {
        let builders = [0, 3, 6, 9].map(|base| BatchBuilder::new(base).records(3).leader_epoch(4));
        let taken = take(1, 4, set(&builders), 1_000);
        let bases: Vec<_> = taken.batches.iter().map(Batch::base_offset).collect();
        assert_eq!((bases, taken.next, taken.epoch), (vec![3, 6, 9], 12, Some(4)));
        assert_eq!((taken.failure, taken.starved), (None, false));
    }

    #[test]
    fn stops_before_the_first_bad_batch() {
        let good = BatchBuilder::new(0).records(2);
        let mut bytes = set(&[good.clone(), BatchBuilder::new(2), BatchBuilder::new(3)]).to_vec();
        let at = good.bytes().len() + 70;
        bytes[at] ^= 1;
        let taken = take(5, 0, bytes.into(), 1_000);
        assert_eq!((taken.batches.len(), taken.next), (1, 2));
        let failure = taken.failure.unwrap();
        assert_eq!(
            (failure.code, failure.partition, failure.offset, failure.end_offset),
            (FailureCode::CorruptSourceBatch, Some(5), Some(2), Some(3))
        );
    }

    #[test]
    fn old_formats_are_named_with_the_offset() {
        let mut bytes = set(&[BatchBuilder::new(7)]).to_vec();
        bytes[16] = 1;
        let failure = take(0, 7, bytes.into(), 1_000).failure.unwrap();
        assert_eq!((failure.code, failure.offset), (FailureCode::UnsupportedMessageFormat, Some(7)));
    }

    #[test]
    fn a_batch_above_the_limit_is_no_batch_to_wait_for() {
        let taken = take(0, 0, set(&[BatchBuilder::new(0).payload(5_000)]), 4_000);
        assert_eq!(taken.failure.map(|failure| failure.code), Some(FailureCode::BatchTooLarge));
    }

    #[test]
    fn a_cut_batch_starves_and_nothing_does_not() {
        let whole = set(&[BatchBuilder::new(0).payload(500)]);
        for cut in [10, 100, whole.len() - 1] {
            assert!(take(0, 0, whole.slice(..cut), 1_000).starved, "{cut}");
        }
        assert!(!take(0, 0, whole.clone(), 1_000).starved);
        assert!(!take(0, 0, Bytes::new(), 1_000).starved);
        // Only what lies below the offset: as useless as a cut batch.
        assert!(take(0, 1, whole, 1_000).starved);
    }

    #[test]
    fn shared_answers_are_copied() {
        let answer = Bytes::from(vec![1_u8; 100]);
        let part = answer.slice(10..20);
        assert_eq!(unshared(part.clone(), false).as_ptr(), part.as_ptr());
        let copy = unshared(part.clone(), true);
        assert_ne!(copy.as_ptr(), part.as_ptr());
        assert_eq!(copy, part);
    }
}
