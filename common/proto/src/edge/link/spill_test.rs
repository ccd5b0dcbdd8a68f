//! What a site with a journal promises: what goes to disk and when, that it comes back in order, and what a restart needs.

use super::*;
use crate::batch::Batch;
use crate::edge::{
    Checkpoint, CheckpointMirror, CheckpointPartition, JournalRange, OutgoingBody, Retention, SpillError, SpillFrame,
    Verdict,
};
use crate::failure::FailureCode;
use crate::frame::{Entry, Packed};
use crate::id::Offset;
use crate::testing::BatchBuilder;
use crate::wire::{CloudMessage, Filters, Mirror, PartitionOffset, Position, Positions, TailBatch};

const DELAY: Time = Time::from_secs(2);
const START: Time = Time::from_secs(100);

pub(super) fn topic() -> TopicName {
    TopicName::new("orders").expect("legal")
}

fn batch(base: Offset) -> Batch {
    BatchBuilder::new(base).records(2).payload(400).build()
}

fn tail(base: Offset) -> Vec<TailBatch> {
    vec![TailBatch::of(&batch(base))]
}

/// A site with a journal that a test keeps, and a clock.
pub(super) struct Site {
    pub(super) link: EdgeLink,
    now: Time,
    pub(super) journal: Vec<Packed>,
    outputs: Vec<EdgeOutput>,
    spills: usize,
    /// Loads without an answer: ticket and offset.
    pub(super) loads: Vec<(u64, Offset)>,
    /// The Spill without an answer.
    waiting: Option<(u64, Vec<SpillFrame>)>,
}

impl Site {
    pub(super) fn new() -> Self {
        Self::restored(Checkpoint::default(), Vec::new())
    }

    /// As a process that finds this checkpoint and these frames.
    pub(super) fn restored(checkpoint: Checkpoint, journal: Vec<Packed>) -> Self {
        let link = EdgeLink::new(EdgeConfig {
            software: "test".to_owned(),
            incarnation: 7,
            window_bytes: 8_000,
            spill_delay: DELAY,
            max_frame_bytes: 2_000,
        });
        let mut site =
            Self { link, now: START, journal, outputs: Vec::new(), spills: 0, loads: Vec::new(), waiting: None };
        let ranges = site.ranges();
        site.feed(EdgeInput::Restored { checkpoint, ranges });
        site
    }

    fn ranges(&self) -> Vec<JournalRange> {
        let (Some(first), Some(last)) = (self.journal.first(), self.journal.last()) else { return Vec::new() };
        let (first, next, last_epoch) = (first.first_offset, last.next_offset, last.last_epoch);
        vec![JournalRange { topic: topic(), topic_id: None, partition: 0, first, next, last_epoch, bytes: 1 }]
    }

    pub(super) fn feed(&mut self, input: EdgeInput) -> Vec<EdgeOutput> {
        self.link.handle(input, self.now);
        self.poll();
        self.outputs.clone()
    }

    pub(super) fn poll(&mut self) {
        self.outputs = std::iter::from_fn(|| self.link.poll_output()).collect();
        if let Some(spill) = spill(&self.outputs) {
            assert!(self.waiting.replace(spill).is_none(), "one commit at a time");
        }
        self.loads.extend(self.outputs.iter().filter_map(|output| {
            if let EdgeOutput::Load { ticket, offset, .. } = output { Some((*ticket, *offset)) } else { None }
        }));
    }

    fn message(&mut self, body: CloudBody) -> Vec<EdgeOutput> {
        self.feed(EdgeInput::Message(CloudMessage { body: Some(body) }))
    }

    /// Opens a session that has the mirror.
    pub(super) fn connect(&mut self) {
        self.open(&[]);
        self.message(CloudBody::Mirror(Mirror { mirror: 0, topic: "orders".to_owned(), paused: false }));
        self.found(1);
    }

    fn open(&mut self, patterns: &[&str]) -> Vec<EdgeOutput> {
        self.feed(EdgeInput::Connected { cluster_id: "source".to_owned() });
        self.message(CloudBody::Welcome(Welcome {
            version: 1,
            term: 7,
            credit_bytes: 6_000,
            max_frame_bytes: 2_000,
            software: "gateway".to_owned(),
            mirrors: 1,
        }));
        if patterns.is_empty() {
            return Vec::new();
        }
        self.message(CloudBody::Filters(Filters { patterns: patterns.iter().map(|text| (*text).to_owned()).collect() }))
    }

    pub(super) fn found(&mut self, id: u8) -> Vec<EdgeOutput> {
        let source = SourceTopic {
            partitions: 1,
            topic_id: Some([id; 16]),
            configs: Vec::new(),
            retention: Retention::default(),
        };
        self.feed(EdgeInput::Source { topic: topic(), source: Ok(source) })
    }

    pub(super) fn position(&mut self, run: u32, next_offset: Offset, tail: Vec<TailBatch>) -> Vec<EdgeOutput> {
        self.message(CloudBody::Position(Position { mirror: 0, partition: 0, run, next_offset, tail, rewind: false }))
    }

    pub(super) fn confirm(&mut self, run: u32, offset: Offset) -> Vec<EdgeOutput> {
        let entry = PartitionOffset { mirror: 0, partition: 0, offset, run, log_start: None };
        self.message(CloudBody::Confirm(Positions { entries: vec![entry] }))
    }

    fn fetched(&mut self, fetch: u64, bases: &[Offset]) -> Vec<EdgeOutput> {
        self.entries(fetch, bases.iter().map(|&base| Entry::Batch(batch(base))).collect())
    }

    pub(super) fn entries(&mut self, fetch: u64, entries: Vec<Entry>) -> Vec<EdgeOutput> {
        self.entries_of(fetch, entries, None)
    }

    /// As [`Site::entries`], with the epoch of what stands before their end.
    fn entries_of(&mut self, fetch: u64, entries: Vec<Entry>, epoch: Option<i32>) -> Vec<EdgeOutput> {
        let high_watermark = entries.last().map_or(0, Entry::next_offset);
        self.feed(EdgeInput::Fetched {
            topic: topic(),
            partition: 0,
            fetch,
            entries,
            epoch,
            high_watermark,
            log_start: 0,
        })
    }

    /// Lets time pass, and the journal take what it is given.
    pub(super) fn pass(&mut self, time: Time) {
        let until = self.now + time;
        loop {
            let due = self.link.next_timeout().map_or(until, |(at, _)| at.min(until));
            self.now = self.now.max(due);
            self.feed(EdgeInput::Timeout);
            self.keep(&Ok(()));
            if self.now >= until {
                return;
            }
        }
    }

    /// Answers Spills for as long as there are any.
    fn keep(&mut self, result: &Result<(), SpillError>) {
        while let Some((ticket, frames)) = self.waiting.take() {
            self.spills += 1;
            if result.is_ok() {
                for frame in frames {
                    // One that does not join begins a run, and what was there before counts as confirmed.
                    if frame.after != self.journal.last().map(|last| last.next_offset) {
                        self.journal.clear();
                    }
                    self.journal.push(frame.pack());
                }
            }
            self.feed(EdgeInput::Spilled { ticket, result: result.clone() });
        }
    }

    /// Answers Loads, and gives what is sent, with the journal's frames marked.
    fn sent(&mut self) -> Vec<(Offset, Offset, bool)> {
        let mut sent = Vec::new();
        loop {
            while let Some(frame) = self.link.poll_frame() {
                sent.push((frame.first_offset(), frame.next_offset(), matches!(frame.body, OutgoingBody::Packed(_))));
            }
            self.poll();
            let Some((ticket, offset)) = self.loads.pop() else { return sent };
            let from = self.journal.iter().position(|packed| packed.next_offset > offset).expect("in the journal");
            let frames = Some(self.journal[from..=from].to_vec());
            self.feed(EdgeInput::Loaded { topic: topic(), partition: 0, ticket, frames });
        }
    }

    pub(super) fn status(&self) -> EdgePartitionStatus {
        self.link.status().mirrors[0].partitions[0].clone()
    }
}

fn spill(outputs: &[EdgeOutput]) -> Option<(u64, Vec<SpillFrame>)> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Spill { ticket, frames } = output { Some((*ticket, frames.clone())) } else { None }
    })
}

fn fetch_of(outputs: &[EdgeOutput]) -> Option<(u64, Offset, Option<i32>)> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Fetch { fetch, offset, epoch, .. } = output { Some((*fetch, *offset, *epoch)) } else { None }
    })
}

fn discards(outputs: &[EdgeOutput]) -> bool {
    outputs.iter().any(|output| matches!(output, EdgeOutput::Discard { .. }))
}

fn failure(outputs: &[EdgeOutput]) -> Option<FailureCode> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Event(EdgeEvent::MirrorFailed { failure, .. }) = output { Some(failure.code) } else { None }
    })
}

/// A site that fetches from offset 0, with its session up.
fn live() -> (Site, u64) {
    let mut site = Site::new();
    site.connect();
    let outputs = site.position(1, 0, Vec::new());
    let (fetch, offset, epoch) = fetch_of(&outputs).expect("fetches");
    assert_eq!((offset, epoch), (0, None));
    (site, fetch)
}

/// A checkpoint at this offset.
fn checkpoint(confirmed: Offset, shipped: Vec<TailBatch>) -> Checkpoint {
    Checkpoint {
        filters: Vec::new(),
        mirrors: vec![CheckpointMirror {
            topic: topic(),
            topic_id: Some([1; 16]),
            paused: false,
            failed: false,
            settled: true,
            partitions: 1,
            configs: Vec::new(),
        }],
        partitions: vec![CheckpointPartition {
            topic: topic(),
            partition: 0,
            confirmed,
            last_epoch: 0,
            shipped,
            seen: true,
        }],
    }
}

fn frames(bases: &[Offset]) -> Vec<Packed> {
    bases.iter().map(|&base| Packed::new(&[Entry::Batch(batch(base)), Entry::Batch(batch(base + 2))])).collect()
}

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

fn gap(offset: Offset, next: Offset) -> Entry {
    Entry::Gap { offset, count: next - offset }
}

#[test]
fn gaps_go_to_the_journal_and_come_back() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    site.entries(fetch, vec![Entry::Batch(batch(0)), gap(2, 50), Entry::Batch(batch(50)), gap(52, 60)]);
    site.pass(DELAY);
    assert_eq!((site.status().journal, site.status().window_bytes), (Some((0, 60)), 0));
    site.entries(fetch, vec![gap(60, 62)]);
    site.connect();
    site.position(1, 0, Vec::new());
    assert_eq!(site.sent(), [(0, 60, true), (60, 62, false)]);
    site.confirm(1, 40);
    site.confirm(1, 62);
    assert_eq!((site.status().journal, site.status().window_bytes), (None, 0));
    site.feed(EdgeInput::Disconnected);
    site.connect();
    let outputs = site.position(1, 62, vec![TailBatch::of(&batch(50)), TailBatch::gap(52, 62)]);
    assert!(matches!(outputs[..], [EdgeOutput::Send(_), ..]), "known: {outputs:?}");
}

#[test]
fn a_mirror_that_ends_within_a_journaled_gap_goes_on_there() {
    let entries = [Entry::Batch(batch(0)), gap(2, 50), Entry::Batch(batch(50))];
    let mut site = Site::restored(checkpoint(0, Vec::new()), vec![Packed::new(&entries)]);
    site.found(1);
    site.connect();
    let end = vec![TailBatch::of(&batch(0)), TailBatch::gap(2, 20)];
    let outputs = site.position(1, 20, end);
    let ticket = outputs
        .iter()
        .find_map(|output| if let EdgeOutput::CompareTail { ticket, .. } = output { Some(*ticket) } else { None });
    let (ticket, verdict) = (ticket.expect("the journal is asked"), Verdict::Agrees);
    let outputs = site.feed(EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    assert!(!discards(&outputs), "{outputs:?}");
    assert_eq!(site.sent(), [(0, 52, true)], "the gateway takes what it lacks");
    site.confirm(1, 52);
    let shipped = site.link.take_checkpoint(true).expect("changed").partitions.remove(0).shipped;
    assert_eq!(shipped.last(), Some(&TailBatch::of(&batch(50))));
}

#[test]
fn a_gap_of_which_the_cloud_has_a_part_is_written_from_there() {
    let (mut site, fetch) = live();
    site.entries(fetch, vec![gap(0, 50), Entry::Batch(batch(50))]);
    site.sent();
    site.confirm(1, 20);
    site.pass(DELAY + DELAY);
    assert_eq!(site.journal.iter().map(|packed| packed.first_offset).min(), Some(20), "and none is left out");
    assert_eq!(site.status().journal, Some((20, 52)));
    site.feed(EdgeInput::Disconnected);
    site.connect();
    site.position(2, 20, vec![TailBatch::gap(0, 20)]);
    assert_eq!(site.sent(), [(20, 52, true)]);
}

#[test]
fn a_gap_that_is_being_written_does_not_grow() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    site.entries(fetch, vec![gap(0, 10)]);
    site.now += DELAY;
    site.feed(EdgeInput::Timeout);
    assert!(site.waiting.is_some());
    site.entries(fetch, vec![gap(10, 20)]);
    site.keep(&Ok(()));
    assert_eq!(site.status().journal.map(|(first, _)| first), Some(0));
    site.pass(DELAY);
    assert_eq!((site.status().journal, site.status().window_bytes), (Some((0, 20)), 0));
    let ends: Vec<_> = site.journal.iter().map(|packed| (packed.first_offset, packed.next_offset)).collect();
    assert_eq!(ends, [(0, 10), (10, 20)]);
}

#[test]
fn behind_a_gap_the_source_is_asked_with_the_epoch_of_its_markers() {
    for (told, known) in [(None, None), (Some(5), Some(5))] {
        let (mut site, fetch) = live();
        site.feed(EdgeInput::Disconnected);
        site.entries_of(fetch, vec![Entry::Batch(batch(0)), gap(2, 3)], Some(3));
        site.entries_of(fetch, vec![gap(3, 4)], told);
        site.pass(DELAY);
        let mut again = Site::restored(checkpoint(0, Vec::new()), site.journal.clone());
        assert_eq!(fetch_of(&again.found(1)).map(|(_, offset, epoch)| (offset, epoch)), Some((4, known)));
    }
}

#[test]
fn the_epoch_is_that_of_what_stands_before_the_end() {
    let (mut site, fetch) = live();
    site.entries_of(fetch, vec![gap(0, 1), Entry::Batch(batch(1)), gap(3, 6)], Some(5));
    site.sent();
    site.confirm(1, 6);
    let kept = site.link.take_checkpoint(true).expect("changed");
    assert_eq!(kept.partitions[0].last_epoch, 5);
    let (mut site, fetch) = live();
    site.entries_of(fetch, vec![gap(0, 1), Entry::Batch(batch(1)), gap(3, 6)], Some(5));
    site.sent();
    site.confirm(1, 5);
    let kept = site.link.take_checkpoint(true).expect("changed");
    assert_eq!(kept.partitions[0].last_epoch, -1, "within the gap it is not known");
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
    let told = outputs.iter().any(|output| {
        let EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::SourceStart(start)) }) = output else { return false };
        start.offset == 95 && start.seen
    });
    assert!(told && offset == 6, "the checkpoint knows that the source was there: {outputs:?}");
}

#[test]
fn what_is_journaled_goes_before_a_start_is_told() {
    let mut site = Site::restored(checkpoint(0, Vec::new()), frames(&[0, 4]));
    let (fetch, offset, _) = fetch_of(&site.found(1)).expect("reads on");
    assert_eq!(offset, 8);
    site.connect();
    site.position(1, 0, Vec::new());
    let start_of = |outputs: &[EdgeOutput]| {
        outputs.iter().find_map(|output| {
            let EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::SourceStart(start)) }) = output else {
                return None;
            };
            Some(start.offset)
        })
    };
    let outputs = site.feed(EdgeInput::Overtaken { topic: topic(), partition: 0, fetch, log_start: 95 });
    assert_eq!(start_of(&outputs), None);
    assert_eq!(site.sent(), [(0, 4, true), (4, 8, true)]);
    assert_eq!(start_of(&site.confirm(1, 8)), Some(95));
}
