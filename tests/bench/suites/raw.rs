//! Producers that do not compress: what the link saves, and what that costs.

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::Load;
use crate::report::Report;
use crate::suites::bulk::gigabytes;
use crate::suites::{LINK_SHARE, RATE, by_contender, race, rounds};

const RECORDS: u64 = 2_000_000;

pub(crate) async fn run(run: &Run) -> Report {
    let load = Load { partitions: 6, records: run.scaled(RECORDS), record_bytes: 1_000, codec: "none", batch: 10_000 };
    let source = contender::broker().await;
    let loaded = load.write(&source, "raw").await;
    let data = format!(
        "{} records of 1 kB in 6 partitions, not compressed, {:.2} GB stored; the producer wrote {:.0} records/s.",
        loaded.records,
        gigabytes(loaded.stored_bytes),
        loaded.rate
    );
    let mut report = Report::new("raw", data);
    report.settings = contender::settings(run);
    rounds(&mut report, run, async |_| race(run, &source, &[&loaded], by_contender).await).await;
    let ours = Contender::Tombolo.name();
    report.at_most("link bytes per record byte", report.median(ours, LINK_SHARE), 0.5);
    let theirs = report.median(Contender::MirrorMaker.name(), RATE);
    report.at_least("records/s, times MirrorMaker 2's", report.median(ours, RATE) / theirs, 2.0);
    report
}
