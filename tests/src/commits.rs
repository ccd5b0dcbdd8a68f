//! What an agent hands to its journal while the link is down, for benchmarks of the journal by itself.

use std::path::Path;

use tombolo_agent::journal::{JournalFrame, Limits, SegmentJournal};
use tombolo_proto::frame::{Entry, Packed};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::testing::BatchBuilder;

/// Partitions that a commit has a frame of.
pub const PARTITIONS: i32 = 6;
/// Bytes of a batch.
const BATCH_BYTES: usize = 16 << 10;
/// Codec zstd, so that frames are not compressed again.
const COMPRESSED: u16 = 4;
const LIMITS: Limits = Limits { max_bytes: 8 << 30, segment_bytes: 256 << 20 };

/// Commits one after the other, with a frame of each partition. Batches count as compressed by their producer, so a frame
/// is not smaller than they are.
#[derive(Debug)]
pub struct Commits {
    topic: TopicName,
    /// The next frame of each partition.
    next: Vec<Packed>,
}

impl Commits {
    /// Commits of about so many bytes, at least a batch of each partition.
    pub fn new(bytes: usize) -> Self {
        let share = bytes / usize::try_from(PARTITIONS).expect("positive");
        let payload = BATCH_BYTES - BatchBuilder::new(0).bytes().len();
        let batch = |partition: Partition, offset: Offset| {
            let fill = u8::try_from((offset + i64::from(partition) * 40) % 251).expect("below 251");
            Entry::Batch(BatchBuilder::new(offset).attributes(COMPRESSED).payload(payload).fill(fill).build())
        };
        let count = i64::try_from((share / BATCH_BYTES).max(1)).expect("few");
        let frame = |partition| Packed::new(&(0..count).map(|offset| batch(partition, offset)).collect::<Vec<_>>());
        Self {
            topic: TopicName::new("plant.line-3").expect("a name that Kafka takes"),
            next: (0..PARTITIONS).map(frame).collect(),
        }
    }

    /// The topic of all frames.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Bytes of the bodies of one commit.
    pub fn bytes(&self) -> usize {
        self.next.iter().map(Packed::body_bytes).sum()
    }

    /// The next commit. A journal does not look into bodies: they are the same ones at later offsets.
    pub fn next_frames(&mut self) -> Vec<JournalFrame> {
        let topic = &self.topic;
        let frame = |(partition, next): (Partition, &mut Packed)| {
            let packed = next.clone();
            shift(next, packed.next_offset - packed.first_offset);
            JournalFrame { topic: topic.clone(), topic_id: None, partition, packed }
        };
        (0..PARTITIONS).zip(&mut self.next).map(frame).collect()
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
