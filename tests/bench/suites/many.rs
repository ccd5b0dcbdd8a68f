//! 500 topics of 4 partitions: how soon they are live, and what they cost with little traffic and with none.

use std::time::{Duration, Instant};

use tombolo_tests::broker::{KafkaCluster, unique_name};
use tombolo_tests::producer::{Shape, Workload};

use crate::Run;
use crate::contender::{self, Contender, Running, Start};
use crate::report::{Report, Row};
use crate::suites::{AGENT_PEAK, DEADLINE, GATEWAY_PEAK, peak, say};
use crate::watch::Watch;

const TOPICS: u64 = 500;
const PARTITIONS: i32 = 4;
/// Records a second over all.
const THIN: u32 = 500;
const LIVE: &str = "all live, s after a restart";
const IDLE: &str = "idle, % of a core";
const OBSERVED: Duration = Duration::from_secs(30);
const MIRROR_MAKER: [(&str, &str); 1] = [("tasks.max", "2")];

pub(crate) async fn run(run: &Run) -> Report {
    let source = contender::broker().await;
    let mut topics = Vec::new();
    for _ in 0..run.scaled(TOPICS) {
        let topic = unique_name("many");
        source.create_topic(&topic, PARTITIONS, 1, &[]).await;
        topics.push((topic, PARTITIONS));
    }
    let partitions = partitions(&topics);
    let data = format!(
        "{} topics, {partitions} partitions; {THIN} records/s over all where there is traffic. Live: a record that was \
         written to each partition before the restart is in its mirror. MirrorMaker 2 ran once.",
        topics.len()
    );
    let mut report = Report::new("many", data);
    report.settings = contender::settings(run);
    report.settings.push(("MirrorMaker 2, in this suite".to_owned(), "tasks.max=2".to_owned()));
    workload(&topics).produce(&source.client_config(), partitions).await;
    for number in 1..=run.runs {
        say(&format!("run {number} of {}", run.runs));
        // Nothing is asked of MirrorMaker here, and it takes long: once is enough to tell.
        let contenders = [Contender::Tombolo, Contender::MirrorMaker];
        for contender in contenders.into_iter().take(if number == 1 { 2 } else { 1 }) {
            if !run.takes(contender) {
                continue;
            }
            let row = measure(run, &source, contender, &topics).await;
            say(&format!("  {}: {:?}", contender.name(), row.figures));
            report.rows.push(row);
        }
    }
    let ours = Contender::Tombolo.name();
    report.at_most(LIVE, report.median(ours, LIVE), 30.0);
    report.at_most(IDLE, report.median(ours, IDLE), 3.0);
    report.at_most("MiB resident, agent", report.median(ours, AGENT_PEAK), 128.0);
    report.at_most("MiB resident, gateway", report.median(ours, GATEWAY_PEAK), 128.0);
    report
}

fn partitions(topics: &[(String, i32)]) -> u64 {
    topics.iter().map(|(_, count)| u64::from(count.unsigned_abs())).sum()
}

fn workload(topics: &[(String, i32)]) -> Workload {
    topics.iter().fold(Workload::new().shape(Shape::Plain(200)), |all, (topic, count)| all.topic(topic, *count))
}

async fn measure(run: &Run, source: &KafkaCluster, contender: Contender, topics: &[(String, i32)]) -> Row {
    let cloud = contender::warm_broker().await;
    let watch = Watch::new(&cloud, topics).every(Duration::from_millis(200));
    let start = || Start {
        source,
        cloud: &cloud,
        topics,
        mirror_maker: &MIRROR_MAKER,
        tombolo: contender::tombolo(run, topics),
    };
    let begin = Instant::now();
    let mut running = Running::start(contender, start()).await;
    let written = Watch::new(source, topics).held().await;
    let seen = watch.until(written, DEADLINE, || running.assert_running()).await;
    let first = seen.last.duration_since(begin).as_secs_f64();

    // Killed, and a record for each partition before it is back.
    let more = partitions(topics);
    let restarted = match running {
        Running::Tombolo(mut rig) => {
            rig.agent.kill();
            workload(topics).produce(&source.client_config(), more).await;
            let restarted = Instant::now();
            rig.agent.restart();
            running = Running::Tombolo(rig);
            restarted
        }
        other @ (Running::MirrorMaker(_) | Running::Copier { .. }) => {
            drop(other);
            workload(topics).produce(&source.client_config(), more).await;
            let restarted = Instant::now();
            running = Running::start(contender, start()).await;
            restarted
        }
    };
    let seen = watch.until(written + more, DEADLINE, || running.assert_running()).await;
    let live = seen.last.duration_since(restarted).as_secs_f64();

    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = busy(&mut running).await;
    let background = workload(topics).rate(THIN).start(&source.client_config());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let thin = busy(&mut running).await;
    background.stop().await;
    let mut figures =
        vec![("all mirrored at first, s", first), (LIVE, live), (IDLE, idle), ("thin traffic, % of a core", thin)];
    let peaks: Vec<f64> = running.usage().iter().map(peak).collect();
    match peaks.as_slice() {
        [agent, gateway] => figures.extend([(AGENT_PEAK, *agent), (GATEWAY_PEAK, *gateway)]),
        others => figures.push(("peak MiB", others.iter().sum())),
    }
    Row { contender: contender.name().to_owned(), figures }
}

/// Processor time of all its processes, in percent of one core.
async fn busy(running: &mut Running) -> f64 {
    let seconds = |running: &mut Running| running.usage().iter().map(|usage| usage.cpu_seconds).sum::<f64>();
    let before = seconds(running);
    tokio::time::sleep(OBSERVED).await;
    (seconds(running) - before) / OBSERVED.as_secs_f64() * 100.0
}
