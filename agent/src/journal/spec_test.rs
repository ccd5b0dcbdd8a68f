//! What every journal must do, run on each of them: the contract of the trait, method by method, and a comparison with
//! a trivial model over random operations.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::wire::TailBatch;

use super::{Journal, JournalError, JournalFrame, JournalRange, Limits, MemoryJournal, SegmentJournal};

/// A journal to be tested, and how to open it anew.
pub(super) trait Bench {
    type Journal: Journal;

    /// An empty one with room for at least `max_bytes` of frames, and for less than ten times that.
    fn open(max_bytes: u64) -> (Self, Self::Journal)
    where
        Self: Sized;

    /// Closes and opens it.
    fn reopen(&mut self, journal: Self::Journal) -> Self::Journal;
}

pub(super) fn topic(name: &str) -> TopicName {
    TopicName::new(name).expect("a legal name")
}

/// A frame of `count` offsets whose body has a few bytes that only this frame has.
pub(super) fn frame(name: &str, partition: Partition, first: Offset, count: i64) -> JournalFrame {
    sized(name, partition, first, count, 40)
}

/// A frame with a body of at least `bytes`, in two pieces.
pub(super) fn sized(name: &str, partition: Partition, first: Offset, count: i64, bytes: usize) -> JournalFrame {
    let head = format!("{name}/{partition}/{first}+{count}#{bytes}");
    let fill: Vec<u8> = head.bytes().cycle().take(bytes).collect();
    let next_offset = first + count;
    let tail = TailBatch { base_offset: first, last_offset: next_offset - 1, crc: crc32c::crc32c(&fill), gap: false };
    let packed = Packed {
        first_offset: first,
        next_offset,
        entries: 1,
        raw_bytes: bytes * 2,
        compressed: first % 2 == 0,
        body: vec![Bytes::from(head), Bytes::from(fill)],
        tail: vec![tail],
        last_epoch: i32::try_from(first % 7).expect("small") - 1,
    };
    JournalFrame { topic: topic(name), topic_id: None, partition, packed }
}

/// The same frame with its body in one piece: how pieces are cut is no part of the contract.
pub(super) fn joined(packed: &Packed) -> Packed {
    Packed { body: vec![packed.body.concat().into()], ..packed.clone() }
}

pub(super) fn read_all(journal: &mut impl Journal, range: &JournalRange) -> Vec<Packed> {
    let mut frames: Vec<Packed> = Vec::new();
    let mut at = range.first;
    while at < range.next {
        let read = journal.read(&range.topic, range.partition, at, 200).expect("it can be read");
        assert!(!read.is_empty(), "nothing at {at} of {range:?}");
        for packed in read {
            assert!(packed.first_offset <= at && at < packed.next_offset, "{at} is not in {packed:?}");
            at = packed.next_offset;
            frames.push(joined(&packed));
        }
    }
    frames
}

fn bounds(journal: &impl Journal) -> Vec<(String, Partition, Offset, Offset)> {
    let ranges = journal.ranges();
    ranges.iter().map(|range| (range.topic.as_str().to_owned(), range.partition, range.first, range.next)).collect()
}

fn reads(journal: &mut impl Journal, name: &str, offset: Offset, max_bytes: usize) -> Vec<(Offset, Offset)> {
    let frames = journal.read(&topic(name), 0, offset, max_bytes).expect("it can be read");
    frames.iter().map(|packed| (packed.first_offset, packed.next_offset)).collect()
}

pub(super) fn gives_back_what_was_appended<B: Bench>() {
    let (mut bench, mut journal) = B::open(1 << 20);
    assert!(journal.ranges().is_empty());
    assert_eq!(journal.usage().frame_bytes, 0);
    journal.append(&[]).expect("nothing is always possible");
    let frames = [frame("b", 0, 10, 5), sized("a", 1, 0, 1, 40_000), frame("b", 0, 15, 2), sized("a", 1, 1, 9, 0)];
    journal.append(&frames).expect("room");
    for _ in 0..2 {
        assert_eq!(bounds(&journal), [("a".into(), 1, 0, 10), ("b".into(), 0, 10, 17)]);
        let ranges = journal.ranges();
        assert_eq!(read_all(&mut journal, &ranges[0]), [joined(&frames[1].packed), joined(&frames[3].packed)]);
        assert_eq!(read_all(&mut journal, &ranges[1]), [joined(&frames[0].packed), joined(&frames[2].packed)]);
        assert_eq!((ranges[0].last_epoch, ranges[1].last_epoch), (0, 0), "15 % 7 - 1; 1 % 7 - 1");
        let bytes: usize = frames.iter().map(|frame| frame.packed.body_bytes()).sum();
        assert_eq!(ranges[0].bytes + ranges[1].bytes, bytes as u64);
        assert_eq!(journal.usage().frame_bytes, bytes as u64);
        journal = bench.reopen(journal);
    }
}

pub(super) fn reads_from_within_a_frame_up_to_the_limit<B: Bench>() {
    let (_bench, mut journal) = B::open(1 << 20);
    let frames: Vec<_> = (0..6).map(|n| frame("t", 0, n * 10, 10)).collect();
    let body = frames[0].packed.body_bytes() + 1;
    journal.append(&frames[..3]).expect("room");
    journal.append(&frames[3..]).expect("room");
    assert_eq!(reads(&mut journal, "t", 0, 0), [(0, 10)], "at least one");
    assert_eq!(reads(&mut journal, "t", 19, body * 2), [(10, 20), (20, 30)]);
    assert_eq!(reads(&mut journal, "t", 20, usize::MAX), [(20, 30), (30, 40), (40, 50), (50, 60)]);
    assert_eq!(reads(&mut journal, "t", 60, usize::MAX), []);
    assert_eq!(reads(&mut journal, "t", -1, usize::MAX), []);
    assert_eq!(reads(&mut journal, "u", 0, usize::MAX), []);
    assert!(journal.read(&topic("t"), 1, 0, 1).expect("it can be read").is_empty());
}

pub(super) fn trims_what_is_confirmed<B: Bench>() {
    let (_bench, mut journal) = B::open(1 << 20);
    journal.append(&[frame("t", 0, 0, 10), frame("t", 0, 10, 10), frame("u", 0, 5, 5)]).expect("room");
    let full = journal.usage().frame_bytes;
    journal.trim(&[(topic("t"), 0, 14), (topic("x"), 9, 3)]).expect("healthy");
    assert_eq!(bounds(&journal), [("t".into(), 0, 14, 20), ("u".into(), 0, 5, 10)]);
    assert!(journal.usage().frame_bytes < full);
    assert_eq!(reads(&mut journal, "t", 13, usize::MAX), [], "below the range");
    assert_eq!(reads(&mut journal, "t", 14, usize::MAX), [(10, 20)], "the frame around the confirmed offset");
    journal.trim(&[(topic("t"), 0, 3)]).expect("healthy");
    assert_eq!(bounds(&journal)[0].2, 14, "confirmed offsets do not go back");
    journal.append(&[frame("t", 0, 20, 5)]).expect("room");
    assert_eq!(bounds(&journal)[0], ("t".into(), 0, 14, 25));
    journal.trim(&[(topic("t"), 0, 25), (topic("u"), 0, 1_000)]).expect("healthy");
    assert!(journal.ranges().is_empty());
    assert_eq!(journal.usage().frame_bytes, 0);
    journal.append(&[frame("u", 0, 10, 5)]).expect("room");
    assert_eq!(bounds(&journal), [("u".into(), 0, 10, 15)], "a trim is about what is there");
}

pub(super) fn starts_a_new_run_where_frames_do_not_join<B: Bench>() {
    let (mut bench, mut journal) = B::open(1 << 20);
    journal.append(&[frame("t", 0, 0, 10), frame("t", 0, 10, 10)]).expect("room");
    journal.trim(&[(topic("t"), 0, 5)]).expect("healthy");
    journal.append(&[frame("t", 0, 10, 3)]).expect("room");
    assert_eq!(bounds(&journal), [("t".into(), 0, 10, 13)], "back: a rewind");
    journal = bench.reopen(journal);
    assert_eq!(bounds(&journal), [("t".into(), 0, 10, 13)]);
    assert_eq!(reads(&mut journal, "t", 10, usize::MAX), [(10, 13)]);
    journal.append(&[frame("t", 0, 13, 1), frame("t", 0, 100, 1), frame("t", 0, 101, 1)]).expect("room");
    assert_eq!(bounds(&journal), [("t".into(), 0, 100, 102)], "ahead, in the middle of an append");
    journal.append(&[frame("t", 0, 2, 2)]).expect("room");
    journal = bench.reopen(journal);
    assert_eq!(bounds(&journal), [("t".into(), 0, 2, 4)], "far back");
    assert_eq!(reads(&mut journal, "t", 2, usize::MAX), [(2, 4)]);
    let one = frame("t", 0, 2, 2).packed.body_bytes() as u64;
    assert_eq!(journal.usage().frame_bytes, one, "older runs do not count");
}

pub(super) fn discards_what_is_not_wanted<B: Bench>() {
    let (_bench, mut journal) = B::open(1 << 20);
    journal.append(&[frame("t", 0, 0, 10), frame("t", 1, 0, 10), frame("u", 0, 0, 10)]).expect("room");
    journal.discard(&[(topic("t"), 0), (topic("u"), 0), (topic("v"), 0)]).expect("healthy");
    assert_eq!(bounds(&journal), [("t".into(), 1, 0, 10)]);
    assert_eq!(reads(&mut journal, "t", 0, usize::MAX), []);
    journal.append(&[frame("t", 0, 0, 3)]).expect("room");
    assert_eq!(bounds(&journal), [("t".into(), 0, 0, 3), ("t".into(), 1, 0, 10)]);
}

pub(super) fn is_full_at_its_cap_and_goes_on_once_there_is_room<B: Bench>() {
    const CAP: u64 = 2 << 20;
    const BODY: usize = 30_000;
    let (mut bench, mut journal) = B::open(CAP);
    let mut next = 0;
    let full = loop {
        assert!(next < 1_000, "never full");
        match journal.append(&[sized("t", 0, next, 1, BODY), sized("t", 1, next, 1, BODY)]) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    let JournalError::Full { used, max, disk } = full else { panic!("{full}") };
    let usage = journal.usage();
    assert!(used <= max && !disk && max == usage.max_bytes && used == usage.file_bytes, "{used} {max} {usage:?}");
    assert!(usage.file_bytes <= usage.max_bytes, "{usage:?}");
    assert!(usage.frame_bytes >= CAP / 2, "full at {usage:?}");
    for partition in 0..2 {
        assert_eq!(bounds(&journal)[partition].3, next, "none of a refused append counts");
    }
    journal = bench.reopen(journal);
    assert_eq!(bounds(&journal)[1], ("t".into(), 1, 0, next));
    journal.trim(&[(topic("t"), 0, next), (topic("t"), 1, next)]).expect("healthy");
    journal.append(&[sized("t", 0, next, 1, BODY)]).expect("there is room again");
    assert_eq!(bounds(&journal), [("t".into(), 0, next, next + 1)]);
}

pub(super) fn keeps_thousands_of_partitions<B: Bench>() {
    const PARTITIONS: i32 = 3_000;
    let (mut bench, mut journal) = B::open(8 << 20);
    for round in 0..3 {
        let frames: Vec<_> = (0..PARTITIONS).map(|partition| frame("t", partition, round * 5, 5)).collect();
        journal.append(&frames).expect("room");
    }
    journal = bench.reopen(journal);
    let ranges = journal.ranges();
    assert_eq!(ranges.len(), 3_000);
    for (partition, range) in (0..PARTITIONS).zip(&ranges) {
        assert_eq!((range.partition, range.first, range.next), (partition, 0, 15));
    }
    let last = read_all(&mut journal, &ranges[2_999]);
    assert_eq!(last[2], joined(&frame("t", 2_999, 10, 5).packed));
    let confirmed: Vec<_> = (0..PARTITIONS - 1).map(|partition| (topic("t"), partition, 15)).collect();
    journal.trim(&confirmed).expect("healthy");
    assert_eq!(bounds(&journal), [("t".into(), 2_999, 0, 15)]);
}

/// What a random test does. Offsets are relative to the end of the partition.
#[derive(Debug, Clone)]
enum Op {
    /// Frames: partition, jump (0 joins), offsets, bytes of the body.
    Append(Vec<(Partition, i64, i64, usize)>),
    /// Confirms up to this share of what a partition holds, in tenths.
    Trim(Partition, i64),
    Discard(Partition),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let jump = prop_oneof![8 => Just(0), 1 => -20_i64..0, 1 => 1_i64..20];
    let bytes = prop_oneof![4 => 0_usize..200, 1 => 0_usize..20_000, 1 => Just(100_000)];
    let frames = proptest::collection::vec((0..4, jump, 1_i64..20, bytes), 1..8);
    prop_oneof![
        8 => frames.prop_map(Op::Append),
        4 => (0..4, 0_i64..12).prop_map(|(partition, tenths)| Op::Trim(partition, tenths)),
        1 => (0..4).prop_map(Op::Discard),
        2 => Just(Op::Reopen),
    ]
}

/// What a partition should hold: trimmed offset and frames; and where it ended, for the next frame.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) held: BTreeMap<Partition, (Offset, Vec<Packed>)>,
    pub(super) ends: BTreeMap<Partition, Offset>,
    discarded: Vec<(TopicName, Partition)>,
    confirmed: BTreeMap<Partition, Offset>,
}

impl Model {
    pub(super) fn append(&mut self, frames: &[JournalFrame]) {
        for JournalFrame { partition, packed, .. } in frames {
            let (trimmed, held) = self.held.entry(*partition).or_default();
            if held.last().is_none_or(|last| last.next_offset != packed.first_offset) {
                (*trimmed, *held) = (packed.first_offset, Vec::new());
                self.confirmed.remove(partition);
            }
            held.push(joined(packed));
            self.ends.insert(*partition, packed.next_offset);
            self.discarded.retain(|(_, discarded)| discarded != partition);
        }
    }

    pub(super) fn trim(&mut self, partition: Partition, offset: Offset) {
        if let Some((trimmed, held)) = self.held.get_mut(&partition) {
            *trimmed = offset.max(*trimmed);
            held.retain(|packed| packed.next_offset > *trimmed);
            self.confirmed.insert(partition, *trimmed);
            if held.is_empty() {
                self.held.remove(&partition);
            }
        }
    }

    pub(super) fn discard(&mut self, partition: Partition) {
        self.held.remove(&partition);
        self.confirmed.remove(&partition);
        self.discarded.push((topic("t"), partition));
    }

    /// What the owner tells a journal that was opened anew.
    pub(super) fn tell_again(&self, journal: &mut impl Journal) {
        let confirmed: Vec<_> = self.confirmed.iter().map(|(part, offset)| (topic("t"), *part, *offset)).collect();
        journal.trim(&confirmed).expect("healthy");
        journal.discard(&self.discarded).expect("healthy");
    }

    pub(super) fn compare(&self, journal: &mut impl Journal) {
        let ranges = journal.ranges();
        assert_eq!(ranges.len(), self.held.len(), "{ranges:?}");
        for (range, (partition, (trimmed, held))) in ranges.iter().zip(&self.held) {
            let next = held.last().expect("never empty").next_offset;
            assert_eq!((range.partition, range.first, range.next), (*partition, *trimmed, next));
            assert!(range.bytes > 0);
            assert_eq!(&read_all(journal, range), held);
        }
        assert_eq!(journal.usage().frame_bytes, ranges.iter().map(|range| range.bytes).sum::<u64>());
    }
}

pub(super) fn does_as_the_model<B: Bench>(cases: u32) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in proptest::collection::vec(op(), 1..40))| {
        let (mut bench, mut journal) = B::open(64 << 20);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Append(frames) => {
                    let mut ends = model.ends.clone();
                    let frames: Vec<_> = frames.into_iter().map(|(partition, jump, count, bytes)| {
                        let end = ends.entry(partition).or_insert(1_000);
                        let first = (*end + jump).max(0);
                        *end = first + count;
                        sized("t", partition, first, count, bytes)
                    }).collect();
                    journal.append(&frames).expect("room");
                    model.append(&frames);
                }
                Op::Trim(partition, tenths) => {
                    let Some((first, held)) = model.held.get(&partition) else { continue };
                    let next = held.last().expect("never empty").next_offset;
                    let offset = first + (next - first) * tenths / 10;
                    journal.trim(&[(topic("t"), partition, offset)]).expect("healthy");
                    model.trim(partition, offset);
                }
                Op::Discard(partition) => {
                    journal.discard(&[(topic("t"), partition)]).expect("healthy");
                    model.discard(partition);
                }
                Op::Reopen => {
                    journal = bench.reopen(journal);
                    model.tell_again(&mut journal);
                }
            }
            model.compare(&mut journal);
        }
    });
}

/// The suite for one journal.
macro_rules! suite {
    ($name:ident, $bench:ty, $cases:literal) => {
        mod $name {
            #[test]
            fn gives_back_what_was_appended() {
                super::gives_back_what_was_appended::<$bench>();
            }

            #[test]
            fn reads_from_within_a_frame_up_to_the_limit() {
                super::reads_from_within_a_frame_up_to_the_limit::<$bench>();
            }

            #[test]
            fn trims_what_is_confirmed() {
                super::trims_what_is_confirmed::<$bench>();
            }

            #[test]
            fn starts_a_new_run_where_frames_do_not_join() {
                super::starts_a_new_run_where_frames_do_not_join::<$bench>();
            }

            #[test]
            fn discards_what_is_not_wanted() {
                super::discards_what_is_not_wanted::<$bench>();
            }

            #[test]
            fn is_full_at_its_cap_and_goes_on_once_there_is_room() {
                super::is_full_at_its_cap_and_goes_on_once_there_is_room::<$bench>();
            }

            #[test]
            fn keeps_thousands_of_partitions() {
                super::keeps_thousands_of_partitions::<$bench>();
            }

            #[test]
            fn does_as_the_model() {
                super::does_as_the_model::<$bench>($cases);
            }
        }
    };
}

struct InMemory;

impl Bench for InMemory {
    type Journal = MemoryJournal;

    fn open(max_bytes: u64) -> (Self, MemoryJournal) {
        (Self, MemoryJournal::new(max_bytes))
    }

    fn reopen(&mut self, mut journal: MemoryJournal) -> MemoryJournal {
        journal.reopen();
        journal
    }
}

suite!(memory, super::InMemory, 256);

/// Segments in a temporary folder, small ones so that the suite meets their borders.
struct OnDisk {
    folder: tempfile::TempDir,
    limits: Limits,
}

impl Bench for OnDisk {
    type Journal = SegmentJournal;

    fn open(max_bytes: u64) -> (Self, SegmentJournal) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let limits = Limits { max_bytes: max_bytes * 2 + (1 << 20), segment_bytes: 1 << 20 };
        let (journal, lost) = SegmentJournal::open(folder.path(), limits).expect("a new journal");
        assert_eq!(lost, []);
        (Self { folder, limits }, journal)
    }

    fn reopen(&mut self, journal: SegmentJournal) -> SegmentJournal {
        drop(journal);
        let (journal, lost) = SegmentJournal::open(self.folder.path(), self.limits).expect("a healthy journal");
        assert_eq!(lost, []);
        journal
    }
}

suite!(segments, super::OnDisk, 32);
