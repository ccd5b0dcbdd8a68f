//! What a site with a journal promises: what goes to disk and when, that it comes back in order, and what a restart needs.

use super::site::*;
use super::*;
use crate::edge::{CheckpointPartition, SpillError, SpillFrame, Verdict};
use crate::failure::FailureCode;
use crate::frame::Entry;
use crate::wire::Mirror;

#[test]
fn what_is_confirmed_within_the_delay_is_never_written() {
    let (mut site, fetch) = live();
    for base in 0..50 {
        site.fetched(fetch, &[base * 2]);
        site.sent();
        site.pass(Time::from_millis(1_900));
        site.confirm(1, base * 2 + 2);
    }
    site.pass(Time::from_hours(1));
    assert_eq!(site.spills, 0);
}

#[test]
fn what_grows_old_is_written_and_no_more_than_that() {
    let (mut site, fetch) = live();
    site.fetched(fetch, &[0, 2]);
    site.pass(Time::from_millis(1_500));
    site.fetched(fetch, &[4]);
    site.pass(Time::from_millis(600));
    assert_eq!((site.spills, site.status().journal), (1, Some((0, 4))), "the third batch is young, and the link is up");
    assert_eq!(site.sent(), [(0, 4, true), (4, 6, false)], "in order, though the first two left memory");
    site.confirm(1, 6);
    assert_eq!(site.status().journal, None);
}

#[test]
fn darkness_goes_to_the_journal_and_drains_in_order_while_more_comes_in() {
    let (mut site, fetch) = live();
    site.fetched(fetch, &[0]);
    site.sent();
    site.feed(EdgeInput::Disconnected);
    for base in 1..30 {
        site.fetched(fetch, &[base * 2]);
        site.pass(Time::from_millis(300));
    }
    site.pass(DELAY);
    assert!(site.spills < 8, "commits are few: {}", site.spills);
    assert_eq!((site.status().journal, site.status().window_bytes), (Some((0, 60)), 0));
    site.connect();
    site.position(1, 0, Vec::new());
    let mut expected = 0;
    let mut base = 60;
    while expected < base {
        for (first, next, _) in site.sent() {
            assert_eq!(first, expected);
            expected = next;
        }
        let confirmed = expected;
        site.confirm(1, confirmed);
        if base < 90 {
            site.fetched(fetch, &[base]);
            base += 2;
        }
        site.pass(Time::from_millis(500));
    }
    assert_eq!((site.status().confirmed, site.status().journal), (Some(90), None));
}

#[test]
fn what_a_partition_may_hold_in_the_dark_is_written_without_delay() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    for base in 0..8 {
        let outputs = site.fetched(fetch, &[base * 2]);
        if outputs.iter().any(|output| matches!(output, EdgeOutput::PauseFetch { .. })) {
            let window = site.link.status().window_bytes;
            assert!(window < 4_000, "it holds a share of the window, not half of it: {window}");
            let (_, frames) = spill(&outputs).expect("it is read no further until this is written");
            let last = frames.last().and_then(|frame| frame.entries.last()).map(Entry::next_offset);
            return assert_eq!(last, Some(base * 2 + 2));
        }
        assert_eq!(spill(&outputs), None, "more is to come soon");
    }
    panic!("it is read on and on");
}

#[test]
fn a_full_journal_stops_fetching_says_so_once_and_goes_on_by_itself() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    let outputs = site.fetched(fetch, &[0, 2, 4, 6, 8, 10, 12, 14]);
    assert!(outputs.iter().any(|output| matches!(output, EdgeOutput::PauseFetch { .. })), "{outputs:?}");
    let full = || Err(SpillError::Full { reason: "the journal is full".to_owned() });
    let mut told = 0;
    for _ in 0..5 {
        if site.waiting.is_none() {
            site.now += DELAY;
            site.feed(EdgeInput::Timeout);
        }
        let (ticket, _) = site.waiting.take().expect("tried again");
        let outputs = site.feed(EdgeInput::Spilled { ticket, result: full() });
        told += outputs.iter().filter(|output| matches!(output, EdgeOutput::Event(EdgeEvent::Journal { .. }))).count();
    }
    assert_eq!((told, site.link.status().journal_trouble.as_deref()), (1, Some("the journal is full")));
    site.pass(DELAY);
    assert_eq!((site.link.status().journal_trouble, site.status().journal), (None, Some((0, 16))));
}

#[test]
fn a_restart_in_the_dark_reads_on_behind_the_journal() {
    let mut site = Site::restored(checkpoint(2, tail(0)), frames(&[0, 4, 8]));
    assert!(site.outputs.contains(&EdgeOutput::Discover { topic: topic() }), "{:?}", site.outputs);
    let outputs = site.found(1);
    let (fetch, offset, epoch) = fetch_of(&outputs).expect("reads on");
    assert_eq!((offset, epoch), (12, Some(batch(10).leader_epoch())));
    site.fetched(fetch, &[12]);
    site.pass(DELAY);
    assert_eq!(site.status().journal, Some((0, 14)));
    site.connect();
    assert!(site.position(1, 2, tail(0)).iter().any(|output| matches!(output, EdgeOutput::Send(_))));
    assert_eq!(site.sent(), [(0, 4, true), (4, 8, true), (8, 12, true)], "as far as the credit goes");
    site.confirm(1, 8);
    assert_eq!(site.sent(), [(12, 14, true)]);
}

#[test]
fn without_a_frame_it_reads_on_at_the_checkpoint_and_never_beyond_the_journal() {
    let mut site = Site::restored(checkpoint(6, tail(4)), Vec::new());
    let outputs = site.found(1);
    assert_eq!(fetch_of(&outputs).map(|(_, offset, epoch)| (offset, epoch)), Some((6, Some(0))));
    let mut site = Site::restored(checkpoint(40, tail(38)), frames(&[0, 4]));
    let outputs = site.found(1);
    assert_eq!(fetch_of(&outputs).map(|(_, offset, _)| offset), Some(40), "the frames are confirmed, all of them");
}

#[test]
fn a_mirror_behind_or_beyond_the_journal_is_read_from_the_source() {
    for (next_offset, end) in [(2, 0), (40, 38)] {
        let mut site = Site::restored(checkpoint(8, tail(6)), frames(&[8, 12]));
        site.found(1);
        site.connect();
        let outputs = site.position(1, next_offset, tail(end));
        let ticket = outputs
            .iter()
            .find_map(|output| if let EdgeOutput::CompareTail { ticket, .. } = output { Some(*ticket) } else { None });
        let ticket = ticket.expect("compared with the source first");
        let verdict = Verdict::Agrees;
        let outputs = site.feed(EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
        assert!(discards(&outputs), "{outputs:?}");
        assert_eq!(fetch_of(&outputs).map(|(_, offset, _)| offset), Some(next_offset));
        assert_eq!(site.sent(), []);
    }
}

#[test]
fn frames_of_a_topic_that_was_made_anew_go_to_the_old_mirror_or_nowhere() {
    let mut site = Site::restored(checkpoint(2, tail(0)), frames(&[0, 4]));
    assert_eq!(fetch_of(&site.found(2)), None);
    site.connect();
    site.found(2);
    site.position(1, 2, tail(0));
    assert_eq!(site.sent(), [(0, 4, true), (4, 8, true)]);
    let outputs = site.confirm(1, 8);
    assert_eq!((failure(&outputs), discards(&outputs)), (Some(FailureCode::SourceTopicIdChanged), true));

    let mut site = Site::restored(checkpoint(2, tail(0)), frames(&[0, 4]));
    site.found(2);
    site.connect();
    site.found(2);
    let outputs = site.position(1, 0, Vec::new());
    assert!(discards(&outputs), "the mirror is the new topic's: {outputs:?}");
    assert_eq!(fetch_of(&outputs).map(|(_, offset, _)| offset), Some(0));
    assert_eq!(site.sent(), []);
}

#[test]
fn a_topic_that_a_filter_means_is_journaled_in_the_dark_and_offered_later() {
    let mut site = Site::new();
    let outputs = site.open(&["ord*"]);
    assert!(outputs.iter().any(|output| matches!(output, EdgeOutput::Watch { filters } if filters.len() == 1)));
    assert_eq!(site.link.take_checkpoint(true).map(|kept| kept.filters), Some(vec!["ord*".to_owned()]));
    site.feed(EdgeInput::Disconnected);
    let other = TopicName::new("alarms").expect("legal");
    let outputs = site.feed(EdgeInput::Discovered { topics: vec![topic(), other] });
    assert_eq!(outputs, [EdgeOutput::Discover { topic: topic() }]);
    let outputs = site.found(1);
    let (fetch, offset, _) = fetch_of(&outputs).expect("reads it from its start");
    assert_eq!(offset, 0);
    site.fetched(fetch, &[0, 2]);
    site.pass(DELAY);
    assert_eq!(site.status().journal, Some((0, 4)));
    let outputs = site.open(&["ord*"]);
    let offered = outputs.iter().any(|output| {
        matches!(output, EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::Discovered(topics)) }) if topics.names == ["orders"])
    });
    assert!(offered, "{outputs:?}");
    site.message(CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused: false }));
    site.position(1, 0, Vec::new());
    assert_eq!(site.sent(), [(0, 4, true)]);
}

#[test]
fn a_place_the_source_has_left_waits_for_the_gateways_word() {
    let mut site = Site::restored(checkpoint(6, tail(4)), Vec::new());
    let (fetch, ..) = fetch_of(&site.found(1)).expect("reads on");
    let failure = Failure::at(FailureCode::SourceDataLost, 0, 6, "log starts at 9");
    let outputs = site.feed(EdgeInput::FetchFailed { topic: topic(), fetch, failure });
    assert!(matches!(outputs[..], [EdgeOutput::Event(EdgeEvent::Stuck { .. })]), "{outputs:?}");
    assert_eq!(fetch_of(&site.found(1)), None);
    site.connect();
    let outputs = site.position(1, 10, tail(8));
    let ticket = outputs
        .iter()
        .find_map(|output| if let EdgeOutput::CompareTail { ticket, .. } = output { Some(*ticket) } else { None });
    let ticket = ticket.expect("not known here");
    let verdict = Verdict::Unverified;
    let outputs = site.feed(EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    assert_eq!(fetch_of(&outputs).map(|(_, offset, _)| offset), Some(10));
}

#[test]
fn a_journal_that_was_opened_anew_begins_a_new_session_with_what_it_has() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    for bases in [[0, 2], [4, 6]] {
        site.fetched(fetch, &bases);
        site.pass(DELAY);
    }
    site.fetched(fetch, &[8]);
    site.connect();
    site.position(1, 0, Vec::new());
    site.journal.truncate(1);
    let end = site.journal[0].next_offset;
    let ranges = site.ranges();
    let outputs = site.feed(EdgeInput::JournalOpened { ranges });
    assert!(outputs.iter().any(|output| matches!(output, EdgeOutput::Close { .. })), "{outputs:?}");
    assert_eq!(fetch_of(&outputs).map(|(_, offset, _)| offset), Some(end), "what is lost is read again, link or not");
}

#[test]
fn frames_of_another_topic_id_are_discarded_at_the_start() {
    let other = |topic_id| {
        let mut site = Site::new();
        site.journal = frames(&[0, 4]);
        let mut ranges = site.ranges();
        for range in &mut ranges {
            range.topic_id = topic_id;
        }
        site.feed(EdgeInput::Restored { checkpoint: checkpoint(2, tail(0)), ranges })
    };
    assert!(discards(&other(Some([2; 16]))));
    assert!(!discards(&other(Some([1; 16]))));
    assert!(!discards(&other(None)), "not known");
}

#[test]
fn what_failed_or_was_not_wanted_is_not_read_in_the_dark() {
    let mut kept = checkpoint(2, tail(0));
    kept.mirrors[0].failed = true;
    let mut site = Site::restored(kept, Vec::new());
    assert_eq!(fetch_of(&site.found(1)), None);

    let mut site = Site::new();
    site.open(&["ord*"]);
    site.feed(EdgeInput::Discovered { topics: vec![topic()] });
    site.pass(Time::from_mins(1));
    site.feed(EdgeInput::Disconnected);
    assert_eq!(fetch_of(&site.found(1)), None, "the gateway had a minute to make it a mirror");
}

#[test]
fn a_partition_without_a_position_is_read_all_the_same_after_a_while() {
    let mut site = Site::restored(checkpoint(2, tail(0)), frames(&[0, 4]));
    site.connect();
    assert_eq!(fetch_of(&site.found(1)), None);
    site.pass(Time::from_mins(1));
    assert_eq!(fetch_of(&site.found(1)).map(|(_, offset, _)| offset), Some(8));
}

#[test]
fn a_mirror_that_is_paused_keeps_its_frames_and_one_that_failed_does_not() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    site.fetched(fetch, &[0, 2]);
    site.pass(DELAY);
    site.connect();
    let paused = |paused| CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused });
    let outputs = site.message(paused(true));
    assert!(!discards(&outputs), "{outputs:?}");
    site.message(paused(false));
    site.found(1);
    site.position(1, 0, Vec::new());
    assert_eq!(site.sent(), [(0, 4, true)]);
    let failed = Failure::of_topic(FailureCode::Diverged, "two logs");
    let outputs = site.message(CloudBody::Failed(crate::wire::Failed::new(MirrorId(0), &failed)));
    assert!(discards(&outputs), "{outputs:?}");
}

#[test]
fn frames_kept_for_a_gateway_that_took_more_are_made_smaller() {
    let mut site = Site::restored(checkpoint(2, tail(0)), frames(&[0, 4]));
    assert!(site.journal[0].raw_bytes > 600);
    site.found(1);
    site.feed(EdgeInput::Connected { cluster_id: "source".to_owned() });
    site.message(CloudBody::Welcome(Welcome {
        version: 1,
        term: 7,
        credit_bytes: 6_000,
        max_frame_bytes: 600,
        software: "gateway".to_owned(),
        mirrors: 1,
    }));
    site.message(CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused: false }));
    site.position(1, 2, tail(0));
    assert_eq!(site.sent(), [(2, 4, true), (4, 6, true), (6, 8, true)]);
}

#[test]
fn a_mirror_that_is_paused_while_it_is_spilled_keeps_that_too() {
    let (mut site, fetch) = live();
    site.fetched(fetch, &[0, 2]);
    site.now += DELAY;
    let outputs = site.feed(EdgeInput::Timeout);
    let (ticket, frames) = spill(&outputs).expect("is due");
    let paused = |paused| CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused });
    site.message(paused(true));
    site.journal.extend(frames.iter().map(SpillFrame::pack));
    site.feed(EdgeInput::Spilled { ticket, result: Ok(()) });
    assert_eq!(site.status().journal, Some((0, 4)));
    site.message(paused(false));
    site.found(1);
    let outputs = site.position(2, 0, Vec::new());
    assert!(!discards(&outputs), "{outputs:?}");
    assert_eq!(site.sent(), [(0, 4, true)]);
}

#[test]
fn what_is_being_written_when_a_damage_is_found_counts() {
    let (mut site, fetch) = live();
    site.fetched(fetch, &[0]);
    site.pass(DELAY);
    site.fetched(fetch, &[2]);
    site.now += DELAY;
    let outputs = site.feed(EdgeInput::Timeout);
    let (ticket, frames) = spill(&outputs).expect("is due");
    let ranges = site.ranges();
    site.feed(EdgeInput::JournalOpened { ranges });
    site.journal.extend(frames.iter().map(SpillFrame::pack));
    site.feed(EdgeInput::Spilled { ticket, result: Ok(()) });
    assert_eq!((site.status().journal, site.status().fetched), (Some((0, 4)), Some(4)));
}

#[test]
fn a_topic_made_anew_is_kept_with_where_it_begins() {
    let mut site = Site::restored(checkpoint(8, tail(6)), Vec::new());
    site.found(2);
    site.connect();
    site.found(2);
    site.position(1, 0, Vec::new());
    let kept = site.link.take_checkpoint(false).expect("the id is new");
    assert_eq!(kept.mirrors[0].topic_id, Some([2; 16]));
    assert_eq!((kept.partitions[0].confirmed, &kept.partitions[0].shipped), (0, &Vec::new()));
}

#[test]
fn an_empty_partition_waits_for_one_that_shows_whose_the_mirror_is() {
    let found = |site: &mut Site| {
        let source = SourceTopic {
            partitions: 2,
            topic_id: Some([2; 16]),
            configs: Vec::new(),
            retention: Retention::default(),
        };
        site.feed(EdgeInput::Source { topic: topic(), source: Ok(source) })
    };
    let mut kept = checkpoint(8, tail(6));
    kept.partitions.push(CheckpointPartition {
        partition: 1,
        confirmed: 0,
        shipped: Vec::new(),
        ..kept.partitions[0].clone()
    });
    let mut site = Site::restored(kept, Vec::new());
    found(&mut site);
    site.open(&[]);
    site.message(CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused: false }));
    let position = |partition, next_offset, tail| {
        CloudBody::Position(Position { mirror: 0, partition, run: 1, next_offset, tail, rewind: false })
    };
    assert_eq!(site.message(position(1, 0, Vec::new())), [], "a mirror of either topic looks like this");
    let outputs = site.message(position(0, 8, tail(6)));
    assert_eq!((failure(&outputs), fetch_of(&outputs)), (Some(FailureCode::SourceTopicIdChanged), None));
}

#[test]
fn the_epoch_of_a_journal_that_was_let_go_of_is_remembered() {
    let mut site = Site::restored(checkpoint(0, Vec::new()), frames(&[0]));
    let (fetch, ..) = fetch_of(&site.found(1)).expect("reads on");
    let failure = Failure::at(FailureCode::UnexpectedTruncation, 0, 2, "cut");
    site.feed(EdgeInput::FetchFailed { topic: topic(), fetch, failure });
    site.connect();
    let outputs = site.position(1, 4, tail(2));
    let ticket = outputs
        .iter()
        .find_map(|output| if let EdgeOutput::CompareTail { ticket, .. } = output { Some(*ticket) } else { None });
    let (ticket, verdict) = (ticket.expect("not known here"), Verdict::Agrees);
    let outputs = site.feed(EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    assert_eq!(fetch_of(&outputs).map(|(_, offset, epoch)| (offset, epoch)), Some((4, Some(0))));
}

#[test]
fn a_source_that_starts_above_is_a_matter_for_the_gateway() {
    let mut site = Site::restored(checkpoint(6, tail(4)), Vec::new());
    let (fetch, ..) = fetch_of(&site.found(1)).expect("reads on");
    let outputs = site.feed(EdgeInput::Overtaken { topic: topic(), partition: 0, fetch, log_start: 90 });
    assert!(matches!(outputs[..], [EdgeOutput::Event(EdgeEvent::Stuck { .. })]), "{outputs:?}");
    assert_eq!((fetch_of(&site.found(1)), site.status().stuck), (None, true));
    site.connect();
    let outputs = site.position(1, 6, tail(4));
    let (fetch, offset, _) = fetch_of(&outputs).expect("looks again");
    let outputs = site.feed(EdgeInput::Overtaken { topic: topic(), partition: 0, fetch, log_start: 95 });
    let told = source_start(&outputs).map(|start| (start.offset, start.seen));
    assert!(told == Some((95, true)) && offset == 6, "the checkpoint knows that the source was there: {outputs:?}");
}

#[test]
fn what_is_journaled_goes_before_a_start_is_told() {
    let mut site = Site::restored(checkpoint(0, Vec::new()), frames(&[0, 4]));
    let (fetch, offset, _) = fetch_of(&site.found(1)).expect("reads on");
    assert_eq!(offset, 8);
    site.connect();
    site.position(1, 0, Vec::new());
    let start_of = |outputs: &[EdgeOutput]| source_start(outputs).map(|start| start.offset);
    let outputs = site.feed(EdgeInput::Overtaken { topic: topic(), partition: 0, fetch, log_start: 95 });
    assert_eq!(start_of(&outputs), None);
    assert_eq!(site.sent(), [(0, 4, true), (4, 8, true)]);
    assert_eq!(start_of(&site.confirm(1, 8)), Some(95));
}
