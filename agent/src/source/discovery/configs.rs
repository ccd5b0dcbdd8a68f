//! What is told of topics' configs, and remembered of them from look to look.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use tombolo_kafka::admin::{AnswerDigest, ConfigEntry, ConfigResource, ConfigSource, describe_configs_again};
use tombolo_kafka::cluster::Topic;
use tombolo_kafka::error::KafkaErrorKind;
use tombolo_kafka::{Connection, KafkaError};
use tombolo_proto::edge::{Retention, SourceTopic};
use tombolo_proto::id::{Partition, TopicName};
use tombolo_proto::limits::{MAX_CONFIGS, MAX_PARTITIONS};
use tombolo_proto::wire::TopicConfig;

/// What was last told, in chunks of topics: of most looks no config is another.
#[derive(Debug, Default)]
pub(super) struct Configs {
    chunks: Vec<Chunk>,
    /// Topics whose configs are not known, which is logged once for each.
    without: BTreeSet<TopicName>,
}

#[derive(Debug)]
struct Chunk {
    topics: Vec<TopicName>,
    digest: AnswerDigest,
    told: Vec<Told>,
}

/// What the gateway and the fetchers need of one topic's configs; nothing where the broker does not tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    configs: Vec<TopicConfig>,
    retention: Retention,
    compacted: Option<bool>,
}

impl Configs {
    /// Asks for the configs of each topic of a chunk in turn.
    pub(super) async fn look(
        &mut self,
        connection: &Connection,
        chunk: usize,
        topics: &[(TopicName, Topic)],
    ) -> Result<Vec<Told>, KafkaError> {
        let names = || topics.iter().map(|(name, _)| name);
        let known = self.chunks.get(chunk).filter(|known| known.topics.iter().eq(names()));
        let resources: Vec<_> =
            topics.iter().map(|(_, topic)| ConfigResource::Topic(Arc::clone(&topic.name))).collect();
        let answers = match describe_configs_again(connection, &resources, known.map(|known| known.digest)).await {
            Ok(answers) => answers,
            Err(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }) => {
                names().for_each(|name| self.not_told(name, &error));
                return Ok(vec![Told::default(); topics.len()]);
            }
            Err(error) => return Err(error),
        };
        let Some((digest, answers)) = answers else {
            return Ok(known.map(|known| known.told.clone()).unwrap_or_default());
        };
        let told: Vec<_> = names()
            .zip(answers)
            .map(|(name, answer)| match answer.result {
                Ok(configs) => Told::of(&configs),
                Err(refusal) => {
                    self.not_told(name, &refusal);
                    Told::default()
                }
            })
            .collect();
        let new = Chunk { topics: names().cloned().collect(), digest, told: told.clone() };
        match self.chunks.get_mut(chunk) {
            Some(known) => *known = new,
            None => self.chunks.push(new),
        }
        Ok(told)
    }

    fn not_told(&mut self, topic: &TopicName, why: &dyn Error) {
        if self.without.insert(topic.clone()) {
            tracing::info!(%topic, reason = %why, "configs of the source topic are not known: the mirror has the cloud's");
        }
    }
}

impl Told {
    pub(super) fn of(configs: &[ConfigEntry]) -> Self {
        let value =
            |name: &str| configs.iter().find(|config| config.name == name).and_then(|config| config.value.as_deref());
        let policy = value("cleanup.policy");
        // A log that is only compacted keeps the last record of each key, however old.
        let retention = if policy.is_none_or(|policy| policy.contains("delete")) {
            Retention { ms: limit(value("retention.ms")), bytes: limit(value("retention.bytes")) }
        } else {
            Retention::default()
        };
        let told = configs
            .iter()
            .filter(|config| is_told(config))
            .filter_map(|config| Some(TopicConfig { name: config.name.clone(), value: config.value.clone()? }));
        Self {
            configs: told.take(MAX_CONFIGS).collect(),
            retention,
            compacted: policy.map(|policy| policy.contains("compact")),
        }
    }

    /// Whether the topic is compacted; `None` where that is not known.
    pub(super) fn compacted(&self) -> Option<bool> {
        self.compacted
    }

    /// What the gateway needs of the topic that has these configs.
    pub(super) fn source_topic(self, topic: &Topic) -> SourceTopic {
        SourceTopic {
            partitions: Partition::try_from(topic.partitions.len()).unwrap_or(MAX_PARTITIONS),
            topic_id: topic.topic_id,
            configs: self.configs,
            retention: self.retention,
        }
    }
}

/// A retention's value; -1 is without limit.
fn limit(value: Option<&str>) -> Option<i64> {
    value.and_then(|value| value.parse().ok()).filter(|&value| value >= 0)
}

/// What was set on the topic; and where the brokers' settings say so too, the largest batch, which the mirror must take,
/// and that records are compacted.
fn is_told(config: &ConfigEntry) -> bool {
    let by_broker = match config.name.as_str() {
        "max.message.bytes" => config.source != ConfigSource::Default,
        "cleanup.policy" => config.value.as_deref().is_some_and(|policy| policy.contains("compact")),
        _ => false,
    };
    !config.sensitive && (!config.is_default() || by_broker)
}

#[cfg(test)]
#[path = "configs_test.rs"]
mod tests;
