//! Where a source's log starts: what is told of it, when, and how often.

use super::inputs::*;
use super::*;
use crate::id::Offset;
use crate::wire::TailBatch;

fn overtaken(fetch: u64, log_start: Offset) -> EdgeInput {
    EdgeInput::Overtaken { topic: topic(), partition: 0, fetch, log_start }
}

fn start_of(outputs: &[EdgeOutput]) -> Option<(u32, Offset)> {
    source_start(outputs).map(|start| (start.run, start.offset))
}

fn placed(outputs: &[EdgeOutput]) -> Option<bool> {
    outputs.iter().find_map(|output| {
        let EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::Placed(placed)) }) = output else { return None };
        Some(placed.unverified)
    })
}

#[test]
fn a_log_that_starts_above_an_empty_mirror_is_read_from_its_start() {
    let (mut link, fetch) = live();
    let outputs = feed(&mut link, overtaken(fetch, 500));
    assert_eq!((outputs.len(), start_of(&outputs)), (1, Some((1, 500))));
    assert_eq!(feed(&mut link, overtaken(fetch, 500)), [], "told once");
    let outputs = feed(&mut link, position(2, 500, Vec::new()));
    assert_eq!(placed(&outputs), Some(false), "nothing is there to be compared: {outputs:?}");
    let (fetch, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!(offset, 500);
    feed(&mut link, fetched(fetch, [500]));
    assert_eq!(frames(&mut link), [(2, 500, 502)]);
    // And it is known to be so in later sessions.
    let mut link = open();
    let (fetch, _) = fetch_of(&feed(&mut link, position(1, 0, Vec::new()))).expect("fetches");
    feed(&mut link, overtaken(fetch, 500));
    feed(&mut link, position(2, 500, Vec::new()));
    let shipped = link.take_checkpoint(true).expect("changed").partitions.remove(0).shipped;
    assert_eq!(shipped, [TailBatch::gap(0, 500)]);
    reconnect(&mut link);
    assert_eq!(placed(&feed(&mut link, position(1, 500, Vec::new()))), Some(false));
}

#[test]
fn a_start_is_told_when_all_before_it_is_confirmed() {
    let (mut link, fetch) = live();
    feed(&mut link, mixed(fetch));
    assert_eq!(start_of(&feed(&mut link, overtaken(fetch, 500))), None);
    assert_eq!(frames(&mut link), [(1, 0, 12)]);
    assert_eq!(start_of(&feed(&mut link, confirm(1, 10))), None);
    assert_eq!(start_of(&feed(&mut link, confirm(1, 12))), Some((1, 500)));
    assert_eq!(start_of(&feed(&mut link, confirm(1, 12))), None, "once");
    // The gateway made a gap of what was lost.
    let outputs = feed(&mut link, position(2, 500, vec![tail(&batch(10)), TailBatch::gap(12, 500)]));
    assert_eq!((placed(&outputs), fetch_of(&outputs).map(|(_, offset)| offset)), (Some(false), Some(500)));
}

#[test]
fn a_start_is_looked_for_again_in_the_next_run() {
    let (mut link, fetch) = live();
    feed(&mut link, mixed(fetch));
    feed(&mut link, overtaken(fetch, 500));
    frames(&mut link);
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 12, vec![tail(&batch(10))]));
    let (fetch, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!((offset, start_of(&outputs)), (12, None));
    assert_eq!(start_of(&feed(&mut link, overtaken(fetch, 700))), Some((1, 700)));
    // The session ends before the gateway has done it, or after: either way the next one goes on.
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 12, vec![tail(&batch(10))]));
    let (fetch, _) = fetch_of(&outputs).expect("fetches");
    assert_eq!(start_of(&feed(&mut link, overtaken(fetch, 700))), Some((1, 700)));
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 700, vec![tail(&batch(10)), TailBatch::gap(12, 700)]));
    assert_eq!((placed(&outputs), fetch_of(&outputs).map(|(_, offset)| offset)), (Some(false), Some(700)));
}

#[test]
fn a_gateway_that_has_come_half_way_is_told_again() {
    let (mut link, fetch) = live();
    feed(&mut link, overtaken(fetch, 500));
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 200, Vec::new()));
    assert_eq!(placed(&outputs), Some(false), "{outputs:?}");
    let (fetch, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!((offset, start_of(&feed(&mut link, overtaken(fetch, 500)))), (200, Some((1, 500))));
    assert_eq!(placed(&feed(&mut link, position(2, 500, Vec::new()))), Some(false));
}

#[test]
fn a_start_that_is_no_news_is_read_from() {
    let (mut link, fetch) = live();
    feed(&mut link, mixed(fetch));
    for log_start in [3, 12] {
        let outputs = feed(&mut link, overtaken(fetch, log_start));
        assert_eq!(fetch_of(&outputs).map(|(_, offset)| offset), (log_start == 3).then_some(12), "{outputs:?}");
    }
}

#[test]
fn the_gateway_hears_where_the_source_starts_and_again_in_every_run() {
    let told = |link: &mut EdgeLink, seconds: u64| {
        link.handle(EdgeInput::Timeout, NOW + Time::from_secs(seconds));
        let outputs: Vec<EdgeOutput> = std::iter::from_fn(|| link.poll_output()).collect();
        outputs.into_iter().find_map(|output| {
            let EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::SourcePositions(told)) }) = output else {
                return None;
            };
            Some(told.entries.iter().map(|entry| (entry.offset, entry.log_start)).collect::<Vec<_>>())
        })
    };
    let answer = |fetch, log_start| {
        let entries = Vec::new();
        EdgeInput::Fetched { topic: topic(), partition: 0, fetch, entries, epoch: None, high_watermark: 9, log_start }
    };
    let (mut link, fetch) = live();
    assert_eq!(told(&mut link, 1), None, "nothing is known");
    feed(&mut link, answer(fetch, 0));
    assert_eq!(told(&mut link, 2), Some(vec![(9, Some(0))]));
    assert_eq!(told(&mut link, 3), None, "no news");
    feed(&mut link, answer(fetch, 4));
    assert_eq!(told(&mut link, 4), Some(vec![(9, Some(4))]));
    feed(&mut link, position(2, 0, Vec::new()));
    assert_eq!(told(&mut link, 5), Some(vec![(9, Some(4))]));
}

/// Of a start that was told: whether what is missing was seen.
fn seen(outputs: &[EdgeOutput]) -> Option<bool> {
    source_start(outputs).map(|start| start.seen)
}

#[test]
fn what_was_once_read_from_the_mirrors_end_is_said_to_be_seen() {
    let (mut link, fetch) = live();
    assert_eq!(seen(&feed(&mut link, overtaken(fetch, 500))), Some(false), "it was never there");
    let outputs = feed(&mut link, position(2, 500, Vec::new()));
    let (fetch, _) = fetch_of(&outputs).expect("fetches");
    let empty = |fetch, log_start| EdgeInput::Fetched {
        topic: topic(),
        partition: 0,
        fetch,
        entries: Vec::new(),
        epoch: None,
        high_watermark: log_start,
        log_start,
    };
    feed(&mut link, empty(fetch, 501));
    reconnect(&mut link);
    let (fetch, _) = fetch_of(&feed(&mut link, position(1, 500, Vec::new()))).unwrap_or((fetch, 500));
    assert_eq!(seen(&feed(&mut link, overtaken(fetch, 501))), Some(false), "the log began above already");
    let (fetch, _) = fetch_of(&feed(&mut link, position(2, 501, Vec::new()))).expect("fetches");
    feed(&mut link, empty(fetch, 501));
    assert!(link.take_checkpoint(true).expect("changed").partitions.remove(0).seen);
    assert_eq!(seen(&feed(&mut link, overtaken(fetch, 900))), Some(true));
}

#[test]
fn what_a_mirror_made_anew_would_hold_was_not_seen() {
    let (mut link, fetch) = live();
    feed(&mut link, fetched(fetch, [0]));
    frames(&mut link);
    feed(&mut link, confirm(1, 2));
    reconnect(&mut link);
    let outputs = feed(&mut link, position(1, 0, Vec::new()));
    let (fetch, offset) = fetch_of(&outputs).expect("fetches");
    assert_eq!((offset, seen(&feed(&mut link, overtaken(fetch, 900)))), (0, Some(false)));
}
