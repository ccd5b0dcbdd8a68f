//! The header fields that are rewritten, and what "identical" means.
//!
//! CRC-32C is linear: changing a few header bytes changes the CRC by the CRC of the difference, shifted by the
//! length that follows. So a large batch is restamped without reading its records.

use bytes::{Bytes, BytesMut};

use super::shift::shifted;
use super::{ATTRIBUTES, BASE_SEQUENCE, Batch, CRC, HEADER_BYTES, PRODUCER_EPOCH, PRODUCER_ID, TRANSACTIONAL};

/// Header bytes that the CRC covers: `attributes` to `recordsCount`.
const COVERED: usize = HEADER_BYTES - ATTRIBUTES;
/// Record sections shorter than this are checksummed anew: shifting a CRC costs about as much as reading them.
const PATCH_FROM: usize = 4096;

/// What the gateway writes into a batch in place of the source's producer fields. The epoch is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The link's derived producer id.
    pub producer_id: i64,
    /// Sequence of the batch's first record, 0 to 2^31 - 1.
    pub sequence: i32,
}

impl Batch {
    /// CRC-32C from `attributes` to the end with the 14 producer bytes zeroed and the transactional bit cleared.
    /// Equal canonical CRCs at equal offsets is what byte-identical means. Relies on the stored CRC: check it first.
    pub fn canonical_crc(&self) -> u32 {
        self.crc_with(&self.covered_with(0, 0, 0))
    }

    /// The batch as a broker takes it from the gateway: base offset 0, the stamp, the transactional bit cleared, the
    /// CRC that goes with it. The record section is copied as it is.
    pub fn stamped(&self, stamp: Stamp) -> Bytes {
        let covered = self.covered_with(stamp.producer_id, 0, stamp.sequence);
        let crc = self.crc_with(&covered);
        let mut bytes = BytesMut::with_capacity(self.bytes.len());
        bytes.extend_from_slice(&0_i64.to_be_bytes());
        bytes.extend_from_slice(self.bytes.get(8..CRC).expect("a batch holds a whole header"));
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.extend_from_slice(&covered);
        bytes.extend_from_slice(self.record_section());
        bytes.freeze()
    }

    fn covered(&self) -> [u8; COVERED] {
        self.array_at(ATTRIBUTES)
    }

    fn covered_with(&self, producer_id: i64, epoch: i16, sequence: i32) -> [u8; COVERED] {
        let mut covered = self.covered();
        let mut put = |at: usize, value: &[u8]| {
            let at = at - ATTRIBUTES;
            covered.get_mut(at..at + value.len()).expect("fields lie in the header").copy_from_slice(value);
        };
        put(ATTRIBUTES, &(self.attributes() & !TRANSACTIONAL).to_be_bytes());
        put(PRODUCER_ID, &producer_id.to_be_bytes());
        put(PRODUCER_EPOCH, &epoch.to_be_bytes());
        put(BASE_SEQUENCE, &sequence.to_be_bytes());
        covered
    }

    fn crc_with(&self, covered: &[u8; COVERED]) -> u32 {
        let records = self.record_section();
        if records.len() < PATCH_FROM {
            return crc32c::crc32c_append(crc32c::crc32c(covered), records);
        }
        let old = crc32c::crc32c(&self.covered());
        let new = crc32c::crc32c(covered);
        self.crc() ^ shifted(old ^ new, records.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::BatchBuilder;

    const STAMP: Stamp = Stamp { producer_id: (1 << 62) | 5, sequence: i32::MAX };

    #[test]
    fn stamping_keeps_records_and_leaves_a_valid_crc() {
        let batch = BatchBuilder::new(1_000).records(4).stamp(77, 3, 12).transactional().payload(9_000).build();
        let stamped = Batch::parse(batch.stamped(STAMP)).expect("a batch");
        assert!(stamped.crc_is_valid());
        assert_eq!((stamped.base_offset(), stamped.last_offset()), (0, 3));
        assert_eq!((stamped.producer_id(), stamped.producer_epoch()), (STAMP.producer_id, 0));
        assert_eq!(stamped.base_sequence(), i32::MAX);
        assert!(!stamped.is_transactional());
        assert_eq!(stamped.record_section(), batch.record_section());
        assert_eq!(stamped.canonical_crc(), batch.canonical_crc());
    }

    #[test]
    fn canonical_crc_sees_every_other_byte() {
        let batch = BatchBuilder::new(3).records(1).payload(30).build();
        for at in ATTRIBUTES..batch.len() {
            let ignored = (PRODUCER_ID..BASE_SEQUENCE + 4).contains(&at);
            let mut bytes = batch.bytes().to_vec();
            bytes[at] ^= 0x41;
            let crc = crc32c::crc32c(&bytes[ATTRIBUTES..]);
            bytes[CRC..CRC + 4].copy_from_slice(&crc.to_be_bytes());
            let Ok(changed) = Batch::parse(bytes.into()) else {
                continue;
            };
            assert_eq!(changed.canonical_crc() == batch.canonical_crc(), ignored, "byte {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_patched_crc_is_the_full_crc(
            payload in 0_usize..20_000, id in proptest::num::i64::ANY, sequence in 0..i32::MAX, fill in proptest::num::u8::ANY,
        ) {
            let batch = BatchBuilder::new(8).records(2).payload(payload).fill(fill).stamp(id, 5, 6).build();
            let stamped = Batch::parse(batch.stamped(Stamp { producer_id: 9, sequence })).expect("a batch");
            proptest::prop_assert!(stamped.crc_is_valid());
            let mut zeroed = batch.bytes().to_vec();
            zeroed[PRODUCER_ID..BASE_SEQUENCE + 4].fill(0);
            proptest::prop_assert_eq!(batch.canonical_crc(), crc32c::crc32c(&zeroed[ATTRIBUTES..]));
        }
    }
}
