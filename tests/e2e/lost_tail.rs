//! The cloud loses the end of a mirror that it had confirmed: what is lost is sent again.

use std::time::Instant;

use serde_json::Value;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, unique_name};
use tombolo_tests::compare::wait_until_mirrored;
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

/// What both replicas have, what only the lost one has, and what comes after.
const RECORDS: u64 = 2_000;

#[tokio::test]
async fn what_the_cloud_confirmed_and_lost_is_sent_again() {
    let _turn = Turn::apart().await;
    let (source, cloud) =
        tokio::join!(KafkaCluster::start(ClusterSpec::single()), KafkaCluster::start(ClusterSpec::three()));
    let topic = unique_name("lost");
    source.create_topic(&topic, 1, 1, &[]).await;
    // The mirror of a careless operator: one replica may confirm alone, and a stale one may lead.
    let careless = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
    cloud.create_topic(&topic, 1, 2, &careless).await;
    let mut rig = Rig::start(&source, &cloud, RigSpec::new(&[&topic])).await;
    // Two of three brokers are away for a while, the registry with them.
    rig.gateway.allow("registry cannot be read");
    rig.gateway.allow("the cloud lost the mirror's tail");
    rig.agent.allow("the cloud lost the mirror's end");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let producer = Workload::new().topic(&topic, 1);
    producer.produce(&source.client_config(), RECORDS).await;
    wait_until_mirrored(&source, &cloud, &[&topic], DEADLINE).await;
    let leader = cloud.leader_of(&topic, 0).await;
    let in_sync = cloud.in_sync_replicas(&topic, 0).await;
    let follower = in_sync.into_iter().find(|replica| *replica != leader).unwrap();
    cloud.kill_broker(follower);
    until("the leader is alone", DEADLINE, async || {
        let in_sync = cloud.in_sync_replicas(&topic, 0).await;
        if in_sync == [leader] { Ok(()) } else { Err(in_sync) }
    })
    .await;
    producer.produce(&source.client_config(), RECORDS).await;
    wait_until_mirrored(&source, &cloud, &[&topic], DEADLINE).await;

    cloud.kill_broker(leader);
    cloud.restart_broker(follower).await;
    until("the stale replica leads", DEADLINE, async || {
        let leads = cloud.leader_of(&topic, 0).await;
        if leads == follower { Ok(()) } else { Err(leads) }
    })
    .await;
    // Nothing new comes from the source: what is missing must be noticed all the same.
    wait_until_mirrored(&source, &cloud, &[&topic], DEADLINE).await;
    // Told by the agent: the loss may fall between two sessions, and of those the gateway remembers nothing.
    until("the rewind is shown", DEADLINE, async || {
        let status = rig.agent.status().await;
        let rewinds = status.pointer("/mirrors/0/partitions/0/rewinds").and_then(Value::as_u64);
        if rewinds.is_some_and(|rewinds| rewinds > 0) { Ok(()) } else { Err(status) }
    })
    .await;
    producer.produce(&source.client_config(), RECORDS).await;
    wait_until_mirrored(&source, &cloud, &[&topic], DEADLINE).await;
    tell("the lost third sent again, and one more", 3 * RECORDS, start);
    cloud.heal().await;
    assert_equal(&source, &cloud, &[&topic], 3 * RECORDS).await;
}
