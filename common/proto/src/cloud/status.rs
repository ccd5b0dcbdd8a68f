//! What a session has to show: plain values for status pages and metrics.

use crate::failure::Failure;
use crate::id::{Offset, Partition, Term, TopicName};

/// State of a mirror, by the names that Cluster Linking made known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorState {
    /// The agent has not told the shape of the source topic yet, or the mirror topic is being made ready.
    Pending {
        /// What is waited for, for people.
        reason: String,
    },
    /// Mirroring.
    Active,
    /// Paused by the operator.
    Paused,
    /// The source topic does not exist or cannot be read now.
    SourceUnavailable {
        /// The agent's words.
        reason: String,
    },
    /// Stopped; needs an operator.
    Failed(Failure),
}

impl MirrorState {
    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "PENDING_MIRROR",
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::SourceUnavailable { .. } => "SOURCE_UNAVAILABLE",
            Self::Failed(_) => "FAILED",
        }
    }

    /// Why it is so, where there is something to say.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Pending { reason } | Self::SourceUnavailable { reason } => Some(reason.clone()),
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Active | Self::Paused => None,
        }
    }
}

/// One partition of a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudPartitionStatus {
    /// Its number.
    pub partition: Partition,
    /// First offset of the mirror, when it was last read or moved up.
    pub log_start: Offset,
    /// High watermark of the mirror.
    pub confirmed: Offset,
    /// Offset after the last record received.
    pub received: Offset,
    /// High watermark of the source, once the agent told it.
    pub source_high_watermark: Option<Offset>,
    /// Bytes held in memory.
    pub held_bytes: usize,
    /// A position was told and nothing is in doubt.
    pub live: bool,
    /// What put the last append in doubt, since the last success.
    pub last_doubt: Option<String>,
    /// What is being done other than appending batches, for people.
    pub doing: Option<String>,
    /// Offsets of gaps that came in this session.
    pub gap_offsets: i64,
    /// Times the cloud lost its tail in this session.
    pub rewinds: u64,
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorStatus {
    /// Topic at the source.
    pub source: TopicName,
    /// Topic in the cloud.
    pub topic: TopicName,
    /// Its state.
    pub state: MirrorState,
    /// Its partitions, in order.
    pub partitions: Vec<CloudPartitionStatus>,
}

/// A whole session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudStatus {
    /// Its term; `None` until the link was claimed.
    pub term: Option<Term>,
    /// Source cluster's id, empty where its brokers tell none.
    pub source_cluster_id: String,
    /// Release of the agent.
    pub agent_software: String,
    /// Bytes held in memory for the link.
    pub held_bytes: usize,
    /// The mirrors, in settings' order.
    pub mirrors: Vec<MirrorStatus>,
}
