//! Produce requests and their answers, against a scripted broker.

use kafka_protocol::messages::produce_response::{BatchIndexAndErrorMessage, TopicProduceResponse};

use super::*;
use crate::testing;

fn batch(topic: &str, topic_id: Option<TopicId>, partition: i32) -> ProduceBatch {
    ProduceBatch { topic: topic.into(), topic_id, partition, batch: Bytes::from_static(b"batch") }
}

fn at(index: i32, offset: i64) -> PartitionProduceResponse {
    PartitionProduceResponse::default().with_index(index).with_base_offset(offset).with_log_start_offset(1)
}

fn topic(name: &str, partitions: Vec<PartitionProduceResponse>) -> TopicProduceResponse {
    TopicProduceResponse::default().with_name(TopicName(text(name))).with_partition_responses(partitions)
}

fn answer(topics: Vec<TopicProduceResponse>) -> ProduceResponse {
    ProduceResponse::default().with_responses(topics)
}

async fn exchange(
    batches: Vec<ProduceBatch>,
    answer: ProduceResponse,
) -> (testing::Asked<ProduceRequest>, Result<Vec<ProduceAnswer>, KafkaError>) {
    let (connection, mut broker) = testing::connection();
    let sent = send_produce(&connection, batches, Duration::from_secs(2));
    let asked = broker.turn::<ProduceRequest>(|_| answer).await;
    (asked, sent.await)
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_batches() {
    let batches = vec![batch("b", None, 1), batch("a", None, 0), batch("b", None, 0)];
    let broker = answer(vec![topic("a", vec![at(0, 10)]), topic("b", vec![at(0, 20), at(1, 30)])]);
    let (asked, answers) = exchange(batches, broker).await;
    let found: Vec<_> = answers.unwrap().iter().map(|answer| answer.result.unwrap().base_offset).collect();
    assert_eq!(found, [30, 10, 20]);
    let request = &asked.request;
    assert_eq!((asked.version, request.acks, request.timeout_ms, request.topic_data.len()), (12, -1, 2000, 2));
    assert_eq!(request.topic_data[0].partition_data[0].records.as_deref(), Some(&b"batch"[..]));
}

#[tokio::test]
async fn topics_are_named_by_id_where_all_ids_are_known() {
    let broker = answer(vec![
        TopicProduceResponse::default().with_topic_id(topic_id([9; 16])).with_partition_responses(vec![at(0, 5)]),
    ]);
    let (asked, answers) = exchange(vec![batch("a", Some([9; 16]), 0)], broker).await;
    assert_eq!((asked.version, asked.request.topic_data[0].topic_id.into_bytes()), (13, [9; 16]));
    assert_eq!(answers.unwrap()[0].result, Ok(ProduceAck { base_offset: 5, log_start_offset: 1 }));
}

#[tokio::test]
async fn error_of_one_partition_leaves_the_others_alone() {
    let mut refused = at(1, -1);
    refused.error_code = ErrorCode::INVALID_RECORD.number();
    refused.error_message = Some(text("one or more records have been rejected"));
    refused.record_errors =
        vec![BatchIndexAndErrorMessage::default().with_batch_index_error_message(Some(text("no key")))];
    let (_, answers) =
        exchange(vec![batch("a", None, 0), batch("a", None, 1)], answer(vec![topic("a", vec![at(0, 7), refused])]))
            .await;
    let answers = answers.unwrap();
    assert_eq!(answers[0].result.unwrap().base_offset, 7);
    assert_eq!((answers[1].result, answers[1].message.as_deref()), (Err(ErrorCode::INVALID_RECORD), Some("no key")));
}

#[tokio::test]
async fn answer_that_does_not_fit_is_an_ambiguous_error() {
    let cases = [
        answer(vec![]),
        answer(vec![topic("a", vec![at(1, 7)])]),
        answer(vec![topic("a", vec![at(0, 7), at(1, 8)])]),
        answer(vec![topic("a", vec![at(0, 7), at(0, 8)])]),
    ];
    for broker in cases {
        let (_, answers) = exchange(vec![batch("a", None, 0)], broker).await;
        assert!(answers.unwrap_err().is_ambiguous());
    }
}

#[tokio::test]
async fn two_batches_of_one_partition_are_refused_unsent() {
    let (connection, _broker) = testing::connection();
    let error = produce(&connection, vec![batch("a", None, 3), batch("a", None, 3)], Duration::ZERO).await.unwrap_err();
    assert_eq!((error.topic(), error.partition(), error.is_ambiguous()), (Some("a"), Some(3), false));
    assert!(produce(&connection, Vec::new(), Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test]
async fn requests_go_out_in_the_order_of_the_calls() {
    let (connection, mut broker) = testing::connection();
    let sent: Vec<_> =
        (0..5).map(|partition| send_produce(&connection, vec![batch("a", None, partition)], Duration::ZERO)).collect();
    for partition in 0..5 {
        let asked = broker.asked::<ProduceRequest>().await;
        assert_eq!(asked.request.topic_data[0].partition_data[0].index, partition);
        broker.answer(&asked, &answer(vec![topic("a", vec![at(partition, 100)])])).await;
    }
    for answer in sent {
        assert_eq!(answer.await.unwrap()[0].result.unwrap().base_offset, 100);
    }
}

#[test]
fn doubtful_and_certain_errors_are_told_apart() {
    let doubtful = [
        ErrorCode::UNKNOWN_SERVER_ERROR,
        ErrorCode::REQUEST_TIMED_OUT,
        ErrorCode::NETWORK_EXCEPTION,
        ErrorCode::NOT_LEADER_OR_FOLLOWER,
        ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ErrorCode::KAFKA_STORAGE_ERROR,
        ErrorCode::from_wire(9999).unwrap(),
    ];
    let certain = [
        ErrorCode::NOT_ENOUGH_REPLICAS,
        ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER,
        ErrorCode::INVALID_PRODUCER_EPOCH,
        ErrorCode::INVALID_RECORD,
        ErrorCode::MESSAGE_TOO_LARGE,
        ErrorCode::CORRUPT_MESSAGE,
        ErrorCode::TOPIC_AUTHORIZATION_FAILED,
        ErrorCode::UNKNOWN_TOPIC_ID,
    ];
    assert!(doubtful.iter().all(|code| code.produce_is_ambiguous()));
    assert!(!certain.iter().any(|code| code.produce_is_ambiguous()));
    assert_eq!(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER.to_string(), "OUT_OF_ORDER_SEQUENCE_NUMBER (45)");
    assert_eq!(ErrorCode::from_wire(9999).unwrap().to_string(), "error code 9999");
    assert_eq!(ErrorCode::from_wire(0), None);
}
