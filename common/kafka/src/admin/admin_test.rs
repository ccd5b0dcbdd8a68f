//! Offsets and producers asked of a scripted broker; the other calls are seen at real brokers only.

use kafka_protocol::messages::describe_configs_response::DescribeConfigsResult;
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, TopicResponse};
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{DescribeProducersResponse, ListOffsetsResponse};

use super::*;
use crate::error::KafkaErrorKind;
use crate::testing::{self, Asked};

fn query(topic: &str, partition: i32) -> OffsetQuery {
    OffsetQuery { topic: topic.into(), partition, leader_epoch: 6 }
}

fn offsets(topic: &str, partitions: &[(i32, i64)]) -> ListOffsetsTopicResponse {
    let partitions = partitions.iter().map(|(index, offset)| {
        ListOffsetsPartitionResponse::default().with_partition_index(*index).with_offset(*offset).with_leader_epoch(5)
    });
    ListOffsetsTopicResponse::default().with_name(TopicName(text(topic))).with_partitions(partitions.collect())
}

async fn ask(
    spec: OffsetSpec,
    queries: &[OffsetQuery],
    topics: Vec<ListOffsetsTopicResponse>,
) -> (Asked<ListOffsetsRequest>, Result<Vec<OffsetAnswer>, KafkaError>) {
    let (connection, mut broker) = testing::connection();
    let answer = ListOffsetsResponse::default().with_topics(topics);
    let (answers, asked) =
        tokio::join!(list_offsets(&connection, spec, queries), broker.turn::<ListOffsetsRequest>(|_| answer));
    (asked, answers)
}

#[tokio::test]
async fn offsets_come_in_the_order_asked() {
    let queries = [query("b", 1), query("a", 0), query("b", 0)];
    let topics = vec![offsets("a", &[(0, 10)]), offsets("b", &[(0, 20), (1, 30)])];
    let (asked, answers) = ask(OffsetSpec::LogEnd, &queries, topics).await;
    let found: Vec<_> = answers.unwrap().iter().map(|answer| answer.result.unwrap().offset).collect();
    assert_eq!((found, asked.request.topics.len()), (vec![30, 10, 20], 2));
}

#[tokio::test]
async fn each_kind_of_offset_is_asked_as_kafka_wants_it() {
    let cases = [
        (OffsetSpec::LogEnd, (-2, -1, 0)),
        (OffsetSpec::HighWatermark, (-1, -1, 0)),
        (OffsetSpec::LastStable, (-1, -1, 1)),
        (OffsetSpec::LogStart, (-1, -2, 0)),
        (OffsetSpec::Timestamp(77), (-1, 77, 0)),
    ];
    for (spec, wire) in cases {
        let (asked, answers) = ask(spec, &[query("a", 0)], vec![offsets("a", &[(0, 4)])]).await;
        let partition = asked.request.topics.first().unwrap().partitions.first().unwrap();
        assert_eq!((asked.request.replica_id.0, partition.timestamp, asked.request.isolation_level), wire, "{spec:?}");
        assert_eq!(partition.current_leader_epoch, 6);
        let answer = answers.unwrap().pop().unwrap();
        assert_eq!(answer.result, Ok(PartitionOffset { offset: 4, leader_epoch: 5 }));
    }
}

#[tokio::test]
async fn answers_that_do_not_fit_are_errors() {
    for (topics, expected) in [
        (vec![], AnswerError::Missing),
        (vec![offsets("a", &[(1, 4)])], AnswerError::Missing),
        (vec![offsets("a", &[(0, 4), (1, 4)])], AnswerError::Unasked),
    ] {
        let (_, answers) = ask(OffsetSpec::LogStart, &[query("a", 0)], topics).await;
        let error = answers.unwrap_err();
        assert!(matches!(error.kind(), KafkaErrorKind::Answer(found) if *found == expected), "{error}");
    }
}

#[tokio::test]
async fn producers_are_read_with_their_errors() {
    let (connection, mut broker) = testing::connection();
    let known = WireProducerState::default()
        .with_producer_id((1 << 62).into())
        .with_producer_epoch(2)
        .with_last_sequence(-1)
        .with_last_timestamp(1_000)
        .with_coordinator_epoch(3)
        .with_current_txn_start_offset(-1);
    let partitions = vec![
        PartitionResponse::default().with_partition_index(0).with_active_producers(vec![known]),
        PartitionResponse::default()
            .with_partition_index(1)
            .with_error_code(ErrorCode::NOT_LEADER_OR_FOLLOWER.number())
            .with_error_message(Some(text("elsewhere"))),
    ];
    let topic = TopicResponse::default().with_name(TopicName(text("a"))).with_partitions(partitions);
    let answer = DescribeProducersResponse::default().with_topics(vec![topic]);
    let asked = [(Arc::from("a"), 1), (Arc::from("a"), 0)];
    let (answers, _) =
        tokio::join!(describe_producers(&connection, &asked), broker.turn::<DescribeProducersRequest>(|_| answer));
    let mut answers = answers.unwrap();
    let expected = ProducerState {
        producer_id: 1 << 62,
        epoch: 2,
        last_sequence: -1,
        last_timestamp: 1_000,
        coordinator_epoch: 3,
        current_txn_start_offset: None,
    };
    assert_eq!(answers.pop().unwrap().result, Ok(vec![expected]));
    let refusal = answers.pop().unwrap().result.unwrap_err();
    assert_eq!(refusal.to_string(), "NOT_LEADER_OR_FOLLOWER (6): elsewhere");
}

#[tokio::test]
async fn what_the_broker_lacks_is_known_before_asking() {
    let (connection, _broker) = testing::connection();
    let topic = NewTopic { name: "a".into(), partitions: 1, replication_factor: None, configs: Vec::new() };
    let error = create_topics(&connection, &[topic], false, Duration::ZERO).await.unwrap_err();
    assert!(
        matches!(error.kind(), KafkaErrorKind::Unsupported { api: Api::CreateTopics, theirs: None, .. }),
        "{error}"
    );
}

fn configs(topic: &str, value: &str) -> DescribeConfigsResult {
    let config = DescribeConfigsResourceResult::default().with_name(text("retention.ms")).with_value(Some(text(value)));
    DescribeConfigsResult::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configs(vec![config.with_config_source(1)])
}

#[tokio::test]
async fn configs_that_are_what_they_were_are_not_told_again() {
    let (connection, mut broker) = testing::connection();
    let resources = [ConfigResource::Topic("a".into()), ConfigResource::Topic("b".into())];
    let mut digest = None;
    for (number, (b, told)) in [("5", Some("5")), ("5", None), ("6", Some("6")), ("6", None)].into_iter().enumerate() {
        let answer = DescribeConfigsResponse::default().with_results(vec![configs("a", "1"), configs("b", b)]);
        let (again, asked) = tokio::join!(
            describe_configs_again(&connection, &resources, digest),
            broker.turn::<DescribeConfigsRequest>(|_| answer)
        );
        // Correlation ids are counted on, and no part of it.
        assert_eq!((asked.correlation, asked.request.resources.len()), (i32::try_from(number).unwrap(), 2));
        let found = again.unwrap().map(|(new, answers)| {
            digest = Some(new);
            let last = answers.last().unwrap();
            assert_eq!(last.resource, resources[1]);
            last.result.as_ref().unwrap()[0].value.clone().unwrap()
        });
        assert_eq!(found.as_deref(), told, "{number}");
    }
}

#[tokio::test]
async fn configs_of_another_resource_are_an_error() {
    let (connection, mut broker) = testing::connection();
    let resources = [ConfigResource::Topic("a".into())];
    let answer = DescribeConfigsResponse::default().with_results(vec![configs("b", "1")]);
    let (again, _) = tokio::join!(
        describe_configs_again(&connection, &resources, None),
        broker.turn::<DescribeConfigsRequest>(|_| answer)
    );
    let error = again.unwrap_err();
    assert!(matches!(error.kind(), KafkaErrorKind::Answer(AnswerError::Missing)), "{error}");
}
