//! Records within a batch: those of the few batches that tombolo itself writes and reads (its registry topic), and those
//! of mirrored batches that a cloud cluster would not take or keep as they are ([`Unfit`], [`from_legacy`]), and the empty
//! ones of [`filler()`]. A dense `CreateTime` batch of a mirror never comes here.

mod assemble;
mod codec;
mod control;
mod filler;
mod legacy;
mod reencode;
mod snappy;
mod sums;

pub use control::is_abort_marker;
pub use filler::{filler, is_filler};
pub use legacy::{Legacy, from_legacy};
pub use reencode::{Piece, ReencodeError, Runs, UNPACKED_BYTES, Unfit};
pub use sums::{RecordSum, RecordSums};

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record as WireRecord, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use tombolo_proto::batch::{Batch, Codec};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Offset; not looked at by [`encode_batch`].
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; a compacted topic forgets keys without one.
    pub value: Option<Bytes>,
    /// Headers, in order; the last of a name wins.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// Who writes a batch, and where in its sequence. Producer id, epoch and sequence are -1 for a plain producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub epoch: i16,
    /// Sequence of the first record.
    pub sequence: i32,
}

/// Why records cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// A batch holds at least one record.
    #[error("a batch without records")]
    Empty,
    /// Compressed records are not read here.
    #[error("the batch at offset {offset} is compressed ({codec:?}): the topic must have compression.type=producer")]
    Compressed {
        /// Base offset of the batch.
        offset: i64,
        /// Its codec.
        codec: Codec,
    },
    /// The CRC is wrong or the record section is malformed.
    #[error("the batch at offset {offset} cannot be read: {reason}")]
    Malformed {
        /// Base offset of the batch.
        offset: i64,
        /// What is wrong.
        reason: Box<str>,
    },
    /// A record is too large for the format.
    #[error("records cannot be encoded: {0}")]
    Encode(Box<str>),
}

/// An uncompressed v2 batch as a broker takes it from a client: base offset 0.
pub fn encode_batch(records: &[Record], writer: Writer) -> Result<Bytes, RecordsError> {
    if records.is_empty() {
        return Err(RecordsError::Empty);
    }
    let wire: Vec<WireRecord> = records
        .iter()
        .zip(0_i32..)
        .map(|(record, at)| WireRecord {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: writer.producer_id,
            producer_epoch: writer.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(at),
            // The encoder splits a batch where offset and sequence do not run in step.
            sequence: writer.sequence.wrapping_add(at),
            timestamp: record.timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers_to_wire(&record.headers),
        })
        .collect();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    let mut batch = BytesMut::new();
    RecordBatchEncoder::encode(&mut batch, &wire, &options)
        .map_err(|error| RecordsError::Encode(error.to_string().into()))?;
    Ok(batch.freeze())
}

/// The records of an uncompressed batch.
pub fn decode_batch(batch: &Batch) -> Result<Vec<Record>, RecordsError> {
    let offset = batch.base_offset();
    let malformed = |reason: &str| RecordsError::Malformed { offset, reason: reason.into() };
    if batch.codec() != Codec::None {
        return Err(RecordsError::Compressed { offset, codec: batch.codec() });
    }
    if !batch.crc_is_valid() {
        return Err(malformed("wrong CRC"));
    }
    // The codec reserves memory by the record count before it reads one record; none is shorter than a byte.
    if usize::try_from(batch.record_count()).map_or(true, |count| count > batch.record_section().len()) {
        return Err(malformed("more records than bytes"));
    }
    let set = RecordBatchDecoder::decode(&mut batch.bytes().clone()).map_err(|error| malformed(&error.to_string()))?;
    Ok(set
        .records
        .into_iter()
        .map(|record| Record {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: headers_from_wire(record.headers),
        })
        .collect())
}

fn headers_to_wire(headers: &[(String, Option<Bytes>)]) -> IndexMap<StrBytes, Option<Bytes>> {
    headers.iter().map(|(name, value)| (StrBytes::from_string(name.clone()), value.clone())).collect()
}

fn headers_from_wire(headers: IndexMap<StrBytes, Option<Bytes>>) -> Vec<(String, Option<Bytes>)> {
    headers.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer { producer_id: 1 << 62, epoch: 0, sequence: 41 };

    fn record(key: &'static str, value: Option<&'static str>) -> Record {
        Record {
            offset: 0,
            timestamp: 1_700_000_000_000,
            key: Some(Bytes::from_static(key.as_bytes())),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            headers: vec![("h".to_owned(), Some(Bytes::from_static(b"1")))],
        }
    }

    #[test]
    fn a_batch_carries_its_writer_and_comes_back() {
        let records = [record("a", Some("1")), record("b", None)];
        let batch = Batch::parse(encode_batch(&records, WRITER).unwrap()).unwrap();
        assert!(batch.crc_is_valid() && batch.is_dense());
        assert_eq!((batch.base_offset(), batch.record_count()), (0, 2));
        assert_eq!((batch.producer_id(), batch.producer_epoch(), batch.base_sequence()), (1 << 62, 0, 41));
        let read = decode_batch(&batch).unwrap();
        assert_eq!((read[0].offset, read[1].offset), (0, 1));
        assert_eq!(read[0].value, records[0].value);
        assert_eq!((&read[1].key, &read[1].value), (&records[1].key, &None));
        assert_eq!(read[1].headers, records[1].headers);
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        assert_eq!(encode_batch(&[], WRITER), Err(RecordsError::Empty));
        let good = encode_batch(&[record("a", Some("1"))], WRITER).unwrap();
        let mut torn = good.to_vec();
        *torn.last_mut().unwrap() ^= 1;
        let torn = Batch::parse(torn.into()).unwrap();
        assert!(matches!(decode_batch(&torn), Err(RecordsError::Malformed { .. })));
        let packed = tombolo_proto::testing::BatchBuilder::new(0).attributes(4).build();
        assert!(matches!(decode_batch(&packed), Err(RecordsError::Compressed { codec: Codec::Zstd, .. })));
        let crowded = tombolo_proto::testing::BatchBuilder::new(0).records(1_000).payload(10).build();
        assert!(matches!(decode_batch(&crowded), Err(RecordsError::Malformed { .. })));
    }
}
