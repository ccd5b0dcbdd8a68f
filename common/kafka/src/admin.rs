//! Calls that look at or change topics, outside the data path.

use std::sync::Arc;
use std::time::Duration;

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{ErrorCode, KafkaError};

/// A broker's refusal of one item of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{}", if message.is_some() { ": " } else { "" }, message.as_deref().unwrap_or(""))]
pub struct Refusal {
    /// Kafka's code.
    pub code: ErrorCode,
    /// What the broker adds.
    pub message: Option<Box<str>>,
}

/// Which offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// End of the leader's log, replicated or not (replica id -2). Give the leader epoch: without it a follower may
    /// answer.
    LogEnd,
    /// What a read_uncommitted consumer sees as the end.
    HighWatermark,
    /// What a read_committed consumer sees as the end.
    LastStable,
    /// First offset of the log.
    LogStart,
    /// First record with at least this timestamp (milliseconds since 1970); offset -1 where there is none.
    Timestamp(i64),
}

/// A partition whose offset is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetQuery {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Leader epoch from metadata, -1 where unknown.
    pub leader_epoch: i32,
}

/// An offset and the epoch it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionOffset {
    /// Offset.
    pub offset: i64,
    /// Leader epoch of the offset, -1 where unknown.
    pub leader_epoch: i32,
}

/// Answer for one partition.
#[derive(Debug, Clone)]
pub struct OffsetAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Its offset or the broker's error.
    pub result: Result<PartitionOffset, ErrorCode>,
}

/// Asks the leader `connection` for one kind of offset of several partitions. Answers come in the order asked.
pub async fn list_offsets(
    _connection: &Connection,
    _spec: OffsetSpec,
    _partitions: &[OffsetQuery],
) -> Result<Vec<OffsetAnswer>, KafkaError> {
    todo!()
}

/// What a partition's leader remembers of one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerState {
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub epoch: i32,
    /// Sequence of its last record, -1 where only markers were written.
    pub last_sequence: i32,
    /// Timestamp of its last batch, milliseconds since 1970.
    pub last_timestamp: i64,
    /// Epoch of the coordinator that wrote the last marker, -1 for none.
    pub coordinator_epoch: i32,
    /// First offset of the open transaction, `None` for none.
    pub current_txn_start_offset: Option<i64>,
}

/// Answer for one partition.
#[derive(Debug, Clone)]
pub struct ProducersAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Producers, or the broker's error.
    pub result: Result<Vec<ProducerState>, Refusal>,
}

/// Producer state of partitions led by `connection`'s broker. Answers come in the order asked.
pub async fn describe_producers(
    _connection: &Connection,
    _partitions: &[(Arc<str>, i32)],
) -> Result<Vec<ProducersAnswer>, KafkaError> {
    todo!()
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Name.
    pub name: Arc<str>,
    /// Partition count.
    pub partitions: i32,
    /// Replicas of each, `None` = the cluster's default (brokers since 2.4).
    pub replication_factor: Option<i16>,
    /// Settings other than the cluster's defaults.
    pub configs: Vec<(String, String)>,
}

/// Answer for one topic.
#[derive(Debug, Clone)]
pub struct TopicAnswer<T> {
    /// Topic.
    pub topic: Arc<str>,
    /// Result, or the broker's refusal.
    pub result: Result<T, Refusal>,
}

/// Makes topics, or with `validate_only` says whether it would. Send it to [`crate::Cluster::controller`]. A topic's
/// result is its id, where the broker tells. Answers come in the order asked.
pub async fn create_topics(
    _connection: &Connection,
    _topics: &[NewTopic],
    _validate_only: bool,
    _timeout: Duration,
) -> Result<Vec<TopicAnswer<Option<TopicId>>>, KafkaError> {
    todo!()
}

/// Raises partition counts to the totals given. Send it to [`crate::Cluster::controller`].
pub async fn create_partitions(
    _connection: &Connection,
    _totals: &[(Arc<str>, i32)],
    _timeout: Duration,
) -> Result<Vec<TopicAnswer<()>>, KafkaError> {
    todo!()
}

/// What has settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConfigResource {
    /// A topic; any broker answers.
    Topic(Arc<str>),
    /// A broker; only that broker answers.
    Broker(i32),
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// Set on the topic.
    Topic,
    /// Set on the broker while it ran.
    DynamicBroker,
    /// Set for all brokers while they ran.
    DynamicDefaultBroker,
    /// The broker's settings file.
    StaticBroker,
    /// Kafka's default.
    Default,
    /// Something newer than this list.
    Other(i8),
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Name.
    pub name: String,
    /// Value; none for sensitive ones.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: ConfigSource,
    /// Cannot be changed.
    pub read_only: bool,
    /// The broker hides the value.
    pub sensitive: bool,
}

impl ConfigEntry {
    /// Whether nobody set it on the topic itself.
    pub fn is_default(&self) -> bool {
        !matches!(self.source, ConfigSource::Topic)
    }
}

/// Answer for one resource.
#[derive(Debug, Clone)]
pub struct ConfigsAnswer {
    /// What was asked for.
    pub resource: ConfigResource,
    /// Its settings, or the broker's refusal.
    pub result: Result<Vec<ConfigEntry>, Refusal>,
}

/// Settings of topics and brokers; `names` limits them, `None` = all. Answers come in the order asked.
pub async fn describe_configs(
    _connection: &Connection,
    _resources: &[ConfigResource],
    _names: Option<&[&str]>,
) -> Result<Vec<ConfigsAnswer>, KafkaError> {
    todo!()
}
