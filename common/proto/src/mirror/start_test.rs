//! What a partition promises where the source's log starts above the mirror's end.

use super::tests::{ID, batch, empty, failure, live, outputs};
use super::*;
use crate::limits::MAX_START;

const NOW: Time = Time::from_secs(50);

/// Live at this log end, which the registry says is below the mirror's start.
fn starting(log_end: Offset, starting: Option<Offset>) -> Mirror {
    let mut mirror = Mirror::new(0, ID);
    mirror.recover();
    outputs(&mut mirror);
    mirror.recovered(1, &Recovery { log_start: log_end, starting, ..empty(log_end) });
    outputs(&mut mirror);
    mirror
}

fn position(mirror: &mut Mirror) -> (u32, Offset) {
    match outputs(mirror)[..] {
        [MirrorOutput::Position { run, next_offset, rewind: false, .. }] => (run, next_offset),
        ref other => panic!("expected a position, got {other:?}"),
    }
}

#[test]
fn an_empty_mirror_is_made_to_start_where_the_source_does() {
    let mut mirror = live(0);
    assert!(mirror.source_start(5_000, false, OnLoss::Halt));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::FastForward { ticket: 0, from: 0, to: 5_000 }]);
    assert_eq!(mirror.doing().as_deref(), Some("moves the empty log's end from 0 to 5000, where the source starts"));
    assert!(!mirror.is_live() && mirror.gap_offsets() == 0);
    assert!(mirror.source_start(5_000, false, OnLoss::Halt), "told twice");
    assert_eq!(mirror.receive(batch(0, 1)), Decision::AlreadyThere, "the run is over");
    mirror.look_again();
    assert_eq!(outputs(&mut mirror), []);
    assert_eq!(mirror.fast_forwarded(0, Ok(()), NOW), Some(5_000));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.recovered(2, &Recovery { log_start: 5_000, starting: Some(5_000), ..empty(5_000) });
    assert_eq!(position(&mut mirror), (2, 5_000));
    assert_eq!((mirror.log_start(), mirror.rewinds(), mirror.doing()), (5_000, 0, None));
    mirror.receive(batch(5_000, 1));
    assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Produce { offset: 5_000, .. }]));
}

#[test]
fn a_start_that_nobody_could_fill_up_to_is_refused() {
    let mut mirror = live(0);
    assert!(mirror.source_start(MAX_START + 1, false, OnLoss::Skip));
    let failure = failure(&mut mirror);
    assert_eq!(failure.code, FailureCode::GapLimit);
    assert!(failure.detail.contains("starts at 1000000000001"), "{failure}");
}

#[test]
fn a_start_that_was_begun_is_gone_on_with() {
    let mut mirror = starting(3_000, Some(5_000));
    assert!(mirror.source_start(5_200, false, OnLoss::Halt));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::FastForward { ticket: 0, from: 3_000, to: 5_200 }]);
    for reached in [3_000, 5_000] {
        let mut mirror = starting(reached, Some(reached));
        assert!(mirror.source_start(5_200, false, OnLoss::Halt));
        assert_eq!(failure(&mut mirror).code, FailureCode::SourceDataLost, "it is done");
    }
}

#[test]
fn what_an_empty_mirror_had_before_it_is_lost_not_its_start() {
    for mirror in [|| live(0), || starting(3_000, Some(3_001))] {
        let mut halted = mirror();
        let from = halted.progress().confirmed;
        assert!(halted.source_start(5_000, true, OnLoss::Halt));
        let failure = failure(&mut halted);
        let found = (failure.code, failure.offset, failure.end_offset);
        assert_eq!(found, (FailureCode::SourceDataLost, Some(from), Some(5_000)));
        let mut skipping = mirror();
        assert!(skipping.source_start(5_000, true, OnLoss::Skip));
        assert_eq!(outputs(&mut skipping), [MirrorOutput::RecordLoss { ticket: 0, from, to: 5_000 }]);
        assert_eq!(skipping.loss_recorded(0, Ok(()), NOW), Some((from, 5_000)));
        assert!(matches!(outputs(&mut skipping)[..], [MirrorOutput::Skip { ticket: 1, offset, .. }] if offset == from));
        let mut unseen = mirror();
        assert!(unseen.source_start(5_000, false, OnLoss::Halt));
        assert_eq!(outputs(&mut unseen), [MirrorOutput::FastForward { ticket: 0, from, to: 5_000 }]);
    }
}

#[test]
fn a_start_that_fails_is_tried_again_later_and_later() {
    let mut mirror = live(0);
    let mut now = NOW;
    let mut waits = Vec::new();
    for at in 0..8 {
        let (from, attempt) = (at * 10, u32::try_from(at).expect("small") + 2);
        assert!(mirror.source_start(5_000, false, OnLoss::Halt));
        let ticket = u64::try_from(at).expect("small");
        assert_eq!(outputs(&mut mirror), [MirrorOutput::FastForward { ticket, from, to: 5_000 }]);
        assert_eq!(mirror.fast_forwarded(ticket, Err("no leader".to_owned()), now), None);
        assert_eq!((outputs(&mut mirror), mirror.last_doubt()), (Vec::new(), Some("no leader")));
        let until = mirror.next_timeout().expect("waits");
        waits.push(until.saturating_sub(now).as_millis());
        now = until;
        mirror.handle_timeout(now);
        assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt }]);
        let reached = from + 10;
        mirror.recovered(attempt, &Recovery { log_start: reached, starting: Some(5_000), ..empty(reached) });
        assert_eq!(position(&mut mirror).1, reached);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn a_loss_halts_the_mirror_with_its_extent() {
    let mut mirror = live(10);
    assert!(mirror.source_start(25, false, OnLoss::Halt));
    let failure = failure(&mut mirror);
    assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::SourceDataLost, Some(10), Some(25)));
}

#[test]
fn a_loss_that_is_recorded_becomes_a_gap_and_a_new_run_begins_behind_it() {
    let mut mirror = live(10);
    assert!(mirror.source_start(25, false, OnLoss::Skip));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::RecordLoss { ticket: 0, from: 10, to: 25 }]);
    assert_eq!((mirror.gap_offsets(), mirror.is_told()), (15, false));
    assert_eq!(mirror.receive(batch(10, 1)), Decision::AlreadyThere);
    assert_eq!(mirror.loss_recorded(0, Ok(()), NOW), Some((10, 25)));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Skip { ticket: 1, offset: 10, count: 15 }]);
    assert_eq!((mirror.gap_offsets(), mirror.is_told()), (15, false), "the agent knows nothing of it");
    // A doubt on the way does not lose the range.
    mirror.skipped(1, SkipOutcome::Doubt { reason: "connection lost".to_owned() }, NOW);
    mirror.handle_timeout(NOW + MARKER_SETTLE);
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.recovered(2, &empty(20));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Skip { ticket: 2, offset: 20, count: 4 }]);
    mirror.skipped(2, SkipOutcome::Appended { log_end: 24 }, NOW);
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 3 }], "the last one after a look");
    mirror.recovered(3, &empty(24));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Skip { ticket: 3, offset: 24, count: 1 }]);
    mirror.skipped(3, SkipOutcome::Appended { log_end: 25 }, NOW);
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 4 }]);
    mirror.recovered(4, &empty(25));
    assert_eq!(position(&mut mirror), (2, 25));
    assert_eq!((mirror.gap_offsets(), mirror.progress()), (15, CloudProgress::at(25)));
}

#[test]
fn a_lost_range_that_turns_out_whole_needs_no_second_look() {
    let mut mirror = live(10);
    assert!(mirror.source_start(12, false, OnLoss::Skip));
    outputs(&mut mirror);
    mirror.loss_recorded(0, Ok(()), NOW);
    outputs(&mut mirror);
    mirror.skipped(1, SkipOutcome::Doubt { reason: "connection lost".to_owned() }, NOW);
    mirror.handle_timeout(NOW + MARKER_SETTLE);
    outputs(&mut mirror);
    mirror.recovered(2, &empty(12));
    assert_eq!(position(&mut mirror), (2, 12));
    assert_eq!(mirror.gap_offsets(), 2);
}

#[test]
fn a_loss_that_cannot_be_recorded_is_not_skipped() {
    let mut mirror = live(10);
    assert!(mirror.source_start(25, false, OnLoss::Skip));
    outputs(&mut mirror);
    assert_eq!(mirror.loss_recorded(0, Err("no registry".to_owned()), NOW), None);
    assert_eq!((outputs(&mut mirror), mirror.gap_offsets()), (Vec::new(), 0));
    mirror.handle_timeout(mirror.next_timeout().expect("waits"));
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.recovered(2, &empty(10));
    assert_eq!(position(&mut mirror), (2, 10), "the agent says it again");
}

#[test]
fn a_start_below_what_was_sent_is_a_breach() {
    let mut mirror = live(10);
    assert!(!mirror.source_start(10, false, OnLoss::Skip));
    mirror.receive(batch(10, 1));
    assert!(!mirror.source_start(20, false, OnLoss::Skip), "something is held");
    assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Produce { .. }]));
}

#[test]
fn a_start_told_while_the_log_end_is_read_begins_a_new_run() {
    for (log_end, rewind) in [(10, false), (7, true)] {
        let mut mirror = live(10);
        mirror.look_again();
        outputs(&mut mirror);
        assert!(mirror.source_start(25, false, OnLoss::Skip));
        assert_eq!(outputs(&mut mirror), []);
        mirror.recovered(2, &empty(log_end));
        assert!(matches!(
            outputs(&mut mirror)[..],
            [MirrorOutput::Position { run: 2, next_offset, rewind: told, .. }] if (next_offset, told) == (log_end, rewind)
        ));
        assert!(mirror.source_start(25, false, OnLoss::Skip));
        assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::RecordLoss { to: 25, .. }]));
    }
}

#[test]
fn a_stop_waits_for_what_was_begun() {
    let mut mirror = live(0);
    assert!(mirror.source_start(5_000, false, OnLoss::Halt));
    outputs(&mut mirror);
    mirror.stop();
    mirror.recover();
    assert_eq!(outputs(&mut mirror), [], "the log's end is being moved");
    assert_eq!(mirror.fast_forwarded(0, Ok(()), NOW), None);
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    let mut mirror = live(10);
    assert!(mirror.source_start(25, false, OnLoss::Skip));
    outputs(&mut mirror);
    mirror.stop();
    assert_eq!(mirror.loss_recorded(0, Ok(()), NOW), None, "nothing is skipped that nobody goes on with");
    mirror.recover();
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
}
