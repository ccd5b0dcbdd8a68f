//! The settings file of the gateway: what was written ([`RawConfig`]), checked into what the process uses
//! ([`Settings`]) before a port is bound. Defaults and their cost stand in `deploy/gateway.toml`.

mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::ClientSettings;
use tombolo_proto::cloud::{LinkSettings, LogStart, MirrorSettings, OnLoss};
use tombolo_proto::id::{LinkName, TopicName};
use tombolo_proto::limits::{MAX_FILTERS, MAX_FRAME_BYTES, MAX_MIRRORS, MIN_FRAME_BYTES};
use tombolo_proto::pattern::{self, TopicPattern};
use tombolo_service::admin_http::HttpSettings;
use tombolo_service::logging::LogSettings;
use tombolo_service::settings::{self, ByteSize, SettingsError, Span};

use crate::identity::TrustDomain;
pub use raw::{Congestion, RawConfig};
use raw::{
    RawLink, RawLogStart, RawMemory, RawMirrorLogStart, RawMirrorOnLoss, RawOnLoss, RawQuic, RawRegistry, RawSkip,
};

/// Name under which the brokers' logs and quotas know the gateway, where `client.id` is not set.
const CLIENT_ID: &str = "tombolo-gateway";

/// What the process takes beside all others: code, threads, TLS.
const BASE_MEMORY: usize = 24 << 20;
/// What a connection with its session takes beside frames.
const CONNECTION_MEMORY: usize = 256 << 10;
/// Times that a byte of a frame is held: received, stamped for the broker, and in a request.
const HOLDERS: usize = 3;

/// The links of the settings file and what each mirrors.
pub type Links = BTreeMap<LinkName, LinkSettings>;

/// Files of the gateway's own certificate and of the links' issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Issuers of link certificates.
    pub client_ca: PathBuf,
    /// Trust domain of link names.
    pub domain: TrustDomain,
}

/// The registry topic and the lease that is kept through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Compacted topic.
    pub topic: TopicName,
    /// How long a look at the registry permits writes.
    pub lease: Duration,
    /// What a successor waits beyond the lease, for requests that are on their way.
    pub settle: Duration,
    /// Replicas where it is made; `None` = as many as there are brokers, three at most.
    pub replication_factor: Option<i16>,
}

/// Memory for frames. What the process needs is about 3 x `credit_total` + `quic.max_connections` x 256 KiB +
/// 24 MiB, and for that `memory.limit` has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    /// What all of it may take.
    pub limit: usize,
    /// Unconfirmed bytes of one link.
    pub credit_per_link: usize,
    /// Of all links together.
    pub credit_total: usize,
    /// Largest frame.
    pub max_frame: usize,
}

/// The QUIC transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuicSettings {
    /// A connection without a packet for so long is dead.
    pub idle_timeout: Duration,
    /// A quiet connection is kept alive by a packet so often.
    pub keep_alive: Duration,
    /// From the first packet to the Hello.
    pub handshake_timeout: Duration,
    /// Connections at a time, handshakes included.
    pub max_connections: usize,
    /// Packets of all connections that wait in the kernel.
    pub receive_buffer: usize,
    /// Congestion control.
    pub congestion: Congestion,
}

/// How batches are produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProduceSettings {
    /// Connections to each leader, for each session.
    pub connections_per_broker: usize,
    /// Bytes of batches in one request; one larger batch goes alone.
    pub request_bytes: usize,
    /// Time a broker gets to replicate.
    pub timeout: Duration,
}

/// How long mirror topics keep records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Whether the gateway sees to it; else retention is the operator's alone.
    pub hold: bool,
    /// How long a mirror must have kept up before records are deleted.
    pub grace: Duration,
}

/// What the process runs on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// UDP address of the links.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsSettings,
    /// The cloud cluster.
    pub cloud: ClientSettings,
    /// Registry.
    pub registry: RegistrySettings,
    /// Memory.
    pub memory: MemorySettings,
    /// Transport.
    pub quic: QuicSettings,
    /// Appending.
    pub produce: ProduceSettings,
    /// Retention of mirror topics.
    pub retention: RetentionSettings,
    /// Local HTTP.
    pub http: HttpSettings,
    /// Log output.
    pub log: LogSettings,
    /// Links and mirrors.
    pub links: Links,
    /// Links whose gaps are skipped by empty transactions.
    pub by_transactions: BTreeSet<LinkName>,
    /// Where it was read from, to be read again at SIGHUP.
    pub file: Option<PathBuf>,
    raw: RawConfig,
}

impl Settings {
    /// Reads and checks a file. Relative paths in it count from its folder.
    pub fn load(file: &Path) -> Result<Self, SettingsError> {
        let raw: RawConfig = settings::load(file)?;
        let folder = file.parent().unwrap_or_else(|| Path::new("."));
        let mut checked = Self::check(raw, folder).map_err(|error| error.in_file(file))?;
        checked.file = Some(file.to_owned());
        Ok(checked)
    }

    /// Checks a text. Relative paths in it count from `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, SettingsError> {
        Self::check(settings::parse(text)?, folder)
    }

    /// Checks what was written.
    pub fn check(raw: RawConfig, folder: &Path) -> Result<Self, SettingsError> {
        let domain = TrustDomain::new(&raw.tls.domain)
            .map_err(|error| SettingsError::new("tls.domain", error.to_string(), "a name such as example.net"))?;
        let tls = TlsSettings {
            certificate: folder.join(&raw.tls.certificate),
            key: folder.join(&raw.tls.key),
            client_ca: folder.join(&raw.tls.client_ca),
            domain,
        };
        let mut properties = raw.cloud.resolve("cloud")?;
        if properties.iter().all(|(name, _)| name != "client.id") {
            properties.push(("client.id".to_owned(), CLIENT_ID.to_owned()));
        }
        let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let cloud = ClientSettings::from_properties(pairs)
            .map_err(|error| SettingsError::new(format!("cloud.{}", error.property), error.problem, error.allowed))?;
        raw.http.check()?;
        raw.log.check()?;
        let registry = registry(&raw.registry)?;
        let links = links(&raw.link, &registry.topic)?;
        Ok(Self {
            listen: raw.listen,
            tls,
            cloud,
            registry,
            quic: quic(&raw.quic)?,
            memory: memory(&raw.memory, &raw.quic)?,
            produce: produce(&raw)?,
            retention: RetentionSettings {
                hold: raw.retention.hold,
                grace: between(
                    "retention.grace",
                    raw.retention.grace,
                    Span::from_secs(1),
                    Span::from_secs(30 * 24 * 3_600),
                )?,
            },
            http: raw.http,
            log: raw.log.clone(),
            by_transactions: by_transactions(&raw.link),
            links,
            file: None,
            raw,
        })
    }

    /// Keys that differ from `old` and only take effect in a new process.
    pub fn need_restart(&self, old: &Self) -> Vec<String> {
        let mut keys = self.raw.differing_tables(&old.raw);
        let skips = self.by_transactions.symmetric_difference(&old.by_transactions);
        keys.extend(skips.filter(|link| old.links.contains_key(*link)).map(|link| format!("link {link} skip")));
        for (link, settings) in &self.links {
            for mirror in &settings.mirrors {
                let before = old.links.get(link).into_iter().flat_map(|old| &old.mirrors);
                let moved =
                    before.filter(|before| before.source == mirror.source).any(|before| before.topic != mirror.topic);
                if moved {
                    keys.push(format!("link {link} mirror {} mirror_topic", mirror.source));
                }
            }
        }
        keys
    }
}

fn between(key: &str, value: Span, least: Span, most: Span) -> Result<Duration, SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(value.duration());
    }
    Err(SettingsError::new(key, format!("{value} is out of range"), format!("{least} to {most}")))
}

fn registry(raw: &RawRegistry) -> Result<RegistrySettings, SettingsError> {
    let topic = TopicName::new(&raw.topic)
        .map_err(|error| SettingsError::new("registry.topic", error.to_string(), "a Kafka topic name"))?;
    let replication_factor = match raw.replication_factor {
        -1 => None,
        factor @ 1.. => Some(factor),
        factor => {
            let problem = format!("{factor} replicas");
            return Err(SettingsError::new("registry.replication_factor", problem, "-1, or 1 and more"));
        }
    };
    Ok(RegistrySettings {
        topic,
        lease: between("registry.lease", raw.lease, Span::from_secs(1), Span::from_secs(60))?,
        settle: between("registry.settle", raw.settle, Span::from_millis(0), Span::from_secs(60))?,
        replication_factor,
    })
}

fn memory(raw: &RawMemory, quic: &RawQuic) -> Result<MemorySettings, SettingsError> {
    let (least, most) = (ByteSize::bytes(MIN_FRAME_BYTES as u64), ByteSize::bytes(MAX_FRAME_BYTES as u64));
    if !(least..=most).contains(&raw.max_frame) {
        let problem = format!("{} is out of range", raw.max_frame);
        return Err(SettingsError::new("memory.max_frame", problem, format!("{least} to {most}")));
    }
    let least = ByteSize::bytes(raw.max_frame.as_u64() * 2);
    if raw.credit_per_link < least || raw.credit_per_link > ByteSize::bytes(u64::from(u32::MAX)) {
        let problem = format!("{} is out of range", raw.credit_per_link);
        let allowed = format!("{least} (twice memory.max_frame) to below 4 GiB");
        return Err(SettingsError::new("memory.credit_per_link", problem, allowed));
    }
    if raw.credit_total < raw.credit_per_link {
        let problem = format!("{} is less than memory.credit_per_link", raw.credit_total);
        let allowed = format!("{} and more", raw.credit_per_link);
        return Err(SettingsError::new("memory.credit_total", problem, allowed));
    }
    let needed = HOLDERS
        .saturating_mul(raw.credit_total.as_usize())
        .saturating_add(quic.max_connections.saturating_mul(CONNECTION_MEMORY))
        .saturating_add(BASE_MEMORY);
    if raw.limit.as_usize() < needed {
        let problem = format!("{} is less than 3 x credit_total + quic.max_connections x 256 KiB + 24 MiB", raw.limit);
        let allowed = format!("at least {}", ByteSize::bytes(needed as u64));
        return Err(SettingsError::new("memory.limit", problem, allowed));
    }
    Ok(MemorySettings {
        limit: raw.limit.as_usize(),
        credit_per_link: raw.credit_per_link.as_usize(),
        credit_total: raw.credit_total.as_usize(),
        max_frame: raw.max_frame.as_usize(),
    })
}

fn quic(raw: &RawQuic) -> Result<QuicSettings, SettingsError> {
    let idle_timeout = between("quic.idle_timeout", raw.idle_timeout, Span::from_secs(2), Span::from_secs(600))?;
    let most = Span::new(idle_timeout / 2);
    let keep_alive = between("quic.keep_alive", raw.keep_alive, Span::from_millis(100), most)?;
    let handshake_timeout =
        between("quic.handshake_timeout", raw.handshake_timeout, Span::from_secs(1), Span::from_secs(120))?;
    if !(1..=10_000).contains(&raw.max_connections) {
        let problem = format!("{} connections", raw.max_connections);
        return Err(SettingsError::new("quic.max_connections", problem, "1 to 10000"));
    }
    let (least, most) = (ByteSize::kib(64), ByteSize::mib(1 << 10));
    if !(least..=most).contains(&raw.receive_buffer) {
        let problem = format!("{} is out of range", raw.receive_buffer);
        return Err(SettingsError::new("quic.receive_buffer", problem, format!("{least} to {most}")));
    }
    Ok(QuicSettings {
        idle_timeout,
        keep_alive,
        handshake_timeout,
        max_connections: raw.max_connections,
        receive_buffer: raw.receive_buffer.as_usize(),
        congestion: raw.congestion,
    })
}

fn produce(raw: &RawConfig) -> Result<ProduceSettings, SettingsError> {
    let raw = &raw.produce;
    if !(1..=64).contains(&raw.connections_per_broker) {
        let problem = format!("{} connections", raw.connections_per_broker);
        return Err(SettingsError::new("produce.connections_per_broker", problem, "1 to 64"));
    }
    let (least, most) = (ByteSize::kib(16), ByteSize::mib(64));
    if !(least..=most).contains(&raw.request_bytes) {
        let problem = format!("{} is out of range", raw.request_bytes);
        return Err(SettingsError::new("produce.request_bytes", problem, format!("{least} to {most}")));
    }
    Ok(ProduceSettings {
        connections_per_broker: raw.connections_per_broker,
        request_bytes: raw.request_bytes.as_usize(),
        timeout: between("produce.timeout", raw.timeout, Span::from_secs(1), Span::from_secs(300))?,
    })
}

fn links(raw: &[RawLink], registry: &TopicName) -> Result<Links, SettingsError> {
    let mut links = Links::new();
    let mut targets = BTreeSet::from([registry.clone()]);
    for (at, link) in raw.iter().enumerate() {
        let key = format!("link[{at}]");
        let name = LinkName::new(&link.name)
            .map_err(|error| SettingsError::new(format!("{key}.name"), error.to_string(), "a legal link name"))?;
        if link.mirror.len() > MAX_MIRRORS {
            let problem = format!("{} mirrors", link.mirror.len());
            return Err(SettingsError::new(format!("{key}.mirror"), problem, format!("at most {MAX_MIRRORS}")));
        }
        let mut settings = LinkSettings {
            max_gap: max_gap(format!("{key}.max_gap_offsets"), link.max_gap_offsets)?,
            on_loss: match link.on_loss {
                RawOnLoss::Halt => OnLoss::Halt,
                RawOnLoss::Skip => OnLoss::Skip,
            },
            log_start: match link.log_start {
                RawLogStart::Keep => LogStart::Keep,
                RawLogStart::Follow => LogStart::Follow,
            },
            ..LinkSettings::default()
        };
        settings.mirrors = mirrors(link, &settings, &key, &mut targets)?;
        settings.filters = filters(link, &key, &links)?;
        if links.insert(name, settings).is_some() {
            let problem = format!("{:?} is there twice", link.name);
            return Err(SettingsError::new(format!("{key}.name"), problem, "each link once"));
        }
    }
    let reserved = Arc::new(targets);
    for link in links.values_mut() {
        link.reserved = Arc::clone(&reserved);
    }
    Ok(links)
}

/// The filters of a link. Those of two links must not match one name: both would write one topic.
fn filters(link: &RawLink, key: &str, others: &Links) -> Result<Vec<TopicPattern>, SettingsError> {
    let key = |at: usize| format!("{key}.topics[{at}]");
    if link.topics.len() > MAX_FILTERS {
        let problem = format!("{} filters", link.topics.len());
        return Err(SettingsError::new(key(MAX_FILTERS), problem, format!("at most {MAX_FILTERS}")));
    }
    let mut filters = Vec::with_capacity(link.topics.len());
    for (at, text) in link.topics.iter().enumerate() {
        let filter = TopicPattern::new(text)
            .map_err(|error| SettingsError::new(key(at), error.to_string(), pattern::ALLOWED))?;
        let clash = |(name, other): (&LinkName, &LinkSettings)| {
            other.filters.iter().find(|other| overlap(&filter, other)).map(|other| (name.clone(), other.clone()))
        };
        if let Some((name, other)) = others.iter().find_map(clash) {
            let problem = format!("{filter} and {other} of link {name} match the same names");
            let allowed = "names of one link only: a topic of both is mirrored by name, with mirror_topic";
            return Err(SettingsError::new(key(at), problem, allowed));
        }
        filters.push(filter);
    }
    Ok(filters)
}

/// Whether a name can match both.
fn overlap(one: &TopicPattern, other: &TopicPattern) -> bool {
    match (one, other) {
        (TopicPattern::Name(one), TopicPattern::Name(other)) => one == other,
        (TopicPattern::Name(name), TopicPattern::Prefix(prefix))
        | (TopicPattern::Prefix(prefix), TopicPattern::Name(name)) => name.starts_with(prefix.as_str()),
        (TopicPattern::Prefix(one), TopicPattern::Prefix(other)) => {
            one.starts_with(other.as_str()) || other.starts_with(one.as_str())
        }
    }
}

fn by_transactions(links: &[RawLink]) -> BTreeSet<LinkName> {
    let links = links.iter().filter(|link| link.skip == RawSkip::Transactions);
    links.filter_map(|link| LinkName::new(&link.name).ok()).collect()
}

/// Offsets without records that a session may skip in one mirror.
fn max_gap(key: String, offsets: i64) -> Result<i64, SettingsError> {
    if offsets >= 0 {
        return Ok(offsets);
    }
    Err(SettingsError::new(key, format!("{offsets} offsets"), "0 and more"))
}

/// `of_link` has what holds where a mirror says nothing else.
fn mirrors(
    link: &RawLink,
    of_link: &LinkSettings,
    key: &str,
    targets: &mut BTreeSet<TopicName>,
) -> Result<Vec<MirrorSettings>, SettingsError> {
    let mut sources = BTreeSet::new();
    let mut mirrors = Vec::with_capacity(link.mirror.len());
    for (at, mirror) in link.mirror.iter().enumerate() {
        let key = |field: &str| format!("{key}.mirror[{at}].{field}");
        let name = |field: &str, text: &str| {
            TopicName::new(text)
                .map_err(|error| SettingsError::new(key(field), error.to_string(), "a Kafka topic name"))
        };
        let source = name("topic", &mirror.topic)?;
        let topic = match &mirror.mirror_topic {
            Some(topic) => name("mirror_topic", topic)?,
            None => source.clone(),
        };
        if !sources.insert(source.clone()) {
            let problem = format!("{source} is mirrored twice by link {}", link.name);
            return Err(SettingsError::new(key("topic"), problem, "each topic once per link"));
        }
        if !targets.insert(topic.clone()) {
            let problem = format!("{topic} is written by another mirror or is the registry");
            return Err(SettingsError::new(
                key("mirror_topic"),
                problem,
                "a topic that nobody else writes: set mirror_topic",
            ));
        }
        let max_gap = match mirror.max_gap_offsets {
            -1 => of_link.max_gap,
            offsets => max_gap(key("max_gap_offsets"), offsets)?,
        };
        let on_loss = match mirror.on_loss {
            RawMirrorOnLoss::Link => of_link.on_loss,
            RawMirrorOnLoss::Halt => OnLoss::Halt,
            RawMirrorOnLoss::Skip => OnLoss::Skip,
        };
        let log_start = match mirror.log_start {
            RawMirrorLogStart::Link => of_link.log_start,
            RawMirrorLogStart::Keep => LogStart::Keep,
            RawMirrorLogStart::Follow => LogStart::Follow,
        };
        mirrors.push(MirrorSettings { source, topic, paused: mirror.paused, max_gap, on_loss, log_start });
    }
    Ok(mirrors)
}

#[cfg(test)]
#[path = "settings/settings_test.rs"]
mod tests;
