//! A frame on its way out: batches from memory, or a frame that the journal has kept encoded.

use bytes::Bytes;

use crate::frame::{EncodedFrame, Entry, Packed};
use crate::id::{MirrorId, Offset, Partition};

/// A frame to be sent, chosen a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Mirror of this session.
    pub mirror: MirrorId,
    /// Run the frame belongs to.
    pub run: u32,
    /// Partition.
    pub partition: Partition,
    /// What it holds.
    pub body: OutgoingBody,
}

/// What an [`Outgoing`] frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutgoingBody {
    /// Batches from memory, at least one, to be encoded.
    Entries(Vec<Entry>),
    /// Encoded when it was spilled.
    Packed(Packed),
}

impl Outgoing {
    /// First offset.
    pub fn first_offset(&self) -> Offset {
        match &self.body {
            OutgoingBody::Entries(entries) => entries.first().map_or(0, Entry::offset),
            OutgoingBody::Packed(packed) => packed.first_offset,
        }
    }

    /// Offset after the last.
    pub fn next_offset(&self) -> Offset {
        match &self.body {
            OutgoingBody::Entries(entries) => entries.last().map_or(0, Entry::next_offset),
            OutgoingBody::Packed(packed) => packed.next_offset,
        }
    }

    /// Bytes of the raw body: what credit is counted in.
    pub fn bytes(&self) -> usize {
        match &self.body {
            OutgoingBody::Entries(entries) => entries.iter().map(Entry::bytes).sum(),
            OutgoingBody::Packed(packed) => packed.raw_bytes,
        }
    }

    /// The frame's bytes, in pieces to be sent one after another. Batches from memory are encoded here.
    pub fn encode(self) -> Vec<Bytes> {
        let packed = match self.body {
            OutgoingBody::Entries(entries) => Packed::new(&entries),
            OutgoingBody::Packed(packed) => packed,
        };
        EncodedFrame { mirror: self.mirror, run: self.run, partition: self.partition, packed }.encode()
    }
}
