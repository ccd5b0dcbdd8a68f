//! Errors of the raw client. What to do about one is answered here and nowhere else: [`KafkaError::retriable`],
//! [`KafkaError::refresh_metadata`], [`KafkaError::is_ambiguous`].

mod code;

pub use code::ErrorCode;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A request kind of the Kafka protocol that this client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// Append record batches.
    Produce,
    /// Read record batches.
    Fetch,
    /// Offsets by rule or time.
    ListOffsets,
    /// Brokers, topics, leaders.
    Metadata,
    /// Choice of the SASL mechanism.
    SaslHandshake,
    /// Which requests the broker takes.
    ApiVersions,
    /// Make topics.
    CreateTopics,
    /// Settings of topics and brokers.
    DescribeConfigs,
    /// SASL tokens.
    SaslAuthenticate,
    /// Raise partition counts.
    CreatePartitions,
    /// Producer state of partitions.
    DescribeProducers,
    /// Which broker coordinates a transactional id.
    FindCoordinator,
    /// Move log starts.
    DeleteRecords,
    /// Producer id of a transactional id.
    InitProducerId,
    /// Open a transaction in partitions.
    AddPartitionsToTxn,
    /// Commit or abort a transaction.
    EndTxn,
    /// Append control markers.
    WriteTxnMarkers,
    /// Change single settings.
    IncrementalAlterConfigs,
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Inclusive range of versions of one request kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Oldest.
    pub min: i16,
    /// Newest.
    pub max: i16,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// A [`crate::cluster::WriteGuard`] said no: the request was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write refused: {reason}")]
pub struct WriteRefused {
    /// Why, for the log.
    pub reason: &'static str,
}

/// What went wrong with one request, and where.
#[derive(Debug, Clone)]
pub struct KafkaError {
    api: Api,
    topic: Option<Arc<str>>,
    partition: Option<i32>,
    offset: Option<i64>,
    kind: KafkaErrorKind,
}

/// The cause of a [`KafkaError`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum KafkaErrorKind {
    /// The broker answered with an error.
    #[error("broker answered {code}{}", Suffix(message.as_deref()))]
    Broker {
        /// Kafka's code.
        code: ErrorCode,
        /// What the broker adds, where the protocol has room for it.
        message: Option<Box<str>>,
    },
    /// The connection could not be made or broke.
    #[error("{cause}")]
    Connection {
        /// The first error of the connection; all its users see the same one.
        cause: Arc<ConnectionError>,
        /// Whether bytes of this request may have reached the broker.
        sent: bool,
    },
    /// The broker has no version of this request that this client knows, as its `ApiVersions` table says.
    #[error("broker {address} does not offer {api} in versions {ours}{}", Offered(*theirs))]
    Unsupported {
        /// The request.
        api: Api,
        /// Versions this client can use here.
        ours: Versions,
        /// Versions the broker offers, `None` where it does not know the request at all.
        theirs: Option<Versions>,
        /// `host:port` of the broker.
        address: Arc<str>,
    },
    /// The write guard refused the request; nothing of it was written.
    #[error(transparent)]
    WriteRefused(#[from] WriteRefused),
    /// As many requests as the connection takes are waiting for their answers.
    #[error("{limit} requests are in flight on this connection already")]
    Busy {
        /// Most requests in flight.
        limit: usize,
    },
    /// The partition has no leader at the moment.
    #[error("no leader")]
    NoLeader,
    /// The cluster's metadata has no broker of this id.
    #[error("no broker {0} in the cluster's metadata")]
    UnknownBroker(i32),
    /// None of the bootstrap servers or known brokers could be reached.
    #[error("none of {tried} brokers could be reached; last: {last}")]
    Unreachable {
        /// How many addresses were tried.
        tried: usize,
        /// Error of the last.
        last: Arc<ConnectionError>,
    },
    /// The answer can be read, but does not fit the question.
    #[error("the answer does not fit the request: {0}")]
    Answer(AnswerError),
    /// The request cannot be written in the protocol.
    #[error("the request cannot be encoded: {0}")]
    Encode(Arc<str>),
}

/// How an answer does not fit its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// A topic, partition or resource that was not asked for, or the same one twice.
    #[error("it names something that was not asked for, or twice")]
    Unasked,
    /// A topic, partition or resource that was asked for is not there.
    #[error("it leaves out something that was asked for")]
    Missing,
    /// A number that cannot be.
    #[error("{0} is out of range")]
    Range(&'static str),
}

/// Why a connection cannot be used. The first error poisons it for good.
#[derive(Debug, thiserror::Error)]
#[error("broker {address}: {kind}")]
pub struct ConnectionError {
    /// `host:port` of the broker.
    pub address: Arc<str>,
    /// What happened.
    #[source]
    pub kind: ConnectionErrorKind,
}

/// What happened to a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionErrorKind {
    /// The host name has no address.
    #[error("name cannot be resolved: {0}")]
    Resolve(#[source] io::Error),
    /// TCP could not connect.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// TCP, TLS, version query and login together took longer than `socket.connection.setup.timeout.ms`.
    #[error("connection not set up within {0:?}")]
    SetupTimeout(Duration),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The broker does not offer the SASL mechanism.
    #[error("SASL mechanism {mechanism} refused by the broker with {code}; it offers {offered:?}")]
    Mechanism {
        /// What was asked for.
        mechanism: &'static str,
        /// The broker's error.
        code: ErrorCode,
        /// What the broker offers.
        offered: Vec<String>,
    },
    /// The broker refused the login.
    #[error("SASL {mechanism} login as {username:?} failed with {code}{}", Suffix(message.as_deref()))]
    Login {
        /// Mechanism in use.
        mechanism: &'static str,
        /// User of the attempt.
        username: Arc<str>,
        /// The broker's error.
        code: ErrorCode,
        /// What the broker adds.
        message: Option<Box<str>>,
    },
    /// The SASL exchange went wrong on this side: a bad server proof, or a password the mechanism cannot take.
    #[error("SASL {mechanism} exchange failed: {reason}")]
    Exchange {
        /// Mechanism in use.
        mechanism: &'static str,
        /// What the SASL library says.
        reason: Box<str>,
    },
    /// The broker answered a request of the connection set-up with an error.
    #[error("{api} answered {code}")]
    Setup {
        /// The request.
        api: Api,
        /// The broker's error.
        code: ErrorCode,
    },
    /// The broker lacks what the connection set-up needs.
    #[error("the broker does not offer {0}, which the connection needs")]
    Lacks(Api),
    /// The broker closed the connection.
    #[error("connection closed by the broker")]
    Closed,
    /// Reading or writing failed.
    #[error("connection broke: {0}")]
    Io(#[source] io::Error),
    /// A request was not answered in time.
    #[error("{api} not answered within {after:?}")]
    Timeout {
        /// The request.
        api: Api,
        /// Its deadline.
        after: Duration,
    },
    /// The length of an answer is negative or above the limit; nothing of it was read.
    #[error("answer of {size} bytes; at most {limit} are taken (receive.message.max.bytes){}", OfTls(*size))]
    AnswerSize {
        /// Size the broker announces.
        size: i32,
        /// Largest that is taken.
        limit: usize,
    },
    /// An answer to another request than the oldest one in flight.
    #[error("answer number {found} where {expected:?} was due")]
    Correlation {
        /// Number due, `None` when nothing was asked.
        expected: Option<i32>,
        /// Number found.
        found: i32,
    },
    /// An answer that cannot be read.
    #[error("{api} v{version} answer cannot be read: {reason}")]
    Decode {
        /// The request.
        api: Api,
        /// Version in use.
        version: i16,
        /// What the codec says.
        reason: Box<str>,
    },
    /// The write guard said no in the middle of a request; what was written of it is useless to the broker.
    #[error("{0} in the middle of a request")]
    WriteRefused(#[source] WriteRefused),
    /// All users of the connection let go of it.
    #[error("connection closed on this side")]
    Dropped,
}

impl ConnectionErrorKind {
    /// Whether a new connection may fare better without anybody changing a setting or a certificate.
    pub fn retriable(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Mechanism { .. } | Self::Login { .. } | Self::Exchange { .. } | Self::Lacks(_) => {
                false
            }
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::SetupTimeout(_)
            | Self::Setup { .. }
            | Self::Closed
            | Self::Io(_)
            | Self::Timeout { .. }
            | Self::AnswerSize { .. }
            | Self::Correlation { .. }
            | Self::Decode { .. }
            | Self::WriteRefused(_)
            | Self::Dropped => true,
        }
    }
}

impl KafkaError {
    pub(crate) fn new(api: Api, kind: impl Into<KafkaErrorKind>) -> Self {
        Self { api, topic: None, partition: None, offset: None, kind: kind.into() }
    }

    pub(crate) fn answer(api: Api, error: AnswerError) -> Self {
        Self::new(api, KafkaErrorKind::Answer(error))
    }

    pub(crate) fn code(api: Api, code: ErrorCode) -> Self {
        Self::new(api, KafkaErrorKind::Broker { code, message: None })
    }

    pub(crate) fn unsent(api: Api, cause: Arc<ConnectionError>) -> Self {
        Self::new(api, KafkaErrorKind::Connection { cause, sent: false })
    }

    /// Adds where it happened.
    #[must_use]
    pub fn at(mut self, topic: &Arc<str>, partition: i32) -> Self {
        self.topic = Some(Arc::clone(topic));
        self.partition = Some(partition);
        self
    }

    pub(crate) fn about(mut self, topic: &Arc<str>) -> Self {
        self.topic = Some(Arc::clone(topic));
        self
    }

    /// Adds the offset it happened at.
    #[must_use]
    pub fn at_offset(mut self, offset: i64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Whether a request that failed as a whole would fail in the same way again, and nothing of it was done: it cannot be
    /// put to this broker, or was answered with a code that `is_final`.
    pub fn is_refusal(&self, is_final: impl FnOnce(ErrorCode) -> bool) -> bool {
        match self.kind {
            KafkaErrorKind::Unsupported { .. } | KafkaErrorKind::Encode(_) => true,
            KafkaErrorKind::Broker { code, .. } => is_final(code),
            KafkaErrorKind::Connection { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_)
            | KafkaErrorKind::Unreachable { .. }
            | KafkaErrorKind::Answer(_) => false,
        }
    }

    /// The request.
    pub fn api(&self) -> Api {
        self.api
    }

    /// Topic, where the error concerns one.
    pub fn topic(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    /// Partition, where the error concerns one.
    pub fn partition(&self) -> Option<i32> {
        self.partition
    }

    /// Offset, where the error concerns one.
    pub fn offset(&self) -> Option<i64> {
        self.offset
    }

    /// The cause.
    pub fn kind(&self) -> &KafkaErrorKind {
        &self.kind
    }

    /// The broker's error code, where a broker answered.
    pub fn error_code(&self) -> Option<ErrorCode> {
        if let KafkaErrorKind::Broker { code, .. } = &self.kind { Some(*code) } else { None }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retriable(&self) -> bool {
        match &self.kind {
            KafkaErrorKind::Broker { code, .. } => code.retriable(),
            KafkaErrorKind::Connection { cause, .. } | KafkaErrorKind::Unreachable { last: cause, .. } => {
                cause.kind.retriable()
            }
            KafkaErrorKind::Busy { .. } | KafkaErrorKind::NoLeader | KafkaErrorKind::UnknownBroker(_) => true,
            KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Answer(_)
            | KafkaErrorKind::Encode(_) => false,
        }
    }

    /// Whether to look at the cluster's metadata again before the next try.
    pub fn refresh_metadata(&self) -> bool {
        match &self.kind {
            KafkaErrorKind::Broker { code, .. } => code.refresh_metadata(),
            KafkaErrorKind::Connection { .. }
            | KafkaErrorKind::Unreachable { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_) => true,
            KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Answer(_)
            | KafkaErrorKind::Encode(_) => false,
        }
    }

    /// For a request that changes something: whether it may have taken effect, now or later, in spite of the error.
    pub fn is_ambiguous(&self) -> bool {
        match &self.kind {
            KafkaErrorKind::Broker { code, .. } => code.produce_is_ambiguous(),
            KafkaErrorKind::Connection { sent, .. } => *sent,
            KafkaErrorKind::Answer(_) => true,
            KafkaErrorKind::Unreachable { .. }
            | KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_)
            | KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Encode(_) => false,
        }
    }
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.api)?;
        if let Some(topic) = &self.topic {
            write!(f, " {topic}")?;
        }
        if let Some(partition) = self.partition {
            write!(f, "[{partition}]")?;
        }
        if let Some(offset) = self.offset {
            write!(f, "@{offset}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for KafkaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            KafkaErrorKind::Connection { cause, .. } | KafkaErrorKind::Unreachable { last: cause, .. } => {
                Some(&cause.kind)
            }
            KafkaErrorKind::Broker { .. }
            | KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::WriteRefused(_)
            | KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_)
            | KafkaErrorKind::Answer(_)
            | KafkaErrorKind::Encode(_) => None,
        }
    }
}

struct Suffix<'a>(Option<&'a str>);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

/// A TLS alert, read as a length, begins with record type 21 and version 3.x.
struct OfTls(i32);

impl fmt::Display for OfTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_be_bytes() {
            [21, 3, ..] => f.write_str("; it looks like TLS: is security.protocol right?"),
            _ => Ok(()),
        }
    }
}

struct Offered(Option<Versions>);

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(versions) => write!(f, "; it offers {versions}"),
            None => f.write_str("; it does not know the request"),
        }
    }
}
