//! Filler: batches of empty records that only take up offsets, until they are deleted. A log that begins above 0 is made
//! with them.

use std::io::Read;

use tombolo_proto::batch::{Batch, Codec};

use super::assemble::{Assembler, Content};
use super::codec::{Section, put_varint};
use super::{Piece, ReencodeError};

/// What fills offsets fastest: a record takes less than a byte.
const CODEC: Codec = Codec::Zstd;
/// Key and value that are none, as their lengths of -1, and no headers.
const EMPTY: [u8; 3] = [1, 1, 0];
/// Bytes compared at once.
const CHUNK: usize = 8 << 10;

/// A batch of `count` empty records, with offsets from 0 and one timestamp.
pub fn filler(count: i32, timestamp: i64) -> Result<Batch, ReencodeError> {
    let mut assembler = Assembler::new(CODEC, 0);
    for offset in 0..i64::from(count) {
        assembler.push(Content { offset, timestamp, attributes: 0, tail: &EMPTY })?;
    }
    assembler.close_run()?;
    match assembler.take_ready() {
        Some(Piece::Run(batch)) => Ok(batch),
        Some(Piece::Gap { .. }) | None => Err(ReencodeError::Malformed { offset: 0, reason: "filler without records" }),
    }
}

/// Whether a batch is filler, whoever packed it.
pub fn is_filler(batch: &Batch) -> bool {
    let plain = batch.codec() == CODEC && batch.is_dense() && !batch.is_control() && !batch.is_transactional();
    plain && holds_empty_records(batch).unwrap_or(false)
}

fn holds_empty_records(batch: &Batch) -> std::io::Result<bool> {
    let expected = records(batch.record_count());
    let section = batch.bytes().slice_ref(batch.record_section());
    let Some(mut section) = Section::new(batch.codec(), section, expected.len())? else { return Ok(false) };
    let mut found = vec![0; CHUNK];
    for part in expected.chunks(CHUNK) {
        let Some(found) = found.get_mut(..part.len()) else { return Ok(false) };
        section.read_exact(found)?;
        if found != part {
            return Ok(false);
        }
    }
    section.is_at_end()
}

/// Empty records as they are before they are packed.
fn records(count: i32) -> Vec<u8> {
    let mut records = Vec::new();
    let mut body = Vec::new();
    for delta in 0..i64::from(count) {
        body.clear();
        // Attributes and the difference of timestamps.
        body.extend_from_slice(&[0, 0]);
        put_varint(&mut body, delta);
        body.extend_from_slice(&EMPTY);
        put_varint(&mut records, body.len().try_into().unwrap_or(i64::MAX));
        records.extend_from_slice(&body);
    }
    records
}

#[cfg(test)]
mod tests {
    use tombolo_proto::batch::Stamp;

    use super::*;

    #[test]
    fn filler_is_dense_small_and_recognised_with_its_stamp() {
        let batch = filler(100_000, 1_790_164_800_000).unwrap();
        assert!(batch.crc_is_valid() && batch.is_dense() && is_filler(&batch));
        assert_eq!((batch.base_offset(), batch.next_offset(), batch.record_count()), (0, 100_000, 100_000));
        assert_eq!(batch.max_timestamp(), 1_790_164_800_000);
        assert!(batch.len() < 400_000, "{} bytes", batch.len());
        let stamped = Batch::parse(batch.stamped(Stamp { producer_id: 9, sequence: 5 })).unwrap();
        assert!(is_filler(&stamped));
        assert!(is_filler(&filler(1, 0).unwrap()));
        assert!(filler(0, 0).is_err());
    }

    #[test]
    fn records_are_no_filler() {
        let mut assembler = Assembler::new(CODEC, 0);
        for (offset, tail) in [(0, &EMPTY[..]), (1, &[1, 2, b'x', 0])] {
            assembler.push(Content { offset, timestamp: 7, attributes: 0, tail }).unwrap();
        }
        assembler.close_run().unwrap();
        let Some(Piece::Run(batch)) = assembler.take_ready() else { panic!("one run") };
        assert!(!is_filler(&batch));
        let plain = tombolo_proto::testing::BatchBuilder::new(0).records(2).build();
        assert!(!is_filler(&plain));
        let torn = tombolo_proto::testing::BatchBuilder::new(0).records(2).attributes(4).build();
        assert!(!is_filler(&torn), "it is no zstd");
    }
}
