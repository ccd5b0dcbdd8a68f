//! A v2 batch by hand (`org.apache.kafka.common.record.DefaultRecordBatch`), as right or as wrong as a test wants it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) const TRANSACTIONAL: i16 = 0x10;
pub(crate) const CONTROL: i16 = 0x20;
/// Where the part begins that the CRC covers.
pub(crate) const ATTRIBUTES: usize = 21;

/// What to put into the header; records have no key and a value of their own each.
#[derive(Clone, Debug)]
pub(crate) struct HandMade {
    pub(crate) base_offset: i64,
    pub(crate) attributes: i16,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) records: i32,
    /// What the header says; `None` is the truth.
    pub(crate) last_offset_delta: Option<i32>,
    pub(crate) timestamp: i64,
    /// What makes two batches differ.
    pub(crate) value: String,
    /// Spoils the CRC.
    pub(crate) bad_crc: bool,
}

impl HandMade {
    /// One record of this producer (epoch 0) at this sequence, written now.
    pub(crate) fn new(producer_id: i64, sequence: i32) -> Self {
        Self {
            base_offset: 0,
            attributes: 0,
            producer_id,
            epoch: 0,
            sequence,
            records: 1,
            last_offset_delta: None,
            timestamp: milliseconds(Duration::ZERO),
            value: "value".to_owned(),
            bad_crc: false,
        }
    }

    pub(crate) fn records(self, records: i32) -> Self {
        Self { records, ..self }
    }

    pub(crate) fn epoch(self, epoch: i16) -> Self {
        Self { epoch, ..self }
    }

    /// Timestamps this far in the past.
    pub(crate) fn age(self, age: Duration) -> Self {
        Self { timestamp: milliseconds(age), ..self }
    }

    pub(crate) fn value(self, value: &str) -> Self {
        Self { value: value.to_owned(), ..self }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        let mut covered = BytesMut::new();
        covered.put_i16(self.attributes);
        covered.put_i32(self.last_offset_delta.unwrap_or(self.records - 1));
        covered.put_i64(self.timestamp);
        covered.put_i64(self.timestamp);
        covered.put_i64(self.producer_id);
        covered.put_i16(self.epoch);
        covered.put_i32(self.sequence);
        covered.put_i32(self.records);
        for delta in 0..self.records {
            let mut record = BytesMut::new();
            record.put_i8(0);
            varint(&mut record, 0);
            varint(&mut record, i64::from(delta));
            varint(&mut record, -1);
            let value = format!("{}-{delta}", self.value);
            varint(&mut record, i64::try_from(value.len()).unwrap());
            record.put_slice(value.as_bytes());
            varint(&mut record, 0);
            varint(&mut covered, i64::try_from(record.len()).unwrap());
            covered.put_slice(&record);
        }
        let mut batch = BytesMut::new();
        batch.put_i64(self.base_offset);
        // Leader epoch, magic and CRC lie between the length field and what the CRC covers.
        batch.put_i32(i32::try_from(covered.len()).unwrap() + 4 + 1 + 4);
        batch.put_i32(-1);
        batch.put_i8(2);
        batch.put_u32(crc32c::crc32c(&covered) ^ u32::from(self.bad_crc));
        batch.put_slice(&covered);
        batch.freeze()
    }
}

/// Zigzag, then seven bits a byte.
fn varint(buffer: &mut BytesMut, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        buffer.put_u8(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    buffer.put_u8(u8::try_from(left).unwrap());
}

fn milliseconds(age: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.saturating_sub(age).as_millis()).unwrap()
}
