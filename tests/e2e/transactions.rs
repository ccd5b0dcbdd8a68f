//! Transactions at the source: the mirror holds what was committed, at its offsets, and gaps for the rest.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tombolo_kafka::admin::describe_producers;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps, wait_until_mirrored};
use tombolo_tests::consumer::{Isolation, read_all};
use tombolo_tests::producer::{BackgroundProducer, Codec, Produced, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::transactions::{ABORTED, BackgroundTransactions, Hanging, Settled, Transactions};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, mirrored_end, seed, tell, wait_until_active};
use crate::verify::{PASSES, Verifier};

const PARTITIONS: i32 = 3;
/// Of each daemon.
const KILLS: usize = 10;
/// Transactions a second in each partition, while they are killed.
const RATE: u32 = 50;
/// Producers of each kind that it takes.
const OF_A_KIND: u32 = 3;
/// The moment of an agent's end in milliseconds, after the daemon that was killed before is back.
const MOMENTS: Range<u64> = 200..2_500;
/// The same of a gateway, after it began to write markers.
const MARKING: Range<u64> = 0..300;

/// Applications that write into one topic at once: with transactions, and without.
struct Applications {
    transactional: Vec<BackgroundTransactions>,
    plain: Vec<BackgroundProducer>,
}

impl Applications {
    /// As fast as three transactional ones go.
    fn start(source: &KafkaCluster, topic: &str) -> Self {
        Self::start_all(source, topic, &Self::kinds(topic))
    }

    /// With so many transactions a second as nobody manages alone: each ends in every partition.
    fn start_many(source: &KafkaCluster, topic: &str, rate: u32) -> Self {
        let kinds = Self::kinds(topic).map(|kind| kind.rate(rate.div_ceil(3 * OF_A_KIND)));
        let all: Vec<Transactions> = (0..OF_A_KIND).flat_map(|_| kinds.clone()).collect();
        Self::start_all(source, topic, &all)
    }

    fn kinds(topic: &str) -> [Transactions; 3] {
        let transactions = Transactions::new(topic, PARTITIONS);
        [
            transactions.clone(),
            transactions.clone().records(9).codec(Codec::Zstd).abort_every(Some(2)),
            transactions.records(1).codec(Codec::Lz4).abort_every(None),
        ]
    }

    fn start_all(source: &KafkaCluster, topic: &str, transactional: &[Transactions]) -> Self {
        let config = source.client_config();
        let plain = Workload::new().topic(topic, PARTITIONS).rate(300);
        Self {
            transactional: transactional.iter().map(|workload| workload.start(&config)).collect(),
            plain: [true, false].map(|idempotent| plain.clone().idempotent(idempotent).start(&config)).into(),
        }
    }

    /// Waits for so many further transactions.
    async fn wait_for(&self, transactions: u64) {
        let settled = || {
            let settled: Settled = self.transactional.iter().map(BackgroundTransactions::settled).sum();
            settled.commits + settled.aborts
        };
        let before = settled();
        until("transactions are settled", DEADLINE, async || {
            let now = settled();
            if now >= before + transactions { Ok(()) } else { Err(now - before) }
        })
        .await;
    }

    /// What readers must see in the end.
    async fn stop(self) -> (Settled, Seen) {
        let settled = join_all(self.transactional.into_iter().map(BackgroundTransactions::stop)).await;
        let plain = join_all(self.plain.into_iter().map(BackgroundProducer::stop)).await;
        let settled: Settled = settled.into_iter().sum();
        let records = settled.committed + plain.iter().map(Produced::acknowledged).sum::<u64>();
        (settled, Seen { records, aborted: settled.aborted })
    }
}

/// Nothing that was aborted is in the mirror, for nobody.
async fn assert_nothing_aborted(cloud: &KafkaCluster, topic: &str) {
    for partition in 0..PARTITIONS {
        let records = read_all(cloud, topic, partition, Isolation::Uncommitted).await;
        let aborted = |value: &Vec<u8>| value.starts_with(ABORTED.as_bytes());
        let found = records.iter().find(|record| record.value.as_ref().is_some_and(aborted));
        assert!(found.is_none(), "{topic}/{partition}: {found:?}");
    }
}

#[tokio::test]
async fn the_mirror_holds_what_was_committed_and_nothing_that_was_aborted() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("settled");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let applications = Applications::start(&pair.source, &topic);
    applications.wait_for(100).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    let start = Instant::now();
    wait_until_active(&rig, &[&topic]).await;
    applications.wait_for(300).await;
    let (settled, expected) = applications.stop().await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    let what = format!("{} commits and {} aborts over {PARTITIONS} partitions", settled.commits, settled.aborts);
    tell(&what, expected.records, start);
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, expected);
    assert_nothing_aborted(&pair.cloud, &topic).await;
    let verifier = Verifier::of(&pair.source, &pair.cloud);
    let verified = verifier.run(&["--link", &rig.name, "--topic", &topic, "--records", "--strict"]).await;
    assert_eq!(verified.code, PASSES, "{verified:?}");
    let reencoded = rig.agent.metric("tombolo_reencoded_batches_total").await;
    assert!(reencoded < 1.0, "{reencoded} batches were encoded again that could be sent as they are");
}

#[tokio::test]
async fn a_transaction_that_hangs_holds_its_partition_back_and_no_other() {
    const RECORDS: u64 = 300;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("hanging");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let config = pair.source.client_config();
    let plain = Workload::new().topic(&topic, PARTITIONS);
    plain.produce(&config, RECORDS).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;

    let start = Instant::now();
    let hanging = Hanging::begin(&config, &topic, 0, 5).await;
    plain.produce(&config, RECORDS).await;
    let each = i64::try_from(RECORDS).unwrap() / i64::from(PARTITIONS);
    for partition in 1..PARTITIONS {
        until("the other partitions go on", DEADLINE, async || {
            let end = mirrored_end(&pair.cloud, &topic, partition).await;
            if end == 2 * each { Ok(()) } else { Err(end) }
        })
        .await;
    }
    let holder = json!({"producer_id": open_producer(&pair.source, &topic).await, "since_offset": each});
    wait_until_told(&rig, &holder).await;
    assert_eq!(mirrored_end(&pair.cloud, &topic, 0).await, each, "an open transaction was mirrored");

    hanging.abort().await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 2 * RECORDS, aborted: 5 });
    wait_until_told(&rig, &Value::Null).await;
    tell("a transaction that hung, and its partition after it", 2 * RECORDS, start);
}

/// Waits until the agent names this transaction as what partition 0 waits for.
async fn wait_until_told(rig: &Rig, holder: &Value) {
    until(&format!("status tells of {holder}"), DEADLINE, async || {
        let status = rig.agent.status().await;
        let told = status.pointer("/mirrors/0/partitions/0/waits_for_transaction");
        if told == Some(holder) { Ok(()) } else { Err(status) }
    })
    .await;
}

/// The producer that has a transaction open in partition 0.
async fn open_producer(source: &KafkaCluster, topic: &str) -> i64 {
    let connection = source.raw_client().connect(1).await.unwrap();
    let answer = describe_producers(&connection, &[(topic.into(), 0)]).await.unwrap().remove(0);
    let open = answer.result.unwrap().into_iter().find(|state| state.current_txn_start_offset.is_some());
    open.unwrap().producer_id
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Agent,
    Gateway,
}

#[tokio::test]
async fn outlives_twenty_sudden_deaths_while_transactions_run() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("killed-in-transactions");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic]).impatient()).await;
    // An agent dies between its handshake and its first message.
    rig.gateway.allow("connection ended before its session began");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let applications = Applications::start_many(&pair.source, &topic, RATE);
    let hit = kill_all(&mut rig, &pair.cloud, &topic).await;
    let (settled, expected) = applications.stop().await;
    let rate = (settled.commits + settled.aborts) / start.elapsed().as_secs().max(1);
    let what = format!("twenty kills, {hit} of them in the flow, {rate} transactions/s in each partition, {settled:?}");
    tell(&what, expected.records, start);
    assert!(hit >= KILLS / 2, "the mirror grew before {hit} of the kills only");
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    tell("the same, all caught up", expected.records, start);
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, expected);
    assert_nothing_aborted(&pair.cloud, &topic).await;
    tell("and compared", expected.records, start);
}

/// Kills each daemon ten times at random moments, in random order, and a gateway only once it writes markers. Before how
/// many of them the mirror had grown since the one before.
async fn kill_all(rig: &mut Rig, cloud: &KafkaCluster, topic: &str) -> usize {
    let mut random = StdRng::seed_from_u64(seed());
    let mut victims = [[Victim::Agent; KILLS], [Victim::Gateway; KILLS]].concat();
    victims.shuffle(&mut random);
    let (mut hit, mut before) = (0, 0);
    for victim in victims {
        let moments = match victim {
            Victim::Agent => MOMENTS,
            Victim::Gateway => {
                wait_until_marking(rig).await;
                MARKING
            }
        };
        tokio::time::sleep(Duration::from_millis(random.random_range(moments))).await;
        let end = mirrored_end(cloud, topic, 0).await;
        hit += usize::from(end > before);
        before = end;
        let daemon = match victim {
            Victim::Agent => &mut rig.agent,
            Victim::Gateway => &mut rig.gateway,
        };
        daemon.restart();
        daemon.wait_ready().await;
    }
    hit
}

/// Waits until this gateway has written markers: some are always on their way then.
async fn wait_until_marking(rig: &Rig) {
    until("the gateway writes markers", DEADLINE, async || {
        let markers = rig.gateway.metric("tombolo_gateway_markers_total").await;
        if markers > 0.0 { Ok(()) } else { Err(markers) }
    })
    .await;
}

/// What a dead gateway had sent lies in the broker's sockets, markers among it, and is appended when nobody expects it.
#[tokio::test]
async fn late_markers_of_a_dead_gateway_shift_nothing() {
    const DEATHS: usize = 4;
    let _turn = Turn::apart().await;
    let source = &shared_pair().await.source;
    let cloud = KafkaCluster::start(ClusterSpec::single()).await;
    let topic = unique_name("late-markers");
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(source, &cloud, RigSpec::new(&[&topic]).impatient()).await;
    wait_until_active(&rig, &[&topic]).await;
    let start = Instant::now();
    let applications = Applications::start(source, &topic);
    for _ in 0..DEATHS {
        wait_until_longer(&cloud, &topic).await;
        cloud.pause_broker(1);
        until("something waits for the broker", DEADLINE, async || {
            let held = rig.gateway.metric("tombolo_gateway_held_bytes").await;
            if held > 2_000.0 { Ok(()) } else { Err(held) }
        })
        .await;
        rig.gateway.restart();
        cloud.continue_broker(1);
        rig.gateway.wait_ready().await;
    }
    let (settled, expected) = applications.stop().await;
    let seen = await_equal_with_gaps(source, &cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, expected);
    tell(&format!("{DEATHS} gateways that died with markers on their way, {settled:?}"), expected.records, start);
}

#[tokio::test]
async fn goes_on_when_a_leader_in_the_cloud_dies_amid_markers() {
    let _turn = Turn::apart().await;
    let source = &shared_pair().await.source;
    let cloud = KafkaCluster::start(ClusterSpec::three()).await;
    let topic = unique_name("led");
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(source, &cloud, RigSpec::new(&[&topic])).await;
    // Said when the broker that is killed leads the registry, too, and its election outlasts a lease.
    rig.gateway.allow("registry cannot be read");
    wait_until_active(&rig, &[&topic]).await;
    let start = Instant::now();
    let applications = Applications::start(source, &topic);
    wait_until_longer(&cloud, &topic).await;
    let leader = cloud.leader_of(&topic, 0).await;
    cloud.kill_broker(leader);
    until("another broker leads", DEADLINE, async || {
        let leads = cloud.leader_of(&topic, 0).await;
        if leads == leader { Err(leads) } else { Ok(()) }
    })
    .await;
    wait_until_longer(&cloud, &topic).await;
    let (settled, expected) = applications.stop().await;
    let seen = await_equal_with_gaps(source, &cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, expected);
    tell(&format!("a leader killed in the cloud, {settled:?}"), expected.records, start);
}

/// Waits until every partition of the mirror is longer than now.
async fn wait_until_longer(cloud: &KafkaCluster, topic: &str) {
    for partition in 0..PARTITIONS {
        let before = mirrored_end(cloud, topic, partition).await;
        until(&format!("the mirror of partition {partition} grows"), DEADLINE, async || {
            let end = mirrored_end(cloud, topic, partition).await;
            if end > before { Ok(()) } else { Err(end) }
        })
        .await;
    }
}
