//! Transactions are what they say, and the compare sees what a reader of uncommitted records would see of them.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, consumer_equal, consumers_equal};
use tombolo_tests::consumer::{Isolation, read_all};
use tombolo_tests::producer::Workload;
use tombolo_tests::transactions::{ABORTED, COMMITTED, Hanging, Settled, Transactions};

#[tokio::test]
async fn what_was_aborted_is_seen_by_readers_of_uncommitted_records_only() {
    let cluster = &shared_pair().await.source;
    let topic = unique_name("settled");
    cluster.create_topic(&topic, 2, 1, &[]).await;
    let settled = Transactions::new(&topic, 2).write(&cluster.client_config(), 9).await;
    assert_eq!(settled, Settled { commits: 6, aborts: 3, committed: 24, aborted: 12 });
    for partition in 0..2 {
        let begins = |isolation, with: &'static str| {
            let topic = &topic;
            async move {
                let records = read_all(cluster, topic, partition, isolation).await;
                let values = records.into_iter().filter_map(|record| record.value);
                values.filter(|value| value.starts_with(with.as_bytes())).count()
            }
        };
        assert_eq!(begins(Isolation::Committed, COMMITTED).await, 12);
        assert_eq!(begins(Isolation::Committed, ABORTED).await, 0);
        assert_eq!(begins(Isolation::Uncommitted, COMMITTED).await, 12);
        assert_eq!(begins(Isolation::Uncommitted, ABORTED).await, 6);
    }
    // A mirror may not show them to anybody.
    let seen = AssertUnwindSafe(consumers_equal(cluster, cluster, &[&topic])).catch_unwind().await;
    assert!(seen.is_err(), "{seen:?}");
    let seen = AssertUnwindSafe(consumer_equal(cluster, cluster, &[&topic])).catch_unwind().await;
    assert!(seen.is_err(), "{seen:?}");
}

#[tokio::test]
async fn a_transaction_that_hangs_holds_readers_of_committed_records_back() {
    let cluster = &shared_pair().await.source;
    let topic = unique_name("hanging");
    cluster.create_topic(&topic, 1, 1, &[]).await;
    let config = cluster.client_config();
    let plain = Workload::new().topic(&topic, 1);
    plain.produce(&config, 10).await;
    let hanging = Hanging::begin(&config, &topic, 0, 3).await;
    plain.produce(&config, 10).await;
    assert_eq!(read_all(cluster, &topic, 0, Isolation::Committed).await.len(), 10);
    assert_eq!(read_all(cluster, &topic, 0, Isolation::Uncommitted).await.len(), 23);
    hanging.abort().await;
    assert_eq!(read_all(cluster, &topic, 0, Isolation::Committed).await.len(), 20);
}

#[tokio::test]
async fn a_log_begins_where_it_was_placed() {
    const START: i64 = 5_000_000_000;
    let cluster = KafkaCluster::start(ClusterSpec::single()).await;
    let topic = unique_name("placed");
    cluster.create_topic(&topic, 2, 1, &[]).await;
    cluster.stop_broker(1).await;
    cluster.place_log(1, &topic, 1, START);
    cluster.restart_broker(1).await;
    assert_eq!(cluster.log_range(&topic, 1).await, Ok((START, START)));
    Workload::new().topic(&topic, 2).produce(&cluster.client_config(), 20).await;
    assert_eq!(cluster.log_range(&topic, 0).await, Ok((0, 10)));
    assert_eq!(cluster.log_range(&topic, 1).await, Ok((START, START + 10)));
    // A start after a crash finds the same.
    cluster.restart_broker(1).await;
    assert_eq!(cluster.log_range(&topic, 1).await, Ok((START, START + 10)));
    assert_eq!(consumers_equal(&cluster, &cluster, &[&topic]).await, Seen { records: 20, aborted: 0 });
}
