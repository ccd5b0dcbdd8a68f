//! What an agent hands to its journal while the link is down, for benchmarks of the journal by itself.

use std::path::Path;

use tombolo_agent::journal::{JournalFrame, Limits, SegmentJournal};
use tombolo_proto::frame::{Entry, Packed};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::testing::BatchBuilder;

/// Partitions that a commit has frames of.
pub const PARTITIONS: i32 = 6;
/// Bytes of a batch.
const BATCH_BYTES: usize = 16 << 10;
/// Batches of a frame: an agent that has just begun makes frames of 64 KiB.
const FRAME_BATCHES: usize = 4;
/// Codec zstd, so that frames are not compressed again.
const COMPRESSED: u16 = 4;
const LIMITS: Limits = Limits { max_bytes: 8 << 30, segment_bytes: 256 << 20 };

/// Commits one after the other, with frames of each partition. Batches count as compressed by their producer, so a frame is
/// not smaller than they are.
#[derive(Debug)]
pub struct Commits {
    topic: TopicName,
    /// The next frames of each partition, side by side.
    next: Vec<(Partition, Packed)>,
    /// Offsets that a commit has of each partition.
    count: i64,
}

impl Commits {
    /// Commits of about so many bytes, at least a frame of each partition.
    pub fn new(bytes: usize) -> Self {
        let payload = BATCH_BYTES - BatchBuilder::new(0).bytes().len();
        let batch = |partition: Partition, offset: Offset| {
            let fill = u8::try_from((offset + i64::from(partition) * 40) % 251).expect("below 251");
            Entry::Batch(BatchBuilder::new(offset).attributes(COMPRESSED).payload(payload).fill(fill).build())
        };
        let share = bytes / usize::try_from(PARTITIONS).expect("positive");
        let frames = i64::try_from((share / BATCH_BYTES / FRAME_BATCHES).max(1)).expect("few");
        let batches = i64::try_from(FRAME_BATCHES).expect("few");
        let frame = |partition, number: i64| {
            let offsets = number * batches..(number + 1) * batches;
            (partition, Packed::new(&offsets.map(|offset| batch(partition, offset)).collect::<Vec<_>>()))
        };
        let of_partition = |partition| (0..frames).map(move |number| frame(partition, number));
        Self {
            topic: TopicName::new("plant.line-3").expect("a name that Kafka takes"),
            next: (0..PARTITIONS).flat_map(of_partition).collect(),
            count: frames * batches,
        }
    }

    /// The topic of all frames.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Bytes of the bodies of one commit.
    pub fn bytes(&self) -> usize {
        self.next.iter().map(|(_, packed)| packed.body_bytes()).sum()
    }

    /// The next commit. A journal does not look into bodies: they are the same ones at later offsets.
    pub fn next_frames(&mut self) -> Vec<JournalFrame> {
        let (topic, count) = (&self.topic, self.count);
        let frame = |(partition, next): &mut (Partition, Packed)| {
            let packed = next.clone();
            shift(next, count);
            JournalFrame { topic: topic.clone(), topic_id: None, partition: *partition, packed }
        };
        self.next.iter_mut().map(frame).collect()
    }
}

fn shift(packed: &mut Packed, count: i64) {
    packed.first_offset += count;
    packed.next_offset += count;
    for batch in &mut packed.tail {
        batch.base_offset += count;
        batch.last_offset += count;
    }
}

/// A new journal, with files as large as the settings have them.
pub fn journal(folder: &Path) -> SegmentJournal {
    SegmentJournal::open(folder, LIMITS).expect("an empty folder").0
}
