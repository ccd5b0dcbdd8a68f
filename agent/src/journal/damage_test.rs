//! Damage stays in its segment, and what it costs is told; a segment of a newer release and a folder in use are refused.

use redb::{Database, ReadableDatabase};
use tombolo_proto::frame::{Entry, Packed};
use tombolo_proto::id::{Offset, Partition};

use super::crash_disk::{CrashDisk, Fault};
use super::segments::segment_name;
use super::spec_test::{frame, joined, read_all, sized, topic};
use super::{Disk, Journal, JournalError, JournalFrame, Limits, LostRange, SegmentJournal};

const LIMITS: Limits = Limits { max_bytes: 32 << 20, segment_bytes: 1 << 20 };
const BODY: usize = 30_000;
/// Frames of the partition; a segment takes about 30 of them.
const FRAMES: Offset = 100;

type OnCrashDisk = SegmentJournal<CrashDisk>;

fn open(disk: &CrashDisk) -> (OnCrashDisk, Vec<LostRange>) {
    SegmentJournal::open_on(disk.clone(), LIMITS).expect("opened")
}

/// A journal of one partition over several segments, and where each of them begins.
fn filled(disk: &CrashDisk) -> (OnCrashDisk, Vec<Offset>) {
    let (mut journal, _) = open(disk);
    let mut begins = Vec::new();
    for at in 0..FRAMES {
        journal.append(&[sized("t", 0, at, 1, BODY)]).expect("room");
        if journal.usage().segments > begins.len() {
            begins.push(at);
        }
    }
    assert!(begins.len() >= 4, "{begins:?}");
    (journal, begins)
}

fn range(journal: &OnCrashDisk) -> Option<(Offset, Offset)> {
    journal.ranges().first().map(|range| (range.first, range.next))
}

fn lost(first: Offset, next: Option<Offset>) -> Vec<LostRange> {
    vec![LostRange { topic: topic("t"), partition: 0, first, next }]
}

/// Reads on until damage is met.
fn read_to_damage(journal: &mut OnCrashDisk) -> JournalError {
    let mut at = 0;
    loop {
        match journal.read(&topic("t"), 0, at, 100_000) {
            Ok(frames) => at = frames.last().expect("damage comes before the end").next_offset,
            Err(error) => return error,
        }
    }
}

/// Noise where bodies are; the index of so few frames is at the ends of the file.
fn damage_bodies(disk: &CrashDisk, segment: u64) {
    disk.damage(&segment_name(segment), |file| {
        let middle = file.len() / 2;
        file[middle..middle + 40_000].fill(0xa5);
    });
}

fn damage_header(disk: &CrashDisk, segment: u64) {
    disk.damage(&segment_name(segment), |file| file[..4096].fill(0xa5));
}

fn names(disk: &CrashDisk, ending: &str) -> Vec<String> {
    disk.list().expect("healthy").into_iter().filter(|name| name.ends_with(ending)).collect()
}

fn assert_reads_all(journal: &mut OnCrashDisk) {
    for range in journal.ranges() {
        for packed in read_all(journal, &range) {
            assert_eq!(packed, joined(&sized("t", 0, packed.first_offset, 1, BODY).packed));
        }
    }
}

#[test]
fn damage_met_while_reading_costs_its_segment() {
    let disk = CrashDisk::new();
    let (mut journal, begins) = filled(&disk);
    let files = journal.usage().file_bytes;
    damage_bodies(&disk, 1);
    let error = read_to_damage(&mut journal);
    let JournalError::Damaged { cause, lost: told } = error else { panic!("{error}") };
    assert!(cause.contains(&segment_name(1)), "{cause}");
    assert_eq!(told, lost(begins[1], Some(FRAMES)), "what is behind is fetched again, too");
    assert_eq!(range(&journal), Some((0, begins[1])));
    assert_eq!((journal.usage().damaged_segments, names(&disk, ".damaged").len()), (1, 1));
    assert!(journal.usage().file_bytes >= files, "damaged files count");
    assert_reads_all(&mut journal);

    // Fetched again from the hole on.
    for at in begins[1]..FRAMES + 5 {
        journal.append(&[sized("t", 0, at, 1, BODY)]).expect("room");
        assert_eq!(range(&journal), Some((0, at + 1)));
    }
    assert_reads_all(&mut journal);
    drop(journal);
    let (mut journal, told) = open(&disk);
    assert_eq!((told, range(&journal)), (vec![], Some((0, FRAMES + 5))));
    assert_reads_all(&mut journal);
}

#[test]
fn damage_met_while_opening_costs_its_segment() {
    let disk = CrashDisk::new();
    let (journal, begins) = filled(&disk);
    drop(journal);
    damage_header(&disk, 1);
    for round in 0..2 {
        let (mut journal, told) = open(&disk);
        assert_eq!(told, lost(begins[1], Some(FRAMES)), "round {round}");
        assert_eq!(range(&journal), Some((0, begins[1])));
        assert_eq!(journal.usage().damaged_segments, 1 - round);
        assert_reads_all(&mut journal);
    }
}

#[test]
fn frames_behind_damage_are_there_once_the_rest_is_confirmed() {
    let disk = CrashDisk::new();
    let (journal, begins) = filled(&disk);
    drop(journal);
    damage_header(&disk, 1);
    let (mut journal, _) = open(&disk);
    journal.trim(&[(topic("t"), 0, begins[2] + 3)]).expect("healthy");
    assert_eq!(range(&journal), Some((begins[2] + 3, FRAMES)), "the damaged ones were confirmed");
    assert_reads_all(&mut journal);
}

#[test]
fn damaged_ends_are_told() {
    let disk = CrashDisk::new();
    let (journal, begins) = filled(&disk);
    drop(journal);
    let last = u64::try_from(begins.len() - 1).expect("small");
    let copy = disk.healthy_copy();
    damage_header(&copy, last);
    let (journal, told) = open(&copy);
    assert_eq!(told, lost(begins[begins.len() - 1], None), "where it ended is not known");
    assert_eq!(range(&journal), Some((0, begins[begins.len() - 1])));

    damage_header(&disk, 0);
    let (journal, told) = open(&disk);
    assert_eq!(told, lost(0, Some(begins[1])));
    assert_eq!(range(&journal), Some((begins[1], FRAMES)), "nothing lies before the hole");
}

#[test]
fn segment_that_cannot_be_read_is_left_for_another_try() {
    let disk = CrashDisk::new();
    let (journal, begins) = filled(&disk);
    drop(journal);
    disk.set_unreadable(Some(&segment_name(1)));
    let (journal, told) = open(&disk);
    assert_eq!(told, lost(begins[1], Some(FRAMES)));
    assert_eq!(range(&journal), Some((0, begins[1])));
    assert!(names(&disk, ".damaged").is_empty());
    drop(journal);
    disk.set_unreadable(None);
    let (mut journal, told) = open(&disk);
    assert_eq!((told, range(&journal)), (vec![], Some((0, FRAMES))));
    assert_reads_all(&mut journal);
}

#[test]
fn any_page_of_noise_is_survived() {
    let disk = CrashDisk::new();
    let (journal, _) = filled(&disk);
    drop(journal);
    let mut length = 0;
    disk.damage(&segment_name(1), |file| length = file.len());
    let mut noticed = 0;
    for page in 0..length / 4096 {
        let copy = disk.healthy_copy();
        copy.damage(&segment_name(1), |file| file[page * 4096..][..4096].fill(0x5a));
        let (mut journal, told) = open(&copy);
        let mut damaged = !told.is_empty();
        let mut at = 0;
        while let Some((_, next)) = range(&journal).filter(|(_, next)| at < *next) {
            match journal.read(&topic("t"), 0, at, 100_000) {
                Ok(frames) => at = frames.last().expect("within the range").next_offset,
                Err(JournalError::Damaged { .. }) => damaged = true,
                Err(error) => panic!("page {page}, {at} of {next}: {error}"),
            }
        }
        assert_reads_all(&mut journal);
        noticed += usize::from(damaged);
    }
    assert!(noticed * 10 > length / 4096 * 7, "only {noticed} of {} pages were missed", length / 4096);
}

#[test]
fn few_damaged_files_are_kept() {
    let disk = CrashDisk::new();
    let (journal, begins) = filled(&disk);
    drop(journal);
    for segment in 0..begins.len() as u64 {
        damage_header(&disk, segment);
    }
    let (mut journal, told) = open(&disk);
    assert_eq!((told, range(&journal)), (vec![], None), "nobody knows what it was");
    assert_eq!(journal.usage().damaged_segments, begins.len() as u64);
    assert_eq!(names(&disk, ".damaged").len(), 3);
    assert_eq!(names(&disk, ".redb"), Vec::<String>::new());
    journal.append(&[frame("t", 0, 7, 1)]).expect("it goes on");
    assert_eq!(range(&journal), Some((7, 8)));
}

#[test]
fn merging_meets_damage() {
    let disk = CrashDisk::new();
    let (mut journal, _) = open(&disk);
    let mut at = 0;
    while journal.usage().segments < 4 {
        journal.append(&[sized("t", 0, at, 1, BODY), frame("t", 1, at, 1)]).expect("room");
        at += 1;
    }
    disk.damage(&segment_name(0), |file| file[8192..].fill(0x5a));
    let told = loop {
        match journal.trim(&[(topic("t"), 0, at)]) {
            Ok(()) => assert!(journal.usage().segments > 1, "merged without notice"),
            Err(JournalError::Damaged { lost, .. }) => break lost,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(told.iter().map(|lost| (lost.partition, lost.first)).collect::<Vec<(Partition, Offset)>>(), [(1, 0)]);
    journal.trim(&[]).expect("it goes on");
    let ranges = journal.ranges();
    assert_eq!((ranges.len(), ranges[0].next), (1, at));
    assert_eq!(read_all(&mut journal, &ranges[0]).len() as u64, (at - ranges[0].first).unsigned_abs());
}

#[test]
fn full_disk_is_told_before_anything_is_written() {
    let disk = CrashDisk::new();
    let (mut journal, _) = filled(&disk);
    disk.set_free_bytes(100_000);
    let operations = disk.operations();
    let error = journal.append(&[sized("t", 0, FRAMES, 1, BODY)]).expect_err("no room");
    assert!(matches!(error, JournalError::Full { disk: true, .. }), "{error}");
    assert!(error.to_string().contains("the disk has no room"), "{error}");
    assert_eq!(disk.operations(), operations, "nothing was written");
    disk.set_free_bytes(10 << 20);
    journal.append(&[sized("t", 0, FRAMES, 1, BODY)]).expect("it goes on by itself");
    assert_eq!(range(&journal), Some((0, FRAMES + 1)));
}

#[test]
fn no_room_for_a_repair_loses_nothing() {
    let disk = CrashDisk::new();
    let (journal, _) = filled(&disk);
    // Not closed.
    let disk = disk.healthy_copy();
    drop(journal);
    disk.fault(Fault::NoRoom(0));
    let error = SegmentJournal::open_on(disk.clone(), LIMITS).expect_err("it must be repaired");
    assert!(matches!(error, JournalError::Unusable { .. }), "{error}");
    disk.fault(Fault::None);
    let (mut journal, told) = open(&disk);
    assert_eq!((told, range(&journal)), (vec![], Some((0, FRAMES))));
    assert_reads_all(&mut journal);
}

#[test]
fn nothing_is_left_after_a_drain() {
    let disk = CrashDisk::new();
    let (mut journal, _) = filled(&disk);
    journal.trim(&[(topic("t"), 0, FRAMES)]).expect("healthy");
    assert!(disk.list().expect("healthy").is_empty());
    assert_eq!(journal.usage().file_bytes, 0);
}

#[test]
fn newer_format_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut journal, _) = SegmentJournal::open(folder.path(), LIMITS).expect("new");
    journal.append(&[frame("t", 0, 0, 1)]).expect("room");
    drop(journal);
    let db = Database::open(folder.path().join(segment_name(0))).expect("a segment");
    let transaction = db.begin_write().expect("healthy");
    transaction.open_table(super::schema::META).expect("there").insert("format", 3).expect("healthy");
    transaction.commit().expect("healthy");
    drop(db);
    let error = SegmentJournal::open(folder.path(), LIMITS).expect_err("newer");
    assert_eq!(error, JournalError::Version { file: segment_name(0), found: 3, known: 2 });
    assert!(error.to_string().contains("00000000000000000000.redb has format 3"), "{error}");
    assert!(folder.path().join(segment_name(0)).exists(), "left as it is");
}

#[test]
fn a_release_before_gaps_reads_what_has_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let format = || {
        let db = Database::open(folder.path().join(segment_name(0))).expect("a segment");
        let meta = db.begin_read().expect("healthy").open_table(super::schema::META).expect("there");
        meta.get("format").expect("healthy").map(|format| format.value())
    };
    let append = |frame: &JournalFrame| {
        let (mut journal, _) = SegmentJournal::open(folder.path(), LIMITS).expect("healthy");
        journal.append(std::slice::from_ref(frame)).expect("room");
    };
    append(&frame("t", 0, 0, 1));
    assert_eq!(format(), Some(1));
    let gap = Packed::new(&[Entry::Gap { offset: 1, count: 4 }]);
    append(&JournalFrame { packed: gap.clone(), ..frame("t", 0, 1, 4) });
    assert_eq!(format(), Some(2));
    let (mut journal, lost) = SegmentJournal::open(folder.path(), LIMITS).expect("healthy");
    let read = journal.read(&topic("t"), 0, 3, 1).expect("there");
    assert_eq!((read.first().map(|packed| packed.tail.clone()), lost), (Some(gap.tail), Vec::new()));
}

#[test]
fn folder_in_use_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (journal, _) = SegmentJournal::open(folder.path(), LIMITS).expect("new");
    let error = SegmentJournal::open(folder.path(), LIMITS).expect_err("in use");
    assert_eq!(error, JournalError::InUse { lock: folder.path().join("lock") });
    assert!(error.to_string().contains("another agent uses the journal"), "{error}");
    drop(journal);
    SegmentJournal::open(folder.path(), LIMITS).expect("free again");
}
