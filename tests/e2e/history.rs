//! A mirror that begins with a long history, while the source goes on.

use std::time::Instant;

use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::wait_until_mirrored;
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, assert_equal, tell};

const PARTITIONS: i32 = 4;
const HISTORY: u64 = 1_000_000;
/// Records a second while the history drains.
const LIVE_RATE: u32 = 2_000;

#[tokio::test]
async fn drains_a_million_records_while_new_ones_come_in() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("history");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(100)).codec(Codec::Zstd);
    let config = pair.source.client_config();
    let history = workload.clone().set("linger.ms", "50").produce(&config, HISTORY).await;
    assert_eq!(history.acknowledged(), HISTORY);

    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    let start = Instant::now();
    let live = workload.rate(LIVE_RATE).start(&config);
    until("the mirror is as long as the history", DEADLINE, async || {
        let mut mirrored = 0;
        for partition in 0..PARTITIONS {
            mirrored += pair.cloud.log_range(&topic, partition).await.map_or(0, |(_, end)| end);
        }
        if u64::try_from(mirrored).is_ok_and(|mirrored| mirrored >= HISTORY) { Ok(()) } else { Err(mirrored) }
    })
    .await;
    tell("history of a million records, from the first to the last", HISTORY, start);
    let live = live.stop().await.acknowledged();
    assert!(live > 0, "nothing was written while the history drained");
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], DEADLINE).await;
    tell("the same and what came in meanwhile", HISTORY + live, start);
    assert_equal(&pair.source, &pair.cloud, &[&topic], HISTORY + live).await;
    drop(rig);
}
