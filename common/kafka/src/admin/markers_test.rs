//! What the request says, and how a merged answer is read.

use std::collections::BTreeMap;

use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};

use super::*;
use crate::error::Versions;
use crate::testing;
use crate::wire::text;

const WRITER: MarkerWriter = MarkerWriter { producer_id: 1 << 62, producer_epoch: 0, coordinator_epoch: 7 };

fn range(topic: &str, partition: i32, count: u32) -> MarkerRange {
    MarkerRange { topic: topic.into(), partition, count }
}

fn result(producer_id: i64, topics: &[(&str, &[(i32, i16)])]) -> WritableTxnMarkerResult {
    let topics = topics.iter().map(|(name, partitions)| {
        let partitions = partitions.iter().map(|(index, code)| {
            WritableTxnMarkerPartitionResult::default().with_partition_index(*index).with_error_code(*code)
        });
        WritableTxnMarkerTopicResult::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
    });
    WritableTxnMarkerResult::default().with_producer_id(producer_id.into()).with_topics(topics.collect())
}

/// What is asked for these ranges, by marker, and what comes of the answer.
async fn ask(
    ranges: Vec<MarkerRange>,
    results: Vec<WritableTxnMarkerResult>,
) -> (WriteTxnMarkersRequest, Result<Vec<MarkersAnswer>, KafkaError>) {
    let (connection, mut broker) = testing::bare_connection(64 << 10, None);
    connection.set_versions(BTreeMap::from([(Api::WriteTxnMarkers.key(), Versions { min: 1, max: 2 })]));
    let answer = WriteTxnMarkersResponse::default().with_markers(results);
    let sent = send_txn_markers(&connection, WRITER, ranges, Duration::ZERO);
    let (answers, asked) = tokio::join!(sent, broker.turn::<WriteTxnMarkersRequest>(|_| answer));
    assert_eq!(asked.version, 1);
    (asked.request, answers)
}

#[tokio::test]
async fn each_partition_gets_its_count_and_its_answer() {
    let ranges = vec![range("a", 0, 3), range("b", 4, 1), range("a", 2, 2)];
    let results = vec![result(1 << 62, &[("b", &[(4, 52)]), ("a", &[(0, 0), (2, 0)])])];
    let (request, answers) = ask(ranges, results).await;
    let asked: Vec<Vec<(String, Vec<i32>)>> = request
        .markers
        .iter()
        .map(|marker| {
            assert_eq!((marker.producer_id.0, marker.producer_epoch, marker.coordinator_epoch), (1 << 62, 0, 7));
            assert!(marker.transaction_result, "a commit");
            marker.topics.iter().map(|topic| (topic.name.to_string(), topic.partition_indexes.clone())).collect()
        })
        .collect();
    let a = |partitions: &[i32]| ("a".to_owned(), partitions.to_vec());
    assert_eq!(asked, [vec![a(&[0, 2]), ("b".to_owned(), vec![4])], vec![a(&[0, 2])], vec![a(&[0])]]);
    let found: Vec<_> = answers.unwrap().into_iter().map(|answer| (answer.partition, answer.result)).collect();
    assert_eq!(found, [(0, Ok(())), (4, Err(ErrorCode::TRANSACTION_COORDINATOR_FENCED)), (2, Ok(()))]);
}

#[tokio::test]
async fn one_error_is_enough_where_a_broker_does_not_merge() {
    let results = vec![result(1 << 62, &[("a", &[(0, 0)])]), result(1 << 62, &[("a", &[(0, 7)])])];
    let (_, answers) = ask(vec![range("a", 0, 2)], results).await;
    assert_eq!(answers.unwrap().remove(0).result, Err(ErrorCode::REQUEST_TIMED_OUT));
}

#[tokio::test]
async fn what_does_not_fit_is_an_error() {
    for (results, expected) in [
        (vec![], AnswerError::Missing),
        (vec![result(5, &[("a", &[(0, 0)])])], AnswerError::Unasked),
        (vec![result(1 << 62, &[("a", &[(0, 0), (1, 0)])])], AnswerError::Unasked),
    ] {
        let (_, answers) = ask(vec![range("a", 0, 1)], results).await;
        let error = answers.unwrap_err();
        assert!(matches!(error.kind(), KafkaErrorKind::Answer(found) if *found == expected), "{error}");
    }
    let (connection, _broker) = testing::bare_connection(64, None);
    for ranges in [vec![range("a", 0, 0)], vec![range("a", 0, MAX_MARKERS + 1)], vec![range("a", 0, 1); 2]] {
        let error = send_txn_markers(&connection, WRITER, ranges, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error.kind(), KafkaErrorKind::Encode(_)), "{error}");
    }
}
