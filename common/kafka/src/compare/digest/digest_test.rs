//! A digest comes back as it was written, and one that was cut or changed does not pass.

use std::io::Cursor;

use tombolo_proto::testing::BatchBuilder;

use super::*;

fn header() -> Header {
    let topic = |name: &str, id, partitions| DigestTopic { name: name.into(), id: [id; 16], partitions };
    Header {
        created_unix_seconds: 1_790_000_000,
        cluster_id: "Lx3_fzQ".to_owned(),
        software: "0.1.0".to_owned(),
        topics: vec![topic("orders", 1, 2), topic("alarms", 2, 1)],
    }
}

fn section(topic: &str, partition: i32, offsets: Range<i64>) -> Section {
    Section { topic: topic.into(), partition, offsets }
}

fn entries(bases: Range<i64>) -> Vec<Entry> {
    bases
        .map(|at| Entry::of(&BatchBuilder::new(at * 3).records(3).fill(u8::try_from(at % 250).unwrap()).build()))
        .collect()
}

/// Sections with their batches.
fn content() -> Vec<(Section, Vec<Entry>)> {
    let mut mixed = entries(2..5);
    mixed[0].kind = Kind::Transactional;
    mixed[1].kind = Kind::Abort;
    mixed[2].kind = Kind::Control;
    mixed[2].sound = false;
    vec![
        (section("orders", 0, 0..600), entries(0..200)),
        (section("orders", 1, 7..7), Vec::new()),
        (section("alarms", 0, 7..15), mixed),
    ]
}

fn written(content: &[(Section, Vec<Entry>)]) -> Vec<u8> {
    let mut digest = DigestWriter::create(Vec::new(), &header()).unwrap();
    for (section, batches) in content {
        digest.section(section).unwrap();
        for batch in batches {
            digest.batch(batch).unwrap();
        }
    }
    digest.finish().unwrap().0
}

fn plain(entry: &Entry) -> (i64, i64, u32, u32, i32, i64, Kind, bool) {
    let Entry { base_offset, last_offset, canonical_crc, bytes, records, producer_id, kind, sound, batch: _ } = *entry;
    (base_offset, last_offset, canonical_crc, bytes, records, producer_id, kind, sound)
}

#[test]
fn comes_back_as_it_was_written() {
    let content = content();
    let mut reader = DigestReader::open(Cursor::new(written(&content))).unwrap();
    assert_eq!(reader.header, header());
    for (section, batches) in &content {
        assert_eq!(reader.next_section().unwrap().as_ref(), Some(section));
        for batch in batches {
            assert_eq!(plain(&reader.next_batch().unwrap().unwrap()), plain(batch));
        }
        assert!(reader.next_batch().unwrap().is_none());
    }
    assert_eq!(reader.next_section().unwrap(), None);
    assert_eq!(reader.next_section().unwrap(), None, "the end stays the end");
}

#[test]
fn a_first_pass_lists_the_partitions() {
    let summary = Summary::read(Cursor::new(written(&content()))).unwrap();
    let expected: Vec<_> = content().into_iter().map(|(section, _)| section).collect();
    assert_eq!((summary.header, summary.sections), (header(), expected));
}

#[test]
fn a_file_that_was_cut_anywhere_is_noticed() {
    let whole = written(&content());
    for length in 0..whole.len() {
        let cut = Summary::read(Cursor::new(whole[..length].to_vec()));
        assert!(matches!(cut, Err(DigestError::Cut)), "{length} of {}: {cut:?}", whole.len());
    }
}

#[test]
fn a_changed_bit_is_noticed_wherever_it_matters() {
    let whole = written(&content());
    let good = Summary::read(Cursor::new(whole.clone())).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        if let Ok(read) = Summary::read(Cursor::new(changed)) {
            // Bits of zstd's own frame header that mean nothing for the content: its CRC was right.
            assert_eq!((read.header, read.sections), (good.header.clone(), good.sections.clone()), "byte {at}");
        }
    }
    let mut longer = whole;
    longer.push(0);
    assert!(Summary::read(Cursor::new(longer)).is_err());
}

/// The items as they stand in the frame, changed, with the CRC they had.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Result<Summary, DigestError> {
    let whole = written(&content());
    let mut items = zstd::decode_all(&whole[MAGIC.len()..])?;
    change(&mut items);
    let mut file = MAGIC.to_vec();
    file.extend(zstd::encode_all(&items[..], 3)?);
    Summary::read(Cursor::new(file))
}

#[test]
fn content_that_does_not_fit_its_crc_is_damaged() {
    assert!(forged(|_| ()).is_ok());
    // The last batch's CRC field, counted from the end: flags, producer, records, bytes before the end item of 13.
    let changed = forged(|items| {
        let at = items.len() - 13 - 1 - 8 - 4 - 4 - 4;
        items[at] ^= 1;
    });
    assert!(matches!(changed, Err(DigestError::Damaged("wrong CRC"))), "{changed:?}");
    let fewer = forged(|items| {
        let end = items.split_off(items.len() - 13);
        items.truncate(items.len() - 34);
        items.extend(end);
    });
    assert!(matches!(fewer, Err(DigestError::Damaged(_))), "{fewer:?}");
    let unknown = forged(|items| {
        let at = items.len() - 13;
        items[at] = b'?';
    });
    assert!(matches!(unknown, Err(DigestError::Damaged("an unknown item"))), "{unknown:?}");
    let more = forged(|items| items.push(0));
    assert!(matches!(more, Err(DigestError::Damaged("something follows its end"))), "{more:?}");
}

#[test]
fn another_file_is_no_digest() {
    let mut newer = written(&content());
    newer[7] = 2;
    assert!(matches!(Summary::read(Cursor::new(newer)), Err(DigestError::Magic)));
    assert!(matches!(Summary::read(Cursor::new(b"PK\x03\x04 and so on".to_vec())), Err(DigestError::Magic)));
}
