//! The gateway's metrics: names, help, and one function for each that is counted in more than one place.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tombolo_service::metrics::{Description, Kind, describe};

const HANDSHAKES: &str = "tombolo_gateway_handshakes_total";
const REFUSED: &str = "tombolo_gateway_refused_connections_total";
const SITES: &str = "tombolo_gateway_sites";
const MIRRORS: &str = "tombolo_gateway_mirrors";
const SESSIONS: &str = "tombolo_gateway_sessions_total";
const CONFIRMED_BYTES: &str = "tombolo_gateway_confirmed_bytes_total";
const RECEIVED_BYTES: &str = "tombolo_gateway_received_bytes_total";
const INCARNATIONS_REFUSED: &str = "tombolo_gateway_incarnations_refused_total";
const HELD_BYTES: &str = "tombolo_gateway_held_bytes";
const STALE: &str = "tombolo_gateway_stale_answers_total";
const DUPLICATES: &str = "tombolo_gateway_duplicates_discarded_total";
const MARKERS: &str = "tombolo_gateway_markers_total";
const FILLER: &str = "tombolo_gateway_filler_offsets_total";
const LOST: &str = "tombolo_gateway_lost_offsets_total";
const WRITE_SECONDS: &str = "tombolo_gateway_write_seconds";

const DESCRIPTIONS: [Description; 15] = [
    Description { kind: Kind::Counter, name: HANDSHAKES, help: "Connections whose TLS handshake was completed" },
    Description { kind: Kind::Counter, name: REFUSED, help: "Connections refused, by reason" },
    Description { kind: Kind::Gauge, name: SITES, help: "Links of the settings, by state" },
    Description { kind: Kind::Gauge, name: MIRRORS, help: "Mirrors, by state" },
    Description { kind: Kind::Counter, name: SESSIONS, help: "Sessions that took their link" },
    Description {
        kind: Kind::Counter,
        name: INCARNATIONS_REFUSED,
        help: "Sessions refused because another agent with the link's certificate came later",
    },
    Description {
        kind: Kind::Counter,
        name: CONFIRMED_BYTES,
        help: "Bytes of batches that the cloud cluster confirmed",
    },
    Description { kind: Kind::Counter, name: RECEIVED_BYTES, help: "Bytes of frames that came over links, as sent" },
    Description { kind: Kind::Gauge, name: HELD_BYTES, help: "Unconfirmed bytes in memory, of all links" },
    Description {
        kind: Kind::Counter,
        name: STALE,
        help: "Appends that were late: sequence (refused by the broker), shifted (ended up elsewhere), lease (not sent)",
    },
    Description {
        kind: Kind::Counter,
        name: DUPLICATES,
        help: "Batches sent again within a session and answered with success: the broker kept one of the two",
    },
    Description { kind: Kind::Counter, name: MARKERS, help: "Markers appended where the source has no records" },
    Description {
        kind: Kind::Counter,
        name: FILLER,
        help: "Offsets filled, and deleted again, to make mirrors start where their sources do",
    },
    Description {
        kind: Kind::Counter,
        name: LOST,
        help: "Offsets that sources deleted before they were mirrored, by link, as the registry's loss ledgers have them",
    },
    Description { kind: Kind::Histogram, name: WRITE_SECONDS, help: "Time from a Produce request to its answer" },
];

/// Gives each its HELP line, and those that tests and alerts look for a value from the start.
pub(crate) fn describe_all() {
    describe(&DESCRIPTIONS);
    tombolo_service::metrics::build_info("tombolo-gateway", env!("CARGO_PKG_VERSION"));
    counter!(HANDSHAKES).increment(0);
    for kind in ["sequence", "shifted", "lease"] {
        stale_answers(kind, 0);
    }
    counter!(INCARNATIONS_REFUSED).increment(0);
    counter!(DUPLICATES).increment(0);
    counter!(MARKERS).increment(0);
    counter!(FILLER).increment(0);
    counter!(CONFIRMED_BYTES).increment(0);
    counter!(RECEIVED_BYTES).increment(0);
}

pub(crate) fn handshake() {
    counter!(HANDSHAKES).increment(1);
}

pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn session_began() {
    counter!(SESSIONS).increment(1);
}

pub(crate) fn incarnation_refused() {
    counter!(INCARNATIONS_REFUSED).increment(1);
}

pub(crate) fn confirmed_bytes(bytes: usize) {
    counter!(CONFIRMED_BYTES).increment(bytes as u64);
}

pub(crate) fn received_bytes(bytes: usize) {
    counter!(RECEIVED_BYTES).increment(bytes as u64);
}

pub(crate) fn stale_answers(kind: &'static str, count: usize) {
    counter!(STALE, "kind" => kind).increment(count as u64);
}

pub(crate) fn duplicate_discarded() {
    counter!(DUPLICATES).increment(1);
}

pub(crate) fn markers_appended(count: i64) {
    counter!(MARKERS).increment(u64::try_from(count).unwrap_or(0));
}

pub(crate) fn filler_appended(count: i32) {
    counter!(FILLER).increment(u64::try_from(count).unwrap_or(0));
}

/// What the ledgers of a link's mirrors add up to.
pub(crate) fn lost_offsets(link: &str, count: u64) {
    counter!(LOST, "link" => link.to_owned()).absolute(count);
}

pub(crate) fn write_seconds(elapsed: Duration) {
    histogram!(WRITE_SECONDS).record(elapsed);
}

/// Gauges that the status board sums up once a second.
pub(crate) fn sums(sites: &[(&'static str, usize)], mirrors: &[(&'static str, usize)], held_bytes: usize) {
    for &(state, count) in sites {
        gauge!(SITES, "state" => state).set(as_gauge(count));
    }
    for &(state, count) in mirrors {
        gauge!(MIRRORS, "state" => state).set(as_gauge(count));
    }
    gauge!(HELD_BYTES).set(as_gauge(held_bytes));
}

#[expect(clippy::cast_precision_loss, reason = "counts and bytes far below 2^53")]
fn as_gauge(value: usize) -> f64 {
    value as f64
}
