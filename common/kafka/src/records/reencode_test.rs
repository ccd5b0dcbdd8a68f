//! Records in = records out, for every codec, however a batch was thinned; damage and bombs.

use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::records::codec::{Packer, put_varint};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const LOG_APPEND_TIME: u16 = 0x08;
const ENOUGH: usize = 64 << 20;

/// A record as a test thinks of it: offset delta, timestamp, and the rest as bytes.
type Seen = (i64, i64, Vec<u8>);

/// A batch as a source may hold it, made here and not by the code under test (but for the compressors, which real
/// brokers and librdkafka judge in `tests/rules`).
#[derive(Debug, Clone)]
struct Held {
    base: i64,
    last_delta: i32,
    codec: Codec,
    attributes: u16,
    base_timestamp: i64,
    max_timestamp: i64,
    records: Vec<Seen>,
}

impl Held {
    fn batch(&self) -> Batch {
        let mut packer = Packer::new(self.codec, Vec::new()).unwrap().unwrap();
        for (delta, timestamp, tail) in &self.records {
            let mut body = vec![0];
            put_varint(&mut body, timestamp.wrapping_sub(self.base_timestamp));
            put_varint(&mut body, *delta);
            body.extend_from_slice(tail);
            let mut record = Vec::new();
            put_varint(&mut record, i64::try_from(body.len()).unwrap());
            record.extend_from_slice(&body);
            packer.write_all(&record).unwrap();
        }
        let section = if self.records.is_empty() { Vec::new() } else { packer.finish().unwrap() };
        self.with_section(&section)
    }

    fn with_section(&self, section: &[u8]) -> Batch {
        let codec = u16::try_from(CODECS.iter().position(|codec| *codec == self.codec).unwrap()).unwrap();
        let count = i32::try_from(self.records.len()).unwrap();
        let mut covered = (codec | self.attributes).to_be_bytes().to_vec();
        covered.extend_from_slice(&self.last_delta.to_be_bytes());
        covered.extend_from_slice(&self.base_timestamp.to_be_bytes());
        covered.extend_from_slice(&self.max_timestamp.to_be_bytes());
        covered.extend_from_slice(&77_i64.to_be_bytes());
        covered.extend_from_slice(&3_i16.to_be_bytes());
        covered.extend_from_slice(&5_i32.to_be_bytes());
        covered.extend_from_slice(&count.to_be_bytes());
        covered.extend_from_slice(section);
        let mut bytes = self.base.to_be_bytes().to_vec();
        bytes.extend_from_slice(&i32::try_from(covered.len() + 9).unwrap().to_be_bytes());
        bytes.extend_from_slice(&6_i32.to_be_bytes());
        bytes.push(2);
        bytes.extend_from_slice(&crc32c::crc32c(&covered).to_be_bytes());
        bytes.extend_from_slice(&covered);
        Batch::parse(bytes.into()).unwrap()
    }

    fn pieces(&self) -> Vec<Piece> {
        Unfit::new(self.batch()).unwrap().runs(0, ENOUGH).unwrap().map(Result::unwrap).collect()
    }
}

fn held(deltas: &[i64], last_delta: i32) -> Held {
    let records = deltas.iter().map(|delta| (*delta, 1_000 + delta, tail(&delta.to_string()))).collect();
    let max_timestamp = 1_000 + i64::from(last_delta);
    Held { base: 40, last_delta, codec: Codec::None, attributes: 0, base_timestamp: 1_000, max_timestamp, records }
}

/// No key, a value, no header.
fn tail(value: &str) -> Vec<u8> {
    let mut tail = vec![1];
    put_varint(&mut tail, i64::try_from(value.len()).unwrap());
    tail.extend_from_slice(value.as_bytes());
    tail.push(0);
    tail
}

/// The records of a dense `CreateTime` batch, read by hand: absolute offset, timestamp, rest.
fn read(batch: &Batch) -> Vec<Seen> {
    assert!(batch.crc_is_valid() && batch.is_dense() && !batch.is_log_append_time());
    assert_eq!((batch.producer_id(), batch.producer_epoch(), batch.base_sequence()), (-1, -1, -1));
    let section = Bytes::copy_from_slice(batch.record_section());
    let bytes = Section::new(batch.codec(), section, ENOUGH).unwrap().unwrap().read_to_limit().unwrap();
    let mut rest = bytes.as_slice();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let size = usize::try_from(read_varint(&mut rest).unwrap()).unwrap();
        let (mut record, after) = rest.split_at(size);
        rest = after;
        record = &record[1..];
        let timestamp = batch.base_timestamp().wrapping_add(read_varint(&mut record).unwrap());
        let offset = batch.base_offset() + read_varint(&mut record).unwrap();
        records.push((offset, timestamp, record.to_vec()));
    }
    assert_eq!(records.len(), usize::try_from(batch.record_count()).unwrap());
    assert_eq!(batch.max_timestamp(), records.iter().map(|record| record.1).max().unwrap().max(-1));
    assert!(records.iter().zip(batch.base_offset()..).all(|(record, offset)| record.0 == offset));
    records
}

/// What pieces hold, after a look at their order: no offset left out, runs and gaps in turn.
fn contents(pieces: &[Piece], from: i64, end: i64, codec: Codec) -> Vec<Seen> {
    let (mut next, mut records, mut was_run) = (from, Vec::new(), None);
    for piece in pieces {
        let is_run = matches!(piece, Piece::Run(_));
        assert_ne!(was_run, Some(is_run), "neighbours are joined: {pieces:?}");
        was_run = Some(is_run);
        match piece {
            Piece::Run(batch) => {
                assert_eq!((batch.base_offset(), batch.codec(), batch.leader_epoch()), (next, codec, -1));
                next = batch.next_offset();
                records.extend(read(batch));
            }
            Piece::Gap { first, next: after } => {
                assert_eq!(*first, next);
                assert!(after > first);
                next = *after;
            }
        }
    }
    assert_eq!(next, end);
    records
}

#[test]
fn a_dense_create_time_batch_is_given_back() {
    let batch = held(&[0, 1, 2], 2).batch();
    assert_eq!(Unfit::new(batch.clone()).unwrap_err(), batch);
    let appended = Held { attributes: LOG_APPEND_TIME, ..held(&[0, 1, 2], 2) };
    assert!(Unfit::new(appended.batch()).is_ok());
    assert!(Unfit::new(held(&[0, 2], 2).batch()).is_ok());
}

#[test]
fn missing_offsets_at_both_ends_and_between_are_gaps() {
    let pieces = held(&[1, 2, 5, 7, 8], 9).pieces();
    let spans: Vec<_> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Run(batch) => (true, batch.base_offset(), batch.next_offset()),
            Piece::Gap { first, next } => (false, *first, *next),
        })
        .collect();
    let expected = [
        (false, 40, 41),
        (true, 41, 43),
        (false, 43, 45),
        (true, 45, 46),
        (false, 46, 47),
        (true, 47, 49),
        (false, 49, 50),
    ];
    assert_eq!(spans, expected);
}

#[test]
fn a_batch_without_records_is_one_gap() {
    for codec in CODECS {
        let empty = Held { codec, ..held(&[], 4) };
        assert_eq!(empty.pieces(), [Piece::Gap { first: 40, next: 45 }]);
    }
}

#[test]
fn starts_within_a_batch() {
    let thin = held(&[1, 2, 5], 6);
    for from in 38..49 {
        let pieces: Vec<_> =
            Unfit::new(thin.batch()).unwrap().runs(from, ENOUGH).unwrap().map(Result::unwrap).collect();
        let found = contents(&pieces, from.clamp(40, 47), 47, Codec::None);
        let offsets: Vec<_> = found.iter().map(|record| record.0).collect();
        let expected: Vec<_> = [41, 42, 45].into_iter().filter(|offset| *offset >= from).collect();
        assert_eq!(offsets, expected);
    }
}

#[test]
fn a_log_may_begin_within_a_dense_batch() {
    let dense = held(&[0, 1, 2, 3], 3);
    for start in [39, 40, 44, 45] {
        assert!(Unfit::begun(dense.batch(), start).is_err());
    }
    let pieces: Vec<_> =
        Unfit::begun(dense.batch(), 42).unwrap().runs(42, ENOUGH).unwrap().map(Result::unwrap).collect();
    let found = contents(&pieces, 42, 44, Codec::None);
    assert_eq!(found.iter().map(|record| record.0).collect::<Vec<_>>(), [42, 43]);
}

#[test]
fn control_batches_unknown_codecs_and_bad_crcs_are_refused() {
    let control = Held { attributes: 0x20, ..held(&[1], 1) };
    let refused = Unfit::new(control.batch()).unwrap().runs(0, ENOUGH);
    assert!(matches!(refused, Err(ReencodeError::Control { offset: 40 })));
    let unknown = Held { attributes: 5, ..held(&[1], 1) };
    let refused = Unfit::new(unknown.batch()).unwrap().runs(0, ENOUGH);
    assert!(matches!(refused, Err(ReencodeError::Codec { codec: Codec::Unknown(5), .. })));
    let mut bytes = held(&[1], 1).batch().bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let refused = Unfit::new(Batch::parse(bytes.into()).unwrap()).unwrap().runs(0, ENOUGH);
    assert!(matches!(refused, Err(ReencodeError::Crc { offset: 40 })));
}

#[test]
fn a_bomb_is_cut_at_the_limit() {
    for codec in CODECS {
        // A record of 8 MiB of zeros, which every codec but none packs to a fraction.
        let bomb = Held { codec, records: vec![(1, 0, tail(&"\0".repeat(8 << 20)))], ..held(&[], 1) };
        let run = |limit| Unfit::new(bomb.batch()).unwrap().runs(0, limit).unwrap().collect::<Vec<_>>();
        let found = run(1 << 20);
        assert!(
            matches!(found.as_slice(), [Err(ReencodeError::TooLong { limit: 1_048_576, .. })]),
            "{codec:?}: {found:?}"
        );
        assert_eq!(run(9 << 20).len(), 2, "{codec:?}: a gap and a run");
    }
}

#[test]
fn a_record_longer_than_its_batch_reserves_nothing() {
    let mut section = Vec::new();
    put_varint(&mut section, i64::from(i32::MAX));
    section.extend_from_slice(b"short");
    let batch = held(&[1], 1).with_section(&section);
    let found: Vec<_> = Unfit::new(batch).unwrap().runs(0, usize::MAX).unwrap().collect();
    assert!(matches!(found.as_slice(), [Err(ReencodeError::Unpack { .. })]), "{found:?}");
}

#[test]
fn java_and_raw_snappy_are_read() {
    // Bytes of the Java client, quoted in kafka-protocol; and the same block without xerial's framing.
    let framed: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x0f\x0d\x30\x18\0\0\0\x01\x0csdfdsf\0";
    let raw: &[u8] = b"\x0d\x30\x18\0\0\0\x01\x0csdfdsf\0";
    for bytes in [framed, raw] {
        let mut section = Section::new(Codec::Snappy, Bytes::from_static(bytes), 100).unwrap().unwrap();
        assert_eq!(section.read_to_limit().unwrap(), b"\x18\0\0\0\x01\x0csdfdsf\0");
    }
}

#[test]
fn lz4_is_one_frame_of_independent_64_kib_blocks() {
    let mut packer = Packer::new(Codec::Lz4, Vec::new()).unwrap().unwrap();
    packer.write_all(&vec![7; 200_000]).unwrap();
    let frame = packer.finish().unwrap();
    // Magic; version 1, blocks independent, no checksums, no content size; 64 KiB blocks (`Lz4BlockOutputStream`).
    assert_eq!(frame[..6], [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40]);
    // The checksum of just these two bytes, the same in every frame of the Java client.
    assert_eq!(frame[6], 0x82);
    assert_eq!(frame[frame.len() - 4..], [0; 4], "the end mark");
}

fn codecs() -> impl Strategy<Value = Codec> {
    proptest::sample::select(CODECS.to_vec())
}

prop_compose! {
    /// A batch of up to 60 offsets of which any may be missing, of records of any bytes.
    fn batches()(
        slots in vec(proptest::option::weighted(0.7, (any::<i64>(), vec(any::<u8>(), 0..300))), 1..60),
        base in prop_oneof![0_i64..100, Just(i64::MAX - 100)],
        codec in codecs(),
        base_timestamp in any::<i64>(),
        append_time in proptest::option::of(any::<i64>()),
    ) -> Held {
        let last_delta = i32::try_from(slots.len()).unwrap() - 1;
        let records = slots.into_iter().zip(0_i64..).filter_map(|(slot, delta)| slot.map(|(time, tail)| (delta, time, tail)));
        Held {
            base,
            last_delta,
            codec,
            attributes: if append_time.is_some() { LOG_APPEND_TIME } else { 0 },
            base_timestamp,
            max_timestamp: append_time.unwrap_or(0),
            records: records.collect(),
        }
    }
}

proptest! {
    #[test]
    fn records_out_are_the_records_in(held in batches()) {
        let batch = held.batch();
        let end = batch.next_offset();
        let Ok(unfit) = Unfit::new(batch) else { return Ok(()) };
        let pieces: Vec<_> = unfit.runs(0, ENOUGH).unwrap().map(Result::unwrap).collect();
        let found = contents(&pieces, held.base, end, held.codec);
        let append_time = (held.attributes == LOG_APPEND_TIME).then_some(held.max_timestamp);
        let expected: Vec<Seen> = held
            .records
            .iter()
            .map(|(delta, timestamp, tail)| (held.base + delta, append_time.unwrap_or(*timestamp), tail.clone()))
            .collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn damaged_sections_never_panic(held in batches(), at in any::<proptest::sample::Index>(), to in any::<u8>(), cut in 0_usize..40) {
        let mut section = held.batch().record_section().to_vec();
        section.truncate(section.len().saturating_sub(cut / 2));
        if !section.is_empty() {
            let at = at.index(section.len());
            section[at] = to;
        }
        let Ok(unfit) = Unfit::new(held.with_section(&section)) else { return Ok(()) };
        if let Ok(runs) = unfit.runs(0, 1 << 20) {
            let mut next = held.base;
            for piece in runs.map_while(Result::ok) {
                match piece {
                    Piece::Run(batch) => {
                        prop_assert_eq!(batch.base_offset(), next);
                        next = batch.next_offset();
                    }
                    Piece::Gap { next: after, .. } => next = after,
                }
            }
        }
    }

    #[test]
    fn arbitrary_sections_never_panic(codec in codecs(), section in vec(any::<u8>(), 0..300), count in 1_usize..50) {
        let held = Held { codec, records: vec![(0, 0, Vec::new()); count], ..held(&[], 60) };
        let runs = Unfit::new(held.with_section(&section)).unwrap().runs(0, 1 << 20);
        prop_assert!(runs.map_or(0, Iterator::count) <= 2 * count + 2);
    }
}
