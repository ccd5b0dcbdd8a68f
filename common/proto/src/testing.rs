//! Batches made by hand for tests: of this crate, and of whoever drives it without a broker.

use bytes::{BufMut, Bytes, BytesMut};

use crate::batch::Batch;
use crate::id::Offset;

/// Builds a v2 batch with a valid CRC; the record section is filler, not decodable records.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    base_offset: Offset,
    records: i32,
    last_offset_delta: Option<i32>,
    attributes: u16,
    timestamps: (i64, i64),
    stamp: (i64, i16, i32),
    payload: usize,
    fill: u8,
    leader_epoch: i32,
}

impl BatchBuilder {
    /// A batch of one record at `base_offset`.
    pub fn new(base_offset: Offset) -> Self {
        Self {
            base_offset,
            records: 1,
            last_offset_delta: None,
            attributes: 0,
            timestamps: (0, 0),
            stamp: (-1, -1, -1),
            payload: 10,
            fill: 7,
            leader_epoch: 0,
        }
    }

    /// Record count; the last offset follows from it unless set.
    #[must_use]
    pub fn records(mut self, records: i32) -> Self {
        self.records = records;
        self
    }

    /// Last offset delta, where it is to differ from the record count less one.
    #[must_use]
    pub fn last_offset_delta(mut self, delta: i32) -> Self {
        self.last_offset_delta = Some(delta);
        self
    }

    /// Marks the batch as part of a transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.attributes |= 0x10;
        self
    }

    /// Sets attribute bits.
    #[must_use]
    pub fn attributes(mut self, bits: u16) -> Self {
        self.attributes |= bits;
        self
    }

    /// Base and largest timestamp, in milliseconds since 1970.
    #[must_use]
    pub fn timestamps(mut self, base: i64, max: i64) -> Self {
        self.timestamps = (base, max);
        self
    }

    /// Producer id, epoch and base sequence.
    #[must_use]
    pub fn stamp(mut self, producer_id: i64, epoch: i16, sequence: i32) -> Self {
        self.stamp = (producer_id, epoch, sequence);
        self
    }

    /// Size of the record section in bytes.
    #[must_use]
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// Byte the record section is filled with: what makes two batches differ.
    #[must_use]
    pub fn fill(mut self, byte: u8) -> Self {
        self.fill = byte;
        self
    }

    /// Epoch of the leader that is to have stored the batch.
    #[must_use]
    pub fn leader_epoch(mut self, epoch: i32) -> Self {
        self.leader_epoch = epoch;
        self
    }

    /// The bytes, whether or not they make up a batch.
    pub fn bytes(&self) -> Bytes {
        let mut covered = BytesMut::new();
        covered.put_u16(self.attributes);
        covered.put_i32(self.last_offset_delta.unwrap_or(self.records - 1));
        covered.put_i64(self.timestamps.0);
        covered.put_i64(self.timestamps.1);
        covered.put_i64(self.stamp.0);
        covered.put_i16(self.stamp.1);
        covered.put_i32(self.stamp.2);
        covered.put_i32(self.records);
        covered.put_bytes(self.fill, self.payload);
        let mut batch = BytesMut::new();
        batch.put_i64(self.base_offset);
        batch.put_i32(i32::try_from(covered.len() + 9).expect("small"));
        batch.put_i32(self.leader_epoch);
        batch.put_i8(2);
        batch.put_u32(crc32c::crc32c(&covered));
        batch.extend_from_slice(&covered);
        batch.freeze()
    }

    /// The batch. Panics if the fields are out of range.
    pub fn build(&self) -> Batch {
        Batch::parse(self.bytes()).expect("fields in range")
    }
}
