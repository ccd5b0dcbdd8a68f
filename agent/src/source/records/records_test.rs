//! What becomes of everything that a Kafka log can hold.

use tombolo_kafka::fetch::AbortedTransaction;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::testing::BatchBuilder;

use super::*;

const PRODUCER: i64 = 70;
const OTHER: i64 = 71;
const LOG_APPEND_TIME: u16 = 0x08;
const TRANSACTIONAL: u16 = 0x10;
const CONTROL: u16 = 0x30;
const DELETE_HORIZON: u16 = 0x40;

fn set(batches: &[BatchBuilder]) -> Bytes {
    batches.iter().flat_map(|batch| batch.bytes().to_vec()).collect()
}

fn join(pieces: &[Bytes]) -> Bytes {
    pieces.concat().into()
}

fn answer(offset: Offset, records: Bytes) -> Answer {
    Answer { partition: 5, offset, log_start: 0, records, aborted: Vec::new(), read_before: 0, max_batch: 4_000 }
}

fn aborting(offset: Offset, records: Bytes, aborted: &[(i64, Offset)]) -> Answer {
    let aborted = aborted.iter().map(|&(producer_id, first_offset)| AbortedTransaction { first_offset, producer_id });
    Answer { aborted: aborted.collect(), ..answer(offset, records) }
}

/// A batch with records that can be read: one at each delta, of one byte each.
fn with_records(base: Offset, deltas: &[i8], last_delta: i32, attributes: u16) -> Bytes {
    let records: Vec<u8> =
        deltas.iter().flat_map(|delta| [14, 0, 0, (*delta * 2).cast_unsigned(), 1, 2, b'x', 0]).collect();
    let header = BatchBuilder::new(base)
        .records(i32::try_from(deltas.len()).unwrap())
        .last_offset_delta(last_delta)
        .attributes(attributes)
        .timestamps(1_000, 2_000)
        .leader_epoch(6)
        .payload(0)
        .bytes();
    let mut bytes = [header.as_ref(), &records].concat();
    let length = i32::try_from(bytes.len() - 12).unwrap();
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// A message of format v1: an empty key, no value.
fn message(offset: Offset) -> Bytes {
    let mut body = vec![1, 0];
    body.extend_from_slice(&900_i64.to_be_bytes());
    body.extend_from_slice(&0_i32.to_be_bytes());
    body.extend_from_slice(&(-1_i32).to_be_bytes());
    let size = i32::try_from(body.len() + 4).unwrap();
    [&offset.to_be_bytes()[..], &size.to_be_bytes(), &crc32(&body).to_be_bytes(), &body].concat().into()
}

/// The CRC of Ethernet and zip, which old formats have.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn data(base: Offset, records: i32, producer: i64) -> BatchBuilder {
    BatchBuilder::new(base).records(records).stamp(producer, 0, 0).transactional()
}

/// A marker: 0 aborts, 1 commits. Its records are filler; what counts is the key's type.
fn marker(base: Offset, producer: i64, kind: u8) -> Bytes {
    let builder = BatchBuilder::new(base).stamp(producer, 0, -1).attributes(CONTROL).payload(17).fill(0);
    let mut bytes = builder.bytes().to_vec();
    bytes[61 + 8] = kind;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// `(first, next, whether records are there)` of each entry.
fn spans(taken: &Taken) -> Vec<(Offset, Offset, bool)> {
    let spans = taken.entries.iter();
    spans.map(|entry| (entry.offset(), entry.next_offset(), matches!(entry, Entry::Batch(_)))).collect()
}

fn failure(taken: &Taken) -> Option<&Failure> {
    if let Some(Stop::Failed(failure)) = &taken.stop { Some(failure) } else { None }
}

#[test]
fn begins_at_the_batch_that_holds_the_offset() {
    let builders = [0, 3, 6, 9].map(|base| BatchBuilder::new(base).records(3).leader_epoch(4));
    let taken = take(answer(3, set(&builders)));
    assert_eq!(spans(&taken), [(3, 6, true), (6, 9, true), (9, 12, true)]);
    assert_eq!((taken.next, taken.epoch, &taken.stop, taken.starved), (12, Some(4), &None, false));
}

#[test]
fn a_dense_log_is_passed_on_as_the_slices_it_came_in() {
    let records = set(&[BatchBuilder::new(0).records(2), BatchBuilder::new(2).attributes(DELETE_HORIZON)]);
    let taken = take(answer(0, records.clone()));
    let [Entry::Batch(first), Entry::Batch(second)] = &taken.entries[..] else { panic!("{taken:?}") };
    assert_eq!(first.bytes().as_ptr(), records.as_ptr());
    assert_eq!(second.bytes().as_ptr(), records[first.len()..].as_ptr());
    assert_eq!((taken.remade, taken.read.bytes), (0, records.len()));
}

#[test]
fn stops_before_the_first_bad_batch() {
    let good = BatchBuilder::new(0).records(2);
    let mut bytes = set(&[good.clone(), BatchBuilder::new(2), BatchBuilder::new(3)]).to_vec();
    let at = good.bytes().len() + 70;
    bytes[at] ^= 1;
    let taken = take(answer(0, bytes.into()));
    assert_eq!((taken.entries.len(), taken.next), (1, 2));
    let failure = failure(&taken).unwrap();
    assert_eq!(
        (failure.code, failure.partition, failure.offset, failure.end_offset),
        (FailureCode::CorruptSourceBatch, Some(5), Some(2), Some(3))
    );
}

#[test]
fn a_marker_with_a_wrong_crc_is_no_gap() {
    let mut bytes = marker(0, PRODUCER, 1).to_vec();
    bytes[70] ^= 1;
    let taken = take(answer(0, bytes.into()));
    assert_eq!(failure(&taken).map(|failure| failure.code), Some(FailureCode::CorruptSourceBatch));
}

#[test]
fn bytes_that_are_no_batch_are_named_with_the_offset() {
    let mut bytes = set(&[BatchBuilder::new(7)]).to_vec();
    bytes[16] = 3;
    let taken = take(answer(7, bytes.into()));
    let failure = failure(&taken).unwrap();
    assert_eq!((failure.code, failure.offset), (FailureCode::UnsupportedMessageFormat, Some(7)));
}

#[test]
fn a_batch_above_the_limit_is_no_batch_to_wait_for() {
    let code = |records| failure(&take(answer(0, records))).map(|failure| failure.code);
    assert_eq!(code(set(&[BatchBuilder::new(0).payload(5_000)])), Some(FailureCode::BatchTooLarge));
    assert_eq!(code(set(&[BatchBuilder::new(0).payload(3_939)])), Some(FailureCode::BatchTooLarge), "as an entry");
    assert_eq!(code(set(&[BatchBuilder::new(0).payload(3_938)])), None);
    let aborted = aborting(0, set(&[data(0, 1, PRODUCER).payload(5_000)]), &[(PRODUCER, 0)]);
    assert_eq!(spans(&take(aborted)), [(0, 1, false)], "no frame has to carry it");
}

/// A batch of records of so many bytes, thinned: it lacks its first.
fn thinned(base: Offset, records: i8, bytes: u8) -> Bytes {
    let record = |delta: i8| {
        let value = (0..bytes).map(|at| at.wrapping_mul(delta.cast_unsigned()));
        let mut body = vec![0, 0, (delta * 2).cast_unsigned(), 1];
        // Zigzag varints of two bytes: these values have more than 63 bytes.
        let long =
            |size: usize| [u8::try_from((size * 2) & 0x7f).unwrap() | 0x80, u8::try_from((size * 2) >> 7).unwrap()];
        body.extend(long(usize::from(bytes)));
        body.extend(value);
        body.push(0);
        [long(body.len()).to_vec(), body].concat()
    };
    let section: Vec<u8> = (1..=records).flat_map(record).collect();
    let header = BatchBuilder::new(base).records(i32::from(records)).last_offset_delta(i32::from(records)).payload(0);
    let mut whole = [header.bytes().as_ref(), &section].concat();
    let length = i32::try_from(whole.len() - 12).unwrap();
    whole[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&whole[21..]);
    whole[17..21].copy_from_slice(&crc.to_be_bytes());
    whole.into()
}

#[test]
fn what_is_made_anew_is_cut_where_no_frame_would_carry_it() {
    let records = thinned(0, 40, 150);
    assert!(records.len() > 6_000, "more than a frame takes");
    let taken = take(answer(0, records.clone()));
    assert_eq!((taken.stop, taken.next), (None, 41));
    let spans = spans(&take(answer(0, records.clone())));
    assert_eq!(spans[0], (0, 1, false), "the record that is gone");
    assert!(spans.len() > 3 && spans[1..].iter().all(|span| span.2), "{spans:?}");
    assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0), "joined: {spans:?}");
    // Uncut where a frame takes it.
    let whole = take(Answer { max_batch: 8_000, ..answer(0, records) });
    assert_eq!(whole.entries.len(), 2);
    // Messages of old formats come one by one, and are joined to what a frame carries.
    let old = join(&(0..200).map(message).collect::<Vec<_>>());
    let taken = take(Answer { max_batch: 1_000, ..answer(0, old) });
    assert_eq!((taken.stop, taken.next), (None, 200));
    assert!(taken.entries.len() > 1 && taken.entries.iter().all(|entry| entry.bytes() <= 1_000));
}

#[test]
fn holes_are_told_and_markers_are_none() {
    let later = set(&[BatchBuilder::new(7), BatchBuilder::new(9)]);
    let records = join(&[set(&[BatchBuilder::new(0).records(2)]), marker(2, PRODUCER, 1), later]);
    let taken = take(answer(0, records));
    assert_eq!((taken.holes, taken.next), (vec![3..7, 8..9], 10));
    assert_eq!(take(answer(0, with_records(0, &[0, 3], 5, 0))).holes, [1..3, 4..6]);
    assert!(take(answer(0, set(&[BatchBuilder::new(0).records(2)]))).holes.is_empty());
}

#[test]
fn work_is_known_by_the_headers() {
    let works = |records| makes_anew(&answer(1, records));
    assert!(!works(set(&[BatchBuilder::new(0).records(3), BatchBuilder::new(3)])));
    assert!(!works(join(&[set(&[BatchBuilder::new(0).records(2)]), marker(2, PRODUCER, 1)])));
    assert!(!works(with_records(0, &[0], 0, LOG_APPEND_TIME)), "it was read before");
    assert!(works(with_records(0, &[0, 1], 1, LOG_APPEND_TIME)));
    assert!(works(with_records(0, &[0, 3], 5, 0)));
    assert!(works(message(1)));
}

#[test]
fn a_cut_batch_starves_and_nothing_does_not() {
    let whole = set(&[BatchBuilder::new(0).payload(500)]);
    for cut in [10, 100, whole.len() - 1] {
        assert!(take(answer(0, whole.slice(..cut))).starved, "{cut}");
    }
    assert!(!take(answer(0, whole.clone())).starved);
    assert!(!take(answer(0, Bytes::new())).starved);
    // Only what lies below the offset: as useless as a cut batch.
    assert!(take(answer(1, whole)).starved);
    let old = message(0);
    assert!(take(answer(0, old.slice(..old.len() - 1))).starved);
}

#[test]
fn shared_answers_are_copied() {
    let answer = Bytes::from(vec![1_u8; 100]);
    let part = answer.slice(10..20);
    assert_eq!(unshared(part.clone(), false).as_ptr(), part.as_ptr());
    let copy = unshared(part.clone(), true);
    assert_ne!(copy.as_ptr(), part.as_ptr());
    assert_eq!(copy, part);
}

#[test]
fn a_small_part_of_an_answer_does_not_keep_all_of_it() {
    let kept = BatchBuilder::new(9).payload(100);
    let records = join(&[set(&[data(0, 9, PRODUCER).payload(900), kept.clone()]), marker(10, PRODUCER, 0)]);
    let taken = take(aborting(0, records.clone(), &[(PRODUCER, 0)]));
    assert_eq!(spans(&taken), [(0, 9, false), (9, 10, true), (10, 11, false)]);
    let Entry::Batch(batch) = &taken.entries[1] else { panic!("{taken:?}") };
    assert_eq!(batch.bytes(), &kept.bytes());
    assert!(!records.as_ptr_range().contains(&batch.bytes().as_ptr()));
}

#[test]
fn committed_batches_are_passed_on_and_markers_are_gaps() {
    let records = join(&[set(&[data(0, 3, PRODUCER)]), marker(3, PRODUCER, 1), set(&[BatchBuilder::new(4)])]);
    let taken = take(answer(0, records));
    assert_eq!(spans(&taken), [(0, 3, true), (3, 4, false), (4, 5, true)]);
    let Entry::Batch(batch) = &taken.entries[0] else { panic!("{taken:?}") };
    assert_eq!(batch.bytes(), &data(0, 3, PRODUCER).bytes());
}

#[test]
fn aborted_batches_and_the_markers_around_them_are_one_gap() {
    let records = join(&[
        marker(0, OTHER, 1),
        set(&[data(1, 3, PRODUCER), data(4, 1, PRODUCER)]),
        marker(5, PRODUCER, 0),
        set(&[data(6, 1, PRODUCER)]),
        marker(7, PRODUCER, 1),
    ]);
    let taken = take(aborting(0, records, &[(PRODUCER, 1)]));
    assert_eq!(spans(&taken), [(0, 6, false), (6, 7, true), (7, 8, false)]);
}

#[test]
fn transactions_of_several_producers_interleave() {
    let records = join(&[
        set(&[data(0, 2, PRODUCER), data(2, 2, OTHER), BatchBuilder::new(4).stamp(PRODUCER, 0, 9)]),
        marker(5, OTHER, 1),
        set(&[data(6, 1, PRODUCER), data(7, 1, OTHER)]),
        marker(8, PRODUCER, 0),
        set(&[data(9, 1, PRODUCER), data(10, 1, OTHER)]),
        marker(11, OTHER, 0),
        marker(12, PRODUCER, 1),
    ]);
    // The list is in no order.
    let taken = take(aborting(0, records, &[(OTHER, 7), (PRODUCER, 0)]));
    let expected = [
        (0, 2, false),
        (2, 4, true),
        // Not transactional, whatever becomes of its producer's transaction.
        (4, 5, true),
        (5, 9, false),
        (9, 10, true),
        (10, 13, false),
    ];
    assert_eq!(spans(&taken), expected);
}

#[test]
fn a_transaction_that_began_before_the_answer_is_aborted_all_the_same() {
    let records = join(&[set(&[data(40, 5, PRODUCER)]), marker(45, PRODUCER, 0)]);
    let taken = take(aborting(42, records, &[(PRODUCER, 7)]));
    assert_eq!(spans(&taken), [(42, 46, false)], "from the offset on, within the batch");
}

#[test]
fn one_producers_transactions_are_aborted_one_by_one() {
    let records = join(&[
        set(&[data(0, 1, PRODUCER)]),
        marker(1, PRODUCER, 0),
        set(&[data(2, 1, PRODUCER)]),
        marker(3, PRODUCER, 1),
        set(&[data(4, 1, PRODUCER)]),
        marker(5, PRODUCER, 0),
    ]);
    let taken = take(aborting(0, records, &[(PRODUCER, 0), (PRODUCER, 4)]));
    assert_eq!(spans(&taken), [(0, 2, false), (2, 3, true), (3, 6, false)]);
}

#[test]
fn a_marker_that_was_read_before_ends_its_transaction_all_the_same() {
    let records = join(&[set(&[data(0, 2, PRODUCER)]), marker(2, PRODUCER, 0), set(&[data(3, 2, PRODUCER)])]);
    let taken = take(aborting(3, records, &[(PRODUCER, 0)]));
    assert_eq!(spans(&taken), [(3, 5, true)], "the producer's next transaction was committed");
}

#[test]
fn an_emptied_batch_and_missing_ones_are_gaps() {
    let empty = BatchBuilder::new(3).records(0).last_offset_delta(4).payload(0);
    let records = set(&[BatchBuilder::new(0).records(3), empty, BatchBuilder::new(12)]);
    let taken = take(answer(0, records.clone()));
    assert_eq!(spans(&taken), [(0, 3, true), (3, 12, false), (12, 13, true)]);
    assert_eq!(spans(&take(answer(5, records.clone()))), [(5, 12, false), (12, 13, true)]);
    assert_eq!(spans(&take(answer(9, records))), [(9, 12, false), (12, 13, true)]);
}

#[test]
fn an_emptied_marker_ends_nothing() {
    let empty = BatchBuilder::new(2).records(0).last_offset_delta(0).attributes(CONTROL).stamp(PRODUCER, 0, -1);
    let records = set(&[data(0, 2, PRODUCER), empty, data(3, 1, PRODUCER)]);
    assert_eq!(spans(&take(aborting(0, records, &[(PRODUCER, 0)]))), [(0, 4, false)], "as with Kafka's consumer");
}

#[test]
fn a_thinned_batch_becomes_runs_and_gaps() {
    let records = with_records(10, &[1, 2, 5], 6, 0);
    let taken = take(answer(10, records.clone()));
    assert_eq!(spans(&taken), [(10, 11, false), (11, 13, true), (13, 15, false), (15, 16, true), (16, 17, false)]);
    assert_eq!((taken.remade, taken.epoch, taken.read.bytes), (2, Some(6), records.len()));
    for entry in &taken.entries {
        if let Entry::Batch(batch) = entry {
            assert!(batch.crc_is_valid() && batch.is_dense());
        }
    }
    let later = take(answer(12, records.clone()));
    assert_eq!(spans(&later), [(12, 13, true), (13, 15, false), (15, 16, true), (16, 17, false)]);
    assert_eq!(spans(&take(answer(14, records))), [(14, 15, false), (15, 16, true), (16, 17, false)]);
}

#[test]
fn gaps_of_a_thinned_batch_join_those_around_it() {
    let records = join(&[with_records(5, &[1], 3, TRANSACTIONAL), marker(9, -1, 1), set(&[BatchBuilder::new(20)])]);
    let taken = take(answer(0, records));
    assert_eq!(spans(&taken), [(0, 6, false), (6, 7, true), (7, 20, false), (20, 21, true)]);
    let Entry::Batch(batch) = &taken.entries[1] else { panic!("{taken:?}") };
    assert!(!batch.is_transactional());
}

#[test]
fn append_time_goes_into_every_record() {
    let taken = take(answer(10, with_records(10, &[0, 1], 1, LOG_APPEND_TIME)));
    let [Entry::Batch(batch)] = &taken.entries[..] else { panic!("{taken:?}") };
    assert!(!batch.is_log_append_time() && batch.crc_is_valid());
    assert_eq!((batch.base_timestamp(), batch.max_timestamp(), taken.remade), (2_000, 2_000, 1));
}

#[test]
fn a_log_that_begins_within_a_batch_begins_there() {
    for attributes in [0, LOG_APPEND_TIME] {
        let records = with_records(10, &[0, 1, 2, 3], 3, attributes);
        let taken = take(Answer { log_start: 12, ..answer(12, records.clone()) });
        assert_eq!((spans(&taken), taken.remade), (vec![(12, 14, true)], 1));
        // Without that, whoever takes the batch says that the mirror ends within it.
        assert_eq!(spans(&take(answer(12, records))), [(10, 14, true)]);
    }
}

#[test]
fn old_formats_become_batches_and_gaps() {
    let old = [message(3), message(4), message(7)];
    let records = join(&[join(&old), set(&[BatchBuilder::new(8).leader_epoch(2)])]);
    let taken = take(answer(2, records.clone()));
    assert_eq!(spans(&taken), [(2, 3, false), (3, 5, true), (5, 7, false), (7, 8, true), (8, 9, true)]);
    assert_eq!((taken.remade, taken.epoch, taken.read.bytes), (2, Some(2), records.len()));
    let taken = take(answer(4, join(&old)));
    assert_eq!((spans(&taken), taken.epoch), (vec![(4, 5, true), (5, 7, false), (7, 8, true)], None));
    let cut = take(answer(2, records.slice(..records.len() - 1)));
    assert_eq!((cut.next, cut.stop, cut.starved), (8, None, false));
}

#[test]
fn a_damaged_old_message_is_corrupt() {
    let mut bytes = message(3).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let taken = take(answer(3, bytes.into()));
    assert_eq!(failure(&taken).map(|failure| failure.code), Some(FailureCode::CorruptSourceBatch));
}

#[test]
fn records_that_cannot_be_read_are_corrupt_and_what_came_before_is_good() {
    let thin = BatchBuilder::new(5).records(2).last_offset_delta(3).payload(40).fill(0xff);
    let taken = take(answer(0, set(&[BatchBuilder::new(0).records(3), thin])));
    assert_eq!(spans(&taken), [(0, 3, true), (3, 5, false)], "the hole before it counts");
    assert_eq!(failure(&taken).map(|failure| failure.code), Some(FailureCode::CorruptSourceBatch));
    let unknown = BatchBuilder::new(0).records(2).last_offset_delta(3).attributes(5);
    let taken = take(answer(0, set(&[unknown])));
    assert_eq!(failure(&taken).map(|failure| failure.code), Some(FailureCode::UnsupportedMessageFormat));
}

#[test]
fn what_the_source_has_deleted_is_no_gap() {
    let records = set(&[BatchBuilder::new(12)]);
    let taken = take(Answer { log_start: 8, ..answer(5, records.clone()) });
    assert_eq!((spans(&taken), &taken.stop, taken.next), (Vec::new(), &Some(Stop::Overtaken), 5));
    assert!(!taken.starved);
    assert_eq!(spans(&take(Answer { log_start: 5, ..answer(5, records) })), [(5, 12, false), (12, 13, true)]);
    // What came before it is good, and a marker is there, not missing.
    let records = join(&[set(&[BatchBuilder::new(5)]), marker(6, PRODUCER, 1), with_records(7, &[3], 4, 0)]);
    let taken = take(Answer { log_start: 9, ..answer(5, records) });
    assert_eq!((spans(&taken), taken.stop), (vec![(5, 6, true), (6, 7, false)], Some(Stop::Overtaken)));
}

#[test]
fn what_is_made_anew_takes_no_more_than_twice_the_answer() {
    let deltas: Vec<i8> = (0..30).map(|at| at * 2).collect();
    let records = with_records(0, &deltas, 60, 0);
    let small = |offset| Answer { max_batch: 100, ..answer(offset, records.clone()) };
    let (mut offset, mut found) = (0, Vec::new());
    for _ in 0..10 {
        let taken = take(small(offset));
        let batches = taken.entries.iter().filter(|entry| matches!(entry, Entry::Batch(_)));
        let bytes: usize = batches.map(Entry::bytes).sum();
        assert!(bytes <= 2 * records.len() + 100, "{bytes} of {}", records.len());
        assert_eq!(taken.entries.first().map(Entry::offset), Some(offset));
        offset = taken.next;
        found.extend(spans(&taken).into_iter().filter(|span| span.2).map(|span| span.0));
        if offset == 61 {
            break;
        }
    }
    assert_eq!(found, (0..30).map(|at| at * 2).collect::<Vec<_>>(), "the rest comes with later answers");
}

#[test]
fn counts_what_was_read_before() {
    let builders = [0, 3, 6].map(|base| BatchBuilder::new(base).records(3));
    let size = builders[0].bytes().len();
    let taken = take(Answer { read_before: 6, ..answer(0, set(&builders)) });
    assert_eq!(taken.read, Read { bytes: 3 * size, again: 2 * size });
}

#[test]
fn tells_what_each_entry_can_prove() {
    let origins = |records: Bytes, log_start, offset| {
        let walk = Walk::new(Answer { log_start, ..answer(offset, records) });
        walk.map(|found| found.map(|found| (found.origin, found.made)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(origins(set(&[BatchBuilder::new(0)]), 0, 0), [(Origin::Whole, false)]);
    let horizon = set(&[BatchBuilder::new(0).attributes(DELETE_HORIZON)]);
    assert_eq!(origins(horizon, 0, 0), [(Origin::Remade, false)]);
    assert_eq!(origins(with_records(0, &[0, 1], 1, LOG_APPEND_TIME), 0, 0), [(Origin::Whole, true)]);
    assert_eq!(origins(with_records(0, &[0, 1], 1, 0), 1, 1), [(Origin::Remade, true)]);
    let thin = [(Origin::Absent, false), (Origin::Remade, true)];
    assert_eq!(origins(with_records(0, &[1], 1, 0), 0, 0), thin);
    assert_eq!(origins(message(0), 0, 0), [(Origin::Joined, true)]);
    assert_eq!(origins(marker(0, 1, 1), 0, 0), [(Origin::Hidden, false)]);
}

proptest::proptest! {
    #[test]
    fn damage_never_panics(at in 0_usize..400, byte in proptest::num::u8::ANY, offset in 0_i64..20) {
        let records = join(&[
            with_records(0, &[0, 2], 3, 0),
            marker(4, PRODUCER, 0),
            message(5),
            set(&[data(6, 2, PRODUCER), BatchBuilder::new(9).attributes(LOG_APPEND_TIME)]),
        ]);
        let mut bytes = records.to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        let taken = take(aborting(offset, bytes.into(), &[(PRODUCER, 6)]));
        proptest::prop_assert!(taken.next >= offset);
        let mut next = taken.entries.first().map_or(offset, Entry::offset);
        for entry in &taken.entries {
            proptest::prop_assert_eq!(entry.offset(), next);
            next = entry.next_offset();
        }
    }
}
