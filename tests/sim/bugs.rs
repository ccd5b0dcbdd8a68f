//! Bugs put in on purpose, in the shells around the shipped state machines: what a simulation that would not find them is
//! worth is nothing.

use bytes::Bytes;
use tombolo_proto::batch::{Batch, Stamp};
use tombolo_proto::id::Offset;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A batch counts as appended as soon as it is sent.
    ConfirmBeforeAnswer,
    /// Any base offset in an answer is taken for the right one.
    TrustAnyBaseOffset,
    /// Sequences wrap one too early.
    WrongWrap,
    /// Writes go out whether the lease permits them or not.
    IgnoreLease,
    /// A session goes on at the cloud's log end without comparing what is below it.
    ResumeWithoutTail,
}

/// The batch of offset `offset` as somebody stamps it who counts modulo 2^31 - 1, the largest sequence, instead of 2^31.
pub(crate) fn wrongly_wrapped(batch: &Bytes, offset: Offset) -> Bytes {
    if offset <= i64::from(i32::MAX) {
        return batch.clone();
    }
    let batch = Batch::parse(batch.clone()).expect("stamped by the mirror");
    batch.stamped(Stamp { producer_id: batch.producer_id(), sequence: batch.base_sequence() + 1 })
}
