//! History as fast as it goes: 1 kB records, zstd, 6 partitions.

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::Load;
use crate::report::Report;
use crate::suites::{AGENT_PEAK, CPU, GATEWAY_PEAK, RATE, by_contender, race, rounds};

const RECORDS: u64 = 5_000_000;

pub(crate) async fn run(run: &Run) -> Report {
    let load = Load { partitions: 6, records: run.scaled(RECORDS), record_bytes: 1_000, codec: "zstd", batch: 10_000 };
    let source = contender::broker().await;
    let loaded = load.write(&source, "bulk").await;
    let data = format!(
        "{} records of 1 kB in 6 partitions, zstd, {:.2} GB stored; the producer wrote {:.0} records/s.",
        loaded.records,
        gigabytes(loaded.stored_bytes),
        loaded.rate
    );
    let mut report = Report::new("bulk", data);
    report.settings = contender::settings(run);
    rounds(&mut report, run, async |_| race(run, &source, &[&loaded], by_contender).await).await;
    let (ours, theirs) = (Contender::Tombolo.name(), Contender::MirrorMaker.name());
    let rate = report.median(ours, RATE);
    report.at_least("records/s, times MirrorMaker 2's", rate / report.median(theirs, RATE), 4.0);
    report.at_least("records/s, times the raw copier's", rate / report.median(Contender::Copier.name(), RATE), 0.7);
    let cpu = report.median(ours, CPU) / report.median(theirs, CPU);
    report.at_most("CPU of agent and gateway per GB, times MirrorMaker 2's", cpu, 1.0 / 6.0);
    report.at_most("MiB resident, agent", report.median(ours, AGENT_PEAK), 64.0);
    report.at_most("MiB resident, gateway", report.median(ours, GATEWAY_PEAK), 96.0);
    report
}

#[expect(clippy::cast_precision_loss, reason = "bytes of some gigabytes")]
pub(super) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
