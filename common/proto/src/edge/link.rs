//! The site's state machine: sessions come and go, partitions stay.

mod flow;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flow::POSITIONS_EVERY;

use super::partition::{EdgePartition, Fetching, Placement};
use super::pool::{Pool, Rate};
use super::status::{EdgeMirrorState, EdgeMirrorStatus, EdgePartitionStatus, EdgeStatus};
use super::{EdgeConfig, EdgeEvent, EdgeInput, EdgeOutput, SourceTopic};
use crate::failure::{Failure, FailureCode, cut};
use crate::id::{MirrorId, Partition, Term, Time, TopicName};
use crate::limits::{MAX_CONFIGS, MAX_MIRRORS, MAX_PARTITIONS};
use crate::wire::{
    Close, CloseCode, CloudBody, EdgeBody, EdgeMessage, Failed, Hello, Mirror, Source, VERSIONS, Welcome,
};

/// What the gateway did that the protocol does not allow.
type Breach = String;
type Key = (TopicName, Partition);

#[derive(Debug)]
enum Session {
    Down,
    AwaitWelcome,
    Open(Open),
    Closing,
}

/// A session that has its Welcome.
#[derive(Debug)]
struct Open {
    term: Term,
    software: String,
    credit: Pool,
    max_frame_bytes: usize,
    /// Mirrors of the Welcome; those of an earlier session that are not among them are dropped once all are told.
    expected: usize,
    topics: Vec<TopicName>,
    positions_due: Time,
}

#[derive(Debug)]
enum Phase {
    /// Being looked up at the source.
    Discovering,
    /// The source topic is there.
    Ready(SourceTopic),
    Unavailable(String),
    Paused,
    Failed(Failure),
}

#[derive(Debug)]
struct EdgeMirror {
    /// Its number in this session, once told.
    id: Option<MirrorId>,
    phase: Phase,
    topic_id: Option<[u8; 16]>,
    /// Credit of frames that the gateway holds until it hears that the mirror is FAILED.
    owed_credit: usize,
    partitions: Vec<EdgePartition>,
}

impl EdgeMirror {
    fn partition(&mut self, partition: Partition) -> Option<&mut EdgePartition> {
        usize::try_from(partition).ok().and_then(|at| self.partitions.get_mut(at))
    }
}

/// One site. Calls: [`EdgeLink::handle`] with each input, then [`EdgeLink::poll_output`] until it is empty, and
/// [`EdgeLink::poll_frame`] whenever the connection takes another frame; [`EdgeInput::Timeout`] at
/// [`EdgeLink::next_timeout`].
#[derive(Debug)]
pub struct EdgeLink {
    config: EdgeConfig,
    session: Session,
    mirrors: BTreeMap<TopicName, EdgeMirror>,
    window: Pool,
    rate: Rate,
    /// Partitions with unsent batches, in turn.
    ready: VecDeque<Key>,
    /// Partitions whose fetch is paused for want of room.
    throttled: BTreeSet<Key>,
    confirmed_bytes: u64,
    next_ticket: u64,
    outputs: VecDeque<EdgeOutput>,
}

impl EdgeLink {
    /// A site that has never met its gateway: nothing is fetched before the first position.
    pub fn new(config: EdgeConfig) -> Self {
        let window = Pool::new(config.window_bytes);
        Self {
            config,
            session: Session::Down,
            mirrors: BTreeMap::new(),
            window,
            rate: Rate::default(),
            ready: VecDeque::new(),
            throttled: BTreeSet::new(),
            confirmed_bytes: 0,
            next_ticket: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input. `now` never goes back.
    pub fn handle(&mut self, input: EdgeInput, now: Time) {
        match input {
            EdgeInput::Connected { cluster_id } => self.connected(&cluster_id),
            EdgeInput::Disconnected => self.disconnected(),
            EdgeInput::Message(message) => self.message(message.body, now),
            EdgeInput::Source { topic, source } => self.source(&topic, &source),
            EdgeInput::SourceFailed { topic, failure } => self.fail(&topic, failure, false),
            EdgeInput::TailCompared { topic, partition, ticket, verdict } => {
                self.tail_compared(&topic, partition, ticket, verdict);
            }
            EdgeInput::Fetched { topic, partition, fetch, batches, high_watermark } => {
                self.fetched(&(topic, partition), fetch, batches, high_watermark);
            }
            EdgeInput::FetchFailed { topic, fetch, failure } => self.fetch_failed(&topic, fetch, failure),
            EdgeInput::Breach { reason } => self.close(CloseCode::Protocol, reason),
            EdgeInput::Shutdown => self.close(CloseCode::Shutdown, "the agent stops"),
            EdgeInput::Timeout => self.tell_source_positions(now),
        }
    }

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<EdgeOutput> {
        self.outputs.pop_front()
    }

    /// When [`EdgeInput::Timeout`] is due, and what for.
    pub fn next_timeout(&self) -> Option<(Time, &'static str)> {
        if let Session::Open(open) = &self.session { Some((open.positions_due, "tell source positions")) } else { None }
    }

    /// What there is to show.
    pub fn status(&self) -> EdgeStatus {
        let mut status = EdgeStatus {
            window_bytes: self.window.used(),
            confirmed_bytes: self.confirmed_bytes,
            mirrors: self.mirrors.iter().map(mirror_status).collect(),
            ..EdgeStatus::default()
        };
        if let Session::Open(open) = &self.session {
            status.term = Some(open.term);
            status.gateway_software.clone_from(&open.software);
            status.credit_bytes = open.credit.used() + open.credit.free();
            status.in_flight_bytes = open.credit.used();
        }
        status
    }

    /// Whether a session has its Welcome.
    pub fn is_open(&self) -> bool {
        matches!(self.session, Session::Open(_))
    }

    /// Whether the window is full. Fetchers are to ask for nothing then: what they bring adds to it, even for a
    /// partition that holds nothing yet.
    pub fn window_is_full(&self) -> bool {
        self.window.free() == 0
    }

    fn send(&mut self, body: EdgeBody) {
        self.outputs.push_back(EdgeOutput::Send(EdgeMessage { body: Some(body) }));
    }

    fn connected(&mut self, cluster_id: &str) {
        self.disconnected();
        self.session = Session::AwaitWelcome;
        let hello = Hello {
            first_version: *VERSIONS.start(),
            last_version: *VERSIONS.end(),
            software: self.config.software.clone(),
            cluster_id: cluster_id.to_owned(),
            max_frame_bytes: self.config.max_frame_bytes as u64,
            incarnation: self.config.incarnation,
        };
        self.send(EdgeBody::Hello(hello));
    }

    fn disconnected(&mut self) {
        self.session = Session::Down;
        self.ready.clear();
        for mirror in self.mirrors.values_mut() {
            mirror.id = None;
            mirror.owed_credit = 0;
            for partition in &mut mirror.partitions {
                partition.unsend();
                partition.placement = Placement::None;
                partition.queued = false;
                partition.last_run = 0;
                partition.told_high_watermark = None;
                partition.validate();
            }
        }
    }

    fn close(&mut self, code: CloseCode, reason: impl Into<String>) {
        if matches!(self.session, Session::Down | Session::Closing) {
            return;
        }
        let reason = cut(reason.into());
        self.send(EdgeBody::Close(Close { code: code.number(), reason: reason.clone() }));
        self.outputs.push_back(EdgeOutput::Close { code, reason });
        self.disconnected();
        self.session = Session::Closing;
    }

    fn message(&mut self, body: Option<CloudBody>, now: Time) {
        let done = match (&mut self.session, body) {
            // What was on its way when we closed, and messages this version does not know.
            (Session::Down | Session::Closing, _) | (_, None) => Ok(()),
            (_, Some(CloudBody::Close(close))) => {
                self.closed(close);
                Ok(())
            }
            (Session::AwaitWelcome, Some(CloudBody::Welcome(welcome))) => self.welcome(welcome, now),
            (Session::AwaitWelcome, Some(_)) => Err("the first message is not a Welcome".to_owned()),
            (Session::Open(_), Some(CloudBody::Welcome(_))) => Err("a second Welcome".to_owned()),
            (Session::Open(open), Some(CloudBody::Mirror(mirror))) => {
                let told = tell(open, &mirror);
                told.and_then(|topic| self.mirror(topic, &mirror))
            }
            (Session::Open(open), Some(CloudBody::Position(position))) => {
                let topic = topic_of(open, position.mirror);
                topic.and_then(|topic| self.position(&topic, &position))
            }
            (Session::Open(_), Some(CloudBody::Filters(_))) => Ok(()),
            (Session::Open(_), Some(CloudBody::Confirm(positions))) => self.confirm(&positions, now),
            (Session::Open(open), Some(CloudBody::Failed(failed))) => {
                topic_of(open, failed.mirror).map(|topic| self.fail(&topic, failed.failure(), true))
            }
        };
        if let Err(breach) = done {
            self.close(CloseCode::Protocol, breach);
        }
    }

    fn closed(&mut self, close: Close) {
        let code = CloseCode::from_number(close.code.into());
        let reason = cut(close.reason);
        let event = EdgeEvent::ClosedByGateway { code, reason: reason.clone() };
        self.outputs.push_back(EdgeOutput::Event(event));
        self.outputs.push_back(EdgeOutput::Close { code: CloseCode::Shutdown, reason });
        self.disconnected();
        self.session = Session::Closing;
    }

    fn welcome(&mut self, welcome: Welcome, now: Time) -> Result<(), Breach> {
        if !VERSIONS.contains(&welcome.version) {
            return Err(format!("the gateway chose version {}, which was not offered", welcome.version));
        }
        let max_frame_bytes = usize::try_from(welcome.max_frame_bytes).unwrap_or(usize::MAX);
        let credit_bytes = usize::try_from(welcome.credit_bytes).unwrap_or(usize::MAX);
        let expected = welcome.mirrors as usize;
        if max_frame_bytes > self.config.max_frame_bytes || credit_bytes < max_frame_bytes || expected > MAX_MIRRORS {
            return Err(format!("a Welcome with credit {credit_bytes}, frame {max_frame_bytes}, {expected} mirrors"));
        }
        let software = cut(welcome.software);
        let event =
            EdgeEvent::Welcomed { term: Term(welcome.term), software: software.clone(), mirrors: welcome.mirrors };
        self.outputs.push_back(EdgeOutput::Event(event));
        self.session = Session::Open(Open {
            term: Term(welcome.term),
            software,
            credit: Pool::new(credit_bytes),
            max_frame_bytes,
            expected,
            topics: Vec::new(),
            positions_due: now + POSITIONS_EVERY,
        });
        if expected == 0 {
            self.drop_untold();
        }
        Ok(())
    }

    /// A mirror is told, anew or again.
    fn mirror(&mut self, topic: TopicName, told: &Mirror) -> Result<(), Breach> {
        let mirror = self.mirrors.entry(topic.clone()).or_insert_with(|| EdgeMirror {
            id: None,
            phase: Phase::Discovering,
            topic_id: None,
            owed_credit: 0,
            partitions: Vec::new(),
        });
        if mirror.id.is_some_and(|id| id.0 != told.mirror) {
            return Err(format!("topic {topic} as mirror {} too", told.mirror));
        }
        let first = mirror.id.is_none();
        mirror.id = Some(MirrorId(told.mirror));
        let was_paused = matches!(mirror.phase, Phase::Paused);
        if told.paused {
            mirror.phase = Phase::Paused;
            self.release_owed(&topic);
            self.drop_partitions(&topic);
            self.outputs.push_back(EdgeOutput::Forget { topic: topic.clone() });
        } else {
            // What is known of the topic is told at once; the look-up that follows tells only what changed since.
            if let Phase::Ready(source) = &mirror.phase {
                let source = source.clone();
                self.tell_source(&topic, &Ok(source));
            } else {
                mirror.phase = Phase::Discovering;
            }
            self.outputs.push_back(EdgeOutput::Discover { topic: topic.clone() });
        }
        if was_paused != told.paused {
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::MirrorPaused { topic, paused: told.paused }));
        }
        if first
            && let Session::Open(open) = &self.session
            && open.topics.len() == open.expected
        {
            self.drop_untold();
        }
        Ok(())
    }

    /// All mirrors of the session are told: those of an earlier one that are not among them are the link's no more.
    fn drop_untold(&mut self) {
        let gone: Vec<_> =
            self.mirrors.iter().filter(|(_, mirror)| mirror.id.is_none()).map(|(topic, _)| topic.clone()).collect();
        for topic in gone {
            // Told in an earlier session only: nothing of it is in flight in this one.
            self.drop_partitions(&topic);
            self.mirrors.remove(&topic);
            self.outputs.push_back(EdgeOutput::Forget { topic });
        }
    }

    fn source(&mut self, topic: &TopicName, source: &Result<SourceTopic, String>) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if matches!(mirror.phase, Phase::Paused | Phase::Failed(_)) {
            return;
        }
        if let Ok(found) = source {
            if let (Some(old), Some(new)) = (mirror.topic_id, found.topic_id)
                && old != new
            {
                let detail = "the source topic was deleted and created again: its offsets mean other records. Delete the \
                              mirror topic to mirror the new one from its start";
                return self.fail(topic, Failure::of_topic(FailureCode::SourceTopicIdChanged, detail), false);
            }
            mirror.topic_id = found.topic_id;
            for at in mirror.partitions.len()..usize::try_from(found.partitions.min(MAX_PARTITIONS)).unwrap_or(0) {
                mirror.partitions.push(EdgePartition::new(Partition::try_from(at).unwrap_or(Partition::MAX)));
            }
        }
        let changed = match (&mirror.phase, source) {
            (Phase::Ready(old), Ok(new)) => old != new,
            (Phase::Unavailable(old), Err(new)) => old != new,
            _ => true,
        };
        if changed {
            mirror.phase = match source.clone() {
                Ok(found) => Phase::Ready(found),
                Err(problem) => Phase::Unavailable(problem),
            };
            self.tell_source(topic, source);
        }
    }

    fn tell_source(&mut self, topic: &TopicName, source: &Result<SourceTopic, String>) {
        let Some(MirrorId(mirror)) = self.mirrors.get(topic).and_then(|mirror| mirror.id) else { return };
        let message = match source {
            Ok(found) => Source {
                mirror,
                partitions: found.partitions,
                topic_id: found.topic_id.map_or_else(Vec::new, |id| id.to_vec()),
                configs: found.configs.iter().take(MAX_CONFIGS).cloned().collect(),
                problem: String::new(),
            },
            Err(problem) => Source { mirror, problem: cut(problem.clone()), ..Source::default() },
        };
        self.send(EdgeBody::Source(message));
    }

    /// The gateway has let go of a failed mirror's frames.
    fn release_owed(&mut self, topic: &TopicName) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let owed = std::mem::take(&mut mirror.owed_credit);
        if let Session::Open(open) = &mut self.session {
            open.credit.release(owed);
        }
    }

    fn fail(&mut self, topic: &TopicName, failure: Failure, told_by_gateway: bool) {
        if told_by_gateway {
            // Also the gateway's answer to our own word.
            self.release_owed(topic);
        }
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if matches!(mirror.phase, Phase::Failed(_) | Phase::Paused) {
            return;
        }
        mirror.phase = Phase::Failed(failure.clone());
        let id = mirror.id;
        let in_flight = self.drop_partitions(topic);
        if let (Session::Open(open), Some(mirror), false) =
            (&mut self.session, self.mirrors.get_mut(topic), told_by_gateway)
        {
            mirror.owed_credit = in_flight;
            open.credit.reserve(in_flight);
        }
        if let (Some(id), false) = (id, told_by_gateway) {
            self.send(EdgeBody::Failed(Failed::new(id, &failure)));
        }
        let event = EdgeEvent::MirrorFailed { topic: topic.clone(), failure, told_by_gateway };
        self.outputs.push_back(EdgeOutput::Event(event));
    }

    /// Stops a mirror's partitions and empties their windows; what was shipped stays remembered. Returns the bytes that
    /// were in flight.
    fn drop_partitions(&mut self, topic: &TopicName) -> usize {
        let Some(mirror) = self.mirrors.get_mut(topic) else {
            return 0;
        };
        let mut in_flight_in_all = 0;
        for partition in &mut mirror.partitions {
            if partition.fetching != Fetching::Off {
                let (topic, partition) = (topic.clone(), partition.partition());
                self.outputs.push_back(EdgeOutput::StopFetch { topic, partition });
            }
            let in_flight = partition.unsend();
            in_flight_in_all += in_flight;
            if let Session::Open(open) = &mut self.session {
                open.credit.change(in_flight, 0);
            }
            self.window.change(partition.clear(), 0);
        }
        self.throttled.retain(|key| key.0 != *topic);
        self.unthrottle();
        in_flight_in_all
    }
}

fn tell(open: &mut Open, mirror: &Mirror) -> Result<TopicName, Breach> {
    let topic = TopicName::new(&mirror.topic).map_err(|error| error.to_string())?;
    let next = open.topics.len();
    match open.topics.get(mirror.mirror as usize) {
        Some(known) if *known == topic => {}
        Some(known) => return Err(format!("mirror {} is {known} and {topic}", mirror.mirror)),
        None if mirror.mirror as usize == next && next < MAX_MIRRORS => open.topics.push(topic.clone()),
        None => return Err(format!("mirror {} after {next} mirrors", mirror.mirror)),
    }
    Ok(topic)
}

fn topic_of(open: &Open, mirror: u32) -> Result<TopicName, Breach> {
    open.topics.get(mirror as usize).cloned().ok_or_else(|| format!("mirror {mirror} was never told"))
}

fn mirror_status((topic, mirror): (&TopicName, &EdgeMirror)) -> EdgeMirrorStatus {
    let placed = |partition: &EdgePartition| matches!(partition.placement, Placement::Placed { .. });
    let state = match &mirror.phase {
        Phase::Ready(_) if mirror.partitions.iter().all(placed) => EdgeMirrorState::Active,
        Phase::Ready(_) | Phase::Discovering => EdgeMirrorState::Pending,
        Phase::Unavailable(reason) => EdgeMirrorState::SourceUnavailable { reason: reason.clone() },
        Phase::Paused => EdgeMirrorState::Paused,
        Phase::Failed(failure) => EdgeMirrorState::Failed(failure.clone()),
    };
    let partition = |partition: &EdgePartition| EdgePartitionStatus {
        partition: partition.partition(),
        source_high_watermark: partition.high_watermark,
        fetched: partition.progress().map(|progress| progress.fetched),
        sent: partition.progress().map(|progress| progress.sent),
        confirmed: partition.progress().map(|progress| progress.confirmed),
        window_bytes: partition.window_bytes(),
        placed: placed(partition),
        unverified: partition.unverified,
        rewinds: partition.rewinds,
    };
    EdgeMirrorStatus { topic: topic.clone(), state, partitions: mirror.partitions.iter().map(partition).collect() }
}

#[cfg(test)]
#[path = "link/link_test.rs"]
mod tests;
