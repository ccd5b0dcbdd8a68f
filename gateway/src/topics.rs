//! Mirror topics in the cloud cluster: made with the source's shape, grown with it, checked where they are there already.

mod configs;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tombolo_kafka::admin::{self, ConfigResource, NewTopic, Refusal};
use tombolo_kafka::cluster::Topic;
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::TopicName;
use tombolo_proto::wire::TopicConfig;

use configs::Dialect;

/// For brokers to make or grow a topic.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);
/// For a new partition to get a leader, in looks of [`LOOK_EVERY`].
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a mirror topic must be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) topic: TopicName,
    pub(crate) partitions: i32,
    /// Configs of the source topic that are not the default.
    pub(crate) configs: Vec<TopicConfig>,
}

/// Why a mirror topic is not ready.
#[derive(Debug)]
pub(crate) enum TopicError {
    /// Try again later.
    Unavailable(String),
    /// The mirror is FAILED.
    Failed(Failure),
}

impl From<KafkaError> for TopicError {
    fn from(error: KafkaError) -> Self {
        if error.retriable() || error.is_ambiguous() {
            Self::Unavailable(error.to_string())
        } else {
            refused(error.to_string())
        }
    }
}

/// The cloud cluster's topics. Clones share what was warned about.
#[derive(Debug, Clone)]
pub(crate) struct Topics {
    cluster: Cluster,
    max_batch: usize,
    warned: Arc<Mutex<HashSet<TopicName>>>,
}

impl Topics {
    /// `max_batch` is the largest batch that a link may carry, in bytes.
    pub(crate) fn new(cluster: Cluster, max_batch: usize) -> Self {
        Self { cluster, max_batch, warned: Arc::default() }
    }

    /// Makes the topic ready, or says why it is not; gives its partition count.
    pub(crate) async fn prepare(&self, wanted: &Wanted) -> Result<i32, TopicError> {
        configs::check_source(&wanted.configs).map_err(TopicError::Failed)?;
        let held = match self.look(wanted).await? {
            None => {
                self.create(wanted).await?;
                0
            }
            Some(topic) => {
                self.check_configs(wanted).await?;
                count(&topic)
            }
        };
        if (1..wanted.partitions).contains(&held) {
            self.grow(wanted).await?;
        }
        let ready = self.wait_for_leaders(wanted).await?;
        self.warn_once(wanted).await;
        Ok(ready)
    }

    /// The topic as the cluster has it; `None` where it has none.
    async fn look(&self, wanted: &Wanted) -> Result<Option<Topic>, TopicError> {
        let seen = self.cluster.metadata(Some(&[wanted.topic.to_string()])).await?;
        let topic = seen.topics.into_iter().find(|topic| *topic.name == *wanted.topic.as_str());
        match topic.as_ref().and_then(|topic| topic.error) {
            None => Ok(topic),
            Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => Ok(None),
            Some(code) if code.retriable() => Err(TopicError::Unavailable(format!("{}: {code}", wanted.topic))),
            Some(code) => Err(refused(format!(
                "mirror topic {}: {code}; the gateway needs DESCRIBE, READ and WRITE on it",
                wanted.topic
            ))),
        }
    }

    async fn create(&self, wanted: &Wanted) -> Result<(), TopicError> {
        for dialect in [Dialect::Current, Dialect::Before36] {
            let Some(refusal) = self.create_in(wanted, dialect).await? else {
                tracing::info!(topic = %wanted.topic, partitions = wanted.partitions, "mirror topic made");
                return Ok(());
            };
            match refusal.code {
                ErrorCode::TOPIC_ALREADY_EXISTS => return Ok(()),
                ErrorCode::INVALID_CONFIG if dialect == Dialect::Current => {}
                code if code.retriable() => return Err(TopicError::Unavailable(refusal.to_string())),
                _ => {
                    let reason = format!("the cluster refuses to make mirror topic {}: {refusal}", wanted.topic);
                    return Err(refused(format!("{reason}; make it by hand: {}", self.create_command(wanted))));
                }
            }
        }
        Err(TopicError::Unavailable(format!("{} could not be made", wanted.topic)))
    }

    /// One try; the refusal, if there was one.
    async fn create_in(&self, wanted: &Wanted, dialect: Dialect) -> Result<Option<Refusal>, TopicError> {
        let new = NewTopic {
            name: wanted.topic.shared(),
            partitions: wanted.partitions,
            replication_factor: None,
            configs: configs::of_mirror(&wanted.configs, self.max_batch, dialect),
        };
        let controller = self.cluster.controller().await?;
        match admin::create_topics(&controller, &[new], false, ADMIN_TIMEOUT).await {
            Err(error) if is_unsupported(&error) => Err(refused(format!(
                "mirror topic {} is missing and {error}; make it by hand: {}",
                wanted.topic,
                self.create_command(wanted)
            ))),
            Err(error) => Err(error.into()),
            Ok(answers) => Ok(answers.into_iter().next().and_then(|answer| answer.result.err())),
        }
    }

    fn create_command(&self, wanted: &Wanted) -> String {
        let configs: Vec<String> = configs::of_mirror(&wanted.configs, self.max_batch, Dialect::Current)
            .into_iter()
            .map(|(name, value)| format!("--config {name}={value}"))
            .collect();
        format!(
            "kafka-topics.sh --create --topic {} --partitions {} {}",
            wanted.topic,
            wanted.partitions,
            configs.join(" ")
        )
    }

    async fn grow(&self, wanted: &Wanted) -> Result<(), TopicError> {
        let command = format!("kafka-topics.sh --alter --topic {} --partitions {}", wanted.topic, wanted.partitions);
        let by_hand = |reason: &dyn std::fmt::Display| {
            refused(format!("mirror topic {} cannot be grown: {reason}; grow it by hand: {command}", wanted.topic))
        };
        let controller = self.cluster.controller().await?;
        let totals = [(wanted.topic.shared(), wanted.partitions)];
        let answers = match admin::create_partitions(&controller, &totals, ADMIN_TIMEOUT).await {
            Err(error) if is_unsupported(&error) => return Err(by_hand(&error)),
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            // INVALID_PARTITIONS: another gateway was faster, or it has more than wanted; the next look tells.
            Some(Err(refusal)) if refusal.code == ErrorCode::INVALID_PARTITIONS => Ok(()),
            Some(Err(refusal)) if refusal.code.retriable() => Err(TopicError::Unavailable(refusal.to_string())),
            Some(Err(refusal)) => Err(by_hand(&refusal)),
            Some(Ok(())) | None => {
                tracing::info!(topic = %wanted.topic, partitions = wanted.partitions, "mirror topic grown");
                Ok(())
            }
        }
    }

    async fn wait_for_leaders(&self, wanted: &Wanted) -> Result<i32, TopicError> {
        let deadline = tokio::time::Instant::now() + LEADER_TIMEOUT;
        loop {
            let topic = self.look(wanted).await?;
            let found = topic.as_ref().map_or(0, count);
            let led = topic.iter().flat_map(|topic| &topic.partitions).all(|partition| partition.leader.is_some());
            if found >= wanted.partitions && led {
                return Ok(found);
            }
            if tokio::time::Instant::now() > deadline {
                let reason = format!("{} of {} partitions are there", found, wanted.partitions);
                return Err(TopicError::Unavailable(format!("{}: {reason}, not all have a leader", wanted.topic)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn check_configs(&self, wanted: &Wanted) -> Result<(), TopicError> {
        let Some(found) = self.configs(wanted, &configs::NEEDED.map(|(name, _)| name)).await? else {
            return Ok(());
        };
        let pairs = found.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        configs::check_existing(wanted.topic.as_str(), pairs).map_err(TopicError::Failed)
    }

    /// Warns once in the life of the process of a mirror that may lose or delete what was confirmed.
    async fn warn_once(&self, wanted: &Wanted) {
        let first = self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted.topic.clone());
        if !first {
            return;
        }
        let Ok(Some(found)) = self.configs(wanted, &["min.insync.replicas", "retention.ms"]).await else {
            return;
        };
        for (name, value) in found {
            let number = value.as_deref().and_then(|value| value.parse::<i64>().ok());
            match (name.as_str(), number) {
                ("min.insync.replicas", Some(..=1)) => tracing::warn!(
                    topic = %wanted.topic,
                    "mirror topic has min.insync.replicas=1: a confirmed record may be on one broker only"
                ),
                ("retention.ms", Some(0..)) => tracing::warn!(
                    topic = %wanted.topic,
                    retention_ms = number,
                    "mirror topic has a time retention: a backlog older than that is deleted on arrival"
                ),
                _ => {}
            }
        }
    }

    /// Values of some configs; `None` where the cluster does not tell.
    async fn configs(
        &self,
        wanted: &Wanted,
        names: &[&str],
    ) -> Result<Option<Vec<(String, Option<String>)>>, TopicError> {
        let resource = ConfigResource::Topic(wanted.topic.shared());
        let controller = self.cluster.controller().await?;
        let answers = match admin::describe_configs(&controller, &[resource], Some(names)).await {
            Err(error) if is_unsupported(&error) => return Ok(None),
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(entries)) => Ok(Some(entries.into_iter().map(|entry| (entry.name, entry.value)).collect())),
            Some(Err(refusal)) if refusal.code.retriable() => Err(TopicError::Unavailable(refusal.to_string())),
            // Without DESCRIBE_CONFIGS the broker's own answers to batches have to do.
            Some(Err(_)) | None => Ok(None),
        }
    }
}

fn is_unsupported(error: &KafkaError) -> bool {
    matches!(error.kind(), KafkaErrorKind::Unsupported { .. })
}

fn count(topic: &Topic) -> i32 {
    i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX)
}

fn refused(detail: String) -> TopicError {
    TopicError::Failed(Failure::of_topic(FailureCode::CloudRefused, detail))
}
