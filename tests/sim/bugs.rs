//! Bugs put in on purpose, in the shells around the shipped state machines: what a simulation that would not find them is
//! worth is nothing.

use bytes::Bytes;
use tombolo_proto::batch::{Batch, Stamp};
use tombolo_proto::edge::{Checkpoint, CheckpointPartition, EdgePartitionStatus, EdgeStatus};
use tombolo_proto::id::{Offset, Partition, TopicName};

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
    /// The journal lets go of what was sent, confirmed or not.
    TrimBeforeConfirm,
    /// The journal says that frames are durable before they are.
    SkipSync,
    /// A frame of the journal overtakes the one before it.
    DrainOutOfOrder,
    /// A topic that was made anew counts as the old one.
    OldTopicShipped,
    /// The checkpoint says that the cloud has what was only fetched.
    CheckpointAhead,
    /// Markers count as appended as soon as they are sent.
    ConfirmBeforeMarkers,
    /// Markers that a dead connection took along are sent again without a look at the log.
    ResendMarkers,
    /// Markers whose fate is unknown count as appended, and data follows.
    AssumeMarkers,
    /// An answer without an error counts as all of the markers that were asked for.
    TrustMarkerCount,
    /// Filler of a fast-forward that was killed stays.
    FillerLeft,
    /// What is lost at the source becomes a gap that no ledger tells of.
    LossUnrecorded,
    /// What the source has deleted passes for offsets that never held a record.
    LossAsGap,
    /// Records are read up to the high watermark, transactions that may yet be aborted among them.
    ReadUncommitted,
}

type Place = (TopicName, Partition, Offset);

/// What is told to the journal as confirmed, as somebody tells it who does not wait for the confirms.
pub(crate) fn trim_what_was_sent(confirmed: &mut [Place], status: &EdgeStatus) {
    for (topic, partition, offset) in confirmed {
        *offset = partition_of(status, topic, *partition).and_then(|at| at.sent).unwrap_or(*offset);
    }
}

/// A checkpoint as somebody keeps it who takes what was fetched for what was confirmed.
pub(crate) fn keep_what_was_fetched(checkpoint: &mut Checkpoint, status: &EdgeStatus) {
    for CheckpointPartition { topic, partition, confirmed, .. } in &mut checkpoint.partitions {
        *confirmed = partition_of(status, topic, *partition).and_then(|at| at.fetched).unwrap_or(*confirmed);
    }
}

fn partition_of<'a>(
    status: &'a EdgeStatus,
    topic: &TopicName,
    partition: Partition,
) -> Option<&'a EdgePartitionStatus> {
    let mirror = status.mirrors.iter().find(|mirror| mirror.topic == *topic)?;
    mirror.partitions.get(usize::try_from(partition).ok()?)
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
            let violation = violation.filter(|violation| rules.contains(&violation.rule));
            // A seed that fails anyway shows nothing about the bug.
            if let Some(violation) = violation.filter(|_| holds_without(seed)) {
                crate::print(&format!("{bug:?}: seed {seed} finds {:?}: {:.160}", violation.rule, violation.text));
                return;
            }
        }
        panic!("{bug:?} was not caught by {SEEDS} seeds");
    }

    fn holds_without(seed: u64) -> bool {
        run_caught(seed, None).is_ok_and(|ended| ended.violation.is_none())
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

    #[test]
    fn trimming_before_the_confirm_is_caught() {
        is_caught(Bug::TrimBeforeConfirm, &[Rule::Kept]);
    }

    #[test]
    fn a_skipped_sync_is_caught() {
        is_caught(Bug::SkipSync, &[Rule::Kept]);
    }

    #[test]
    fn draining_out_of_order_is_caught() {
        is_caught(Bug::DrainOutOfOrder, &[Rule::Protocol]);
    }

    #[test]
    fn shipping_the_journal_of_an_old_topic_is_caught() {
        is_caught(Bug::OldTopicShipped, &[Rule::Prefix]);
    }

    #[test]
    fn confirming_a_gap_before_its_markers_are_answered_is_caught() {
        is_caught(Bug::ConfirmBeforeMarkers, &[Rule::Confirmed]);
    }

    #[test]
    fn a_marker_resent_without_looking_at_the_log_is_caught() {
        is_caught(Bug::ResendMarkers, &[Rule::Prefix]);
    }

    #[test]
    fn data_behind_a_marker_whose_fate_is_unknown_is_caught() {
        is_caught(Bug::AssumeMarkers, &[Rule::Prefix, Rule::BaseOffset, Rule::Confirmed]);
    }

    #[test]
    fn trusting_the_count_of_markers_is_caught() {
        is_caught(Bug::TrustMarkerCount, &[Rule::Prefix, Rule::BaseOffset, Rule::Confirmed]);
    }

    #[test]
    fn filler_left_behind_is_caught() {
        is_caught(Bug::FillerLeft, &[Rule::Start]);
    }

    #[test]
    fn an_unrecorded_loss_is_caught() {
        is_caught(Bug::LossUnrecorded, &[Rule::Prefix]);
    }

    #[test]
    fn a_loss_that_passes_for_a_gap_is_caught() {
        is_caught(Bug::LossAsGap, &[Rule::Prefix]);
    }

    #[test]
    fn reading_uncommitted_records_is_caught() {
        is_caught(Bug::ReadUncommitted, &[Rule::Prefix]);
    }

    #[test]
    fn a_checkpoint_ahead_of_the_journal_is_caught() {
        is_caught(Bug::CheckpointAhead, &[Rule::Kept]);
    }
}
