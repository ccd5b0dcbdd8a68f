//! What an import promises: nothing that was not signed gets in, and what gets in ends up where the source had it. The
//! session here is the half-protocol alone, over a model of a broker; `tests/e2e` has the real ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use bytes::Bytes;
use clap::Parser;
use prost::Message;
use tombolo_proto::batch::Batch;
use tombolo_proto::cloud::{CloudConfig, CloudInput, CloudLink, CloudOutput, LinkSettings, MirrorSettings};
use tombolo_proto::export::{
    self, CERTIFICATE_FILE, ExportWriter, MANIFEST_FILE, ManifestSignature, Origin, SIGNATURE_FILE,
};
use tombolo_proto::frame::{Entry, Packed};
use tombolo_proto::id::{Offset, Partition, Term, Time, TopicName};
use tombolo_proto::mirror::{Outcome, Recovery};
use tombolo_proto::pattern::TopicPattern;
use tombolo_proto::testing::BatchBuilder;
use tombolo_proto::wire::encode;
use tombolo_service::signature::{self, Sha256};
use tombolo_service::tls;

use super::*;
use crate::carrier::{Carrier, CarrierLimits};
use crate::identity::TrustDomain;
use crate::settings::TlsSettings;

const PRODUCER: i64 = 1 << 62 | 9;
const CREDIT: usize = 4_000;
const MAX_FRAME: usize = 2_000;

type Logs = BTreeMap<(String, Partition), Vec<Batch>>;

fn name(topic: &str) -> TopicName {
    TopicName::new(topic).unwrap()
}

/// Batches of two records each, from `first` up to `end`.
fn batches(first: Offset, end: Offset) -> Vec<Batch> {
    let batch = |base: Offset| {
        let fill = u8::try_from(base % 251).unwrap();
        BatchBuilder::new(base).records(2).payload(300).fill(fill).build()
    };
    (first..end).step_by(2).map(batch).collect()
}

/// Test certificates, and the settings that trust them.
async fn certificates(folder: &Path) -> TlsSettings {
    let folder_text = folder.to_str().unwrap();
    let line = ["tombolo-gateway", "dev-certs", folder_text, "--link", "ship-17", "--link", "ship-18"];
    crate::cli::run(crate::cli::Cli::try_parse_from(line).unwrap()).await;
    TlsSettings {
        certificate: folder.join("gateway.pem"),
        key: folder.join("gateway.key"),
        client_ca: folder.join("ca.pem"),
        domain: TrustDomain::new("example.net").unwrap(),
    }
}

/// Writes an export of these partitions (frames of three batches) as link `claimed`, signed by `signer`.
fn write_export(folder: &Path, certificates: &Path, claimed: &str, signer: &str, partitions: &Logs) {
    let origin = Origin {
        link: LinkName::new(claimed).unwrap(),
        created_unix_seconds: 1_790_000_000,
        software: "test".to_owned(),
        source_cluster_id: "source".to_owned(),
    };
    let mut writer = ExportWriter::with_file_bytes(origin, 500);
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut last = None;
    for ((topic, partition), batches) in partitions {
        if last != Some(topic) {
            writer.topic(&name(topic), None, 3, Vec::new());
            last = Some(topic);
        }
        let entries: Vec<Entry> = batches.iter().cloned().map(Entry::Batch).collect();
        for entries in entries.chunks(3) {
            let chunk = writer.frame(*partition, &Packed::new(entries)).unwrap();
            files.resize(chunk.file + 1, Vec::new());
            files[chunk.file].extend(chunk.pieces.concat());
        }
    }
    let mut hashes = Vec::new();
    for (number, bytes) in files.iter().enumerate() {
        std::fs::write(folder.join(export::data_file(number)), bytes).unwrap();
        let mut hash = Sha256::default();
        hash.update(bytes);
        hashes.push(hash.finish());
    }
    let manifest = writer.finish(&hashes).unwrap().encode_to_vec();
    let key = tls::private_key(&certificates.join(format!("{signer}.key"))).unwrap();
    let signature = signature::sign(&key, &export::signed_bytes(&manifest)).unwrap();
    let signature = ManifestSignature { scheme: signature.scheme.into(), signature: signature.bytes };
    std::fs::write(folder.join(MANIFEST_FILE), manifest).unwrap();
    std::fs::write(folder.join(SIGNATURE_FILE), signature.encode_to_vec()).unwrap();
    std::fs::copy(certificates.join(format!("{signer}.pem")), folder.join(CERTIFICATE_FILE)).unwrap();
}

fn of_orders(ranges: &[(Partition, Offset, Offset)]) -> Logs {
    ranges.iter().map(|&(partition, first, end)| (("orders".to_owned(), partition), batches(first, end))).collect()
}

/// Opens an export and checks its files.
async fn open(folder: &Path, trusted: &TlsSettings) -> Result<Export, FolderError> {
    let export = Export::open(folder.to_owned(), trusted, SystemTime::now())?;
    export.check_files(&mut Progress::new("checking", export.file_bytes()), &CancellationToken::new()).await?;
    Ok(export)
}

#[tokio::test]
async fn every_damaged_byte_is_refused_with_the_file_named() {
    let (certificates_folder, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trusted = certificates(certificates_folder.path()).await;
    write_export(folder.path(), certificates_folder.path(), "ship-17", "ship-17", &of_orders(&[(0, 0, 60)]));
    assert_eq!(open(folder.path(), &trusted).await.unwrap().link().as_str(), "ship-17");
    for file in [MANIFEST_FILE, SIGNATURE_FILE, CERTIFICATE_FILE, "frames-0.bin", "frames-2.bin"] {
        let path = folder.path().join(file);
        let clean = std::fs::read(&path).unwrap();
        for at in (0..clean.len()).step_by(clean.len().div_ceil(40)) {
            let mut damaged = clean.clone();
            damaged[at] ^= 0x20;
            std::fs::write(&path, &damaged).unwrap();
            let error = match open(folder.path(), &trusted).await {
                // White space and text around the certificate mean nothing.
                Ok(_) if file == CERTIFICATE_FILE => continue,
                Ok(_) => panic!("{file} byte {at}"),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(file), "{file} byte {at}: {error}");
        }
        std::fs::write(&path, &clean[..clean.len() - 1]).unwrap();
        let error = open(folder.path(), &trusted).await.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(error.contains(file) || file == CERTIFICATE_FILE, "{file} cut: {error}");
        std::fs::remove_file(&path).unwrap();
        let error = open(folder.path(), &trusted).await.unwrap_err().to_string();
        assert!(error.contains(file), "{file} missing: {error}");
        std::fs::write(&path, &clean).unwrap();
    }
    assert!(open(folder.path(), &trusted).await.is_ok());
}

#[tokio::test]
async fn an_export_is_its_own_links_and_of_a_known_issuer() {
    let (ours, theirs, folder) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trusted = certificates(ours.path()).await;
    let strange = certificates(theirs.path()).await;
    let logs = of_orders(&[(0, 0, 6)]);
    write_export(folder.path(), ours.path(), "ship-17", "ship-18", &logs);
    let error = open(folder.path(), &trusted).await.unwrap_err();
    assert!(matches!(error, FolderError::Link { .. }), "{error}");
    write_export(folder.path(), theirs.path(), "ship-17", "ship-17", &logs);
    let error = open(folder.path(), &trusted).await.unwrap_err();
    assert!(matches!(error, FolderError::Certificate { .. }), "{error}");
    assert!(open(folder.path(), &strange).await.is_ok());
    let elsewhere = TlsSettings { domain: TrustDomain::new("example.org").unwrap(), ..strange };
    let error = open(folder.path(), &elsewhere).await.unwrap_err();
    assert!(matches!(error, FolderError::Identity { .. }), "{error}");
    // A gateway's certificate is no link's.
    write_export(folder.path(), ours.path(), "ship-17", "gateway", &logs);
    let error = open(folder.path(), &trusted).await.unwrap_err();
    assert!(matches!(error, FolderError::Certificate { .. }), "{error}");
}

/// The session's end over a broker in memory.
struct Cloud {
    link: CloudLink,
    logs: Logs,
    /// Batches it still takes; none are answered after that.
    takes: usize,
    /// Partitions that its topics have.
    partitions: i32,
    most_held: usize,
}

impl Cloud {
    fn new(settings: LinkSettings, logs: Logs) -> Self {
        let config = CloudConfig {
            producer_id: PRODUCER,
            software: "test".to_owned(),
            credit_bytes: CREDIT,
            max_frame_bytes: MAX_FRAME,
            link: settings,
        };
        Self { link: CloudLink::new(config), logs, takes: usize::MAX, partitions: 0, most_held: 0 }
    }

    async fn serve(&mut self, carrier: Carrier) {
        let tasks = Tasks::new(&CancellationToken::new());
        let wait = Duration::from_secs(10);
        let limits = CarrierLimits { max_frame: MAX_FRAME, open_deadline: wait, frame_deadline: wait };
        let mut streams = carrier.open(limits, &tasks).await.unwrap();
        let mut outbox: VecDeque<Bytes> = VecDeque::new();
        let start = tokio::time::Instant::now();
        loop {
            let due = self.link.next_timeout().map(|(at, _)| start + at);
            let input = tokio::select! {
                Some(message) = streams.messages.recv() => CloudInput::Message(message.unwrap()),
                Some(frame) = streams.frames.recv() => CloudInput::Frame(frame.unwrap()),
                Ok(place) = streams.control.reserve(), if !outbox.is_empty() => {
                    place.send(outbox.pop_front().unwrap());
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or(start)), if due.is_some() => CloudInput::Timeout,
                _ = carrier.closed() => return,
            };
            let mut inputs = VecDeque::from([input]);
            while let Some(input) = inputs.pop_front() {
                self.link.handle(input, start.elapsed());
                self.most_held = self.most_held.max(self.link.status().held_bytes);
                while let Some(output) = self.link.poll_output() {
                    match output {
                        CloudOutput::Send(message) => outbox.push_back(encode(&message)),
                        CloudOutput::Event(_) => {}
                        CloudOutput::Close { code, reason } => {
                            carrier.close(code, &reason);
                            return;
                        }
                        asked @ (CloudOutput::Claim { .. }
                        | CloudOutput::PrepareTopic { .. }
                        | CloudOutput::Recover { .. }
                        | CloudOutput::Produce { .. }
                        | CloudOutput::Skip { .. }
                        | CloudOutput::FastForward { .. }
                        | CloudOutput::RecordLoss { .. }
                        | CloudOutput::DeleteBefore { .. }) => inputs.extend(self.answer(asked)),
                    }
                }
            }
        }
    }

    fn answer(&mut self, asked: CloudOutput) -> Option<CloudInput> {
        Some(match asked {
            CloudOutput::Claim { incarnation } => {
                assert_eq!(incarnation, 0, "the site's agent keeps its place");
                CloudInput::Claimed { term: Term(1), write_after: Time::ZERO }
            }
            CloudOutput::PrepareTopic { mirror, partitions, .. } => {
                CloudInput::TopicReady { mirror, partitions: partitions.max(self.partitions) }
            }
            CloudOutput::Recover { mirror, topic, partition, attempt } => {
                let log = self.logs.entry((topic.to_string(), partition)).or_default();
                let tail = log.iter().rev().take(4).rev().cloned().collect();
                let log_end = log.last().map_or(0, Batch::next_offset);
                let recovery = Recovery { log_start: 0, log_end, starting: None, last_sequence: None, tail };
                CloudInput::Recovered { mirror, partition, attempt, result: Ok(recovery) }
            }
            CloudOutput::Produce { mirror, topic, partition, ticket, offset, batch } => {
                self.takes = self.takes.checked_sub(1)?;
                let log = self.logs.entry((topic.to_string(), partition)).or_default();
                assert_eq!(log.last().map_or(0, Batch::next_offset), offset);
                log.push(at_offset(&batch, offset));
                let outcome = Outcome::Appended { base_offset: offset };
                CloudInput::Produced { mirror, partition, ticket, outcome }
            }
            asked @ (CloudOutput::Skip { .. }
            | CloudOutput::FastForward { .. }
            | CloudOutput::RecordLoss { .. }
            | CloudOutput::DeleteBefore { .. }) => {
                panic!("an export of records without gaps: {asked:?}")
            }
            CloudOutput::Send(_) | CloudOutput::Event(_) | CloudOutput::Close { .. } => return None,
        })
    }
}

/// As a broker stores it: the base offset lies outside the CRC.
fn at_offset(batch: &Bytes, offset: Offset) -> Batch {
    let mut bytes = batch.to_vec();
    bytes[..8].copy_from_slice(&offset.to_be_bytes());
    Batch::parse(bytes.into()).unwrap()
}

/// What the link has already brought.
fn mirrored(batches: &[Batch]) -> Vec<Batch> {
    let stamp = tombolo_proto::batch::Stamp { producer_id: PRODUCER, sequence: 0 };
    batches.iter().map(|batch| at_offset(&batch.stamped(stamp), batch.base_offset())).collect()
}

fn mirror(topic: &str, target: &str, paused: bool) -> MirrorSettings {
    MirrorSettings { paused, max_gap: 0, ..MirrorSettings::new(name(topic), name(target)) }
}

fn settings(mirrors: Vec<MirrorSettings>, filters: &[&str]) -> LinkSettings {
    let filters = filters.iter().map(|filter| TopicPattern::new(filter).unwrap()).collect();
    let reserved = Arc::new(BTreeSet::from([name("_tombolo")]));
    LinkSettings { mirrors, filters, reserved, ..LinkSettings::default() }
}

/// Imports what `exported` holds into `cloud`.
async fn import(exported: &Logs, link: &LinkSettings, cloud: &mut Cloud, stop: &CancellationToken) -> Report {
    let (certificates_folder, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trusted = certificates(certificates_folder.path()).await;
    write_export(folder.path(), certificates_folder.path(), "ship-17", "ship-17", exported);
    let export = Arc::new(open(folder.path(), &trusted).await.unwrap());
    let (carrier, far) = local::pair();
    let held = Held::from([(name("orders"), cloud.partitions)]);
    let course = Course::new(export, far, link, MAX_FRAME, held);
    let both = async { tokio::join!(course.run(stop), cloud.serve(carrier)).0 };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("an end")
}

/// Topic, partition, before, after and result of each row.
fn rows(report: &Report) -> Vec<String> {
    let (_, rows) = report.rows();
    rows.iter().map(|row| format!("{} {} {} {} {}", row[0], row[1], row[3], row[4], row[5])).collect()
}

fn assert_equal(cloud: &Logs, topic: &str, partition: Partition, source: &[Batch]) {
    let crcs = |batches: &[Batch]| -> Vec<(Offset, u32)> {
        batches.iter().map(|batch| (batch.base_offset(), batch.canonical_crc())).collect()
    };
    assert_eq!(crcs(&cloud[&(topic.to_owned(), partition)]), crcs(source), "{topic} {partition}");
}

#[tokio::test]
async fn an_import_brings_every_batch_to_its_place() {
    let mut exported = of_orders(&[(0, 0, 100), (1, 20, 80), (2, 0, 40)]);
    exported.insert(("sensor.1".to_owned(), 0), batches(0, 30));
    exported.insert(("secret".to_owned(), 0), batches(0, 10));
    exported.insert(("still".to_owned(), 0), batches(0, 10));
    let link = settings(vec![mirror("orders", "kept", false), mirror("still", "still", true)], &["sensor.*"]);
    // Partition 0 is empty in the cloud, 1 overlaps, 2 has gone on since.
    let cloud_logs = Logs::from([
        (("kept".to_owned(), 1), mirrored(&batches(0, 34))),
        (("kept".to_owned(), 2), mirrored(&batches(0, 44))),
    ]);
    let mut cloud = Cloud::new(link.clone(), cloud_logs);
    let report = import(&exported, &link, &mut cloud, &CancellationToken::new()).await;
    assert_eq!(
        rows(&report),
        [
            "orders 0 0 100 complete",
            "orders 1 34 80 complete",
            "orders 2 44 44 already there",
            "sensor.1 0 0 30 complete",
            "secret - - - no mirror of the link: the settings neither name it nor have a filter that matches",
            "still - - - the mirror is paused in the settings",
        ]
    );
    assert!(!report.is_complete(), "two topics were left out");
    for (topic, partition, end) in [("kept", 0, 100), ("kept", 1, 80), ("kept", 2, 44), ("sensor.1", 0, 30)] {
        assert_equal(&cloud.logs, topic, partition, &batches(0, end));
    }
    // Again, into what it has brought: nothing is to be done.
    let mut cloud = Cloud::new(link.clone(), cloud.logs);
    cloud.takes = 0;
    exported.retain(|(topic, _), _| ["orders", "sensor.1"].contains(&topic.as_str()));
    let report = import(&exported, &link, &mut cloud, &CancellationToken::new()).await;
    assert!(report.is_complete() && rows(&report).iter().all(|row| row.ends_with("already there")), "{report:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_said_and_the_rest_goes_on() {
    let exported = of_orders(&[(0, 20, 40), (1, 0, 40), (2, 0, 40)]);
    let link = settings(vec![mirror("orders", "orders", false)], &[]);
    let mut other = mirrored(&batches(0, 10));
    other[4] = mirrored(&[BatchBuilder::new(8).records(2).payload(300).fill(99).build()]).remove(0);
    let mut cloud = Cloud::new(
        link.clone(),
        Logs::from([(("orders".to_owned(), 0), mirrored(&batches(0, 10))), (("orders".to_owned(), 1), other.clone())]),
    );
    let report = import(&exported, &link, &mut cloud, &CancellationToken::new()).await;
    let rows = rows(&report);
    assert_eq!(rows[0], "orders 0 10 10 offsets 10 to 19 are missing: the export starts at 20");
    assert!(
        rows[1].starts_with("orders 1 10 10 DIVERGED partition 1 offsets 8 to 9: the export's batch"),
        "{}",
        rows[1]
    );
    assert_eq!(rows[2], "orders 2 0 40 complete");
    assert!(!report.is_complete());
    assert_equal(&cloud.logs, "orders", 2, &batches(0, 40));
    assert_equal(&cloud.logs, "orders", 1, &other);
}

#[tokio::test]
async fn a_mirror_that_ends_inside_a_batch_has_diverged() {
    let exported = of_orders(&[(0, 0, 40)]);
    let link = settings(vec![mirror("orders", "orders", false)], &[]);
    let odd = mirrored(&[BatchBuilder::new(0).records(7).payload(300).build()]);
    let mut cloud = Cloud::new(link.clone(), Logs::from([(("orders".to_owned(), 0), odd)]));
    let report = import(&exported, &link, &mut cloud, &CancellationToken::new()).await;
    assert!(rows(&report)[0].contains("DIVERGED"), "{report:?}");
}

#[tokio::test]
async fn a_stopped_import_is_gone_on_with() {
    let exported = of_orders(&[(0, 0, 60), (1, 0, 60)]);
    let link = settings(vec![mirror("orders", "orders", false)], &[]);
    let mut cloud = Cloud::new(link.clone(), Logs::new());
    cloud.takes = 7;
    let stop = CancellationToken::new();
    let stopper = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.cancel();
    };
    let (report, ()) = tokio::join!(import(&exported, &link, &mut cloud, &stop), stopper);
    assert!(rows(&report).iter().all(|row| row.ends_with("unfinished")), "{report:?}");
    assert!(report.title().contains("unfinished: stopped; import again"), "{}", report.title());
    assert_eq!(cloud.logs.values().map(Vec::len).sum::<usize>(), 7);
    assert!(cloud.most_held > CREDIT / 2 && cloud.most_held <= CREDIT, "{} bytes unanswered", cloud.most_held);
    let mut cloud = Cloud::new(link.clone(), cloud.logs);
    let report = import(&exported, &link, &mut cloud, &CancellationToken::new()).await;
    assert!(report.is_complete(), "{report:?}");
    for partition in [0, 1] {
        assert_equal(&cloud.logs, "orders", partition, &batches(0, 60));
    }
}

#[tokio::test]
async fn a_topic_that_has_grown_since_takes_an_old_export() {
    let link = settings(vec![mirror("orders", "orders", false)], &[]);
    let mut cloud = Cloud::new(link.clone(), Logs::new());
    cloud.partitions = 5;
    let report = import(&of_orders(&[(0, 0, 10)]), &link, &mut cloud, &CancellationToken::new()).await;
    assert_eq!(rows(&report), ["orders 0 0 10 complete"]);
}
