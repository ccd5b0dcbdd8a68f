//! Control records: how a transaction ended. Layout: `org.apache.kafka.common.record.ControlRecordType`.

use bytes::Buf;
use tombolo_proto::batch::{Batch, Codec};

use super::codec::read_varint;

/// `ControlRecordType.ABORT`
const ABORT: i16 = 0;

/// Whether the batch is the marker that aborts its producer's transaction. Like Kafka's consumer, takes a control batch
/// that holds no record (the cleaner empties old ones) or one it does not know for none.
pub fn is_abort_marker(batch: &Batch) -> bool {
    batch.is_control()
        && batch.codec() == Codec::None
        && batch.record_count() > 0
        && control_type(batch.record_section()) == Some(ABORT)
}

/// The type that the first record's key names.
fn control_type(mut record: &[u8]) -> Option<i16> {
    let _size = read_varint(&mut record).ok()?;
    let _attributes = record.try_get_u8().ok()?;
    let _timestamp_delta = read_varint(&mut record).ok()?;
    let _offset_delta = read_varint(&mut record).ok()?;
    let _key_size = read_varint(&mut record).ok()?;
    let _version = record.try_get_i16().ok()?;
    record.try_get_i16().ok()
}

#[cfg(test)]
mod tests {
    use tombolo_proto::testing::BatchBuilder;

    use super::*;

    #[test]
    fn reads_the_type_of_the_marker() {
        // Attributes, two deltas, a key of four bytes: version 0 and the type; a value of six bytes.
        let record = |kind: u8| [32, 0, 0, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(control_type(&record(0)), Some(ABORT));
        assert_eq!(control_type(&record(1)), Some(1));
        for cut in 0..9 {
            assert_eq!(control_type(&record(0)[..cut]), None);
        }
    }

    #[test]
    fn what_is_no_marker_aborts_nothing() {
        let zeroes = BatchBuilder::new(0).payload(17).fill(0);
        assert!(is_abort_marker(&zeroes.clone().attributes(0x30).build()));
        assert!(!is_abort_marker(&zeroes.clone().transactional().build()));
        assert!(!is_abort_marker(&zeroes.clone().attributes(0x34).build()), "no broker compresses it");
        assert!(!is_abort_marker(&zeroes.records(0).last_offset_delta(0).attributes(0x30).build()));
        assert!(!is_abort_marker(&BatchBuilder::new(0).payload(3).attributes(0x30).build()));
    }
}
