//! Transactions without data: what `skip = transactions` stands on.

use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::admin::{TransactionalProducer, add_partitions_to_txn, end_txn, find_coordinator, init_producer_id};
use tombolo_kafka::{Connection, ErrorCode, KafkaError};
use tombolo_tests::broker::shared_pair;
use tombolo_tests::wait::until;

use crate::consumer::visible_offsets;
use crate::partition::Partition;

const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the coordinator is ready.
async fn settled<T>(what: &str, ask: impl AsyncFn() -> Result<T, KafkaError>) -> T {
    until(what, PATIENCE, async || match ask().await {
        Ok(answer) => Ok(answer),
        Err(error) if not_yet(error.error_code()) => Err(error),
        Err(error) => panic!("{what}: {error}"),
    })
    .await
}

fn not_yet(code: Option<ErrorCode>) -> bool {
    [
        ErrorCode::COORDINATOR_LOAD_IN_PROGRESS,
        ErrorCode::COORDINATOR_NOT_AVAILABLE,
        ErrorCode::NOT_COORDINATOR,
        ErrorCode::CONCURRENT_TRANSACTIONS,
    ]
    .into_iter()
    .any(|expected| code == Some(expected))
}

async fn coordinator(partition: &Partition<'_>, transactional_id: &str) -> Connection {
    let broker =
        settled("a coordinator", async || find_coordinator(&partition.connection, transactional_id).await).await;
    partition.kafka.raw_client().connect(broker).await.unwrap()
}

async fn producer(coordinator: &Connection, transactional_id: &Arc<str>) -> TransactionalProducer {
    let timeout = Duration::from_mins(1);
    settled("a producer id", async || init_producer_id(coordinator, transactional_id, timeout).await).await
}

#[tokio::test]
async fn broker_appends_one_marker_for_a_transaction_without_data() {
    let partition = Partition::new(&shared_pair().await.cloud, &[]).await;
    let transactional_id: Arc<str> = format!("skip-{}", partition.topic).into();
    let coordinator = coordinator(&partition, &transactional_id).await;
    let producer = producer(&coordinator, &transactional_id).await;
    let partitions = [(Arc::clone(&partition.topic), 0)];
    for end in 1..=5 {
        until("the transaction is open", PATIENCE, async || {
            let answers = add_partitions_to_txn(&coordinator, &producer, &partitions).await.unwrap();
            match answers.into_iter().next().unwrap().result {
                Ok(()) => Ok(()),
                Err(code) if not_yet(Some(code)) => Err(code),
                Err(code) => panic!("{code}"),
            }
        })
        .await;
        settled("the end", async || end_txn(&coordinator, &producer).await).await;
        until("the marker is written", PATIENCE, async || {
            let found = partition.high_watermark().await;
            if found == end { Ok(()) } else { Err(found) }
        })
        .await;
    }
    assert_eq!(partition.log_end().await, 5);
    assert_eq!(visible_offsets(&partition).await, Vec::<i64>::new());
}

#[tokio::test]
async fn broker_fences_the_earlier_producer_of_a_transactional_id() {
    let partition = Partition::new(&shared_pair().await.cloud, &[]).await;
    let transactional_id: Arc<str> = format!("skip-{}", partition.topic).into();
    let coordinator = coordinator(&partition, &transactional_id).await;
    let first = producer(&coordinator, &transactional_id).await;
    let second = producer(&coordinator, &transactional_id).await;
    assert_eq!(first.producer_id, second.producer_id);
    assert!(second.epoch > first.epoch);
    let partitions = [(Arc::clone(&partition.topic), 0)];
    let late = add_partitions_to_txn(&coordinator, &first, &partitions).await.unwrap().remove(0).result;
    assert_eq!(late, Err(ErrorCode::PRODUCER_FENCED));
    let error = end_txn(&coordinator, &first).await.unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::PRODUCER_FENCED));
    assert_eq!(partition.log_end().await, 0);
}
