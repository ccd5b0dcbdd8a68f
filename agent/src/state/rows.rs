//! Values of the state file, as protobuf: a field may be added without another format.

use tombolo_proto::edge::{CheckpointMirror, CheckpointPartition};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::wire::{TailBatch, TopicConfig};

/// The filters of a checkpoint.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct FiltersRow {
    #[prost(string, repeated, tag = "1")]
    pub(super) filters: Vec<String>,
}

/// A mirror but for its topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct MirrorRow {
    #[prost(bytes = "vec", optional, tag = "1")]
    topic_id: Option<Vec<u8>>,
    #[prost(bool, tag = "2")]
    paused: bool,
    #[prost(int32, tag = "3")]
    partitions: Partition,
    #[prost(message, repeated, tag = "4")]
    configs: Vec<TopicConfig>,
    #[prost(bool, tag = "5")]
    failed: bool,
    #[prost(bool, tag = "6")]
    settled: bool,
}

impl MirrorRow {
    pub(super) fn of(mirror: &CheckpointMirror) -> Self {
        let CheckpointMirror { topic_id, paused, failed, settled, partitions, configs, .. } = mirror;
        Self {
            topic_id: topic_id.map(|id| id.to_vec()),
            paused: *paused,
            failed: *failed,
            settled: *settled,
            partitions: *partitions,
            configs: configs.clone(),
        }
    }

    /// `None` where the topic's id has another length.
    pub(super) fn mirror(self, topic: TopicName) -> Option<CheckpointMirror> {
        let topic_id = self.topic_id.map(|id| id.try_into().ok());
        let topic_id = if let Some(id) = topic_id { Some(id?) } else { None };
        let Self { paused, failed, settled, partitions, configs, .. } = self;
        Some(CheckpointMirror { topic, topic_id, paused, failed, settled, partitions, configs })
    }
}

/// A partition but for its topic and number.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct PartitionRow {
    #[prost(int64, tag = "1")]
    confirmed: Offset,
    #[prost(sint32, tag = "2")]
    last_epoch: i32,
    #[prost(message, repeated, tag = "3")]
    shipped: Vec<TailBatch>,
    #[prost(bool, tag = "4")]
    seen: bool,
}

impl PartitionRow {
    pub(super) fn of(partition: &CheckpointPartition) -> Self {
        let CheckpointPartition { confirmed, last_epoch, shipped, seen, .. } = partition;
        Self { confirmed: *confirmed, last_epoch: *last_epoch, shipped: shipped.clone(), seen: *seen }
    }

    pub(super) fn partition(self, topic: TopicName, partition: Partition) -> CheckpointPartition {
        let Self { confirmed, last_epoch, shipped, seen } = self;
        CheckpointPartition { topic, partition, confirmed, last_epoch, shipped, seen }
    }
}
