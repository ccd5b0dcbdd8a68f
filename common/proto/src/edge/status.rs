//! What a site has to show: plain values for status pages and metrics.

use super::Retention;
use crate::failure::Failure;
use crate::id::{Offset, Partition, Term, TopicName};

/// State of a mirror as the agent sees it, by the names that Cluster Linking made known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeMirrorState {
    /// The gateway has not told positions yet, or not for all partitions.
    Pending,
    /// Mirroring.
    Active,
    /// Paused by the operator of the gateway.
    Paused,
    /// The source topic does not exist or cannot be read now.
    SourceUnavailable {
        /// Why, for people.
        reason: String,
    },
    /// Stopped; needs an operator.
    Failed(Failure),
}

impl EdgeMirrorState {
    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "PENDING_MIRROR",
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::SourceUnavailable { .. } => "SOURCE_UNAVAILABLE",
            Self::Failed(_) => "FAILED",
        }
    }

    /// Why it is so, where there is something to say.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::SourceUnavailable { reason } => Some(reason.clone()),
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Pending | Self::Active | Self::Paused => None,
        }
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgePartitionStatus {
    /// Its number.
    pub partition: Partition,
    /// High watermark of the source, once something was fetched.
    pub source_high_watermark: Option<Offset>,
    /// Offset after the last one fetched; `None` before the first position.
    pub fetched: Option<Offset>,
    /// Offset after the last one sent in this session.
    pub sent: Option<Offset>,
    /// Offset after the last one the cloud has.
    pub confirmed: Option<Offset>,
    /// Bytes held in the window.
    pub window_bytes: usize,
    /// The tail was compared in this session, and frames go out.
    pub placed: bool,
    /// Nothing was left to compare the mirror's tail with.
    pub unverified: bool,
    /// Times the cloud came back without what it had confirmed.
    pub rewinds: u64,
    /// First offset in the journal, and the one after the last; `None` where it holds nothing that the cloud lacks.
    pub journal: Option<(Offset, Offset)>,
    /// First offset that the source still has, once something was fetched.
    pub source_log_start: Option<Offset>,
    /// Timestamp in ms since 1970 of the first batch that is neither in the journal nor in the cloud; where all that was
    /// fetched is safe, of the last one fetched: the next is no older.
    pub unsafe_timestamp: Option<i64>,
    /// Reading it failed in the dark; the next session shows whether that matters.
    pub stuck: bool,
}

impl EdgePartitionStatus {
    /// Records the cloud does not have yet; `None` while either end is unknown.
    pub fn lag(&self) -> Option<i64> {
        Some((self.source_high_watermark? - self.confirmed?).max(0))
    }
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeMirrorStatus {
    /// The source topic.
    pub topic: TopicName,
    /// Its state.
    pub state: EdgeMirrorState,
    /// When the source deletes its records.
    pub retention: Retention,
    /// Its partitions, in order.
    pub partitions: Vec<EdgePartitionStatus>,
}

/// The whole site.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeStatus {
    /// Term of the session, `None` while there is none.
    pub term: Option<Term>,
    /// Release of the gateway, empty while there is no session.
    pub gateway_software: String,
    /// Unconfirmed bytes the gateway allows.
    pub credit_bytes: usize,
    /// Bytes sent and not confirmed.
    pub in_flight_bytes: usize,
    /// Bytes of batches in memory.
    pub window_bytes: usize,
    /// Bytes confirmed in one second, over the last ten seconds in which some were.
    pub bytes_per_second: u64,
    /// Why the journal takes nothing; `None` while it does, or where there is none.
    pub journal_trouble: Option<String>,
    /// Bytes of batches confirmed since the start.
    pub confirmed_bytes: u64,
    /// The mirrors, by topic.
    pub mirrors: Vec<EdgeMirrorStatus>,
}
