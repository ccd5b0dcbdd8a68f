//! Source topics that grow, vanish, come back as others, or lose their end.

use std::time::Instant;

use tombolo_tests::broker::{ClusterSpec, KafkaCluster, Pair, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps, wait_until_mirrored};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::Transactions;
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, mirrored_end, tell, wait_for_state, wait_until_active};

/// Starts a link whose mirrors may fail.
async fn start(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str]) -> Rig {
    let mut rig = Rig::start(source, cloud, RigSpec::new(topics).impatient()).await;
    for daemon in [&mut rig.agent, &mut rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    rig.agent.allow("mirror will be FAILED");
    rig
}

async fn assert_failed(rig: &Rig, topic: &str, code: &str, part: &str) {
    for daemon in [&rig.agent, &rig.gateway] {
        let shown = wait_for_state(daemon, topic, "FAILED").await;
        assert_eq!(shown["mirror_topic_error"], code, "{shown}");
        let detail = shown["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(part), "no {part:?} in {detail:?}");
    }
}

#[tokio::test]
async fn partitions_that_are_added_are_mirrored_from_their_start() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("growing");
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let config = pair.source.client_config();
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let begun = Instant::now();
    let live = Workload::new().topic(&topic, 1).rate(500).start(&config);
    let mut expected = Seen::default();
    for partitions in [2, 5] {
        pair.source.grow_topic(&topic, partitions).await;
        let written = Workload::new().topic(&topic, partitions).produce(&config, 500).await.acknowledged();
        let settled = Transactions::new(&topic, partitions).write(&config, 12).await;
        expected.records += written + settled.committed;
        expected.aborted += settled.aborted;
        until("the new partitions are mirrored", DEADLINE, async || {
            let end = mirrored_end(&pair.cloud, &topic, partitions - 1).await;
            if end > 0 { Ok(()) } else { Err(end) }
        })
        .await;
    }
    expected.records += live.stop().await.acknowledged();
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, expected);
    assert_eq!(pair.cloud.topics().await[&topic], 5);
    tell("one partition, then two, then five", seen.records, begun);
}

#[tokio::test]
async fn a_topic_made_anew_fails_its_mirror_until_the_old_one_is_deleted() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("anew");
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let config = pair.source.client_config();
    let workload = Workload::new().topic(&topic, 1);
    let mut rig = start(&pair.source, &pair.cloud, &[&topic]).await;
    wait_until_active(&rig, &[&topic]).await;
    workload.produce(&config, 500).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], 500).await;

    let begun = Instant::now();
    pair.source.delete_topic(&topic).await;
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    workload.produce(&config, 800).await;
    assert_failed(&rig, &topic, "SOURCE_TOPIC_ID_CHANGED", "").await;
    assert_eq!(pair.cloud.log_range(&topic, 0).await, Ok((0, 500)), "a record of the new topic is behind the old ones");

    pair.cloud.delete_topic(&topic).await;
    resume(&mut rig, pair, &topic).await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 800, aborted: 0 });
    tell("a topic made anew, and its mirror too", seen.records, begun);
}

/// The documented way: a FAILED mirror is tried again with the next session.
async fn resume(rig: &mut Rig, pair: &Pair, topic: &str) {
    assert!(!pair.cloud.topics().await.contains_key(topic));
    rig.gateway.restart();
    rig.gateway.wait_ready().await;
    wait_until_active(rig, &[topic]).await;
}

#[tokio::test]
async fn a_source_that_lost_its_end_fails_its_mirror() {
    const RECORDS: u64 = 500;
    let _turn = Turn::apart().await;
    let cloud = &shared_pair().await.cloud;
    let source = KafkaCluster::start(ClusterSpec::three()).await;
    let (topic, other) = (unique_name("truncated"), unique_name("whole"));
    let careless = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
    source.create_topic(&topic, 1, 2, &careless).await;
    source.create_topic(&other, 1, 3, &[]).await;
    let rig = start(&source, cloud, &[&topic, &other]).await;
    wait_until_active(&rig, &[&topic, &other]).await;
    let begun = Instant::now();
    let workload = Workload::new().topic(&topic, 1);
    workload.produce(&source.client_config(), RECORDS).await;
    wait_until_mirrored(&source, cloud, &[&topic], DEADLINE).await;

    let leader = source.leader_of(&topic, 0).await;
    let follower = source.in_sync_replicas(&topic, 0).await.into_iter().find(|replica| *replica != leader).unwrap();
    source.kill_broker(follower);
    until("the leader is alone", DEADLINE, async || {
        let in_sync = source.in_sync_replicas(&topic, 0).await;
        if in_sync == [leader] { Ok(()) } else { Err(in_sync) }
    })
    .await;
    workload.produce(&source.client_config(), RECORDS).await;
    wait_until_mirrored(&source, cloud, &[&topic], DEADLINE).await;
    source.kill_broker(leader);
    source.restart_broker(follower).await;
    until("the stale replica leads", DEADLINE, async || {
        let leads = source.leader_of(&topic, 0).await;
        if leads == follower { Ok(()) } else { Err(leads) }
    })
    .await;
    // What it writes now lies at offsets that the mirror has with other records.
    workload.produce(&source.client_config(), RECORDS / 2).await;
    assert_failed(&rig, &topic, "UNEXPECTED_TRUNCATION", "").await;
    let end = i64::try_from(2 * RECORDS).unwrap();
    assert_eq!(cloud.log_range(&topic, 0).await, Ok((0, end)), "the mirror is not what it was");
    source.heal().await;
    Workload::new().topic(&other, 1).produce(&source.client_config(), RECORDS).await;
    assert_equal(&source, cloud, &[&other], RECORDS).await;
    tell("a source that lost its end, and the mirror beside it", RECORDS, begun);
}

#[tokio::test]
async fn a_mirror_with_more_partitions_than_its_source_fails() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("narrow");
    pair.source.create_topic(&topic, 2, 1, &[]).await;
    pair.cloud.create_topic(&topic, 3, 1, &[("message.timestamp.after.max.ms", "9223372036854775807")]).await;
    let rig = start(&pair.source, &pair.cloud, &[&topic]).await;
    Workload::new().topic(&topic, 2).produce(&pair.source.client_config(), 100).await;
    assert_failed(&rig, &topic, "SOURCE_PARTITIONS_DECREASED", "").await;
    for partition in 0..3 {
        assert_eq!(mirrored_end(&pair.cloud, &topic, partition).await, 0);
    }
}
