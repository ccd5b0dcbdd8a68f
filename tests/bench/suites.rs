//! The suites, and the catch-up that most of them are made of.

pub(crate) mod bulk;
pub(crate) mod drain;
pub(crate) mod latency;
pub(crate) mod links;
pub(crate) mod many;
pub(crate) mod raw;
pub(crate) mod tiny;
pub(crate) mod transactions;

use std::time::Duration;

use tombolo_tests::broker::KafkaCluster;
use tombolo_tests::child::Usage;
use tombolo_tests::rig::RigSpec;

use crate::Run;
use crate::contender::{self, Contender, Running, Start};
use crate::load::Loaded;
use crate::report::{Report, Row};
use crate::watch::Watch;

const DEADLINE: Duration = Duration::from_mins(30);
const RATE: &str = "records/s";
const CPU: &str = "CPU s/GB stored";
const AGENT_PEAK: &str = "agent peak MiB";
const GATEWAY_PEAK: &str = "gateway peak MiB";
const LINK_SHARE: &str = "link bytes/record bytes";

#[expect(clippy::print_stderr, reason = "long work shows progress")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// Rounds, as many as the run says and one before that does not count: the source has its code for reading compiled then.
/// A round is told whether it counts.
async fn rounds(report: &mut Report, run: &Run, mut round: impl AsyncFnMut(bool) -> Vec<Row>) {
    let warm_up = "a first round is not counted: its code for reading is compiled in it";
    report.settings.push(("source".to_owned(), warm_up.to_owned()));
    say("a run that does not count");
    round(false).await;
    for number in 1..=run.runs {
        say(&format!("run {number} of {}", run.runs));
        report.rows.extend(round(true).await);
    }
}

/// All contenders with every load, in turn.
async fn race(
    run: &Run,
    source: &KafkaCluster,
    loaded: &[&Loaded],
    name: fn(Contender, &Loaded) -> String,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for contender in run.contenders() {
        for loaded in loaded {
            rows.push(catch_up(run, source, loaded, contender, &name(contender, loaded), None).await);
        }
    }
    rows
}

fn by_contender(contender: Contender, _: &Loaded) -> String {
    contender.name().to_owned()
}

/// In MiB.
#[expect(clippy::cast_precision_loss, reason = "bytes of some gigabytes")]
fn peak(usage: &Usage) -> f64 {
    usage.peak_bytes as f64 / f64::from(1 << 20)
}

/// One contender's way from nothing to all that was loaded, into a cluster of its own.
async fn catch_up(
    run: &Run,
    source: &KafkaCluster,
    loaded: &Loaded,
    contender: Contender,
    name: &str,
    spec: Option<RigSpec>,
) -> Row {
    let cloud = contender::warm_broker().await;
    let topics = [(loaded.topic.clone(), loaded.partitions)];
    // MirrorMaker leaves out what holds no record, and what follows moves up.
    let offsets = match contender {
        Contender::MirrorMaker => loaded.records,
        Contender::Tombolo | Contender::Copier => Watch::new(source, &topics).held().await,
    };
    let watch = Watch::new(&cloud, &topics);
    let tombolo = spec.unwrap_or_else(|| contender::tombolo(run, &topics));
    let start = Start { source, cloud: &cloud, topics: &topics, mirror_maker: &[], tombolo };
    let mut running = Running::start(contender, start).await;
    let seen = watch.until(offsets, DEADLINE, || running.assert_running()).await;
    let usage = running.usage();
    let row = figures(name, loaded, seen.rate(), seen.seconds(), &usage, running.link_bytes().await);
    say(&format!("  {name}: {:.0} offsets/s", seen.rate()));
    row
}

#[expect(clippy::cast_precision_loss, reason = "bytes of some gigabytes")]
fn figures(name: &str, loaded: &Loaded, rate: f64, seconds: f64, usage: &[Usage], link_bytes: Option<f64>) -> Row {
    let stored = loaded.stored_bytes as f64;
    let share = loaded.record_bytes as f64;
    let cpu: f64 = usage.iter().map(|usage| usage.cpu_seconds).sum();
    let mut figures = vec![
        (RATE, rate),
        ("stored MB/s", stored / seconds / 1e6),
        ("record MB/s", share / seconds / 1e6),
        ("seconds", seconds),
        (CPU, cpu / (stored / 1e9)),
    ];
    match usage {
        [agent, gateway] => {
            figures.push(("agent CPU s/GB", agent.cpu_seconds / (stored / 1e9)));
            figures.push(("gateway CPU s/GB", gateway.cpu_seconds / (stored / 1e9)));
            figures.push((AGENT_PEAK, peak(agent)));
            figures.push((GATEWAY_PEAK, peak(gateway)));
        }
        others => figures.push(("peak MiB", others.iter().map(peak).sum())),
    }
    if let Some(bytes) = link_bytes {
        figures.push((LINK_SHARE, bytes / share));
    }
    Row { contender: name.to_owned(), figures }
}
