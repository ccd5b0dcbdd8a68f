//! What the gateway's half promises: every state against every input, and the breaches it must not survive.

use std::collections::BTreeSet;

use super::*;
use crate::failure::FailureCode;
use crate::frame::Entry;
use crate::limits::MAX_ENTRIES;
use crate::pattern::TopicPattern;
use crate::testing::BatchBuilder;
use crate::wire::CloseCode::{Protocol, Shutdown, Superseded, Unavailable};
use crate::wire::{Failed, PartitionOffset, Placed, Positions, Source, SourceStart, Topics};

const NOW: Time = Time::from_secs(100);
pub(super) const LATER: Time = Time::from_secs(104);
const CREDIT: usize = 1_000;

pub(super) fn mirror(name: &str, paused: bool) -> MirrorSettings {
    let topic = TopicName::new(name).expect("legal");
    MirrorSettings { paused, max_gap: 100, ..MirrorSettings::new(topic.clone(), topic) }
}

fn fresh() -> CloudLink {
    CloudLink::new(CloudConfig {
        producer_id: 1 << 62,
        software: "test".to_owned(),
        credit_bytes: CREDIT,
        max_frame_bytes: 500,
        link: link(&[mirror("orders", false), mirror("alarms", false)], &[]),
    })
}

pub(super) fn link(mirrors: &[MirrorSettings], filters: &[&str]) -> LinkSettings {
    LinkSettings {
        mirrors: mirrors.to_vec(),
        filters: filters.iter().map(|filter| TopicPattern::new(filter).expect("valid")).collect(),
        reserved: std::iter::once(TopicName::new("_tombolo").expect("legal")).collect::<BTreeSet<_>>().into(),
        ..LinkSettings::default()
    }
}

pub(super) fn message(body: EdgeBody) -> CloudInput {
    CloudInput::Message(EdgeMessage { body: Some(body) })
}

fn hello() -> CloudInput {
    let hello = Hello {
        first_version: 1,
        last_version: 4,
        software: "agent".to_owned(),
        cluster_id: "source".to_owned(),
        max_frame_bytes: 400,
        incarnation: 77,
    };
    message(EdgeBody::Hello(hello))
}

fn claimed() -> CloudInput {
    CloudInput::Claimed { term: Term(3), write_after: LATER }
}

pub(super) fn source(mirror: u32, partitions: i32) -> CloudInput {
    message(EdgeBody::Source(Source { mirror, partitions, ..Source::default() }))
}

pub(super) fn frame(run: u32, base: Offset, payload: usize) -> CloudInput {
    let entries = vec![Entry::Batch(BatchBuilder::new(base).payload(payload).build())];
    CloudInput::Frame(Frame { mirror: MirrorId(0), run, partition: 0, entries })
}

pub(super) fn skipped(ticket: u64, log_end: Offset) -> CloudInput {
    let outcome = SkipOutcome::Appended { log_end };
    CloudInput::Skipped { mirror: MirrorId(0), partition: 0, ticket, outcome }
}

pub(super) fn deleted(ticket: u64, result: Result<Offset, String>) -> CloudInput {
    CloudInput::Deleted { mirror: MirrorId(0), partition: 0, ticket, result }
}

pub(super) fn fast_forwarded(ticket: u64, result: Result<(), String>) -> CloudInput {
    CloudInput::FastForwarded { mirror: MirrorId(0), partition: 0, ticket, result }
}

pub(super) fn loss_recorded(ticket: u64, result: Result<(), String>) -> CloudInput {
    CloudInput::LossRecorded { mirror: MirrorId(0), partition: 0, ticket, result }
}

pub(super) fn source_start(run: u32, offset: Offset) -> CloudInput {
    message(EdgeBody::SourceStart(SourceStart { mirror: 0, partition: 0, run, offset, seen: false }))
}

pub(super) fn recovered(attempt: u32, log_end: Offset) -> CloudInput {
    let recovery = Recovery { log_start: 0, log_end, starting: None, last_sequence: None, tail: Vec::new() };
    CloudInput::Recovered { mirror: MirrorId(0), partition: 0, attempt, result: Ok(recovery) }
}

fn drain(link: &mut CloudLink) -> Vec<CloudOutput> {
    std::iter::from_fn(|| link.poll_output()).collect()
}

pub(super) fn feed(link: &mut CloudLink, input: CloudInput, now: Time) -> Vec<CloudOutput> {
    link.handle(input, now);
    drain(link)
}

fn open() -> CloudLink {
    let mut link = fresh();
    assert_eq!(feed(&mut link, hello(), NOW), [CloudOutput::Claim { incarnation: 77 }]);
    let outputs = feed(&mut link, claimed(), NOW);
    assert!(matches!(
        &outputs[..],
        [
            CloudOutput::Send(CloudMessage { body: Some(CloudBody::Welcome(welcome)) }),
            CloudOutput::Send(CloudMessage { body: Some(CloudBody::Mirror(first)) }),
            CloudOutput::Send(CloudMessage { body: Some(CloudBody::Mirror(second)) }),
            CloudOutput::Send(CloudMessage { body: Some(CloudBody::Filters(filters)) }),
        ] if (welcome.version, welcome.term, welcome.max_frame_bytes, welcome.mirrors) == (1, 3, 400, 2)
            && (first.mirror, &*first.topic, second.mirror, &*second.topic) == (0, "orders", 1, "alarms")
            && filters.patterns.is_empty()
    ));
    link
}

/// Mirror 0 has one partition that takes frames of run 1 from offset 0.
fn live() -> CloudLink {
    live_at(0)
}

/// The same from another offset.
pub(super) fn live_at(log_end: Offset) -> CloudLink {
    let mut link = open();
    feed(&mut link, source(0, 1), LATER);
    let outputs = feed(&mut link, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }, LATER);
    assert!(matches!(outputs[..], [CloudOutput::Recover { attempt: 1, .. }, CloudOutput::Event(_)]), "{outputs:?}");
    let outputs = feed(&mut link, recovered(1, log_end), LATER);
    assert!(matches!(
        &outputs[..],
        [CloudOutput::Send(CloudMessage { body: Some(CloudBody::Position(position)) }), ..] if position.run == 1
    ));
    link
}

pub(super) fn close_code(outputs: &[CloudOutput]) -> Option<CloseCode> {
    outputs.iter().find_map(|output| if let CloudOutput::Close { code, .. } = output { Some(*code) } else { None })
}

#[test]
fn every_state_meets_every_input() {
    let inputs: [(&str, CloudInput); 22] = [
        ("hello", hello()),
        ("source", source(0, 1)),
        ("close", message(EdgeBody::Close(Close { code: 0, reason: "bye".to_owned() }))),
        ("unknown message", CloudInput::Message(EdgeMessage { body: None })),
        ("frame", frame(0, 0, 10)),
        ("claimed", claimed()),
        ("claim failed", CloudInput::ClaimFailed { reason: "no leader".to_owned() }),
        ("refused", CloudInput::Refused { reason: "another agent took over".to_owned() }),
        ("topic ready", CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }),
        ("topic unavailable", CloudInput::TopicUnavailable { mirror: MirrorId(0), reason: "x".to_owned() }),
        (
            "recovered",
            CloudInput::Recovered { mirror: MirrorId(0), partition: 0, attempt: 9, result: Err("x".to_owned()) },
        ),
        ("produced", CloudInput::Produced { mirror: MirrorId(0), partition: 0, ticket: 9, outcome: Outcome::Sequence }),
        ("skipped", skipped(9, 1)),
        ("fast-forwarded", fast_forwarded(9, Ok(()))),
        ("loss recorded", loss_recorded(9, Ok(()))),
        ("deleted", deleted(9, Ok(3))),
        ("source start", source_start(0, 9)),
        ("leader moved", CloudInput::LeaderMoved { mirror: MirrorId(0), partition: 0 }),
        ("superseded", CloudInput::Superseded { newer: Term(9) }),
        ("breach", CloudInput::Breach { reason: "x".to_owned() }),
        ("shutdown", CloudInput::Shutdown),
        ("timeout", CloudInput::Timeout),
    ];
    let await_hello = fresh;
    let claiming = || {
        let mut link = fresh();
        feed(&mut link, hello(), NOW);
        link
    };
    let closed = || {
        let mut link = fresh();
        feed(&mut link, CloudInput::Shutdown, NOW);
        link
    };
    let p = Some(Protocol);
    // Columns: await hello, claiming, open. A closed session answers nothing.
    let expected: [[Option<CloseCode>; 3]; 22] = [
        [None, p, p],
        [p, p, None],
        [Some(Shutdown); 3],
        [p, p, None],
        [p, p, None],
        [None, None, None],
        [None, Some(Unavailable), None],
        [None, Some(Superseded), None],
        [None; 3],
        [None; 3],
        [None; 3],
        [None; 3],
        [None; 3],
        [None; 3],
        [None; 3],
        [None; 3],
        [p, p, None],
        [None; 3],
        [Some(Superseded); 3],
        [p; 3],
        [Some(Shutdown); 3],
        [None; 3],
    ];
    for ((name, input), row) in inputs.iter().zip(expected) {
        let states: [(&str, CloudLink, Option<CloseCode>); 3] =
            [("await hello", await_hello(), row[0]), ("claiming", claiming(), row[1]), ("open", open(), row[2])];
        for (state, mut link, code) in states {
            let outputs = feed(&mut link, input.clone(), NOW);
            assert_eq!(close_code(&outputs), code, "{name} in state {state}: {outputs:?}");
            assert_eq!(link.is_closed(), code.is_some(), "{name} in state {state}");
        }
        assert_eq!(feed(&mut closed(), input.clone(), NOW), [], "{name} in state closed");
    }
}

#[test]
fn versions_without_overlap_are_refused_with_both_ranges() {
    let mut link = fresh();
    let hello = Hello { first_version: 2, last_version: 3, ..Hello::default() };
    let outputs = feed(&mut link, message(EdgeBody::Hello(hello)), NOW);
    assert!(matches!(
        &outputs[..],
        [CloudOutput::Send(_), CloudOutput::Close { code: CloseCode::Version, reason }]
            if reason.contains("2 to 3") && reason.contains("1 to 1")
    ));
}

#[test]
fn nothing_is_asked_of_the_cluster_before_the_predecessors_time_is_over() {
    let mut link = open();
    assert_eq!(feed(&mut link, source(0, 1), NOW), []);
    assert_eq!(link.next_timeout().map(|(at, _)| at), Some(LATER));
    let early = LATER.checked_sub(Time::from_millis(1)).expect("late");
    assert_eq!(feed(&mut link, CloudInput::Timeout, early), []);
    let outputs = feed(&mut link, CloudInput::Timeout, LATER);
    assert!(matches!(&outputs[..], [CloudOutput::PrepareTopic { partitions: 1, .. }]), "{outputs:?}");
}

#[test]
fn frames_are_produced_and_confirmed() {
    let mut link = live();
    let outputs = feed(&mut link, frame(1, 0, 100), LATER);
    assert!(matches!(outputs[..], [CloudOutput::Produce { ticket: 0, offset: 0, .. }]), "{outputs:?}");
    let outcome = Outcome::Appended { base_offset: 0 };
    let input = CloudInput::Produced { mirror: MirrorId(0), partition: 0, ticket: 0, outcome };
    let confirm = PartitionOffset { mirror: 0, partition: 0, offset: 1, run: 1, log_start: None };
    let confirm = CloudBody::Confirm(Positions { entries: vec![confirm] });
    assert_eq!(feed(&mut link, input, LATER), [CloudOutput::Send(CloudMessage { body: Some(confirm) })]);
    assert_eq!(link.status().held_bytes, 0);
}

#[test]
fn breaches_close_the_session() {
    let breaches = [
        ("a frame too large", frame(1, 0, 450)),
        ("a run never told", frame(2, 0, 10)),
        ("an offset too far", frame(1, 1, 10)),
        ("a mirror that does not exist", source(2, 1)),
        ("a topic without bounds", source(1, i32::MAX)),
        ("a second hello", hello()),
    ];
    for (name, input) in breaches {
        let mut link = live();
        assert_eq!(close_code(&feed(&mut link, input, LATER)), Some(Protocol), "{name}");
    }
}

#[test]
fn more_than_the_credit_closes_the_session() {
    let mut link = live();
    for base in 0..2 {
        assert_eq!(close_code(&feed(&mut link, frame(1, base, 300), LATER)), None);
    }
    assert!(link.status().held_bytes <= CREDIT);
    assert_eq!(close_code(&feed(&mut link, frame(1, 2, 300), LATER)), Some(Protocol));
}

#[test]
fn a_failure_stops_its_mirror_alone_and_is_told_to_the_agent() {
    let mut link = live();
    feed(&mut link, frame(1, 0, 100), LATER);
    let outcome = Outcome::Appended { base_offset: 3 };
    let input = CloudInput::Produced { mirror: MirrorId(0), partition: 0, ticket: 0, outcome };
    let outputs = feed(&mut link, input, LATER);
    assert!(matches!(
        &outputs[..],
        [
            CloudOutput::Send(CloudMessage { body: Some(CloudBody::Failed(_)) }),
            CloudOutput::Event(CloudEvent::MirrorFailed { failure, told_by_agent: false, .. }),
        ] if failure.code == FailureCode::ForeignWrite
    ));
    let status = link.status();
    assert_eq!(
        (status.held_bytes, status.mirrors[0].state.name(), status.mirrors[1].state.name()),
        (0, "FAILED", "PENDING_MIRROR")
    );
    assert_eq!(feed(&mut link, frame(1, 1, 10), LATER), [], "frames on their way are dropped");
    let outputs = feed(&mut link, source(1, 2), LATER);
    assert!(matches!(&outputs[..], [CloudOutput::PrepareTopic { mirror: MirrorId(1), partitions: 2, .. }]));
}

#[test]
fn a_failure_told_by_the_agent_is_answered() {
    let mut link = live();
    feed(&mut link, frame(1, 0, 100), LATER);
    let failure = Failure::at(FailureCode::CorruptSourceBatch, 0, 1, "bad CRC");
    let told = Failed::new(MirrorId(0), &failure);
    let outputs = feed(&mut link, message(EdgeBody::Failed(told.clone())), LATER);
    assert_eq!(outputs[0], CloudOutput::Send(CloudMessage { body: Some(CloudBody::Failed(told)) }));
    assert_eq!(link.status().mirrors[0].state, MirrorState::Failed(failure));
    assert_eq!(link.status().held_bytes, 0);
}

#[test]
fn pausing_and_resuming_starts_a_new_run() {
    let link_of = |paused| link(&[mirror("orders", paused), mirror("alarms", false)], &[]);
    let mut link = live();
    feed(&mut link, frame(1, 0, 100), LATER);
    let paused = feed(&mut link, CloudInput::Mirrors(link_of(true)), LATER);
    assert!(
        matches!(&paused[..], [CloudOutput::Send(CloudMessage { body: Some(CloudBody::Mirror(told)) })] if told.paused)
    );
    assert_eq!(feed(&mut link, frame(1, 1, 10), LATER), []);
    assert_eq!((link.status().held_bytes, link.status().mirrors[0].state.name()), (0, "PAUSED"));
    feed(&mut link, CloudInput::Mirrors(link_of(false)), LATER);
    feed(&mut link, source(0, 1), LATER);
    feed(&mut link, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }, LATER);
    let recovery = Recovery { log_start: 0, log_end: 1, starting: None, last_sequence: Some(0), tail: Vec::new() };
    let input = CloudInput::Recovered { mirror: MirrorId(0), partition: 0, attempt: 2, result: Ok(recovery) };
    let outputs = feed(&mut link, input, LATER);
    assert!(matches!(
        &outputs[..],
        [CloudOutput::Send(CloudMessage { body: Some(CloudBody::Position(position)) }), ..]
            if position.run > 1 && position.next_offset == 1 && !position.rewind
    ));
}

#[test]
fn fewer_partitions_at_the_source_fail_the_mirror() {
    let mut link = live();
    let outputs = feed(&mut link, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }, LATER);
    assert_eq!(outputs, [], "not asked for");
    let mut link = open();
    feed(&mut link, source(0, 2), LATER);
    feed(&mut link, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 3 }, LATER);
    let failure = FailureCode::SourcePartitionsDecreased;
    assert!(matches!(&link.status().mirrors[0].state, MirrorState::Failed(found) if found.code == failure));
}

#[test]
fn changed_configs_of_the_source_reach_the_mirror_topic_while_it_goes_on() {
    let told = |value: &str| {
        let configs = vec![TopicConfig { name: "compression.type".to_owned(), value: value.to_owned() }];
        message(EdgeBody::Source(Source { mirror: 0, partitions: 1, configs, ..Source::default() }))
    };
    let mut link = live();
    let outputs = feed(&mut link, told("zstd"), LATER);
    assert!(
        matches!(&outputs[..], [CloudOutput::PrepareTopic { partitions: 1, configs, .. }] if configs[0].value == "zstd"),
        "{outputs:?}"
    );
    let outputs = feed(&mut link, frame(1, 0, 100), LATER);
    assert!(matches!(outputs[..], [CloudOutput::Produce { ticket: 0, offset: 0, .. }]), "{outputs:?}");
    let outputs = feed(&mut link, CloudInput::TopicReady { mirror: MirrorId(0), partitions: 1 }, LATER);
    assert!(matches!(outputs[..], [CloudOutput::Event(CloudEvent::MirrorActive { .. })]), "{outputs:?}");
    assert_eq!(feed(&mut link, told("zstd"), LATER), [], "no news");
    let outputs = feed(&mut link, told("gzip"), LATER);
    assert!(matches!(&outputs[..], [CloudOutput::PrepareTopic { .. }]), "{outputs:?}");
}

#[test]
fn an_unverified_tail_is_an_event() {
    let mut link = live();
    let placed = Placed { mirror: 0, partition: 0, run: 1, unverified: true };
    let outputs = feed(&mut link, message(EdgeBody::Placed(placed)), LATER);
    assert!(matches!(&outputs[..], [CloudOutput::Event(CloudEvent::Unverified { partition: 0, .. })]));
}

type Told = Vec<(u32, String)>;

/// Discovered topics and what follows: mirrors told, as number and name, and topics passed over.
fn discover(link: &mut CloudLink, names: &[&str]) -> (Told, Vec<(String, PassedOver)>) {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    let outputs = feed(link, message(EdgeBody::Discovered(Topics { names })), LATER);
    let mut passed_over = Vec::new();
    for output in &outputs {
        if let CloudOutput::Event(CloudEvent::MirrorPassedOver { topic, reason }) = output {
            passed_over.push((topic.to_string(), *reason));
        }
    }
    let discovered = |output: &&CloudOutput| matches!(output, CloudOutput::Event(CloudEvent::MirrorDiscovered { .. }));
    let told = mirrors_told(&outputs);
    assert_eq!(outputs.iter().filter(discovered).count(), told.len());
    assert_eq!(outputs.len(), told.len() * 2 + passed_over.len(), "{outputs:?}");
    (told, passed_over)
}

fn mirrors_told(outputs: &[CloudOutput]) -> Told {
    let mut told = Vec::new();
    for output in outputs {
        if let CloudOutput::Send(CloudMessage { body: Some(CloudBody::Mirror(mirror)) }) = output {
            told.push((mirror.mirror, mirror.topic.clone()));
        }
    }
    told
}

fn filters_told(outputs: &[CloudOutput]) -> Vec<Vec<String>> {
    let mut told = Vec::new();
    for output in outputs {
        if let CloudOutput::Send(CloudMessage { body: Some(CloudBody::Filters(filters)) }) = output {
            told.push(filters.patterns.clone());
        }
    }
    told
}

fn told(mirrors: &[(u32, &str)]) -> Told {
    mirrors.iter().map(|&(id, topic)| (id, topic.to_owned())).collect()
}

#[test]
fn topics_become_mirrors_as_they_appear() {
    let renamed =
        MirrorSettings { topic: TopicName::new("sensor.kept").expect("legal"), ..mirror("sensor.raw", false) };
    let mut session = open();
    let settings = link(&[mirror("orders", false), mirror("alarms", false), renamed], &["sensor.*", "_*"]);
    let outputs = feed(&mut session, CloudInput::Mirrors(settings), NOW);
    assert_eq!(filters_told(&outputs), [["sensor.*", "_*"]]);
    let names =
        ["sensor.1", "sensor.raw", "sensor.kept", "orders", "other", "_tombolo", "__consumer_offsets", "sensor.1"];
    let (mirrors, passed_over) = discover(&mut session, &names);
    assert_eq!(mirrors, told(&[(3, "sensor.1")]), "a named mirror keeps its topic, a name of no filter is nothing");
    let reserved = ["sensor.kept", "_tombolo"].map(|topic| (topic.to_owned(), PassedOver::Reserved));
    let internal = ("__consumer_offsets".to_owned(), PassedOver::Internal);
    assert_eq!(passed_over, [&reserved[..], &[internal]].concat());
    assert_eq!(discover(&mut session, &names), (Vec::new(), Vec::new()), "told once");
    // From here on it is a mirror like any other.
    let outputs = feed(&mut session, source(3, 1), LATER);
    assert!(
        matches!(&outputs[..], [CloudOutput::PrepareTopic { mirror: MirrorId(3), topic, .. }] if topic.as_str() == "sensor.1")
    );
}

#[test]
fn filters_are_told_again_only_when_they_change() {
    let mirrors = [mirror("orders", false), mirror("alarms", false)];
    let mut session = open();
    let mut told = |filters: &[&str]| {
        let outputs = feed(&mut session, CloudInput::Mirrors(link(&mirrors, filters)), LATER);
        filters_told(&outputs)
    };
    assert_eq!(told(&[]), Vec::<Vec<String>>::new());
    assert_eq!(told(&["a*"]), [["a*"]]);
    assert_eq!(told(&["a*"]), Vec::<Vec<String>>::new());
    assert_eq!(told(&[]), [Vec::<String>::new()]);
}

#[test]
fn a_discovered_mirror_lasts_as_long_as_its_filter() {
    let mirrors = [mirror("orders", false), mirror("alarms", false)];
    let mut session = open();
    feed(&mut session, CloudInput::Mirrors(link(&mirrors, &["sensor*"])), LATER);
    assert_eq!(discover(&mut session, &["sensor1"]).0, told(&[(2, "sensor1")]));
    let mut state = |mirrors: &[MirrorSettings], filters: &[&str]| {
        feed(&mut session, CloudInput::Mirrors(link(mirrors, filters)), LATER);
        session.status().mirrors[2].state.name()
    };
    assert_eq!(state(&mirrors, &["sensor*", "b*"]), "PENDING_MIRROR");
    assert_eq!(state(&mirrors, &["b*"]), "PAUSED");
    assert_eq!(state(&mirrors, &["sensor1"]), "PENDING_MIRROR");
    let named = [&mirrors[..], &[mirror("sensor1", true)]].concat();
    assert_eq!(state(&named, &["sensor1"]), "PAUSED", "a mirror by name has the last word");
}

#[test]
fn discovered_topics_are_bounded() {
    for names in [vec!["a/b".to_owned()], vec!["a".to_owned(); MAX_ENTRIES + 1]] {
        let mut session = open();
        let outputs = feed(&mut session, message(EdgeBody::Discovered(Topics { names })), LATER);
        assert_eq!(close_code(&outputs), Some(Protocol));
    }
    let mut session = open();
    feed(&mut session, CloudInput::Mirrors(link(&[], &["t*"])), LATER);
    for from in (0..crate::limits::MAX_MIRRORS).step_by(1_000) {
        let names: Vec<String> = (from..from + 1_000).map(|at| format!("t{at}")).collect();
        discover(&mut session, &names.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(session.status().mirrors.len(), crate::limits::MAX_MIRRORS);
    assert_eq!(discover(&mut session, &["t"]), (Vec::new(), vec![("t".to_owned(), PassedOver::Limit)]));
}
