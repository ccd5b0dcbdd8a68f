//! What a librdkafka consumer sees of a log.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use crate::partition::Partition;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Consumed {
    pub(crate) offset: i64,
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Every record from log start to log end, for a consumer of this isolation level.
pub(crate) async fn consume(partition: &Partition<'_>, isolation: &str) -> Vec<Consumed> {
    let mut config = partition.kafka.client_config();
    config
        .set("group.id", "rules")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("isolation.level", isolation);
    let topic = partition.topic.to_string();
    spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        let mut seen = Vec::new();
        loop {
            match consumer.poll(Duration::from_secs(30)).expect("a record or the end") {
                Ok(message) => seen.push(Consumed {
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message
                        .headers()
                        .into_iter()
                        .flat_map(Headers::iter)
                        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                        .collect(),
                }),
                Err(KafkaError::PartitionEOF(_)) => return seen,
                Err(error) => panic!("{topic}: {error}"),
            }
        }
    })
    .await
    .unwrap()
}

/// The offsets of the records that consumers of both isolation levels see; they must see the same.
pub(crate) async fn visible_offsets(partition: &Partition<'_>) -> Vec<i64> {
    let [committed, uncommitted] =
        [consume(partition, "read_committed").await, consume(partition, "read_uncommitted").await];
    assert_eq!(committed, uncommitted);
    committed.iter().map(|record| record.offset).collect()
}
