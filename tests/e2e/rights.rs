//! What a gateway without the right to write markers can do, and what it cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tombolo_kafka::admin::{self, TransactionalProducer};
use tombolo_kafka::{Connection, KafkaError};
use tombolo_tests::broker::{ClusterOperation, ClusterSpec, KafkaCluster, USER, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps, consumers_equal, wait_until_mirrored};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::Transactions;
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_for_state, wait_until_active};

const RECORDS: u64 = 100;
/// Of the command that gives the right.
const COMMAND: [&str; 3] = ["kafka-acls.sh --add --allow-principal", "--operation Alter", "--cluster"];

async fn assert_refused(rig: &Rig, topic: &str) {
    for daemon in [&rig.agent, &rig.gateway] {
        let shown = wait_for_state(daemon, topic, "FAILED").await;
        assert_eq!(shown["mirror_topic_error"], "CLOUD_REFUSED", "{shown}");
        let detail = shown["detail"].as_str().unwrap_or_default();
        assert!(COMMAND.iter().all(|part| detail.contains(part)), "no command in {detail:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_needs_markers_is_refused_with_the_command_that_allows_them() {
    let _turn = Turn::apart().await;
    let source = &shared_pair().await.source;
    let cloud = KafkaCluster::start(ClusterSpec::single().with_authorizer()).await;
    // From now on the gateway's user has no right on the cluster itself.
    cloud.allow("somebody", ClusterOperation::Describe).await;
    let (dense, compacted, settled) = (unique_name("dense"), unique_name("needy"), unique_name("later-needy"));
    source.create_topic(&dense, 1, 1, &[]).await;
    source.create_topic(&compacted, 1, 1, &[("cleanup.policy", "compact")]).await;
    source.create_topic(&settled, 1, 1, &[]).await;
    let config = source.client_config();
    Workload::new().topic(&compacted, 1).shape(Shape::Keyed).produce(&config, RECORDS).await;
    let plain = Workload::new().topic(&dense, 1).topic(&settled, 1);
    plain.produce(&config, 2 * RECORDS).await;

    let start = Instant::now();
    let mut rig = Rig::start(source, &cloud, RigSpec::new(&[&dense, &compacted, &settled]).impatient()).await;
    for daemon in [&mut rig.agent, &mut rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    rig.gateway.allow("mirrors will be FAILED at the first gap of their sources");
    wait_until_active(&rig, &[&dense, &settled]).await;
    assert_refused(&rig, &compacted).await;
    assert!(!cloud.topics().await.contains_key(&compacted), "it is refused before it is made");
    assert_equal(source, &cloud, &[&dense, &settled], 2 * RECORDS).await;

    // The first gap is the end of it.
    let written = Transactions::new(&settled, 1).write(&config, 6).await;
    assert_refused(&rig, &settled).await;
    plain.produce(&config, 2 * RECORDS).await;
    assert_equal(source, &cloud, &[&dense], 2 * RECORDS).await;

    cloud.allow(USER, ClusterOperation::Alter).await;
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    let topics = [dense.as_str(), compacted.as_str(), settled.as_str()];
    wait_until_active(&rig, &topics).await;
    let seen = await_equal_with_gaps(source, &cloud, &topics, rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 5 * RECORDS + written.committed, aborted: written.aborted });
    tell("mirrors that had to wait for a right", seen.records, start);
}

#[tokio::test]
async fn empty_transactions_skip_where_markers_are_not_allowed() {
    const PARTITIONS: i32 = 2;
    let _turn = Turn::apart().await;
    let source = &shared_pair().await.source;
    let cloud = KafkaCluster::start(ClusterSpec::single().with_authorizer()).await;
    cloud.allow("somebody", ClusterOperation::Describe).await;
    let topic = unique_name("by-transactions");
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let config = source.client_config();
    let plain = Workload::new().topic(&topic, PARTITIONS);
    let transactions = Transactions::new(&topic, PARTITIONS);
    plain.produce(&config, RECORDS).await;
    let mut written = transactions.write(&config, 30).await;

    let start = Instant::now();
    let spec = RigSpec::new(&[&topic]).impatient().link("skip", "transactions");
    let mut rig = Rig::start(source, &cloud, spec).await;
    wait_until_active(&rig, &[&topic]).await;
    wait_until_mirrored(source, &cloud, &[&topic], DEADLINE).await;
    // Another process of the gateway knows its own among the mirror's last offsets.
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    let more = transactions.write(&config, 30).await;
    written.committed += more.committed;
    written.aborted += more.aborted;
    plain.produce(&config, RECORDS).await;
    wait_until_mirrored(source, &cloud, &[&topic], DEADLINE).await;
    let seen = consumers_equal(source, &cloud, &[&topic]).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS + written.committed, aborted: written.aborted });
    tell("gaps skipped by empty transactions", seen.records, start);
}

/// A transactional producer whose transactions hold nothing.
struct Empty {
    coordinator: Connection,
    producer: TransactionalProducer,
    partition: (Arc<str>, i32),
}

impl Empty {
    async fn become_producer(cluster: &KafkaCluster, id: &str, topic: &str) -> Self {
        let (client, id): (_, Arc<str>) = (cluster.raw_client(), id.into());
        let (coordinator, producer) = until(&format!("{id} has a producer"), DEADLINE, async || {
            let broker = admin::find_coordinator(&client.controller().await?, &id).await?;
            let coordinator = client.connect(broker).await?;
            let producer = admin::init_producer_id(&coordinator, &id, Duration::from_mins(1)).await?;
            Ok::<_, KafkaError>((coordinator, producer))
        })
        .await;
        Self { coordinator, producer, partition: (topic.into(), 0) }
    }

    async fn begin(&self) {
        until("the transaction is open", DEADLINE, async || {
            let partitions = [self.partition.clone()];
            let answers = admin::add_partitions_to_txn(&self.coordinator, &self.producer, &partitions).await;
            answers.map_err(|error| error.to_string())?.remove(0).result.map_err(|code| code.to_string())
        })
        .await;
    }

    async fn end(&self) {
        until("the transaction ends", DEADLINE, async || admin::end_txn(&self.coordinator, &self.producer).await).await;
    }
}

#[tokio::test]
async fn an_empty_transaction_that_a_killed_gateway_left_open_takes_the_offset_that_it_was_to_take() {
    let _turn = Turn::apart().await;
    let pair = shared_pair().await;
    let topic = unique_name("left-open");
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let config = pair.source.client_config();
    let plain = Workload::new().topic(&topic, 1);
    plain.produce(&config, RECORDS).await;
    let gap = Empty::become_producer(&pair.source, &unique_name("writer"), &topic).await;
    gap.begin().await;
    gap.end().await;

    let start = Instant::now();
    let spec = RigSpec::new(&[&topic]).impatient().link("skip", "transactions");
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;

    // The gateway is killed when it has opened a transaction for the next gap, and not ended it.
    rig.gateway.kill();
    let left = Empty::become_producer(&pair.cloud, &format!("tombolo-{}", rig.name), &topic).await;
    left.begin().await;
    gap.begin().await;
    gap.end().await;
    plain.produce(&config, RECORDS).await;
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    let seen = consumers_equal(&pair.source, &pair.cloud, &[&topic]).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS, aborted: 0 });
    tell("a transaction left open by a gateway that was killed", seen.records, start);
}
