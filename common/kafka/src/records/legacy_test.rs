//! Message sets made by hand, with every codec of their time, and damage.

use std::io::Write;

use proptest::prelude::*;
use tombolo_proto::batch::Batch;

use super::*;
use crate::records::codec::{Packer, read_varint};

const LIMIT: usize = 1 << 20;
const CODECS: [(u8, Codec); 3] = [(1, Codec::Gzip), (2, Codec::Snappy), (3, Codec::Lz4)];

fn message(
    offset: i64,
    magic: u8,
    attributes: u8,
    timestamp: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Vec<u8> {
    let mut covered = vec![magic, attributes];
    if magic == 1 {
        covered.extend_from_slice(&timestamp.to_be_bytes());
    }
    for field in [key, value] {
        covered.extend_from_slice(&field.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap()).to_be_bytes());
        covered.extend_from_slice(field.unwrap_or_default());
    }
    let mut crc = Crc::new();
    crc.update(&covered);
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend_from_slice(&i32::try_from(covered.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(&crc.sum().to_be_bytes());
    bytes.extend_from_slice(&covered);
    bytes
}

fn pack(codec: Codec, set: &[u8]) -> Vec<u8> {
    let mut packer = Packer::new(codec, Vec::new()).unwrap().unwrap();
    packer.write_all(set).unwrap();
    packer.finish().unwrap()
}

fn convert(set: &[u8], from: i64) -> Vec<Piece> {
    from_legacy(Bytes::copy_from_slice(set), from, LIMIT).map(Result::unwrap).collect()
}

fn error(set: &[u8]) -> ReencodeError {
    from_legacy(Bytes::copy_from_slice(set), 0, LIMIT).find_map(Result::err).expect("an error")
}

/// Offset, timestamp, key and value.
type Seen = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

fn records(batch: &Batch) -> Vec<Seen> {
    assert!(batch.crc_is_valid() && batch.is_dense());
    let section = Bytes::copy_from_slice(batch.record_section());
    let bytes = Section::new(batch.codec(), section, LIMIT).unwrap().unwrap().read_to_limit().unwrap();
    let mut rest = bytes.as_slice();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let _size = read_varint(&mut rest).unwrap();
        rest = &rest[1..];
        let timestamp = batch.base_timestamp() + read_varint(&mut rest).unwrap();
        let offset = batch.base_offset() + read_varint(&mut rest).unwrap();
        let [key, value] = [(); 2].map(|()| {
            let size = usize::try_from(read_varint(&mut rest).unwrap()).ok()?;
            let (field, after) = rest.split_at(size);
            rest = after;
            Some(field.to_vec())
        });
        assert_eq!(read_varint(&mut rest).unwrap(), 0, "no headers");
        records.push((offset, timestamp, key, value));
    }
    records
}

fn run(piece: &Piece) -> &Batch {
    match piece {
        Piece::Run(batch) => batch,
        Piece::Gap { .. } => panic!("a gap: {piece:?}"),
    }
}

#[test]
fn plain_messages_in_a_row_become_one_batch() {
    let mut set = message(7, 1, 0, 100, Some(b"k"), Some(b"v"));
    set.extend(message(8, 0, 0, 0, None, Some(b"")));
    set.extend(message(11, 1, 0, 50, Some(b""), None));
    let pieces = convert(&set, 6);
    assert_eq!(pieces.len(), 4);
    assert_eq!(pieces[0], Piece::Gap { first: 6, next: 7 });
    let first = (7, 100, Some(b"k".to_vec()), Some(b"v".to_vec()));
    assert_eq!(records(run(&pieces[1])), [first, (8, -1, None, Some(Vec::new()))]);
    assert_eq!(run(&pieces[1]).max_timestamp(), 100);
    assert_eq!(pieces[2], Piece::Gap { first: 9, next: 11 });
    assert_eq!(records(run(&pieces[3])), [(11, 50, Some(Vec::new()), None)]);
}

#[test]
fn a_compressed_message_is_unwrapped_with_relative_or_absolute_offsets() {
    for (number, codec) in CODECS {
        for magic in [0, 1] {
            // Thinned by compaction: the second of four is gone. v1 counts from the first, v0 has the offsets themselves.
            let base = if magic == 0 { 20 } else { 0 };
            let mut inner = Vec::new();
            for delta in [0, 2, 3] {
                inner.extend(message(base + delta, magic, 0, 500 + delta, Some(b"key"), Some(b"value")));
            }
            let wrapper = message(23, magic, number, 503, None, Some(&pack(codec, &inner)));
            let pieces = convert(&wrapper, 20);
            assert_eq!(pieces.len(), 3, "{codec:?} v{magic}");
            let found: Vec<_> = [&pieces[0], &pieces[2]].into_iter().flat_map(|piece| records(run(piece))).collect();
            let offsets: Vec<_> = found.iter().map(|record| record.0).collect();
            let times: Vec<_> = found.iter().map(|record| record.1).collect();
            assert_eq!(offsets, [20, 22, 23]);
            assert_eq!(times, if magic == 0 { [-1; 3] } else { [500, 502, 503] });
            assert_eq!(run(&pieces[0]).codec(), codec);
        }
    }
}

#[test]
fn append_time_of_the_wrapper_goes_for_all() {
    let mut inner = message(0, 1, 0, 1, None, Some(b"a"));
    inner.extend(message(1, 1, 0, 2, None, Some(b"b")));
    let wrapper = message(9, 1, 1 | LOG_APPEND_TIME, 777, None, Some(&pack(Codec::Gzip, &inner)));
    let pieces = convert(&wrapper, 8);
    let times: Vec<_> = records(run(&pieces[0])).iter().map(|record| (record.0, record.1)).collect();
    assert_eq!(times, [(8, 777), (9, 777)]);
    assert!(!run(&pieces[0]).is_log_append_time());
}

#[test]
fn the_wrong_lz4_checksum_of_v0_is_forgiven() {
    let inner = message(5, 0, 0, 0, None, Some(b"v"));
    let mut frame = pack(Codec::Lz4, &inner);
    let [_, _, wrong, _] = twox_hash::XxHash32::oneshot(0, &frame[..6]).to_be_bytes();
    assert_ne!(frame[6], wrong);
    frame[6] = wrong;
    let pieces = convert(&message(5, 0, 3, 0, None, Some(&frame)), 5);
    assert_eq!(records(run(&pieces[0])), [(5, -1, None, Some(b"v".to_vec()))]);
    // v1 has the right one or none.
    let inner = message(0, 1, 0, 0, None, Some(b"v"));
    let mut frame = pack(Codec::Lz4, &inner);
    frame[6] = wrong;
    assert!(matches!(error(&message(5, 1, 3, 0, None, Some(&frame))), ReencodeError::Unpack { .. }));
}

#[test]
fn ends_before_a_v2_batch_and_a_cut_message_and_starts_within_a_set() {
    let mut inner = message(0, 1, 0, 1, None, Some(b"a"));
    inner.extend(message(1, 1, 0, 2, None, Some(b"b")));
    let mut set = message(4, 1, 2, 2, None, Some(&pack(Codec::Snappy, &inner)));
    let whole = set.len();
    set.extend_from_slice(tombolo_proto::testing::BatchBuilder::new(5).build().bytes());
    let mut walk = from_legacy(Bytes::from(set.clone()), 4, LIMIT);
    let pieces: Vec<_> = walk.by_ref().map(Result::unwrap).collect();
    assert_eq!(records(run(&pieces[0])), [(4, 2, None, Some(b"b".to_vec()))]);
    assert_eq!((pieces.len(), walk.remaining()), (1, set.len() - whole));
    let mut walk = from_legacy(Bytes::from(set).slice(..whole - 1), 0, LIMIT);
    assert!(walk.next().is_none());
    assert_eq!(walk.remaining(), whole - 1);
}

#[test]
fn plain_messages_are_joined_up_to_a_size() {
    let value = vec![b'x'; 100 << 10];
    let set: Vec<u8> = (0..7).flat_map(|offset| message(offset, 1, 0, 5, None, Some(&value))).collect();
    let counts: Vec<_> = convert(&set, 0).iter().map(|piece| run(piece).record_count()).collect();
    assert_eq!(counts, [3, 3, 1]);
}

#[test]
fn what_kafka_refuses_is_refused() {
    let plain = message(3, 1, 0, 1, None, Some(b"a"));
    let nested = message(3, 1, 1, 1, None, Some(&pack(Codec::Gzip, &plain)));
    let doubly = message(3, 1, 1, 1, None, Some(&pack(Codec::Gzip, &nested)));
    let mut torn = plain.clone();
    *torn.last_mut().unwrap() ^= 1;
    let mut backwards = plain.clone();
    backwards.extend(message(2, 1, 0, 1, None, Some(b"b")));
    let mut format = plain;
    format[16] = 7;
    assert!(matches!(error(&doubly), ReencodeError::Malformed { offset: 3, .. }));
    assert!(matches!(error(&torn), ReencodeError::Crc { offset: 3 }));
    assert!(matches!(error(&backwards), ReencodeError::Malformed { offset: 2, .. }));
    assert!(matches!(error(&format), ReencodeError::Malformed { offset: 3, .. }));
    assert!(matches!(error(&message(3, 1, 4, 1, None, Some(b"zstd"))), ReencodeError::Codec { offset: 3, .. }));
    assert!(matches!(error(&message(3, 1, 1, 1, None, None)), ReencodeError::Malformed { .. }));
    let below = message(0, 1, 0, 1, None, Some(b"a"));
    let base = message(9, 1, 0, 1, None, Some(b"b"));
    let wrapper = message(3, 1, 1, 1, None, Some(&pack(Codec::Gzip, &[below, base].concat())));
    assert!(matches!(error(&wrapper), ReencodeError::Malformed { offset: 3, .. }));
    let far = [message(i64::MAX, 1, 0, 1, None, None), message(1, 1, 0, 1, None, None)].concat();
    let wrapper = message(i64::MAX - 1, 1, 1, 1, None, Some(&pack(Codec::Gzip, &far)));
    assert!(matches!(error(&wrapper), ReencodeError::Malformed { .. }));
}

#[test]
fn a_bomb_is_cut_at_the_limit() {
    let inner = message(0, 1, 0, 1, None, Some(&vec![0; 8 << 20]));
    for (number, codec) in CODECS {
        let bomb = message(3, 1, number, 1, None, Some(&pack(codec, &inner)));
        assert!(matches!(error(&bomb), ReencodeError::TooLong { offset: 3, limit: LIMIT }), "{codec:?}");
    }
}

proptest! {
    #[test]
    fn damage_never_panics(at in any::<proptest::sample::Index>(), to in any::<u8>(), which in 0_usize..3, mend in any::<bool>()) {
        let (number, codec) = CODECS[which];
        let inner: Vec<u8> = (0..4).flat_map(|offset| message(offset, 1, 0, 9, Some(b"key"), Some(b"value"))).collect();
        let mut packed = pack(codec, &inner);
        // With a right CRC the damage reaches the codec, else the framing.
        let set = if mend {
            let at = at.index(packed.len());
            packed[at] = to;
            message(30, 1, number, 9, None, Some(&packed))
        } else {
            let mut set = message(30, 1, number, 9, None, Some(&packed));
            let at = at.index(set.len());
            set[at] = to;
            set
        };
        // Four records, a gap before each, an error.
        prop_assert!(from_legacy(set.into(), 0, LIMIT).count() <= 9);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(from_legacy(bytes.into(), 0, LIMIT).count() <= 20);
    }
}
