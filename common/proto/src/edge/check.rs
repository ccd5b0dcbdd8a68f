//! The failures of a single batch of the source.

use crate::batch::Batch;
use crate::failure::{Failure, FailureCode};
use crate::id::{Offset, Partition};

/// The failure of a batch whose CRC is wrong.
pub fn corrupt_batch(partition: Partition, batch: &Batch) -> Failure {
    let detail = "the source serves a batch whose CRC-32C is wrong: its disk or memory is damaged; restore the partition \
                  from a healthy replica";
    Failure::at(FailureCode::CorruptSourceBatch, partition, batch.base_offset(), detail).until(batch.next_offset())
}

/// The failure of a batch that no frame carries. `max_bytes` is the largest entry of a frame.
pub fn large_batch(partition: Partition, batch: &Batch, max_bytes: usize) -> Failure {
    too_large(partition, (batch.base_offset(), batch.next_offset()), batch.len(), max_bytes)
}

pub(super) fn too_large(
    partition: Partition,
    (offset, next_offset): (Offset, Offset),
    bytes: usize,
    max_bytes: usize,
) -> Failure {
    let detail = format!(
        "the batch has {bytes} bytes, the largest frame takes {max_bytes}: raise memory.max_frame on both sides"
    );
    Failure::at(FailureCode::BatchTooLarge, partition, offset, detail).until(next_offset)
}
