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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties::Rule;
    use crate::run_caught;

    /// Seeds tried before a bug counts as not found.
    const SEEDS: u64 = 1_200;

    /// Runs seeds until one finds the bug by one of `rules`; says how many that took.
    fn is_caught(bug: Bug, rules: &[Rule]) {
        for seed in 0..SEEDS {
            let violation = run_caught(seed, Some(bug)).expect("no bug here makes the shipped code panic").violation;
            if let Some(violation) = violation.filter(|violation| rules.contains(&violation.rule)) {
                crate::print(&format!("{bug:?}: seed {seed} finds {:?}: {:.160}", violation.rule, violation.text));
                return;
            }
        }
        panic!("{bug:?} was not caught by {SEEDS} seeds");
    }

    #[test]
    fn confirm_before_the_answer_is_caught() {
        is_caught(Bug::ConfirmBeforeAnswer, &[Rule::Confirmed]);
    }

    #[test]
    fn trusting_any_base_offset_is_caught() {
        is_caught(Bug::TrustAnyBaseOffset, &[Rule::BaseOffset]);
    }

    #[test]
    fn a_wrong_sequence_wrap_is_caught() {
        is_caught(Bug::WrongWrap, &[Rule::FailStop, Rule::Liveness]);
    }

    /// By what it does to the mirror: that a paused gateway wakes and its late batch is taken in another's place, which
    /// needs a broker that has forgotten the producer. Compare-and-append alone makes it harmless otherwise.
    #[test]
    fn ignoring_the_lease_is_caught() {
        is_caught(Bug::IgnoreLease, &[Rule::Prefix]);
    }

    #[test]
    fn resuming_without_the_tail_comparison_is_caught() {
        is_caught(Bug::ResumeWithoutTail, &[Rule::Prefix]);
    }
}
