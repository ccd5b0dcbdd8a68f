//! What a session promises about log starts that move up at the source.

use super::tests::{LATER, close_code, deleted, feed, frame, link, live_at, message, mirror, source};
use super::*;
use crate::id::Offset;
use crate::wire::{Failed, PartitionOffset, Placed, Positions};

fn later(seconds: u64) -> Time {
    LATER + Time::from_secs(seconds)
}

fn settings(log_start: LogStart) -> CloudInput {
    let orders = MirrorSettings { log_start, ..mirror("orders", false) };
    CloudInput::Mirrors(link(&[orders, mirror("alarms", false)], &[]))
}

fn placed(run: u32) -> CloudInput {
    message(EdgeBody::Placed(Placed { mirror: 0, partition: 0, run, unverified: false }))
}

/// The source has offsets from `log_start` to 99.
fn source_has(log_start: Option<Offset>) -> CloudInput {
    let entries = vec![PartitionOffset { mirror: 0, partition: 0, offset: 100, run: 0, log_start }];
    message(EdgeBody::SourcePositions(Positions { entries }))
}

/// Holds offsets 0 to 9 of a source, and follows it.
fn following() -> CloudLink {
    let mut session = live_at(10);
    assert_eq!(feed(&mut session, settings(LogStart::Follow), LATER), []);
    assert_eq!(feed(&mut session, placed(1), LATER), []);
    session
}

/// Ticket and offset of the only output, a deletion.
fn deletion(outputs: &[CloudOutput]) -> (u64, Offset) {
    let [CloudOutput::DeleteBefore { mirror: MirrorId(0), topic, partition: 0, ticket, offset }] = outputs else {
        panic!("no deletion alone: {outputs:?}");
    };
    assert_eq!(topic.as_str(), "orders");
    (*ticket, *offset)
}

fn shown(session: &CloudLink) -> CloudPartitionStatus {
    session.status().mirrors.swap_remove(0).partitions.swap_remove(0)
}

#[test]
fn the_mirror_starts_where_its_source_does_and_is_moved_up_in_steps() {
    let mut session = following();
    assert_eq!(deletion(&feed(&mut session, source_has(Some(4)), LATER)), (0, 4));
    assert_eq!(shown(&session).doing.as_deref(), Some("deletes offsets below 4, as the source has"));
    assert_eq!(feed(&mut session, source_has(Some(5)), LATER), [], "one at a time");
    assert_eq!(feed(&mut session, deleted(0, Ok(4)), later(1)), [], "not at once again");
    assert_eq!((shown(&session).log_start, shown(&session).doing), (4, None));
    assert_eq!(session.next_timeout(), Some((later(11), "move a log start up")));
    assert_eq!(feed(&mut session, CloudInput::Timeout, later(10)), []);
    assert_eq!(deletion(&feed(&mut session, CloudInput::Timeout, later(11))), (1, 5));
    assert_eq!(feed(&mut session, deleted(7, Ok(9)), later(11)), [], "nobody asked");
    assert_eq!(feed(&mut session, deleted(1, Ok(5)), later(12)), []);
    assert_eq!((shown(&session).log_start, session.next_timeout()), (5, None));
    assert_eq!(feed(&mut session, source_has(Some(5)), later(60)), [], "it does by now");
}

#[test]
fn a_mirror_keeps_what_its_source_deleted_unless_the_operator_says_otherwise() {
    let mut session = live_at(10);
    feed(&mut session, placed(1), LATER);
    assert_eq!(feed(&mut session, source_has(Some(4)), LATER), []);
    assert_eq!((feed(&mut session, CloudInput::Timeout, later(60)), session.next_timeout()), (Vec::new(), None));
    assert_eq!(deletion(&feed(&mut session, settings(LogStart::Follow), later(60))), (0, 4), "he does now");
    feed(&mut session, deleted(0, Ok(4)), later(60));
    feed(&mut session, source_has(Some(8)), later(61));
    feed(&mut session, settings(LogStart::Keep), later(62));
    assert_eq!((feed(&mut session, CloudInput::Timeout, later(80)), session.next_timeout()), (Vec::new(), None));
}

#[test]
fn nothing_is_deleted_before_it_is_confirmed() {
    let mut session = following();
    assert_eq!(feed(&mut session, source_has(Some(11)), LATER), []);
    feed(&mut session, frame(1, 10, 10), LATER);
    let outcome = Outcome::Appended { base_offset: 10 };
    let produced = CloudInput::Produced { mirror: MirrorId(0), partition: 0, ticket: 0, outcome };
    let outputs = feed(&mut session, produced, LATER);
    assert_eq!(deletion(&outputs[..1]), (0, 11), "all of it: {outputs:?}");
}

#[test]
fn an_agent_that_does_not_know_or_says_what_cannot_be_moves_nothing() {
    let mut session = following();
    for log_start in [None, Some(0), Some(-1), Some(Offset::MIN), Some(101), Some(Offset::MAX)] {
        let outputs = feed(&mut session, source_has(log_start), LATER);
        assert_eq!((close_code(&outputs), outputs.len()), (None, 0), "{log_start:?}");
    }
}

#[test]
fn a_failed_deletion_is_shown_and_tried_again() {
    let mut session = following();
    assert_eq!(deletion(&feed(&mut session, source_has(Some(4)), LATER)), (0, 4));
    for ticket in 0..2 {
        let now = later(10 * ticket);
        let outputs = feed(&mut session, deleted(ticket, Err("no right".to_owned())), now);
        let told = matches!(&outputs[..], [CloudOutput::Event(CloudEvent::NotDeleted { offset: 4, reason, .. })] if reason == "no right");
        assert_eq!((told, outputs.len()), (ticket == 0, usize::from(ticket == 0)), "told once: {outputs:?}");
        assert_eq!((shown(&session).log_start, shown(&session).last_doubt.as_deref()), (0, Some("no right")));
        assert_eq!(session.status().mirrors[0].state, MirrorState::Active);
        let outputs = feed(&mut session, CloudInput::Timeout, later(10 * (ticket + 1)));
        assert_eq!(deletion(&outputs), (ticket + 1, 4));
    }
    assert_eq!(feed(&mut session, deleted(2, Ok(4)), later(20)), []);
    assert_eq!((shown(&session).log_start, shown(&session).last_doubt), (4, None));
}

#[test]
fn nothing_is_deleted_by_what_was_said_before_the_tail_was_compared() {
    let mut session = live_at(10);
    feed(&mut session, settings(LogStart::Follow), LATER);
    assert_eq!(feed(&mut session, source_has(Some(4)), LATER), []);
    assert_eq!(feed(&mut session, placed(1), LATER), [], "it may have been another topic's");
    assert_eq!(feed(&mut session, placed(0), LATER), []);
    assert_eq!(feed(&mut session, source_has(Some(4)), LATER), [], "the run that was compared is over");
}

#[test]
fn nothing_is_deleted_from_mirrors_that_stand_still() {
    let failure = Failure::of_topic(crate::failure::FailureCode::Diverged, "bytes differ".to_owned());
    let paused = link(&[mirror("orders", true), mirror("alarms", false)], &[]);
    for stop in
        [message(EdgeBody::Failed(Failed::new(MirrorId(0), &failure))), CloudInput::Mirrors(paused), source(0, 0)]
    {
        let mut session = following();
        feed(&mut session, stop.clone(), LATER);
        assert_eq!(feed(&mut session, source_has(Some(4)), LATER), [], "{stop:?}");
        assert_eq!(session.next_timeout(), None, "{stop:?}");
    }
}
