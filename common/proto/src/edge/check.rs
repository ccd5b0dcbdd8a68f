//! What a batch from the source must be to be mirrored as it is (design: what is exact).

use crate::batch::Batch;
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{Offset, Partition};

/// Checks one batch, its CRC included. `max_bytes` is the largest batch a frame can carry.
pub fn check_batch(partition: Partition, batch: &Batch, max_bytes: usize) -> Result<(), Failure> {
    let offset = batch.base_offset();
    let refuse = |code, detail: String| Err(Failure::at(code, partition, offset, detail).until(batch.next_offset()));
    if !batch.crc_is_valid() {
        return refuse(
            FailureCode::CorruptSourceBatch,
            "the source serves a batch whose CRC-32C is wrong: its disk or memory is damaged; restore the partition from \
             a healthy replica"
                .to_owned(),
        );
    }
    if batch.is_control() || batch.is_transactional() {
        let kind = if batch.is_control() { "a transaction marker" } else { "a transactional batch" };
        return refuse(FailureCode::UnsupportedTransaction, format!("{kind}: transactional logs are not mirrored yet"));
    }
    if batch.is_log_append_time() {
        let detail = "the batch has LogAppendTime timestamps, which are not mirrored yet".to_owned();
        return refuse(FailureCode::UnsupportedLogAppendTime, detail);
    }
    if !batch.is_dense() {
        let detail = format!(
            "the batch spans {} offsets and holds {} records: compacted logs are not mirrored yet",
            i64::from(batch.last_offset_delta()) + 1,
            batch.record_count()
        );
        return refuse(FailureCode::UnsupportedGap, detail);
    }
    if Entry::batch_bytes(batch) > max_bytes {
        return Err(too_large(partition, (offset, batch.next_offset()), batch.len(), max_bytes));
    }
    Ok(())
}

/// The failure of a batch that no frame carries.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    #[test]
    fn each_kind_of_batch_has_its_failure() {
        let good = BatchBuilder::new(5).records(2);
        assert_eq!(check_batch(0, &good.build(), 100), Ok(()));
        let mut corrupt = good.bytes().to_vec();
        *corrupt.last_mut().expect("bytes") ^= 1;
        let corrupt = Batch::parse(corrupt.into()).expect("a header");
        let table = [
            (corrupt, FailureCode::CorruptSourceBatch),
            (good.clone().attributes(0x30).build(), FailureCode::UnsupportedTransaction),
            (good.clone().transactional().build(), FailureCode::UnsupportedTransaction),
            (good.clone().attributes(0x08).build(), FailureCode::UnsupportedLogAppendTime),
            (good.clone().last_offset_delta(4).build(), FailureCode::UnsupportedGap),
            (good.payload(200).build(), FailureCode::BatchTooLarge),
        ];
        for (batch, code) in table {
            let failure = check_batch(3, &batch, 100).expect_err("refused");
            assert_eq!((failure.code, failure.partition, failure.offset), (code, Some(3), Some(5)));
        }
    }
}
