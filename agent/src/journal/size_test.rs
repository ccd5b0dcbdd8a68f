//! What a frame costs on the disk: bytes of files for a byte of bodies, over frames as the agent makes them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tombolo_proto::batch::Batch;
use tombolo_proto::frame::{Entry, Packed};
use tombolo_proto::testing::BatchBuilder;

use super::spec_test::topic;
use super::{Journal, JournalFrame, Limits, SegmentJournal};

/// Bodies written for each size.
const BYTES: u64 = 256 << 20;
/// Most bytes of files for a byte of bodies.
const MOST: f64 = 1.15;
const SEGMENT_BYTES: u64 = 256 << 20;
const COMMIT_BYTES: usize = 2 << 20;
const PARTITIONS: i32 = 6;
/// redb's header, and what rounds up to a page.
const SLACK_BYTES: u64 = 64 << 10;

/// Codec zstd, so that frames are not compressed again.
const COMPRESSED: u16 = 4;

fn batch(offset: i64, bytes: usize) -> Batch {
    let fill = u8::try_from(offset % 251).expect("below 251");
    BatchBuilder::new(offset).attributes(COMPRESSED).payload(bytes - 61).fill(fill).build()
}

/// A frame of as many batches as fit the target, at least one; takes the place of the partition along.
fn frame(partition: i32, next: &mut i64, batch_bytes: usize, target: usize) -> JournalFrame {
    let mut entries = Vec::new();
    for _ in 0..(target / batch_bytes).max(1) {
        entries.push(Entry::Batch(batch(*next, batch_bytes)));
        *next += 1;
    }
    JournalFrame {
        topic: topic("plant.line-3.measurements"),
        topic_id: Some([9; 16]),
        partition,
        packed: Packed::new(&entries),
    }
}

fn file_lengths(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").metadata().expect("a file").len()).collect()
}

/// Writes and reads; answers bytes of files for a byte of bodies.
#[expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "figures for people, far below 2^52")]
fn measure(batch_bytes: usize, target: usize) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let limits = Limits { max_bytes: 2 * BYTES + 2 * SEGMENT_BYTES, segment_bytes: SEGMENT_BYTES };
    let (mut journal, _) = SegmentJournal::open(folder.path(), limits).expect("a new journal");
    let mut next = vec![0; usize::try_from(PARTITIONS).expect("small")];
    let mut longest = 0;
    let mut written = Duration::ZERO;
    while journal.usage().written_bytes < BYTES {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        for partition in (0..PARTITIONS).cycle() {
            let at = &mut next[usize::try_from(partition).expect("small")];
            frames.push(frame(partition, at, batch_bytes, target));
            bytes += frames.last().expect("pushed").packed.body_bytes();
            if bytes >= COMMIT_BYTES {
                break;
            }
        }
        let begin = Instant::now();
        journal.append(&frames).expect("room");
        written += begin.elapsed();
        longest = file_lengths(folder.path()).into_iter().max().expect("a file").max(longest);
    }
    assert!(longest <= SEGMENT_BYTES + SEGMENT_BYTES / 16 + SLACK_BYTES, "a file of {longest} bytes");
    let bodies = journal.usage().written_bytes;
    assert_eq!(journal.usage().frame_bytes, bodies);
    let counted = journal.usage().file_bytes;
    drop(journal);
    let files: u64 = file_lengths(folder.path()).into_iter().sum();
    assert!(files <= counted + counted / 100, "{files} bytes of files, {counted} counted");

    let (mut journal, _) = SegmentJournal::open(folder.path(), limits).expect("a healthy journal");
    let begin = Instant::now();
    let mut read = 0;
    for range in journal.ranges() {
        let mut at = range.first;
        while at < range.next {
            for packed in journal.read(&range.topic, range.partition, at, 1 << 20).expect("it can be read") {
                at = packed.next_offset;
                read += packed.body_bytes() as u64;
            }
        }
    }
    assert_eq!(read, bodies);
    let rate = |time: Duration| bodies as f64 / 1e6 / time.as_secs_f64();
    let ratio = files as f64 / bodies as f64;
    println!(
        "batches of {batch_bytes}, frames of {target}: {ratio:.3} bytes of files for a byte, longest file {longest}, {:.0} MB/s written, {:.0} MB/s read",
        rate(written),
        rate(begin.elapsed()),
    );
    ratio
}

#[test]
fn files_are_hardly_larger_than_frames() {
    for (batch_bytes, target) in [(1_000, 64 << 10), (16_000, 64 << 10), (16_000, 1 << 20), (200_000, 64 << 10)] {
        let ratio = measure(batch_bytes, target);
        assert!(ratio <= MOST, "{ratio} bytes of files for a byte of {batch_bytes} byte batches");
    }
}
