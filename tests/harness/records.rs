//! The producer writes every shape it promises, and the compare sees every kind of difference.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tombolo_tests::broker::{KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{await_equal, consumer_equal, raw_compare};
use tombolo_tests::producer::{Codec, Shape, Workload};

#[tokio::test]
async fn every_record_is_acknowledged_whatever_its_shape() {
    let cluster = &shared_pair().await.source;
    for codec in Codec::ALL {
        for idempotent in [true, false] {
            let topic = unique_name("orders");
            cluster.create_topic(&topic, 3, 1, &[]).await;
            let workload = Workload::new().topic(&topic, 3).codec(codec).idempotent(idempotent).shape(Shape::Mixed);
            let produced = workload.produce(&cluster.client_config(), 330).await;
            assert_eq!(produced.acknowledged(), 330, "{codec:?}");
            assert_eq!(produced.partitions.len(), 3);
            // A log is equal to itself, and as long as what was acknowledged.
            assert_eq!(await_equal(cluster, cluster, &[&topic], Duration::from_secs(1)).await, 330, "{codec:?}");
        }
    }
}

#[tokio::test]
async fn background_producer_keeps_its_rate_until_stopped() {
    let cluster = &shared_pair().await.source;
    let topic = unique_name("orders");
    cluster.create_topic(&topic, 2, 1, &[]).await;
    let workload = Workload::new().topic(&topic, 2).rate(500).age(Duration::from_hours(24 * 7));
    let producer = workload.start(&cluster.client_config());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(producer.acknowledged() > 0);
    let produced = producer.stop().await;
    assert!((600..=1_300).contains(&produced.acknowledged()), "{}", produced.acknowledged());
    assert_eq!(consumer_equal(cluster, cluster, &[&topic]).await, produced.acknowledged());
}

#[tokio::test]
async fn compare_sees_every_difference() {
    let pair = shared_pair().await;
    // Offset 1 differs in one thing; the first pair of records does not differ at all.
    let plain = ("key", "value", 7_i64);
    for (other, equal) in [
        (Some(plain), true),
        (Some(("kex", "value", 7)), false),
        (Some(("key", "valuf", 7)), false),
        (Some(("key", "value", 8)), false),
        (None, false),
    ] {
        let topic = unique_name("orders");
        for (cluster, records) in [(&pair.source, [Some(plain), Some(plain)]), (&pair.cloud, [Some(plain), other])] {
            cluster.create_topic(&topic, 1, 1, &[]).await;
            for record in records.into_iter().flatten() {
                write(cluster, &topic, record).await;
            }
        }
        let seen = AssertUnwindSafe(consumer_equal(&pair.source, &pair.cloud, &[&topic])).catch_unwind().await;
        assert_eq!(seen.is_ok(), equal, "{other:?}");
        let raw = raw_compare(&pair.source, &pair.cloud, &[&topic]).await;
        assert_eq!(raw.is_identical(), equal, "{other:?}: {:?}", raw.differences);
    }
}

async fn write(cluster: &KafkaCluster, topic: &str, (key, value, timestamp): (&str, &str, i64)) {
    let producer: FutureProducer = cluster.client_config().create().unwrap();
    let record = FutureRecord::to(topic).key(key).payload(value).timestamp(timestamp);
    producer.send(record, Duration::from_secs(10)).await.unwrap();
}
