//! A thousand sites on one gateway: what they take of it, how soon a record is confirmed, and how they all come back at once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use quinn::Endpoint;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tombolo_tests::broker::{KafkaCluster, Mechanism, unique_name};
use tombolo_tests::free_port;
use tombolo_tests::process::{Binary, Daemon};
use tombolo_tests::scratch::Scratch;

use crate::Run;
use crate::contender;
use crate::report::{Report, Row};
use crate::site::{self, Confirmed, PARTITIONS, Place};
use crate::suites::{DEADLINE, GATEWAY_PEAK, peak, say};

const SITES: u64 = 1_000;
/// Sites that share a socket.
const SITES_PER_SOCKET: usize = 50;
const OBSERVED: Duration = Duration::from_secs(30);
/// Records on their way to be counted.
const QUEUE: usize = 100_000;
const TOMBOLO: &str = "tombolo";
const P99: &str = "p99 of a confirm, ms";
const BACK: &str = "all back after a reconnect at once, s";
const SETTINGS: &str = "memory.limit = \"1536 MiB\"\nmemory.credit_per_link = \"128 KiB\"\n\
                        memory.credit_total = \"288 MiB\"\nmemory.max_frame = \"64 KiB\"\n\
                        quic.max_connections = 2500\nproduce.connections_per_broker = 1\n";

pub(crate) async fn run(run: &Run) -> Report {
    let sites = usize::try_from(run.scaled(SITES)).expect("a share of it");
    let data = format!(
        "{sites} sites with a link and a topic of {PARTITIONS} partitions each, one record of 200 bytes a second each; the \
         sites are the agent's half of the protocol over QUIC, in one process, without a source cluster."
    );
    let mut report = Report::new("links", data);
    report.settings.push(("gateway".to_owned(), SETTINGS.trim_end().replace('\n', ", ")));
    for number in 1..=run.runs {
        say(&format!("run {number} of {}", run.runs));
        let row = measure(sites).await;
        say(&format!("  {:?}", row.figures));
        report.rows.push(row);
    }
    report.at_most("MiB resident, gateway", report.median(TOMBOLO, GATEWAY_PEAK), 512.0);
    report.at_most(P99, report.median(TOMBOLO, P99), 1_000.0);
    report.at_most(BACK, report.median(TOMBOLO, BACK), 30.0);
    report
}

async fn measure(sites: usize) -> Row {
    let cloud = contender::broker().await;
    let links: Vec<String> = (0..sites).map(|_| unique_name("site")).collect();
    let certificates = Scratch::new("certificates");
    let folder = certificates.path().display().to_string();
    for some in links.chunks(100) {
        let names = some.iter().flat_map(|link| ["--link", link.as_str()]);
        let words: Vec<&str> = ["dev-certs", folder.as_str()].into_iter().chain(names).collect();
        let made = Binary::Gateway.run(&words).await;
        assert!(made.status.success(), "dev-certs fails: {}", String::from_utf8_lossy(&made.stderr));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut gateway = Daemon::gateway(&settings(&cloud, &links, &certificates, address)).await;
    gateway.allow("WARN");
    gateway.wait_ready().await;

    let (order, orders) = watch::channel(0);
    let (confirmed, mut confirms) = mpsc::channel(QUEUE);
    let mut running = JoinSet::new();
    let begin = Instant::now();
    let mut endpoint = None;
    for (number, link) in links.iter().enumerate() {
        if number % SITES_PER_SOCKET == 0 {
            endpoint = Some(Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket"));
        }
        let place = Place {
            site: number,
            topic: link.clone(),
            gateway: address,
            client: site::client(certificates.path(), link),
            endpoint: endpoint.clone().expect("made above"),
        };
        running.spawn(site::run(place, orders.clone(), confirmed.clone()));
    }
    until_all_confirm(&mut confirms, sites, begin).await;
    let first = begin.elapsed().as_secs_f64();
    say(&format!("  {sites} sites confirmed after {first:.1} s"));

    let mut latencies = observe(&mut confirms).await;
    let before = gateway.usage();
    latencies.extend(observe(&mut confirms).await);
    let after = gateway.usage();
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        let latency = latencies.get(latencies.len() * percent / 100);
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };

    let again = Instant::now();
    order.send_modify(|order| *order += 1);
    until_all_confirm(&mut confirms, sites, again).await;
    let back = again.elapsed().as_secs_f64();
    running.abort_all();
    let figures = vec![
        ("all confirmed at first, s", first),
        ("p50 of a confirm, ms", percentile(50)),
        (P99, percentile(99)),
        ("gateway, % of a core", (after.cpu_seconds - before.cpu_seconds) / OBSERVED.as_secs_f64() * 100.0),
        (BACK, back),
        (GATEWAY_PEAK, peak(&gateway.usage())),
    ];
    Row { contender: TOMBOLO.to_owned(), figures }
}

/// Waits until of every site a record is confirmed that was not there before `since`.
async fn until_all_confirm(confirms: &mut mpsc::Receiver<Confirmed>, sites: usize, since: Instant) {
    let mut missing: BTreeSet<usize> = (0..sites).collect();
    let all = async {
        while !missing.is_empty() {
            let confirmed = confirms.recv().await.expect("sites live longer");
            if confirmed.at >= since {
                missing.remove(&confirmed.site);
            }
        }
    };
    let done = tokio::time::timeout(DEADLINE, all).await;
    assert!(done.is_ok(), "{} sites have nothing confirmed after {DEADLINE:?}", missing.len());
}

/// What confirms took that came within the time.
async fn observe(confirms: &mut mpsc::Receiver<Confirmed>) -> Vec<Duration> {
    let end = tokio::time::Instant::now() + OBSERVED;
    let mut latencies = Vec::new();
    while let Ok(confirmed) = tokio::time::timeout_at(end, confirms.recv()).await {
        latencies.push(confirmed.expect("sites live longer").after);
    }
    latencies
}

fn settings(cloud: &KafkaCluster, links: &[String], certificates: &Scratch, address: SocketAddr) -> String {
    let file = |name: &str| certificates.path().join(name).display().to_string();
    let mut text = format!("listen = \"{address}\"\nhttp.listen = \"127.0.0.1:{}\"\n{SETTINGS}", free_port());
    let mut line = |key: &str, value: &str| writeln!(text, "{key} = \"{value}\"").expect("a string takes all");
    line("tls.certificate", &file("gateway.pem"));
    line("tls.key", &file("gateway.key"));
    line("tls.client_ca", &file("ca.pem"));
    line("tls.domain", "example.net");
    line("registry.topic", &unique_name("_tombolo"));
    text.push_str("[cloud]\n");
    for (key, value) in cloud.properties(Mechanism::ScramSha512) {
        writeln!(text, "\"{key}\" = \"{value}\"").expect("a string takes all");
    }
    for link in links {
        writeln!(text, "[[link]]\nname = \"{link}\"\nmirror = [{{ topic = \"{link}\" }}]").expect("a string takes all");
    }
    text
}
