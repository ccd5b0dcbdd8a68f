//! What the agent tells about itself: the `/status` document (a stable schema), and its metrics.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tombolo_proto::edge::{EdgeMirrorState, EdgeMirrorStatus, EdgePartitionStatus, EdgeStatus};
use tombolo_proto::id::{Partition as PartitionNumber, TopicName};
use tombolo_service::admin_http::StatusDocument;
use tombolo_service::metrics::{Description, Kind};

use crate::carrier::LinkStats;
use crate::keeper::DiskView;
use crate::loss::Loss;
use crate::source::Hanging;

/// Every metric of the agent.
pub(crate) const METRICS: &[Description] = &[
    gauge("tombolo_link_up", "1 while a session with the gateway has its Welcome, else 0"),
    gauge("tombolo_link_rtt_seconds", "Round trip to the gateway, smoothed"),
    counter("tombolo_link_reconnects_total", "Sessions that got their Welcome after the first"),
    counter("tombolo_link_lost_packets_total", "QUIC packets declared lost"),
    counter("tombolo_handshakes_total", "QUIC handshakes completed; a change of address is none"),
    counter("tombolo_sent_bytes_total", "Bytes of frames handed to the link, before compression"),
    counter("tombolo_sent_wire_bytes_total", "Bytes of UDP payload sent to the gateway, resends included"),
    counter("tombolo_acked_bytes_total", "Bytes of batches that the cloud confirmed"),
    counter("tombolo_fetched_bytes_total", "Bytes of batches read from the source"),
    counter("tombolo_refetched_bytes_total", "Bytes of batches that this process had read from the source before"),
    counter("tombolo_reencoded_batches_total", "Batches written anew: of thinned, LogAppendTime and old formats"),
    counter(
        "tombolo_source_hole_offsets_total",
        "Offsets at which the source holds nothing, of topics that are not compacted",
    ),
    gauge("tombolo_window_bytes", "Bytes of batches in memory: fetched and not confirmed"),
    gauge("tombolo_journal_bytes", "Bytes of frames in the journal that the cloud lacks"),
    gauge("tombolo_journal_file_bytes", "Bytes of the journal's files"),
    gauge("tombolo_journal_max_bytes", "Most bytes that the journal's files may take"),
    gauge("tombolo_journal_blocked", "1 while the journal takes nothing, full or failed, else 0"),
    counter("tombolo_journal_written_bytes_total", "Bytes of frames written to the journal, copies included"),
    counter("tombolo_journal_corrupt_segments_total", "Segments of the journal found damaged"),
    histogram("tombolo_journal_commit_seconds", "Durable commits of the journal"),
    gauge(
        "tombolo_time_to_loss_seconds",
        "Until the source deletes what is neither in the journal nor in the cloud; +Inf where not in sight",
    ),
    gauge("tombolo_in_flight_bytes", "Bytes of batches sent and not confirmed"),
    gauge("tombolo_lag_records", "Records of a topic that the cloud does not have yet, over all its partitions"),
    gauge("tombolo_mirrors", "Mirrors by state"),
];

const fn gauge(name: &'static str, help: &'static str) -> Description {
    Description { kind: Kind::Gauge, name, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Description {
    Description { kind: Kind::Histogram, name, help }
}

const fn counter(name: &'static str, help: &'static str) -> Description {
    Description { kind: Kind::Counter, name, help }
}

/// The states a mirror can have, so that each has its sample even when no mirror is in it.
const STATES: [&str; 5] = ["PENDING_MIRROR", "ACTIVE", "PAUSED", "SOURCE_UNAVAILABLE", "FAILED"];

/// What the owner of the site knows of the link beyond the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkView {
    /// `host:port` of the gateway in use, or of the first one.
    pub(crate) gateway: String,
    /// When the state began.
    pub(crate) since: SystemTime,
    pub(crate) reconnects: u64,
    /// Why there was no session, the last time.
    pub(crate) last_error: Option<String>,
    pub(crate) stats: Option<LinkStats>,
    pub(crate) source_cluster: String,
    pub(crate) source_problem: Option<String>,
    /// Partitions that wait for a transaction at the source to end.
    pub(crate) hanging: BTreeMap<(TopicName, PartitionNumber), Hanging>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: &'static str,
    link: Link<'a>,
    source: Source<'a>,
    memory: Memory,
    journal: Journal<'a>,
    /// Seconds until the source deletes the first record that is neither in the journal nor in the cloud, if nothing
    /// changes; `null` where no deletion is in sight.
    time_to_loss_s: Option<u64>,
    mirrors: Vec<Mirror<'a>>,
}

#[derive(Debug, Serialize)]
struct Link<'a> {
    state: &'static str,
    term: Option<u64>,
    gateway: &'a str,
    gateway_software: &'a str,
    transport: &'static str,
    /// Seconds since 1970.
    since: u64,
    rtt_ms: Option<u64>,
    lost_packets: Option<u64>,
    sent_packets: Option<u64>,
    reconnects: u64,
    last_error: Option<&'a str>,
    credit_bytes: usize,
    in_flight_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Source<'a> {
    cluster_id: &'a str,
    problem: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Memory {
    window_bytes: usize,
    window_limit_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Journal<'a> {
    /// Why it takes nothing; `null` while it does.
    problem: Option<&'a str>,
    frame_bytes: u64,
    file_bytes: u64,
    max_bytes: u64,
    segments: usize,
    damaged_segments: u64,
    /// Bytes that the cloud confirms in a second; `null` while the link is down.
    drain_bytes_per_second: Option<u64>,
    /// Seconds until the journal is drained at that rate.
    drained_in_s: Option<u64>,
    /// Seconds until it is full at the rate at which the site writes; `null` where that is not in sight.
    full_in_s: Option<u64>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of Cluster Linking's REST resources")]
struct Mirror<'a> {
    topic: &'a str,
    mirror_status: &'static str,
    /// Name of the failure, `null` where there is none.
    mirror_topic_error: Option<&'static str>,
    detail: Option<String>,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Partition {
    #[serde(rename = "partition")]
    number: i32,
    source_high_watermark: Option<i64>,
    fetched: Option<i64>,
    sent: Option<i64>,
    confirmed: Option<i64>,
    lag: Option<i64>,
    window_bytes: usize,
    placed: bool,
    unverified: bool,
    rewinds: u64,
    /// Offsets in the journal that the cloud lacks: the first, and the one after the last.
    journal: Option<[i64; 2]>,
    source_log_start: Option<i64>,
    /// It cannot be read on in the dark; the next session shows whether that matters.
    stuck: bool,
    time_to_loss_s: Option<u64>,
    /// The open transaction at the source that it waits for; `null` where there is none.
    waits_for_transaction: Option<Transaction>,
}

#[derive(Debug, Serialize)]
struct Transaction {
    /// `null` where the broker does not tell.
    producer_id: Option<i64>,
    since_offset: i64,
}

/// The `/status` document.
pub(crate) fn document(
    status: &EdgeStatus,
    view: &LinkView,
    disk: DiskView,
    loss: &Loss,
    window_limit_bytes: usize,
) -> StatusDocument {
    let since = view.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    StatusDocument::new(&Document {
        version: env!("CARGO_PKG_VERSION"),
        link: Link {
            state: if status.term.is_some() { "ACTIVE" } else { "UNAVAILABLE" },
            term: status.term.map(|term| term.0),
            gateway: &view.gateway,
            gateway_software: &status.gateway_software,
            transport: "quic",
            since,
            rtt_ms: view.stats.map(|stats| millis(stats.rtt)),
            lost_packets: view.stats.map(|stats| stats.lost_packets),
            sent_packets: view.stats.map(|stats| stats.sent_packets),
            reconnects: view.reconnects,
            last_error: view.last_error.as_deref(),
            credit_bytes: status.credit_bytes,
            in_flight_bytes: status.in_flight_bytes,
        },
        source: Source { cluster_id: &view.source_cluster, problem: view.source_problem.as_deref() },
        memory: Memory { window_bytes: status.window_bytes, window_limit_bytes },
        journal: journal(status, disk, loss),
        time_to_loss_s: loss.site().map(|left| left.as_secs()),
        mirrors: status.mirrors.iter().map(|status| mirror(status, view, loss)).collect(),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn journal<'a>(status: &'a EdgeStatus, disk: DiskView, loss: &Loss) -> Journal<'a> {
    let usage = disk.usage;
    let rate = status.term.map(|_| status.bytes_per_second);
    Journal {
        problem: status.journal_trouble.as_deref(),
        frame_bytes: usage.frame_bytes,
        file_bytes: usage.file_bytes,
        max_bytes: usage.max_bytes,
        segments: usage.segments,
        damaged_segments: usage.damaged_segments,
        drain_bytes_per_second: rate,
        drained_in_s: rate.filter(|&rate| rate > 0).map(|rate| usage.frame_bytes.div_ceil(rate)),
        full_in_s: loss.journal_full_in().map(|left| left.as_secs()),
    }
}

fn mirror<'a>(status: &'a EdgeMirrorStatus, view: &LinkView, loss: &Loss) -> Mirror<'a> {
    let failure = match &status.state {
        EdgeMirrorState::Failed(failure) => Some(failure.code.name()),
        EdgeMirrorState::Pending
        | EdgeMirrorState::Active
        | EdgeMirrorState::Paused
        | EdgeMirrorState::SourceUnavailable { .. } => None,
    };
    Mirror {
        topic: status.topic.as_str(),
        mirror_status: status.state.name(),
        mirror_topic_error: failure,
        detail: status.state.reason(),
        partitions: status
            .partitions
            .iter()
            .map(|at| {
                let waits = view.hanging.get(&(status.topic.clone(), at.partition)).copied();
                partition(at, loss.partition(&status.topic, at.partition), waits)
            })
            .collect(),
    }
}

fn partition(status: &EdgePartitionStatus, time_to_loss: Option<Duration>, waits: Option<Hanging>) -> Partition {
    Partition {
        number: status.partition,
        source_high_watermark: status.source_high_watermark,
        fetched: status.fetched,
        sent: status.sent,
        confirmed: status.confirmed,
        lag: status.lag(),
        window_bytes: status.window_bytes,
        placed: status.placed,
        unverified: status.unverified,
        rewinds: status.rewinds,
        journal: status.journal.map(|(first, next)| [first, next]),
        source_log_start: status.source_log_start,
        stuck: status.stuck,
        time_to_loss_s: time_to_loss.map(|left| left.as_secs()),
        waits_for_transaction: waits
            .map(|Hanging { producer_id, first_offset }| Transaction { producer_id, since_offset: first_offset }),
    }
}

/// Sets the gauges. Labels are topics (the gateway's list) and states, no partitions: there may be thousands.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has floating point only")]
pub(crate) fn record(status: &EdgeStatus, view: &LinkView, disk: DiskView, loss: &Loss) {
    metrics::gauge!("tombolo_link_up").set(if status.term.is_some() { 1.0 } else { 0.0 });
    metrics::gauge!("tombolo_window_bytes").set(status.window_bytes as f64);
    let usage = disk.usage;
    metrics::gauge!("tombolo_journal_bytes").set(usage.frame_bytes as f64);
    metrics::gauge!("tombolo_journal_file_bytes").set(usage.file_bytes as f64);
    metrics::gauge!("tombolo_journal_max_bytes").set(usage.max_bytes as f64);
    metrics::gauge!("tombolo_journal_blocked").set(if status.journal_trouble.is_some() { 1.0 } else { 0.0 });
    metrics::gauge!("tombolo_time_to_loss_seconds").set(loss.site().map_or(f64::INFINITY, |left| left.as_secs_f64()));
    metrics::gauge!("tombolo_in_flight_bytes").set(status.in_flight_bytes as f64);
    if let Some(stats) = view.stats {
        metrics::gauge!("tombolo_link_rtt_seconds").set(stats.rtt.as_secs_f64());
    }
    for state in STATES {
        let count = status.mirrors.iter().filter(|mirror| mirror.state.name() == state).count();
        metrics::gauge!("tombolo_mirrors", "state" => state).set(count as f64);
    }
    for mirror in &status.mirrors {
        let lag: i64 = mirror.partitions.iter().filter_map(EdgePartitionStatus::lag).sum();
        metrics::gauge!("tombolo_lag_records", "topic" => mirror.topic.to_string()).set(lag as f64);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tombolo_proto::edge::Retention;
    use tombolo_proto::failure::{Failure, FailureCode};
    use tombolo_proto::id::Term;

    use super::*;

    #[test]
    fn the_document_names_the_failure_and_its_reason() {
        let failure = Failure::at(FailureCode::Diverged, 2, 40, "two logs");
        let status = EdgeStatus {
            term: Some(Term(7)),
            mirrors: vec![EdgeMirrorStatus {
                topic: TopicName::new("orders").unwrap(),
                state: EdgeMirrorState::Failed(failure),
                retention: Retention::default(),
                partitions: vec![EdgePartitionStatus {
                    partition: 0,
                    source_high_watermark: Some(50),
                    fetched: Some(45),
                    sent: Some(44),
                    confirmed: Some(40),
                    window_bytes: 900,
                    placed: true,
                    unverified: false,
                    rewinds: 0,
                    journal: Some((40, 45)),
                    source_log_start: Some(3),
                    unsafe_timestamp: None,
                    stuck: false,
                }],
            }],
            ..EdgeStatus::default()
        };
        let view = LinkView {
            gateway: "gw:4433".to_owned(),
            since: UNIX_EPOCH + Duration::from_secs(9),
            reconnects: 3,
            last_error: None,
            stats: None,
            source_cluster: "abc".to_owned(),
            source_problem: None,
            hanging: [((TopicName::new("orders").unwrap(), 0), Hanging { producer_id: Some(7), first_offset: 44 })]
                .into(),
        };
        let document = document(&status, &view, DiskView::default(), &Loss::default(), 1_000).value();
        let at = |path: &str| document.pointer(path).unwrap().clone();
        assert_eq!(at("/link/state"), "ACTIVE");
        assert_eq!(at("/link/term"), 7);
        assert_eq!(at("/link/since"), 9);
        assert_eq!(at("/link/rtt_ms"), Value::Null);
        assert_eq!(at("/mirrors/0/mirror_status"), "FAILED");
        assert_eq!(at("/mirrors/0/mirror_topic_error"), "DIVERGED");
        assert_eq!(at("/mirrors/0/detail"), "DIVERGED partition 2 offset 40: two logs");
        assert_eq!(at("/mirrors/0/partitions/0/lag"), 10);
        assert_eq!(at("/mirrors/0/partitions/0/journal"), serde_json::json!([40, 45]));
        assert_eq!(at("/time_to_loss_s"), Value::Null);
        let waits = serde_json::json!({"producer_id": 7, "since_offset": 44});
        assert_eq!(at("/mirrors/0/partitions/0/waits_for_transaction"), waits);
    }
}
