//! The site: an agent process, a shell around the shipped `EdgeLink`. What it reads from the source is in `reading`, its
//! disk in [`crate::disk`].
//!
//! What the shell itself must keep to: a fetch that starts where a tail was compared tells the source the leader epoch of
//! the record before it (Fetch v12), so that no truncation in between goes unseen.

mod reading;

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use tombolo_proto::batch::Stamp;
use tombolo_proto::edge::{EdgeConfig, EdgeEvent, EdgeInput, EdgeLink, EdgeOutput, EdgeStatus, Outgoing, OutgoingBody};
use tombolo_proto::frame::Entry;
use tombolo_proto::id::{Offset, Term, Time, TopicName};
use tombolo_proto::mirror::advance;
use tombolo_proto::pattern::TopicPattern;
use tombolo_proto::wire::{CloseCode, CloudBody, CloudMessage, ControlDecoder, EdgeBody, Position, TailBatch, encode};

use crate::broker::{Coordinator, Intent, PartitionLog};
use crate::bugs::Bug;
use crate::carrier::Flow;
use crate::disk::{Command, Disk};
use crate::plan::Plan;
use crate::properties::Rule;
use crate::source::Fetched;
use crate::world::{Event, GatewayEvent, Place, World, source_topic, topic_number};

/// Bytes of data handed to the link beyond what has arrived.
const LINK_BACKLOG: usize = 24_000;
/// What changes with every confirm is kept this often.
const CHECKPOINT_EVERY: Time = Time::from_secs(30);

/// What happens to the agent.
#[derive(Debug, Clone)]
pub(crate) enum AgentEvent {
    Dial,
    Connected {
        connection: u64,
    },
    LinkLost {
        connection: u64,
    },
    Timer,
    Discovered {
        topic: usize,
    },
    Searched,
    Compare {
        place: Place,
        ticket: u64,
        tail: Vec<TailBatch>,
        next_offset: Offset,
        compacted: bool,
    },
    FetchDue {
        place: Place,
        fetch: u64,
    },
    FetchArrives {
        place: Place,
        fetch: u64,
        fetched: Fetched,
    },
    /// The disk has done what it was told first.
    DiskDone,
    ReopenJournal,
    Checkpoint,
}

#[derive(Debug)]
struct Fetcher {
    fetch: u64,
    position: Offset,
    last_epoch: Option<i32>,
    topic_id: u8,
    paused: bool,
    under_way: bool,
}

/// The agent's process.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Number of this run of the process.
    pub(crate) run: u64,
    pub(crate) up: bool,
    pub(crate) connection: Option<u64>,
    link: EdgeLink,
    control: ControlDecoder,
    fetchers: BTreeMap<Place, Fetcher>,
    watched: BTreeSet<usize>,
    filters: Vec<TopicPattern>,
    /// As last told to the link.
    topic_ids: BTreeMap<usize, u8>,
    /// A frame that another is to overtake.
    held_back: Option<Outgoing>,
    /// Topics by their mirror's number in this session.
    mirrors: Vec<usize>,
    /// Where a tail agreed with the source, and the epoch of the record before.
    compared: BTreeMap<Place, (Offset, Option<i32>)>,
    timer: Option<Time>,
}

impl Agent {
    pub(crate) fn new(plan: &Plan, run: u64) -> Self {
        let config = EdgeConfig {
            software: "sim".to_owned(),
            incarnation: run + 1,
            window_bytes: plan.window_bytes,
            spill_delay: plan.spill_delay,
            max_frame_bytes: plan.max_frame_bytes,
        };
        Self {
            run,
            up: true,
            connection: None,
            link: EdgeLink::new(config),
            control: ControlDecoder::default(),
            fetchers: BTreeMap::new(),
            watched: BTreeSet::new(),
            filters: Vec::new(),
            topic_ids: BTreeMap::new(),
            held_back: None,
            mirrors: Vec::new(),
            compared: BTreeMap::new(),
            timer: None,
        }
    }

    pub(crate) fn status(&self) -> EdgeStatus {
        self.link.status()
    }
}

impl World {
    pub(crate) fn on_agent(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Dial => self.dial(),
            AgentEvent::Connected { connection } => {
                if self.agent.connection.is_some() {
                    // Dialled twice: when the long dark was over, and as it would have been anyway.
                    return self.close_link(connection, false);
                }
                let stands = self.carrier.connection(connection).is_some_and(|link| link.agent_up);
                if !stands {
                    return self.redial();
                }
                self.agent.connection = Some(connection);
                self.agent.control = ControlDecoder::default();
                self.agent.mirrors.clear();
                self.agent.held_back = None;
                let cluster_id = "source".to_owned();
                self.tell_agent(EdgeInput::Connected { cluster_id });
            }
            AgentEvent::LinkLost { connection } => {
                if let Some(link) = self.carrier.connection(connection) {
                    link.agent_up = false;
                }
                if self.agent.connection == Some(connection) {
                    self.agent.connection = None;
                    self.tell_agent(EdgeInput::Disconnected);
                    self.checkpoint(true);
                    self.redial();
                }
            }
            AgentEvent::Timer => {
                self.agent.timer = None;
                self.tell_agent(EdgeInput::Timeout);
            }
            AgentEvent::Discovered { topic } => self.discovered(topic),
            AgentEvent::Searched => self.searched(),
            AgentEvent::Compare { place, ticket, tail, next_offset, compacted } => {
                self.compare(place, ticket, tail, next_offset, compacted);
            }
            AgentEvent::FetchDue { place, fetch } => self.fetch_due(place, fetch),
            AgentEvent::FetchArrives { place, fetch, fetched } => self.fetch_arrives(place, fetch, fetched),
            AgentEvent::DiskDone => self.disk_done(),
            AgentEvent::ReopenJournal => self.reopen_journal(),
            AgentEvent::Checkpoint => {
                self.checkpoint(true);
                let wait = self.slowly(CHECKPOINT_EVERY);
                self.agent_after(wait, AgentEvent::Checkpoint);
            }
        }
    }

    pub(crate) fn agent_after(&mut self, wait: Time, event: AgentEvent) {
        self.after(wait, Event::Agent(self.agent.run, event));
    }

    /// The link is there again, as far as the agent can tell.
    pub(crate) fn agent_dials(&mut self) {
        self.agent_after(Time::ZERO, AgentEvent::Dial);
    }

    fn redial(&mut self) {
        let wait = self.dice.millis(20, 1_500);
        let wait = self.slowly(wait);
        self.agent_after(wait, AgentEvent::Dial);
    }

    fn dial(&mut self) {
        if self.agent.connection.is_some() {
            return;
        }
        let at = self.dice.below(self.gateways.len());
        let Some(gateway) = self.gateways.get(at) else { return };
        if gateway.process == 0 || gateway.paused || self.now < self.carrier.dark_until {
            self.redial();
            return;
        }
        let process = gateway.process;
        let connection = self.carrier.open(at, process, self.agent.run);
        let one_way = self.dice.millis(self.plan.link_delay.0, self.plan.link_delay.1);
        let accepted = GatewayEvent::Accepted { connection };
        self.after(one_way, Event::Gateway(at, process, accepted));
        self.agent_after(2 * one_way, AgentEvent::Connected { connection });
    }

    /// The agent learns after `wait` that a connection is dead.
    pub(crate) fn agent_loses(&mut self, connection: u64, wait: Time) {
        let Some(link) = self.carrier.connection(connection) else {
            return;
        };
        let run = link.agent;
        self.after(wait, Event::Agent(run, AgentEvent::LinkLost { connection }));
    }

    /// The gateway learns after `wait` that a connection is dead.
    pub(crate) fn gateway_loses(&mut self, connection: u64, wait: Time) {
        let Some(link) = self.carrier.connection(connection) else {
            return;
        };
        let (at, process) = (link.gateway, link.process);
        let lost = GatewayEvent::LinkLost { connection };
        self.after(wait, Event::Gateway(at, process, lost));
    }

    /// One end closes; what is on its way may still arrive before the other end notices.
    pub(crate) fn close_link(&mut self, connection: u64, by_gateway: bool) {
        let seen = self.dice.millis(self.plan.link_delay.0, self.plan.link_delay.1 + 200);
        let Some(link) = self.carrier.connection(connection) else {
            return;
        };
        if by_gateway {
            link.gateway_up = false;
            self.agent_loses(connection, seen);
        } else {
            link.agent_up = false;
            self.gateway_loses(connection, seen);
        }
    }

    pub(crate) fn agent_receives(&mut self, connection: u64) {
        let chunks = self.arrived(connection, Flow::GatewayControl);
        if self.agent.connection != Some(connection) {
            return;
        }
        for chunk in chunks {
            self.agent.control.push(&chunk);
            loop {
                let message = match self.agent.control.next_message::<CloudMessage>() {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(error) => {
                        let reason = error.to_string();
                        return self.tell_agent(EdgeInput::Breach { reason });
                    }
                };
                self.agent_hears(message);
                if self.agent.connection != Some(connection) {
                    return;
                }
            }
        }
    }

    fn agent_hears(&mut self, mut message: CloudMessage) {
        if self.plan.bug == Some(Bug::ResumeWithoutTail)
            && let Some(CloudBody::Position(position)) = &mut message.body
        {
            position.tail.clear();
        }
        if let Some(CloudBody::Mirror(mirror)) = &message.body
            && self.agent.mirrors.len() == mirror.mirror as usize
        {
            let name = TopicName::new(&mirror.topic).expect("a legal name");
            self.agent.mirrors.push(topic_number(&name));
        }
        self.tell_agent(EdgeInput::Message(message));
    }

    /// Gives the agent an input and does what it asks for.
    pub(crate) fn tell_agent(&mut self, input: EdgeInput) {
        let position = match &input {
            EdgeInput::Message(CloudMessage { body: Some(CloudBody::Position(position)) }) => {
                self.hears_position(position);
                Some(!position.tail.is_empty())
            }
            _ => None,
        };
        self.agent.link.handle(input, self.now);
        self.checkpoint(false);
        let outputs: Vec<_> = std::iter::from_fn(|| self.agent.link.poll_output()).collect();
        self.judge_outputs(&outputs);
        let (mut placed, mut asked, mut fetches) = (false, false, false);
        let mut closed = false;
        for output in outputs {
            match &output {
                EdgeOutput::Send(message) => placed |= matches!(message.body, Some(EdgeBody::Placed(_))),
                EdgeOutput::CompareTail { .. } => asked = true,
                EdgeOutput::Fetch { .. } => fetches = true,
                EdgeOutput::Close { .. } => closed = true,
                _ => {}
            }
            self.agent_acts(output);
        }
        if let Some(with_tail) = position
            && placed
            && !asked
        {
            if with_tail {
                self.ghost.count("tail compared from memory");
            }
            if !fetches {
                self.ghost.count("went on from the window");
            }
        }
        if closed {
            if let Some(connection) = self.agent.connection.take() {
                self.close_link(connection, false);
            }
            self.tell_agent(EdgeInput::Disconnected);
            self.checkpoint(true);
            return self.redial();
        }
        self.pump_frames();
        let due = self.agent.link.next_timeout().map(|(due, _)| due);
        if let Some(due) = due
            && self.agent.timer.is_none_or(|timer| due < timer)
        {
            self.agent.timer = Some(due);
            let wait = due.saturating_sub(self.now);
            self.agent_after(wait, AgentEvent::Timer);
        }
    }

    fn agent_acts(&mut self, output: EdgeOutput) {
        match output {
            EdgeOutput::Send(message) => {
                self.trace(|| format!("to gateway: {message:?}"));
                if let Some(connection) = self.agent.connection {
                    self.send(connection, Flow::AgentControl, encode(&message));
                }
            }
            EdgeOutput::Discover { topic } => {
                let topic = topic_number(&topic);
                self.agent.watched.insert(topic);
                let wait = self.dice.millis(1, 300);
                self.agent_after(wait, AgentEvent::Discovered { topic });
            }
            EdgeOutput::Forget { topic } => {
                let topic = topic_number(&topic);
                self.agent.watched.remove(&topic);
                self.agent.fetchers.retain(|place, _| place.0 != topic);
            }
            EdgeOutput::CompareTail { topic, partition, ticket, tail, next_offset, compacted } => {
                let place = (topic_number(&topic), partition);
                if self.disk.is_some() {
                    return self.tell_disk(Command::Compare { place, ticket, tail, next_offset, compacted });
                }
                let wait = self.dice.millis(1, 200);
                let event = AgentEvent::Compare { place, ticket, tail, next_offset, compacted };
                self.agent_after(wait, event);
            }
            EdgeOutput::Watch { filters } => {
                self.agent.filters = filters;
                let wait = self.dice.millis(1, 2_000);
                self.agent_after(wait, AgentEvent::Searched);
            }
            EdgeOutput::Spill { ticket, frames } => self.tell_disk(Command::Spill { ticket, frames }),
            EdgeOutput::Load { topic, partition, ticket, offset, max_bytes } => {
                self.tell_disk(Command::Load { topic, partition, ticket, offset, max_bytes });
            }
            EdgeOutput::Trim { mut confirmed } => {
                // A checkpoint below the journal's start would be taken for one of another journal.
                self.checkpoint(true);
                if self.plan.bug == Some(Bug::TrimBeforeConfirm) {
                    crate::bugs::trim_what_was_sent(&mut confirmed, &self.agent.status());
                }
                self.tell_disk(Command::Trim { confirmed });
            }
            EdgeOutput::Discard { partitions } => self.tell_disk(Command::Discard { partitions }),
            EdgeOutput::Fetch { topic, partition, fetch, offset, epoch } => {
                self.start_fetch((topic_number(&topic), partition), fetch, offset, epoch);
            }
            EdgeOutput::PauseFetch { topic, partition } => {
                self.ghost.count("fetch throttled");
                if let Some(fetcher) = self.agent.fetchers.get_mut(&(topic_number(&topic), partition)) {
                    fetcher.paused = true;
                }
            }
            EdgeOutput::ResumeFetch { topic, partition } => {
                let place = (topic_number(&topic), partition);
                if let Some(fetcher) = self.agent.fetchers.get_mut(&place) {
                    fetcher.paused = false;
                    self.fetch_on(place, Time::ZERO);
                }
            }
            EdgeOutput::StopFetch { topic, partition } => {
                self.agent.fetchers.remove(&(topic_number(&topic), partition));
            }
            EdgeOutput::Event(event) => self.edge_event(&event),
            EdgeOutput::Close { code, reason } => {
                self.trace(|| format!("agent closes: {code:?} {reason}"));
                if code == CloseCode::Protocol {
                    self.ghost.violated(Rule::Protocol, format!("the agent closes: {reason}"));
                }
            }
        }
    }

    fn edge_event(&mut self, event: &EdgeEvent) {
        self.trace(|| format!("agent: {event:?}"));
        if let EdgeEvent::MirrorFailed { topic, failure, told_by_gateway: false } = event {
            self.failed(topic_number(topic), failure);
        }
        if let EdgeEvent::Unverified { topic, partition } = event {
            self.ghost.placed_unverified((topic_number(topic), *partition));
        }
    }

    /// Keeps what is to outlive the process: lists that changed, or with `all` also where partitions stand.
    fn checkpoint(&mut self, all: bool) {
        if self.disk.is_none() {
            return;
        }
        let Some(mut checkpoint) = self.agent.link.take_checkpoint(all) else { return };
        if self.plan.bug == Some(Bug::CheckpointAhead) {
            crate::bugs::keep_what_was_fetched(&mut checkpoint, &self.agent.status());
        }
        self.tell_disk(Command::Save(checkpoint));
    }

    /// Where a mirror ends, as the agent is about to hear.
    fn hears_position(&mut self, position: &Position) {
        let status = self.agent.status();
        let Some(place) = self.agent.mirrors.get(position.mirror as usize).map(|&topic| (topic, position.partition))
        else {
            return;
        };
        self.ghost.kept.position(place, position.next_offset);
        let newest = self.source.get(&place).and_then(|source| source.histories().last());
        if newest.is_some_and(|history| history.is_within_gap(position.next_offset)) {
            self.ghost.count("gap taken up within");
        }
        let mirror = status.mirrors.iter().find(|mirror| mirror.topic == source_topic(place.0));
        let partition = usize::try_from(place.1).ok().and_then(|at| mirror?.partitions.get(at));
        let Some((first, next)) = partition.and_then(|partition| partition.journal) else { return };
        if partition.and_then(|partition| partition.confirmed) > Some(position.next_offset) {
            let within = (first..next).contains(&position.next_offset);
            self.ghost.count(if within { "rewound into the journal" } else { "rewound below the journal" });
        }
    }

    /// Hands frames to the link, few at a time: which one goes next is decided late.
    fn pump_frames(&mut self) {
        let Some(connection) = self.agent.connection else { return };
        while self.carrier.backlog(connection, Flow::AgentData) < LINK_BACKLOG {
            let Some(frame) = self.next_frame() else { return };
            if matches!(frame.body, OutgoingBody::Packed(_)) {
                self.ghost.count("drained");
            }
            self.trace(|| {
                let (first, next) = (frame.first_offset(), frame.next_offset());
                format!("frame: mirror {} partition {} {first}..{next}", frame.mirror, frame.partition)
            });
            let mut bytes = BytesMut::new();
            for piece in frame.encode() {
                bytes.extend_from_slice(&piece);
            }
            self.send(connection, Flow::AgentData, bytes.freeze());
        }
    }

    fn next_frame(&mut self) -> Option<Outgoing> {
        let frame = self.agent.link.poll_frame();
        if self.plan.bug != Some(Bug::DrainOutOfOrder) {
            return frame;
        }
        let frame = frame?;
        let of = |frame: &Outgoing| (frame.mirror, frame.run, frame.partition);
        if self.agent.held_back.as_ref().is_some_and(|held| of(held) == of(&frame)) {
            // It goes first; the one it overtakes follows.
            return self.agent.held_back.replace(frame).and_then(|held| self.agent.held_back.replace(held));
        }
        if self.agent.held_back.is_none() && matches!(frame.body, OutgoingBody::Packed(_)) && self.dice.chance(300) {
            self.agent.held_back = Some(frame);
            return self.next_frame();
        }
        Some(frame)
    }

    /// The link has carried some bytes.
    pub(crate) fn link_took_bytes(&mut self, connection: u64) {
        if self.agent.up && self.agent.connection == Some(connection) {
            self.pump_frames();
        }
    }

    /// The agent dies on the spot; everything in memory is gone.
    pub(crate) fn kill_agent(&mut self, power_cut: bool) {
        if !std::mem::replace(&mut self.agent.up, false) {
            return;
        }
        self.trace(|| format!("the agent is killed, power cut {power_cut}"));
        self.disk_stops(power_cut);
        for id in self.carrier.ids() {
            let Some(link) = self.carrier.connection(id) else { continue };
            if std::mem::replace(&mut link.agent_up, false) {
                link.broken = true;
                let seen = self.dice.millis(10, 6_000);
                self.gateway_loses(id, seen);
            }
        }
        let down = self.dice.millis(50, 4_000);
        self.after(down, Event::AgentStart);
    }

    pub(crate) fn start_agent(&mut self) {
        if !self.agent.up {
            self.agent = Agent::new(&self.plan, self.agent.run + 1);
            if self.now < self.carrier.dark_until && self.disk.as_ref().is_some_and(Disk::knows_mirrors) {
                self.ghost.count("dark restart");
            }
            self.agent_begins();
        }
    }

    /// A process begins, with what a former one left.
    pub(crate) fn agent_begins(&mut self) {
        if let Some(restored) = self.open_disk() {
            self.check_kept();
            self.tell_agent(restored);
            self.agent_after(CHECKPOINT_EVERY, AgentEvent::Checkpoint);
        }
        self.agent_after(Time::ZERO, AgentEvent::Dial);
    }

    /// Puts an entry into a mirror as a gateway would, with the next sequence.
    pub(crate) fn mirror_entry(log: &mut PartitionLog, entry: &Entry) {
        let producer_id = Self::producer_id();
        match entry {
            Entry::Batch(batch) => {
                let sequence = match log.last_sequence(producer_id) {
                    Some(last) => advance(last, 1),
                    None => i32::try_from(log.log_end() & i64::from(i32::MAX)).expect("masked"),
                };
                let stamped = batch.stamped(Stamp { producer_id, sequence });
                log.append(&stamped, None).expect("in sequence from the log's start");
            }
            Entry::Gap { count, .. } => {
                for _ in 0..*count {
                    let intent = Intent { term: Term(0), offset: log.log_end() };
                    log.mark(Coordinator { producer_id, epoch: 0 }, 0, intent).expect("nobody else writes");
                }
            }
        }
    }
}
