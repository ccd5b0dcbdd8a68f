//! `check`: tries everything the agent needs, changes nothing, begins no session.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tombolo_kafka::cluster::Broker;
use tombolo_kafka::error::Api;
use tombolo_kafka::{Cluster, Connection};
use tombolo_service::settings::ByteSize;

use crate::keeper::folder_bytes;
use crate::settings::{JournalSettings, Settings};

/// For each broker.
const BROKER_DEADLINE: Duration = Duration::from_secs(15);
/// For a gateway's refusal: a certificate is refused one round trip after the handshake.
const REFUSAL_WAIT: Duration = Duration::from_secs(3);
/// What the agent cannot do without, and what it can.
const NEEDED: [Api; 3] = [Api::Metadata, Api::Fetch, Api::ListOffsets];
const WANTED: [Api; 1] = [Api::DescribeConfigs];

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
}

impl Finding {
    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), ok: true, detail: detail.into() }
    }

    fn failed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), ok: false, detail: detail.into() }
    }
}

/// Tries the source cluster and every gateway.
pub(crate) async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = source(Cluster::new(settings.source.clone())).await;
    findings.push(journal(&settings.journal));
    for (gateway, outcome) in settings.link.probe(REFUSAL_WAIT).await {
        let what = format!("gateway {gateway}");
        findings.push(match outcome {
            Ok(address) => Finding::ok(what, format!("handshake with {address} done, not refused")),
            Err(error) => Finding::failed(what, error.to_string()),
        });
    }
    findings
}

/// The folder can be written, and the disk has room for what the journal may take.
fn journal(settings: &JournalSettings) -> Finding {
    let what = format!("journal in {}", settings.path.display());
    let room = match room_in(&settings.path) {
        Ok(room) => room,
        Err(error) => return Finding::failed(what, format!("{error}: make it, writable for the agent's user")),
    };
    let used = folder_bytes(&settings.path);
    let detail = format!("{} on disk, {} free, up to {}", bytes(used), bytes(room), bytes(settings.max_bytes));
    if used + room < settings.max_bytes {
        Finding::failed(what, format!("{detail}: lower journal.max_bytes or make room"))
    } else {
        Finding::ok(what, detail)
    }
}

/// Bytes that the file system still takes, for a folder that a file can be made in.
fn room_in(folder: &Path) -> io::Result<u64> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join(".check");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)?;
    let room = rustix::fs::statvfs(folder)?;
    Ok(room.f_bavail * room.f_frsize)
}

fn bytes(bytes: u64) -> ByteSize {
    ByteSize::bytes(bytes)
}

async fn source(cluster: Cluster) -> Vec<Finding> {
    let metadata = match timeout(BROKER_DEADLINE, cluster.metadata(Some(&[]))).await {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(error)) => return vec![Finding::failed("source cluster", error.to_string())],
        Err(_) => return vec![Finding::failed("source cluster", format!("no answer within {BROKER_DEADLINE:?}"))],
    };
    let id = metadata.cluster_id.as_deref().unwrap_or("unknown");
    let brokers = metadata.brokers.len();
    let mut findings = vec![Finding::ok("source cluster", format!("cluster id {id}, {brokers} brokers"))];
    for broker in &metadata.brokers {
        findings.push(check_broker(&cluster, broker).await);
    }
    findings
}

async fn check_broker(cluster: &Cluster, broker: &Broker) -> Finding {
    let what = format!("source broker {} at {}:{}", broker.id, broker.host, broker.port);
    match timeout(BROKER_DEADLINE, cluster.connect(broker.id)).await {
        Ok(Ok(connection)) => versions(what, &connection),
        Ok(Err(error)) => Finding::failed(what, error.to_string()),
        Err(_) => Finding::failed(what, format!("no answer within {BROKER_DEADLINE:?}")),
    }
}

fn versions(what: String, connection: &Connection) -> Finding {
    let offered = |api: Api| match connection.offers(api) {
        Some(versions) => format!("{api} {versions}"),
        None => format!("{api} none"),
    };
    let detail = NEEDED.into_iter().chain(WANTED).map(offered).collect::<Vec<_>>().join(", ");
    let ok = NEEDED.into_iter().all(|api| connection.offers(api).is_some());
    Finding { what, ok, detail }
}
