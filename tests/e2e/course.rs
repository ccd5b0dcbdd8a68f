//! What every test here goes through: its turn on the machine, a link that is up, its end and its figures.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tombolo_tests::broker::KafkaCluster;
use tombolo_tests::compare::await_equal;
use tombolo_tests::process::Daemon;
use tombolo_tests::rig::Rig;
use tombolo_tests::wait::until;

/// For a condition that holds within seconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(3);

/// Tests that may work at a time, on the shared pair of clusters: they wait most of it.
const AT_ONCE: u32 = 4;
/// What brokers of its own make a test count for.
const OWN_CLUSTERS: u32 = 2;
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// A test's turn on the machine. Taken first, so that it is given back last.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: SemaphorePermit<'static>,
}

impl Turn {
    /// Beside another test, on the shared pair of clusters.
    pub(crate) async fn shared() -> Self {
        Self::of(1).await
    }

    /// For a test that starts clusters of its own.
    pub(crate) async fn apart() -> Self {
        Self::of(OWN_CLUSTERS).await
    }

    /// For a test that gives the shared clusters more to do than others bear.
    pub(crate) async fn alone() -> Self {
        Self::of(AT_ONCE).await
    }

    async fn of(permits: u32) -> Self {
        Self { _permit: TURNS.acquire_many(permits).await.expect("turns are never closed") }
    }
}

/// Waits until both ends say that these mirrors are ACTIVE.
pub(crate) async fn wait_until_active(rig: &Rig, topics: &[&str]) {
    for topic in topics {
        for daemon in [&rig.agent, &rig.gateway] {
            wait_for_state(daemon, topic, "ACTIVE").await;
        }
    }
}

/// Waits until the daemon shows the mirror in this state; what it shows then.
pub(crate) async fn wait_for_state(daemon: &Daemon, topic: &str, state: &str) -> Value {
    until(&format!("{topic} is {state}"), DEADLINE, async || {
        let status = daemon.status().await;
        match mirror(&status, topic) {
            Some(mirror) if mirror["mirror_status"] == state => Ok(mirror.clone()),
            Some(mirror) => Err(mirror.to_string()),
            None => Err(format!("not shown: {status}")),
        }
    })
    .await
}

/// A mirror in the status document of either end: the gateway's has its links around it.
fn mirror<'a>(status: &'a Value, topic: &str) -> Option<&'a Value> {
    let links = status["links"].as_array().into_iter().flatten();
    let mirrors = links.chain([status]).filter_map(|link| link["mirrors"].as_array()).flatten();
    mirrors.into_iter().find(|mirror| mirror["topic"] == topic)
}

/// Asserts that source and cloud hold the same in these topics, `records` records.
pub(crate) async fn assert_equal(source: &KafkaCluster, cloud: &KafkaCluster, topics: &[&str], records: u64) {
    assert_eq!(await_equal(source, cloud, topics, DEADLINE).await, records);
}

/// Tells what was measured, for the README.
#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "figures for people, shown with --nocapture")]
pub(crate) fn tell(what: &str, records: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{what}: {records} records in {seconds:.1} s, {:.0} records/s", records as f64 / seconds);
}

/// High watermark of a mirror's partition; 0 while there is none.
pub(crate) async fn mirrored_end(cloud: &KafkaCluster, topic: &str, partition: i32) -> i64 {
    cloud.log_range(topic, partition).await.map_or(0, |(_, end)| end)
}

/// Of all moments of a test; `TOMBOLO_KILL_SEED=n` takes the ones of an earlier run.
#[expect(clippy::print_stdout, reason = "a failing run is told apart by its seed")]
pub(crate) fn seed() -> u64 {
    let given = std::env::var("TOMBOLO_KILL_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("TOMBOLO_KILL_SEED={seed}");
    seed
}
