//! The settings file as it is written: names, defaults, nothing checked but types.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use tombolo_proto::cloud::DEFAULT_MAX_GAP;
use tombolo_service::admin_http::HttpSettings;
use tombolo_service::logging::LogSettings;
use tombolo_service::settings::{ByteSize, Properties, Span};

/// The file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// UDP address.
    pub listen: SocketAddr,
    pub(super) tls: RawTls,
    pub(super) cloud: Properties,
    #[serde(default)]
    pub(super) registry: RawRegistry,
    #[serde(default)]
    pub(super) memory: RawMemory,
    #[serde(default)]
    pub(super) quic: RawQuic,
    #[serde(default)]
    pub(super) produce: RawProduce,
    #[serde(default)]
    pub(super) retention: RawRetention,
    #[serde(default = "default_http")]
    pub(super) http: HttpSettings,
    #[serde(default)]
    pub(super) log: LogSettings,
    #[serde(default)]
    pub(super) link: Vec<RawLink>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
    pub(super) domain: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRegistry {
    pub(super) topic: String,
    pub(super) lease: Span,
    pub(super) settle: Span,
    pub(super) replication_factor: i16,
}

impl Default for RawRegistry {
    fn default() -> Self {
        Self {
            topic: "_tombolo".to_owned(),
            lease: Span::from_secs(3),
            settle: Span::from_secs(1),
            replication_factor: -1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMemory {
    pub(super) limit: ByteSize,
    pub(super) credit_per_link: ByteSize,
    pub(super) credit_total: ByteSize,
    pub(super) max_frame: ByteSize,
}

impl Default for RawMemory {
    fn default() -> Self {
        Self {
            limit: ByteSize::mib(192),
            credit_per_link: ByteSize::mib(8),
            credit_total: ByteSize::mib(32),
            max_frame: ByteSize::mib(2),
        }
    }
}

/// Congestion control of the gateway's side, which sends little: confirms and positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// Version 1, experimental.
    Bbr,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawQuic {
    pub(super) idle_timeout: Span,
    pub(super) keep_alive: Span,
    pub(super) handshake_timeout: Span,
    pub(super) max_connections: usize,
    pub(super) receive_buffer: ByteSize,
    pub(super) congestion: Congestion,
}

impl Default for RawQuic {
    fn default() -> Self {
        Self {
            idle_timeout: Span::from_secs(30),
            keep_alive: Span::from_secs(10),
            handshake_timeout: Span::from_secs(15),
            max_connections: 256,
            receive_buffer: ByteSize::mib(4),
            congestion: Congestion::Cubic,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProduce {
    pub(super) connections_per_broker: usize,
    pub(super) request_bytes: ByteSize,
    pub(super) timeout: Span,
}

impl Default for RawProduce {
    fn default() -> Self {
        Self { connections_per_broker: 4, request_bytes: ByteSize::mib(1), timeout: Span::from_secs(10) }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRetention {
    pub(super) hold: bool,
    pub(super) grace: Span,
}

impl Default for RawRetention {
    fn default() -> Self {
        Self { hold: true, grace: Span::from_secs(3_600) }
    }
}

/// What moves a mirror past offsets without records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawSkip {
    /// Control markers.
    #[default]
    Markers,
    /// Empty transactions.
    Transactions,
}

/// What becomes of offsets that the source deleted before they were mirrored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawOnLoss {
    #[default]
    Halt,
    Skip,
}

/// The same of one mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawMirrorOnLoss {
    /// As the link has it.
    #[default]
    Link,
    Halt,
    Skip,
}

/// What becomes of records that the source deleted after they were mirrored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawLogStart {
    #[default]
    Keep,
    Follow,
}

/// The same of one mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawMirrorLogStart {
    /// As the link has it.
    #[default]
    Link,
    Keep,
    Follow,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLink {
    pub(super) name: String,
    #[serde(default = "default_max_gap")]
    pub(super) max_gap_offsets: i64,
    #[serde(default)]
    pub(super) on_loss: RawOnLoss,
    #[serde(default)]
    pub(super) log_start: RawLogStart,
    #[serde(default)]
    pub(super) skip: RawSkip,
    #[serde(default)]
    pub(super) topics: Vec<String>,
    #[serde(default)]
    pub(super) mirror: Vec<RawMirror>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMirror {
    pub(super) topic: String,
    pub(super) mirror_topic: Option<String>,
    #[serde(default)]
    pub(super) paused: bool,
    #[serde(default = "as_the_link")]
    pub(super) max_gap_offsets: i64,
    #[serde(default)]
    pub(super) on_loss: RawMirrorOnLoss,
    #[serde(default)]
    pub(super) log_start: RawMirrorLogStart,
}

fn default_max_gap() -> i64 {
    DEFAULT_MAX_GAP
}

fn as_the_link() -> i64 {
    -1
}

fn default_http() -> HttpSettings {
    HttpSettings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8082)) }
}

impl RawConfig {
    /// Names of the tables that differ, links left out: those are applied while the process runs.
    pub(super) fn differing_tables(&self, old: &Self) -> Vec<String> {
        [
            ("listen", self.listen != old.listen),
            ("tls", self.tls != old.tls),
            ("cloud", self.cloud != old.cloud),
            ("registry", self.registry != old.registry),
            ("memory", self.memory != old.memory),
            ("quic", self.quic != old.quic),
            ("produce", self.produce != old.produce),
            ("retention", self.retention != old.retention),
            ("http", self.http != old.http),
            ("log", self.log != old.log),
        ]
        .into_iter()
        .filter(|&(_, differs)| differs)
        .map(|(table, _)| table.to_owned())
        .collect()
    }
}
