//! Mirror topics in the cloud cluster: made with the source's shape, grown with it, checked where they are there already.

mod configs;
mod upkeep;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tombolo_kafka::admin::{self, ConfigChange, ConfigResource, NewTopic, Refusal};
use tombolo_kafka::cluster::Topic;
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::TopicName;
use tombolo_proto::wire::TopicConfig;

use crate::settings::RetentionSettings;
use crate::skip::{MarkerRight, MarkerRights};
use configs::{Dialect, Found};
pub(crate) use upkeep::{Kept, Upkeep};

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
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopicError {
    /// Try again later.
    #[error("{0}")]
    Unavailable(String),
    /// The mirror is FAILED.
    #[error("{0}")]
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
    retention: RetentionSettings,
    warned: Arc<Mutex<HashSet<(TopicName, &'static str)>>>,
    /// Whether the log says that the right to write markers is missing.
    told_right: Arc<AtomicBool>,
}

impl Topics {
    /// `max_batch` is the largest batch that a link may carry, in bytes.
    pub(crate) fn new(cluster: Cluster, max_batch: usize, retention: RetentionSettings) -> Self {
        Self { cluster, max_batch, retention, warned: Arc::default(), told_right: Arc::default() }
    }

    /// Makes the topic ready, or says why it is not; gives its partition count. Where `hold`, it keeps everything. `rights`
    /// are looked at where gaps take them. Sets `missing` where the cluster has no such topic, whatever comes of it.
    pub(crate) async fn prepare(
        &self,
        wanted: &Wanted,
        hold: bool,
        rights: Option<&MarkerRights>,
        missing: &mut bool,
    ) -> Result<i32, TopicError> {
        if let Some(rights) = rights {
            self.check_right(wanted, rights).await?;
        }
        let held = match self.look(wanted).await? {
            None => {
                *missing = true;
                self.create(wanted).await?;
                0
            }
            Some(topic) => {
                self.fit(wanted, hold).await?;
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
                // Another was faster: it is fitted like any that is there.
                ErrorCode::TOPIC_ALREADY_EXISTS => return Err(TopicError::Unavailable(refusal.to_string())),
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

    /// A compacted log has gaps, so it is no use to begin without the right to skip them. Any other may get some.
    async fn check_right(&self, wanted: &Wanted, rights: &MarkerRights) -> Result<(), TopicError> {
        let MarkerRight::Missing(reason) =
            rights.ask().await.map_err(|error| TopicError::Unavailable(error.to_string()))?
        else {
            return Ok(());
        };
        let policy = configs::policy(&wanted.configs);
        if configs::is_compacted(policy) {
            return Err(refused(format!(
                "the source topic has cleanup.policy={policy}, so its log has gaps, which take markers: {reason}"
            )));
        }
        if !self.told_right.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                reason,
                "mirrors will be FAILED at the first gap of their sources; a transaction's marker is one"
            );
        }
        Ok(())
    }

    /// Checks the configs of a topic that is there, and changes those that are the gateway's to see to.
    async fn fit(&self, wanted: &Wanted, hold: bool) -> Result<(), TopicError> {
        let Some(mut found) = self.configs(wanted, &configs::LOOKED_UP).await? else {
            return Ok(());
        };
        if let Some(change) = configs::misfit_policy(&wanted.configs, &found)
            && self.alter(wanted, vec![change]).await?.is_ok()
        {
            found.retain(|(name, _)| name != "cleanup.policy");
        }
        configs::check_existing(wanted.topic.as_str(), &wanted.configs, &found).map_err(TopicError::Failed)?;
        let changes = configs::before_appending(&wanted.configs, &found, hold);
        if let Err(error) = self.alter(wanted, changes).await? {
            self.warn_of_alter(wanted, &error);
        }
        Ok(())
    }

    /// Brings configs of a mirror topic where they are to be. An error is for people.
    pub(crate) async fn keep(&self, wanted: &Wanted, upkeep: Upkeep) -> Result<(), String> {
        let reason = |error: TopicError| error.to_string();
        let Some(found) = self.configs(wanted, &configs::LOOKED_UP).await.map_err(reason)? else {
            return Ok(());
        };
        let policy = configs::with_policy(&wanted.configs, &found);
        let steps = match upkeep {
            Upkeep::Policy => vec![policy],
            // Where the source keeps what it does not compact away, its retention would delete the mirror's.
            Upkeep::Release => vec![policy, configs::released(&wanted.configs, &found)],
            Upkeep::Hold => vec![configs::held(&found)],
        };
        for changes in steps {
            if let Err(error) = self.alter(wanted, changes).await.map_err(reason)? {
                self.warn_of_alter(wanted, &error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has a topic that may be compacted already take filler: some partition has still to start.
    pub(crate) async fn take_filler(&self, wanted: &Wanted) -> Result<(), TopicError> {
        let Some(found) = self.configs(wanted, &configs::LOOKED_UP).await? else {
            return Ok(());
        };
        let Some(changes) = configs::before_filler(&found, self.retention.hold) else {
            return Err(by_hand(wanted, "retention.hold is off, so the gateway does not change its cleanup.policy"));
        };
        self.alter(wanted, changes).await?.map_err(|refusal| by_hand(wanted, &refusal))
    }

    /// Changes configs; gives the refusal, which asking again would not change.
    async fn alter(&self, wanted: &Wanted, changes: Vec<ConfigChange>) -> Result<Result<(), String>, TopicError> {
        if changes.is_empty() {
            return Ok(Ok(()));
        }
        let controller = self.cluster.controller().await?;
        let all = [(ConfigResource::Topic(wanted.topic.shared()), changes.clone())];
        let answers = match admin::incremental_alter_configs(&controller, &all, false).await {
            Err(error) if is_unsupported(&error) => return Ok(Err(error.to_string())),
            answers => answers?,
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            Some(Err(refusal)) if refusal.code.retriable() => Err(TopicError::Unavailable(refusal.to_string())),
            Some(Err(refusal)) => Ok(Err(refusal.to_string())),
            Some(Ok(())) | None => {
                for change in changes {
                    tracing::info!(topic = %wanted.topic, change = shown(&change), "mirror topic changed");
                }
                Ok(Ok(()))
            }
        }
    }

    fn warn_of_alter(&self, wanted: &Wanted, reason: &str) {
        if self.is_first(wanted, "alter") {
            tracing::warn!(
                topic = %wanted.topic,
                reason,
                "configs of the mirror topic cannot be changed; the gateway needs ALTER_CONFIGS on it"
            );
        }
    }

    /// Whether this is the first time in the life of the process.
    fn is_first(&self, wanted: &Wanted, what: &'static str) -> bool {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert((wanted.topic.clone(), what))
    }

    /// Warns once in the life of the process of a mirror that may lose or delete what was confirmed.
    async fn warn_once(&self, wanted: &Wanted) {
        if !self.is_first(wanted, "configs") {
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
                // Where it is held, this broker has only not heard of it yet.
                ("retention.ms", Some(0..)) if !self.retention.hold => tracing::warn!(
                    topic = %wanted.topic,
                    retention_ms = number,
                    "mirror topic has a time retention: a backlog older than that is deleted on arrival"
                ),
                _ => {}
            }
        }
    }

    /// Values of some configs; `None` where the cluster does not tell.
    async fn configs(&self, wanted: &Wanted, names: &[&str]) -> Result<Option<Found>, TopicError> {
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

fn shown(change: &ConfigChange) -> String {
    match change {
        ConfigChange::Set { name, value } => format!("{name}={value}"),
        ConfigChange::Reset { name } => format!("{name} is the cluster's"),
    }
}

fn count(topic: &Topic) -> i32 {
    i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX)
}

/// A partition of a compacted topic must start above 0, and somebody else has to see to it.
fn by_hand(wanted: &Wanted, reason: &str) -> TopicError {
    let topic = &wanted.topic;
    refused(format!(
        "a partition of mirror topic {topic} holds nothing and has to start where its source does, which takes \
         cleanup.policy=delete until it has: {reason}. Set it by hand, without a limit to what is kept, then pause and resume \
         the mirror: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config \
         cleanup.policy=delete,retention.ms=-1,retention.bytes=-1"
    ))
}

fn refused(detail: String) -> TopicError {
    TopicError::Failed(Failure::of_topic(FailureCode::CloudRefused, detail))
}
