//! Which findings pass, and what is said of them.

use tombolo_kafka::compare::{Extent, LogPair};

use super::*;
use crate::verify::records::RecordDifference;

fn report(kinds: &[DifferenceKind]) -> Report {
    let mut report = Report {
        strict: false,
        sample: None,
        from: None,
        to: None,
        link: Some("ship-17".to_owned()),
        digest: None,
        lacking: Vec::new(),
        partitions: Vec::new(),
        found: Comparison::default(),
        records: None,
        took: Duration::ZERO,
    };
    let mut found = Comparison { batches: 12, records: 340, bytes: 5_000, gaps: 3, ..Comparison::default() };
    for kind in kinds {
        let difference = Difference { source: "orders".into(), partition: 2, offset: 7, kind: kind.clone() };
        found.difference_count += 1;
        found.extent_count += u64::from(difference.is_extent());
        found.foreign_count += u64::from(matches!(kind, DifferenceKind::Foreign { .. }));
        found.differences.push(difference);
    }
    let pair = LogPair { source: "orders".into(), mirror: "orders".into(), partition: 2, extent: Extent::Whole };
    report.add(&Planned { pair, windows: Vec::new() }, found);
    report.took(Duration::from_secs(2));
    report
}

const BEHIND: DifferenceKind = DifferenceKind::End { source: 9, mirror: 7 };
const FOREIGN: DifferenceKind = DifferenceKind::Foreign { last: 11, producer_id: 4_000 };

#[test]
fn nothing_found_is_identical() {
    let report = report(&[]);
    assert!(report.passes());
    let text = report.text();
    let last = text.lines().last().unwrap();
    assert_eq!(last, "identical: 1 partitions, 12 batches, 340 records, 5000 bytes, 3 offsets are gaps");
    assert_eq!(report.document()["verdict"], "identical");
}

#[test]
fn behind_and_log_starts_pass_unless_strict() {
    let mut report = report(&[BEHIND, DifferenceKind::Start { source: 2, mirror: 0 }]);
    assert!(report.passes());
    let text = report.text();
    assert!(text.starts_with("behind: orders[2]@7: log ends differ: source 9, mirror 7\n"), "{text}");
    assert!(text.contains("\nlog start: orders[2]@7: log starts differ"), "{text}");
    assert!(text.lines().last().unwrap().ends_with("2 log ends or starts differ"), "{text}");
    report.strict = true;
    assert!(!report.passes());
    assert_eq!(report.document()["verdict"], "different");
}

#[test]
fn a_foreign_write_is_named_and_does_not_pass() {
    let report = report(&[FOREIGN]);
    assert!(!report.passes());
    let text = report.text();
    assert!(
        text.starts_with("foreign write: orders[2]@7: offsets 7 to 11 were written by producer id 4000\n"),
        "{text}"
    );
    assert!(text.contains("\nDIFFERENT: "), "{text}");
    let document = report.document();
    assert_eq!((&document["foreign_writes"], &document["unexplained"]), (&json!(1), &json!(0)));
    assert_eq!(document["differences"][0]["explanation"], "foreign write");
    assert_eq!(document["differences"][0]["offset"], 7);
}

#[test]
fn whatever_has_no_explanation_does_not_pass() {
    let longer = DifferenceKind::End { source: 7, mirror: 9 };
    let kinds = [DifferenceKind::Missing, DifferenceKind::Extra, DifferenceKind::Covered { last: 9 }, longer];
    for kind in kinds {
        let report = report(std::slice::from_ref(&kind));
        assert!(!report.passes() && report.text().starts_with("unexplained: "), "{kind:?}");
    }
    let mut lacks = report(&[]);
    lacks.lacking.push(Lacking { topic: "alarms".into(), partition: None, what: "the topic is missing in the cloud" });
    assert!(!lacks.passes());
    assert!(lacks.text().starts_with("unexplained: alarms: the topic is missing"), "{}", lacks.text());
    let mut records = report(&[]);
    let (topic, what) = ("orders".to_owned(), "the record has another key");
    let differences = vec![RecordDifference { topic, partition: 2, offset: 5, what }];
    records.records(Records { equal: 339, difference_count: 1, differences });
    assert!(!records.passes());
    assert!(records.text().starts_with("unexplained: orders[2]@5: the record has another key\n"), "{}", records.text());
}

#[test]
fn a_sample_never_says_identical() {
    for kinds in [&[][..], &[BEHIND], &[FOREIGN]] {
        let mut report = report(kinds);
        report.sample = Some(5);
        let (text, document) = (report.text(), report.document().to_string());
        assert!(text.contains("SAMPLED"), "{text}");
        assert!(!text.to_lowercase().contains("identical") && !document.contains("identical"), "{text}{document}");
    }
}

#[test]
fn a_part_says_which() {
    let mut report = report(&[]);
    report.from = Some(10);
    assert!(report.text().contains("\nidentical from offset 10: "), "{}", report.text());
    report.to = Some(20);
    assert!(report.text().contains("\nidentical from offset 10 to 19: "), "{}", report.text());
}
