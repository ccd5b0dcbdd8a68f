//! `tombolo verify` finds each difference that was put into a mirror on purpose, at its offset, and none in a twin.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tombolo_kafka::produce::{ProduceBatch, send_produce};
use tombolo_kafka::records::{Record, Writer, encode_batch};
use tombolo_tests::broker::{KafkaCluster, Mechanism, Pair, shared_pair, unique_name};
use tombolo_tests::process::tombolo;
use tombolo_tests::scratch::Scratch;

use crate::course::Turn;

const PARTITIONS: i32 = 2;
const BATCHES: i64 = 8;
/// Records of a batch.
const SIZE: i64 = 3;
/// The batch that a difference is put into, and its first offset.
const AT: usize = 4;
const OFFSET: i64 = 12;
const DEADLINE: Duration = Duration::from_secs(10);
/// A producer without an id.
const PLAIN: Writer = Writer { producer_id: -1, epoch: -1, sequence: -1 };

type Log = Vec<Vec<Record>>;

/// A difference of the mirror's partition 1.
struct Planted {
    name: &'static str,
    plant: fn(&mut Log),
    /// Offset at which it must be told, and in which words.
    offset: i64,
    words: &'static str,
}

const PLANTED: [Planted; 7] = [
    Planted { name: "changed-byte", plant: changed_byte, offset: OFFSET, words: "batches differ" },
    Planted { name: "missing-record", plant: missing_record, offset: OFFSET, words: "batches differ" },
    Planted { name: "extra-record", plant: extra_record, offset: BATCHES * SIZE, words: "in the mirror only" },
    Planted { name: "shifted-offset", plant: shifted_offset, offset: OFFSET, words: "batches differ" },
    Planted { name: "changed-timestamp", plant: changed_timestamp, offset: OFFSET, words: "batches differ" },
    Planted { name: "changed-header", plant: changed_header, offset: OFFSET, words: "batches differ" },
    Planted { name: "truncated-tail", plant: truncated_tail, offset: (BATCHES - 1) * SIZE, words: "log ends differ" },
];

fn changed_byte(log: &mut Log) {
    log[AT][1].value = Some(Bytes::from_static(b"value of record 10"));
}

fn missing_record(log: &mut Log) {
    log[AT].remove(1);
}

fn extra_record(log: &mut Log) {
    log.push(vec![record(BATCHES * SIZE)]);
}

fn shifted_offset(log: &mut Log) {
    log.insert(AT, vec![record(99)]);
}

fn changed_timestamp(log: &mut Log) {
    log[AT][2].timestamp += 1;
}

fn changed_header(log: &mut Log) {
    log[AT][0].headers[0].1 = Some(Bytes::from_static(b"2"));
}

fn truncated_tail(log: &mut Log) {
    log.pop();
}

fn record(number: i64) -> Record {
    Record {
        offset: 0,
        timestamp: 1_700_000_000_000 + number,
        key: Some(Bytes::from(format!("key {number}"))),
        value: Some(Bytes::from(format!("value of record {number}"))),
        headers: vec![("planted".to_owned(), Some(Bytes::from_static(b"1")))],
    }
}

fn log() -> Log {
    (0..BATCHES).map(|batch| (0..SIZE).map(|at| record(batch * SIZE + at)).collect()).collect()
}

/// A topic on both sides, which hold the same but for partition 1 of the mirror.
async fn twins(pair: &Pair, name: &str, mirror_partitions: i32, plant: fn(&mut Log)) -> String {
    let topic = unique_name(name);
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    pair.cloud.create_topic(&topic, mirror_partitions, 1, &[]).await;
    let plain = log();
    let mut planted = plain.clone();
    plant(&mut planted);
    for partition in 0..PARTITIONS {
        append(&pair.source, &topic, partition, &plain).await;
        if partition < mirror_partitions {
            append(&pair.cloud, &topic, partition, if partition == 1 { &planted } else { &plain }).await;
        }
    }
    topic
}

async fn append(cluster: &KafkaCluster, topic: &str, partition: i32, log: &[Vec<Record>]) {
    let raw = cluster.raw_client();
    let leader = raw.leader(topic, partition).await.unwrap();
    let connection = raw.connect(leader.broker).await.unwrap();
    let topic: Arc<str> = topic.into();
    for records in log {
        let batch = encode_batch(records, PLAIN).unwrap();
        let batch = ProduceBatch { topic: Arc::clone(&topic), topic_id: None, partition, batch };
        let answers = send_produce(&connection, vec![batch], DEADLINE).await.unwrap();
        answers[0].result.as_ref().unwrap();
    }
}

async fn verify(settings: &str, topic: &str, more: &[&str]) -> (Option<i32>, Value) {
    let words = [&["verify", "--config", settings, "--topic", topic, "--output", "json"], more].concat();
    let Output { status, stdout, stderr } = tombolo(&words).await;
    let found = serde_json::from_slice(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}, {}", stdout, String::from_utf8_lossy(&stderr)));
    (status.code(), found)
}

#[tokio::test]
async fn each_planted_difference_is_found_and_none_in_a_twin() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let scratch = Scratch::new("planted");
    let table = |name: &str, cluster: &KafkaCluster| {
        let properties = cluster.properties(Mechanism::ScramSha512);
        let lines: Vec<String> = properties.iter().map(|(name, value)| format!("{name:?} = {value:?}")).collect();
        format!("[{name}]\n{}\n", lines.join("\n"))
    };
    let text = format!("{}{}", table("source", &pair.source), table("cloud", &pair.cloud));
    let settings = scratch.write("verify.toml", &text).display().to_string();

    let clean = twins(pair, "clean", PARTITIONS, |_| ()).await;
    let (code, found) = verify(&settings, &clean, &["--strict", "--records"]).await;
    assert_eq!((code, &found["verdict"]), (Some(0), &"identical".into()), "{found}");
    assert_eq!(found["records"], i64::from(PARTITIONS) * BATCHES * SIZE, "{found}");

    for Planted { name, plant, offset, words } in PLANTED {
        let topic = twins(pair, name, PARTITIONS, plant).await;
        let (code, found) = verify(&settings, &topic, &["--strict"]).await;
        assert_eq!((code, &found["verdict"]), (Some(1), &"different".into()), "{name}: {found}");
        let listed = found["differences"].as_array().unwrap();
        let told = listed.iter().any(|difference| {
            let text = difference["text"].as_str().unwrap_or_default();
            difference["partition"] == 1 && difference["offset"] == offset && text.contains(words)
        });
        assert!(told, "{name} is not told at offset {offset} as {words:?}: {found}");
        assert!(listed.iter().all(|difference| difference["partition"] == 1), "{name}: {found}");
        // Record by record, through another client.
        let (code, found) = verify(&settings, &topic, &["--strict", "--records"]).await;
        assert_eq!(code, Some(1), "{name}: {found}");
    }

    let lacking = twins(pair, "missing-partition", PARTITIONS - 1, |_| ()).await;
    let (code, found) = verify(&settings, &lacking, &[]).await;
    assert_eq!((code, &found["verdict"]), (Some(1), &"different".into()), "{found}");
    assert!(found["differences"].to_string().contains("partition"), "{found}");
}
