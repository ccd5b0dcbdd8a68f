//! A catch-up of committed transactions: every one is a batch and a marker, and the marker is a gap in the mirror.

use std::time::Instant;

use rdkafka::ClientConfig;
use tokio::task::JoinSet;
use tombolo_tests::broker::{KafkaCluster, unique_name};
use tombolo_tests::transactions::Transactions;

use crate::Run;
use crate::contender::{self, Contender};
use crate::load::Loaded;
use crate::report::Report;
use crate::suites::{RATE, catch_up, rounds};

const TRANSACTIONS: u64 = 100_000;
/// Of them, what is caught up without the markers' right: that takes a transaction of the cloud for each.
const FEW: u64 = 6_000;
const PARTITIONS: i32 = 6;
const BY_TRANSACTIONS: &str = "tombolo, skip=transactions";
const TRANSACTION_RATE: &str = "transactions/s";
/// Producers at a time: one waits for the coordinator most of the time.
const PRODUCERS: u32 = 16;

pub(crate) async fn run(run: &Run) -> Report {
    let source = contender::broker().await;
    let loaded = load(&source, run.scaled(TRANSACTIONS)).await;
    let few = load(&source, run.scaled(FEW)).await;
    let data = format!(
        "Committed transactions of one record to each of {PARTITIONS} partitions, written at {:.0} a second. Counted as \
         partitions see them, each with its marker: {}, and {} where the gateway has no right to write markers.",
        loaded.rate, loaded.records, few.records
    );
    let mut report = Report::new("transactions", data);
    report.settings = contender::settings(run);
    rounds(&mut report, run, async |counts| {
        let by_transactions =
            contender::tombolo(run, &[(few.topic.clone(), few.partitions)]).link("skip", "transactions");
        let contenders = [
            (Contender::Tombolo, Contender::Tombolo.name(), &loaded, None),
            (Contender::Tombolo, BY_TRANSACTIONS, &few, Some(by_transactions)),
            (Contender::MirrorMaker, Contender::MirrorMaker.name(), &loaded, None),
        ];
        let mut rows = Vec::new();
        for (contender, name, loaded, spec) in contenders {
            if !run.takes(contender) || (!counts && name == BY_TRANSACTIONS) {
                continue;
            }
            let mut row = catch_up(run, &source, loaded, contender, name, spec).await;
            // Of a mirror that has the markers' offsets two offsets are a transaction.
            let offsets = row.figures.iter().find(|(figure, _)| *figure == RATE).map_or(f64::NAN, |(_, rate)| *rate);
            let each = if contender == Contender::Tombolo { 2.0 } else { 1.0 };
            row.figures.insert(0, (TRANSACTION_RATE, offsets / each));
            rows.push(row);
        }
        rows
    })
    .await;
    let of_all = report.median(Contender::Tombolo.name(), TRANSACTION_RATE);
    report.at_least("transactions/s over 6 partitions, with marker rights", of_all, 2_500.0);
    report.at_least("transactions/s of a partition", of_all / f64::from(PARTITIONS), 500.0);
    report
}

/// So many transactions, as partitions see them: each goes to all partitions.
async fn load(source: &KafkaCluster, transactions: u64) -> Loaded {
    let topic = unique_name("transactions");
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let partitions = u64::from(PARTITIONS.unsigned_abs());
    let of_partition = u32::try_from(transactions / partitions).expect("a share of it").next_multiple_of(PRODUCERS);
    let start = Instant::now();
    write(&source.client_config(), &topic, of_partition).await;
    let records = u64::from(of_partition) * partitions;
    let stored_bytes = (0..PARTITIONS).map(|partition| source.stored_bytes(&topic, partition)).sum();
    let rate = f64::from(of_partition) / start.elapsed().as_secs_f64();
    Loaded { topic, partitions: PARTITIONS, records, record_bytes: stored_bytes, stored_bytes, rate }
}

async fn write(config: &ClientConfig, topic: &str, transactions: u32) {
    let mut producers = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (config, topic) = (config.clone(), topic.to_owned());
        producers.spawn(async move {
            let workload = Transactions::new(&topic, PARTITIONS).records(1).abort_every(None);
            workload.write(&config, transactions / PRODUCERS).await;
        });
    }
    producers.join_all().await;
}
