//! Agent and gateway die without warning, again and again, while a producer writes.

use std::ops::Range;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::raw_compare;
use tombolo_tests::lossy_link::{Profile, Way};
use tombolo_tests::process::Daemon;
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

use crate::course::{Turn, assert_equal, seed, tell, wait_until_active};

const PARTITIONS: i32 = 4;
/// Of each daemon.
const KILLS: usize = 10;
/// More than the link carries, so that something is always on its way: records of 1 kB that compress to half.
const RATE: u32 = 1_000;
/// The moment of a kill in milliseconds, after the daemon that was killed before is back: within a claim, a resume, or the flow.
const MOMENTS: Range<u64> = 800..5_000;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Agent,
    Gateway,
}

/// What was seen just before the kills and at the end. Metrics begin anew with every process.
#[derive(Debug, Default)]
struct Evidence {
    /// Kills when the agent held bytes that the cloud had not confirmed.
    unconfirmed: usize,
    /// Bytes that all agents together read from the source.
    fetched: f64,
    /// Batches sent twice of which the broker kept one, by all gateways.
    duplicates: f64,
}

impl Evidence {
    async fn of_agent(&mut self, agent: &Daemon) {
        self.fetched += agent.metric("tombolo_fetched_bytes_total").await;
    }

    async fn of_gateway(&mut self, gateway: &Daemon) {
        self.duplicates += gateway.metric("tombolo_gateway_duplicates_discarded_total").await;
    }
}

/// 3 Mbit/s up, 60 ms there and back.
fn narrow() -> Profile {
    let way = Way { delay: Duration::from_millis(30), queue_bytes: 128 << 10, ..Way::CLEAN };
    Profile { up: Way { rate: Some(3_000_000), ..way }, down: way, seed: 3 }
}

#[tokio::test]
async fn outlives_twenty_sudden_deaths_of_agent_and_gateway() {
    let _turn = Turn::shared().await;
    let seed = seed();
    let pair = shared_pair().await;
    let topic = unique_name("killed");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let spec = RigSpec::new(&[&topic]).profile(narrow()).gateway("registry.lease", "1 s");
    // A killed gateway says nothing: the agent dials anew once the connection timed out, and kills in between hit little.
    let spec = spec.agent("link.idle_timeout", "4 s").agent("link.keep_alive", "1 s");
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    // An agent dies between its handshake and its first message.
    rig.gateway.allow("connection ended before its session began");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(1_000)).rate(RATE);
    let producer = workload.start(&pair.source.client_config());
    let mut evidence = kill_all(&mut rig, seed).await;
    let written = producer.stop().await.acknowledged();
    tell("twenty kills", written, start);
    rig.link.set(Profile::CLEAN);
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
    tell("twenty kills, all caught up and compared", written, start);
    evidence.of_agent(&rig.agent).await;
    evidence.of_gateway(&rig.gateway).await;
    assert_evidence(&evidence, raw_compare(&pair.source, &pair.cloud, &[&topic]).await.bytes);
}

/// Kills each daemon ten times at random moments, in random order.
async fn kill_all(rig: &mut Rig, seed: u64) -> Evidence {
    let mut random = StdRng::seed_from_u64(seed);
    let mut victims = [[Victim::Agent; KILLS], [Victim::Gateway; KILLS]].concat();
    victims.shuffle(&mut random);
    let mut evidence = Evidence::default();
    for victim in victims {
        tokio::time::sleep(Duration::from_millis(random.random_range(MOMENTS))).await;
        let held = rig.agent.metric("tombolo_window_bytes").await;
        evidence.unconfirmed += usize::from(held > 0.0);
        match victim {
            Victim::Agent => {
                evidence.of_agent(&rig.agent).await;
                rig.agent.restart();
                rig.agent.wait_ready().await;
            }
            Victim::Gateway => {
                evidence.of_gateway(&rig.gateway).await;
                rig.gateway.restart();
                rig.gateway.wait_ready().await;
            }
        }
    }
    evidence
}

/// The kills hit something: most of them unconfirmed bytes, and what an agent lost was read or sent again.
#[expect(clippy::cast_precision_loss, clippy::print_stdout, reason = "bytes far below 2^53; figures for people")]
fn assert_evidence(evidence: &Evidence, source_bytes: u64) {
    println!("{evidence:?}, the source holds {source_bytes} bytes");
    assert!(evidence.unconfirmed > KILLS, "at most kills nothing was unconfirmed: {evidence:?}");
    assert!(
        evidence.duplicates > 0.0 || evidence.fetched > source_bytes as f64,
        "nothing was sent or read twice: {evidence:?}, the source holds {source_bytes} bytes"
    );
}
