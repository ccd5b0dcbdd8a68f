//! `tombolo verify`: a mirror that is exact passes, directly, by a digest and record by record; a foreign write is named.

use std::path::PathBuf;
use std::process::Output;
use std::time::Instant;

use serde_json::Value;
use tombolo_tests::broker::{KafkaCluster, Mechanism, shared_pair, unique_name};
use tombolo_tests::compare::wait_until_mirrored;
use tombolo_tests::process::{tombolo, tombolo_measured};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::scratch::Scratch;

use crate::course::{DEADLINE, Turn, assert_equal, tell, wait_for_state, wait_until_active};

const PARTITIONS: i32 = 3;
const RECORDS: u64 = 3_000;
/// Of the foreign producer, to one partition.
const FOREIGN: u64 = 5;

/// Exit codes of `verify`.
pub(crate) const PASSES: i32 = 0;
const DIFFERS: i32 = 1;
const NOT_COMPARED: i32 = 2;
const REFUSED: i32 = 64;

/// One run of `tombolo verify`.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) code: i32,
    pub(crate) out: String,
    err: String,
}

impl Verified {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A settings file for both clusters.
pub(crate) struct Verifier {
    scratch: Scratch,
    settings: PathBuf,
}

impl Verifier {
    pub(crate) fn of(source: &KafkaCluster, cloud: &KafkaCluster) -> Self {
        let scratch = Scratch::new("verify");
        let text = format!("{}{}", table("source", source), table("cloud", cloud));
        let settings = scratch.write("verify.toml", &text);
        Self { scratch, settings }
    }

    pub(crate) async fn run(&self, words: &[&str]) -> Verified {
        let settings = self.settings.display().to_string();
        let words: Vec<&str> = ["verify", "--config", &settings].into_iter().chain(words.iter().copied()).collect();
        Verified::of(&tombolo(&words).await)
    }

    /// As [`Verifier::run`], with the most memory that it took.
    async fn run_measured(&self, words: &[&str]) -> (Verified, u64) {
        let settings = self.settings.display().to_string();
        let words: Vec<&str> = ["verify", "--config", &settings].into_iter().chain(words.iter().copied()).collect();
        let (output, peak) = tombolo_measured(&words).await;
        (Verified::of(&output), peak)
    }
}

fn table(name: &str, cluster: &KafkaCluster) -> String {
    let properties = cluster.properties(Mechanism::ScramSha512);
    let lines: Vec<String> = properties.iter().map(|(name, value)| format!("{name:?} = {value:?}")).collect();
    format!("[{name}]\n{}\n", lines.join("\n"))
}

#[tokio::test]
async fn an_exact_mirror_passes_by_every_reading() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("verified");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Mixed);
    workload.produce(&pair.source.client_config(), RECORDS).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], RECORDS).await;
    let verifier = Verifier::of(&pair.source, &pair.cloud);
    let this = ["--link", &rig.name, "--topic", &topic, "--output", "json"];

    let direct = verifier.run(&[&this[..], &["--records", "--strict"]].concat()).await;
    assert_eq!(direct.code, PASSES, "{direct:?}");
    let found = direct.json();
    assert_eq!((&found["verdict"], &found["records"]), (&"identical".into(), &RECORDS.into()), "{found}");
    assert_eq!(found["second_reading"]["equal"], RECORDS, "{found}");
    assert_eq!(found["partitions"].as_array().unwrap().len(), usize::try_from(PARTITIONS).unwrap(), "{found}");

    let file = verifier.scratch.path().join("source.digest").display().to_string();
    let written = rig.agent.command(&["digest", "--topic", &topic, &file]).await;
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let again = rig.agent.command(&["digest", "--topic", &topic, &file]).await;
    assert!(!again.status.success(), "a digest that is there is not written over");
    let digested = verifier.run(&[&this[..], &["--digest", &file]].concat()).await;
    assert_eq!(digested.code, PASSES, "{digested:?}");
    let by_digest = digested.json();
    for same in ["verdict", "batches", "records", "bytes", "gaps", "partitions"] {
        assert_eq!(by_digest[same], found[same], "{same}: {by_digest}");
    }

    let bytes = std::fs::read(&file).unwrap();
    let cut = verifier.scratch.path().join("cut.digest");
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let cut = verifier.run(&[&this[..], &["--digest", &cut.display().to_string()]].concat()).await;
    assert!(cut.code == NOT_COMPARED && cut.err.contains("was cut off"), "{cut:?}");

    let sampled = verifier.run(&["--topic", &topic, "--sample", "20"]).await;
    assert!(sampled.code == PASSES && sampled.out.contains("SAMPLED"), "{sampled:?}");
    assert!(!sampled.out.to_lowercase().contains("identical"), "{sampled:?}");

    let part = verifier.run(&[&this[..], &["--from", "100", "--to", "200"]].concat()).await;
    assert!(part.code == PASSES && part.json()["records"].as_u64().unwrap() < RECORDS, "{part:?}");

    let nothing = verifier.run(&["--topic", "no-such-topic"]).await;
    assert!(nothing.code == NOT_COMPARED && nothing.err.contains("no topic to compare"), "{nothing:?}");
    let refused = verifier.run(&["--topic", "a*b"]).await;
    assert!(refused.code == REFUSED && refused.err.contains("--topic"), "{refused:?}");
}

/// Bytes of a topic that is verified in bounded memory; `TOMBOLO_VERIFIED_BYTES=n` takes another number.
const VERIFIED_BYTES: u64 = 200_000_000;
/// Of one record.
const RECORD_BYTES: usize = 4_000;
const MIB: u64 = 1 << 20;
/// What `verify` may hold, whatever the size of the topics.
const VERIFY_MIB: u64 = 64;

#[tokio::test]
async fn the_memory_of_a_verify_does_not_grow_with_the_topic() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let bytes = std::env::var("TOMBOLO_VERIFIED_BYTES").ok();
    let bytes = bytes.map_or(VERIFIED_BYTES, |given| given.parse().expect("TOMBOLO_VERIFIED_BYTES is a number"));
    let records = bytes / RECORD_BYTES as u64;
    let topic = unique_name("verified-at-length");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    let workload = Workload::new().topic(&topic, PARTITIONS).shape(Shape::Plain(RECORD_BYTES));
    workload.produce(&pair.source.client_config(), records).await;
    wait_until_mirrored(&pair.source, &pair.cloud, &[&topic], 10 * DEADLINE).await;
    let verifier = Verifier::of(&pair.source, &pair.cloud);
    let began = Instant::now();
    let (verified, peak) = verifier.run_measured(&["--link", &rig.name, "--topic", &topic, "--output", "json"]).await;
    assert_eq!(verified.code, PASSES, "{verified:?}");
    assert_eq!(verified.json()["records"], records, "{verified:?}");
    tell(&format!("verify of {bytes} bytes, {} MiB at its peak", peak / MIB), records, began);
    assert!(peak > 0 && peak < VERIFY_MIB * MIB, "verify took {} MiB at its peak", peak / MIB);
}

#[tokio::test]
async fn what_is_not_in_the_source_is_named() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let (topic, lone) = (unique_name("written-into"), unique_name("lone"));
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    for daemon in [&mut rig.agent, &mut rig.gateway] {
        daemon.allow("mirror FAILED");
    }
    wait_until_active(&rig, &[&topic]).await;
    let source = Workload::new().topic(&topic, 1);
    source.produce(&pair.source.client_config(), RECORDS).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], RECORDS).await;
    let verifier = Verifier::of(&pair.source, &pair.cloud);

    let intruder = Workload::new().topic(&topic, 1).idempotent(false);
    intruder.produce(&pair.cloud.client_config(), FOREIGN).await;
    let told = verifier.run(&["--link", &rig.name, "--topic", &topic]).await;
    assert_eq!(told.code, DIFFERS, "{told:?}");
    let place = format!("foreign write: {topic}[0]@{RECORDS}: ");
    assert!(told.out.contains(&place) && !told.out.contains("unexplained"), "no {place:?} in {told:?}");
    assert!(told.out.lines().last().unwrap().starts_with("DIFFERENT: "), "{told:?}");
    // Without the link's name nobody can say whose it is.
    let unnamed = verifier.run(&["--topic", &topic, "--output", "json"]).await;
    assert_eq!(unnamed.code, DIFFERS, "{unnamed:?}");
    assert_eq!(unnamed.json()["differences"][0]["explanation"], "unexplained", "{unnamed:?}");

    // The source writes on; the mirror has stopped.
    source.produce(&pair.source.client_config(), RECORDS).await;
    wait_for_state(&rig.gateway, &topic, "FAILED").await;
    let both = verifier.run(&["--link", &rig.name, "--topic", &topic, "--output", "json"]).await;
    let found = both.json();
    assert_eq!(both.code, DIFFERS, "{both:?}");
    let explanations: Vec<_> =
        found["differences"].as_array().unwrap().iter().map(|found| &found["explanation"]).collect();
    assert!(explanations.contains(&&"foreign write".into()), "{found}");

    pair.source.create_topic(&lone, 1, 1, &[]).await;
    let lacking = verifier.run(&["--topic", &lone]).await;
    assert!(lacking.code == DIFFERS && lacking.out.contains("the topic is missing in the cloud"), "{lacking:?}");
}
