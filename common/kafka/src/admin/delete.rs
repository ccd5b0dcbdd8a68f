//! Log starts moved up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};

use super::{by_topic, nothing_left};
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError};

/// Where a log is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteBefore {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// The new log start. The high watermark at most, else `OFFSET_OUT_OF_RANGE` (`Partition.deleteRecordsOnLeader`).
    pub offset: i64,
}

/// Answer for one partition.
#[derive(Debug, Clone)]
pub struct DeleteAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// The least log start of the replicas, or the broker's error: `POLICY_VIOLATION` where the topic's cleanup.policy is
    /// without `delete` (`Partition.deleteRecordsOnLeader`).
    pub result: Result<i64, ErrorCode>,
}

/// Moves log starts of partitions led by `connection`'s broker, as a write that the guard is asked about. Needs DELETE on
/// the topics. A log start below the present one changes nothing. The broker lets its replicas take `timeout`. Answers come
/// in the order asked.
pub async fn delete_records(
    connection: &Connection,
    partitions: &[DeleteBefore],
    timeout: Duration,
) -> Result<Vec<DeleteAnswer>, KafkaError> {
    const API: Api = Api::DeleteRecords;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let version = connection.version::<DeleteRecordsRequest>(i16::MAX)?;
    let topics = by_topic(partitions.iter().map(|wanted| (&wanted.topic, wanted))).into_iter().map(|(name, wanted)| {
        let wanted = wanted.into_iter().map(|wanted| {
            DeleteRecordsPartition::default().with_partition_index(wanted.partition).with_offset(wanted.offset)
        });
        DeleteRecordsTopic::default().with_name(name).with_partitions(wanted.collect())
    });
    let request =
        DeleteRecordsRequest::default().with_topics(topics.collect()).with_timeout_ms(crate::wire::millis(timeout));
    let answer = connection.submit(&request, version, connection.deadline(timeout), true).await?;
    let mut found = HashMap::new();
    for topic in &answer.topics {
        for partition in &topic.partitions {
            found.insert((topic.name.as_str(), partition.partition_index), partition);
        }
    }
    let answers = partitions
        .iter()
        .map(|wanted| {
            let missing = || KafkaError::answer(API, AnswerError::Missing).at(&wanted.topic, wanted.partition);
            let answer = found.remove(&(&*wanted.topic, wanted.partition)).ok_or_else(missing)?;
            let result = ErrorCode::from_wire(answer.error_code).map_or(Ok(answer.low_watermark), Err);
            Ok(DeleteAnswer { topic: Arc::clone(&wanted.topic), partition: wanted.partition, result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}
