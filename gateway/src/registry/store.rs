//! The registry topic in the cluster: made where it is missing, its end, appends to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tombolo_kafka::admin::{self, NewTopic, OffsetQuery, OffsetSpec};
use tombolo_kafka::cluster::Leader;
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::produce::{self, ProduceBatch};
use tombolo_kafka::records::{self, Record, RecordsError, Writer};
use tombolo_kafka::{Cluster, Connection, KafkaError, TopicId};
use tombolo_proto::id::{Offset, REGISTRY_PRODUCER_ID};
use tombolo_proto::mirror::advance;

use crate::settings::RegistrySettings;

const PARTITION: i32 = 0;
/// For brokers to make the topic, and for its partition to get a leader.
const CREATE_TIMEOUT: Duration = Duration::from_secs(15);
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Replicas of the registry where the cluster has the brokers.
const REPLICAS: usize = 3;

/// Why the registry cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(
        "registry topic {topic} is missing and the cluster refuses to make it: {reason}; make it by hand: {command}"
    )]
    Missing { topic: Arc<str>, reason: String, command: String },
    #[error("registry topic {topic}: {code}")]
    Topic { topic: Arc<str>, code: ErrorCode },
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl StoreError {
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Kafka(error) => error.error_code(),
            Self::Topic { code, .. } => Some(*code),
            Self::Missing { .. } | Self::Records(_) => None,
        }
    }

    /// Whether it may go away by itself.
    pub(super) fn retriable(&self) -> bool {
        match self {
            Self::Kafka(error) => error.retriable(),
            Self::Topic { code, .. } => code.retriable(),
            Self::Missing { .. } | Self::Records(_) => false,
        }
    }
}

/// The topic's place in the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    cluster: Cluster,
    topic: Arc<str>,
    replication_factor: Option<i16>,
}

/// What the next append must fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) offset: Offset,
    sequence: i32,
}

impl Store {
    pub(crate) fn new(cluster: Cluster, settings: &RegistrySettings) -> Self {
        Self { cluster, topic: settings.topic.shared(), replication_factor: settings.replication_factor }
    }

    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Sees to it that the topic exists; gives its id where brokers tell.
    pub(crate) async fn ensure(&self) -> Result<Option<TopicId>, StoreError> {
        let deadline = tokio::time::Instant::now() + CREATE_TIMEOUT;
        let mut created = false;
        loop {
            let wanted = [self.topic.as_ref().to_owned()];
            let seen = self.cluster.metadata(Some(&wanted)).await?;
            let topic = seen.topics.iter().find(|topic| topic.name == self.topic);
            match topic {
                Some(topic) if topic.error.is_none() && !topic.partitions.is_empty() => return Ok(topic.topic_id),
                Some(topic) if topic.error != Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) && !created => {
                    let code = topic.error.unwrap_or(ErrorCode::LEADER_NOT_AVAILABLE);
                    if !code.retriable() {
                        return Err(self.topic_error(code));
                    }
                }
                Some(_) | None if !created => {
                    self.create(seen.brokers.len()).await?;
                    created = true;
                }
                Some(_) | None => {}
            }
            if tokio::time::Instant::now() > deadline {
                return Err(self.topic_error(ErrorCode::LEADER_NOT_AVAILABLE));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn create(&self, brokers: usize) -> Result<(), StoreError> {
        let factor = self.replication_factor.unwrap_or_else(|| i16::try_from(brokers.clamp(1, REPLICAS)).unwrap_or(1));
        let min_in_sync = if factor >= 2 { "2" } else { "1" };
        let configs = [
            ("cleanup.policy", "compact"),
            ("compression.type", "producer"),
            ("message.timestamp.type", "CreateTime"),
            ("min.insync.replicas", min_in_sync),
        ];
        let command = format!(
            "kafka-topics.sh --create --topic {} --partitions 1 --replication-factor {factor} {}",
            self.topic,
            configs.map(|(name, value)| format!("--config {name}={value}")).join(" ")
        );
        let missing =
            |reason: String| StoreError::Missing { topic: Arc::clone(&self.topic), reason, command: command.clone() };
        let new = NewTopic {
            name: Arc::clone(&self.topic),
            partitions: 1,
            replication_factor: Some(factor),
            configs: configs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        };
        let controller = self.cluster.controller().await?;
        let answers = match admin::create_topics(&controller, &[new], false, CREATE_TIMEOUT).await {
            Err(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }) => {
                return Err(missing(error.to_string()));
            }
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Err(refusal)) if refusal.code == ErrorCode::TOPIC_ALREADY_EXISTS => Ok(()),
            Some(Err(refusal)) if refusal.code.retriable() => Err(self.topic_error(refusal.code)),
            Some(Err(refusal)) => Err(missing(refusal.to_string())),
            Some(Ok(_)) | None => {
                tracing::info!(topic = %self.topic, replicas = factor, "registry topic made");
                Ok(())
            }
        }
    }

    pub(super) async fn leader(&self) -> Result<Leader, StoreError> {
        Ok(self.cluster.leader(&self.topic, PARTITION).await?)
    }

    pub(super) fn forget_leader(&self) {
        self.cluster.forget_leader(&self.topic, PARTITION);
    }

    /// A connection of the follower's own: a waiting Fetch holds back every later answer.
    pub(super) async fn connect(&self, leader: Leader) -> Result<Connection, StoreError> {
        Ok(self.cluster.connect(leader.broker).await?)
    }

    /// The log's end and the sequence that the broker takes there.
    pub(super) async fn end(&self) -> Result<End, StoreError> {
        let found = self.read_end().await;
        if found.is_err() {
            self.forget_leader();
        }
        found
    }

    async fn read_end(&self) -> Result<End, StoreError> {
        let leader = self.leader().await?;
        let connection = self.cluster.shared(leader.broker).await?;
        let query = OffsetQuery { topic: Arc::clone(&self.topic), partition: PARTITION, leader_epoch: leader.epoch };
        let answers = admin::list_offsets(&connection, OffsetSpec::LogEnd, &[query]).await?;
        let answer = answers.into_iter().next().map(|answer| answer.result);
        let offset = match answer {
            Some(Ok(found)) => found.offset,
            Some(Err(code)) => return Err(self.topic_error(code)),
            None => return Err(self.topic_error(ErrorCode::OFFSET_NOT_AVAILABLE)),
        };
        let sequence = match self.last_sequence(&connection).await? {
            Some(last) if last >= 0 => advance(last, 1),
            Some(_) => 0,
            None => i32::try_from(offset & i64::from(i32::MAX)).unwrap_or(0),
        };
        Ok(End { offset, sequence })
    }

    /// What the broker remembers of the registry's writers; `None` where it remembers nothing or cannot tell.
    async fn last_sequence(&self, connection: &Connection) -> Result<Option<i32>, StoreError> {
        let wanted = [(Arc::clone(&self.topic), PARTITION)];
        let answers = match admin::describe_producers(connection, &wanted).await {
            Err(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }) => return Ok(None),
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(producers)) => Ok(producers
                .iter()
                .find(|producer| producer.producer_id == REGISTRY_PRODUCER_ID)
                .map(|producer| producer.last_sequence)),
            Some(Err(refusal)) => Err(self.topic_error(refusal.code)),
            None => Ok(None),
        }
    }

    /// Appends one record if nobody else did since `end` was read. What became of it is seen by reading the topic: a
    /// success may be another writer's, an error may have appended.
    pub(super) async fn append(&self, key: Bytes, value: Bytes, end: End) -> Result<Offset, StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            offset: 0,
            timestamp: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            key: Some(key),
            value: Some(value),
            headers: Vec::new(),
        };
        let writer = Writer { producer_id: REGISTRY_PRODUCER_ID, epoch: 0, sequence: end.sequence };
        let batch = ProduceBatch {
            topic: Arc::clone(&self.topic),
            topic_id: None,
            partition: PARTITION,
            batch: records::encode_batch(&[record], writer)?,
        };
        let leader = self.leader().await?;
        let connection = self.cluster.shared(leader.broker).await?;
        let answers = produce::produce(&connection, vec![batch], PRODUCE_TIMEOUT).await?;
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(ack)) => Ok(ack.base_offset),
            Some(Err(code)) => Err(self.topic_error(code)),
            None => Err(self.topic_error(ErrorCode::UNKNOWN_SERVER_ERROR)),
        }
    }

    fn topic_error(&self, code: ErrorCode) -> StoreError {
        if code.refresh_metadata() {
            self.forget_leader();
        }
        StoreError::Topic { topic: Arc::clone(&self.topic), code }
    }
}
