//! What the compare says of two batches and of two ends.

use tombolo_proto::batch::Batch;
use tombolo_proto::testing::BatchBuilder;

use super::entry::Entry;
use super::merge::Step;
use super::*;

const LINK: i64 = (1 << 62) + 5;
const QUIET: Passed<'static> = &|_| ();

fn pair(extent: Extent) -> LogPair {
    LogPair { source: "t".into(), mirror: "m.t".into(), partition: 3, extent }
}

/// What a step notes of two batches, and which log goes on.
fn both(ours: &Batch, theirs: &Batch) -> (Step, Comparison) {
    let pair = pair(Extent::Whole);
    let mut merge = Merge::new(&pair, CompareOptions::default(), QUIET);
    (merge.both(&Entry::of(ours), &Entry::of(theirs)), merge.found)
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

    let (step, found) = both(&at(12).build(), &at(11).fill(9).build());
    assert_eq!((step, kinds(&found)), (Step::Mirror, vec![(11, &DifferenceKind::Extra)]));
    assert_eq!(found.batches, 0);
    assert_eq!(found.differences[0].to_string(), "t[3]@11: in the mirror only");
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
        let pair = pair(extent);
        let mut merge = Merge::new(&pair, CompareOptions::default(), QUIET);
        let bounds = merge.bounds(source, mirror);
        (bounds, merge.found.differences.into_iter().map(|found| found.kind).collect::<Vec<_>>())
    };
    assert_eq!(bounds(Extent::Whole, 0..9, 0..9), ((0..9, 9), vec![]));
    let (range, kinds) = bounds(Extent::Whole, 2..9, 0..8);
    let expected = [DifferenceKind::Start { source: 2, mirror: 0 }, DifferenceKind::End { source: 9, mirror: 8 }];
    assert_eq!((range, &kinds[..]), ((2..8, 8), &expected[..]));
    assert_eq!(bounds(Extent::Whole, 0..9, 0..12), ((0..9, 12), vec![]), "what is too much is read and told");
    assert_eq!(bounds(Extent::Whole, 0..0, 0..4), ((0..0, 4), vec![]));
    assert_eq!(bounds(Extent::Offsets(3..7), 2..9, 0..8), ((3..7, 7), vec![]));
    assert_eq!(bounds(Extent::Offsets(3..9), 2..9, 0..8).0, (3..8, 8));
    let (range, _) = bounds(Extent::Offsets(20..30), 2..9, 0..8);
    assert!(range.0.is_empty());
    let (range, kinds) = bounds(Extent::Whole, 100..200, 0..50);
    assert!(range.0.is_empty() && range.0.end == range.1, "{range:?}");
    assert_eq!(kinds.len(), 2);
}

#[test]
fn differences_beyond_the_limit_are_counted() {
    let pair = pair(Extent::Whole);
    let options = CompareOptions { max_differences: 2, ..CompareOptions::default() };
    let mut merge = Merge::new(&pair, options, QUIET);
    for offset in 0..5 {
        merge.note(offset, DifferenceKind::Missing);
    }
    let found = merge.found;
    assert_eq!((found.differences.len(), found.difference_count, found.is_identical()), (2, 5, false));
    let mut sum = found.clone();
    sum.add(found, 3);
    assert_eq!((sum.differences.len(), sum.difference_count), (3, 10));
}

/// What a compare of a digest's batches with a mirror's finds, where the link is known.
fn explained(ours: &[Batch], theirs: &[Batch]) -> Comparison {
    let pair = pair(Extent::Whole);
    let options = CompareOptions { writer: Some(LINK), ..CompareOptions::default() };
    let mut merge = Merge::new(&pair, options, QUIET);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (ours.iter().map(Entry::of).collect(), theirs.iter().map(Entry::of).collect());
    let end = |log: &[Entry]| log.last().map_or(0, Entry::next_offset);
    merge.bounds(0..end(&ours), 0..end(&theirs));
    merge.walk(&ours, &theirs);
    merge.found
}

fn data(base: i64, records: i32) -> BatchBuilder {
    BatchBuilder::new(base).records(records).stamp(LINK, 0, 0)
}

/// A marker as a coordinator writes it: 1 commits, 0 aborts.
fn marker(base: i64, producer_id: i64, kind: u8) -> Batch {
    use crate::records::{Record, Writer, encode_batch};
    let key = Some(vec![0, 0, 0, kind].into());
    let record = Record { offset: 0, timestamp: 0, key, value: None, headers: Vec::new() };
    let writer = Writer { producer_id, epoch: 0, sequence: -1 };
    let mut bytes = encode_batch(&[record], writer).unwrap().to_vec();
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    bytes[22] |= 0x30;
    let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
    bytes[17..21].copy_from_slice(&crc);
    Batch::parse(bytes.into()).unwrap()
}

fn gap(base: i64) -> Batch {
    marker(base, LINK, 0)
}

#[test]
fn gaps_stand_for_markers_holes_and_aborted_records() {
    let ours = [
        data(0, 3).build(),
        marker(3, 7, 1),
        // 4 and 5 were compacted away.
        data(6, 2).build(),
        data(8, 2).stamp(9, 0, 0).transactional().build(),
        marker(10, 9, 0),
        data(11, 1).build(),
    ];
    let theirs: Vec<_> = [ours[0].clone(), gap(3), gap(4), gap(5), ours[2].clone(), gap(8), gap(9), gap(10)]
        .into_iter()
        .chain([ours[5].clone()])
        .collect();
    let found = explained(&ours, &theirs);
    assert_eq!(kinds(&found), []);
    assert_eq!((found.batches, found.gaps), (3, 6));
}

#[test]
fn gaps_over_records_are_told() {
    let found = explained(&[data(0, 2).build(), data(2, 1).build()], &[gap(0), gap(1), data(2, 1).build()]);
    assert_eq!(kinds(&found), [(0, &DifferenceKind::Covered { last: 1 })]);
    assert_eq!(found.batches, 1);

    let open = data(0, 1).stamp(9, 0, 0).transactional().build();
    for ending in [vec![marker(1, 9, 1)], vec![]] {
        let ours = [vec![open.clone()], ending].concat();
        let theirs: Vec<_> = (0..).take(ours.len()).map(gap).collect();
        let found = explained(&ours, &theirs);
        assert_eq!(kinds(&found), [(0, &DifferenceKind::Covered { last: 0 })], "{}", ours.len());
    }
}

#[test]
fn a_committed_transaction_is_no_difference() {
    let ours = [data(0, 2).stamp(9, 3, 7).transactional().build(), marker(2, 9, 1)];
    let found = explained(&ours, &[data(0, 2).build(), gap(2)]);
    assert_eq!((kinds(&found), found.batches, found.gaps), (vec![], 1, 1));
}

#[test]
fn what_others_wrote_is_told_with_its_producer() {
    let foreign = |base| data(base, 2).fill(9).stamp(4_000, 0, 0).build();
    let found = explained(&[data(0, 2).build()], &[data(0, 2).build(), foreign(2)]);
    assert_eq!(kinds(&found), [(2, &DifferenceKind::Foreign { last: 3, producer_id: 4_000 })]);
    assert_eq!((found.foreign_count, found.difference_count), (1, 1));
    assert_eq!(found.differences[0].to_string(), "t[3]@2: offsets 2 to 3 were written by producer id 4000");

    let found = explained(&[data(0, 2).build(), data(2, 2).build()], &[data(0, 2).build(), foreign(2)]);
    assert_eq!(kinds(&found), [(2, &DifferenceKind::Foreign { last: 3, producer_id: 4_000 })]);
    let found = explained(&[data(0, 2).build()], &[data(0, 2).build(), data(2, 1).build()]);
    assert_eq!(kinds(&found), [(2, &DifferenceKind::Extra)], "the link's own is not foreign");
    assert_eq!(found.foreign_count, 0);
}

#[test]
fn what_differs_in_extent_only_is_told_apart() {
    let difference = |kind| Difference { source: "t".into(), partition: 0, offset: 0, kind };
    assert!(difference(DifferenceKind::End { source: 4, mirror: 2 }).is_extent());
    assert!(difference(DifferenceKind::Start { source: 4, mirror: 2 }).is_extent());
    assert!(!difference(DifferenceKind::End { source: 2, mirror: 4 }).is_extent());
    assert!(!difference(DifferenceKind::Missing).is_extent());
}

/// Records by hand, uncompressed, at these offsets.
fn keyed(offsets: &[i64], value: &'static str) -> Batch {
    with_keys(offsets, Some(value), |offset| offset.to_string())
}

fn with_keys(offsets: &[i64], value: Option<&'static str>, key: impl Fn(i64) -> String) -> Batch {
    use crate::records::{Record, Writer, encode_batch};
    let base = offsets[0];
    let record = |offset: &i64| Record {
        offset: 0,
        timestamp: 1_700_000_000_000 + offset,
        key: Some(key(*offset).into()),
        value: value.map(Into::into),
        headers: Vec::new(),
    };
    let dense: Vec<i64> = (base..=*offsets.last().unwrap()).collect();
    let records: Vec<_> = dense.iter().map(record).collect();
    let writer = Writer { producer_id: LINK, epoch: 0, sequence: 0 };
    let mut bytes = encode_batch(&records, writer).unwrap().to_vec();
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    let whole = Batch::parse(bytes.into()).unwrap();
    if dense == offsets { whole } else { thinned(&whole, offsets) }
}

/// As the cleaner leaves a batch: these records, and the offsets that it had.
fn thinned(whole: &Batch, kept: &[i64]) -> Batch {
    let (mut section, mut count) = (Vec::new(), 0_i32);
    let mut rest = whole.record_section();
    let mut at = whole.base_offset();
    while let Some(&length) = rest.first() {
        // Short records: a zigzag length of one byte.
        let size = usize::from(length / 2) + 1;
        if kept.contains(&at) {
            section.extend_from_slice(&rest[..size]);
            count += 1;
        }
        rest = &rest[size..];
        at += 1;
    }
    let mut bytes = whole.bytes()[..61].to_vec();
    bytes.extend(section);
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    let length = i32::try_from(bytes.len()).unwrap() - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
    bytes[17..21].copy_from_slice(&crc);
    Batch::parse(bytes.into()).unwrap()
}

#[test]
fn what_was_re_encoded_is_compared_by_record() {
    let ours = [keyed(&[0, 1, 3, 6], "v"), keyed(&[7, 8], "v")];
    let theirs = [keyed(&[0, 1], "v"), gap(2), keyed(&[3], "v"), gap(4), gap(5), keyed(&[6], "v"), keyed(&[7, 8], "v")];
    let found = explained(&ours, &theirs);
    assert_eq!(kinds(&found), []);
    assert_eq!((found.remade, found.batches, found.records, found.gaps), (1, 1, 6, 3));

    // As a digest has it.
    let digested: Vec<_> = ours.iter().flat_map(|batch| Entry::of(batch).mirrored(0)).collect();
    let ranges: Vec<_> = digested.iter().map(|entry| entry.base_offset..entry.next_offset()).collect();
    assert_eq!(ranges, [0..2, 3..4, 6..7, 7..9]);
    assert_eq!(digested[0].canonical_crc, Entry::of(&theirs[0]).canonical_crc);
    let cut = Entry::of(&ours[1]).mirrored(8);
    assert_eq!((cut.len(), cut[0].base_offset, cut[0].records), (1, 8, 1));

    let mut changed = theirs;
    changed[2] = keyed(&[3], "w");
    let found = explained(&ours, &changed);
    assert!(matches!(kinds(&found)[..], [(3, DifferenceKind::Changed { .. })]), "{found:?}");
    changed[2] = gap(3);
    let found = explained(&ours, &changed);
    assert_eq!(kinds(&found), [(0, &DifferenceKind::Covered { last: 6 })]);
}

#[test]
fn what_the_sources_cleaner_took_is_no_difference() {
    // Records, and a batch.
    let ours = [keyed(&[0, 2, 3], "v"), keyed(&[6, 7], "v")];
    let theirs = [keyed(&[0, 1, 2, 3], "v"), keyed(&[4, 5], "v"), keyed(&[6, 7], "v")];
    let found = explained(&ours, &theirs);
    assert_eq!((kinds(&found), found.cleaned, found.records), (vec![], [3, 0], 5));
}

/// What a compare of a compacted topic's logs finds.
fn compacted(ours: &[Batch], theirs: &[Batch], extent: Extent) -> Comparison {
    let pair = pair(extent);
    let options = CompareOptions { writer: Some(LINK), compacted: true, ..CompareOptions::default() };
    let mut merge = Merge::new(&pair, options, QUIET);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (ours.iter().map(Entry::of).collect(), theirs.iter().map(Entry::of).collect());
    let end = |log: &[Entry]| log.last().map_or(0, Entry::next_offset);
    merge.bounds(0..end(&ours), 0..end(&theirs));
    merge.walk(&ours, &theirs);
    merge.found
}

#[test]
fn what_the_mirrors_cleaner_took_has_a_later_record_of_its_key() {
    let even_or_odd = |offset: i64| (offset % 2).to_string();
    let batch = |offsets: &[i64]| with_keys(offsets, Some("v"), even_or_odd);
    let ours = [batch(&[0, 1, 2, 3]), batch(&[4, 5]), batch(&[6, 7])];
    // Records, and a batch.
    let theirs = [batch(&[0, 2, 3]), batch(&[6, 7])];
    let found = compacted(&ours, &theirs, Extent::Whole);
    assert_eq!((kinds(&found), found.cleaned, found.records), (vec![], [0, 3], 5));
    // Two that nothing later in the mirror explains.
    let ours = [batch(&[0, 1, 2, 3]), batch(&[4, 5]), batch(&[6]), batch(&[7])];
    let theirs = [batch(&[0, 2, 3]), batch(&[6])];
    let found = compacted(&ours, &theirs, Extent::Whole);
    let missing: Vec<_> = kinds(&found).into_iter().filter(|(_, kind)| **kind == DifferenceKind::Missing).collect();
    assert_eq!(missing, [(5, &DifferenceKind::Missing), (7, &DifferenceKind::Missing)]);
    assert_eq!((found.cleaned, found.undecided), ([0, 2], 0));
    // Where windows are read, it may be elsewhere.
    let found = compacted(&ours, &theirs, Extent::Windows(Vec::new()));
    assert_eq!((found.cleaned, found.undecided), ([0, 2], 2), "{found:?}");
}

#[test]
fn a_record_that_was_lost_is_none_that_a_cleaner_took() {
    let ours = [keyed(&[0, 1, 2, 3], "v"), keyed(&[4, 5], "v"), keyed(&[6, 7], "v")];
    let theirs = [keyed(&[0, 2, 3], "v"), keyed(&[6, 7], "v")];
    let lost = [(1, &DifferenceKind::Missing), (4, &DifferenceKind::Missing), (5, &DifferenceKind::Missing)];
    assert_eq!(kinds(&compacted(&ours, &theirs, Extent::Whole)), lost);
    // A deletion goes by itself after a while.
    let ours = [ours[0].clone(), with_keys(&[4, 5], None, |offset| offset.to_string()), ours[2].clone()];
    let found = compacted(&ours, &[ours[0].clone(), ours[2].clone()], Extent::Whole);
    assert_eq!((kinds(&found), found.cleaned), (vec![], [0, 2]));
}

#[test]
fn a_value_and_the_deletion_that_it_was_taken_for_are_no_loss() {
    let one = |offset: i64, value| with_keys(&[offset], value, |_| "k".to_owned());
    let (first, last) = (keyed(&[0, 1], "v"), keyed(&[9, 10], "v"));
    let ours = [first.clone(), one(5, Some("v")), one(8, None), last.clone()];
    let found = compacted(&ours, &[first.clone(), last.clone()], Extent::Whole);
    assert_eq!((kinds(&found), found.cleaned), (vec![], [0, 2]));
    // What came after the deletion was not taken for it.
    let ours = [first.clone(), one(5, None), one(8, Some("v")), last.clone()];
    let found = compacted(&ours, &[first, last], Extent::Whole);
    assert_eq!((kinds(&found), found.cleaned), (vec![(8, &DifferenceKind::Missing)], [0, 1]));
}

#[test]
fn a_batch_whose_records_end_too_early_is_told() {
    let whole = keyed(&[0, 1, 3], "v");
    let mut bytes = whole.bytes()[..whole.len() - 1].to_vec();
    let length = i32::try_from(bytes.len()).unwrap() - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
    bytes[17..21].copy_from_slice(&crc);
    let cut = Batch::parse(bytes.into()).unwrap();
    let theirs = [keyed(&[0, 1], "v"), gap(2), keyed(&[3], "v")];
    let corrupt = DifferenceKind::Corrupt { side: Side::Source };
    let found = explained(std::slice::from_ref(&cut), &theirs);
    assert_eq!((kinds(&found), found.records), (vec![(0, &corrupt)], 2), "told by its batch");
    // And in a hole of the mirror.
    let found = compacted(&[cut, keyed(&[4], "v")], &[keyed(&[4], "v")], Extent::Whole);
    assert_eq!(kinds(&found)[0], (0, &corrupt));
}
