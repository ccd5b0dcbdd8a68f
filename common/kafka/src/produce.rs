//! Produce: raw batches to one leader, acks=all, several partitions per request, several requests in flight.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError, KafkaErrorKind};
use crate::wire::{Key, millis, text, topic_id};

const ACKS_ALL: i16 = -1;
/// From the next version on, topics are named by id.
const NEWEST_BY_NAME: i16 = 12;

/// One batch for one partition.
#[derive(Debug, Clone)]
pub struct ProduceBatch {
    /// Topic.
    pub topic: Arc<str>,
    /// Topic id, where known.
    pub topic_id: Option<TopicId>,
    /// Partition.
    pub partition: i32,
    /// The batch as it shall go out; its baseOffset must be 0.
    pub batch: Bytes,
}

/// Where a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProduceAck {
    /// Offset of the batch's first record; of a duplicate, the old one.
    pub base_offset: i64,
    /// Log start offset, -1 where unknown.
    pub log_start_offset: i64,
}

/// What the broker says of one batch.
#[derive(Debug, Clone)]
pub struct ProduceAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Where it went, or why not; see [`ErrorCode::produce_is_ambiguous`].
    pub result: Result<ProduceAck, ErrorCode>,
    /// What the broker adds to an error.
    pub message: Option<Box<str>>,
}

/// Puts one Produce request in the connection's queue before it returns; the future waits for the answer and may be
/// dropped without taking the request back. Requests of one connection go out in the order of these calls.
///
/// `timeout` is how long the broker may wait for its replicas; the connection waits `socket.timeout.ms` longer.
/// At most one batch per partition. Answers come in the order of `batches`.
pub fn send_produce(
    connection: &Connection,
    batches: Vec<ProduceBatch>,
    timeout: Duration,
) -> impl Future<Output = Result<Vec<ProduceAnswer>, KafkaError>> + Send + 'static {
    let sent = enqueue(connection, &batches, timeout);
    async move {
        match sent? {
            Some(answer) => read(&batches, &answer.await?),
            None => Ok(Vec::new()),
        }
    }
}

/// The answer to come; `None` where there is nothing to send.
fn enqueue(
    connection: &Connection,
    batches: &[ProduceBatch],
    timeout: Duration,
) -> Result<Option<impl Future<Output = Result<ProduceResponse, KafkaError>> + Send + use<>>, KafkaError> {
    if batches.is_empty() {
        return Ok(None);
    }
    let newest = if batches.iter().all(|batch| batch.topic_id.is_some()) { i16::MAX } else { NEWEST_BY_NAME };
    let version = connection.version::<ProduceRequest>(newest)?;
    let by_id = version > NEWEST_BY_NAME;
    let mut topics: Vec<TopicProduceData> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for batch in batches {
        if !seen.insert((&*batch.topic, batch.partition)) {
            let reason = KafkaErrorKind::Encode("two batches for one partition".into());
            return Err(KafkaError::new(Api::Produce, reason).at(&batch.topic, batch.partition));
        }
        let place = *places.entry(&batch.topic).or_insert(topics.len());
        if place == topics.len() {
            let topic = TopicProduceData::default();
            topics.push(match batch.topic_id.filter(|_| by_id) {
                Some(id) => topic.with_topic_id(topic_id(id)),
                None => topic.with_name(TopicName(text(&batch.topic))),
            });
        }
        if let Some(topic) = topics.get_mut(place) {
            let partition = PartitionProduceData::default().with_index(batch.partition);
            topic.partition_data.push(partition.with_records(Some(batch.batch.clone())));
        }
    }
    let request =
        ProduceRequest::default().with_acks(ACKS_ALL).with_timeout_ms(millis(timeout)).with_topic_data(topics);
    Ok(Some(connection.submit(&request, version, connection.deadline(timeout), true)))
}

fn read(batches: &[ProduceBatch], answer: &ProduceResponse) -> Result<Vec<ProduceAnswer>, KafkaError> {
    let mut results: HashMap<(Key<'_>, i32), &PartitionProduceResponse> = HashMap::new();
    let mut count = 0;
    for topic in &answer.responses {
        let key = Key::new(&topic.name, topic.topic_id.into_bytes());
        for partition in &topic.partition_responses {
            results.insert((key, partition.index), partition);
            count += 1;
        }
    }
    let answers = batches
        .iter()
        .map(|batch| {
            let name = (Key::Name(&batch.topic), batch.partition);
            let found = results
                .remove(&name)
                .or_else(|| batch.topic_id.and_then(|id| results.remove(&(Key::Id(id), batch.partition))));
            let missing = || KafkaError::answer(Api::Produce, AnswerError::Missing).at(&batch.topic, batch.partition);
            Ok(read_partition(batch, found.ok_or_else(missing)?))
        })
        .collect::<Result<Vec<_>, KafkaError>>()?;
    if count == answers.len() { Ok(answers) } else { Err(KafkaError::answer(Api::Produce, AnswerError::Unasked)) }
}

fn read_partition(batch: &ProduceBatch, answer: &PartitionProduceResponse) -> ProduceAnswer {
    let result = match ErrorCode::from_wire(answer.error_code) {
        None => Ok(ProduceAck { base_offset: answer.base_offset, log_start_offset: answer.log_start_offset }),
        Some(code) => Err(code),
    };
    // A validation error names the records at fault; the first of them says enough.
    let of_record = answer.record_errors.iter().find_map(|record| record.batch_index_error_message.as_ref());
    let message = of_record.or(answer.error_message.as_ref()).map(|message| Box::from(message.as_str()));
    ProduceAnswer { topic: Arc::clone(&batch.topic), partition: batch.partition, result, message }
}

/// [`send_produce`], where the order of several requests does not matter.
pub async fn produce(
    connection: &Connection,
    batches: Vec<ProduceBatch>,
    timeout: Duration,
) -> Result<Vec<ProduceAnswer>, KafkaError> {
    send_produce(connection, batches, timeout).await
}

#[cfg(test)]
#[path = "produce/produce_test.rs"]
mod tests;
