//! Client settings in librdkafka's property names, checked once at start: TLS files are read here, not at the first
//! connection.

mod librdkafka;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use tls::Tls;

/// A property that cannot be used: its name, what is wrong, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{property}: {problem}; allowed: {allowed}")]
pub struct SettingsError {
    /// Name of the property.
    pub property: String,
    /// What is wrong with it. Never holds a secret's value.
    pub problem: String,
    /// What would be right.
    pub allowed: String,
}

impl SettingsError {
    fn new(property: &str, problem: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { property: property.to_owned(), problem: problem.into(), allowed: allowed.into() }
    }
}

/// How to reach one cluster. `Debug` hides secrets.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// First brokers to ask, `(host, port)`.
    pub(crate) bootstrap: Arc<[(String, u16)]>,
    pub(crate) client_id: Arc<str>,
    pub(crate) tls: Option<Tls>,
    pub(crate) sasl: Option<Sasl>,
    /// Deadline of a request, on top of what the request itself lets the broker wait.
    pub(crate) socket_timeout: Duration,
    /// For name, TCP, TLS, version query and login together.
    pub(crate) setup_timeout: Duration,
    /// Age at which a cached leader is asked for again.
    pub(crate) metadata_max_age: Duration,
    /// Largest answer.
    pub(crate) max_answer_bytes: usize,
    pub(crate) keepalive: bool,
    pub(crate) tcp_user_timeout: Option<Duration>,
}

/// SASL login.
#[derive(Debug, Clone)]
pub(crate) struct Sasl {
    pub(crate) mechanism: Mechanism,
    pub(crate) username: Arc<str>,
    pub(crate) password: Secret,
}

/// SASL mechanisms this client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Text that must not be printed.
#[derive(Clone)]
pub(crate) struct Secret(Arc<str>);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// librdkafka's defaults, but for `socket.keepalive.enable`: half-dead links are this product's business.
const CLIENT_ID: &str = "tombolo";
const PORT: u16 = 9092;
const SOCKET_TIMEOUT_MS: u64 = 60_000;
const SETUP_TIMEOUT_MS: u64 = 30_000;
const METADATA_MAX_AGE_MS: u64 = 900_000;
const MAX_ANSWER_BYTES: u64 = 100_000_000;

impl ClientSettings {
    /// Checks properties in librdkafka's names. Unknown, contradictory and badly valued ones are errors; the files that
    /// `ssl.*` names are read.
    pub fn from_properties<'a>(
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, SettingsError> {
        let mut left = Properties::new(properties)?;
        let (with_tls, with_sasl) = left.protocol()?;
        let settings = Self {
            bootstrap: left.bootstrap()?,
            client_id: left.take("client.id").unwrap_or(CLIENT_ID).into(),
            tls: if with_tls { Some(Tls::from_properties(&mut left)?) } else { None },
            sasl: if with_sasl { Some(left.sasl()?) } else { None },
            socket_timeout: left.millis("socket.timeout.ms", 10..=300_000, SOCKET_TIMEOUT_MS)?,
            setup_timeout: left.millis(
                "socket.connection.setup.timeout.ms",
                1_000..=2_147_483_647,
                SETUP_TIMEOUT_MS,
            )?,
            metadata_max_age: left.millis("metadata.max.age.ms", 1..=86_400_000, METADATA_MAX_AGE_MS)?,
            max_answer_bytes: left
                .number("receive.message.max.bytes", 1_000..=2_147_483_647, MAX_ANSWER_BYTES)?
                .try_into()
                .unwrap_or(usize::MAX),
            keepalive: left.flag("socket.keepalive.enable", true)?,
            tcp_user_timeout: None,
        };
        left.finish(with_tls, with_sasl)?;
        Ok(settings)
    }

    /// Largest time that sent bytes may stay unacknowledged before the kernel drops the connection
    /// (`TCP_USER_TIMEOUT`); without it, the system's default.
    #[must_use]
    pub fn with_tcp_user_timeout(mut self, timeout: Duration) -> Self {
        self.tcp_user_timeout = Some(timeout);
        self
    }
}

/// The properties not yet used.
struct Properties<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Properties<'a> {
    fn new(properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, SettingsError> {
        let mut left = BTreeMap::new();
        for (name, value) in properties {
            if left.insert(name, value).is_some() {
                return Err(SettingsError::new(name, "is set twice", "each property once"));
            }
        }
        Ok(Self(left))
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        self.0.remove(name)
    }

    fn required(&mut self, name: &str, allowed: &str) -> Result<&'a str, SettingsError> {
        match self.take(name) {
            Some(value) if !value.is_empty() => Ok(value),
            Some(_) => Err(SettingsError::new(name, "is empty", allowed)),
            None => Err(SettingsError::new(name, "is missing", allowed)),
        }
    }

    /// Whether TLS and SASL are on.
    fn protocol(&mut self) -> Result<(bool, bool), SettingsError> {
        const NAME: &str = "security.protocol";
        const ALLOWED: &str = "plaintext, ssl, sasl_plaintext, sasl_ssl";
        match self.take(NAME).map(str::to_ascii_lowercase).as_deref() {
            None | Some("plaintext") => Ok((false, false)),
            Some("ssl") => Ok((true, false)),
            Some("sasl_plaintext") => Ok((false, true)),
            Some("sasl_ssl") => Ok((true, true)),
            Some(other) => Err(SettingsError::new(NAME, format!("{other:?} is no protocol"), ALLOWED)),
        }
    }

    fn bootstrap(&mut self) -> Result<Arc<[(String, u16)]>, SettingsError> {
        const NAME: &str = "bootstrap.servers";
        const ALLOWED: &str = "HOST:PORT, several separated by commas";
        self.required(NAME, ALLOWED)?
            .split(',')
            .map(|server| {
                address(server.trim())
                    .ok_or_else(|| SettingsError::new(NAME, format!("{server:?} is no address"), ALLOWED))
            })
            .collect()
    }

    fn sasl(&mut self) -> Result<Sasl, SettingsError> {
        const NAME: &str = "sasl.mechanism";
        const ALLOWED: &str = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512";
        if let Some(plural) = self.take("sasl.mechanisms")
            && self.0.insert(NAME, plural).is_some_and(|singular| singular != plural)
        {
            return Err(SettingsError::new(NAME, "is set to something else as sasl.mechanisms", "one of the two"));
        }
        let mechanism = match self.required(NAME, ALLOWED)?.to_ascii_uppercase().as_str() {
            "PLAIN" => Mechanism::Plain,
            "SCRAM-SHA-256" => Mechanism::ScramSha256,
            "SCRAM-SHA-512" => Mechanism::ScramSha512,
            other => return Err(SettingsError::new(NAME, format!("{other:?} is not supported"), ALLOWED)),
        };
        Ok(Sasl {
            mechanism,
            username: self.required("sasl.username", "the user's name")?.into(),
            password: Secret(self.required("sasl.password", "the user's password")?.into()),
        })
    }

    fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>, default: u64) -> Result<u64, SettingsError> {
        let Some(value) = self.take(name) else { return Ok(default) };
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        match value.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            Ok(number) => Err(SettingsError::new(name, format!("{number} is out of range"), allowed())),
            Err(_) => Err(SettingsError::new(name, format!("{value:?} is no whole number"), allowed())),
        }
    }

    fn millis(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<Duration, SettingsError> {
        self.number(name, range, default).map(Duration::from_millis)
    }

    fn flag(&mut self, name: &str, default: bool) -> Result<bool, SettingsError> {
        match self.take(name) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(SettingsError::new(name, format!("{other:?} is neither"), "true, false")),
        }
    }

    /// Whatever is left is contradictory, not supported or unknown.
    fn finish(self, with_tls: bool, with_sasl: bool) -> Result<(), SettingsError> {
        const SUPPORTED: &str = "bootstrap.servers, client.id, security.protocol, sasl.mechanism, sasl.username, \
            sasl.password, ssl.ca.location, ssl.certificate.location, ssl.key.location, \
            ssl.endpoint.identification.algorithm, enable.ssl.certificate.verification, socket.timeout.ms, \
            socket.connection.setup.timeout.ms, socket.keepalive.enable, metadata.max.age.ms, receive.message.max.bytes";
        let Some(&name) = self.0.keys().next() else { return Ok(()) };
        let problem = if !with_sasl && Sasl::PROPERTIES.contains(&name) {
            return Err(SettingsError::new(
                name,
                "security.protocol has no login",
                "with security.protocol = sasl_plaintext or sasl_ssl only",
            ));
        } else if !with_tls && Tls::PROPERTIES.contains(&name) {
            return Err(SettingsError::new(
                name,
                "security.protocol has no TLS",
                "with security.protocol = ssl or sasl_ssl only",
            ));
        } else if librdkafka::UNSUPPORTED.binary_search(&name).is_ok() {
            "a property of librdkafka that is not supported here"
        } else {
            "unknown property"
        };
        Err(SettingsError::new(name, problem, SUPPORTED))
    }
}

impl Sasl {
    const PROPERTIES: &[&str] = &["sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"];
}

/// `HOST:PORT`, `HOST`, `[V6]:PORT` or `[V6]`.
fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    is_host.then(|| (host.to_owned(), port))
}

#[cfg(test)]
#[path = "settings/settings_test.rs"]
mod tests;
