//! From an address to a usable connection: name, TCP, TLS, version query, login.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{ApiVersionsRequest, SaslAuthenticateRequest, SaslHandshakeRequest};
use rsasl::prelude::{Mechname, MessageSent, SASLClient, SASLConfig, Session, State};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Connection, ConnectionOptions};
use crate::cluster::WriteGuard;
use crate::error::{Api, ConnectionError, ConnectionErrorKind, ErrorCode, KafkaError, KafkaErrorKind, Versions};
use crate::settings::{ClientSettings, Sasl};
use crate::wire::{self, text};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// SASL tokens of the mechanisms spoken here are a few hundred bytes.
const MAX_SASL_ROUNDS: usize = 8;

/// Opens a connection to `host:port`, which is broker `id` (-1 where not known yet).
pub(crate) async fn open(
    settings: &ClientSettings,
    id: i32,
    host: &str,
    port: u16,
    guard: Option<WriteGuard>,
) -> Result<Connection, Arc<ConnectionError>> {
    let address: Arc<str> =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }.into();
    let options = ConnectionOptions {
        broker: id,
        address: Arc::clone(&address),
        client_id: Arc::clone(&settings.client_id),
        request_timeout: settings.socket_timeout,
        max_answer_bytes: settings.max_answer_bytes,
        guard,
    };
    let set_up = Box::pin(set_up(settings, host, port, options));
    match tokio::time::timeout(settings.setup_timeout, set_up).await {
        Ok(result) => result,
        Err(_) => Err(ConnectionErrorKind::SetupTimeout(settings.setup_timeout).into()),
    }
    .map_err(|failure| match failure {
        Failure::Kind(kind) => Arc::new(ConnectionError { address, kind }),
        Failure::Poisoned(cause) => cause,
    })
}

/// Why the set-up ended: an error of its own, or the connection's.
enum Failure {
    Kind(ConnectionErrorKind),
    Poisoned(Arc<ConnectionError>),
}

impl From<ConnectionErrorKind> for Failure {
    fn from(kind: ConnectionErrorKind) -> Self {
        Self::Kind(kind)
    }
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        match error.kind() {
            KafkaErrorKind::Connection { cause, .. } => Self::Poisoned(Arc::clone(cause)),
            KafkaErrorKind::Broker { code, .. } => {
                Self::Kind(ConnectionErrorKind::Setup { api: error.api(), code: *code })
            }
            // The set-up sends what can be encoded, one at a time, and reads no partitions: only versions are left.
            KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_)
            | KafkaErrorKind::Unreachable { .. }
            | KafkaErrorKind::Answer(_)
            | KafkaErrorKind::Encode(_) => Self::Kind(ConnectionErrorKind::Lacks(error.api())),
        }
    }
}

async fn set_up(
    settings: &ClientSettings,
    host: &str,
    port: u16,
    options: ConnectionOptions,
) -> Result<Connection, Failure> {
    let stream = connect(settings, host, port).await?;
    let connection = match &settings.tls {
        None => Connection::start(stream, options),
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| ConnectionErrorKind::Tls(io::Error::other(error)))?;
            let stream =
                TlsConnector::from(tls.config()).connect(name, stream).await.map_err(ConnectionErrorKind::Tls)?;
            Connection::start(stream, options)
        }
    };
    query_versions(&connection).await?;
    if let Some(sasl) = &settings.sasl {
        log_in(&connection, sasl).await?;
    }
    Ok(connection)
}

async fn connect(settings: &ClientSettings, host: &str, port: u16) -> Result<TcpStream, ConnectionErrorKind> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(ConnectionErrorKind::Resolve)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                tune(settings, &stream).map_err(ConnectionErrorKind::Connect)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectionErrorKind::Connect(last))
}

fn tune(settings: &ClientSettings, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if settings.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))?;
    }
    if let Some(timeout) = settings.tcp_user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

/// `ApiVersions` v3; a broker that does not know it says `UNSUPPORTED_VERSION` in the layout of v0, and is asked in v0.
pub(super) async fn query_versions(connection: &Connection) -> Result<(), KafkaError> {
    let deadline = connection.deadline(Duration::ZERO);
    let request = ApiVersionsRequest::default()
        .with_client_software_name(text("tombolo"))
        .with_client_software_version(text(env!("CARGO_PKG_VERSION")));
    let answer = connection.call_undecoded(&request, 3, deadline).await?;
    let answer = if wire::starts_with_code(&answer, ErrorCode::UNSUPPORTED_VERSION) {
        connection.call(&ApiVersionsRequest::default(), 0, deadline).await?
    } else {
        connection.decode::<ApiVersionsRequest>(answer, 3)?
    };
    if let Some(code) = ErrorCode::from_wire(answer.error_code) {
        return Err(KafkaError::code(Api::ApiVersions, code));
    }
    let versions = answer
        .api_keys
        .into_iter()
        .map(|api| (api.api_key, Versions { min: api.min_version, max: api.max_version }))
        .collect::<BTreeMap<_, _>>();
    connection.set_versions(versions);
    Ok(())
}

async fn log_in(connection: &Connection, sasl: &Sasl) -> Result<(), Failure> {
    let mechanism = sasl.mechanism.name();
    let deadline = connection.deadline(Duration::ZERO);
    let version = connection.version::<SaslHandshakeRequest>(i16::MAX)?;
    let request = SaslHandshakeRequest::default().with_mechanism(text(mechanism));
    let answer = connection.call(&request, version, deadline).await?;
    if let Some(code) = ErrorCode::from_wire(answer.error_code) {
        let offered = answer.mechanisms.iter().map(ToString::to_string).collect();
        return Err(ConnectionErrorKind::Mechanism { mechanism, code, offered }.into());
    }
    let version = connection.version::<SaslAuthenticateRequest>(i16::MAX)?;
    let mut session = session(sasl)?;
    let mut challenge: Option<Bytes> = None;
    for _ in 0..MAX_SASL_ROUNDS {
        let mut token = Vec::new();
        let state = session.step(challenge.as_deref(), &mut token).map_err(|error| exchange_failed(sasl, &error))?;
        if state == State::Finished(MessageSent::No) {
            return Ok(());
        }
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token.into());
        let answer = connection.call(&request, version, deadline).await?;
        if let Some(code) = ErrorCode::from_wire(answer.error_code) {
            let message = answer.error_message.map(|message| Box::from(&*message));
            let username = Arc::clone(&sasl.username);
            return Err(ConnectionErrorKind::Login { mechanism, username, code, message }.into());
        }
        if state == State::Finished(MessageSent::Yes) {
            return Ok(());
        }
        challenge = Some(answer.auth_bytes);
    }
    Err(exchange_failed(sasl, &"it does not end").into())
}

fn session(sasl: &Sasl) -> Result<Session, ConnectionErrorKind> {
    let config = SASLConfig::with_credentials(None, sasl.username.to_string(), sasl.password.expose().to_owned())
        .map_err(|error| exchange_failed(sasl, &error))?;
    let mechanism = Mechname::parse(sasl.mechanism.name().as_bytes()).map_err(|error| exchange_failed(sasl, &error))?;
    SASLClient::new(config).start_suggested(&[mechanism]).map_err(|error| exchange_failed(sasl, &error))
}

fn exchange_failed(sasl: &Sasl, reason: &dyn fmt::Display) -> ConnectionErrorKind {
    ConnectionErrorKind::Exchange { mechanism: sasl.mechanism.name(), reason: reason.to_string().into() }
}

#[cfg(test)]
#[path = "login_test.rs"]
mod tests;
