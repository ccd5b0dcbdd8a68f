//! One record a batch: what a batch costs, in one partition and in six.

use tombolo_tests::broker::unique_name;

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::{Load, Loaded};
use crate::report::{Report, Row};
use crate::suites::{DEADLINE, RATE, race, rounds, say};
use crate::watch::Watch;

const RECORDS: u64 = 100_000;
/// What is compared with: it writes to a cloud of its own, as new and as warm as those of the others.
const PRODUCER: &str = "producer";

pub(crate) async fn run(run: &Run) -> Report {
    let records = run.scaled(RECORDS);
    let load = |partitions| Load { partitions, records, record_bytes: 100, codec: "none", batch: 1 };
    let source = contender::broker().await;
    let (one, six) = (load(1).write(&source, "tiny-1").await, load(6).write(&source, "tiny-6").await);
    let data =
        format!("{records} batches of one record of 100 bytes, in 1 partition and in 6, of one idempotent producer.");
    let mut report = Report::new("tiny", data);
    report.settings = contender::settings(run);
    rounds(&mut report, run, async |_| {
        let mut rows = vec![producer(&load(1)).await];
        rows.extend(race(run, &source, &[&one, &six], name).await);
        rows
    })
    .await;
    let producer = report.median(PRODUCER, RATE);
    let of_one = report.median(&name(Contender::Tombolo, &one), RATE);
    let of_six = report.median(&name(Contender::Tombolo, &six), RATE);
    report.at_least("batches/s in one partition, times the producer's", of_one / producer, 1.0);
    report.at_least("batches/s in six partitions, times the producer's in one", of_six / producer, 3.0);
    report
}

/// Timed as the others are: from what is first seen in the cloud to the last.
async fn producer(load: &Load) -> Row {
    let cloud = contender::warm_broker().await;
    let topic = unique_name("tiny");
    cloud.create_topic(&topic, load.partitions, 1, &[]).await;
    let watch = Watch::new(&cloud, &[(topic.clone(), load.partitions)]);
    let (_, seen) = tokio::join!(load.write_to(&cloud, &topic), watch.until(load.records, DEADLINE, || ()));
    say(&format!("  {PRODUCER}: {:.0} records/s", seen.rate()));
    Row { contender: PRODUCER.to_owned(), figures: vec![(RATE, seen.rate())] }
}

fn name(contender: Contender, loaded: &Loaded) -> String {
    format!("{}, {}", contender.name(), loaded.partitions)
}
