//! A batch of a source's log, with records that can be read: what compaction takes away must be left out of them.

use bytes::{BufMut, Bytes, BytesMut};
use tombolo_proto::batch::Batch;
use tombolo_proto::id::Offset;

/// Bytes of a record beyond its value, at most.
const RECORD_OVERHEAD: usize = 9;
/// The first record's value begins with the batch's number, which makes it different from every other.
const SERIAL_BYTES: usize = 8;
const TRANSACTIONAL: u16 = 0x10;
const CONTROL: u16 = 0x30;

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Abort = 0,
    Commit = 1,
}

/// A batch, and what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(super) batch: Batch,
    base: Offset,
    records: i32,
    /// Offsets from the base of records that are still there.
    live: Vec<i32>,
    serial: i64,
    fill: u8,
    first_value: usize,
    timestamp: i64,
    leader_epoch: i32,
    /// Producer of the transaction it belongs to.
    pub(super) producer: Option<i64>,
    pub(super) end: Option<End>,
}

/// What a new batch is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct New {
    pub(super) base: Offset,
    pub(super) records: i32,
    /// Bytes of the record section, about.
    pub(super) bytes: usize,
    pub(super) serial: i64,
    pub(super) fill: u8,
    pub(super) timestamp: i64,
    pub(super) leader_epoch: i32,
    pub(super) producer: Option<i64>,
}

impl Item {
    pub(super) fn new(new: New) -> Self {
        let New { base, bytes, serial, fill, timestamp, leader_epoch, producer, .. } = new;
        let most = (bytes.saturating_sub(SERIAL_BYTES) / RECORD_OVERHEAD).max(1);
        let records = new.records.clamp(1, i32::try_from(most).expect("small"));
        let count = usize::try_from(records).expect("positive");
        let first_value = bytes.saturating_sub(count * RECORD_OVERHEAD).max(SERIAL_BYTES);
        let live = (0..records).collect();
        let mut item = Self {
            batch: Batch::parse(raw(&Header::default(), &[])).expect("a batch without records"),
            base,
            records,
            live,
            serial,
            fill,
            first_value,
            timestamp,
            leader_epoch,
            producer,
            end: None,
        };
        item.build();
        item
    }

    /// The marker that ends a transaction.
    pub(super) fn marker(base: Offset, producer: i64, end: End, (timestamp, leader_epoch): (i64, i32)) -> Self {
        let header = Header {
            base,
            leader_epoch,
            attributes: CONTROL,
            timestamp,
            producer: (producer, -1),
            count: 1,
            last_delta: 0,
        };
        // Version 0, and the type of its end; a value of six bytes (`ControlRecordType`, `EndTransactionMarker`).
        let kind = end as u8;
        let record = [32, 0, 0, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 0, 0, 0];
        Self {
            batch: Batch::parse(raw(&header, &record)).expect("in range"),
            base,
            records: 1,
            live: Vec::new(),
            serial: 0,
            fill: 0,
            first_value: 0,
            timestamp,
            leader_epoch,
            producer: Some(producer),
            end: Some(end),
        }
    }

    fn build(&mut self) {
        let mut section = BytesMut::new();
        for &delta in &self.live {
            let mut value = BytesMut::new();
            if delta == 0 {
                value.put_i64(self.serial);
                value.put_bytes(self.fill, self.first_value - SERIAL_BYTES);
            } else {
                value.put_u8(self.fill);
            }
            let mut record = BytesMut::new();
            // Attributes and timestamp delta.
            record.put_slice(&[0, 0]);
            put_varint(&mut record, delta);
            put_varint(&mut record, -1);
            put_varint(&mut record, i32::try_from(value.len()).expect("small"));
            record.put_slice(&value);
            put_varint(&mut record, 0);
            put_varint(&mut section, i32::try_from(record.len()).expect("small"));
            section.put_slice(&record);
        }
        let sequence = i32::try_from(self.serial & 0xffff).expect("masked");
        let header = Header {
            base: self.base,
            leader_epoch: self.leader_epoch,
            attributes: if self.producer.is_some() { TRANSACTIONAL } else { 0 },
            timestamp: self.timestamp,
            producer: self.producer.map_or((-1, -1), |producer| (producer, sequence)),
            count: i32::try_from(self.live.len()).expect("small"),
            last_delta: self.records - 1,
        };
        self.batch = Batch::parse(raw(&header, &section)).expect("in range");
    }

    /// A disk that turns bits.
    pub(super) fn damage(&mut self) {
        let mut damaged = self.batch.bytes().to_vec();
        if let Some(last) = damaged.last_mut() {
            *last ^= 1;
        }
        self.batch = Batch::parse(damaged.into()).expect("its header is whole");
    }

    /// Takes away the records that `goes` names; says which offsets that leaves without one.
    pub(super) fn thin(&mut self, mut goes: impl FnMut() -> bool) -> Vec<Offset> {
        let mut gone = Vec::new();
        self.live.retain(|&delta| {
            let goes = goes();
            if goes {
                gone.push(self.base + i64::from(delta));
            }
            !goes
        });
        self.build();
        gone
    }

    pub(super) fn has_records(&self) -> bool {
        !self.live.is_empty()
    }
}

#[derive(Debug, Default)]
struct Header {
    base: Offset,
    leader_epoch: i32,
    attributes: u16,
    timestamp: i64,
    /// Id and base sequence.
    producer: (i64, i32),
    count: i32,
    last_delta: i32,
}

fn raw(header: &Header, section: &[u8]) -> Bytes {
    let mut covered = BytesMut::new();
    covered.put_u16(header.attributes);
    covered.put_i32(header.last_delta);
    covered.put_i64(header.timestamp);
    covered.put_i64(header.timestamp);
    covered.put_i64(header.producer.0);
    covered.put_i16(if header.producer.0 < 0 { -1 } else { 0 });
    covered.put_i32(header.producer.1);
    covered.put_i32(header.count);
    covered.put_slice(section);
    let mut batch = BytesMut::with_capacity(covered.len() + 21);
    batch.put_i64(header.base);
    batch.put_i32(i32::try_from(covered.len() + 9).expect("small"));
    batch.put_i32(header.leader_epoch);
    batch.put_i8(2);
    batch.put_u32(crc32c::crc32c(&covered));
    batch.put_slice(&covered);
    batch.freeze()
}

/// `ByteUtils.writeVarint`: zig-zag, seven bits a byte.
fn put_varint(bytes: &mut BytesMut, value: i32) {
    let mut left = (value.cast_unsigned() << 1) ^ (value >> 31).cast_unsigned();
    while left >= 0x80 {
        bytes.put_u8(u8::try_from(left & 0x7f).expect("seven bits") | 0x80);
        left >>= 7;
    }
    bytes.put_u8(u8::try_from(left).expect("seven bits"));
}
