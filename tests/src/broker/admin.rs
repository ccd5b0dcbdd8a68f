//! Questions and orders to a running cluster, through rdkafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::admin::{
    AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::KafkaError;
use rdkafka::metadata::{Metadata, MetadataBroker, MetadataPartition, MetadataTopic};
use rdkafka::topic_partition_list::Offset;
use tokio::task::spawn_blocking;
use tombolo_kafka::admin::{OffsetQuery, OffsetSpec, list_offsets};

use super::cluster::KafkaCluster;
use crate::wait::until;

/// How long one order may take, broker restarts included.
const DEADLINE: Duration = Duration::from_mins(1);

impl KafkaCluster {
    /// Creates a topic and waits until every partition has a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, replicas: i32, configs: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let answers = self.admin.create_topics([&topic], &options()).await.expect("the cluster answers");
        for answer in answers {
            if let Err((topic, error)) = answer {
                panic!("cannot create topic {topic}: {error}");
            }
        }
        self.wait_for_partitions(name, partitions).await;
    }

    /// Grows a topic to this many partitions.
    pub async fn grow_topic(&self, name: &str, partitions: i32) {
        let count = usize::try_from(partitions).expect("a count is positive");
        let order = NewPartitions::new(name, count);
        let answers = self.admin.create_partitions([&order], &options()).await.expect("the cluster answers");
        for answer in answers {
            if let Err((topic, error)) = answer {
                panic!("cannot grow topic {topic}: {error}");
            }
        }
        self.wait_for_partitions(name, partitions).await;
    }

    /// Deletes a topic and waits until it is not listed any more.
    pub async fn delete_topic(&self, name: &str) {
        let answers = self.admin.delete_topics(&[name], &options()).await.expect("the cluster answers");
        for answer in answers {
            if let Err((topic, error)) = answer {
                panic!("cannot delete topic {topic}: {error}");
            }
        }
        until(&format!("topic {name} is gone"), DEADLINE, async || {
            if self.topics().await.contains_key(name) { Err("still listed") } else { Ok(()) }
        })
        .await;
    }

    /// Moves a partition's log start to `before`: the records below it are gone.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset of a log");
        // A broker that has not heard of a change of the topic's policy refuses.
        until(&format!("records of {topic}/{partition} are deleted"), DEADLINE, async || {
            let answer = self.admin.delete_records(&list, &options()).await.expect("the cluster answers");
            let refusal = answer.elements().iter().find_map(|element| element.error().err());
            refusal.map_or(Ok(()), |error| Err(error.to_string()))
        })
        .await;
    }

    /// Sets configs of a topic and leaves its others as they are.
    pub async fn alter_topic(&self, name: &str, configs: &[(&str, &str)]) {
        // rdkafka has the old call only, which replaces all configs.
        let mut merged = self.topic_configs(name).await;
        merged.extend(configs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let mut order = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in &merged {
            order = order.set(key, value);
        }
        let answers = self.admin.alter_configs([&order], &options()).await.expect("the cluster answers");
        for answer in answers {
            if let Err((_, error)) = answer {
                panic!("cannot alter topic {name}: {error}");
            }
        }
        until(&format!("topic {name} has its new configs"), DEADLINE, async || {
            let seen = self.topic_configs(name).await;
            if seen == merged { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// The configs that were set on the topic itself.
    pub async fn topic_configs(&self, name: &str) -> BTreeMap<String, String> {
        let resource = ResourceSpecifier::Topic(name);
        let answers = self.admin.describe_configs([&resource], &options()).await.expect("the cluster answers");
        let mut configs = BTreeMap::new();
        for answer in answers {
            let resource = answer.unwrap_or_else(|error| panic!("cannot describe topic {name}: {error}"));
            for entry in resource.entries {
                if entry.source == ConfigSource::DynamicTopic {
                    configs.insert(entry.name, entry.value.unwrap_or_default());
                }
            }
        }
        configs
    }

    /// Every topic with its number of partitions, `__` topics left out.
    pub async fn topics(&self) -> BTreeMap<String, i32> {
        let metadata = self.metadata(None).await.expect("the cluster answers");
        let count = |len: usize| i32::try_from(len).expect("Kafka counts partitions in 32 bits");
        metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none() && !topic.name().starts_with("__"))
            .map(|topic| (topic.name().to_owned(), count(topic.partitions().len())))
            .collect()
    }

    /// The broker that leads the partition; waits while there is none.
    pub async fn leader_of(&self, topic: &str, partition: i32) -> i32 {
        until(&format!("{topic}/{partition} has a leader"), DEADLINE, async || {
            let metadata = self.metadata(Some(topic)).await.map_err(|error| error.to_string())?;
            let partitions = metadata.topics().first().map(MetadataTopic::partitions).unwrap_or_default();
            let seen = partitions.iter().find(|seen| seen.id() == partition).map_or(-1, MetadataPartition::leader);
            if seen >= 0 { Ok(seen) } else { Err("no leader".to_owned()) }
        })
        .await
    }

    /// The replicas in sync, as the cluster says.
    pub async fn in_sync_replicas(&self, topic: &str, partition: i32) -> Vec<i32> {
        let metadata = self.metadata(Some(topic)).await.expect("the cluster answers");
        let partitions = metadata.topics().first().map(MetadataTopic::partitions).unwrap_or_default();
        partitions.iter().find(|seen| seen.id() == partition).map(|seen| seen.isr().to_vec()).unwrap_or_default()
    }

    /// First offset and high watermark of a partition. Asked of its leader as it is now: librdkafka's client keeps what it
    /// knows of a topic for a while, and a topic may just have grown.
    pub async fn log_range(&self, topic: &str, partition: i32) -> Result<(i64, i64), String> {
        let raw = self.raw_client();
        let ask = async || -> Result<(i64, i64), tombolo_kafka::KafkaError> {
            let leader = raw.leader(topic, partition).await?;
            let connection = raw.shared(leader.broker).await?;
            let query = [OffsetQuery { topic: topic.into(), partition, leader_epoch: leader.epoch }];
            let mut range = [-1, -1];
            for (offset, spec) in range.iter_mut().zip([OffsetSpec::LogStart, OffsetSpec::HighWatermark]) {
                let answers = list_offsets(&connection, spec, &query).await?;
                if let Some(Ok(found)) = answers.first().map(|answer| &answer.result) {
                    *offset = found.offset;
                }
            }
            Ok(range.into())
        };
        match tokio::time::timeout(Duration::from_secs(5), ask()).await {
            Ok(Ok((first, end))) if first >= 0 && end >= 0 => Ok((first, end)),
            Ok(Ok(seen)) => Err(format!("{topic}/{partition}: {seen:?}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{topic}/{partition}: no answer")),
        }
    }

    /// The brokers that the cluster counts as alive.
    pub async fn brokers(&self) -> Vec<i32> {
        let metadata = self.metadata(None).await;
        metadata.map(|seen| seen.brokers().iter().map(MetadataBroker::id).collect()).unwrap_or_default()
    }

    /// Waits until every partition has a leader, and each leader knows that it is one: a broker tells of new leaders
    /// before it acts as one.
    async fn wait_for_partitions(&self, topic: &str, partitions: i32) {
        until(&format!("{topic} has {partitions} partitions with leaders"), DEADLINE, async || {
            let metadata = self.metadata(Some(topic)).await.map_err(|error| error.to_string())?;
            let seen = metadata.topics().first().map(MetadataTopic::partitions).unwrap_or_default();
            let led = seen.iter().filter(|partition| partition.leader() >= 0).count();
            if i32::try_from(led) != Ok(partitions) {
                return Err(format!("{led} have"));
            }
            for partition in 0..partitions {
                self.log_range(topic, partition).await?;
            }
            Ok(())
        })
        .await;
    }

    async fn metadata(&self, topic: Option<&str>) -> Result<Metadata, KafkaError> {
        let admin = Arc::clone(&self.admin);
        let topic = topic.map(str::to_owned);
        spawn_blocking(move || admin.inner().fetch_metadata(topic.as_deref(), Duration::from_secs(2)))
            .await
            .expect("asking for metadata does not panic")
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(DEADLINE)).operation_timeout(Some(DEADLINE))
}
