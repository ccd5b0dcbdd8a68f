//! The way to the gateway: dials, again and again, and runs one session after the other.
//!
//! Never gives up: a link that was dark for a month comes back by itself. Must never: touch a frame or a message; that
//! is the carrier's (`carrier`) and the site's business.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_proto::limits::MAX_CONTROL_BYTES;
use tombolo_proto::wire::{ALPN, CloseCode};
use tombolo_service::settings::{ByteSize, SettingsError, Span};
use tombolo_service::tls;

use crate::carrier::{Carrier, LinkEvent};

/// Name resolution and handshake of one attempt. Three round trips of a satellite link and some lost packets fit.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// For the close frame to leave after a session.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// An unchanged reason is logged again after this time.
const REPEAT_AFTER: Duration = Duration::from_mins(10);
/// Addresses of one gateway name that are tried.
const MAX_ADDRESSES: usize = 8;
const MAX_GATEWAYS: usize = 16;

/// The `[link]` table, checked.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// Files of the link's certificate chain and key.
    identity: (PathBuf, PathBuf),
    gateways: Vec<Gateway>,
    client: ClientConfig,
    backoff: ExponentialBuilder,
    backoff_max: Duration,
}

/// One address of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gateway {
    host: String,
    port: u16,
    server_name: String,
}

/// The `[link]` table as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLink {
    gateway: Vec<String>,
    server_name: Option<String>,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default = "default_idle_timeout")]
    idle_timeout: Span,
    #[serde(default = "default_keep_alive")]
    keep_alive: Span,
    #[serde(default)]
    congestion: Congestion,
    #[serde(default = "default_send_window")]
    send_window: ByteSize,
    #[serde(default = "default_initial_rtt")]
    initial_rtt: Span,
    #[serde(default = "default_backoff_min")]
    backoff_min: Span,
    #[serde(default = "default_backoff_max")]
    backoff_max: Span,
}

/// Congestion controller.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Congestion {
    /// Gives way to other traffic; slow where packets are lost by chance.
    #[default]
    Cubic,
    /// Fills a lossy path, and loses up to half of what it sends on a narrow one.
    Bbr,
}

fn default_idle_timeout() -> Span {
    Span::from_secs(30)
}

fn default_keep_alive() -> Span {
    Span::from_secs(10)
}

fn default_send_window() -> ByteSize {
    ByteSize::mib(2)
}

fn default_initial_rtt() -> Span {
    Span::from_millis(333)
}

fn default_backoff_min() -> Span {
    Span::from_millis(500)
}

fn default_backoff_max() -> Span {
    Span::from_secs(30)
}

impl RawLink {
    /// Bytes that QUIC may hold until they are acknowledged.
    pub(crate) fn send_window(&self) -> usize {
        self.send_window.as_usize()
    }

    /// Keys in errors are relative to the table, paths of files to `folder`.
    pub(crate) fn check(self, folder: &Path) -> Result<LinkSettings, SettingsError> {
        let gateways = self.gateways()?;
        let within = |key: &str, span: Span, least: Duration, most: Duration| {
            let duration = span.duration();
            if (least..=most).contains(&duration) {
                return Ok(duration);
            }
            let allowed = format!("{} to {}", Span::new(least), Span::new(most));
            Err(SettingsError::new(key, format!("{span} is out of range"), allowed))
        };
        let (milli, second, hour) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_hours(1));
        let idle = within("idle_timeout", self.idle_timeout, second, hour)?;
        // Zero sends none: for metered links that are never idle for long.
        let keep_alive = match within("keep_alive", self.keep_alive, Duration::ZERO, hour)? {
            Duration::ZERO => None,
            keep_alive if keep_alive < idle => Some(keep_alive),
            keep_alive => {
                let problem = format!("{} is not below idle_timeout", Span::new(keep_alive));
                return Err(SettingsError::new(
                    "keep_alive",
                    problem,
                    "a time below idle_timeout, or \"0 s\" for none",
                ));
            }
        };
        let initial_rtt = within("initial_rtt", self.initial_rtt, milli, 10 * second)?;
        let backoff_max = within("backoff_max", self.backoff_max, 10 * milli, hour)?;
        let backoff_min = within("backoff_min", self.backoff_min, 10 * milli, backoff_max)?;
        let send_window = self.send_window.as_u64();
        if !(64 << 10..=1 << 30).contains(&send_window) {
            let problem = format!("{} is out of range", self.send_window);
            return Err(SettingsError::new("send_window", problem, "64 KiB to 1 GiB"));
        }
        let mut client = ClientConfig::new(Arc::new(self.tls(folder)?));
        client.transport_config(Arc::new(transport(self.congestion, idle, keep_alive, initial_rtt, send_window)));
        let backoff = ExponentialBuilder::new()
            .with_min_delay(backoff_min)
            .with_max_delay(backoff_max)
            .without_max_times()
            .with_jitter();
        let identity = (folder.join(&self.certificate), folder.join(&self.key));
        Ok(LinkSettings { identity, gateways, client, backoff, backoff_max })
    }

    fn gateways(&self) -> Result<Vec<Gateway>, SettingsError> {
        const ALLOWED: &str = "1 to 16 addresses of the form HOST:PORT";
        if !(1..=MAX_GATEWAYS).contains(&self.gateway.len()) {
            return Err(SettingsError::new("gateway", format!("{} addresses", self.gateway.len()), ALLOWED));
        }
        let gateway = |(at, text): (usize, &String)| {
            let (host, port) = address(text).ok_or_else(|| {
                SettingsError::new(format!("gateway[{at}]"), format!("{text:?} is no address"), ALLOWED)
            })?;
            let (key, server_name) = match &self.server_name {
                Some(name) => ("server_name".to_owned(), name.clone()),
                None => (format!("gateway[{at}]"), host.clone()),
            };
            match ServerName::try_from(server_name.clone()) {
                Ok(_) => Ok(Gateway { host, port, server_name }),
                Err(error) => Err(SettingsError::new(key, error.to_string(), "a DNS name or an IP address")),
            }
        };
        self.gateway.iter().enumerate().map(gateway).collect()
    }

    #[expect(
        clippy::unwrap_in_result,
        reason = "the expectations are about the provider built in, not about the settings"
    )]
    fn tls(&self, folder: &Path) -> Result<QuicClientConfig, SettingsError> {
        let roots = tls::roots(&folder.join(&self.ca)).map_err(|error| error.at_key("ca"))?;
        let chain = tls::cert_chain(&folder.join(&self.certificate)).map_err(|error| error.at_key("certificate"))?;
        let key = tls::private_key(&folder.join(&self.key)).map_err(|error| error.at_key("key"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3");
        let mut config = versions.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(|error| {
            SettingsError::new("key", format!("does not go with the certificate: {error}"), "the certificate's key")
        })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config.try_into().expect("the provider has the cipher suite of QUIC's first packets"))
    }
}

fn transport(
    congestion: Congestion,
    idle: Duration,
    keep_alive: Option<Duration>,
    initial_rtt: Duration,
    send_window: u64,
) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("checked to be at most an hour")))
        .keep_alive_interval(keep_alive)
        .initial_rtt(initial_rtt)
        .send_window(send_window)
        // The gateway opens no stream, and answers on one control stream.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(control_window())
        .receive_window(control_window());
    match congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    transport
}

fn control_window() -> VarInt {
    VarInt::try_from(MAX_CONTROL_BYTES).expect("the largest message is small")
}

/// `HOST:PORT` or `[V6]:PORT`.
fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let legal = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    legal.then(|| (host.to_owned(), port))
}

/// Why there is no session, or no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The gateway's name has no address now.
    #[error("{gateway}: name cannot be resolved: {reason}")]
    Resolve {
        /// `host:port`.
        gateway: String,
        /// What the resolver says.
        reason: String,
    },
    /// No local socket, or an address that cannot be sent to.
    #[error("{gateway}: cannot send: {reason}")]
    Socket {
        /// `host:port`.
        gateway: String,
        /// What the system says.
        reason: String,
    },
    /// No answer.
    #[error("{gateway}: no answer within {}", Span::new(*.after))]
    Silent {
        /// `host:port`.
        gateway: String,
        /// The time waited.
        after: Duration,
    },
    /// TLS, ALPN or QUIC versions do not fit.
    #[error("{gateway}: handshake refused: {reason}")]
    Handshake {
        /// `host:port`.
        gateway: String,
        /// The alert, in words.
        reason: String,
    },
    /// The gateway ended it, with its reason.
    #[error("{gateway}: closed by the gateway: {}{reason}", name(*.code))]
    Closed {
        /// `host:port`.
        gateway: String,
        /// Its code, where it is one we know.
        code: Option<CloseCode>,
        /// Its words.
        reason: String,
    },
    /// The connection was there and is gone.
    #[error("{gateway}: connection lost: {reason}")]
    Lost {
        /// `host:port`.
        gateway: String,
        /// What QUIC says.
        reason: String,
    },
    /// This side ended it.
    #[error("{gateway}: closed on this side")]
    ClosedHere {
        /// `host:port`.
        gateway: String,
    },
}

fn name(code: Option<CloseCode>) -> String {
    code.map_or_else(String::new, |code| format!("{code:?}, "))
}

impl LinkError {
    /// Whether it will not go away before somebody changes a setting or a certificate.
    fn needs_a_person(&self) -> bool {
        match self {
            Self::Handshake { .. } => true,
            Self::Closed { code, .. } => matches!(
                code,
                Some(CloseCode::Version | CloseCode::UnknownLink | CloseCode::Superseded | CloseCode::Protocol)
            ),
            Self::Resolve { .. }
            | Self::Socket { .. }
            | Self::Silent { .. }
            | Self::Lost { .. }
            | Self::ClosedHere { .. } => false,
        }
    }

    /// What a connection's end means. A certificate may be refused after this side holds the handshake for done (TLS 1.3).
    pub(crate) fn of(gateway: &str, error: &ConnectionError) -> Self {
        let gateway = gateway.to_owned();
        match error {
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                gateway,
                code: CloseCode::from_number(close.error_code.into_inner()),
                reason: tombolo_proto::failure::cut(String::from_utf8_lossy(&close.reason).into_owned()),
            },
            ConnectionError::LocallyClosed => Self::ClosedHere { gateway },
            ConnectionError::ConnectionClosed(close) if is_tls_alert(close.error_code) => {
                Self::Handshake { gateway, reason: error.to_string() }
            }
            ConnectionError::TransportError(own) if is_tls_alert(own.code) => {
                Self::Handshake { gateway, reason: error.to_string() }
            }
            ConnectionError::VersionMismatch => Self::Handshake { gateway, reason: error.to_string() },
            ConnectionError::TimedOut
            | ConnectionError::Reset
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::TransportError(_)
            | ConnectionError::CidsExhausted => Self::Lost { gateway, reason: error.to_string() },
        }
    }
}

/// `CRYPTO_ERROR` of RFC 9000 section 20.1: 0x0100 plus the alert.
fn is_tls_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

impl LinkSettings {
    /// Files of the link's certificate chain and of its key, which were read before.
    pub fn identity(&self) -> (&Path, &Path) {
        (&self.identity.0, &self.identity.1)
    }

    /// The gateways as written, for status.
    pub fn gateways(&self) -> impl Iterator<Item = String> + '_ {
        self.gateways.iter().map(Gateway::to_string)
    }

    /// Connects to each gateway and waits up to `patience` for its refusal: a certificate or a link that it does not know
    /// is refused only after this side holds the handshake for done. Begins no session: one that runs is left alone.
    pub async fn probe(&self, patience: Duration) -> Vec<(String, Result<SocketAddr, LinkError>)> {
        let mut outcomes = Vec::new();
        for gateway in &self.gateways {
            let outcome = match connect(gateway, &self.client).await {
                Ok((endpoint, connection)) => {
                    let refused = timeout(patience, connection.closed()).await;
                    connection.close(VarInt::from_u32(CloseCode::Shutdown.number()), b"only a check");
                    drain(&endpoint).await;
                    match refused {
                        Ok(error) => Err(LinkError::of(&gateway.to_string(), &error)),
                        Err(_) => Ok(connection.remote_address()),
                    }
                }
                Err(error) => Err(error),
            };
            outcomes.push((gateway.to_string(), outcome));
        }
        outcomes
    }
}

impl std::fmt::Display for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One attempt at all addresses of a gateway, in turn. IPv4 first: a name that also has an IPv6 address is common on
/// networks that do not carry IPv6, and QUIC hears of that by silence only.
async fn connect(gateway: &Gateway, client: &ClientConfig) -> Result<(Endpoint, Connection), LinkError> {
    let resolved = timeout(CONNECT_DEADLINE, lookup_host((gateway.host.as_str(), gateway.port))).await;
    let unresolved = |reason: String| LinkError::Resolve { gateway: gateway.to_string(), reason };
    let mut addresses: Vec<_> = match resolved {
        Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
        Ok(Err(error)) => return Err(unresolved(error.to_string())),
        Err(_) => return Err(unresolved("no answer".to_owned())),
    };
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut last = unresolved("no addresses".to_owned());
    for address in addresses {
        match timeout(CONNECT_DEADLINE, connect_to(address, gateway, client)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = error,
            Err(_) => last = LinkError::Silent { gateway: gateway.to_string(), after: CONNECT_DEADLINE },
        }
    }
    Err(last)
}

/// A socket of its own for each attempt: a new port gets through where an old one's binding in a NAT went stale.
async fn connect_to(
    address: SocketAddr,
    gateway: &Gateway,
    client: &ClientConfig,
) -> Result<(Endpoint, Connection), LinkError> {
    let socket = |reason: String| LinkError::Socket { gateway: gateway.to_string(), reason };
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let endpoint = Endpoint::client(any).map_err(|error| socket(error.to_string()))?;
    let connecting = endpoint
        .connect_with(client.clone(), address, &gateway.server_name)
        .map_err(|error| socket(error.to_string()))?;
    match connecting.await {
        Ok(connection) => Ok((endpoint, connection)),
        Err(error) => Err(LinkError::of(&gateway.to_string(), &error)),
    }
}

/// Lets the last packets out.
async fn drain(endpoint: &Endpoint) {
    // What does not get out in time the peer learns by its idle timeout.
    drop(timeout(DRAIN_DEADLINE, endpoint.wait_idle()).await);
}

/// Logs a reason when it is a new one, or an old one that stays.
#[derive(Debug, Default)]
struct Complaint {
    last: Option<(LinkError, Instant)>,
}

impl Complaint {
    fn about(&mut self, error: &LinkError) {
        let known = self.last.as_ref().is_some_and(|(last, since)| last == error && since.elapsed() < REPEAT_AFTER);
        if known {
            tracing::debug!(%error, "no link");
            return;
        }
        if error.needs_a_person() {
            tracing::error!(%error, "no link: refused");
        } else {
            tracing::info!(%error, "no link");
        }
        self.last = Some((error.clone(), Instant::now()));
    }
}

/// Dials until told to stop.
pub(crate) async fn run(settings: LinkSettings, events: mpsc::Sender<LinkEvent>, stop: CancellationToken) {
    tokio::select! {
        () = dial_forever(&settings, &events) => {}
        () = stop.cancelled() => {}
    }
}

async fn dial_forever(settings: &LinkSettings, events: &mpsc::Sender<LinkEvent>) {
    let mut complaint = Complaint::default();
    let mut delays = settings.backoff.build();
    let mut at = 0;
    loop {
        let mut slow = false;
        for _ in 0..settings.gateways.len() {
            let Some(gateway) = settings.gateways.get(at % settings.gateways.len()) else { break };
            let (error, welcomed) = attempt(gateway, &settings.client, events).await;
            complaint.about(&error);
            slow |= error.needs_a_person();
            let ended = LinkEvent::Down { reason: error.to_string() };
            if events.send(ended).await.is_err() {
                return;
            }
            if welcomed {
                // It worked: the same gateway is tried first, soon.
                delays = settings.backoff.build();
                complaint = Complaint { last: complaint.last.filter(|_| error.needs_a_person()) };
                break;
            }
            at += 1;
        }
        let delay = delays.next().unwrap_or(settings.backoff_max);
        let delay = if slow { delay.max(settings.backoff_max) } else { delay };
        tokio::time::sleep(delay).await;
    }
}

/// One connection from dialing to its end, and whether its session got a Welcome.
async fn attempt(gateway: &Gateway, client: &ClientConfig, events: &mpsc::Sender<LinkEvent>) -> (LinkError, bool) {
    let name = gateway.to_string();
    let (endpoint, connection) = match connect(gateway, client).await {
        Ok(connected) => connected,
        Err(error) => return (error, false),
    };
    metrics::counter!("tombolo_handshakes_total").increment(1);
    tracing::debug!(gateway = %name, address = %connection.remote_address(), "connected");
    let mut carrier = Carrier::new(name, connection, events.clone());
    let error = carrier.run().await;
    let welcomed = carrier.welcomed();
    if matches!(error, LinkError::ClosedHere { .. }) {
        drain(&endpoint).await;
    }
    (error, welcomed)
}

#[cfg(test)]
#[path = "dial/dial_test.rs"]
mod tests;
