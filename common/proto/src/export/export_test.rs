//! What an export's format promises: it comes back, and every damaged part is refused.

use prost::Message;

use super::*;
use crate::frame::{Entry, FrameLimits, HEADER_BYTES, Packed};
use crate::testing::BatchBuilder;

const LIMITS: FrameLimits = FrameLimits { max_bytes: 1 << 20 };

fn origin() -> Origin {
    Origin {
        link: LinkName::new("ship-17").expect("legal"),
        created_unix_seconds: 1_790_000_000,
        software: "1".to_owned(),
        source_cluster_id: "abc".to_owned(),
    }
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).expect("legal")
}

fn packed(base: Offset, payload: usize) -> Packed {
    let batch = |base, fill| Entry::Batch(BatchBuilder::new(base).records(2).payload(payload).fill(fill).build());
    Packed::new(&[batch(base, 1), batch(base + 2, 2)])
}

/// Two topics over three files: frames of 4 offsets from `orders` 0 and 2, and `alarms` 0.
fn export() -> (Manifest, Vec<Vec<u8>>) {
    let mut writer = ExportWriter::with_file_bytes(origin(), 450);
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut write = |writer: &mut ExportWriter, partition, base, payload| {
        let chunk = writer.frame(partition, &packed(base, payload)).expect("in order");
        files.resize(chunk.file + 1, Vec::new());
        files[chunk.file].extend(chunk.pieces.concat());
    };
    let config = TopicConfig { name: "retention.ms".to_owned(), value: "5".to_owned() };
    writer.topic(&topic("orders"), Some([7; 16]), 3, vec![config]);
    for base in [8, 12, 16] {
        write(&mut writer, 0, base, 20);
    }
    write(&mut writer, 2, 0, 300);
    writer.topic(&topic("alarms"), None, 1, Vec::new());
    write(&mut writer, 0, 100, 20);
    let hashes: Vec<[u8; 32]> = (1..=u8::try_from(files.len()).expect("few")).map(|at| [at; 32]).collect();
    (writer.finish(&hashes).expect("sound"), files)
}

/// The frames of a partition, as a reader finds them; `None` where it finds something wrong.
fn read(files: &[Vec<u8>], topic: u32, range: &ExportRange) -> Option<Vec<(Offset, Offset)>> {
    let (mut file, mut at) = (range.file as usize, usize::try_from(range.position).ok()?);
    let mut offset = range.first_offset;
    let mut frames = Vec::new();
    while offset < range.next_offset {
        if at == files[file].len() {
            (file, at) = (file + 1, 0);
        }
        let bytes = files.get(file)?.get(at..)?;
        let header = FrameHeader::decode(bytes.first_chunk()?, LIMITS).ok()?;
        check_frame(&header, topic, range, offset).ok()?;
        let end = HEADER_BYTES + header.body_bytes;
        let frame = header.decode_body(bytes.get(HEADER_BYTES..end)?.to_vec().into()).ok()?;
        frames.push((header.first_offset, header.next_offset));
        assert_eq!(frame.entries.last().map(Entry::next_offset), Some(header.next_offset));
        (offset, at) = (header.next_offset, at + end);
    }
    Some(frames)
}

#[test]
fn what_is_written_comes_back() {
    let (manifest, files) = export();
    assert!(files.len() == 3 && files.iter().all(|file| file.len() <= 450), "{:?}", manifest.files);
    let sizes: Vec<u64> = files.iter().map(|file| file.len() as u64).collect();
    assert_eq!(manifest.files.iter().map(|file| file.bytes).collect::<Vec<_>>(), sizes);
    let read_back = Manifest::decode_checked(&manifest.encode_to_vec()).expect("sound");
    assert_eq!(read_back, manifest);
    let orders = &manifest.topics[0];
    let ranges: Vec<_> =
        orders.ranges.iter().map(|range| (range.partition, range.first_offset, range.next_offset)).collect();
    assert_eq!(ranges, [(0, 8, 20), (2, 0, 4)]);
    assert_eq!(read(&files, 0, &orders.ranges[0]), Some(vec![(8, 12), (12, 16), (16, 20)]));
    assert_eq!(read(&files, 0, &orders.ranges[1]), Some(vec![(0, 4)]));
    assert_eq!(read(&files, 1, &manifest.topics[1].ranges[0]), Some(vec![(100, 104)]));
}

#[test]
fn every_damaged_byte_of_a_frame_is_noticed() {
    let (manifest, files) = export();
    let ranges: Vec<(u32, &ExportRange)> =
        (0..).zip(&manifest.topics).flat_map(|(at, topic)| topic.ranges.iter().map(move |range| (at, range))).collect();
    for file in 0..files.len() {
        for byte in 0..files[file].len() {
            let mut damaged = files.clone();
            damaged[file][byte] ^= 0x10;
            // The partition that the byte belongs to is the last that begins at or before it.
            let begins_before =
                |&(_, range): &&(u32, &ExportRange)| (range.file as usize, range.position) <= (file, byte as u64);
            let owner =
                ranges.iter().rposition(|range| begins_before(&range)).expect("the first begins at the first byte");
            for (at, &(topic, range)) in ranges.iter().enumerate() {
                let read = read(&damaged, topic, range);
                assert_eq!(read.is_none(), at == owner, "range {at}, file {file} byte {byte}");
            }
        }
    }
}

#[test]
fn frames_must_join_and_stay_in_order() {
    let mut writer = ExportWriter::new(origin());
    writer.topic(&topic("orders"), None, 2, Vec::new());
    assert!(writer.frame(1, &packed(0, 10)).is_ok());
    assert!(matches!(writer.frame(1, &packed(8, 10)), Err(ExportError::Range { first: 8, .. })));
    assert!(writer.frame(0, &packed(0, 10)).is_ok());
    assert!(matches!(writer.finish(&[[0; 32]]), Err(ExportError::Range { partition: 0, .. })));
}

#[test]
fn an_unsound_manifest_is_refused() {
    type Damage = fn(&mut Manifest);
    let damages: [(&str, Damage); 16] = [
        ("no version", |manifest| manifest.version = 0),
        ("a later version", |manifest| manifest.version = VERSION + 1),
        ("a link's name", |manifest| manifest.link = "a/b".to_owned()),
        ("a topic's name", |manifest| manifest.topics[0].name = "..".to_owned()),
        ("a topic twice", |manifest| manifest.topics[1].name = "orders".to_owned()),
        ("a topic's id", |manifest| manifest.topics[0].topic_id = vec![1; 15]),
        ("no partitions", |manifest| manifest.topics[1].partitions = 0),
        ("a partition that the topic has not", |manifest| manifest.topics[0].partitions = 2),
        ("partitions out of order", |manifest| manifest.topics[0].ranges.swap(0, 1)),
        ("an empty range", |manifest| manifest.topics[0].ranges[0].next_offset = 8),
        ("a range below 0", |manifest| manifest.topics[0].ranges[0].first_offset = -1),
        ("a range in no file", |manifest| manifest.topics[1].ranges[0].file = 9),
        ("a range behind its file's end", |manifest| manifest.topics[1].ranges[0].position = 5_000),
        ("a file too large", |manifest| manifest.files[0].bytes = FILE_BYTES + 1),
        ("a file without a hash", |manifest| manifest.files[0].sha256.clear()),
        ("too many configs", |manifest| manifest.topics[0].configs = vec![TopicConfig::default(); MAX_CONFIGS + 1]),
    ];
    let (sound, _) = export();
    for (name, damage) in damages {
        let mut manifest = sound.clone();
        damage(&mut manifest);
        assert!(Manifest::decode_checked(&manifest.encode_to_vec()).is_err(), "{name}");
    }
    assert!(matches!(Manifest::decode_checked(b"\x0a\xff"), Err(ExportError::Malformed(_))));
    assert!(matches!(Manifest::decode_checked(&[]), Err(ExportError::Version { found: 0 })));
}

proptest::proptest! {
    #[test]
    fn arbitrary_manifests_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        drop(Manifest::decode_checked(&bytes));
    }
}
