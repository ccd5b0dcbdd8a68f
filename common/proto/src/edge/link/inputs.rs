//! A link for the tests: its inputs by short names, and what to look for in its outputs.

use super::*;
use crate::batch::Batch;
use crate::failure::FailureCode;
use crate::frame::Entry;
use crate::id::Offset;
use crate::testing::BatchBuilder;
use crate::wire::{CloudMessage, Filters, Mirror, PartitionOffset, Position, Positions, SourceStart, TailBatch};

pub(super) const NOW: Time = Time::from_secs(100);
pub(super) const WINDOW: usize = 10_000;

pub(super) fn topic() -> TopicName {
    TopicName::new("orders").expect("legal")
}

pub(super) fn fresh() -> EdgeLink {
    EdgeLink::new(EdgeConfig {
        software: "test".to_owned(),
        incarnation: 7,
        window_bytes: WINDOW,
        spill_delay: Time::from_secs(2),
        max_frame_bytes: 2_000,
    })
}

pub(super) fn message(body: CloudBody) -> EdgeInput {
    EdgeInput::Message(CloudMessage { body: Some(body) })
}

pub(super) fn connected() -> EdgeInput {
    EdgeInput::Connected { cluster_id: "source".to_owned() }
}

pub(super) fn welcome(mirrors: u32) -> EdgeInput {
    message(CloudBody::Welcome(Welcome {
        version: 1,
        term: 7,
        credit_bytes: 6_000,
        max_frame_bytes: 2_000,
        software: "gateway".to_owned(),
        mirrors,
    }))
}

pub(super) fn told(mirror: u32, topic: &str, paused: bool) -> EdgeInput {
    message(CloudBody::Mirror(Mirror { mirror, topic: topic.to_owned(), paused }))
}

pub(super) fn found(partitions: i32) -> EdgeInput {
    found_as(1, partitions)
}

/// The topic with this id.
pub(super) fn found_as(id: u8, partitions: i32) -> EdgeInput {
    let source =
        SourceTopic { partitions, topic_id: Some([id; 16]), configs: Vec::new(), retention: Retention::default() };
    EdgeInput::Source { topic: topic(), source: Ok(source) }
}

pub(super) fn filters(patterns: &[&str]) -> EdgeInput {
    message(CloudBody::Filters(Filters { patterns: patterns.iter().map(|text| (*text).to_owned()).collect() }))
}

pub(super) fn batch(base: Offset) -> Batch {
    BatchBuilder::new(base).records(2).payload(400).build()
}

pub(super) fn tail(batch: &Batch) -> TailBatch {
    TailBatch::of(batch)
}

pub(super) fn position(run: u32, next_offset: Offset, tail: Vec<TailBatch>) -> EdgeInput {
    message(CloudBody::Position(Position { mirror: 0, partition: 0, run, next_offset, tail, rewind: false }))
}

pub(super) fn confirm(run: u32, offset: Offset) -> EdgeInput {
    let entry = PartitionOffset { mirror: 0, partition: 0, offset, run, log_start: None };
    message(CloudBody::Confirm(Positions { entries: vec![entry] }))
}

pub(super) fn fetched(fetch: u64, bases: impl IntoIterator<Item = Offset>) -> EdgeInput {
    entries(fetch, bases.into_iter().map(|base| Entry::Batch(batch(base))).collect())
}

pub(super) fn gap(offset: Offset, next: Offset) -> Entry {
    Entry::Gap { offset, count: next - offset }
}

pub(super) fn entries(fetch: u64, entries: Vec<Entry>) -> EdgeInput {
    let high_watermark = entries.last().map_or(0, Entry::next_offset);
    EdgeInput::Fetched { topic: topic(), partition: 0, fetch, entries, epoch: None, high_watermark, log_start: 0 }
}

pub(super) fn feed(link: &mut EdgeLink, input: EdgeInput) -> Vec<EdgeOutput> {
    link.handle(input, NOW);
    std::iter::from_fn(|| link.poll_output()).collect()
}

pub(super) fn frames(link: &mut EdgeLink) -> Vec<(u32, Offset, Offset)> {
    std::iter::from_fn(|| link.poll_frame())
        .map(|frame| (frame.run, frame.first_offset(), frame.next_offset()))
        .collect()
}

/// Session open, "orders" told and found with one partition; no position yet.
pub(super) fn open() -> EdgeLink {
    let mut link = fresh();
    feed(&mut link, connected());
    feed(&mut link, welcome(1));
    assert_eq!(feed(&mut link, told(0, "orders", false)), [EdgeOutput::Discover { topic: topic() }]);
    assert!(matches!(
        &feed(&mut link, found(1))[..],
        [EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::Source(_)) })]
    ));
    link
}

pub(super) fn fetch_of(outputs: &[EdgeOutput]) -> Option<(u64, Offset)> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Fetch { fetch, offset, .. } = output { Some((*fetch, *offset)) } else { None }
    })
}

/// As [`open`], placed at offset 0 and fetching.
pub(super) fn live() -> (EdgeLink, u64) {
    let mut link = open();
    let outputs = feed(&mut link, position(1, 0, Vec::new()));
    let (fetch, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!(offset, 0);
    (link, fetch)
}

pub(super) fn reconnect(link: &mut EdgeLink) {
    feed(link, EdgeInput::Disconnected);
    feed(link, connected());
    feed(link, welcome(1));
    let outputs = feed(link, told(0, "orders", false));
    assert!(matches!(outputs[..], [EdgeOutput::Send(_), EdgeOutput::Discover { .. }]), "{outputs:?}");
}

pub(super) fn rewinds(link: &EdgeLink) -> u64 {
    link.status().mirrors.iter().flat_map(|mirror| &mirror.partitions).map(|partition| partition.rewinds).sum()
}

pub(super) fn close_code(outputs: &[EdgeOutput]) -> Option<CloseCode> {
    outputs.iter().find_map(|output| if let EdgeOutput::Close { code, .. } = output { Some(*code) } else { None })
}

pub(super) fn failure(outputs: &[EdgeOutput]) -> Option<FailureCode> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Event(EdgeEvent::MirrorFailed { failure, .. }) = output { Some(failure.code) } else { None }
    })
}

pub(super) fn ends(outputs: &[EdgeOutput]) -> bool {
    outputs.iter().any(|output| matches!(output, EdgeOutput::Event(EdgeEvent::MirrorEnding { .. })))
}

/// What the gateway is told of where the source starts.
pub(super) fn source_start(outputs: &[EdgeOutput]) -> Option<&SourceStart> {
    outputs.iter().find_map(|output| {
        let EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::SourceStart(start)) }) = output else { return None };
        Some(start)
    })
}

pub(super) fn mixed(fetch: u64) -> EdgeInput {
    entries(fetch, vec![Entry::Batch(batch(0)), gap(2, 10), Entry::Batch(batch(10))])
}
