//! The site: an agent process, a shell around the shipped `EdgeLink`, and what it reads from the source.
//!
//! What the shell itself must keep to: a fetch that starts where a tail was compared tells the source the leader epoch of
//! the record before it (Fetch v12), so that no truncation in between goes unseen.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use tombolo_proto::batch::Batch;
use tombolo_proto::edge::{
    EdgeConfig, EdgeEvent, EdgeInput, EdgeLink, EdgeOutput, EdgeStatus, SourceTopic, Verdict, check_batch,
};
use tombolo_proto::failure::Failure;
use tombolo_proto::id::{Offset, Time};
use tombolo_proto::wire::{CloseCode, CloudBody, CloudMessage, ControlDecoder, EdgeBody, TailBatch, encode};

use crate::bugs::Bug;
use crate::carrier::Flow;
use crate::plan::{OddBatch, Plan};
use crate::properties::Rule;
use crate::source::Fetched;
use crate::world::{Event, GatewayEvent, Place, World, source_topic, topic_number};

/// Bytes of data handed to the link beyond what has arrived.
const LINK_BACKLOG: usize = 24_000;
/// A frame's entry takes one byte beyond its batch.
const ENTRY_OVERHEAD: usize = 1;

/// What happens to the agent.
#[derive(Debug, Clone)]
pub(crate) enum AgentEvent {
    Dial,
    Connected { connection: u64 },
    LinkLost { connection: u64 },
    Timer,
    Discovered { topic: usize },
    Compare { place: Place, ticket: u64, tail: Vec<TailBatch>, next_offset: Offset },
    FetchDue { place: Place, fetch: u64 },
    FetchArrives { place: Place, fetch: u64, fetched: Fetched },
}

#[derive(Debug)]
struct Fetcher {
    fetch: u64,
    position: Offset,
    last_epoch: Option<i32>,
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
                let stands = self.carrier.connection(connection).is_some_and(|link| link.agent_up);
                if !stands {
                    return self.redial();
                }
                self.agent.connection = Some(connection);
                self.agent.control = ControlDecoder::default();
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
                    self.redial();
                }
            }
            AgentEvent::Timer => {
                self.agent.timer = None;
                self.tell_agent(EdgeInput::Timeout);
            }
            AgentEvent::Discovered { topic } => self.discovered(topic),
            AgentEvent::Compare { place, ticket, tail, next_offset } => self.compare(place, ticket, tail, next_offset),
            AgentEvent::FetchDue { place, fetch } => self.fetch_due(place, fetch),
            AgentEvent::FetchArrives { place, fetch, fetched } => self.fetch_arrives(place, fetch, fetched),
        }
    }

    fn agent_after(&mut self, wait: Time, event: AgentEvent) {
        self.after(wait, Event::Agent(self.agent.run, event));
    }

    fn redial(&mut self) {
        let wait = self.dice.millis(20, 1_500);
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
        self.tell_agent(EdgeInput::Message(message));
    }

    /// Gives the agent an input and does what it asks for.
    fn tell_agent(&mut self, input: EdgeInput) {
        let position = match &input {
            EdgeInput::Message(CloudMessage { body: Some(CloudBody::Position(position)) }) => {
                Some(!position.tail.is_empty())
            }
            _ => None,
        };
        self.agent.link.handle(input, self.now);
        let (mut placed, mut asked, mut fetches) = (false, false, false);
        let mut closed = false;
        while let Some(output) = self.agent.link.poll_output() {
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
            self.agent.link.handle(EdgeInput::Disconnected, self.now);
            self.redial();
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
            EdgeOutput::CompareTail { topic, partition, ticket, tail, next_offset } => {
                let place = (topic_number(&topic), partition);
                let wait = self.dice.millis(1, 200);
                let event = AgentEvent::Compare { place, ticket, tail, next_offset };
                self.agent_after(wait, event);
            }
            EdgeOutput::Fetch { topic, partition, fetch, offset } => {
                self.start_fetch((topic_number(&topic), partition), fetch, offset);
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
    }

    /// Hands frames to the link, few at a time: which one goes next is decided late.
    fn pump_frames(&mut self) {
        let Some(connection) = self.agent.connection else { return };
        while self.carrier.backlog(connection, Flow::AgentData) < LINK_BACKLOG {
            let Some(frame) = self.agent.link.poll_frame() else { return };
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

    /// The link has carried some bytes.
    pub(crate) fn link_took_bytes(&mut self, connection: u64) {
        if self.agent.up && self.agent.connection == Some(connection) {
            self.pump_frames();
        }
    }

    fn discovered(&mut self, topic: usize) {
        if !self.agent.watched.contains(&topic) {
            return;
        }
        let source = if self.source_gone.contains_key(&topic) {
            Err("the topic does not exist".to_owned())
        } else {
            let partitions = self.source.keys().filter(|place| place.0 == topic).count();
            Ok(SourceTopic {
                partitions: i32::try_from(partitions).expect("small"),
                topic_id: Some([u8::try_from(topic).expect("small"); 16]),
                configs: Vec::new(),
            })
        };
        let topic = source_topic(topic);
        self.tell_agent(EdgeInput::Source { topic, source });
    }

    /// A source topic has changed; an agent that watches it finds out.
    pub(crate) fn source_changed(&mut self, topic: usize) {
        let wait = self.dice.millis(10, 2_000);
        self.agent_after(wait, AgentEvent::Discovered { topic });
    }

    fn compare(&mut self, place: Place, ticket: u64, tail: Vec<TailBatch>, next_offset: Offset) {
        let compared = self
            .source
            .get(&place)
            .filter(|_| !self.source_gone.contains_key(&place.0))
            .and_then(|source| source.compare(&tail, next_offset));
        let Some((mut verdict, epoch)) = compared else {
            let event = AgentEvent::Compare { place, ticket, tail, next_offset };
            return self.agent_after(Time::from_millis(100), event);
        };
        if self.plan.bug == Some(Bug::ResumeWithoutTail) {
            verdict = Verdict::Agrees;
        }
        self.ghost.count(match verdict {
            Verdict::Agrees => "tail compared from the source",
            Verdict::Unverified => "no tail to compare",
            Verdict::Failed(_) => "tail found different",
        });
        self.agent.compared.insert(place, (next_offset, epoch));
        let topic = source_topic(place.0);
        self.tell_agent(EdgeInput::TailCompared { topic, partition: place.1, ticket, verdict });
    }

    fn start_fetch(&mut self, place: Place, fetch: u64, offset: Offset) {
        let compared = self.agent.compared.get(&place).copied();
        let last_epoch = compared.filter(|&(at, _)| at == offset).and_then(|(_, epoch)| epoch);
        if self.ghost.fetched_beyond(place, offset) {
            self.ghost.count("fetched again");
        }
        let fetcher = Fetcher { fetch, position: offset, last_epoch, paused: false, under_way: false };
        self.agent.fetchers.insert(place, fetcher);
        self.fetch_on(place, Time::ZERO);
    }

    /// Asks for more of a partition, unless it is paused or a request is under way.
    fn fetch_on(&mut self, place: Place, wait: Time) {
        let delay = self.dice.millis(0, 40);
        let Some(fetcher) = self.agent.fetchers.get_mut(&place) else {
            return;
        };
        if fetcher.paused || std::mem::replace(&mut fetcher.under_way, true) {
            return;
        }
        let fetch = fetcher.fetch;
        self.agent_after(wait + delay, AgentEvent::FetchDue { place, fetch });
    }

    /// The source's broker reads.
    fn fetch_due(&mut self, place: Place, fetch: u64) {
        let Some(fetcher) = self.agent.fetchers.get(&place).filter(|fetcher| fetcher.fetch == fetch) else {
            return;
        };
        let Some(source) = self.source.get(&place) else { return };
        if self.source_gone.contains_key(&place.0) {
            return self.agent_after(Time::from_millis(300), AgentEvent::FetchDue { place, fetch });
        }
        let fetched = source.fetch(fetcher.position, fetcher.last_epoch, self.plan.fetch_bytes);
        let delay = self.dice.millis(0, 40);
        self.agent_after(delay, AgentEvent::FetchArrives { place, fetch, fetched });
    }

    fn fetch_arrives(&mut self, place: Place, fetch: u64, fetched: Fetched) {
        let largest = self.plan.max_frame_bytes - ENTRY_OVERHEAD;
        let Some(fetcher) = self.agent.fetchers.get_mut(&place).filter(|fetcher| fetcher.fetch == fetch) else {
            return;
        };
        fetcher.under_way = false;
        let (batches, high_watermark) = match fetched {
            Fetched::Failed(failure) => return self.fetch_failed(place, fetch, failure),
            Fetched::Batches { batches, high_watermark } => (batches, high_watermark),
        };
        let checked = |batch: &Batch| check_batch(place.1, batch, largest);
        let failure = batches.iter().find_map(|batch| checked(batch).err());
        let good: Vec<_> = batches.into_iter().take_while(|batch| checked(batch).is_ok()).collect();
        if let Some(last) = good.last() {
            fetcher.position = last.next_offset();
            fetcher.last_epoch = Some(last.leader_epoch());
            self.ghost.fetched(place, last.next_offset());
        }
        let idle = good.is_empty();
        let topic = source_topic(place.0);
        self.tell_agent(EdgeInput::Fetched { topic, partition: place.1, fetch, batches: good, high_watermark });
        self.check_edge_budget();
        if let Some(failure) = failure {
            return self.fetch_failed(place, fetch, failure);
        }
        let wait = if idle { self.dice.millis(50, 500) } else { Time::ZERO };
        self.fetch_on(place, wait);
    }

    fn fetch_failed(&mut self, place: Place, fetch: u64, failure: Failure) {
        let topic = source_topic(place.0);
        self.tell_agent(EdgeInput::FetchFailed { topic, fetch, failure });
    }

    /// The agent dies on the spot; everything in memory is gone.
    pub(crate) fn kill_agent(&mut self) {
        if !std::mem::replace(&mut self.agent.up, false) {
            return;
        }
        self.trace(|| "the agent is killed".to_owned());
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
            self.agent_after(Time::ZERO, AgentEvent::Dial);
        }
    }

    /// A producer at the source writes.
    pub(crate) fn append_at_source(&mut self, place: Place, odd: Option<OddBatch>) {
        let now_ms = self.wall_ms();
        let size = match odd {
            // Too large for both ends, or for the gateway only.
            Some(OddBatch::TooLargeForFrame) => {
                self.dice.between(self.plan.gateway_frame_bytes, self.plan.max_frame_bytes)
            }
            _ => self.plan.cloud_batch_bytes(place.0),
        };
        let (Some(source), Some(topic)) = (self.source.get_mut(&place), self.plan.topics.get(place.0)) else {
            return;
        };
        source.append(&mut self.dice, topic, now_ms, odd.map(|odd| (odd, size)));
        self.trace(|| format!("source: {place:?} grows, {odd:?}"));
    }

    /// Bytes of a batch as the gateway would send it, with the next sequence.
    pub(crate) fn stamped(batch: &Batch) -> Bytes {
        let sequence = i32::try_from(batch.base_offset() & i64::from(i32::MAX)).expect("masked");
        batch.stamped(tombolo_proto::batch::Stamp { producer_id: Self::producer_id(), sequence })
    }
}
