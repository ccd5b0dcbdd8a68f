//! Clusters start, serve every kind of client, and survive what is done to them.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use tombolo_kafka::ErrorCode;
use tombolo_kafka::admin::{MarkerRange, MarkerWriter, send_txn_markers};
use tombolo_tests::broker::{
    ClusterOperation, ClusterSpec, KafkaCluster, Listener, Mechanism, USER, shared_pair, unique_name,
};
use tombolo_tests::producer::Workload;
use tombolo_tests::wait::until;

#[tokio::test]
async fn single_broker_starts_and_takes_orders() {
    let cluster = KafkaCluster::start(ClusterSpec::single()).await;
    cluster.create_topic("orders", 2, 1, &[("max.message.bytes", "2000000")]).await;
    cluster.alter_topic("orders", &[("retention.ms", "7777")]).await;
    let configs = cluster.topic_configs("orders").await;
    assert_eq!(configs.get("max.message.bytes").map(String::as_str), Some("2000000"));
    assert_eq!(configs.get("retention.ms").map(String::as_str), Some("7777"));
    cluster.grow_topic("orders", 3).await;
    assert_eq!(cluster.topics().await.get("orders"), Some(&3));
    cluster.delete_topic("orders").await;
    assert_eq!(cluster.topics().await.get("orders"), None);
}

#[tokio::test]
async fn partition_moves_when_its_leader_is_killed() {
    let cluster = KafkaCluster::start(ClusterSpec::three()).await;
    cluster.create_topic("orders", 1, 3, &[]).await;
    let first = cluster.leader_of("orders", 0).await;
    produce(&cluster.client_config(), "orders").await;

    cluster.kill_broker(first);
    let second = until("another broker leads", Duration::from_secs(40), async || {
        let leader = cluster.leader_of("orders", 0).await;
        if leader == first { Err("the dead one leads") } else { Ok(leader) }
    })
    .await;
    produce(&cluster.client_config(), "orders").await;

    cluster.restart_broker(first).await;
    assert!(cluster.brokers().await.contains(&first));
    cluster.stop_broker(second).await;
    assert_ne!(cluster.leader_of("orders", 0).await, second);
}

#[tokio::test]
async fn clients_with_certificates_and_passwords_are_served() {
    let tls = KafkaCluster::start(ClusterSpec::single().listener(Listener::Ssl)).await;
    tls.create_topic("orders", 1, 1, &[]).await;
    produce(&tls.client_config(), "orders").await;
    drop(tls);

    let sasl = KafkaCluster::start(ClusterSpec::single().listener(Listener::SaslSsl)).await;
    sasl.create_topic("orders", 1, 1, &[]).await;
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512] {
        let mut config = sasl.client_config();
        config.extend(sasl.properties(mechanism));
        produce(&config, "orders").await;
        config.set("sasl.password", "wrong");
        assert!(
            try_produce(&config, "orders", Duration::from_secs(2)).await.is_err(),
            "{mechanism:?} takes any password"
        );
    }
}

#[tokio::test]
async fn tests_share_two_clusters() {
    let pair = shared_pair().await;
    let again = shared_pair().await;
    assert_eq!(pair.source.bootstrap(), again.source.bootstrap());
    assert_ne!(pair.source.bootstrap(), pair.cloud.bootstrap());
    let topic = unique_name("orders");
    assert_ne!(topic, unique_name("orders"));
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    produce(&pair.source.client_config(), &topic).await;
    assert!(!pair.cloud.topics().await.contains_key(&topic));
}

async fn produce(config: &rdkafka::ClientConfig, topic: &str) {
    try_produce(config, topic, Duration::from_secs(30)).await.expect("the record is acknowledged");
}

async fn try_produce(
    config: &rdkafka::ClientConfig,
    topic: &str,
    deadline: Duration,
) -> Result<(), rdkafka::error::KafkaError> {
    let mut config = config.clone();
    config.set("message.timeout.ms", deadline.as_millis().to_string());
    let producer: FutureProducer = config.create().expect("librdkafka takes the settings");
    let record = FutureRecord::<(), _>::to(topic).payload("value");
    producer.send(record, deadline).await.map(|_| ()).map_err(|(error, _)| error)
}

#[tokio::test]
async fn a_user_has_no_right_on_a_cluster_that_others_have_rights_on() {
    let cluster = KafkaCluster::start(ClusterSpec::single().with_authorizer()).await;
    let connection = cluster.raw_client().connect(1).await.unwrap();
    let writer = MarkerWriter { producer_id: 1 << 62, producer_epoch: 0, coordinator_epoch: 0 };
    let topic = unique_name("marked");
    cluster.create_topic(&topic, 1, 1, &[]).await;
    let mark = async || {
        let range = MarkerRange { topic: topic.as_str().into(), partition: 0, count: 1 };
        send_txn_markers(&connection, writer, vec![range], Duration::ZERO).await.unwrap().remove(0).result
    };
    assert_eq!(mark().await, Ok(()));
    cluster.allow("somebody", ClusterOperation::Describe).await;
    until("the right is gone", Duration::from_secs(20), async || match mark().await {
        Err(ErrorCode::CLUSTER_AUTHORIZATION_FAILED) => Ok(()),
        seen => Err(seen),
    })
    .await;
    // Topics can still be made and written to.
    let other = unique_name("open");
    cluster.create_topic(&other, 1, 1, &[]).await;
    Workload::new().topic(&other, 1).produce(&cluster.client_config(), 10).await;
    cluster.allow(USER, ClusterOperation::Alter).await;
    until("the right is back", Duration::from_secs(20), mark).await;
}
