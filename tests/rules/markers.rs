//! What the broker makes of control markers written by a client.

use std::time::Duration;

use tombolo_kafka::ErrorCode;
use tombolo_kafka::admin::{MAX_MARKERS, MarkerRange, MarkerWriter, OffsetSpec, send_txn_markers};
use tombolo_proto::batch::split;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, Listener, shared_pair};

use crate::batch::HandMade;
use crate::consumer::visible_offsets;
use crate::partition::{PRODUCER, Partition};

/// The epochs of a fence.
const FENCE: (i16, i32) = (i16::MAX, i32::MAX);

async fn partition() -> Partition<'static> {
    Partition::new(&shared_pair().await.cloud, &[]).await
}

#[tokio::test]
async fn broker_takes_a_marker_that_no_consumer_sees() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 100)).await, Ok(0));
    assert_eq!(partition.mark(0, 6, 1).await, Ok(()));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 101)).await, Ok(2));
    assert_eq!((partition.log_end().await, partition.high_watermark().await), (3, 3));
    // No transaction was open, so none keeps the last stable offset back.
    assert_eq!(partition.offset(OffsetSpec::LastStable, partition.leader_epoch).await, Ok(3));
    assert_eq!(visible_offsets(&partition).await, [0, 2]);
    let stored: Vec<_> = split(partition.stored()).map(Result::unwrap).collect();
    let controls: Vec<_> = stored.iter().map(|batch| (batch.is_control(), batch.len())).collect();
    assert_eq!(controls.get(1), Some(&(true, 78)), "a marker takes 78 bytes");
}

#[tokio::test]
async fn broker_takes_markers_at_the_start_and_at_the_end_of_a_log() {
    let partition = partition().await;
    assert_eq!(partition.mark(0, 6, 2).await, Ok(()));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(2));
    assert_eq!(partition.mark(0, 6, 2).await, Ok(()));
    assert_eq!(visible_offsets(&partition).await, [2]);
    assert_eq!(partition.high_watermark().await, 5);
}

#[tokio::test]
async fn broker_appends_as_many_markers_as_one_request_holds() {
    let partition = partition().await;
    let mut end = 0;
    for count in [1, 2, 7, MAX_MARKERS] {
        assert_eq!(partition.mark(0, 6, count).await, Ok(()), "the results of all are merged into one");
        end += i64::from(count);
        assert_eq!(partition.log_end().await, end);
    }
    // They are not deduplicated: the same request once more appends as many again.
    assert_eq!(partition.mark(0, 6, 7).await, Ok(()));
    assert_eq!(partition.log_end().await, end + 7);
}

#[tokio::test]
async fn broker_refuses_a_marker_of_an_older_coordinator() {
    let partition = partition().await;
    assert_eq!(partition.mark(0, 6, 1).await, Ok(()));
    assert_eq!(partition.mark(0, 5, 1).await, Err(ErrorCode::TRANSACTION_COORDINATOR_FENCED));
    assert_eq!(partition.log_end().await, 1);
    assert_eq!(partition.state(PRODUCER).await.unwrap().coordinator_epoch, 6);
    assert_eq!(partition.mark(0, 6, 1).await, Ok(()), "the same one goes on");
    assert_eq!(partition.mark(0, 7, 1).await, Ok(()));
    assert_eq!(partition.mark(0, 6, 1).await, Err(ErrorCode::TRANSACTION_COORDINATOR_FENCED));
    assert_eq!(partition.log_end().await, 3);
}

#[tokio::test]
async fn broker_refuses_no_data_of_an_older_term() {
    // The coordinator epoch fences markers only: data is for the lease.
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    assert_eq!(partition.mark(0, 9, 1).await, Ok(()));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 1)).await, Ok(2));
}

#[tokio::test]
async fn broker_takes_the_next_in_sequence_after_markers() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 100).records(2)).await, Ok(0));
    assert_eq!(partition.mark(0, 6, 3).await, Ok(()));
    let state = partition.state(PRODUCER).await.unwrap();
    assert_eq!((state.epoch, state.last_sequence), (0, 101));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 100).records(2)).await, Ok(0), "a repeat is still one");
    let ahead = partition.append(&HandMade::new(PRODUCER, 105)).await;
    assert_eq!(ahead, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER), "markers have no sequence");
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 102)).await, Ok(5));
    assert_eq!(partition.log_end().await, 6);
}

#[tokio::test]
async fn broker_starts_at_zero_after_a_marker_alone() {
    let partition = partition().await;
    assert_eq!(partition.mark(0, 6, 1).await, Ok(()));
    let state = partition.state(PRODUCER).await.unwrap();
    assert_eq!((state.epoch, state.last_sequence), (0, -1));
    let ahead = partition.append(&HandMade::new(PRODUCER, 100)).await;
    assert_eq!(ahead, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(1));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 1)).await, Ok(2));
}

#[tokio::test]
async fn broker_refuses_data_of_an_epoch_older_than_a_marker() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    assert_eq!(partition.mark(1, 6, 1).await, Ok(()));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 1)).await, Err(ErrorCode::INVALID_PRODUCER_EPOCH));
    assert_eq!(partition.mark(0, 6, 1).await, Err(ErrorCode::INVALID_PRODUCER_EPOCH));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0).epoch(1)).await, Ok(2));
}

#[tokio::test]
async fn broker_fences_a_producer_for_good() {
    let partition = partition().await;
    for sequence in 0..3 {
        assert_eq!(partition.append(&HandMade::new(PRODUCER, sequence)).await, Ok(i64::from(sequence)));
    }
    assert_eq!(partition.mark(0, 6, 1).await, Ok(()));
    assert_eq!(partition.mark(FENCE.0, FENCE.1, 1).await, Ok(()));
    // The next batch, a repeat of each of the last, and markers of this and of later terms.
    for sequence in [3, 2, 1, 0] {
        let late = partition.append(&HandMade::new(PRODUCER, sequence)).await;
        assert_eq!(late, Err(ErrorCode::INVALID_PRODUCER_EPOCH), "sequence {sequence}");
    }
    for term in [6, 7, i32::MAX] {
        assert_eq!(partition.mark(0, term, 1).await, Err(ErrorCode::INVALID_PRODUCER_EPOCH), "term {term}");
    }
    assert_eq!(partition.log_end().await, 5);
    // Others go on, and the fence stays invisible.
    assert_eq!(partition.append(&HandMade::new(-1, -1).epoch(-1)).await, Ok(5));
    assert_eq!(visible_offsets(&partition).await, [0, 1, 2, 5]);
    assert_eq!(partition.mark(FENCE.0, FENCE.1, 1).await, Ok(()), "the fence itself can be repeated");
}

#[tokio::test]
async fn broker_fences_a_producer_that_wrote_nothing() {
    let partition = partition().await;
    assert_eq!(partition.mark(FENCE.0, FENCE.1, 1).await, Ok(()));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Err(ErrorCode::INVALID_PRODUCER_EPOCH));
    assert_eq!(partition.mark(0, 1, 1).await, Err(ErrorCode::INVALID_PRODUCER_EPOCH));
    assert_eq!(partition.log_end().await, 1);
}

#[tokio::test]
async fn broker_refuses_markers_for_a_partition_it_has_not() {
    let partition = partition().await;
    let elsewhere = Partition { topic: "no-such-topic".into(), ..partition };
    assert_eq!(elsewhere.mark(0, 6, 1).await, Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
}

#[tokio::test]
async fn broker_wants_a_right_on_the_cluster_for_markers() {
    // Brokers talk among themselves as nobody; the client's user has no rights at all.
    let spec = ClusterSpec::single()
        .listener(Listener::SaslSsl)
        .set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .set("super.users", "User:ANONYMOUS");
    let cluster = KafkaCluster::start(spec).await;
    let connection = cluster.raw_client().connect(1).await.unwrap();
    let writer = MarkerWriter { producer_id: PRODUCER, producer_epoch: 0, coordinator_epoch: 6 };
    let ranges = [("one", 0), ("one", 1), ("two", 0)].map(|(topic, partition)| MarkerRange {
        topic: topic.into(),
        partition,
        count: 3,
    });
    let answers = send_txn_markers(&connection, writer, ranges.to_vec(), Duration::ZERO).await.unwrap();
    assert_eq!(answers.len(), 3);
    // Asked before anything else: that there are no such topics is not told.
    for answer in answers {
        assert_eq!(
            answer.result,
            Err(ErrorCode::CLUSTER_AUTHORIZATION_FAILED),
            "{}/{}",
            answer.topic,
            answer.partition
        );
    }
}
