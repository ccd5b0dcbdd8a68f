//! What counts as evidence for and against a mirror's end.

use super::*;

fn batch(base: Offset, last: Offset, crc: u32) -> TailBatch {
    TailBatch { base_offset: base, last_offset: last, crc }
}

#[test]
fn equal_batches_agree() {
    let tail = [batch(0, 4, 1), batch(5, 5, 2), batch(6, 9, 3)];
    let mut comparison = Comparison::new(0, &tail);
    assert_eq!(comparison.verdict(), Verdict::Unverified);
    for ours in &tail {
        assert_eq!(comparison.add(ours), None);
    }
    assert_eq!(comparison.add(&batch(10, 12, 9)), None);
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn one_batch_that_is_left_is_enough() {
    let tail = [batch(0, 4, 1), batch(5, 9, 2)];
    let mut comparison = Comparison::new(0, &tail);
    assert_eq!(comparison.add(&batch(5, 9, 2)), None);
    assert_eq!(comparison.verdict(), Verdict::Agrees);
}

#[test]
fn other_bytes_or_borders_are_evidence_against() {
    let tail = [batch(0, 4, 1), batch(5, 9, 2)];
    let table = [(batch(5, 9, 3), 5), (batch(5, 8, 2), 5), (batch(4, 9, 2), 4), (batch(9, 12, 2), 9)];
    for (ours, at) in table {
        let failure = Comparison::new(7, &tail).add(&ours).unwrap();
        assert_eq!((failure.code, failure.partition, failure.offset), (FailureCode::Diverged, Some(7), Some(at)));
    }
}

#[test]
fn an_offset_outside_the_log_says_what_was_lost() {
    let code = |offset, start, end| missing(3, offset, Bounds { start, end }).map(|failure| failure.code);
    assert_eq!(code(5, 0, 10), None);
    assert_eq!(code(10, 0, 10), None);
    assert_eq!(code(10, 10, 10), None);
    assert_eq!(code(0, 4, 10), Some(FailureCode::LogStartAboveZero));
    assert_eq!(code(3, 4, 10), Some(FailureCode::SourceDataLost));
    assert_eq!(code(11, 4, 10), Some(FailureCode::UnexpectedTruncation));
    let failure = missing(3, 7, Bounds { start: 20, end: 30 }).unwrap();
    assert_eq!((failure.offset, failure.end_offset), (Some(7), Some(20)));
    assert!(failure.detail.contains("offset 7") && failure.detail.contains("starts at 20"), "{failure}");
}
