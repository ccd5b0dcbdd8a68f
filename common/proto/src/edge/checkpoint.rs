//! What a site keeps over its own restarts, besides the journal.
//!
//! The mirror itself is the checkpoint; this is what lets a site go on in the dark, and prove at the next resume that
//! the mirror is the one it knows. An old checkpoint costs reading some records again, never a wrong byte.

use crate::id::{Offset, Partition, TopicName};
use crate::wire::{TailBatch, TopicConfig};

/// What to keep. Lists of mirrors and filters are whole; partitions are those that changed since the last one, or all of
/// them when it is given back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Topics that the gateway mirrors as they appear: names, or beginnings of names followed by `*`.
    pub filters: Vec<String>,
    /// Mirrors of the last Welcome.
    pub mirrors: Vec<CheckpointMirror>,
    /// Where partitions stand.
    pub partitions: Vec<CheckpointPartition>,
}

/// A mirror of the last Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointMirror {
    /// The source topic.
    pub topic: TopicName,
    /// Its id at the source, where the brokers tell one.
    pub topic_id: Option<[u8; 16]>,
    /// Whether the operator has paused it.
    pub paused: bool,
    /// Whether it is FAILED: not read in the dark.
    pub failed: bool,
    /// Whether its partitions were told a position, or begin at 0: a new one is read in the dark.
    pub settled: bool,
    /// Partitions of the source topic; 0 where it was not seen yet.
    pub partitions: Partition,
    /// Its configs that are not the default.
    pub configs: Vec<TopicConfig>,
}

/// Where a partition stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPartition {
    /// The source topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: Partition,
    /// Offset after the last one the cloud has.
    pub confirmed: Offset,
    /// Leader epoch of the last confirmed batch at the source; -1 where it is not known.
    pub last_epoch: i32,
    /// The last confirmed batches, at most 16.
    pub shipped: Vec<TailBatch>,
    /// Whether the source was read where the mirror ends: what it deletes from then on before it was read is lost.
    pub seen: bool,
}
