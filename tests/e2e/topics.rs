//! Many topics of different width on one link.

use std::time::Instant;

use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::wait_until_mirrored;
use tombolo_tests::producer::{Codec, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

/// 78 partitions in all.
const WIDEST: i32 = 12;
const HISTORY: u64 = 39_000;
const LIVE: u64 = 39_000;

#[tokio::test]
async fn mirrors_twelve_topics_of_one_to_twelve_partitions_on_one_link() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let mut workload = Workload::new().codec(Codec::Lz4);
    let mut names = Vec::new();
    for partitions in 1..=WIDEST {
        let topic = unique_name(&format!("width-{partitions}"));
        pair.source.create_topic(&topic, partitions, 1, &[]).await;
        workload = workload.topic(&topic, partitions);
        names.push(topic);
    }
    let topics: Vec<&str> = names.iter().map(String::as_str).collect();
    let config = pair.source.client_config();
    workload.produce(&config, HISTORY).await;

    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&topics)).await;
    let start = Instant::now();
    wait_until_active(&rig, &topics).await;
    workload.produce(&config, LIVE).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &topics, DEADLINE).await;
    tell("12 topics, 78 partitions, half of it live", HISTORY + LIVE, start);
    assert_equal(&pair.source, &pair.cloud, &topics, HISTORY + LIVE).await;

    let widths = pair.cloud.topics().await;
    for (topic, partitions) in names.iter().zip(1..=WIDEST) {
        assert_eq!(widths.get(topic), Some(&partitions), "{topic}");
    }
}
