//! Calls that look at or change topics, outside the data path, and those that make offsets without records: markers,
//! deleted prefixes, empty transactions.

mod alter;
mod delete;
mod markers;
mod transactions;

pub use alter::{AlterAnswer, ConfigChange, incremental_alter_configs};
pub use delete::{DeleteAnswer, DeleteBefore, delete_records};
pub use markers::{MAX_MARKERS, MarkerRange, MarkerWriter, MarkersAnswer, send_txn_markers};
pub use transactions::{
    TransactionAnswer, TransactionalProducer, add_partitions_to_txn, end_txn, find_coordinator, init_producer_id,
};

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::describe_producers_response::ProducerState as WireProducerState;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DescribeConfigsRequest, DescribeConfigsResponse,
    DescribeProducersRequest, ListOffsetsRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError};
use crate::wire::{CORRELATION_BYTES, known_id, millis, text};

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
    /// What a `read_uncommitted` consumer sees as the end.
    HighWatermark,
    /// What a `read_committed` consumer sees as the end.
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
    connection: &Connection,
    spec: OffsetSpec,
    partitions: &[OffsetQuery],
) -> Result<Vec<OffsetAnswer>, KafkaError> {
    const API: Api = Api::ListOffsets;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    // Leader epochs came with v4; without them a log end may be a follower's.
    let oldest = if spec == OffsetSpec::LogEnd { 4 } else { 1 };
    let version = connection.version_since::<ListOffsetsRequest>(oldest, i16::MAX)?;
    let topics = by_topic(partitions.iter().map(|query| (&query.topic, query)))
        .into_iter()
        .map(|(name, queries)| {
            let asked = queries.into_iter().map(|query| {
                ListOffsetsPartition::default()
                    .with_partition_index(query.partition)
                    .with_current_leader_epoch(if version >= 4 { query.leader_epoch } else { -1 })
                    .with_timestamp(spec.timestamp())
            });
            ListOffsetsTopic::default().with_name(name).with_partitions(asked.collect())
        })
        .collect();
    let request = ListOffsetsRequest::default()
        .with_replica_id(spec.replica_id().into())
        .with_isolation_level(if version >= 2 { spec.isolation() } else { 0 })
        .with_topics(topics);
    let answer = connection.call(&request, version, connection.deadline(Duration::ZERO)).await?;
    let mut found = HashMap::new();
    for topic in &answer.topics {
        for partition in &topic.partitions {
            found.insert((topic.name.as_str(), partition.partition_index), partition);
        }
    }
    let answers = partitions
        .iter()
        .map(|query| {
            let missing = || KafkaError::answer(API, AnswerError::Missing).at(&query.topic, query.partition);
            let answer = found.remove(&(&*query.topic, query.partition)).ok_or_else(missing)?;
            let result = match ErrorCode::from_wire(answer.error_code) {
                None => Ok(PartitionOffset { offset: answer.offset, leader_epoch: answer.leader_epoch }),
                Some(code) => Err(code),
            };
            Ok(OffsetAnswer { topic: Arc::clone(&query.topic), partition: query.partition, result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

impl OffsetSpec {
    /// `ListOffsetsRequest.LATEST_TIMESTAMP`, `EARLIEST_TIMESTAMP`.
    fn timestamp(self) -> i64 {
        match self {
            Self::LogEnd | Self::HighWatermark | Self::LastStable => -1,
            Self::LogStart => -2,
            Self::Timestamp(millis) => millis,
        }
    }

    /// `ListOffsetsRequest.DEBUGGING_REPLICA_ID`, `CONSUMER_REPLICA_ID`.
    fn replica_id(self) -> i32 {
        match self {
            Self::LogEnd => -2,
            Self::HighWatermark | Self::LastStable | Self::LogStart | Self::Timestamp(_) => -1,
        }
    }

    fn isolation(self) -> i8 {
        i8::from(self == Self::LastStable)
    }
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
    connection: &Connection,
    partitions: &[(Arc<str>, i32)],
) -> Result<Vec<ProducersAnswer>, KafkaError> {
    const API: Api = Api::DescribeProducers;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let version = connection.version::<DescribeProducersRequest>(i16::MAX)?;
    let topics = by_topic(partitions.iter().map(|(topic, partition)| (topic, *partition)))
        .into_iter()
        .map(|(name, indexes)| TopicRequest::default().with_name(name).with_partition_indexes(indexes))
        .collect();
    let request = DescribeProducersRequest::default().with_topics(topics);
    let answer = connection.call(&request, version, connection.deadline(Duration::ZERO)).await?;
    let mut found = HashMap::new();
    for topic in &answer.topics {
        for partition in &topic.partitions {
            found.insert((topic.name.as_str(), partition.partition_index), partition);
        }
    }
    let answers = partitions
        .iter()
        .map(|(topic, partition)| {
            let missing = || KafkaError::answer(API, AnswerError::Missing).at(topic, *partition);
            let answer = found.remove(&(&**topic, *partition)).ok_or_else(missing)?;
            let result = refused(answer.error_code, answer.error_message.as_ref())
                .map(|()| answer.active_producers.iter().map(read_producer).collect());
            Ok(ProducersAnswer { topic: Arc::clone(topic), partition: *partition, result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

fn read_producer(state: &WireProducerState) -> ProducerState {
    ProducerState {
        producer_id: state.producer_id.0,
        epoch: state.producer_epoch,
        last_sequence: state.last_sequence,
        last_timestamp: state.last_timestamp,
        coordinator_epoch: state.coordinator_epoch,
        current_txn_start_offset: Some(state.current_txn_start_offset).filter(|offset| *offset >= 0),
    }
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
    connection: &Connection,
    topics: &[NewTopic],
    validate_only: bool,
    timeout: Duration,
) -> Result<Vec<TopicAnswer<Option<TopicId>>>, KafkaError> {
    const API: Api = Api::CreateTopics;
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    // "The cluster's default replication" came with v4 (KIP-464).
    let oldest = if topics.iter().any(|topic| topic.replication_factor.is_none()) { 4 } else { 2 };
    let version = connection.version_since::<CreateTopicsRequest>(oldest, i16::MAX)?;
    let wanted = topics.iter().map(|topic| {
        let configs = topic
            .configs
            .iter()
            .map(|(name, value)| CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value))));
        CreatableTopic::default()
            .with_name(TopicName(text(&topic.name)))
            .with_num_partitions(topic.partitions)
            .with_replication_factor(topic.replication_factor.unwrap_or(-1))
            .with_configs(configs.collect())
    });
    let request = CreateTopicsRequest::default()
        .with_topics(wanted.collect())
        .with_timeout_ms(millis(timeout))
        .with_validate_only(validate_only);
    let answer = connection.call(&request, version, connection.deadline(timeout)).await?;
    let mut found: HashMap<_, _> = answer.topics.iter().map(|topic| (topic.name.as_str(), topic)).collect();
    let answers = topics
        .iter()
        .map(|topic| {
            let answer = found.remove(&*topic.name).ok_or_else(|| missing_topic(API, &topic.name))?;
            let id = known_id(answer.topic_id.into_bytes());
            let result = refused(answer.error_code, answer.error_message.as_ref()).map(|()| id);
            Ok(TopicAnswer { topic: Arc::clone(&topic.name), result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

/// Raises partition counts to the totals given. Send it to [`crate::Cluster::controller`].
pub async fn create_partitions(
    connection: &Connection,
    totals: &[(Arc<str>, i32)],
    timeout: Duration,
) -> Result<Vec<TopicAnswer<()>>, KafkaError> {
    const API: Api = Api::CreatePartitions;
    if totals.is_empty() {
        return Ok(Vec::new());
    }
    let version = connection.version::<CreatePartitionsRequest>(i16::MAX)?;
    let wanted = totals.iter().map(|(topic, total)| {
        CreatePartitionsTopic::default().with_name(TopicName(text(topic))).with_count(*total).with_assignments(None)
    });
    let request = CreatePartitionsRequest::default().with_topics(wanted.collect()).with_timeout_ms(millis(timeout));
    let answer = connection.call(&request, version, connection.deadline(timeout)).await?;
    let mut found: HashMap<_, _> = answer.results.iter().map(|topic| (topic.name.as_str(), topic)).collect();
    let answers = totals
        .iter()
        .map(|(topic, _)| {
            let answer = found.remove(&**topic).ok_or_else(|| missing_topic(API, topic))?;
            let result = refused(answer.error_code, answer.error_message.as_ref());
            Ok(TopicAnswer { topic: Arc::clone(topic), result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
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
    connection: &Connection,
    resources: &[ConfigResource],
    names: Option<&[&str]>,
) -> Result<Vec<ConfigsAnswer>, KafkaError> {
    if resources.is_empty() {
        return Ok(Vec::new());
    }
    let (version, answer) = ask_configs(connection, resources, names).await?;
    read_configs(resources, &connection.decode::<DescribeConfigsRequest>(answer, version)?)
}

/// Stands for an answer's bytes. A hash of 64 bits: of answers that differ, one in 2^64 passes for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerDigest(u64);

/// All settings of `resources`, at least one, unless the broker answers byte for byte what it did when `before` was
/// taken of the same: `None` then. Settings seldom change, and reading thousands of them is most of what asking costs.
pub async fn describe_configs_again(
    connection: &Connection,
    resources: &[ConfigResource],
    before: Option<AnswerDigest>,
) -> Result<Option<(AnswerDigest, Vec<ConfigsAnswer>)>, KafkaError> {
    let (version, answer) = ask_configs(connection, resources, None).await?;
    let mut hasher = DefaultHasher::new();
    hasher.write(answer.get(CORRELATION_BYTES..).unwrap_or_default());
    let digest = AnswerDigest(hasher.finish());
    if before == Some(digest) {
        return Ok(None);
    }
    let answers = read_configs(resources, &connection.decode::<DescribeConfigsRequest>(answer, version)?)?;
    Ok(Some((digest, answers)))
}

async fn ask_configs(
    connection: &Connection,
    resources: &[ConfigResource],
    names: Option<&[&str]>,
) -> Result<(i16, Bytes), KafkaError> {
    let version = connection.version::<DescribeConfigsRequest>(i16::MAX)?;
    let wanted = resources.iter().map(|resource| {
        let (kind, name) = resource.on_wire();
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(&name))
            .with_configuration_keys(names.map(|names| names.iter().map(|name| text(name)).collect()))
    });
    let request = DescribeConfigsRequest::default().with_resources(wanted.collect());
    let answer = connection.call_undecoded(&request, version, connection.deadline(Duration::ZERO)).await?;
    Ok((version, answer))
}

fn read_configs(
    resources: &[ConfigResource],
    answer: &DescribeConfigsResponse,
) -> Result<Vec<ConfigsAnswer>, KafkaError> {
    const API: Api = Api::DescribeConfigs;
    let mut found: HashMap<_, _> = answer
        .results
        .iter()
        .map(|result| ((result.resource_type, result.resource_name.to_string()), result))
        .collect();
    let answers = resources
        .iter()
        .map(|resource| {
            let answer =
                found.remove(&resource.on_wire()).ok_or_else(|| KafkaError::answer(API, AnswerError::Missing))?;
            let result = refused(answer.error_code, answer.error_message.as_ref())
                .map(|()| answer.configs.iter().map(read_config).collect());
            Ok(ConfigsAnswer { resource: resource.clone(), result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

impl ConfigResource {
    /// `org.apache.kafka.common.config.ConfigResource.Type`, and the name.
    fn on_wire(&self) -> (i8, String) {
        match self {
            Self::Topic(name) => (2, name.to_string()),
            Self::Broker(id) => (4, id.to_string()),
        }
    }
}

fn read_config(config: &DescribeConfigsResourceResult) -> ConfigEntry {
    ConfigEntry {
        name: config.name.to_string(),
        value: config.value.as_ref().map(ToString::to_string),
        // `org.apache.kafka.common.requests.DescribeConfigsResponse.ConfigSource`
        source: match config.config_source {
            1 => ConfigSource::Topic,
            2 => ConfigSource::DynamicBroker,
            3 => ConfigSource::DynamicDefaultBroker,
            4 => ConfigSource::StaticBroker,
            5 => ConfigSource::Default,
            other => ConfigSource::Other(other),
        },
        read_only: config.read_only,
        sensitive: config.is_sensitive,
    }
}

fn refused(code: i16, message: Option<&StrBytes>) -> Result<(), Refusal> {
    match ErrorCode::from_wire(code) {
        None => Ok(()),
        Some(code) => Err(Refusal { code, message: message.map(|message| Box::from(message.as_str())) }),
    }
}

/// Groups items by topic, topics in the order in which they come first.
fn by_topic<'a, T>(items: impl IntoIterator<Item = (&'a Arc<str>, T)>) -> Vec<(TopicName, Vec<T>)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut topics: Vec<(TopicName, Vec<T>)> = Vec::new();
    for (topic, item) in items {
        let place = *places.entry(topic).or_insert(topics.len());
        match topics.get_mut(place) {
            Some((_, items)) => items.push(item),
            None => topics.push((TopicName(text(topic)), vec![item])),
        }
    }
    topics
}

fn missing_topic(api: Api, topic: &Arc<str>) -> KafkaError {
    KafkaError::answer(api, AnswerError::Missing).about(topic)
}

fn nothing_left<K, V>(api: Api, found: &HashMap<K, V>) -> Result<(), KafkaError> {
    if found.is_empty() { Ok(()) } else { Err(KafkaError::answer(api, AnswerError::Unasked)) }
}

#[cfg(test)]
#[path = "admin/admin_test.rs"]
mod tests;
