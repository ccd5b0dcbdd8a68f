//! What a session promises about gaps, late starts and losses.

use super::tests::{
    LATER, close_code, fast_forwarded, feed, frame, link, live_at, loss_recorded, mirror, recovered, skipped, source,
    source_start,
};
use super::*;
use crate::failure::FailureCode;
use crate::frame::Entry;
use crate::wire::{PartitionOffset, Position, Positions};

/// A frame of gaps that follow one another.
fn gaps(run: u32, first: Offset, counts: &[i64]) -> CloudInput {
    let mut offset = first;
    let gap = |&count: &i64| {
        let gap = Entry::Gap { offset, count };
        offset += count;
        gap
    };
    let entries = counts.iter().map(gap).collect();
    CloudInput::Frame(Frame { mirror: MirrorId(0), run, partition: 0, entries })
}

fn told(outputs: &[CloudOutput]) -> Option<&Position> {
    outputs.iter().find_map(|output| {
        if let CloudOutput::Send(CloudMessage { body: Some(CloudBody::Position(position)) }) = output {
            Some(position)
        } else {
            None
        }
    })
}

fn confirms(outputs: &[CloudOutput]) -> Vec<PartitionOffset> {
    let mut entries = Vec::new();
    for output in outputs {
        if let CloudOutput::Send(CloudMessage { body: Some(CloudBody::Confirm(Positions { entries: told })) }) = output
        {
            entries.extend_from_slice(told);
        }
    }
    entries
}

fn failed(session: &CloudLink) -> Option<Failure> {
    let state = &session.status().mirrors[0].state;
    if let MirrorState::Failed(failure) = state { Some(failure.clone()) } else { None }
}

#[test]
fn gaps_are_skipped_and_confirmed() {
    let mut session = live_at(10);
    // Where it begins was told just now.
    let now = LATER + Time::from_millis(2);
    let outputs = feed(&mut session, gaps(1, 10, &[3, 4]), now);
    assert!(
        matches!(outputs[..], [CloudOutput::Skip { ticket: 0, offset: 10, count: 3, .. }]),
        "the first is asked for at once: {outputs:?}"
    );
    let partition = &session.status().mirrors[0].partitions[0];
    assert_eq!(partition.doing.as_deref(), Some("skips offsets 10 to 12, which hold no record"));
    assert_eq!((partition.gap_offsets, partition.held_bytes, partition.live), (7, 9, true));
    let outputs = feed(&mut session, skipped(0, 13), now);
    assert!(matches!(outputs[0], CloudOutput::Skip { ticket: 1, offset: 13, count: 4, .. }));
    assert_eq!(confirms(&outputs), [PartitionOffset { mirror: 0, partition: 0, offset: 13, run: 1, log_start: None }]);
    let outputs = feed(&mut session, skipped(1, 17), now);
    assert_eq!(confirms(&outputs), [], "so soon after the last");
    assert_eq!(session.status().held_bytes, 0);
    let (due, _) = session.next_timeout().expect("it is told later");
    assert!(due > now, "{due:?}");
    let outputs = feed(&mut session, CloudInput::Timeout, due);
    assert_eq!(confirms(&outputs), [PartitionOffset { mirror: 0, partition: 0, offset: 17, run: 1, log_start: None }]);
    assert_eq!(session.next_timeout(), None);
}

#[test]
fn gaps_above_the_limit_fail_the_mirror_before_a_marker_is_sent() {
    let mut session = live_at(10);
    let outputs = feed(&mut session, gaps(1, 10, &[101]), LATER);
    assert!(!outputs.iter().any(|output| matches!(output, CloudOutput::Skip { .. })), "{outputs:?}");
    let failure = failed(&session).expect("failed");
    assert_eq!((failure.code, failure.offset), (FailureCode::GapLimit, Some(10)));
    assert!(failure.detail.starts_with("101 offsets") && failure.detail.contains("limit is 100"), "{failure}");
    assert_eq!(session.status().held_bytes, 0);
}

#[test]
fn the_limit_counts_what_was_skipped_before_and_can_be_raised() {
    let mut session = live_at(10);
    feed(&mut session, gaps(1, 10, &[60]), LATER);
    feed(&mut session, skipped(0, 70), LATER);
    feed(&mut session, gaps(1, 70, &[40]), LATER);
    feed(&mut session, skipped(1, 110), LATER);
    assert_eq!(failed(&session), None, "the limit itself is allowed");
    feed(&mut session, gaps(1, 110, &[1]), LATER);
    assert_eq!(failed(&session).map(|failure| failure.code), Some(FailureCode::GapLimit));
    let orders = |max_gap, paused| MirrorSettings { max_gap, ..mirror("orders", paused) };
    for (paused, max_gap) in [(true, 101), (false, 101)] {
        feed(&mut session, CloudInput::Mirrors(link(&[orders(max_gap, paused), mirror("alarms", false)], &[])), LATER);
    }
    feed(&mut session, source(0, 1), LATER);
    feed(&mut session, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }, LATER);
    let outputs = feed(&mut session, recovered(2, 110), LATER);
    let run = told(&outputs).expect("a position").run;
    let outputs = feed(&mut session, gaps(run, 110, &[1]), LATER);
    assert!(matches!(outputs[..], [CloudOutput::Skip { offset: 110, count: 1, .. }]), "{outputs:?}");
}

#[test]
fn a_source_that_starts_late_makes_an_empty_mirror_start_there() {
    let mut session = live_at(0);
    let outputs = feed(&mut session, source_start(1, 5_000), LATER);
    assert!(matches!(outputs[..], [CloudOutput::FastForward { ticket: 0, from: 0, to: 5_000, .. }]), "{outputs:?}");
    assert_eq!(feed(&mut session, frame(1, 0, 10), LATER), [], "the run is over");
    let outputs = feed(&mut session, fast_forwarded(0, Ok(())), LATER);
    assert!(matches!(
        outputs[..],
        [CloudOutput::Recover { attempt: 2, .. }, CloudOutput::Event(CloudEvent::Started { offset: 5_000, .. })]
    ));
    let outputs = feed(&mut session, recovered(2, 5_000), LATER);
    assert!(told(&outputs).is_some_and(|told| (told.run, told.next_offset, told.rewind) == (2, 5_000, false)));
    assert_eq!(failed(&session), None);
}

#[test]
fn a_start_that_fails_is_tried_again() {
    let mut session = live_at(0);
    feed(&mut session, source_start(1, 5_000), LATER);
    assert_eq!(feed(&mut session, fast_forwarded(0, Err("no leader".to_owned())), LATER), []);
    let until = session.next_timeout().expect("waits").0;
    let outputs = feed(&mut session, CloudInput::Timeout, until);
    assert!(matches!(outputs[..], [CloudOutput::Recover { attempt: 2, .. }]), "{outputs:?}");
}

#[test]
fn a_loss_is_recorded_then_skipped_where_the_operator_wants_it() {
    let mut session = live_at(10);
    let orders = MirrorSettings { on_loss: OnLoss::Skip, ..mirror("orders", false) };
    feed(&mut session, CloudInput::Mirrors(link(&[orders, mirror("alarms", false)], &[])), LATER);
    let outputs = feed(&mut session, source_start(1, 25), LATER);
    assert!(matches!(outputs[..], [CloudOutput::RecordLoss { ticket: 0, from: 10, to: 25, .. }]), "{outputs:?}");
    let outputs = feed(&mut session, loss_recorded(0, Ok(())), LATER);
    assert!(matches!(
        outputs[..],
        [
            CloudOutput::Skip { ticket: 1, offset: 10, count: 15, .. },
            CloudOutput::Event(CloudEvent::LossSkipped { from: 10, to: 25, .. })
        ]
    ));
    let outputs = feed(&mut session, skipped(1, 25), LATER);
    assert!(
        matches!(outputs[..], [CloudOutput::Recover { attempt: 2, .. }]),
        "the run knows nothing of it: {outputs:?}"
    );
    let outputs = feed(&mut session, recovered(2, 25), LATER);
    assert!(told(&outputs).is_some_and(|told| (told.run, told.next_offset, told.rewind) == (2, 25, false)));
    assert_eq!(session.status().mirrors[0].partitions[0].gap_offsets, 15);
}

#[test]
fn a_loss_fails_the_mirror_where_the_operator_says_nothing_or_the_limit_forbids_it() {
    let skip = |max_gap| MirrorSettings { on_loss: OnLoss::Skip, max_gap, ..mirror("orders", false) };
    let table = [(mirror("orders", false), FailureCode::SourceDataLost), (skip(14), FailureCode::GapLimit)];
    for (orders, code) in table {
        let mut session = live_at(10);
        feed(&mut session, CloudInput::Mirrors(link(&[orders, mirror("alarms", false)], &[])), LATER);
        let outputs = feed(&mut session, source_start(1, 25), LATER);
        assert!(!outputs.iter().any(|output| matches!(output, CloudOutput::RecordLoss { .. })), "{outputs:?}");
        assert_eq!(failed(&session).map(|failure| failure.code), Some(code));
    }
}

#[test]
fn a_start_out_of_order_closes_the_session() {
    let protocol = Some(CloseCode::Protocol);
    for (name, run, offset, code) in [
        ("a run never told", 2, 25, protocol),
        ("an older run", 0, 25, None),
        ("not beyond the mirror's end", 1, 10, protocol),
    ] {
        let mut session = live_at(10);
        assert_eq!(close_code(&feed(&mut session, source_start(run, offset), LATER)), code, "{name}");
    }
    let mut session = live_at(10);
    feed(&mut session, frame(1, 10, 10), LATER);
    assert_eq!(close_code(&feed(&mut session, source_start(1, 25), LATER)), protocol, "something is held");
}
