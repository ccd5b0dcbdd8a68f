//! The agent's half of the link: one site, over all its sessions.
//!
//! ```text
//!         Connected              Welcome
//!   Down -----------> AwaitWelcome -----> Open
//!    ^  Disconnected       |               |  protocol breach, Close, Shutdown
//!    +---------------------+---------------+----> Closing -> (Disconnected) -> Down
//! ```
//!
//! A partition: the gateway tells a Position -> the tail is compared, with memory or with the source -> Placed, and
//! frames go out from there. What was fetched and not confirmed stays in the window over any number of sessions.
//!
//! Must never: send a byte of a partition before its mirror's tail was compared; hold more than the window and what the
//! fetchers had under way; let go of a record the cloud has not confirmed, unless the source still has it.

mod check;
mod checkpoint;
mod link;
mod outgoing;
mod partition;
mod pool;
mod status;

pub use check::check_batch;
pub use checkpoint::{Checkpoint, CheckpointMirror, CheckpointPartition};
pub use link::EdgeLink;
pub use outgoing::{Outgoing, OutgoingBody};
pub use status::{EdgeMirrorState, EdgeMirrorStatus, EdgePartitionStatus, EdgeStatus};

use crate::batch::Batch;
use crate::failure::Failure;
use crate::id::{Offset, Partition, Term, TopicName};
use crate::wire::{CloseCode, CloudMessage, EdgeMessage, TailBatch, TopicConfig};

/// What a site needs to know from the start.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Release of the agent, for people.
    pub software: String,
    /// Drawn at random at the start of the process: tells two boxes with one certificate apart. Not 0.
    pub incarnation: u64,
    /// Bytes of batches held in memory; fetching stops there. What fetchers have under way comes on top.
    pub window_bytes: usize,
    /// Largest frame, in bytes of its raw body; also the largest batch.
    pub max_frame_bytes: usize,
}

/// Shape of a source topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTopic {
    /// Number of partitions, at least 1.
    pub partitions: i32,
    /// Topic id, where the brokers tell it.
    pub topic_id: Option<[u8; 16]>,
    /// Configs that are not the default.
    pub configs: Vec<TopicConfig>,
}

/// Outcome of a comparison with the source's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The source holds the same batches.
    Agrees,
    /// The source holds nothing to compare with any more.
    Unverified,
    /// Evidence against.
    Failed(Failure),
}

/// What happens to a site.
#[derive(Debug, Clone)]
pub enum EdgeInput {
    /// A connection to a gateway stands.
    Connected {
        /// The source cluster's id, empty where its brokers tell none.
        cluster_id: String,
    },
    /// The connection is gone.
    Disconnected,
    /// A control message arrived.
    Message(CloudMessage),
    /// Shape of a source topic, as asked for or because it changed; or why it cannot be mirrored for now.
    Source {
        /// The topic.
        topic: TopicName,
        /// Its shape.
        source: Result<SourceTopic, String>,
    },
    /// The topic cannot be mirrored.
    SourceFailed {
        /// The topic.
        topic: TopicName,
        /// Why.
        failure: Failure,
    },
    /// Answer to [`EdgeOutput::CompareTail`].
    TailCompared {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// The outcome.
        verdict: Verdict,
    },
    /// Batches read from the source, checked by [`check_batch`], in order; may be empty.
    Fetched {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// As in the [`EdgeOutput::Fetch`] that asked for it.
        fetch: u64,
        /// The batches. A first batch that starts below the offset asked for is expected.
        batches: Vec<Batch>,
        /// High watermark of the source.
        high_watermark: Offset,
    },
    /// The partition cannot be read on.
    FetchFailed {
        /// The topic.
        topic: TopicName,
        /// As in the [`EdgeOutput::Fetch`] that asked for it.
        fetch: u64,
        /// Why.
        failure: Failure,
    },
    /// The bytes of the connection make no sense.
    Breach {
        /// What is wrong, for people.
        reason: String,
    },
    /// The agent stops.
    Shutdown,
    /// Time passed.
    Timeout,
}

/// What the owner of a site is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum EdgeOutput {
    /// Send a control message.
    Send(EdgeMessage),
    /// Find out about a source topic, answer with Source or [`EdgeInput::SourceFailed`], and go on watching it.
    Discover {
        /// The topic.
        topic: TopicName,
    },
    /// Stop watching and fetching a topic.
    Forget {
        /// The topic.
        topic: TopicName,
    },
    /// Compare the end of the mirror with the source's records, and answer with [`EdgeInput::TailCompared`].
    CompareTail {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// The mirror's last batches, joined, up to `next_offset`; may be empty.
        tail: Vec<TailBatch>,
        /// The mirror's log end.
        next_offset: Offset,
    },
    /// Read a partition from `offset` on, without end; replaces an earlier Fetch of the partition.
    Fetch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back with everything that is read.
        fetch: u64,
        /// Where to start.
        offset: Offset,
    },
    /// Ask for no more of the partition for now; what is under way is welcome.
    PauseFetch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
    /// Go on after [`EdgeOutput::PauseFetch`].
    ResumeFetch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
    /// Read the partition no more.
    StopFetch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
    /// Something an operator should see in the log.
    Event(EdgeEvent),
    /// Close the connection.
    Close {
        /// Code for the peer.
        code: CloseCode,
        /// Reason for the peer and the log.
        reason: String,
    },
}

/// Changes worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeEvent {
    /// A session began.
    Welcomed {
        /// Its term.
        term: Term,
        /// Release of the gateway.
        software: String,
        /// Mirrors of the link.
        mirrors: u32,
    },
    /// The gateway ended the session.
    ClosedByGateway {
        /// Its code, where it is one we know.
        code: Option<CloseCode>,
        /// Its words.
        reason: String,
    },
    /// A mirror is FAILED.
    MirrorFailed {
        /// The topic.
        topic: TopicName,
        /// Why.
        failure: Failure,
        /// Whether the gateway found it.
        told_by_gateway: bool,
    },
    /// A mirror was paused or goes on.
    MirrorPaused {
        /// The topic.
        topic: TopicName,
        /// Paused now.
        paused: bool,
    },
    /// The cloud lost the tail of a partition; it is sent again.
    Rewound {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Where it goes on.
        next_offset: Offset,
    },
    /// Nothing was left to compare the mirror's tail with.
    Unverified {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
}
