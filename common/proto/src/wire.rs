//! The control stream: protobuf messages, each with its length before it.
//!
//! Protobuf because a ship may be three versions behind: an unknown field is passed over, an unknown message is
//! [`None`] in its envelope and ignored. Field numbers are never used twice. What a message *means* and whether its
//! values are in range is checked by the half-protocols, not here.

mod codec;
mod tail;

pub use codec::{ControlDecoder, WireError, encode};
pub use tail::TailBatch;

use crate::failure::{Failure, FailureCode, cut};
use crate::id::{MirrorId, Offset, Partition};

/// ALPN protocol id of the link (RFC 7301).
pub const ALPN: &[u8] = b"tombolo/1";
/// Versions of the control protocol this build speaks, first and last.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;

/// From agent to gateway.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EdgeMessage {
    /// The message; `None` where the peer knows one that we do not.
    #[prost(oneof = "EdgeBody", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub body: Option<EdgeBody>,
}

/// Messages from agent to gateway.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum EdgeBody {
    /// First message of a session.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Shape of a mirror's source topic, or why there is none.
    #[prost(message, tag = "2")]
    Source(Source),
    /// The tail was compared; frames of this run follow.
    #[prost(message, tag = "3")]
    Placed(Placed),
    /// The mirror cannot go on.
    #[prost(message, tag = "4")]
    Failed(Failed),
    /// High watermarks of the source.
    #[prost(message, tag = "5")]
    SourcePositions(Positions),
    /// The session ends.
    #[prost(message, tag = "6")]
    Close(Close),
    /// Source topics that match a filter and have no mirror in this session.
    #[prost(message, tag = "7")]
    Discovered(Topics),
    /// The source's log starts above what the mirror holds. Told once in a run, when all before it is confirmed.
    #[prost(message, tag = "8")]
    SourceStart(SourceStart),
}

/// From gateway to agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloudMessage {
    /// The message; `None` where the peer knows one that we do not.
    #[prost(oneof = "CloudBody", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub body: Option<CloudBody>,
}

/// Messages from gateway to agent.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum CloudBody {
    /// Answer to Hello: the link is this session's.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// A mirror of the link, new or changed.
    #[prost(message, tag = "2")]
    Mirror(Mirror),
    /// Where a partition goes on; also a rewind.
    #[prost(message, tag = "3")]
    Position(Position),
    /// High watermarks of the mirrors.
    #[prost(message, tag = "4")]
    Confirm(Positions),
    /// The mirror cannot go on.
    #[prost(message, tag = "5")]
    Failed(Failed),
    /// The session ends.
    #[prost(message, tag = "6")]
    Close(Close),
    /// What becomes a mirror as it appears. Comes after the mirrors of the Welcome, empty too, and whenever it changes.
    #[prost(message, tag = "7")]
    Filters(Filters),
}

/// First message of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// First protocol version the agent speaks.
    #[prost(uint32, tag = "1")]
    pub first_version: u32,
    /// Last protocol version the agent speaks.
    #[prost(uint32, tag = "2")]
    pub last_version: u32,
    /// Release of the agent, for people.
    #[prost(string, tag = "3")]
    pub software: String,
    /// The source cluster's id, empty where its brokers tell none.
    #[prost(string, tag = "4")]
    pub cluster_id: String,
    /// Largest frame the agent would send, in bytes of its raw body.
    #[prost(uint64, tag = "5")]
    pub max_frame_bytes: u64,
    /// Drawn at random at the start of the agent's process: of two processes with one link's certificate, only the one
    /// that came last is served. 0 where the agent does not tell.
    #[prost(fixed64, tag = "6")]
    pub incarnation: u64,
}

/// Answer to Hello.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Welcome {
    /// Protocol version of the session.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The session's term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Unconfirmed bytes the agent may have sent at any time, counted in raw bodies.
    #[prost(uint64, tag = "3")]
    pub credit_bytes: u64,
    /// Largest frame of the session, in bytes of its raw body.
    #[prost(uint64, tag = "4")]
    pub max_frame_bytes: u64,
    /// Release of the gateway, for people.
    #[prost(string, tag = "5")]
    pub software: String,
    /// Mirrors the link has; one Mirror message for each follows.
    #[prost(uint32, tag = "6")]
    pub mirrors: u32,
}

/// A mirror of the link.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mirror {
    /// Its number in this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Name of the source topic.
    #[prost(string, tag = "2")]
    pub topic: String,
    /// Paused by the operator: nothing is fetched or sent.
    #[prost(bool, tag = "3")]
    pub paused: bool,
}

/// What becomes a mirror as it appears at the source.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Filters {
    /// Names, or beginnings of names followed by `*`: [`TopicPattern`](crate::pattern::TopicPattern).
    #[prost(string, repeated, tag = "1")]
    pub patterns: Vec<String>,
}

/// Names of topics.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Topics {
    /// The names.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
}

/// A topic config at the source that is not the broker's default.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopicConfig {
    /// Name, as Kafka has it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value, as Kafka prints it.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Shape of a mirror's source topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Source {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Number of partitions; 0 where the topic does not exist (yet) or cannot be seen.
    #[prost(int32, tag = "2")]
    pub partitions: i32,
    /// Topic id (16 bytes), empty where the brokers tell none.
    #[prost(bytes = "vec", tag = "3")]
    pub topic_id: Vec<u8>,
    /// Configs that are not the default.
    #[prost(message, repeated, tag = "4")]
    pub configs: Vec<TopicConfig>,
    /// Why the topic cannot be mirrored for now, for people; empty where it can.
    #[prost(string, tag = "5")]
    pub problem: String,
}

/// Where a partition goes on. Starts a run: frames of older runs are dropped.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Position {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Partition.
    #[prost(int32, tag = "2")]
    pub partition: Partition,
    /// Run, higher than all before it in the session.
    #[prost(uint32, tag = "3")]
    pub run: u32,
    /// Offset of the next record the mirror wants: its log end.
    #[prost(int64, tag = "4")]
    pub next_offset: Offset,
    /// The last batches and gaps of the mirror, in offset order, joined, up to `next_offset`; empty where it holds none.
    #[prost(message, repeated, tag = "5")]
    pub tail: Vec<TailBatch>,
    /// The cloud lost what it had (a rewind), rather than the session began.
    #[prost(bool, tag = "6")]
    pub rewind: bool,
}

/// The agent takes up a run.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Placed {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Partition.
    #[prost(int32, tag = "2")]
    pub partition: Partition,
    /// Run.
    #[prost(uint32, tag = "3")]
    pub run: u32,
    /// Nothing was left to compare the mirror's tail with.
    #[prost(bool, tag = "4")]
    pub unverified: bool,
}

/// The source holds nothing below this offset any more, and the mirror ends before it. The run is over: the next begins
/// with a Position.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SourceStart {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Partition.
    #[prost(int32, tag = "2")]
    pub partition: Partition,
    /// Run.
    #[prost(uint32, tag = "3")]
    pub run: u32,
    /// First offset of the source's log.
    #[prost(int64, tag = "4")]
    pub offset: Offset,
    /// The agent once read the source where the mirror ends, or before: what is missing was there and is lost. An agent
    /// that was not there yet, or does not remember, says no.
    #[prost(bool, tag = "5")]
    pub seen: bool,
}

/// An offset of a partition.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PartitionOffset {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// Partition.
    #[prost(int32, tag = "2")]
    pub partition: Partition,
    /// Offset.
    #[prost(int64, tag = "3")]
    pub offset: Offset,
    /// Run the offset belongs to (Confirm only).
    #[prost(uint32, tag = "4")]
    pub run: u32,
    /// First offset of the source's log (`SourcePositions` only); an older agent does not tell it.
    #[prost(int64, optional, tag = "5")]
    pub log_start: Option<Offset>,
}

/// Offsets of many partitions.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Positions {
    /// The offsets.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<PartitionOffset>,
}

/// A mirror is FAILED.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Failed {
    /// Mirror of this session.
    #[prost(uint32, tag = "1")]
    pub mirror: u32,
    /// [`FailureCode::number`].
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// Partition, where it concerns one.
    #[prost(int32, optional, tag = "3")]
    pub partition: Option<Partition>,
    /// First offset concerned.
    #[prost(int64, optional, tag = "4")]
    pub offset: Option<Offset>,
    /// Offset after the last concerned.
    #[prost(int64, optional, tag = "5")]
    pub end_offset: Option<Offset>,
    /// What was seen, for people.
    #[prost(string, tag = "6")]
    pub detail: String,
}

impl Failed {
    /// Puts a failure on the wire.
    pub fn new(mirror: MirrorId, failure: &Failure) -> Self {
        Self {
            mirror: mirror.0,
            code: failure.code.number(),
            partition: failure.partition,
            offset: failure.offset,
            end_offset: failure.end_offset,
            detail: cut(failure.detail.clone()),
        }
    }

    /// The failure as told by the peer.
    pub fn failure(&self) -> Failure {
        Failure {
            code: FailureCode::from_number(self.code),
            partition: self.partition,
            offset: self.offset,
            end_offset: self.end_offset,
            detail: cut(self.detail.clone()),
        }
    }
}

/// The session ends.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Close {
    /// [`CloseCode`] as a number; also the application error code of the QUIC connection.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Why, for people.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Why a session ended, as a number both ends know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The process stops in good order.
    Shutdown,
    /// The peer broke the protocol.
    Protocol,
    /// No protocol version in common.
    Version,
    /// The gateway has no link of that name.
    UnknownLink,
    /// Another session of the link began.
    Superseded,
    /// The gateway cannot serve the link now; try again later.
    Unavailable,
}

impl CloseCode {
    /// Every code.
    pub const ALL: [Self; 6] =
        [Self::Shutdown, Self::Protocol, Self::Version, Self::UnknownLink, Self::Superseded, Self::Unavailable];

    /// Number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Shutdown => 0,
            Self::Protocol => 1,
            Self::Version => 2,
            Self::UnknownLink => 3,
            Self::Superseded => 4,
            Self::Unavailable => 5,
        }
    }

    /// The code of a number, where it has one.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.number()) == number)
    }
}
