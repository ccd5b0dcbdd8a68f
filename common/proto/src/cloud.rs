//! The gateway's half of a session: one agent's connection, all its mirrors.
//!
//! ```text
//!             Hello               Claimed
//!  AwaitHello -----> Claiming ---------------> Open
//!       |               |  ClaimFailed, Refused |  Superseded, Shutdown, protocol breach
//!       +---------------+-----------------------+------------------------------> Closed
//! ```
//!
//! A mirror within an open session: Mirror is told -> the agent answers with Source ->
//! `PrepareTopic` -> `TopicReady` -> every partition recovers (see [`crate::mirror`]) and takes frames. Mirrors are those of
//! the settings, and topics that the agent discovered and a filter matches.
//!
//! Must never: send to the cluster before `write_after`; believe a count, offset or name of the agent's; hold more than
//! the credit it gave.

mod open;
mod settings;
mod status;

pub use crate::mirror::OnLoss;
pub use settings::{DEFAULT_MAX_GAP, LinkSettings, LogStart, MirrorSettings, PassedOver};
pub use status::{CloudPartitionStatus, CloudStatus, MirrorState, MirrorStatus};

use std::collections::VecDeque;

use bytes::Bytes;

use crate::failure::{Failure, cut};
use crate::frame::Frame;
use crate::id::{MirrorId, Offset, Partition, Term, Time, TopicName};
use crate::mirror::{Outcome, Recovery, SkipOutcome};
use crate::wire::{Close, CloseCode, CloudBody, CloudMessage, EdgeBody, EdgeMessage, Hello, TopicConfig, VERSIONS};

use open::Open;

/// What a session needs to know from the start.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// The link's derived producer id.
    pub producer_id: i64,
    /// Release of the gateway, for people.
    pub software: String,
    /// Unconfirmed bytes that the agent may have sent. At least two of the largest frames.
    pub credit_bytes: usize,
    /// Largest frame, in bytes of its raw body.
    pub max_frame_bytes: usize,
    /// What the link mirrors.
    pub link: LinkSettings,
}

/// What happens to a session.
#[derive(Debug, Clone)]
pub enum CloudInput {
    /// A control message arrived.
    Message(EdgeMessage),
    /// A frame arrived whole and its checksums hold.
    Frame(Frame),
    /// The registry holds our term. Nothing may be read as settled or written before `write_after`.
    Claimed {
        /// The session's term.
        term: Term,
        /// When the predecessor's lease and the settle time are over.
        write_after: Time,
    },
    /// The registry could not be written.
    ClaimFailed {
        /// Why, for people.
        reason: String,
    },
    /// Another incarnation of the agent has taken the link from this one, which is not served any more.
    Refused {
        /// When and from where, for people.
        reason: String,
    },
    /// The mirror topic exists with this many partitions.
    TopicReady {
        /// The mirror.
        mirror: MirrorId,
        /// Partitions of the mirror topic.
        partitions: i32,
    },
    /// The mirror topic cannot be had now; the owner goes on trying.
    TopicUnavailable {
        /// The mirror.
        mirror: MirrorId,
        /// Why, for people.
        reason: String,
    },
    /// The mirror topic cannot be had.
    TopicFailed {
        /// The mirror.
        mirror: MirrorId,
        /// Why.
        failure: Failure,
    },
    /// Answer to [`CloudOutput::Recover`].
    Recovered {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        attempt: u32,
        /// What the cluster holds, or why it could not be read.
        result: Result<Recovery, String>,
    },
    /// Answer to [`CloudOutput::Produce`].
    Produced {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// Answer to [`CloudOutput::Skip`].
    Skipped {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// What became of the markers.
        outcome: SkipOutcome,
    },
    /// Answer to [`CloudOutput::FastForward`].
    FastForwarded {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// Whether the log is empty and ends where it was to; or why not, for people.
        result: Result<(), String>,
    },
    /// Answer to [`CloudOutput::RecordLoss`].
    LossRecorded {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// Whether the registry holds the range; or why not, for people.
        result: Result<(), String>,
    },
    /// Answer to [`CloudOutput::DeleteBefore`].
    Deleted {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
        /// As in the output.
        ticket: u64,
        /// Where the mirror's log starts; or why it does not start there, for people.
        result: Result<Offset, String>,
    },
    /// The partition has another leader than the one that told its log end, and nothing is in flight to either.
    LeaderMoved {
        /// The mirror.
        mirror: MirrorId,
        /// The partition.
        partition: Partition,
    },
    /// The operator's mirrors and filters, changed or not.
    Mirrors(LinkSettings),
    /// A newer term is in the registry.
    Superseded {
        /// The newer term.
        newer: Term,
    },
    /// The bytes of the connection make no sense.
    Breach {
        /// What is wrong, for people.
        reason: String,
    },
    /// The gateway stops.
    Shutdown,
    /// Time passed.
    Timeout,
}

/// What the owner of a session is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum CloudOutput {
    /// Send a control message.
    Send(CloudMessage),
    /// Write the link's next term to the registry and answer with `Claimed`, `ClaimFailed` or `Refused`.
    Claim {
        /// The agent's process, as it told; 0 where it did not.
        incarnation: u64,
    },
    /// Create the mirror topic, or bring it to at least this many partitions; answer with a Topic input.
    PrepareTopic {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// Partitions of the source topic.
        partitions: i32,
        /// Configs of the source topic that are not the default, as the agent tells them.
        configs: Vec<TopicConfig>,
    },
    /// Read log end, producer state and tail of a partition; answer with Recovered.
    Recover {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        attempt: u32,
    },
    /// Append a batch, acks=all; answer with Produced, always.
    Produce {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// Offset at which the batch must end up.
        offset: Offset,
        /// The stamped batch.
        batch: Bytes,
    },
    /// Append `count` markers, which hold no record; answer with Skipped, always. Nothing else of the partition is in
    /// flight, and nothing is asked of it until the answer.
    Skip {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// Offset at which the first marker must end up.
        offset: Offset,
        /// Number of markers, at most [`MAX_MARKERS`](crate::limits::MAX_MARKERS).
        count: i64,
    },
    /// Bring an empty log to end at `to`, and have it empty there; the registry knows of it first. Answer with
    /// `FastForwarded`, always. Nothing else is asked of the partition until the answer.
    FastForward {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// Where the log ends.
        from: Offset,
        /// Where it is to end: the start of the source's log.
        to: Offset,
    },
    /// Write a range that is lost at the source to the registry; answer with `LossRecorded`, always. The range may lie
    /// within, overlap or extend one that is recorded.
    RecordLoss {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// First lost offset.
        from: Offset,
        /// Offset after the last.
        to: Offset,
    },
    /// Have the log start at `offset`, below which the source has deleted everything and all is confirmed; answer with
    /// Deleted, always. Appends go on meanwhile.
    DeleteBefore {
        /// The mirror.
        mirror: MirrorId,
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// To be given back.
        ticket: u64,
        /// Where the log is to start.
        offset: Offset,
    },
    /// Something an operator should see in the log.
    Event(CloudEvent),
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
pub enum CloudEvent {
    /// A mirror is FAILED.
    MirrorFailed {
        /// Topic in the cloud.
        topic: TopicName,
        /// Why.
        failure: Failure,
        /// Whether the agent found it.
        told_by_agent: bool,
    },
    /// The source topic cannot be mirrored for now.
    SourceUnavailable {
        /// Topic at the source.
        topic: TopicName,
        /// The agent's words.
        problem: String,
    },
    /// A topic that a filter matches appeared at the source and is a mirror now.
    MirrorDiscovered {
        /// Its name, at the source and in the cloud.
        topic: TopicName,
    },
    /// A topic that a filter matches appeared at the source and is no mirror. Told once in a session.
    MirrorPassedOver {
        /// Its name at the source.
        topic: TopicName,
        /// Why.
        reason: PassedOver,
    },
    /// All partitions of a mirror take records.
    MirrorActive {
        /// Topic in the cloud.
        topic: TopicName,
    },
    /// The cloud lost the tail of a partition.
    Rewound {
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Where it goes on.
        next_offset: Offset,
    },
    /// A partition of the mirror was made to start where the source's log does.
    Started {
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Its first offset.
        offset: Offset,
    },
    /// Offsets that the source deleted before they were mirrored are in the loss ledger, and become a gap.
    LossSkipped {
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// First lost offset.
        from: Offset,
        /// Offset after the last.
        to: Offset,
    },
    /// Records that the source has deleted could not be deleted from the mirror; it is tried again. Told once for a reason.
    NotDeleted {
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
        /// Where its log is to start.
        offset: Offset,
        /// Why it does not, for people.
        reason: String,
    },
    /// The agent had nothing to compare the mirror's tail with.
    Unverified {
        /// Topic in the cloud.
        topic: TopicName,
        /// The partition.
        partition: Partition,
    },
}

#[derive(Debug)]
enum State {
    AwaitHello,
    Claiming { hello: Hello },
    Open(Box<Open>),
    Closed,
}

/// One session. Calls: [`CloudLink::handle`] with each input, then [`CloudLink::poll_output`] until it is empty;
/// [`CloudInput::Timeout`] at [`CloudLink::next_timeout`].
#[derive(Debug)]
pub struct CloudLink {
    config: CloudConfig,
    state: State,
    outputs: VecDeque<CloudOutput>,
}

impl CloudLink {
    /// A session whose Hello is still to come.
    pub fn new(config: CloudConfig) -> Self {
        Self { config, state: State::AwaitHello, outputs: VecDeque::new() }
    }

    /// Takes an input. `now` never goes back.
    pub fn handle(&mut self, input: CloudInput, now: Time) {
        let state = std::mem::replace(&mut self.state, State::Closed);
        self.state = match (state, input) {
            (State::Closed, _) => State::Closed,
            (_, CloudInput::Shutdown) => self.close(CloseCode::Shutdown, "the gateway stops"),
            (_, CloudInput::Breach { reason }) => self.close(CloseCode::Protocol, reason),
            (_, CloudInput::Superseded { newer }) => {
                self.close(CloseCode::Superseded, format!("term {newer} took the link over"))
            }
            (_, CloudInput::Message(EdgeMessage { body: Some(EdgeBody::Close(close)) })) => {
                self.close(CloseCode::Shutdown, format!("the agent closed: {}", cut(close.reason)))
            }
            (State::AwaitHello, CloudInput::Message(EdgeMessage { body: Some(EdgeBody::Hello(hello)) })) => {
                self.greet(hello)
            }
            (State::AwaitHello, CloudInput::Message(_)) => {
                self.close(CloseCode::Protocol, "the first message is not a Hello")
            }
            (State::AwaitHello | State::Claiming { .. }, CloudInput::Frame(_)) => {
                self.close(CloseCode::Protocol, "a frame before the Welcome")
            }
            (state @ (State::AwaitHello | State::Claiming { .. }), CloudInput::Mirrors(link)) => {
                self.config.link = link;
                state
            }
            (State::Claiming { hello }, CloudInput::Claimed { term, write_after }) => {
                let open = Open::new(&self.config, &hello, term, write_after, &mut self.outputs);
                State::Open(Box::new(open))
            }
            (State::Claiming { .. }, CloudInput::ClaimFailed { reason }) => {
                self.close(CloseCode::Unavailable, format!("the registry cannot be written: {reason}"))
            }
            (State::Claiming { .. }, CloudInput::Refused { reason }) => self.close(CloseCode::Superseded, reason),
            (State::Claiming { .. }, CloudInput::Message(_)) => {
                self.close(CloseCode::Protocol, "a message before the Welcome")
            }
            (State::Open(mut open), input) => match open.handle(input, now, &mut self.outputs) {
                Ok(()) => State::Open(open),
                Err(breach) => self.close(CloseCode::Protocol, breach),
            },
            // Answers to what was never asked, and time passing: nothing to do in these states.
            (
                state @ (State::AwaitHello | State::Claiming { .. }),
                CloudInput::Claimed { .. }
                | CloudInput::ClaimFailed { .. }
                | CloudInput::Refused { .. }
                | CloudInput::TopicReady { .. }
                | CloudInput::TopicUnavailable { .. }
                | CloudInput::TopicFailed { .. }
                | CloudInput::Recovered { .. }
                | CloudInput::Produced { .. }
                | CloudInput::Skipped { .. }
                | CloudInput::FastForwarded { .. }
                | CloudInput::LossRecorded { .. }
                | CloudInput::Deleted { .. }
                | CloudInput::LeaderMoved { .. }
                | CloudInput::Timeout,
            ) => state,
        };
    }

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<CloudOutput> {
        if self.outputs.is_empty()
            && let State::Open(open) = &mut self.state
        {
            open.flush_confirms(&mut self.outputs);
        }
        self.outputs.pop_front()
    }

    /// When [`CloudInput::Timeout`] is due, and what for.
    pub fn next_timeout(&self) -> Option<(Time, &'static str)> {
        if let State::Open(open) = &self.state { open.next_timeout() } else { None }
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The session's term, once it has one.
    pub fn term(&self) -> Option<Term> {
        if let State::Open(open) = &self.state { Some(open.term()) } else { None }
    }

    /// What there is to show.
    pub fn status(&self) -> CloudStatus {
        if let State::Open(open) = &self.state { open.status() } else { CloudStatus::default() }
    }

    fn greet(&mut self, hello: Hello) -> State {
        let overlap = hello.last_version.min(*VERSIONS.end()) >= hello.first_version.max(*VERSIONS.start());
        if !overlap {
            let reason = format!(
                "no protocol version in common: the agent speaks {} to {}, the gateway {} to {}; update the older one",
                hello.first_version,
                hello.last_version,
                VERSIONS.start(),
                VERSIONS.end()
            );
            return self.close(CloseCode::Version, reason);
        }
        self.outputs.push_back(CloudOutput::Claim { incarnation: hello.incarnation });
        State::Claiming { hello }
    }

    fn close(&mut self, code: CloseCode, reason: impl Into<String>) -> State {
        let reason = cut(reason.into());
        let close = Close { code: code.number(), reason: reason.clone() };
        self.outputs.push_back(CloudOutput::Send(CloudMessage { body: Some(CloudBody::Close(close)) }));
        self.outputs.push_back(CloudOutput::Close { code, reason });
        State::Closed
    }
}

#[cfg(test)]
#[path = "cloud/cloud_test.rs"]
mod tests;

#[cfg(test)]
#[path = "cloud/gaps_test.rs"]
mod gaps_tests;

#[cfg(test)]
#[path = "cloud/follow_test.rs"]
mod follow_tests;
