//! A box that loses power again and again, behind a link that is dark most of the time, with a journal that is too small.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::lossy_link::{Profile, Way};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::Rig;

use crate::course::{Turn, assert_equal, tell, wait_until_active};
use crate::outage::spec;

const PARTITIONS: i32 = 4;
/// Of the whole course.
const COURSE: Duration = Duration::from_mins(3);
/// The link is dark for so long, then bright for so long.
const DARK: Duration = Duration::from_secs(25);
const BRIGHT: Duration = Duration::from_secs(12);
/// Records of 1 kB that compress to half: more than the journal holds of one darkness.
const RATE: u32 = 1_500;

#[tokio::test]
async fn outlives_kills_and_a_full_journal_behind_a_flapping_link() {
    let _turn = Turn::shared().await;
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let pair = shared_pair().await;
    let topic = unique_name("flash");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let way = Way { rate: Some(20_000_000), delay: Duration::from_millis(20), queue_bytes: 256 << 10, ..Way::CLEAN };
    let spec = spec(&[&topic])
        .profile(Profile { up: way, down: way, seed: 5 })
        .agent("journal.segment", "4 MiB")
        .agent("journal.max_bytes", "12 MiB")
        .agent("memory.window", "4 MiB")
        .agent("link.idle_timeout", "3 s");
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    rig.agent.allow("the journal takes nothing");
    // An agent dies between its handshake and its first message.
    rig.gateway.allow("connection ended before its session began");
    wait_until_active(&rig, &[&topic]).await;

    let start = Instant::now();
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(1_000)).rate(RATE);
    let producer = workload.start(&pair.source.client_config());
    let (mut kills, mut full) = (0, 0);
    let mut was_full = false;
    while start.elapsed() < COURSE {
        let phase = start.elapsed().as_millis() % (DARK + BRIGHT).as_millis();
        rig.link.dark(phase < DARK.as_millis());
        let until = Instant::now() + Duration::from_millis(random.random_range(2_500..6_500));
        while Instant::now() < until {
            let status = rig.agent.status().await;
            let is_full = status["journal"]["problem"].is_string();
            full += u32::from(is_full && !was_full);
            was_full = is_full;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        rig.agent.restart();
        rig.agent.wait_ready().await;
        kills += 1;
        was_full = false;
    }
    rig.link.dark(false);
    rig.link.set(Profile::CLEAN);
    let written = producer.stop().await.acknowledged();
    tell(&format!("{kills} kills, {full} times full"), written, start);
    assert!(kills >= 25 && full >= 2, "seed {seed}: {kills} kills, the journal was full {full} times");
    assert_equal(&pair.source, &pair.cloud, &[&topic], written).await;
}
