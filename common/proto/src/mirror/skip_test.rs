//! What a partition promises about gaps: markers are not deduplicated, so each is counted by where the log ends.

use super::tests::{ID, appended, batch, empty, failure, live, ours, outputs};
use super::*;
use crate::batch::Batch;
use crate::limits::MAX_MARKERS;
use crate::testing::BatchBuilder;
use crate::wire::TailBatch;

const NOW: Time = Time::from_secs(50);

pub(super) fn gap(offset: Offset, count: i64) -> Entry {
    Entry::Gap { offset, count }
}

pub(super) fn control(offset: Offset) -> Batch {
    BatchBuilder::new(offset).attributes(0x30).stamp(ID, 0, -1).build()
}

pub(super) fn log_end(log_end: Offset) -> SkipOutcome {
    SkipOutcome::Appended { log_end }
}

pub(super) fn in_doubt() -> SkipOutcome {
    SkipOutcome::Doubt { reason: "connection lost".to_owned() }
}

/// The one skip that is asked for: ticket, offset, count.
fn skip(mirror: &mut Mirror) -> (u64, Offset, i64) {
    match outputs(mirror)[..] {
        [MirrorOutput::Skip { ticket, offset, count }] => (ticket, offset, count),
        ref other => panic!("expected a skip, got {other:?}"),
    }
}

fn asks(mirror: &mut Mirror) -> u32 {
    match outputs(mirror)[..] {
        [MirrorOutput::Recover { attempt }] => attempt,
        ref other => panic!("expected a look at the log end, got {other:?}"),
    }
}

/// Waits out the settle time, then a look at the log end finds this.
fn settles(mirror: &mut Mirror, found: Offset) {
    assert_eq!(outputs(mirror), [], "not before the settle time is over");
    let until = mirror.next_timeout().expect("waits");
    assert_eq!(until, NOW + MARKER_SETTLE);
    mirror.handle_timeout(until);
    let attempt = asks(mirror);
    mirror.recovered(attempt, &empty(found));
}

/// Sequence of the one batch that is asked for.
fn sequence(mirror: &mut Mirror) -> i32 {
    match &outputs(mirror)[..] {
        [MirrorOutput::Produce { batch, .. }] => Batch::parse(batch.clone()).expect("a batch").base_sequence(),
        other => panic!("expected a batch, got {other:?}"),
    }
}

#[test]
fn a_gap_waits_for_what_is_in_flight_and_what_lies_behind_it_waits_for_the_gap() {
    let mut mirror = live(0);
    for entry in [batch(0, 1), batch(1, 1), gap(2, 3), batch(5, 1)] {
        mirror.receive(entry);
    }
    assert_eq!(outputs(&mut mirror).len(), 1, "the first batch alone");
    mirror.produced(0, appended(0));
    assert_eq!(outputs(&mut mirror).len(), 1, "the second batch, and no marker with it");
    mirror.produced(1, appended(1));
    assert_eq!(skip(&mut mirror), (2, 2, 3));
    assert_eq!(mirror.progress(), CloudProgress { confirmed: 2, produced: 5, received: 6 });
    mirror.receive(batch(6, 1));
    mirror.receive(gap(7, 1));
    mirror.look_again();
    assert_eq!(outputs(&mut mirror), [], "the answer comes first");
    assert!(mirror.is_live());
    mirror.skipped(2, log_end(5), NOW);
    assert_eq!(mirror.progress(), CloudProgress { confirmed: 5, produced: 6, received: 8 });
    assert_eq!(sequence(&mut mirror), 2, "markers take no sequence");
    mirror.produced(3, appended(5));
    assert_eq!(sequence(&mut mirror), 3);
    mirror.produced(4, appended(6));
    assert_eq!(skip(&mut mirror), (5, 7, 1));
    mirror.skipped(5, log_end(8), NOW);
    assert_eq!((mirror.progress(), mirror.held_bytes()), (CloudProgress::at(8), 0));
    assert_eq!(mirror.gap_offsets(), 2, "a gap of three, less the two records behind it, and one more");
}

#[test]
fn markers_go_out_in_bounded_requests_one_after_another() {
    let mut mirror = live(0);
    mirror.receive(gap(0, 2 * MAX_MARKERS + 1));
    for (ticket, (offset, count)) in (0..).zip([(0, MAX_MARKERS), (MAX_MARKERS, MAX_MARKERS), (2 * MAX_MARKERS, 1)]) {
        assert_eq!(skip(&mut mirror), (ticket, offset, count));
        assert_eq!(mirror.held_bytes(), 9);
        mirror.skipped(ticket, log_end(offset + count), NOW);
    }
    assert_eq!(outputs(&mut mirror), []);
    assert_eq!(mirror.progress(), CloudProgress::at(2 * MAX_MARKERS + 1));
}

#[test]
fn gaps_that_meet_are_one_also_while_they_are_skipped() {
    let mut mirror = live(0);
    mirror.receive(gap(0, 2));
    assert_eq!(skip(&mut mirror), (0, 0, 2));
    mirror.receive(gap(2, 3));
    assert_eq!(mirror.held_bytes(), 9);
    mirror.skipped(0, log_end(2), NOW);
    assert_eq!(skip(&mut mirror), (1, 2, 3));
}

#[test]
fn a_gap_is_clipped_at_the_mirrors_end() {
    let mut mirror = live(5);
    assert_eq!(mirror.receive(gap(2, 3)), Decision::AlreadyThere);
    assert_eq!(mirror.receive(gap(2, 7)), Decision::Skip);
    assert_eq!(skip(&mut mirror), (0, 5, 4));
    assert_eq!(mirror.receive(gap(10, 1)), Decision::Wait);
    assert_eq!(mirror.receive(gap(6, 5)), Decision::Skip);
    assert_eq!((mirror.progress().received, mirror.gap_offsets()), (11, 6));
    let mut mirror = live(5);
    assert_eq!(mirror.receive(batch(4, 3)), Decision::Diverged, "a batch is not");
}

#[test]
fn an_answer_that_hides_a_failure_goes_on_with_the_rest() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 5));
    assert_eq!(skip(&mut mirror), (0, 10, 5));
    mirror.skipped(0, log_end(13), NOW);
    assert_eq!(mirror.progress().confirmed, 13);
    assert_eq!(skip(&mut mirror), (1, 13, 2), "an answered request has nothing left to come");
    mirror.skipped(1, log_end(15), NOW);
    assert_eq!(mirror.progress(), CloudProgress::at(15));
}

#[test]
fn an_answer_that_moved_nothing_is_a_doubt() {
    for found in [10, 8] {
        let mut mirror = live(10);
        mirror.receive(gap(10, 2));
        skip(&mut mirror);
        mirror.skipped(0, log_end(found), NOW);
        assert!(mirror.last_doubt().is_some() && !mirror.is_live());
        settles(&mut mirror, found);
        if found == 10 {
            assert_eq!(skip(&mut mirror), (1, 10, 2), "it was answered: nothing is late");
        } else {
            assert!(matches!(
                outputs(&mut mirror)[..],
                [MirrorOutput::Position { run: 2, next_offset: 8, rewind: true, .. }]
            ));
        }
    }
}

#[test]
fn more_than_the_gap_is_a_foreign_write() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 3));
    mirror.receive(batch(13, 1));
    skip(&mut mirror);
    mirror.skipped(0, log_end(14), NOW);
    let failure = failure(&mut mirror);
    assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::ForeignWrite, Some(13), Some(14)));
    assert_eq!(mirror.progress().confirmed, 10);
}

#[test]
fn a_refusal_names_the_right_that_is_missing() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 3));
    skip(&mut mirror);
    mirror.skipped(0, SkipOutcome::Refused { reason: "CLUSTER_AUTHORIZATION_FAILED".to_owned() }, NOW);
    let failure = failure(&mut mirror);
    assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::CloudRefused, Some(10), Some(13)));
    assert!(failure.detail.contains("--operation Alter --cluster"), "{failure}");
}

#[test]
fn markers_in_doubt_are_sent_again_but_one_and_the_last_after_another_look() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 4));
    assert_eq!(skip(&mut mirror), (0, 10, 4));
    mirror.skipped(0, in_doubt(), NOW);
    settles(&mut mirror, 10);
    assert_eq!(skip(&mut mirror), (1, 10, 3), "one may come late");
    mirror.skipped(1, log_end(13), NOW);
    assert_eq!(asks(&mut mirror), 3);
    mirror.recovered(3, &empty(13));
    assert_eq!(skip(&mut mirror), (2, 13, 1));
    mirror.skipped(2, log_end(14), NOW);
    assert_eq!((mirror.progress(), mirror.last_doubt()), (CloudProgress::at(14), None));
    mirror.receive(gap(14, 4));
    assert_eq!(skip(&mut mirror), (3, 14, 4), "the doubt is over");
}

#[test]
fn a_late_marker_in_the_gap_is_counted() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 4));
    skip(&mut mirror);
    mirror.skipped(0, in_doubt(), NOW);
    settles(&mut mirror, 12);
    assert_eq!(mirror.progress().confirmed, 12);
    assert_eq!(skip(&mut mirror), (1, 12, 1), "two of four may come late, two are left");
    mirror.skipped(1, log_end(14), NOW);
    assert_eq!(mirror.progress(), CloudProgress { confirmed: 13, produced: 13, received: 14 }, "what was answered");
    let attempt = asks(&mut mirror);
    let recovery = Recovery { tail: vec![control(12), control(13)], ..empty(14) };
    mirror.recovered(attempt, &recovery);
    assert_eq!(mirror.progress(), CloudProgress::at(14));
}

#[test]
fn as_long_as_the_gap_has_room_no_late_marker_does_harm() {
    let mut mirror = live(0);
    mirror.receive(gap(0, MAX_MARKERS + 10));
    assert_eq!(skip(&mut mirror), (0, 0, MAX_MARKERS));
    mirror.skipped(0, in_doubt(), NOW);
    settles(&mut mirror, 0);
    assert_eq!(skip(&mut mirror), (1, 0, 10));
    mirror.skipped(1, log_end(MAX_MARKERS + 10), NOW);
    let attempt = asks(&mut mirror);
    mirror.recovered(attempt, &empty(MAX_MARKERS + 10));
    assert_eq!(mirror.progress(), CloudProgress::at(MAX_MARKERS + 10));
}

#[test]
fn a_single_marker_in_doubt_is_sent_again_after_the_settle_time() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 1));
    mirror.receive(batch(11, 1));
    skip(&mut mirror);
    mirror.skipped(0, in_doubt(), NOW);
    settles(&mut mirror, 10);
    assert_eq!(skip(&mut mirror), (1, 10, 1));
    mirror.skipped(1, in_doubt(), NOW);
    settles(&mut mirror, 11);
    assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Produce { offset: 11, .. }]));
}

#[test]
fn a_late_marker_in_the_place_of_a_batch_fails() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 1));
    mirror.receive(batch(11, 1));
    mirror.receive(batch(12, 1));
    skip(&mut mirror);
    mirror.skipped(0, log_end(11), NOW);
    outputs(&mut mirror);
    mirror.produced(1, Outcome::Doubt { reason: "connection lost".to_owned() });
    let attempt = asks(&mut mirror);
    let tail = vec![control(10), control(11)];
    mirror.recovered(attempt, &Recovery { tail, ..empty(12) });
    let failure = failure(&mut mirror);
    assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::Diverged, Some(11), Some(12)));
}

#[test]
fn a_batch_that_is_not_the_one_sent_fails() {
    let found = |batch: BatchBuilder| batch.stamp(ID, 0, 0).build();
    let table = [
        (found(BatchBuilder::new(11)), gap(11, 2), FailureCode::Diverged),
        (found(BatchBuilder::new(11).fill(8)), batch(11, 1), FailureCode::Diverged),
        (BatchBuilder::new(11).stamp(3, 0, 0).build(), batch(11, 1), FailureCode::ForeignWrite),
    ];
    for (found, sent, code) in table {
        let mut mirror = live(10);
        mirror.receive(batch(10, 1));
        mirror.receive(sent);
        outputs(&mut mirror);
        mirror.produced(0, Outcome::Doubt { reason: "connection lost".to_owned() });
        let attempt = asks(&mut mirror);
        mirror.recovered(attempt, &Recovery { tail: vec![ours(10, 1), found], ..empty(12) });
        assert_eq!(failure(&mut mirror).code, code);
    }
}

#[test]
fn a_border_proves_nothing_where_markers_may_have_come_late() {
    let doubtful = || {
        let mut mirror = live(10);
        for entry in [gap(10, 2), batch(12, 2), gap(14, 3)] {
            mirror.receive(entry);
        }
        skip(&mut mirror);
        mirror.skipped(0, in_doubt(), NOW);
        mirror.handle_timeout(NOW + MARKER_SETTLE);
        asks(&mut mirror);
        mirror
    };
    for (found, from) in [(14, 12), (15, 12)] {
        let mut mirror = doubtful();
        mirror.recovered(2, &empty(found));
        let failure = failure(&mut mirror);
        let extent = (failure.offset, failure.end_offset);
        assert_eq!((failure.code, extent), (FailureCode::ForeignWrite, (Some(from), Some(found))));
    }
    let mut mirror = doubtful();
    let tail = vec![control(11), ours(12, 2)];
    mirror.recovered(2, &Recovery { tail, ..empty(14) });
    assert_eq!(mirror.progress().confirmed, 14, "it is there to be seen");
}

#[test]
fn the_log_may_end_inside_a_gap() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 2));
    mirror.receive(gap(2, 4));
    outputs(&mut mirror);
    mirror.produced(0, Outcome::Doubt { reason: "connection lost".to_owned() });
    let attempt = asks(&mut mirror);
    mirror.recovered(attempt, &Recovery { tail: vec![ours(0, 2), control(2)], ..empty(3) });
    assert_eq!(skip(&mut mirror), (1, 3, 3));
}

#[test]
fn an_entry_that_markers_made_begins_at_sequence_0() {
    let table = [(None, 7, 0), (Some(-1), 7, 0), (Some(40), 7, 41)];
    for (last_sequence, end, expected) in table {
        let mut mirror = Mirror::new(0, ID);
        mirror.recover();
        outputs(&mut mirror);
        mirror.recovered(1, &Recovery { last_sequence, ..empty(end) });
        outputs(&mut mirror);
        mirror.receive(gap(end, 2));
        mirror.receive(batch(end + 2, 1));
        skip(&mut mirror);
        mirror.skipped(0, log_end(end + 2), NOW);
        assert_eq!(sequence(&mut mirror), expected, "{last_sequence:?}");
    }
    let mut mirror = live(7);
    mirror.receive(batch(7, 1));
    mirror.receive(gap(8, 1));
    mirror.receive(batch(9, 1));
    assert_eq!(sequence(&mut mirror), 7);
    mirror.produced(0, appended(7));
    skip(&mut mirror);
    mirror.skipped(1, log_end(9), NOW);
    assert_eq!(sequence(&mut mirror), 8, "a batch made the entry first");
}

#[test]
fn a_position_tells_markers_as_gaps() {
    let mut mirror = Mirror::new(0, ID);
    mirror.recover();
    outputs(&mut mirror);
    let tail = vec![ours(3, 2), control(5), control(6), ours(7, 1), control(8)];
    mirror.recovered(1, &Recovery { tail, ..empty(9) });
    let expected = [TailBatch::of(&ours(3, 2)), TailBatch::gap(5, 7), TailBatch::of(&ours(7, 1)), TailBatch::gap(8, 9)];
    assert!(matches!(&outputs(&mut mirror)[..], [MirrorOutput::Position { tail, .. }] if *tail == expected));
}

#[test]
fn a_stop_does_not_forget_markers_that_are_not_answered() {
    let answers = [log_end(12), in_doubt(), SkipOutcome::Refused { reason: "no".to_owned() }];
    for answer in answers {
        let mut mirror = live(10);
        mirror.receive(gap(10, 2));
        skip(&mut mirror);
        mirror.stop();
        mirror.recover();
        assert_eq!(outputs(&mut mirror), [], "they may yet be appended");
        let doubt = answer == in_doubt();
        mirror.skipped(0, answer, NOW);
        if doubt {
            settles(&mut mirror, 10);
        } else {
            let attempt = asks(&mut mirror);
            mirror.recovered(attempt, &empty(10));
        }
        assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Position { next_offset: 10, .. }]));
        mirror.receive(gap(10, 2));
        let count = skip(&mut mirror).2;
        assert_eq!(count, if doubt { 1 } else { 2 }, "what was in doubt may come late");
    }
    // Answered between the stop and the new start.
    let mut mirror = live(10);
    mirror.receive(gap(10, 2));
    skip(&mut mirror);
    mirror.stop();
    mirror.skipped(0, in_doubt(), NOW);
    mirror.recover();
    settles(&mut mirror, 12);
    assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Position { next_offset: 12, .. }]));
    // Stopped while it waits.
    let mut mirror = live(10);
    mirror.receive(gap(10, 2));
    skip(&mut mirror);
    mirror.skipped(0, in_doubt(), NOW);
    mirror.stop();
    mirror.recover();
    settles(&mut mirror, 10);
}

#[test]
fn markers_that_nobody_was_asked_for_are_not_waited_for() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 2));
    mirror.stop();
    mirror.recover();
    asks(&mut mirror);
}

#[test]
fn stale_answers_are_ignored() {
    let mut mirror = live(10);
    mirror.receive(gap(10, 2));
    let (ticket, ..) = skip(&mut mirror);
    mirror.skipped(ticket + 1, log_end(12), NOW);
    mirror.produced(ticket, appended(10));
    assert_eq!(mirror.fast_forwarded(ticket, Ok(()), NOW), None);
    assert_eq!(mirror.loss_recorded(ticket, Ok(()), NOW), None);
    assert_eq!(mirror.progress().confirmed, 10);
    mirror.skipped(ticket, log_end(12), NOW);
    mirror.skipped(ticket, log_end(13), NOW);
    assert_eq!((outputs(&mut mirror), mirror.progress().confirmed), (Vec::new(), 12));
}
