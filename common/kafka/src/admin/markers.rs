//! Control markers, each of which takes one offset that no consumer sees.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use kafka_protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};

use super::by_topic;
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError, KafkaErrorKind};

/// Most markers of one partition in one request.
pub const MAX_MARKERS: u32 = 1_000;

/// Who writes markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkerWriter {
    /// Producer id; a broker takes any, with or without a transaction (`ProducerAppendInfo.appendEndTxnMarker`).
    pub producer_id: i64,
    /// Below the one the broker knows of the id: `INVALID_PRODUCER_EPOCH`, and so is everything below this one later.
    pub producer_epoch: i16,
    /// Below the one of the id's last marker in the partition: `TRANSACTION_COORDINATOR_FENCED`
    /// (`ProducerAppendInfo.checkCoordinatorEpoch`).
    pub coordinator_epoch: i32,
}

/// How many markers a partition is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerRange {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition; its leader must be the broker that is asked, else `UNKNOWN_TOPIC_OR_PARTITION`.
    pub partition: i32,
    /// 1 to [`MAX_MARKERS`].
    pub count: u32,
}

/// Answer for one partition.
#[derive(Debug, Clone)]
pub struct MarkersAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// The broker merges the results of one producer id and partition (`KafkaApis.handleWriteTxnMarkersRequest`): of a
    /// count above 1, `Ok` and `Err` tell of one marker only. The log end tells how many there are.
    pub result: Result<(), ErrorCode>,
}

/// Puts one `WriteTxnMarkers` request (v1) in the connection's queue before it returns, as a write that the guard is asked
/// about; the future waits for the answer and may be dropped without taking the request back. Needs ALTER or
/// `CLUSTER_ACTION` on the cluster, else every partition answers `CLUSTER_AUTHORIZATION_FAILED`.
///
/// Markers are *not* deduplicated: after an error for which [`KafkaError::is_ambiguous`] or
/// [`ErrorCode::produce_is_ambiguous`] holds, look at the log end before sending again, over this same connection (a broker
/// answers one connection in order) or after a settle time. They say COMMIT: librdkafka warns of an abort it knows no
/// transaction of (`rdkafka_msgset_reader.c`).
///
/// The broker lets its replicas take its own `request.timeout.ms`; `wait` is that, and the connection waits
/// `socket.timeout.ms` longer before it is given up. Each partition at most once. Answers come in the order of `ranges`.
pub fn send_txn_markers(
    connection: &Connection,
    writer: MarkerWriter,
    ranges: Vec<MarkerRange>,
    wait: Duration,
) -> impl Future<Output = Result<Vec<MarkersAnswer>, KafkaError>> + Send + 'static {
    let sent = request(writer, &ranges).and_then(|request| {
        let version = connection.version::<WriteTxnMarkersRequest>(i16::MAX)?;
        Ok(connection.submit(&request, version, connection.deadline(wait), true))
    });
    async move {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        read(writer, &ranges, &sent?.await?)
    }
}

/// One marker after the other, each for all partitions that are to get so many.
fn request(writer: MarkerWriter, ranges: &[MarkerRange]) -> Result<WriteTxnMarkersRequest, KafkaError> {
    let mut seen = HashSet::new();
    for range in ranges {
        let twice = !seen.insert((&range.topic, range.partition));
        if twice || range.count == 0 || range.count > MAX_MARKERS {
            let reason = if twice { "a partition comes twice" } else { "a count of markers is out of range" };
            let kind = KafkaErrorKind::Encode(reason.into());
            return Err(KafkaError::new(Api::WriteTxnMarkers, kind).at(&range.topic, range.partition));
        }
    }
    let most = ranges.iter().map(|range| range.count).max().unwrap_or(0);
    let markers = (0..most).map(|done| {
        let wanting = ranges.iter().filter(|range| range.count > done);
        let topics = by_topic(wanting.map(|range| (&range.topic, range.partition))).into_iter();
        let topics = topics
            .map(|(name, indexes)| WritableTxnMarkerTopic::default().with_name(name).with_partition_indexes(indexes));
        WritableTxnMarker::default()
            .with_producer_id(writer.producer_id.into())
            .with_producer_epoch(writer.producer_epoch)
            .with_transaction_result(true)
            .with_coordinator_epoch(writer.coordinator_epoch)
            .with_topics(topics.collect())
    });
    Ok(WriteTxnMarkersRequest::default().with_markers(markers.collect()))
}

fn read(
    writer: MarkerWriter,
    ranges: &[MarkerRange],
    answer: &WriteTxnMarkersResponse,
) -> Result<Vec<MarkersAnswer>, KafkaError> {
    let unfit = |error| KafkaError::answer(Api::WriteTxnMarkers, error);
    let mut found: HashMap<(&str, i32), Option<ErrorCode>> = HashMap::new();
    for marker in &answer.markers {
        if marker.producer_id.0 != writer.producer_id {
            return Err(unfit(AnswerError::Unasked));
        }
        for topic in &marker.topics {
            for partition in &topic.partitions {
                // Where a broker does not merge, one error is enough.
                let code = found.entry((topic.name.as_str(), partition.partition_index)).or_default();
                *code = code.or(ErrorCode::from_wire(partition.error_code));
            }
        }
    }
    let answers = ranges
        .iter()
        .map(|range| {
            let code = found.remove(&(&*range.topic, range.partition));
            let code = code.ok_or_else(|| unfit(AnswerError::Missing).at(&range.topic, range.partition))?;
            Ok(MarkersAnswer {
                topic: Arc::clone(&range.topic),
                partition: range.partition,
                result: code.map_or(Ok(()), Err),
            })
        })
        .collect::<Result<_, KafkaError>>()?;
    super::nothing_left(Api::WriteTxnMarkers, &found)?;
    Ok(answers)
}

#[cfg(test)]
#[path = "markers_test.rs"]
mod tests;
