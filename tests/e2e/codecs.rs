//! Producers of every codec write to a mirror that is live.

use std::time::Instant;

use futures_util::future::join_all;
use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::wait_until_mirrored;
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_until_active};

const PARTITIONS: i32 = 2;
/// Of each producer: every shape of record 50 times, and four records of 1 MB.
const RECORDS: u64 = 400;

#[tokio::test]
async fn mirrors_every_codec_and_shape_of_record_while_it_is_written() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let mut producers = Vec::new();
    for codec in Codec::ALL {
        for idempotent in [true, false] {
            let topic = unique_name(&format!("live-{}", codec.name()));
            pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
            let workload = Workload::new().topic(&topic, PARTITIONS).codec(codec).idempotent(idempotent);
            producers.push((topic, workload.shape(Shape::Mixed)));
        }
    }
    let topics: Vec<&str> = producers.iter().map(|(topic, _)| topic.as_str()).collect();
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&topics)).await;
    wait_until_active(&rig, &topics).await;

    let start = Instant::now();
    let config = pair.source.client_config();
    let written = join_all(producers.iter().map(|(_, workload)| workload.produce(&config, RECORDS))).await;
    assert!(written.iter().all(|produced| produced.acknowledged() == RECORDS), "{written:?}");
    wait_until_mirrored(&pair.source, &pair.cloud, &topics, DEADLINE).await;
    let records = RECORDS * u64::try_from(producers.len()).unwrap();
    tell("ten live producers, five codecs", records, start);
    assert_equal(&pair.source, &pair.cloud, &topics, records).await;
}
