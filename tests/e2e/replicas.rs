//! Three brokers a side: the mirror outlives the sudden end of a leader on each, and the restart of all, one by one.

use std::time::Instant;

use futures_util::future::join_all;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps, wait_until_mirrored};
use tombolo_tests::producer::{Codec, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::{BackgroundTransactions, Settled, Transactions};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

const PARTITIONS: i32 = 6;
const RATE: u32 = 2_000;

#[tokio::test]
async fn goes_on_when_a_leader_is_killed_on_each_side() {
    let _turn = Turn::apart().await;
    let (source, cloud) =
        tokio::join!(KafkaCluster::start(ClusterSpec::three()), KafkaCluster::start(ClusterSpec::three()));
    let topic = unique_name("replicated");
    source.create_topic(&topic, PARTITIONS, 3, &[("min.insync.replicas", "2")]).await;
    let mut rig = Rig::start(&source, &cloud, RigSpec::new(&[&topic])).await;
    // Said when the cloud's broker that is killed leads the registry, too, and its election outlasts a lease.
    rig.gateway.allow("registry cannot be read");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let producer = Workload::new().topic(&topic, PARTITIONS).rate(RATE).start(&source.client_config());
    wait_until_ends_grow(&cloud, &topic).await;
    assert_eq!(cloud.in_sync_replicas(&topic, 0).await.len(), 3, "the mirror has the cloud's replication factor");

    let killed = source.leader_of(&topic, 0).await;
    source.kill_broker(killed);
    wait_until_led_by_another(&source, &topic, killed).await;
    wait_until_ends_grow(&cloud, &topic).await;

    let killed = cloud.leader_of(&topic, 0).await;
    cloud.kill_broker(killed);
    wait_until_led_by_another(&cloud, &topic, killed).await;
    wait_until_ends_grow(&cloud, &topic).await;

    let written = producer.stop().await.acknowledged();
    wait_until_mirrored(&source, &cloud, &[&topic], DEADLINE).await;
    tell("three brokers a side, a leader killed on each", written, start);
    tokio::join!(source.heal(), cloud.heal());
    assert_equal(&source, &cloud, &[&topic], written).await;
}

#[tokio::test]
async fn goes_on_while_brokers_of_both_sides_restart_one_by_one_amid_transactions() {
    let _turn = Turn::apart().await;
    let (source, cloud) =
        tokio::join!(KafkaCluster::start(ClusterSpec::three()), KafkaCluster::start(ClusterSpec::three()));
    let topic = unique_name("rolled");
    source.create_topic(&topic, PARTITIONS, 3, &[("min.insync.replicas", "2")]).await;
    let mut rig = Rig::start(&source, &cloud, RigSpec::new(&[&topic])).await;
    // Said when the broker that goes leads the registry, and its election outlasts a lease.
    rig.gateway.allow("registry cannot be read");
    // A session that comes back then cannot take the link yet.
    rig.gateway.allow("connection ended before its session began");
    // Said when the agent asks a broker that goes.
    rig.agent.allow("source cluster cannot be read");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let config = source.client_config();
    let transactions = Transactions::new(&topic, PARTITIONS);
    let applications =
        [transactions.clone().codec(Codec::Zstd), transactions.clone().abort_every(Some(2)), transactions]
            .map(|application| application.start(&config));
    let plain = Workload::new().topic(&topic, PARTITIONS).rate(RATE / 10).start(&config);
    wait_until_ends_grow(&cloud, &topic).await;
    let (at_source, at_cloud) = (
        [(topic.as_str(), PARTITIONS), ("__transaction_state", 1)],
        [(topic.as_str(), PARTITIONS), (rig.registry(), 1)],
    );
    tokio::join!(restart_all(&source, &at_source), restart_all(&cloud, &at_cloud));
    wait_until_ends_grow(&cloud, &topic).await;
    let settled = join_all(applications.map(BackgroundTransactions::stop)).await.into_iter().sum::<Settled>();
    let records = settled.committed + plain.stop().await.acknowledged();
    tell(&format!("six brokers restarted one by one, {settled:?}"), records, start);
    let seen = await_equal_with_gaps(&source, &cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records, aborted: settled.aborted });
    tell("the same, compared", records, start);
}

/// Stops each broker as an operator does and starts it again, once the one before has caught up with these topics, of so
/// many partitions.
async fn restart_all(cluster: &KafkaCluster, topics: &[(&str, i32)]) {
    for broker in cluster.broker_ids() {
        cluster.stop_broker(broker).await;
        cluster.restart_broker(broker).await;
        for (topic, partitions) in topics {
            for partition in 0..*partitions {
                until(&format!("broker {broker} has caught up with {topic}"), DEADLINE, async || {
                    let in_sync = cluster.in_sync_replicas(topic, partition).await;
                    if in_sync.len() == 3 { Ok(()) } else { Err(in_sync) }
                })
                .await;
            }
        }
    }
}

async fn wait_until_led_by_another(cluster: &KafkaCluster, topic: &str, dead: i32) {
    until("another broker leads", DEADLINE, async || {
        let leader = cluster.leader_of(topic, 0).await;
        if leader == dead { Err(leader) } else { Ok(()) }
    })
    .await;
}

/// Waits until every partition of the mirror is longer than now.
async fn wait_until_ends_grow(cloud: &KafkaCluster, topic: &str) {
    for partition in 0..PARTITIONS {
        let mut before = None;
        until(&format!("the mirror of partition {partition} grows"), DEADLINE, async || {
            let (_, end) = cloud.log_range(topic, partition).await?;
            if *before.get_or_insert(end) < end { Ok(()) } else { Err(format!("still {end}")) }
        })
        .await;
    }
}
