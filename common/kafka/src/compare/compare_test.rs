//! What the compare says of two batches and of two ends.

use tombolo_proto::testing::BatchBuilder;

use super::*;

fn pair(extent: Extent) -> LogPair {
    LogPair { source: "t".into(), mirror: "m.t".into(), partition: 3, extent }
}

/// What a step notes of two batches, and which log goes on.
fn both(ours: &Batch, theirs: &Batch) -> (Step, Comparison) {
    let (pair, mut found) = (pair(Extent::Whole), Comparison::default());
    let mut merge = Merge { pair: &pair, options: CompareOptions::default(), found: &mut found };
    (merge.both(ours, theirs), found)
}

fn kinds(found: &Comparison) -> Vec<(i64, &DifferenceKind)> {
    found.differences.iter().map(|difference| (difference.offset, &difference.kind)).collect()
}

#[test]
fn what_the_gateway_rewrites_is_no_difference() {
    let ours = BatchBuilder::new(40).records(3).stamp(7, 0, 12).leader_epoch(4).build();
    let theirs = BatchBuilder::new(40).records(3).stamp(1 << 62, 0, 900).leader_epoch(9).build();
    let (step, found) = both(&ours, &theirs);
    assert_eq!(step, Step::Both);
    assert!(found.is_identical());
    assert_eq!((found.batches, found.records, found.bytes), (1, 3, ours.len() as u64));
}

#[test]
fn each_kind_of_difference_is_told() {
    let at = |base: i64| BatchBuilder::new(base).records(2);
    let (step, found) = both(&at(10).build(), &at(10).fill(9).build());
    assert_eq!(step, Step::Both);
    assert!(matches!(kinds(&found)[..], [(10, DifferenceKind::Changed { source: (11, _), mirror: (11, _) })]));

    let (step, found) = both(&at(10).build(), &at(13).build());
    assert_eq!(step, Step::Both);
    assert_eq!(kinds(&found), [(10, &DifferenceKind::Shifted { mirror: 13 })]);

    let (step, found) = both(&at(10).build(), &at(12).fill(9).build());
    assert_eq!((step, kinds(&found)), (Step::Source, vec![(10, &DifferenceKind::Missing)]));

    let (step, found) = both(&at(12).build(), &at(10).fill(9).build());
    assert_eq!((step, kinds(&found)), (Step::Mirror, vec![(10, &DifferenceKind::Extra)]));
    assert_eq!(found.batches, 0);
    assert_eq!(found.differences[0].to_string(), "t[3]@10: in the mirror only");
}

#[test]
fn batch_with_a_wrong_crc_is_told_even_where_both_have_it() {
    let good = BatchBuilder::new(5).records(1).build();
    let mut bytes = good.bytes().to_vec();
    bytes[17] ^= 1;
    let bad = Batch::parse(bytes.into()).unwrap();
    let (_, found) = both(&bad, &bad);
    let corrupt = |side| (5, DifferenceKind::Corrupt { side });
    let expected = [corrupt(Side::Source), corrupt(Side::Mirror)];
    assert_eq!(kinds(&found), expected.iter().map(|(offset, kind)| (*offset, kind)).collect::<Vec<_>>());
}

#[test]
fn ends_are_compared_within_the_extent() {
    let bounds = |extent, source, mirror| {
        let (pair, mut found) = (pair(extent), Comparison::default());
        let mut merge = Merge { pair: &pair, options: CompareOptions::default(), found: &mut found };
        (merge.bounds(source, mirror), found.differences.into_iter().map(|found| found.kind).collect::<Vec<_>>())
    };
    assert_eq!(bounds(Extent::Whole, 0..9, 0..9), (0..9, vec![]));
    let (range, kinds) = bounds(Extent::Whole, 2..9, 0..8);
    let expected = [DifferenceKind::Start { source: 2, mirror: 0 }, DifferenceKind::End { source: 9, mirror: 8 }];
    assert_eq!((range, &kinds[..]), (2..8, &expected[..]));
    assert_eq!(bounds(Extent::Offsets(3..7), 2..9, 0..8), (3..7, vec![]));
    assert_eq!(bounds(Extent::Offsets(3..9), 2..9, 0..8).0, 3..8);
    let (range, _) = bounds(Extent::Offsets(20..30), 2..9, 0..8);
    assert!(range.is_empty());
}

#[test]
fn differences_beyond_the_limit_are_counted() {
    let (pair, mut found) = (pair(Extent::Whole), Comparison::default());
    let options = CompareOptions { max_differences: 2, ..CompareOptions::default() };
    let mut merge = Merge { pair: &pair, options, found: &mut found };
    for offset in 0..5 {
        merge.note(offset, DifferenceKind::Missing);
    }
    assert_eq!((found.differences.len(), found.difference_count, found.is_identical()), (2, 5, false));
}
