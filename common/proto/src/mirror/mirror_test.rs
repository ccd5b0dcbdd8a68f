//! What a mirror's partition promises, one test each.

use super::recover::next_sequence;
use super::*;
use crate::batch::Batch;
use crate::testing::BatchBuilder;

pub(super) const ID: i64 = (1 << 62) | 9;

pub(super) fn batch(base: Offset, records: i32) -> Entry {
    Entry::Batch(BatchBuilder::new(base).records(records).build())
}

pub(super) fn ours(base: Offset, records: i32) -> Batch {
    let sequence = i32::try_from(base & i64::from(i32::MAX)).expect("masked");
    BatchBuilder::new(base).records(records).stamp(ID, 0, sequence).build()
}

pub(super) fn empty(log_end: Offset) -> Recovery {
    Recovery { log_start: 0, log_end, starting: None, last_sequence: None, tail: Vec::new() }
}

pub(super) fn outputs(mirror: &mut Mirror) -> Vec<MirrorOutput> {
    mirror.validate().expect("chain");
    std::iter::from_fn(|| mirror.poll_output()).collect()
}

pub(super) fn live(log_end: Offset) -> Mirror {
    let mut mirror = Mirror::new(0, ID);
    mirror.recover();
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 1 }]);
    mirror.recovered(1, &empty(log_end));
    assert!(
        matches!(outputs(&mut mirror)[..], [MirrorOutput::Position { run: 1, next_offset, rewind: false, .. }] if next_offset == log_end)
    );
    mirror
}

pub(super) fn tickets(outputs: &[MirrorOutput]) -> Vec<(u64, Offset)> {
    let ticket = |output: &MirrorOutput| {
        let MirrorOutput::Produce { ticket, offset, .. } = output else { panic!("expected Produce, got {output:?}") };
        (*ticket, *offset)
    };
    outputs.iter().map(ticket).collect()
}

pub(super) fn appended(base_offset: Offset) -> Outcome {
    Outcome::Appended { base_offset }
}

pub(super) fn doubt() -> Outcome {
    Outcome::Doubt { reason: "connection lost".to_owned() }
}

pub(super) fn failure(mirror: &mut Mirror) -> Failure {
    match outputs(mirror).pop() {
        Some(MirrorOutput::Failed(failure)) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn keeps_at_most_five_batches_in_flight_and_confirms_only_answers() {
    let mut mirror = live(0);
    for base in 0..8 {
        assert_eq!(mirror.receive(batch(base, 1)), Decision::Append);
    }
    assert_eq!(tickets(&outputs(&mut mirror)), [(0, 0)]);
    mirror.produced(0, appended(0));
    assert_eq!(tickets(&outputs(&mut mirror)), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    assert_eq!(mirror.progress(), CloudProgress { confirmed: 1, produced: 6, received: 8 });
    mirror.produced(1, appended(1));
    assert_eq!(tickets(&outputs(&mut mirror)), [(6, 6)]);
    assert_eq!(mirror.progress().confirmed, 2);
}

#[test]
fn a_broker_that_may_have_forgotten_us_gets_one_batch_first() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 1));
    mirror.receive(batch(1, 1));
    assert_eq!(tickets(&outputs(&mut mirror)), [(0, 0)]);
    mirror.produced(0, doubt());
    outputs(&mut mirror);
    mirror.recovered(2, &empty(0));
    assert_eq!(
        tickets(&outputs(&mut mirror)),
        [(1, 0)],
        "known by nobody: a second batch could take the first one's place"
    );
    mirror.produced(1, appended(0));
    assert_eq!(tickets(&outputs(&mut mirror)), [(2, 1)]);
    mirror.produced(2, appended(1));
    for base in 2..4 {
        mirror.receive(batch(base, 1));
    }
    assert_eq!(
        tickets(&outputs(&mut mirror)),
        [(3, 2)],
        "nothing was in flight: the broker may have forgotten us since"
    );
}

#[test]
fn sequences_follow_the_log_end_and_wrap() {
    let mut mirror = live(i64::from(i32::MAX));
    mirror.receive(batch(i64::from(i32::MAX), 1));
    mirror.receive(batch(i64::from(i32::MAX) + 1, 2));
    let mut sent = outputs(&mut mirror);
    mirror.produced(0, appended(i64::from(i32::MAX)));
    sent.extend(outputs(&mut mirror));
    let sequences: Vec<_> = sent
        .into_iter()
        .map(|output| {
            let MirrorOutput::Produce { batch, .. } = output else { panic!("{output:?}") };
            Batch::parse(batch).expect("a batch").base_sequence()
        })
        .collect();
    assert_eq!(sequences, [i32::MAX, 0]);
    assert_eq!(advance(i32::MAX - 1, 3), 1);
}

#[test]
fn sequence_is_recovered_from_the_brokers_state() {
    for (last_sequence, expected) in [(None, 7), (Some(-1), 0), (Some(40), 41), (Some(i32::MAX), 0)] {
        assert_eq!(
            next_sequence(&Recovery { log_start: 0, log_end: 7, starting: None, last_sequence, tail: Vec::new() }),
            expected
        );
    }
}

#[test]
fn an_answer_in_doubt_drains_then_reads_the_log_end_then_goes_on() {
    let mut mirror = live(0);
    for base in 0..4 {
        mirror.receive(batch(base, 1));
    }
    mirror.produced(0, appended(0));
    assert_eq!(tickets(&outputs(&mut mirror)), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    mirror.produced(1, doubt());
    mirror.produced(2, Outcome::Sequence);
    assert_eq!(outputs(&mut mirror), []);
    mirror.produced(3, Outcome::Sequence);
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.recovered(
        2,
        &Recovery { log_start: 0, log_end: 2, starting: None, last_sequence: Some(1), tail: vec![ours(1, 1)] },
    );
    assert_eq!(tickets(&outputs(&mut mirror)), [(4, 2)]);
    assert_eq!(mirror.progress(), CloudProgress { confirmed: 2, produced: 3, received: 4 });
}

#[test]
fn a_lost_tail_rewinds_with_a_new_run() {
    let mut mirror = live(10);
    mirror.receive(batch(10, 5));
    mirror.receive(batch(15, 1));
    outputs(&mut mirror);
    mirror.produced(0, appended(10));
    mirror.produced(1, Outcome::Sequence);
    outputs(&mut mirror);
    mirror.recovered(
        2,
        &Recovery { log_start: 0, log_end: 12, starting: None, last_sequence: Some(11), tail: vec![ours(10, 2)] },
    );
    assert!(matches!(
        &outputs(&mut mirror)[..],
        [MirrorOutput::Position { run: 2, next_offset: 12, rewind: true, tail }] if tail.len() == 1
    ));
    assert_eq!((mirror.progress(), mirror.held_bytes(), mirror.rewinds()), (CloudProgress::at(12), 0, 1));
}

#[test]
fn a_new_leader_that_has_less_is_noticed_while_nothing_is_sent() {
    let mut mirror = live(10);
    mirror.look_again();
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.look_again();
    assert_eq!(outputs(&mut mirror), [], "it is being read");
    mirror.recovered(
        2,
        &Recovery { log_start: 0, log_end: 10, starting: None, last_sequence: Some(9), tail: vec![ours(9, 1)] },
    );
    assert_eq!(outputs(&mut mirror), [], "nothing is missing");
    mirror.look_again();
    outputs(&mut mirror);
    mirror.recovered(
        3,
        &Recovery { log_start: 0, log_end: 7, starting: None, last_sequence: Some(6), tail: vec![ours(6, 1)] },
    );
    assert!(matches!(&outputs(&mut mirror)[..], [MirrorOutput::Position { run: 2, next_offset: 7, rewind: true, .. }]));
    mirror.receive(batch(7, 1));
    assert_eq!(tickets(&outputs(&mut mirror)).len(), 1);
    mirror.look_again();
    assert_eq!(outputs(&mut mirror), [], "the answer will tell");
}

#[test]
fn an_unexpected_base_offset_fails_with_the_extent() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 1));
    outputs(&mut mirror);
    mirror.produced(0, appended(3));
    let failure = failure(&mut mirror);
    assert_eq!((failure.code, failure.offset, failure.end_offset), (FailureCode::ForeignWrite, Some(0), Some(3)));
    assert_eq!(mirror.receive(batch(1, 1)), Decision::AlreadyThere);
    assert_eq!(outputs(&mut mirror), []);
}

#[test]
fn foreign_batches_in_the_tail_fail_before_anything_is_sent() {
    let mut mirror = Mirror::new(2, ID);
    mirror.recover();
    outputs(&mut mirror);
    let foreign = |base| BatchBuilder::new(base).records(2).stamp(5, 0, 0).build();
    let tail = vec![ours(0, 4), foreign(4), foreign(6), ours(8, 1)];
    mirror.recovered(1, &Recovery { log_start: 0, log_end: 9, starting: None, last_sequence: Some(4), tail });
    let failure = failure(&mut mirror);
    assert_eq!((failure.partition, failure.offset, failure.end_offset), (Some(2), Some(4), Some(8)));
}

#[test]
fn a_log_end_beyond_what_was_sent_or_inside_a_batch_fails() {
    for (log_end, code) in [(7, FailureCode::ForeignWrite), (4, FailureCode::Diverged)] {
        let mut mirror = live(0);
        mirror.receive(batch(0, 3));
        mirror.receive(batch(3, 3));
        outputs(&mut mirror);
        mirror.produced(0, doubt());
        outputs(&mut mirror);
        mirror.recovered(2, &empty(log_end));
        assert_eq!(failure(&mut mirror).code, code);
    }
}

#[test]
fn batches_of_a_session_before_may_come_before_they_are_sent_again() {
    let mut mirror = live(0);
    for base in 0..3 {
        mirror.receive(batch(base, 1));
    }
    outputs(&mut mirror);
    mirror.produced(0, doubt());
    outputs(&mut mirror);
    mirror.recovered(2, &Recovery { last_sequence: Some(1), tail: vec![ours(1, 1)], ..empty(2) });
    assert_eq!(tickets(&outputs(&mut mirror)), [(1, 2)]);
}

#[test]
fn a_refusal_fails() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 1));
    outputs(&mut mirror);
    mirror.produced(0, Outcome::Refused { reason: "MESSAGE_TOO_LARGE".to_owned() });
    assert_eq!(failure(&mut mirror).code, FailureCode::CloudRefused);
}

#[test]
fn a_failed_read_of_the_log_end_is_tried_again_later_and_later() {
    let mut mirror = Mirror::new(0, ID);
    mirror.recover();
    let mut now = Time::ZERO;
    let mut waits = Vec::new();
    for attempt in 1..9 {
        assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt }]);
        mirror.recovery_failed(attempt, "no leader".to_owned(), now);
        let until = mirror.next_timeout().expect("waits");
        waits.push(until.saturating_sub(now).as_millis());
        mirror.handle_timeout(until.saturating_sub(Time::from_millis(1)));
        assert_eq!(outputs(&mut mirror), []);
        now = until;
        mirror.handle_timeout(now);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn a_sequence_refused_again_and_again_fails() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 1));
    for attempt in 0..6 {
        let ticket = tickets(&outputs(&mut mirror))[0].0;
        mirror.produced(ticket, Outcome::Sequence);
        if attempt < 5 {
            assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: attempt + 2 }]);
            mirror.recovered(attempt + 2, &empty(0));
        }
    }
    assert_eq!(failure(&mut mirror).code, FailureCode::IllegalState);
}

#[test]
fn stopping_forgets_what_is_held_and_ignores_late_answers() {
    let mut mirror = live(0);
    mirror.receive(batch(0, 1));
    outputs(&mut mirror);
    mirror.stop();
    mirror.produced(0, appended(0));
    assert_eq!((mirror.held_bytes(), mirror.progress()), (0, CloudProgress::at(0)));
    mirror.recover();
    assert_eq!(outputs(&mut mirror), [MirrorOutput::Recover { attempt: 2 }]);
    mirror.recovered(1, &empty(0));
    assert_eq!(outputs(&mut mirror), []);
    assert_eq!(mirror.receive(batch(1, 1)), Decision::AlreadyThere);
    mirror.recovered(2, &empty(1));
    assert!(matches!(outputs(&mut mirror)[..], [MirrorOutput::Position { run: 3, next_offset: 1, rewind: false, .. }]));
}
