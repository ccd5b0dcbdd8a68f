//! Fetch: raw record sets of several partitions of one leader, with incremental sessions (KIP-227) where granted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{ErrorCode, KafkaError};

/// Limits and manners of a [`FetchSession`].
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// How long the broker may hold the answer back for `min_bytes`.
    pub max_wait: Duration,
    /// Bytes the broker waits for.
    pub min_bytes: i32,
    /// Bytes of records in one answer; one batch larger than that still comes whole.
    pub max_bytes: i32,
    /// Bytes of records of one partition in one answer, with the same exception.
    pub partition_max_bytes: i32,
    /// Only up to the last stable offset.
    pub read_committed: bool,
    /// Ask for an incremental session.
    pub sessions: bool,
}

/// Where to go on in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPosition {
    /// Offset to fetch from.
    pub offset: i64,
    /// Leader epoch from metadata, -1 where unknown.
    pub current_leader_epoch: i32,
    /// Leader epoch of the last batch fetched: with it the broker answers a diverging epoch.
    pub last_fetched_epoch: Option<i32>,
}

/// One partition of a Fetch answer.
#[derive(Debug, Clone)]
pub struct FetchedPartition {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// The broker's error for this partition.
    pub error: Option<ErrorCode>,
    /// High watermark, -1 where unknown.
    pub high_watermark: i64,
    /// Last stable offset, -1 where unknown.
    pub last_stable_offset: i64,
    /// Log start offset, -1 where unknown.
    pub log_start_offset: i64,
    /// Largest epoch and its end offset where the broker's log parts from what was fetched (KIP-595).
    pub diverging_epoch: Option<(i32, i64)>,
    /// Whole batches, the last may be cut off; the first may begin below the offset asked for. A slice of the answer:
    /// it keeps the memory of the whole answer.
    pub records: Bytes,
}

/// How far a fetch may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// To the high watermark.
    ReadUncommitted,
    /// To the last stable offset.
    ReadCommitted,
}

/// The fetcher of one leader: which partitions, from where. One request at a time.
#[derive(Debug)]
pub struct FetchSession {}

impl FetchSession {
    /// The connection should be this session's own: a waiting fetch holds back every later answer.
    pub fn new(_connection: Connection, _options: FetchOptions) -> Self {
        todo!()
    }

    /// Takes a partition in, or moves it to `position`.
    pub fn add(&mut self, _topic: &Arc<str>, _topic_id: Option<TopicId>, _partition: i32, _position: FetchPosition) {
        todo!()
    }

    /// Leaves a partition out from the next request on.
    pub fn remove(&mut self, _topic: &str, _partition: i32) {
        todo!()
    }

    /// Moves a partition; false where it is not in.
    pub fn advance(&mut self, _topic: &str, _partition: i32, _position: FetchPosition) -> bool {
        todo!()
    }

    /// Whether no partition is in.
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Sends one Fetch and waits for its answer: partitions with records, an error or news of their offsets. With no
    /// partition in, answers nothing at once. May be dropped.
    pub async fn fetch(&mut self) -> Result<Vec<FetchedPartition>, KafkaError> {
        todo!()
    }
}

/// One partition, one Fetch, no session.
#[expect(clippy::too_many_arguments, reason = "each is one field of the request")]
pub async fn fetch_once(
    _connection: &Connection,
    _topic: &Arc<str>,
    _topic_id: Option<TopicId>,
    _partition: i32,
    _offset: i64,
    _leader_epoch: i32,
    _max_bytes: i32,
    _max_wait: Duration,
    _isolation: Isolation,
) -> Result<FetchedPartition, KafkaError> {
    todo!()
}
