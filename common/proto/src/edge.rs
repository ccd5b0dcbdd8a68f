//! The agent's half of the link: one site, over all its sessions.
//!
//! ```text
//!         Connected              Welcome
//!   Down -----------> AwaitWelcome -----> Open
//!    ^  Disconnected       |               |  protocol breach, Close, Shutdown
//!    +---------------------+---------------+----> Closing -> (Disconnected) -> Down
//! ```
//!
//! A partition: the gateway tells a Position -> the tail is compared, with memory or with journal and source -> Placed,
//! and frames go out from there. What was fetched and not confirmed stays in the window over any number of sessions; what
//! stays for longer than the spill delay goes to the journal, and is read back from there in order. A site that was
//! [restored](EdgeInput::Restored) goes on fetching in the dark. Where the source has deleted what comes next, the gateway
//! hears where its log starts, once all before it is confirmed, and answers with a Position.
//!
//! Must never: send a byte of a partition before its mirror's tail was compared; hold more than the window and what the
//! fetchers had under way; let go of a record the cloud has not confirmed, unless journal or source still has it.

mod check;
mod checkpoint;
mod evidence;
mod link;
mod outgoing;
mod partition;
mod pool;
mod status;

pub use check::{corrupt_batch, large_batch};
pub use checkpoint::{Checkpoint, CheckpointMirror, CheckpointPartition};
pub use evidence::{contradicts, differs, entry_contradicts, proves};
pub use link::EdgeLink;
pub use outgoing::{Outgoing, OutgoingBody};
pub use status::{EdgeMirrorState, EdgeMirrorStatus, EdgePartitionStatus, EdgeStatus};

use crate::failure::Failure;
use crate::frame::{Entry, Packed};
use crate::id::{Offset, Partition, Term, Time, TopicName};
use crate::pattern::TopicPattern;
use crate::wire::{CloseCode, CloudMessage, EdgeMessage, TailBatch, TopicConfig};

/// What a site needs to know from the start.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Release of the agent, for people.
    pub software: String,
    /// Drawn at random at the start of the process: tells two boxes with one certificate apart. Not 0.
    pub incarnation: u64,
    /// Bytes of batches held in memory, a quarter of it for what is read back from the journal; fetching stops there.
    /// What fetchers have under way comes on top.
    pub window_bytes: usize,
    /// How long a batch may wait for its confirm before it goes to the journal. Less where the window is full.
    pub spill_delay: Time,
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
    /// When the source deletes records, where it tells.
    pub retention: Retention,
}

/// When a source deletes records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// `retention.ms`: age in ms; `None` where it is unlimited or not known.
    pub ms: Option<i64>,
    /// `retention.bytes`: size of a partition; `None` where it is unlimited or not known.
    pub bytes: Option<i64>,
}

/// What the journal holds of one partition: one run of joined frames. A frame that does not join its predecessor starts
/// a new run, and what was there before counts as confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalRange {
    /// The source topic.
    pub topic: TopicName,
    /// The topic's id when its frames were written, where it was known.
    pub topic_id: Option<[u8; 16]>,
    /// The partition.
    pub partition: Partition,
    /// First offset that can be read; it may lie inside a frame, and `bytes` is an estimate then.
    pub first: Offset,
    /// Offset after the last.
    pub next: Offset,
    /// Leader epoch of the last batch at the source; -1 where it is not known.
    pub last_epoch: i32,
    /// Bytes of the frames' bodies as kept.
    pub bytes: u64,
}

/// Batches and gaps for the journal, to be encoded as one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillFrame {
    /// The source topic.
    pub topic: TopicName,
    /// Its id at the source, where the brokers tell one: frames of a topic that was made anew are not the old one's.
    pub topic_id: Option<[u8; 16]>,
    /// The partition.
    pub partition: Partition,
    /// End of what the journal holds of the partition, which the frame joins; `None` where it begins a run.
    pub after: Option<Offset>,
    /// At least one entry, joined.
    pub entries: Vec<Entry>,
    /// Leader epoch of the source's record right before their end; -1 where it is not known.
    pub last_epoch: i32,
}

impl SpillFrame {
    /// The frame, as the journal keeps it.
    pub fn pack(&self) -> Packed {
        Packed { last_epoch: self.last_epoch, ..Packed::new(&self.entries) }
    }
}

/// Why the journal did not take frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpillError {
    /// There is no room; it is tried again soon.
    Full {
        /// For people.
        reason: String,
    },
    /// It works no more until [`EdgeInput::JournalOpened`].
    Broken {
        /// For people.
        reason: String,
    },
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
    /// What a former process left; the first input where there is a journal. From then on batches are spilled.
    Restored {
        /// The last checkpoint, empty where there is none.
        checkpoint: Checkpoint,
        /// What the journal holds.
        ranges: Vec<JournalRange>,
    },
    /// The journal was opened anew, or has found itself damaged: what it holds now.
    JournalOpened {
        /// All of it.
        ranges: Vec<JournalRange>,
    },
    /// Answer to [`EdgeOutput::Spill`].
    Spilled {
        /// As in the output.
        ticket: u64,
        /// Whether all of the frames are durable; else none counts.
        result: Result<(), SpillError>,
    },
    /// Answer to [`EdgeOutput::Load`].
    Loaded {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// The frames, joined, the first holding the offset asked for. `None` where they could not be read:
        /// [`EdgeInput::JournalOpened`] follows.
        frames: Option<Vec<Packed>>,
    },
    /// Source topics that match the filters of [`EdgeOutput::Watch`] and may leave the site.
    Discovered {
        /// The topics, known ones too.
        topics: Vec<TopicName>,
    },
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
    /// What was read from the source, in order and joined; may be empty. The CRCs of batches are right.
    Fetched {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// As in the [`EdgeOutput::Fetch`] that asked for it.
        fetch: u64,
        /// Batches and gaps. Those that end below the offset asked for are passed over.
        entries: Vec<Entry>,
        /// Leader epoch of the source's record right before their end, where it is known: a gap does not tell it.
        epoch: Option<i32>,
        /// High watermark of the source.
        high_watermark: Offset,
        /// First offset that the source still has.
        log_start: Offset,
    },
    /// The partition cannot be read on: the source has deleted what comes next.
    Overtaken {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// As in the [`EdgeOutput::Fetch`] that asked for it.
        fetch: u64,
        /// First offset that the source still has, above all that was told.
        log_start: Offset,
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
    /// Look for source topics that match, now and later, and tell of them with [`EdgeInput::Discovered`].
    Watch {
        /// The gateway's filters; empty: none.
        filters: Vec<TopicPattern>,
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
        /// The mirror's last batches and gaps, joined, up to `next_offset`; may be empty.
        tail: Vec<TailBatch>,
        /// The mirror's log end.
        next_offset: Offset,
        /// The source's log is compacted: it may lack records that the mirror has.
        compacted: bool,
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
        /// Leader epoch of the record before it, where it is known: the source then tells if it lost that record.
        epoch: Option<i32>,
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
    /// Write frames to the journal, and answer with [`EdgeInput::Spilled`] when they are durable. One at a time.
    Spill {
        /// To be given back.
        ticket: u64,
        /// In the order in which they are to be kept.
        frames: Vec<SpillFrame>,
    },
    /// Read frames back from the journal, and answer with [`EdgeInput::Loaded`].
    Load {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// Offset that the first frame is to hold.
        offset: Offset,
        /// Bytes of bodies after which it is enough.
        max_bytes: usize,
    },
    /// The journal may let go of what lies below these offsets.
    Trim {
        /// Confirmed offsets.
        confirmed: Vec<(TopicName, Partition, Offset)>,
    },
    /// The journal is to forget these partitions, confirmed or not.
    Discard {
        /// The partitions.
        partitions: Vec<(TopicName, Partition)>,
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
    /// The mirror will be FAILED when what is held of it has reached the cloud.
    MirrorEnding {
        /// The topic.
        topic: TopicName,
        /// Why.
        failure: Failure,
    },
    /// A partition cannot be read in the dark; the next session shows whether that matters.
    Stuck {
        /// The topic.
        topic: TopicName,
        /// Why.
        failure: Failure,
    },
    /// The journal takes nothing, or works again.
    Journal {
        /// Why not; `None` when it works again.
        trouble: Option<String>,
    },
    /// Nothing was left to compare the mirror's tail with.
    Unverified {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
}
