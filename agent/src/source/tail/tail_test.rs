//! What counts as evidence for and against a mirror's end.

use tombolo_proto::frame::Entry;
use tombolo_proto::testing::BatchBuilder;

use super::*;

fn entry(base: Offset, last: Offset, fill: u8) -> Entry {
    let records = i32::try_from(last - base + 1).unwrap();
    Entry::Batch(BatchBuilder::new(base).records(records).fill(fill).build())
}

fn batch(base: Offset, last: Offset, fill: u8) -> TailBatch {
    TailBatch::of_entry(&entry(base, last, fill))
}

fn found(entry: Entry, origin: Origin) -> Found {
    Found { entry, origin, made: false, epoch: None }
}

fn whole(base: Offset, last: Offset, fill: u8) -> Found {
    found(entry(base, last, fill), Origin::Whole)
}

fn gap(first: Offset, next: Offset, origin: Origin) -> Found {
    found(Entry::Gap { offset: first, count: next - first }, origin)
}

#[test]
fn equal_batches_agree() {
    let tail = [batch(0, 4, 1), batch(5, 5, 2), batch(6, 9, 3)];
    let mut comparison = Comparison::new(0, &tail);
    assert_eq!(comparison.verdict(), Verdict::Unverified);
    for (base, last, fill) in [(0, 4, 1), (5, 5, 2), (6, 9, 3), (10, 12, 9)] {
        assert_eq!(comparison.add(&whole(base, last, fill)), None);
    }
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn one_batch_that_is_left_is_enough() {
    let tail = [batch(0, 4, 1), batch(5, 9, 2)];
    let mut comparison = Comparison::new(0, &tail);
    assert_eq!(comparison.add(&whole(5, 9, 2)), None);
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn other_bytes_or_borders_are_evidence_against() {
    let tail = [batch(0, 4, 1), batch(5, 9, 2)];
    let table = [(whole(5, 9, 3), 5), (whole(5, 8, 2), 5), (whole(4, 9, 2), 4), (whole(9, 12, 2), 9)];
    for (ours, at) in table {
        let failure = Comparison::new(7, &tail).add(&ours).unwrap();
        assert_eq!((failure.code, failure.partition, failure.offset), (FailureCode::Diverged, Some(7), Some(at)));
    }
}

#[test]
fn a_source_that_lost_records_to_the_cleaner_is_no_evidence() {
    let tail = [batch(0, 4, 1), TailBatch::gap(5, 8), batch(8, 9, 2)];
    let mut comparison = Comparison::new(0, &tail);
    for ours in [
        gap(0, 2, Origin::Absent),
        found(entry(2, 3, 7), Origin::Remade),
        gap(4, 6, Origin::Absent),
        gap(6, 8, Origin::Hidden),
    ] {
        assert_eq!(comparison.add(&ours), None, "{ours:?}");
    }
    assert_eq!(comparison.verdict(), Verdict::Unverified, "gaps look alike");
    assert_eq!(comparison.add(&whole(8, 9, 2)), None);
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn records_where_the_mirror_has_none_and_markers_where_it_has_some_are_evidence_against() {
    let tail = [batch(0, 4, 1), TailBatch::gap(5, 8)];
    for ours in [
        whole(5, 6, 1),
        found(entry(4, 5, 1), Origin::Remade),
        found(entry(7, 7, 1), Origin::Joined),
        gap(4, 5, Origin::Hidden),
    ] {
        let failure = Comparison::new(7, &tail).add(&ours).map(|failure| failure.code);
        assert_eq!(failure, Some(FailureCode::Diverged), "{ours:?}");
    }
}

#[test]
fn a_mirror_of_markers_alone_agrees_by_them() {
    let tail = [TailBatch::gap(0, 8)];
    let mut comparison = Comparison::new(0, &tail);
    assert_eq!(comparison.add(&gap(2, 5, Origin::Hidden)), None);
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn an_offset_outside_the_log_says_what_was_lost() {
    let found = |offset, start, end| missing(3, offset, Bounds { start, end });
    assert_eq!(found(5, 0, 10), None);
    assert_eq!(found(10, 0, 10), None);
    assert_eq!(found(10, 10, 10), None);
    assert_eq!(found(0, 4, 10), Some(Missing::Deleted { log_start: 4 }));
    assert_eq!(found(3, 4, 10), Some(Missing::Deleted { log_start: 4 }));
    let Some(Missing::Truncated(failure)) = found(11, 4, 10) else { panic!("it ends too early") };
    assert_eq!(
        (failure.code, failure.offset, failure.end_offset),
        (FailureCode::UnexpectedTruncation, Some(10), Some(11))
    );
}
