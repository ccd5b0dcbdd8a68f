//! Produce: raw batches to one leader, acks=all, several partitions per request, several requests in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{ErrorCode, KafkaError};

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
    _connection: &Connection,
    _batches: Vec<ProduceBatch>,
    _timeout: Duration,
) -> impl Future<Output = Result<Vec<ProduceAnswer>, KafkaError>> + Send + 'static {
    async { todo!() }
}

/// [`send_produce`], where the order of several requests does not matter.
pub async fn produce(
    connection: &Connection,
    batches: Vec<ProduceBatch>,
    timeout: Duration,
) -> Result<Vec<ProduceAnswer>, KafkaError> {
    send_produce(connection, batches, timeout).await
}
