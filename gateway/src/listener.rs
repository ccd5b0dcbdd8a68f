//! Accepts connections over QUIC with mutual certificates, and finds out whose they are. With `carrier.rs` the only place
//! that knows QUIC.
//!
//! Must never: spend memory on an address that has not shown that it can be answered; let a connection in whose
//! certificate names no link of the settings.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustix::net::sockopt;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tombolo_proto::id::LinkName;
use tombolo_proto::wire::{ALPN, CloseCode};
use tombolo_service::settings::SettingsError;
use tombolo_service::tasks::Tasks;
use tombolo_service::tls;

use crate::carrier::{self, Carrier};
use crate::identity::{self, IdentityError};
use crate::metrics;
use crate::session::Session;
use crate::settings::{Congestion, MemorySettings, QuicSettings, Settings, TlsSettings};
use crate::shared::Shared;

/// Handshakes that wait to be taken up, and the bytes that may come with them.
const MAX_INCOMING: usize = 1_024;
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 16 << 20;
/// Streams the agent may open: one of each kind is used.
const MAX_BIDI: u32 = 1;
const MAX_UNI: u32 = 4;
/// The control stream's share of the receive window, and what is sent but not acknowledged.
const CONTROL_WINDOW: usize = 2 << 20;
/// For close frames to leave at the end.
const IDLE_DEADLINE: Duration = Duration::from_secs(2);
/// Refusals logged in [`REFUSAL_PERIOD`]: whoever reaches the port can cause one.
const MAX_REFUSALS: u32 = 20;
const REFUSAL_PERIOD: Duration = Duration::from_secs(10);

/// Why a connection is not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("handshake failed: {0}")]
    Handshake(ConnectionError),
    #[error("handshake not done within {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the gateway has no link {0}")]
    UnknownLink(LinkName),
    #[error("link {0} has too many connections")]
    Crowd(LinkName),
}

impl Refusal {
    fn label(&self) -> &'static str {
        match self {
            Self::Handshake(_) => "handshake",
            Self::Slow(_) => "timeout",
            Self::Identity(_) => "identity",
            Self::UnknownLink(_) => "unknown_link",
            Self::Crowd(_) => "crowd",
        }
    }

    /// Whether the other side fell silent: what links do that break, and agents that die.
    fn is_silence(&self) -> bool {
        matches!(self, Self::Slow(_) | Self::Handshake(ConnectionError::TimedOut | ConnectionError::Reset))
    }
}

/// The bound port.
#[derive(Debug)]
pub(crate) struct Listener {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    tasks: Tasks,
}

impl Listener {
    /// Reads the certificates and binds the port; whatever fails is an error of the key it came from.
    pub(crate) fn bind(shared: Arc<Shared>, tasks: Tasks) -> Result<Self, SettingsError> {
        let settings = &shared.settings;
        let config = server_config(settings)?;
        let endpoint = endpoint(config, settings).map_err(|error| {
            let problem = format!("cannot listen on {}: {error}", settings.listen);
            SettingsError::new("listen", problem, "a free UDP address and port of this machine")
        })?;
        let slots = Arc::new(Semaphore::new(settings.quic.max_connections));
        Ok(Self { endpoint, shared, slots, tasks })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Accepts until the stop, then sees the sessions off.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let throttle = Arc::new(Throttle::default());
        loop {
            let incoming = tokio::select! {
                () = stop.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            if !incoming.remote_address_validated() && incoming.may_retry() {
                if incoming.retry().is_err() {
                    metrics::refused("retry");
                }
                continue;
            }
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                metrics::refused("full");
                throttle.refused(incoming.remote_address(), &"quic.max_connections are open", false);
                incoming.refuse();
                continue;
            };
            let serve = serve(incoming, slot, Arc::clone(&self.shared), Arc::clone(&throttle), stop.clone());
            // It ends with its connection; nobody waits for it but the shutdown of the group.
            drop(self.tasks.spawn_child("connection", serve));
        }
        // Sessions close their connections themselves, with a reason.
        let idle = tokio::time::timeout(IDLE_DEADLINE, self.endpoint.wait_idle()).await;
        if idle.is_err() {
            self.endpoint.close(VarInt::from_u32(CloseCode::Shutdown.number()), b"the gateway stops");
        }
    }
}

async fn serve(
    incoming: Incoming,
    _slot: OwnedSemaphorePermit,
    shared: Arc<Shared>,
    throttle: Arc<Throttle>,
    stop: CancellationToken,
) {
    let remote = incoming.remote_address();
    let session = match admit(incoming, &shared, &stop).await {
        Ok(session) => session,
        Err(refusal) => {
            metrics::refused(refusal.label());
            throttle.refused(remote, &refusal, refusal.is_silence());
            return;
        }
    };
    session.run().await;
}

async fn admit(incoming: Incoming, shared: &Arc<Shared>, stop: &CancellationToken) -> Result<Session, Refusal> {
    let deadline = shared.settings.quic.handshake_timeout;
    let connecting = incoming.accept().map_err(Refusal::Handshake)?;
    let connection = tokio::time::timeout(deadline, connecting)
        .await
        .map_err(|_| Refusal::Slow(deadline))?
        .map_err(Refusal::Handshake)?;
    metrics::handshake();
    let refuse = |code, refusal: Refusal| {
        carrier::close(&connection, code, &refusal.to_string());
        Err(refusal)
    };
    let link = match link_of(&connection, shared) {
        Ok(link) => link,
        Err(error) => return refuse(CloseCode::UnknownLink, error.into()),
    };
    if !shared.links.borrow().contains_key(&link) {
        return refuse(CloseCode::UnknownLink, Refusal::UnknownLink(link));
    }
    let Some(presence) = shared.enter(&link) else {
        return refuse(CloseCode::Unavailable, Refusal::Crowd(link));
    };
    tracing::info!(%link, remote = %connection.remote_address(), "agent connected");
    let carrier = Carrier::Quic(connection);
    Ok(Session::new(Arc::clone(shared), link, carrier, presence, stop))
}

fn link_of(connection: &Connection, shared: &Shared) -> Result<LinkName, IdentityError> {
    let chain =
        connection.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first()).ok_or(IdentityError::Missing)?;
    identity::link_of(leaf, &shared.settings.tls.domain)
}

fn endpoint(config: ServerConfig, settings: &Settings) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(settings.listen)?;
    let wanted = settings.quic.receive_buffer;
    // The kernel takes any number and gives what it may: it tells twice of that, for its own bookkeeping (socket(7)).
    if sockopt::socket_recv_buffer_size(&socket)? / 2 < wanted {
        sockopt::set_socket_recv_buffer_size(&socket, wanted)?;
    }
    let given = sockopt::socket_recv_buffer_size(&socket)? / 2;
    if given < wanted {
        tracing::info!(
            wanted,
            given,
            "quic.receive_buffer is bounded by the system: fast links lose packets; raise net.core.rmem_max"
        );
    }
    Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
}

/// The QUIC settings of a gateway; reads the certificate files.
fn server_config(settings: &Settings) -> Result<ServerConfig, SettingsError> {
    let crypto = tls_config(&settings.tls)?;
    let crypto = QuicServerConfig::try_from(crypto)
        .map_err(|error| SettingsError::new("tls", error.to_string(), "a provider with TLS 1.3 for QUIC"))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(settings.quic, settings.memory)))
        .migration(true)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    Ok(config)
}

/// TLS 1.3 only, client certificates demanded. No session resumption: it would outlive a certificate.
pub(crate) fn tls_config(files: &TlsSettings) -> Result<rustls::ServerConfig, SettingsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = tls::cert_chain(&files.certificate).map_err(|error| error.at_key("tls.certificate"))?;
    let key = tls::private_key(&files.key).map_err(|error| error.at_key("tls.key"))?;
    let roots = tls::roots(&files.client_ca).map_err(|error| error.at_key("tls.client_ca"))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| SettingsError::new("tls.client_ca", error.to_string(), "certificates of issuers"))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| SettingsError::new("tls", error.to_string(), "a provider with TLS 1.3"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| {
            SettingsError::new("tls.key", error.to_string(), "the key of the certificate in tls.certificate")
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn transport(quic: QuicSettings, memory: MemorySettings) -> TransportConfig {
    let window = |bytes: usize| VarInt::from_u64(bytes as u64).unwrap_or(VarInt::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_BIDI))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI))
        .stream_receive_window(window(memory.credit_per_link))
        .receive_window(window(memory.credit_per_link + CONTROL_WINDOW))
        .send_window(CONTROL_WINDOW as u64)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(quic.idle_timeout).ok())
        .keep_alive_interval(Some(quic.keep_alive));
    match quic.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    transport
}

/// Keeps strangers from filling the log.
#[derive(Debug, Default)]
struct Throttle {
    period: std::sync::Mutex<Option<(Instant, u32)>>,
}

impl Throttle {
    fn refused(&self, remote: SocketAddr, reason: &dyn std::fmt::Display, silence: bool) {
        let mut period = self.period.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (since, count) = match *period {
            Some((since, count)) if since.elapsed() < REFUSAL_PERIOD => (since, count + 1),
            Some(_) | None => (Instant::now(), 1),
        };
        *period = Some((since, count));
        drop(period);
        if count <= MAX_REFUSALS && silence {
            tracing::info!(%remote, %reason, "connection given up");
        } else if count <= MAX_REFUSALS {
            tracing::warn!(%remote, %reason, "connection refused");
        }
        if count == MAX_REFUSALS {
            tracing::warn!("further refusals are only counted for a while");
        }
    }
}
