//! What the broker makes of producer ids, epochs and sequences.

use std::time::Duration;

use tombolo_kafka::ErrorCode;
use tombolo_kafka::admin::OffsetSpec;
use tombolo_tests::broker::shared_pair;
use tombolo_tests::wait::until;

use crate::batch::HandMade;
use crate::partition::{PRODUCER, Partition};

async fn partition() -> Partition<'static> {
    Partition::new(&shared_pair().await.cloud, &[]).await
}

/// A partition that holds batches of one record each, of sequences 100 to 100 + count - 1, at offsets from 0.
async fn partition_with(count: i32) -> Partition<'static> {
    let partition = partition().await;
    for i in 0..count {
        assert_eq!(partition.append(&HandMade::new(PRODUCER, 100 + i)).await, Ok(i64::from(i)));
    }
    partition
}

#[tokio::test]
async fn broker_takes_unknown_producer_at_any_sequence() {
    let partition = partition().await;
    assert_eq!(partition.state(PRODUCER).await, None);
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 100).epoch(3)).await, Ok(0));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 101).epoch(3)).await, Ok(1));
}

#[tokio::test]
async fn broker_takes_the_next_in_sequence() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 100).records(3)).await, Ok(0));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 103).records(2)).await, Ok(3));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 105)).await, Ok(5));
    assert_eq!(partition.log_end().await, 6);
}

#[tokio::test]
async fn broker_tells_the_last_sequence() {
    let partition = partition().await;
    partition.append(&HandMade::new(PRODUCER, 100).records(3)).await.unwrap();
    let state = partition.state(PRODUCER).await.unwrap();
    assert_eq!((state.epoch, state.last_sequence), (0, 102));
}

#[tokio::test]
async fn broker_answers_a_repeat_of_the_last_five_with_the_old_offset() {
    let partition = partition_with(7).await;
    for i in 2..7 {
        assert_eq!(partition.append(&HandMade::new(PRODUCER, 100 + i)).await, Ok(i64::from(i)));
    }
    assert_eq!(partition.log_end().await, 7, "a repeat appends nothing");
    // Repeats leave no trace: the next in sequence is still the next.
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 107)).await, Ok(7));
}

#[tokio::test]
async fn broker_refuses_a_repeat_of_the_sixth_last() {
    let partition = partition_with(7).await;
    for i in 0..2 {
        let repeat = partition.append(&HandMade::new(PRODUCER, 100 + i)).await;
        assert_eq!(repeat, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER));
    }
    assert_eq!(partition.log_end().await, 7);
}

#[tokio::test]
async fn broker_compares_sequences_and_not_bytes() {
    // Of two writers of one producer id, the second is told "success" with the first one's offset.
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 7).value("mine")).await, Ok(0));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 7).value("theirs")).await, Ok(0));
    assert_eq!(partition.log_end().await, 1);
    let stored = partition.stored();
    assert!(stored.windows(4).any(|bytes| bytes == b"mine"));
    assert!(!stored.windows(6).any(|bytes| bytes == b"theirs"));
}

#[tokio::test]
async fn broker_refuses_a_sequence_ahead_or_behind() {
    let partition = partition_with(3).await;
    // Ahead, behind, and a repeat that ends elsewhere than the batch that it repeats.
    for batch in [
        HandMade::new(PRODUCER, 104),
        HandMade::new(PRODUCER, 50),
        HandMade::new(PRODUCER, 0),
        HandMade::new(PRODUCER, 102).records(2),
    ] {
        assert_eq!(partition.append(&batch).await, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER), "{batch:?}");
    }
    assert_eq!(partition.log_end().await, 3);
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 103)).await, Ok(3));
}

#[tokio::test]
async fn broker_starts_a_higher_epoch_at_zero() {
    let partition = partition_with(2).await;
    let higher = partition.append(&HandMade::new(PRODUCER, 102).epoch(1)).await;
    assert_eq!(higher, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0).epoch(1)).await, Ok(2));
    assert_eq!(partition.log_end().await, 3);
}

#[tokio::test]
async fn broker_refuses_a_lower_epoch() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 5).epoch(2)).await, Ok(0));
    let lower = partition.append(&HandMade::new(PRODUCER, 6).epoch(1)).await;
    assert_eq!(lower, Err(ErrorCode::INVALID_PRODUCER_EPOCH));
    assert_eq!(partition.log_end().await, 1);
}

#[tokio::test]
async fn broker_shifts_the_next_batch_after_a_foreign_write() {
    let partition = partition_with(2).await;
    // Of a plain producer, and of an idempotent one.
    assert_eq!(partition.append(&HandMade::new(-1, -1).epoch(-1).records(3)).await, Ok(2));
    assert_eq!(partition.append(&HandMade::new(PRODUCER + 1, 0)).await, Ok(5));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 102)).await, Ok(6), "the log end is not compared");
}

#[tokio::test]
async fn broker_knows_no_repeat_of_a_plain_producer() {
    let partition = partition().await;
    let plain = HandMade::new(-1, -1).epoch(-1);
    assert_eq!(partition.append(&plain).await, Ok(0));
    assert_eq!(partition.append(&plain).await, Ok(1));
}

#[tokio::test]
async fn broker_wraps_the_sequence_after_two_to_the_31() {
    let partition = partition().await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, i32::MAX)).await, Ok(0));
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(1));
    assert_eq!(partition.state(PRODUCER).await.unwrap().last_sequence, 0);
    // Within one batch: 2^31 - 2, 2^31 - 1, 0, 1.
    let other = PRODUCER + 1;
    assert_eq!(partition.append(&HandMade::new(other, i32::MAX - 1).records(4)).await, Ok(2));
    assert_eq!(partition.state(other).await.unwrap().last_sequence, 1);
    assert_eq!(partition.append(&HandMade::new(other, i32::MAX - 1).records(4)).await, Ok(2), "a repeat");
    assert_eq!(partition.append(&HandMade::new(other, 3)).await, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(partition.append(&HandMade::new(other, 2)).await, Ok(6));
}

#[tokio::test]
async fn broker_takes_requests_of_one_connection_in_order() {
    let partition = partition().await;
    let sent: Vec<_> =
        (0..5).map(|i| partition.send(HandMade::new(PRODUCER, 100 + i).bytes(), Duration::from_secs(10))).collect();
    for (offset, answer) in (0..).zip(sent) {
        assert_eq!(answer.await.unwrap(), Ok(offset));
    }
}

#[tokio::test]
async fn broker_answers_the_log_end_to_whoever_knows_the_leader_epoch() {
    let partition = partition_with(2).await;
    assert_eq!(partition.offset(OffsetSpec::LogEnd, partition.leader_epoch).await, Ok(2));
    let newer = partition.offset(OffsetSpec::LogEnd, partition.leader_epoch + 1).await;
    assert_eq!(newer, Err(ErrorCode::UNKNOWN_LEADER_EPOCH));
}

#[tokio::test]
async fn broker_forgets_nothing_when_records_are_deleted() {
    let partition = partition_with(3).await;
    partition.kafka.delete_records(&partition.topic, 0, 3).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 102)).await, Ok(2), "a repeat of what is deleted");
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 103)).await, Ok(3));
    until("the log starts at 3", Duration::from_secs(10), async || {
        let start = partition.offset(OffsetSpec::LogStart, partition.leader_epoch).await;
        if start == Ok(3) { Ok(()) } else { Err(start) }
    })
    .await;
}
