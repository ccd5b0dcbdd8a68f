//! A journal that filled up in the dark: how fast it takes, how fast it gives, and whether its disk is given back.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tombolo_agent::journal::Journal as _;
use tombolo_tests::broker::KafkaCluster;
use tombolo_tests::commits::{self, Commits};
use tombolo_tests::rig::Rig;

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::{Load, Loaded};
use crate::report::{Report, Row};
use crate::suites::bulk::gigabytes;
use crate::suites::{DEADLINE, RATE, catch_up, rounds, say};
use crate::watch::Watch;

/// Some 2 GB as stored.
const RECORDS: u64 = 8_000_000;
const DRAIN: &str = "tombolo, from the journal";
const ALONE: &str = "the journal by itself";
const PLAIN: &str = "plain writes with fsync";
/// Bytes of a commit by the time it takes, as of a plain write; both by themselves, in turn.
const WRITTEN: &str = "a commit, MB/s";
/// The same in the agent, with the source's broker and the fetches on the same cores.
const BESIDE_FETCHES: &str = "a commit beside the fetches, MB/s";
/// All bytes by the time it took to have them in the journal: with fetches, checks, and waits for one another.
const TAKEN: &str = "from the source to the journal, MB/s";
const LEFT: &str = "journal files after the drain, MiB";
/// Of the plain writes, and of the journal by itself.
const PLAIN_BYTES: usize = 512 << 20;

pub(crate) async fn run(run: &Run) -> Report {
    let load = Load { partitions: 6, records: run.scaled(RECORDS), record_bytes: 1_000, codec: "zstd", batch: 10_000 };
    let source = contender::broker().await;
    let loaded = load.write(&source, "drain").await;
    let data = format!(
        "{} records of 1 kB in 6 partitions, zstd, {:.2} GB stored: first mirrored live, then read into the journal with \
         the gateway down, and drained.",
        loaded.records,
        gigabytes(loaded.stored_bytes)
    );
    let mut report = Report::new("drain", data);
    report.settings = contender::settings(run);
    rounds(&mut report, run, async |counts| {
        let mut rows = vec![catch_up(run, &source, &loaded, Contender::Tombolo, Contender::Tombolo.name(), None).await];
        if counts {
            rows.extend(dark(run, &source, &load).await);
        }
        rows
    })
    .await;
    let live = report.median(Contender::Tombolo.name(), RATE);
    report.at_least("records/s of the drain, times the live rate", report.median(DRAIN, RATE) / live, 0.8);
    let written = report.median(ALONE, WRITTEN) / report.median(PLAIN, WRITTEN);
    report.at_least("the journal's MB/s by itself, times a plain write's of the same size with fsync", written, 0.7);
    report.at_most(LEFT, report.median(DRAIN, LEFT), 128.0);
    report
}

/// The same data in a topic of its own: an agent that begins in the dark reads what the source holds.
async fn dark(run: &Run, source: &KafkaCluster, load: &Load) -> Vec<Row> {
    let cloud = contender::warm_broker().await;
    let empty = Load { records: 1, ..load.clone() }.write(source, "dark").await;
    let topics = [(empty.topic.clone(), empty.partitions)];
    let spec = contender::tombolo(run, &topics).agent("journal.max_bytes", "16 GiB");
    let mut rig = Rig::start(source, &cloud, spec).await;
    let watch = Watch::new(&cloud, &topics);
    watch.until(1, DEADLINE, || ()).await;
    rig.gateway.kill();
    rig.agent.kill();
    let loaded = Load { records: load.records - 1, ..load.clone() }.write_to(source, &empty.topic).await;
    rig.agent.restart();
    rig.agent.wait_ready().await;
    let (seconds, written) = filled(&rig, &loaded).await;
    let commits = rig.agent.metric("tombolo_journal_commit_seconds_count").await;
    let committing = rig.agent.metric("tombolo_journal_commit_seconds_sum").await;
    let all = rig.agent.metric("tombolo_journal_written_bytes_total").await;
    let folder = rig.journal();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a commit")]
    let commit = (all / commits.max(1.0)) as usize;
    let (alone, plain) = spawn_blocking(move || writes(&folder, commit)).await.expect("writing does not panic");

    rig.gateway.restart();
    let offsets = Watch::new(source, &topics).held().await;
    let held = watch.held().await;
    let seen = watch.until(held + 1, DEADLINE, || ()).await;
    let done = watch.until(offsets, DEADLINE, || ()).await;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = (offsets - held) as f64 / done.last.duration_since(seen.last).as_secs_f64();
    let left = given_back(&rig).await;
    say(&format!(
        "  {DRAIN}: {rate:.0} records/s; journal takes {:.0} MB/s in, in commits of {commit} bytes at {:.0} MB/s",
        written / seconds / 1e6,
        all / committing / 1e6
    ));
    rig.gateway.allow("WARN");
    rig.agent.allow("WARN");
    let figures = vec![
        (RATE, rate),
        (BESIDE_FETCHES, all / committing / 1e6),
        (TAKEN, written / seconds / 1e6),
        ("KiB of a commit", all / commits.max(1.0) / 1024.0),
        (LEFT, left / f64::from(1 << 20)),
    ];
    vec![
        Row { contender: DRAIN.to_owned(), figures },
        Row { contender: ALONE.to_owned(), figures: vec![(WRITTEN, alone / 1e6)] },
        Row { contender: PLAIN.to_owned(), figures: vec![(WRITTEN, plain / 1e6)] },
    ]
}

/// Waits until the journal takes no more: seconds from the first byte to the last, and bytes of frames.
async fn filled(rig: &Rig, loaded: &Loaded) -> (f64, f64) {
    const QUIET: Duration = Duration::from_secs(3);
    let start = Instant::now();
    let (mut first, mut last) = (None, (Instant::now(), 0.0));
    loop {
        let held = rig.agent.metric("tombolo_journal_written_bytes_total").await;
        let now = Instant::now();
        if held > last.1 {
            first.get_or_insert((now, held));
            last = (now, held);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let most = held > loaded.stored_bytes as f64 * 0.5;
        if let Some((began, at_first)) = first.filter(|_| most && last.0.elapsed() > QUIET) {
            return (last.0.duration_since(began).as_secs_f64(), last.1 - at_first);
        }
        assert!(start.elapsed() < DEADLINE, "the journal holds {held} bytes after {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the journal's files take once they are as small as they get.
async fn given_back(rig: &Rig) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..30 {
        least = rig.agent.metric("tombolo_journal_file_bytes").await.min(least);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    least
}

/// Bytes a second of commits of a journal, and of appends of the same size to a file, each made durable. In turn, and
/// each first in every other round: both find the disk and the machine alike.
fn writes(folder: &Path, commit: usize) -> (f64, f64) {
    let folder = folder.join("plain");
    std::fs::create_dir(&folder).expect("the journal's folder can be written");
    let mut commits = Commits::new(commit);
    let mut journal = commits::journal(&folder);
    let block: Vec<u8> = (0..commits.bytes()).map(|place| (place * 31 % 251).to_le_bytes()[0]).collect();
    let mut file = File::create(folder.join("plain")).expect("the folder was just made");
    let (mut alone, mut plain) = (Duration::ZERO, Duration::ZERO);
    let rounds = PLAIN_BYTES / block.len();
    for round in 0..rounds {
        for turn in [round % 2, 1 - round % 2] {
            if turn == 0 {
                let frames = commits.next_frames();
                let start = Instant::now();
                journal.append(&frames).expect("the disk has room");
                alone += start.elapsed();
            } else {
                let start = Instant::now();
                file.write_all(&block).expect("the disk has room");
                file.sync_data().expect("the disk works");
                plain += start.elapsed();
            }
        }
    }
    drop(journal);
    std::fs::remove_dir_all(&folder).expect("the folder was just made");
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = |time: Duration| (rounds * block.len()) as f64 / time.as_secs_f64();
    (rate(alone), rate(plain))
}
