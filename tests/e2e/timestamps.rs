//! Times and limits: append times, topics whose configs change in flight, records of other centuries, the largest batches.

use std::time::{Duration, Instant};

use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::{Seen, await_equal_with_gaps};
use tombolo_tests::image::batches;
use tombolo_tests::producer::{Codec, Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::wait::until;

use crate::course::{DEADLINE, Turn, mirrored_end, tell, wait_until_active};

const PARTITIONS: i32 = 2;
const LOG_APPEND_TIME: (&str, &str) = ("message.timestamp.type", "LogAppendTime");
const YEAR: Duration = Duration::from_hours(365 * 24);

#[tokio::test]
async fn append_times_stay_the_times_that_consumers_see() {
    const RECORDS: u64 = 100;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let mut topics = Vec::new();
    for codec in Codec::ALL {
        let topic = unique_name(&format!("append-time-{}", codec.name()));
        pair.source.create_topic(&topic, PARTITIONS, 1, &[LOG_APPEND_TIME]).await;
        // Producers whose clocks are a year slow: their own times must not come through.
        let workload = Workload::new().topic(&topic, PARTITIONS).codec(codec).shape(Shape::Mixed).age(YEAR);
        workload.produce(&pair.source.client_config(), RECORDS).await;
        topics.push((topic, workload));
    }
    let names: Vec<&str> = topics.iter().map(|(topic, _)| topic.as_str()).collect();
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&names)).await;
    let start = Instant::now();
    wait_until_active(&rig, &names).await;
    for (_, workload) in &topics {
        workload.produce(&pair.source.client_config(), RECORDS).await;
    }
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &names, rig.producer_id(), DEADLINE).await;
    let records = 2 * RECORDS * u64::try_from(names.len()).unwrap();
    assert_eq!(seen, Seen { records, aborted: 0 });
    tell("logs of append times, by five codecs", records, start);
    for topic in names {
        for (ours, theirs) in batches(&pair.source, topic, 0).await.iter().zip(batches(&pair.cloud, topic, 0).await) {
            assert_eq!((ours.base_offset(), ours.next_offset()), (theirs.base_offset(), theirs.next_offset()));
            assert_eq!(ours.codec(), theirs.codec(), "{topic}: another codec");
            assert!(!theirs.is_log_append_time(), "{topic}: a mirror that a broker would refuse");
        }
    }
}

#[tokio::test]
async fn a_topic_whose_configs_change_in_flight_goes_on() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("reconfigured");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let spec = RigSpec::new(&[&topic])
        .agent("memory.limit", "96 MiB")
        .agent("memory.max_frame", "6 MiB")
        .agent("memory.window", "32 MiB")
        .gateway("memory.max_frame", "6 MiB")
        .gateway("memory.credit_per_link", "16 MiB");
    let rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    wait_until_active(&rig, &[&topic]).await;
    let config = pair.source.client_config();
    let start = Instant::now();
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Keyed).codec(Codec::Lz4);
    let live = workload.rate(500).start(&config);
    for change in [
        LOG_APPEND_TIME,
        ("compression.type", "gzip"),
        ("message.timestamp.type", "CreateTime"),
        ("compression.type", "uncompressed"),
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "4000000"),
        ("compression.type", "zstd"),
        ("cleanup.policy", "delete"),
        LOG_APPEND_TIME,
        ("compression.type", "producer"),
        ("message.timestamp.type", "CreateTime"),
    ] {
        pair.source.alter_topic(&topic, &[change]).await;
        let before = mirrored_end(&pair.cloud, &topic, 0).await;
        until(&format!("the mirror grows with {}={}", change.0, change.1), DEADLINE, async || {
            let end = mirrored_end(&pair.cloud, &topic, 0).await;
            if end > before + 100 { Ok(()) } else { Err(rig.gateway.status().await.to_string()) }
        })
        .await;
        if change.0 == "max.message.bytes" {
            let large = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(3_500_000));
            large.set("message.max.bytes", "4000000").produce(&config, 2).await;
        }
    }
    let written = live.stop().await.acknowledged() + 2;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: written, aborted: 0 });
    tell("eleven changes of configs", written, start);
}

#[tokio::test]
async fn records_of_any_year_and_of_the_largest_size_are_mirrored_as_they_are() {
    const EACH: u64 = 200;
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("limits");
    let limits = [("message.timestamp.after.max.ms", "9223372036854775807"), ("max.message.bytes", "20971520")];
    pair.source.create_topic(&topic, PARTITIONS, 1, &limits).await;
    let spec = RigSpec::new(&[&topic])
        .agent("memory.limit", "192 MiB")
        .agent("memory.max_frame", "24 MiB")
        .agent("memory.window", "96 MiB")
        .gateway("memory.max_frame", "24 MiB")
        .gateway("memory.limit", "320 MiB")
        .gateway("memory.credit_per_link", "64 MiB")
        .gateway("memory.credit_total", "64 MiB");
    let rig = Rig::start(&pair.source, &pair.cloud, spec).await;
    wait_until_active(&rig, &[&topic]).await;
    let start = Instant::now();
    let config = pair.source.client_config();
    let plain = Workload::new().topic(&topic, PARTITIONS);
    for workload in [
        plain.clone(),
        plain.clone().ahead(Duration::from_hours(5)),
        plain.clone().ahead(YEAR * 200),
        plain.clone().age(YEAR * 30),
        plain.clone(),
    ] {
        workload.produce(&config, EACH).await;
    }
    // As much as the topic takes: some bytes of it are the batch's and the record's own.
    let largest = plain.clone().shape(Shape::Plain(20_900_000)).set("message.max.bytes", "20971520");
    largest.produce(&config, 4).await;
    plain.produce(&config, EACH).await;
    let seen = await_equal_with_gaps(&pair.source, &pair.cloud, &[&topic], rig.producer_id(), DEADLINE).await;
    assert_eq!(seen, Seen { records: 6 * EACH + 4, aborted: 0 });
    tell("records of three centuries, and four batches of 20 MB", seen.records, start);
    let reencoded = rig.agent.metric("tombolo_reencoded_batches_total").await;
    assert!(reencoded < 1.0, "{reencoded} batches were encoded again that could be sent as they are");
}
