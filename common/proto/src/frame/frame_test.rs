//! What a frame promises: it comes back as it went, and nothing else comes back at all.

use super::*;
use crate::testing::BatchBuilder;

const LIMITS: FrameLimits = FrameLimits { max_bytes: 1 << 20 };

fn frame() -> Frame {
    Frame {
        mirror: MirrorId(7),
        run: 2,
        partition: 11,
        entries: vec![
            Entry::Batch(BatchBuilder::new(100).records(3).payload(700).build()),
            Entry::Gap { offset: 103, count: 2 },
            Entry::Batch(BatchBuilder::new(105).records(1).build()),
        ],
    }
}

/// Too small to be compressed.
fn plain() -> Frame {
    let first = Entry::Batch(BatchBuilder::new(100).records(3).build());
    Frame { entries: std::iter::once(first).chain(frame().entries.into_iter().skip(1)).collect(), ..frame() }
}

fn join(pieces: &[Bytes]) -> Vec<u8> {
    pieces.concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let header = header.first_chunk().ok_or(FrameError::Entry { entry: 0 })?;
    FrameHeader::decode(header, LIMITS)?.decode_body(Bytes::copy_from_slice(body))
}

#[test]
fn comes_back_as_it_went() {
    for (frame, compressed) in [(plain(), false), (frame(), true)] {
        let packed = frame.pack().packed;
        assert_eq!(packed.compressed, compressed);
        assert_eq!(packed.body_bytes() < packed.raw_bytes, compressed);
        assert_eq!(decode(&join(&frame.pack().encode())).expect("valid"), frame);
        assert_eq!(packed.unpack(LIMITS).expect("valid"), frame.entries);
    }
}

#[test]
fn evidence_ends_at_the_frames_end_and_has_its_gaps() {
    let packed = frame().pack().packed;
    let [Entry::Batch(_), Entry::Gap { .. }, Entry::Batch(last)] = &frame().entries[..] else { panic!("as built") };
    let tail: Vec<TailBatch> = frame().entries.iter().map(TailBatch::of_entry).collect();
    assert_eq!((packed.tail, packed.last_epoch), (tail, last.leader_epoch()));
    let gap = Packed::new(&[Entry::Gap { offset: 4, count: 5 }, Entry::Gap { offset: 9, count: 1 }]);
    assert_eq!((gap.tail, gap.last_epoch), (vec![TailBatch::gap(4, 10)], -1));
    let many: Vec<Entry> = (0..40).map(|at| Entry::Batch(BatchBuilder::new(at).build())).collect();
    let packed = Packed::new(&many);
    assert_eq!((packed.tail.len(), packed.tail[0].base_offset), (MAX_TAIL, 40 - 16));
}

#[test]
fn only_frames_with_an_uncompressed_batch_are_compressed() {
    let is_compressed = |codecs: &[u16]| {
        let entries = codecs
            .iter()
            .zip(0..)
            .map(|(codec, at)| Entry::Batch(BatchBuilder::new(at).payload(700).attributes(*codec).build()));
        Packed::new(&entries.collect::<Vec<_>>()).compressed
    };
    assert!(is_compressed(&[0]));
    assert!(is_compressed(&[4, 0, 2]));
    assert!(!is_compressed(&[1, 2, 3, 4]));
}

#[test]
fn golden_bytes_of_version_1() {
    let gap = Frame { mirror: MirrorId(1), run: 2, partition: 3, entries: vec![Entry::Gap { offset: 4, count: 5 }] };
    let hex = hex(&join(&gap.pack().encode()));
    assert_eq!(
        hex,
        "746201000000000100000002000000030000000000000004000000000000000900000001000000090000000981e209a801\
         0000000000000005"
    );
}

#[test]
fn every_damaged_byte_is_noticed() {
    let encoded = join(&plain().pack().encode());
    for at in 0..encoded.len() {
        let mut damaged = encoded.clone();
        damaged[at] ^= 0x10;
        assert!(decode(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn lengths_above_the_limits_are_refused_before_the_body() {
    let encoded = join(&plain().pack().encode());
    for (field, at) in [("entries", 32), ("raw bytes", 36), ("body bytes", 40)] {
        let mut bytes = encoded.clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let refused = FrameHeader::decode(bytes[..HEADER_BYTES].try_into().expect("header"), LIMITS);
        assert!(matches!(refused, Err(FrameError::Limit { field: found, .. }) if found == field), "{refused:?}");
    }
}

#[test]
fn a_bomb_is_cut_at_the_size_it_declares() {
    let bomb = zstd::bulk::compress(&vec![0_u8; 8 << 20], 1).expect("compresses");
    let small = Frame { entries: vec![Entry::Gap { offset: 0, count: 1 }], ..frame() };
    let mut header = small.pack().encode().first().expect("header").to_vec();
    header[3] = FLAG_ZSTD;
    header[40..44].copy_from_slice(&u32::try_from(bomb.len()).expect("small").to_be_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..44]), &bomb);
    header[44..].copy_from_slice(&crc.to_be_bytes());
    header.extend_from_slice(&bomb);
    assert_eq!(decode(&header), Err(FrameError::Decompress { raw_bytes: 9 }));
}

#[test]
fn a_batch_with_a_wrong_crc_is_refused() {
    let mut broken = BatchBuilder::new(0).build().bytes().to_vec();
    *broken.last_mut().expect("bytes") ^= 1;
    let entries = vec![Entry::Batch(Batch::parse(broken.into()).expect("a header"))];
    assert_eq!(decode(&join(&Frame { entries, ..frame() }.pack().encode())), Err(FrameError::BatchCrc { offset: 0 }));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, HEADER_BYTES..300)) {
        proptest::prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 1..300), entries in 0_u32..4) {
        let mut header = plain().pack().encode().first().expect("header").to_vec();
        let size = u32::try_from(body.len()).expect("small").to_be_bytes();
        header[32..36].copy_from_slice(&entries.to_be_bytes());
        header[36..40].copy_from_slice(&size);
        header[40..44].copy_from_slice(&size);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..44]), &body);
        header[44..].copy_from_slice(&crc.to_be_bytes());
        header.extend_from_slice(&body);
        proptest::prop_assert!(decode(&header).is_err());
    }
}
