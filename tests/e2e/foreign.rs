//! Somebody else writes into a mirror: it stops with the evidence, and nothing else does.

use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_tests::broker::{Pair, shared_pair, unique_name};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_for_state, wait_until_active};

const PARTITIONS: i32 = 2;
/// Of the producer at the source, and of the foreign one in the cloud: one of them to each partition.
const BEFORE: u64 = 200;
const FOREIGN: u64 = 5;

/// A topic that somebody writes into, and one that nobody does.
struct Mirrors {
    pair: &'static Pair,
    spoilt: String,
    spared: String,
    rig: Rig,
}

impl Mirrors {
    /// Both as long as their sources.
    async fn start() -> Self {
        let pair = shared_pair().await;
        let (spoilt, spared) = (unique_name("spoilt"), unique_name("spared"));
        pair.source.create_topic(&spoilt, 1, 1, &[]).await;
        pair.source.create_topic(&spared, PARTITIONS, 1, &[]).await;
        let mut rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&spoilt, &spared])).await;
        for daemon in [&mut rig.agent, &mut rig.gateway] {
            daemon.allow("mirror FAILED");
        }
        wait_until_active(&rig, &[&spoilt, &spared]).await;
        let mirrors = Self { pair, spoilt, spared, rig };
        let workload = Workload::new().topic(&mirrors.spoilt, 1).topic(&mirrors.spared, PARTITIONS);
        workload.produce(&pair.source.client_config(), 3 * BEFORE).await;
        assert_equal(&pair.source, &pair.cloud, &[&mirrors.spoilt, &mirrors.spared], 3 * BEFORE).await;
        mirrors
    }

    async fn write_foreign(&self) {
        let intruder = Workload::new().topic(&self.spoilt, 1).idempotent(false);
        intruder.produce(&self.pair.cloud.client_config(), FOREIGN).await;
    }

    /// Waits until both ends say FAILED, and why: from the first foreign record to the last.
    async fn assert_failed(&self) {
        for daemon in [&self.rig.agent, &self.rig.gateway] {
            let shown = wait_for_state(daemon, &self.spoilt, "FAILED").await;
            assert_eq!(text(&shown, "mirror_topic_error"), Some("FOREIGN_WRITE"), "{shown}");
            let detail = text(&shown, "detail").unwrap_or_default();
            let extent = format!("partition 0 offsets {BEFORE} to {}", BEFORE + FOREIGN - 1);
            assert!(detail.contains(&extent), "no {extent:?} in {detail:?}");
        }
        let shown = wait_for_state(&self.rig.gateway, &self.spared, "ACTIVE").await;
        assert_eq!(text(&shown, "mirror_topic_error"), None, "{shown}");
    }
}

fn text<'a>(mirror: &'a Value, field: &str) -> Option<&'a str> {
    mirror.get(field).and_then(Value::as_str)
}

#[tokio::test]
async fn a_foreign_write_fails_a_live_mirror_and_no_other() {
    let _turn = Turn::shared().await;
    let mirrors = Mirrors::start().await;
    let start = Instant::now();
    let config = mirrors.pair.source.client_config();
    let live = Workload::new().topic(&mirrors.spared, PARTITIONS).rate(1_000).start(&config);
    mirrors.write_foreign().await;
    // The mirror learns of it from its own next batch.
    Workload::new().topic(&mirrors.spoilt, 1).produce(&config, BEFORE).await;
    mirrors.assert_failed().await;
    let seen = live.acknowledged();
    until("the other mirror's source goes on", DEADLINE, async || {
        let now = live.acknowledged();
        if now > seen + 1_000 { Ok(()) } else { Err(now) }
    })
    .await;
    let written = live.stop().await.acknowledged() + 2 * BEFORE;
    let Mirrors { pair, spared, .. } = &mirrors;
    assert_equal(&pair.source, &pair.cloud, &[spared], written).await;
    tell("the other mirror", written, start);
}

#[tokio::test]
async fn a_foreign_write_is_found_when_the_agent_returns() {
    let _turn = Turn::shared().await;
    let mut mirrors = Mirrors::start().await;
    mirrors.rig.agent.terminate(Duration::from_secs(30)).await;
    mirrors.write_foreign().await;
    mirrors.rig.agent.restart();
    mirrors.rig.agent.wait_ready().await;
    mirrors.assert_failed().await;
    let config = mirrors.pair.source.client_config();
    Workload::new().topic(&mirrors.spared, PARTITIONS).produce(&config, BEFORE).await;
    let Mirrors { pair, spared, .. } = &mirrors;
    assert_equal(&pair.source, &pair.cloud, &[spared], 3 * BEFORE).await;
}
