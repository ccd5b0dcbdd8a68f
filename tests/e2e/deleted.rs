//! Topics that are deleted while the link is up, at the source and in the cloud: both ends say so, other mirrors go on, and
//! the ways out that the README names lead out.

use std::time::Instant;

use tombolo_tests::broker::{Pair, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_for_state, wait_until_active};

const RECORDS: u64 = 500;

/// Topics of one partition, mirrored, with as many records as each of them has.
struct Mirrors {
    pair: &'static Pair,
    spec: RigSpec,
    rig: Rig,
}

impl Mirrors {
    async fn start(topics: &[&str]) -> Self {
        let pair = shared_pair().await;
        for topic in topics {
            pair.source.create_topic(topic, 1, 1, &[]).await;
        }
        let spec = RigSpec::new(topics).impatient();
        let rig = Rig::start(&pair.source, &pair.cloud, spec.clone()).await;
        wait_until_active(&rig, topics).await;
        let mirrors = Self { pair, spec, rig };
        for topic in topics {
            mirrors.write(topic, RECORDS).await;
            assert_equal(&pair.source, &pair.cloud, &[topic], RECORDS).await;
        }
        mirrors
    }

    async fn write(&self, topic: &str, records: u64) {
        Workload::new().topic(topic, 1).produce(&self.pair.source.client_config(), records).await;
    }

    /// Both ends show the mirror in this state, with these words.
    async fn assert_shown(&self, topic: &str, state: &str, words: &str) {
        for daemon in [&self.rig.agent, &self.rig.gateway] {
            until(&format!("{topic} is {state}: {words}"), DEADLINE, async || {
                let shown = wait_for_state(daemon, topic, state).await;
                if shown.to_string().contains(words) { Ok(()) } else { Err(shown) }
            })
            .await;
        }
    }

    /// The gateway shows why nothing is written to the mirror.
    async fn assert_doubt(&self, topic: &str, words: &str) {
        until(&format!("{topic} is in doubt: {words}"), DEADLINE, async || {
            let status = self.rig.gateway.status().await;
            let links = status["links"].as_array().into_iter().flatten();
            let mirrors = links.filter_map(|link| link["mirrors"].as_array()).flatten();
            let shown = mirrors.into_iter().find(|mirror| mirror["topic"] == topic).unwrap();
            let doubt = shown["partitions"][0]["last_doubt"].as_str().unwrap_or_default();
            if doubt.contains(words) { Ok(()) } else { Err(shown.clone()) }
        })
        .await;
    }

    /// A mirror that nothing happened to goes on.
    async fn assert_goes_on(&self, topic: &str, records: u64) {
        self.write(topic, RECORDS).await;
        assert_equal(&self.pair.source, &self.pair.cloud, &[topic], records).await;
    }

    /// The mirror holds what it held.
    async fn assert_kept(&self, topic: &str) {
        let end = i64::try_from(RECORDS).unwrap();
        assert_eq!(self.pair.cloud.log_range(topic, 0).await, Ok((0, end)), "the mirror is not what it was");
    }

    /// Another session, with the mirrors that are to be.
    async fn restart_gateway(&mut self, spec: &RigSpec) {
        let settings = self.rig.gateway_settings(spec);
        self.rig.gateway.reconfigure(&settings);
        self.rig.gateway.restart();
        self.rig.gateway.wait_ready().await;
    }
}

#[tokio::test]
async fn a_source_topic_that_is_deleted_is_named_until_it_is_given_up_or_made_anew() {
    let _turn = Turn::shared().await;
    let (gone, anew, other) = (unique_name("deleted"), unique_name("deleted-anew"), unique_name("not-deleted"));
    let mut mirrors = Mirrors::start(&[&gone, &anew, &other]).await;
    mirrors.rig.gateway.allow("source topic cannot be mirrored for now");
    let began = Instant::now();
    for topic in [&gone, &anew] {
        mirrors.pair.source.delete_topic(topic).await;
    }
    for topic in [&gone, &anew] {
        mirrors.assert_shown(topic, "SOURCE_UNAVAILABLE", "SOURCE_TOPIC_MAY_BE_DELETED").await;
        mirrors.assert_kept(topic).await;
    }
    mirrors.assert_goes_on(&other, 2 * RECORDS).await;

    for daemon in [&mut mirrors.rig.agent, &mut mirrors.rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    mirrors.pair.source.create_topic(&anew, 1, 1, &[]).await;
    mirrors.write(&anew, 2 * RECORDS).await;
    mirrors.assert_shown(&anew, "FAILED", "SOURCE_TOPIC_ID_CHANGED").await;
    mirrors.assert_kept(&anew).await;

    // One mirror begins anew, the other is the link's no more: what it holds stays.
    mirrors.pair.cloud.delete_topic(&anew).await;
    mirrors.restart_gateway(&RigSpec::new(&[&anew, &other]).impatient()).await;
    wait_until_active(&mirrors.rig, &[&anew, &other]).await;
    let Mirrors { pair, rig, .. } = &mirrors;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&anew], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS, aborted: 0 });
    for daemon in [&rig.agent, &rig.gateway] {
        let shown = daemon.status().await.to_string();
        assert!(!shown.contains(&format!("{gone:?}")), "{gone} is still shown: {shown}");
    }
    mirrors.assert_kept(&gone).await;
    mirrors.assert_goes_on(&other, 3 * RECORDS).await;
    tell("two source topics deleted, one of them made anew", seen.records, began);
}

#[tokio::test]
async fn a_mirror_topic_that_is_deleted_is_named_and_made_anew_by_the_next_session() {
    let _turn = Turn::shared().await;
    let (gone, other) = (unique_name("mirror-deleted"), unique_name("mirror-kept"));
    let mut mirrors = Mirrors::start(&[&gone, &other]).await;
    let began = Instant::now();
    mirrors.pair.cloud.delete_topic(&gone).await;
    mirrors.write(&gone, RECORDS).await;
    // The cluster does not know it any more: nothing is sent, and nothing is let go of.
    mirrors.assert_doubt(&gone, "UNKNOWN_TOPIC_OR_PARTITION").await;
    assert!(!mirrors.pair.cloud.topics().await.contains_key(&gone));
    mirrors.assert_goes_on(&other, 2 * RECORDS).await;
    mirrors.rig.agent.allow("the cloud lost the mirror's end, sending it again");
    let spec = mirrors.spec.clone();
    mirrors.restart_gateway(&spec).await;
    wait_until_active(&mirrors.rig, &[&gone, &other]).await;
    assert_equal(&mirrors.pair.source, &mirrors.pair.cloud, &[&gone], 2 * RECORDS).await;
    tell("a mirror topic deleted, and made anew", 2 * RECORDS, began);
}

#[tokio::test]
async fn a_mirror_topic_that_somebody_made_anew_fails_its_mirror_until_it_is_deleted() {
    let _turn = Turn::shared().await;
    let (emptied, other) = (unique_name("mirror-emptied"), unique_name("mirror-kept"));
    let mut mirrors = Mirrors::start(&[&emptied, &other]).await;
    for daemon in [&mut mirrors.rig.agent, &mut mirrors.rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    let began = Instant::now();
    mirrors.pair.cloud.delete_topic(&emptied).await;
    mirrors.pair.cloud.create_topic(&emptied, 1, 1, &[]).await;
    mirrors.write(&emptied, RECORDS).await;
    mirrors.assert_shown(&emptied, "FAILED", "FOREIGN_WRITE").await;
    assert_eq!(mirrors.pair.cloud.log_range(&emptied, 0).await, Ok((0, 0)), "somebody else's topic was written to");
    mirrors.assert_goes_on(&other, 2 * RECORDS).await;

    mirrors.pair.cloud.delete_topic(&emptied).await;
    let spec = mirrors.spec.clone();
    mirrors.restart_gateway(&spec).await;
    wait_until_active(&mirrors.rig, &[&emptied, &other]).await;
    assert_equal(&mirrors.pair.source, &mirrors.pair.cloud, &[&emptied], 2 * RECORDS).await;
    tell("a mirror topic made anew by hand, and deleted", 2 * RECORDS, began);
}
