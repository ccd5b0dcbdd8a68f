//! What the site's half promises: every session state against every input, and each rule of the window.

use super::inputs::*;
use super::*;
use crate::edge::Verdict;
use crate::failure::FailureCode;
use crate::frame::Entry;
use crate::testing::BatchBuilder;
use crate::wire::{CloudMessage, Failed, Position, TailBatch};

#[test]
fn every_session_state_meets_every_message() {
    let p = Some(CloseCode::Protocol);
    // Columns: down, await welcome, open, closing.
    let table: [(&str, EdgeInput, [Option<CloseCode>; 4]); 9] = [
        ("welcome", welcome(0), [None, None, p, None]),
        ("mirror", told(0, "orders", false), [None, p, None, None]),
        ("position", position(1, 0, Vec::new()), [None, p, None, None]),
        ("confirm", confirm(1, 0), [None, p, None, None]),
        ("unknown message", EdgeInput::Message(CloudMessage { body: None }), [None; 4]),
        (
            "close",
            message(CloudBody::Close(Close { code: 3, reason: "x".to_owned() })),
            [None, Some(CloseCode::Shutdown), Some(CloseCode::Shutdown), None],
        ),
        ("breach", EdgeInput::Breach { reason: "x".to_owned() }, [None, p, p, None]),
        ("shutdown", EdgeInput::Shutdown, [None, Some(CloseCode::Shutdown), Some(CloseCode::Shutdown), None]),
        ("timeout", EdgeInput::Timeout, [None; 4]),
    ];
    for (name, input, expected) in table {
        let await_welcome = || {
            let mut link = fresh();
            feed(&mut link, connected());
            link
        };
        let closing = || {
            let mut link = await_welcome();
            feed(&mut link, EdgeInput::Shutdown);
            link
        };
        let states = [("down", fresh()), ("await welcome", await_welcome()), ("open", open()), ("closing", closing())];
        for ((state, mut link), code) in states.into_iter().zip(expected) {
            let outputs = feed(&mut link, input.clone());
            assert_eq!(close_code(&outputs), code, "{name} in state {state}: {outputs:?}");
        }
    }
}

#[test]
fn nothing_is_fetched_or_sent_before_a_position() {
    let mut link = open();
    assert_eq!(frames(&mut link), []);
    assert_eq!(fetch_of(&feed(&mut link, found(1))), None);
}

#[test]
fn sends_what_was_fetched_and_lets_go_of_what_is_confirmed() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2, 4]));
    assert_eq!(frames(&mut link), [(1, 0, 6)]);
    feed(&mut link, confirm(1, 4));
    let status = link.status();
    assert_eq!((status.mirrors[0].partitions[0].confirmed, status.mirrors[0].partitions[0].lag()), (Some(4), Some(2)));
    assert_eq!(status.in_flight_bytes, status.window_bytes);
    feed(&mut link, confirm(1, 6));
    assert_eq!((link.status().window_bytes, link.status().in_flight_bytes), (0, 0));
}

#[test]
fn a_new_run_that_empties_the_window_leaves_no_turn_behind() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2, 4]));
    feed(&mut link, position(2, 8, Vec::new()));
    let ticket = link.next_ticket;
    let verdict = Verdict::Agrees;
    let outputs = feed(&mut link, EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    let (fetch, offset) = fetch_of(&outputs).expect("nothing held lies at the position");
    assert_eq!((offset, frames(&mut link)), (8, Vec::new()));
    feed(&mut link, fetched(fetch, [8]));
    assert_eq!(frames(&mut link), [(2, 8, 10)]);
}

#[test]
fn resumes_from_the_window_after_a_lost_session() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2, 4]));
    assert_eq!(frames(&mut link), [(1, 0, 6)]);
    reconnect(&mut link);
    assert_eq!(frames(&mut link), []);
    let outputs = feed(&mut link, position(1, 2, vec![tail(&batch(0))]));
    assert_eq!(fetch_of(&outputs), None, "the window holds what is wanted, and fetching went on");
    assert_eq!(frames(&mut link), [(1, 2, 6)]);
    feed(&mut link, fetched(fetch, [6]));
    assert_eq!(frames(&mut link), [(1, 6, 8)]);
}

#[test]
fn refetches_where_the_window_does_not_hold_it() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2, 4]));
    frames(&mut link);
    feed(&mut link, confirm(1, 6));
    let outputs = feed(&mut link, position(2, 2, vec![tail(&batch(0))]));
    let [EdgeOutput::Event(EdgeEvent::Rewound { next_offset: 2, .. }), EdgeOutput::CompareTail { ticket, .. }] =
        outputs[..]
    else {
        panic!("the cloud lost what it confirmed; memory agrees, but the source may have lost it too: {outputs:?}")
    };
    assert_eq!(rewinds(&link), 1);
    let verdict = Verdict::Agrees;
    let outputs = feed(&mut link, EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    let (anew, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!(offset, 2);
    feed(&mut link, fetched(fetch, [2]));
    assert_eq!(frames(&mut link), [], "an answer to the old fetch is stale");
    feed(&mut link, fetched(anew, [2]));
    assert_eq!(frames(&mut link), [(2, 2, 4)]);
}

#[test]
fn what_the_cloud_lost_between_two_sessions_is_a_rewind() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2, 4]));
    frames(&mut link);
    feed(&mut link, confirm(1, 4));
    reconnect(&mut link);
    feed(&mut link, position(1, 4, vec![tail(&batch(2))]));
    assert_eq!(rewinds(&link), 0);
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 2, vec![tail(&batch(0))]));
    assert!(matches!(outputs[..], [EdgeOutput::Event(EdgeEvent::Rewound { next_offset: 2, .. }), ..]), "{outputs:?}");
    assert_eq!(rewinds(&link), 1);
}

#[test]
fn a_tail_that_differs_from_memory_fails_before_a_byte_is_sent() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    frames(&mut link);
    reconnect(&mut link);
    let other = BatchBuilder::new(0).records(2).payload(400).fill(9).build();
    let outputs = feed(&mut link, position(1, 2, vec![tail(&other)]));
    assert_eq!(failure(&outputs), Some(FailureCode::Diverged));
    assert_eq!(frames(&mut link), []);
    assert_eq!(link.status().window_bytes, 0);
}

#[test]
fn a_tail_unknown_to_memory_is_compared_with_the_source() {
    for (verdict, sends) in [
        (Verdict::Agrees, true),
        (Verdict::Unverified, true),
        (Verdict::Failed(Failure::of_topic(FailureCode::Diverged, "x")), false),
    ] {
        let mut link = open();
        let outputs = feed(&mut link, position(1, 2, vec![tail(&batch(0))]));
        let [EdgeOutput::CompareTail { ticket, next_offset: 2, .. }] = outputs[..] else { panic!("{outputs:?}") };
        let input = |ticket| {
            let verdict = verdict.clone();
            EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict }
        };
        assert_eq!(feed(&mut link, input(ticket + 1)), [], "a stale answer");
        let outputs = feed(&mut link, input(ticket));
        assert_eq!(fetch_of(&outputs).map(|(_, offset)| offset), sends.then_some(2));
        assert_eq!(failure(&outputs), (!sends).then_some(FailureCode::Diverged));
    }
}

#[test]
fn batches_that_do_not_join_fail_the_mirror() {
    let (mut link, fetch) = live();
    let outputs = feed(&mut link, fetched(fetch, [0, 6]));
    assert!(ends(&outputs), "what came before it goes to the cloud first: {outputs:?}");
    assert_eq!(frames(&mut link), [(1, 0, 2)]);
    assert_eq!(failure(&feed(&mut link, confirm(1, 2))), Some(FailureCode::IllegalState));
    let mut link = open();
    let outputs = feed(&mut link, position(1, 1, Vec::new()));
    let [EdgeOutput::CompareTail { ticket, .. }] = outputs[..] else { panic!("{outputs:?}") };
    let verdict = Verdict::Unverified;
    let outputs = feed(&mut link, EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    let (fetch, _) = fetch_of(&outputs).expect("fetches");
    assert_eq!(failure(&feed(&mut link, fetched(fetch, [0]))), Some(FailureCode::Diverged));
}

#[test]
fn a_full_window_pauses_the_fetch_and_room_resumes_it() {
    let (mut link, fetch) = live();
    let mut base = 0;
    let paused = loop {
        let outputs = feed(&mut link, fetched(fetch, [base]));
        base += 2;
        if outputs.iter().any(|output| matches!(output, EdgeOutput::PauseFetch { .. })) {
            break link.status().window_bytes;
        }
        assert!(base < 100, "never paused");
    };
    assert!(paused <= WINDOW);
    feed(&mut link, EdgeInput::Disconnected);
    feed(&mut link, fetched(fetch, [base]));
    assert!(link.status().window_bytes > paused, "what was under way is welcome");
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, base, vec![tail(&batch(base - 2))]));
    assert!(outputs.iter().any(|output| matches!(output, EdgeOutput::ResumeFetch { .. })), "{outputs:?}");
}

#[test]
fn unconfirmed_bytes_stay_within_the_credit() {
    let (mut link, fetch) = live();
    for at in 0..9 {
        feed(&mut link, fetched(fetch, [at * 2]));
    }
    let sent: usize = std::iter::from_fn(|| link.poll_frame()).map(|frame| frame.bytes()).sum();
    assert!(sent > 0 && sent <= 6_000 - 2_000, "{sent} sent, with the reserve of a frame left");
    assert_eq!(link.status().in_flight_bytes, sent);
}

#[test]
fn a_partition_that_stalls_leaves_credit_to_the_others() {
    let mut link = fresh();
    feed(&mut link, connected());
    feed(&mut link, welcome(1));
    feed(&mut link, told(0, "orders", false));
    feed(&mut link, found(2));
    let mut place = |partition| {
        let position = Position { mirror: 0, partition, run: 1, ..Position::default() };
        fetch_of(&feed(&mut link, message(CloudBody::Position(position)))).expect("fetches").0
    };
    let (stalled, other) = (place(0), place(1));
    for at in 0..9 {
        feed(&mut link, fetched(stalled, [at * 2]));
    }
    assert!(frames(&mut link).len() > 1);
    let input = EdgeInput::Fetched {
        topic: topic(),
        partition: 1,
        fetch: other,
        entries: vec![Entry::Batch(batch(0))],
        epoch: None,
        high_watermark: 2,
        log_start: 0,
    };
    feed(&mut link, input);
    assert_eq!(frames(&mut link), [(1, 0, 2)]);
}

#[test]
fn credit_of_a_mirror_that_failed_here_returns_with_the_gateways_answer() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    frames(&mut link);
    let in_flight = link.status().in_flight_bytes;
    let large = BatchBuilder::new(4).payload(1_940).build();
    feed(&mut link, entries(fetch, vec![Entry::Batch(large)]));
    assert_eq!(frames(&mut link), []);
    let outputs: Vec<_> = std::iter::from_fn(|| link.poll_output()).collect();
    assert_eq!(failure(&outputs), Some(FailureCode::BatchTooLarge));
    assert_eq!((link.status().in_flight_bytes, link.status().window_bytes), (in_flight, 0));
    let failure = Failure::at(FailureCode::BatchTooLarge, 0, 4, "too large");
    feed(&mut link, message(CloudBody::Failed(Failed::new(MirrorId(0), &failure))));
    assert_eq!(link.status().in_flight_bytes, 0);
}

fn made_anew() -> EdgeInput {
    let source =
        SourceTopic { partitions: 1, topic_id: Some([2; 16]), configs: Vec::new(), retention: Retention::default() };
    EdgeInput::Source { topic: topic(), source: Ok(source) }
}

#[test]
fn a_topic_created_again_fails_the_mirror_once_the_old_one_is_shipped() {
    let (mut link, _) = live();
    assert_eq!(failure(&feed(&mut link, made_anew())), Some(FailureCode::SourceTopicIdChanged));
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    let outputs = feed(&mut link, made_anew());
    assert!(ends(&outputs), "{outputs:?}");
    assert_eq!(frames(&mut link), [(1, 0, 4)]);
    assert_eq!(failure(&feed(&mut link, confirm(1, 2))), None);
    assert_eq!(failure(&feed(&mut link, confirm(1, 4))), Some(FailureCode::SourceTopicIdChanged));
}

#[test]
fn a_mirror_made_anew_takes_the_topic_that_was() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    frames(&mut link);
    feed(&mut link, confirm(1, 4));
    reconnect(&mut link);
    feed(&mut link, made_anew());
    let outputs = feed(&mut link, position(1, 0, Vec::new()));
    assert_eq!(failure(&outputs), None);
    assert_eq!(fetch_of(&outputs).map(|(_, offset)| offset), Some(0));
    // And one that was not made anew holds records of the old topic.
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    frames(&mut link);
    feed(&mut link, confirm(1, 4));
    reconnect(&mut link);
    feed(&mut link, made_anew());
    let outputs = feed(&mut link, position(1, 4, vec![tail(&batch(2))]));
    assert_eq!(failure(&outputs), Some(FailureCode::SourceTopicIdChanged));
}

#[test]
fn mirrors_of_an_earlier_session_that_are_not_told_again_are_dropped() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0]));
    feed(&mut link, EdgeInput::Disconnected);
    feed(&mut link, connected());
    feed(&mut link, welcome(0));
    let outputs = feed(&mut link, filters(&[]));
    assert!(outputs.contains(&EdgeOutput::Forget { topic: topic() }), "{outputs:?}");
    assert_eq!((link.status().window_bytes, link.status().mirrors.len()), (0, 0));
}

#[test]
fn breaches_close_the_session() {
    let gap = vec![tail(&batch(0)), tail(&batch(4))];
    let breaches = [
        ("confirmed but never sent", confirm(1, 9)),
        ("a run told twice", position(1, 0, Vec::new())),
        ("a tail with a hole", position(2, 6, gap)),
        ("a tail that ends elsewhere", position(2, 9, vec![tail(&batch(0))])),
        ("a mirror out of turn", told(5, "alarms", false)),
        ("a mirror with two names", told(0, "alarms", false)),
        ("a topic that cannot be", told(1, "a/b", false)),
    ];
    for (name, input) in breaches {
        let (mut link, _) = live();
        assert_eq!(close_code(&feed(&mut link, input)), Some(CloseCode::Protocol), "{name}");
    }
}

#[test]
fn a_batch_above_the_gateways_largest_frame_fails_its_mirror() {
    let (mut link, fetch) = live();
    let large = BatchBuilder::new(0).payload(1_940).build();
    feed(&mut link, entries(fetch, vec![Entry::Batch(large)]));
    assert_eq!(frames(&mut link), []);
    let outputs: Vec<_> = std::iter::from_fn(|| link.poll_output()).collect();
    assert_eq!(failure(&outputs), Some(FailureCode::BatchTooLarge));
}

#[test]
fn frames_carry_whole_batches_in_order() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0, 2]));
    let frame = link.poll_frame().expect("a frame");
    assert_eq!(frame.body, crate::edge::OutgoingBody::Entries(vec![Entry::Batch(batch(0)), Entry::Batch(batch(2))]));
    assert_eq!((frame.mirror, frame.partition, frame.run), (MirrorId(0), 0, 1));
}

/// As [`live`], with a batch, a gap and a batch sent.
fn live_with_gap() -> EdgeLink {
    let (mut link, fetch) = live();
    feed(&mut link, mixed(fetch));
    assert_eq!(frames(&mut link), [(1, 0, 12)]);
    link
}

#[test]
fn resumes_within_a_gap() {
    for next_offset in 2..10 {
        let mut link = live_with_gap();
        reconnect(&mut link);
        let mut end = vec![tail(&batch(0))];
        if next_offset > 2 {
            end.push(TailBatch::gap(2, next_offset));
        }
        let outputs = feed(&mut link, position(1, next_offset, end));
        assert_eq!(fetch_of(&outputs), None, "{outputs:?}");
        let frame = link.poll_frame().expect("a frame");
        let expected = vec![gap(next_offset, 10), Entry::Batch(batch(10))];
        assert_eq!(frame.body, crate::edge::OutgoingBody::Entries(expected));
        feed(&mut link, confirm(1, 12));
        assert_eq!((link.status().window_bytes, link.status().in_flight_bytes), (0, 0));
    }
}

#[test]
fn goes_on_where_a_confirm_within_a_gap_left_off() {
    let mut link = live_with_gap();
    feed(&mut link, confirm(1, 5));
    assert_eq!(link.status().mirrors[0].partitions[0].confirmed, Some(5));
    reconnect(&mut link);
    assert_eq!(rewinds(&link), 0);
    feed(&mut link, position(1, 7, vec![tail(&batch(0)), TailBatch::gap(2, 7)]));
    assert_eq!(frames(&mut link), [(1, 7, 12)], "what was shipped of the gap, and what was held, make it one");
}

#[test]
fn gaps_side_by_side_are_one_until_they_are_sent() {
    let (mut link, fetch) = live();
    for (first, next) in [(0, 3), (3, 4), (2, 9)] {
        feed(&mut link, entries(fetch, vec![gap(first, next)]));
    }
    assert_eq!(link.status().window_bytes, gap(0, 9).bytes());
    let frame = link.poll_frame().expect("a frame");
    assert_eq!(frame.body, crate::edge::OutgoingBody::Entries(vec![gap(0, 9)]));
    feed(&mut link, entries(fetch, vec![gap(9, 11)]));
    assert_eq!(frames(&mut link), [(1, 9, 11)]);
    feed(&mut link, confirm(1, 11));
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 11, vec![TailBatch::gap(0, 11)]));
    assert!(matches!(outputs[..], [EdgeOutput::Send(_)]), "placed: {outputs:?}");
}

#[test]
fn a_gap_against_records_is_evidence() {
    for (end, next_offset) in [
        (vec![TailBatch::gap(0, 1), TailBatch::gap(1, 2)], 2),
        (vec![tail(&batch(0)), tail(&batch(2))], 4),
        (vec![TailBatch::gap(9, 12)], 12),
    ] {
        let mut link = live_with_gap();
        reconnect(&mut link);
        let outputs = feed(&mut link, position(1, next_offset, end));
        assert_eq!(failure(&outputs), Some(FailureCode::Diverged), "{outputs:?}");
        assert_eq!(frames(&mut link), []);
    }
}

#[test]
fn what_was_read_of_a_compacted_log_may_lack_records() {
    let compacted = |link: &mut EdgeLink| {
        let configs = vec![TopicConfig { name: "cleanup.policy".to_owned(), value: "delete, compact".to_owned() }];
        let source = SourceTopic { partitions: 1, topic_id: Some([1; 16]), configs, retention: Retention::default() };
        feed(link, EdgeInput::Source { topic: topic(), source: Ok(source) })
    };
    let end = || vec![tail(&batch(0)), tail(&batch(2))];
    let mut link = live_with_gap();
    compacted(&mut link);
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 4, end()));
    assert!(matches!(outputs[..], [EdgeOutput::CompareTail { compacted: true, .. }]), "{outputs:?}");
    // What was shipped was read by nobody else.
    let mut link = live_with_gap();
    compacted(&mut link);
    feed(&mut link, confirm(1, 12));
    reconnect(&mut link);
    assert_eq!(failure(&feed(&mut link, position(1, 4, end()))), Some(FailureCode::Diverged));
}

#[test]
fn what_was_made_anew_does_not_contradict_a_mirror_that_got_it_elsewhere() {
    for (epoch, differs) in [(-1, false), (0, true)] {
        let (mut link, fetch) = live();
        let made = BatchBuilder::new(0).records(4).leader_epoch(epoch).build();
        feed(&mut link, entries(fetch, vec![Entry::Batch(made)]));
        reconnect(&mut link);
        let theirs = BatchBuilder::new(0).records(2).payload(400).build();
        let outputs = feed(&mut link, position(1, 2, vec![tail(&theirs)]));
        assert_eq!(failure(&outputs), differs.then_some(FailureCode::Diverged));
        assert_eq!(outputs.iter().any(|output| matches!(output, EdgeOutput::CompareTail { .. })), !differs);
    }
}
