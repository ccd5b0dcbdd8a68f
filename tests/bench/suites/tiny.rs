//! One record a batch: what a batch costs, in one partition and in six.

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::{Load, Loaded};
use crate::report::Report;
use crate::suites::{RATE, race};

const RECORDS: u64 = 100_000;

pub(crate) async fn run(run: &Run) -> Report {
    let records = run.scaled(RECORDS);
    let load = |partitions| Load { partitions, records, record_bytes: 100, codec: "none", batch: 1 };
    // Warm as the clouds are: its producer's rate is what is compared with.
    let source = contender::warm_broker().await;
    let one = load(1).write(&source, "tiny-1").await;
    let six = load(6).write(&source, "tiny-6").await;
    let data = format!(
        "{records} batches of one record of 100 bytes, in 1 partition and in 6; one idempotent producer wrote {:.0} and \
         {:.0} a second.",
        one.rate, six.rate
    );
    let mut report = Report::new("tiny", data);
    report.settings = contender::settings(run);
    race(&mut report, run, &source, &[&one, &six], name).await;
    let of_one = report.median(&name(Contender::Tombolo, &one), RATE);
    let of_six = report.median(&name(Contender::Tombolo, &six), RATE);
    report.at_least("batches/s in one partition, times the producer's", of_one / one.rate, 1.0);
    report.at_least("batches/s in six partitions, times the producer's in one", of_six / one.rate, 3.0);
    report
}

fn name(contender: Contender, loaded: &Loaded) -> String {
    format!("{}, {}", contender.name(), loaded.partitions)
}
