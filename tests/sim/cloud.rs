//! The gateways: two processes that serve the same link, each a shell around the shipped `CloudLink` and `Lease`.
//!
//! What the shell itself must keep to, for compare-and-append to hold:
//! - every write to a broker is preceded by a look at the lease;
//! - a log end is read when nothing of the partition is in flight in this process, and, after a connection died with
//!   requests unanswered, not before the settle time is over;
//! - the first Produce on a connection other than the one that stood when the log end was read is not sent: it is in doubt;
//! - a session that takes over from a session of the same process inherits that one's `write_after`, and waits the settle
//!   time where that one had markers in flight;
//! - after a connection died with markers unanswered, a log end is not read before the settle time is over;
//! - the end that markers are told to have reached is behind the high watermark.

mod broker_client;
mod registry;

pub(crate) use registry::{Entry, Reason, Registry, ToLedger};

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tombolo_proto::cloud::{
    CloudConfig, CloudEvent, CloudInput, CloudLink, CloudOutput, LinkSettings, LogStart, MirrorSettings,
};
use tombolo_proto::frame::{Entry as FrameEntry, Frame, FrameError, FrameHeader, FrameLimits, HEADER_BYTES};
use tombolo_proto::id::{LinkName, MirrorId, Offset, Time};
use tombolo_proto::lease::Lease;
use tombolo_proto::pattern::TopicPattern;
use tombolo_proto::wire::{CloseCode, CloudBody, CloudMessage, ControlDecoder, EdgeMessage, encode};

use crate::carrier::Flow;
use crate::properties::Rule;
use crate::world::{FILTER, GatewayEvent, Place, Read, World, mirror_topic, source_topic, topic_number};

use broker_client::BrokerClient;

/// A gateway process, or the place where one runs.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Unique for every process that ever ran; 0 while none does.
    pub(crate) process: u64,
    pub(crate) paused: bool,
    deferred: Vec<GatewayEvent>,
    sessions: BTreeMap<u64, Session>,
    brokers: BrokerClient,
    /// From when the newest term of this process may write.
    write_after: Time,
}

#[derive(Debug)]
struct Session {
    connection: u64,
    link: CloudLink,
    control: ControlDecoder,
    frames: FrameReader,
    lease: Option<Lease>,
    /// Topics by their mirror's number in this session.
    topics: Vec<usize>,
    timer: Option<Time>,
    /// The connections that stood when a partition's log end was read: for its batches, and for its markers.
    verified: BTreeMap<Place, [u64; 2]>,
    /// Stretches without records that came over the link.
    gaps: BTreeMap<Place, Vec<(Offset, Offset)>>,
}

/// Cuts a data stream into frames.
#[derive(Debug, Default)]
struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    fn next_frame(&mut self, limits: FrameLimits) -> Result<Option<Frame>, FrameError> {
        let Some(Ok(head)) = self.buffer.get(..HEADER_BYTES).map(<[u8; HEADER_BYTES]>::try_from) else {
            return Ok(None);
        };
        let header = FrameHeader::decode(&head, limits)?;
        if self.buffer.len() < HEADER_BYTES + header.body_bytes {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let body = self.buffer.split_to(header.body_bytes).freeze();
        header.decode_body(body).map(Some)
    }
}

impl Session {
    fn note_gaps(&mut self, frame: &Frame) {
        let Some(&topic) = self.topics.get(frame.mirror.0 as usize) else { return };
        let gaps = frame.entries.iter().filter(|entry| matches!(entry, FrameEntry::Gap { .. }));
        let stretches = gaps.map(|gap| (gap.offset(), gap.next_offset()));
        self.gaps.entry((topic, frame.partition)).or_default().extend(stretches);
    }
}

impl Gateway {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            process: u64::try_from(number).expect("small") + 1,
            paused: false,
            deferred: Vec::new(),
            sessions: BTreeMap::new(),
            brokers: BrokerClient::default(),
            write_after: Time::ZERO,
        }
    }

    /// Whether an open session holds the mirror FAILED.
    pub(crate) fn holds_failed(&self, topic: usize) -> bool {
        let name = mirror_topic(topic);
        self.sessions.values().any(|session| {
            let mirrors = session.link.status().mirrors;
            mirrors.iter().any(|mirror| mirror.topic == name && mirror.state.name() == "FAILED")
        })
    }

    /// Whether several batches of a partition are in flight.
    pub(crate) fn pipelines(&self, place: Place) -> bool {
        self.brokers.in_flight(place) > 1
    }

    /// Where the gap ends that a session was told of and has yet to skip from `offset` on.
    pub(crate) fn gap_end(&self, session: u64, place: Place, offset: Offset) -> Option<Offset> {
        let gaps = self.sessions.get(&session)?.gaps.get(&place)?;
        Some(gaps.iter().fold(offset, |end, &(from, to)| if from <= end { end.max(to) } else { end }))
    }

    /// Whether batches of a partition are in flight.
    pub(crate) fn has_in_flight(&self, place: Place) -> bool {
        self.brokers.in_flight(place) > 0
    }

    pub(crate) fn describe(&self) -> String {
        let session = |(id, session): (&u64, &Session)| format!("session {id}: {:?}", session.link.status());
        self.sessions.iter().map(session).collect::<Vec<_>>().join("; ")
    }
}

impl World {
    pub(crate) fn on_gateway(&mut self, at: usize, process: u64, event: GatewayEvent) {
        let Some(gateway) = self.gateways.get_mut(at).filter(|gateway| gateway.process == process) else {
            return;
        };
        if gateway.paused {
            gateway.deferred.push(event);
            return;
        }
        match event {
            GatewayEvent::Accepted { connection } => self.accept(at, connection),
            GatewayEvent::Stream { connection, flow } => self.gateway_receives(at, connection, flow),
            GatewayEvent::LinkLost { connection } => {
                if let Some(link) = self.carrier.connection(connection) {
                    link.gateway_up = false;
                }
                self.gateway(at).sessions.retain(|_, session| session.connection != connection);
            }
            GatewayEvent::Timer { session } => {
                if let Some(open) = self.gateway(at).sessions.get_mut(&session) {
                    open.timer = None;
                    self.drive(at, session, CloudInput::Timeout);
                }
            }
            GatewayEvent::Settings => {
                let link = self.link_settings();
                for session in self.session_ids(at) {
                    self.drive(at, session, CloudInput::Mirrors(link.clone()));
                }
            }
            GatewayEvent::TopicReady { session, mirror, partitions } => {
                self.topic_ready(at, session, mirror, partitions);
            }
            GatewayEvent::ReadRegistry { .. }
            | GatewayEvent::AppendTerm { .. }
            | GatewayEvent::Claimed { .. }
            | GatewayEvent::Look { .. }
            | GatewayEvent::LookRead { .. }
            | GatewayEvent::Looked { .. }
            | GatewayEvent::WriteLedger(_) => self.on_registry(at, process, event),
            GatewayEvent::ReadLogEnd { .. }
            | GatewayEvent::ReadProducers { .. }
            | GatewayEvent::ReadTail { .. }
            | GatewayEvent::DeleteLeftFiller { .. }
            | GatewayEvent::DeleteFiller { .. }
            | GatewayEvent::Write { .. }
            | GatewayEvent::Answered { .. }
            | GatewayEvent::BrokerLost { .. } => self.on_broker_client(at, process, event),
        }
    }

    fn gateway(&mut self, at: usize) -> &mut Gateway {
        self.gateways.get_mut(at).expect("two gateways")
    }

    fn session(&mut self, at: usize, session: u64) -> Option<&mut Session> {
        self.gateway(at).sessions.get_mut(&session)
    }

    fn session_ids(&mut self, at: usize) -> Vec<u64> {
        self.gateway(at).sessions.keys().copied().collect()
    }

    /// An event of this gateway's process, a while from now.
    fn gateway_after(&mut self, at: usize, wait: Time, event: GatewayEvent) {
        let process = self.gateway(at).process;
        self.after(wait, crate::world::Event::Gateway(at, process, event));
    }

    pub(crate) fn link_settings(&self) -> LinkSettings {
        let known = self.wanted.iter().enumerate().filter(|(_, wanted)| wanted.known);
        let mirrors = known.map(|(topic, wanted)| MirrorSettings {
            source: source_topic(topic),
            topic: mirror_topic(topic),
            paused: wanted.paused,
            max_gap: self.plan.max_gap,
            on_loss: self.plan.on_loss,
            log_start: LogStart::Keep,
        });
        let filters = vec![TopicPattern::new(FILTER).expect("a pattern")];
        let (max_gap, on_loss) = (self.plan.max_gap, self.plan.on_loss);
        let (reserved, log_start) = (Arc::default(), LogStart::Keep);
        LinkSettings { mirrors: mirrors.collect(), filters, reserved, max_gap, on_loss, log_start }
    }

    /// The id under which the link writes.
    pub(crate) fn producer_id() -> i64 {
        LinkName::new("sim").expect("a legal name").producer_id()
    }

    fn accept(&mut self, at: usize, connection: u64) {
        let id = self.serial();
        let config = CloudConfig {
            producer_id: Self::producer_id(),
            software: "sim".to_owned(),
            credit_bytes: self.plan.credit_bytes,
            max_frame_bytes: self.plan.gateway_frame_bytes,
            link: self.link_settings(),
        };
        let session = Session {
            connection,
            link: CloudLink::new(config),
            control: ControlDecoder::default(),
            frames: FrameReader::default(),
            lease: None,
            topics: Vec::new(),
            timer: None,
            verified: BTreeMap::new(),
            gaps: BTreeMap::new(),
        };
        self.gateway(at).sessions.insert(id, session);
    }

    fn gateway_receives(&mut self, at: usize, connection: u64, flow: Flow) {
        let chunks = self.arrived(connection, flow);
        let found = self.gateway(at).sessions.iter().find(|(_, session)| session.connection == connection);
        let Some(id) = found.map(|(&id, _)| id) else { return };
        for chunk in chunks {
            for input in self.decode(at, id, flow, &chunk) {
                self.drive(at, id, input);
            }
        }
        if flow == Flow::AgentData {
            self.link_took_bytes(connection);
        }
    }

    fn decode(&mut self, at: usize, id: u64, flow: Flow, chunk: &[u8]) -> Vec<CloudInput> {
        let limits = FrameLimits { max_bytes: self.plan.gateway_frame_bytes };
        let mut inputs = Vec::new();
        let Some(session) = self.session(at, id) else { return inputs };
        let mut broken = None;
        if flow == Flow::AgentControl {
            session.control.push(chunk);
            loop {
                match session.control.next_message::<EdgeMessage>() {
                    Ok(Some(message)) => inputs.push(CloudInput::Message(message)),
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(error.to_string());
                        break;
                    }
                }
            }
        } else {
            session.frames.buffer.extend_from_slice(chunk);
            loop {
                match session.frames.next_frame(limits) {
                    Ok(Some(frame)) => {
                        session.note_gaps(&frame);
                        inputs.push(CloudInput::Frame(frame));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(error.to_string());
                        break;
                    }
                }
            }
        }
        inputs.extend(broken.map(|reason| CloudInput::Breach { reason }));
        inputs
    }

    /// Gives a session an input and does what it asks for, and what follows from that.
    fn drive(&mut self, at: usize, id: u64, input: CloudInput) {
        let Some(mut session) = self.gateway(at).sessions.remove(&id) else {
            return;
        };
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            session.link.handle(input, self.now);
            while let Some(output) = session.link.poll_output() {
                self.act(at, id, &mut session, output, &mut inputs);
            }
        }
        self.check_cloud_budget(session.link.status().held_bytes);
        if session.link.is_closed() {
            return;
        }
        let due = session.link.next_timeout().map(|(due, _)| due);
        if let Some(due) = due
            && session.timer.is_none_or(|timer| due < timer)
        {
            session.timer = Some(due);
            let wait = due.saturating_sub(self.now);
            self.gateway_after(at, wait, GatewayEvent::Timer { session: id });
        }
        self.gateway(at).sessions.insert(id, session);
    }

    fn act(
        &mut self,
        at: usize,
        id: u64,
        session: &mut Session,
        output: CloudOutput,
        inputs: &mut VecDeque<CloudInput>,
    ) {
        match output {
            CloudOutput::Send(message) => self.gateway_sends(session, &message),
            // That one agent process replaces another is the registry's, which is modelled here without.
            CloudOutput::Claim { .. } => {
                let wait = self.registry_delay();
                self.gateway_after(at, wait, GatewayEvent::ReadRegistry { session: id, tries: 0 });
            }
            CloudOutput::PrepareTopic { mirror, partitions, .. } => {
                let wait = self.dice.millis(1, 200);
                let event = GatewayEvent::TopicReady { session: id, mirror: mirror.0, partitions };
                self.gateway_after(at, wait, event);
            }
            CloudOutput::Recover { mirror, topic, partition, attempt } => {
                let read =
                    Read { session: id, mirror: mirror.0, place: (topic_number(&topic), partition), attempt, tries: 0 };
                let wait = self.broker_delay();
                self.gateway_after(at, wait, GatewayEvent::ReadLogEnd { read });
            }
            CloudOutput::Produce { mirror, topic, partition, ticket, offset, batch } => {
                let place = (topic_number(&topic), partition);
                let early = self.produce_for(at, id, session, (mirror, place), (ticket, offset), batch);
                inputs.extend(early);
            }
            CloudOutput::Skip { mirror, topic, partition, ticket, offset, count } => {
                let place = (topic_number(&topic), partition);
                let early = self.skip_for(at, id, session, (mirror, place), (ticket, offset), count);
                inputs.extend(early);
            }
            CloudOutput::FastForward { mirror, topic, partition, ticket, from, to } => {
                let entry = Entry { reason: Reason::Start, from, to };
                self.tell_ledger(at, (id, mirror), (topic_number(&topic), partition), ticket, entry);
            }
            CloudOutput::RecordLoss { mirror, topic, partition, ticket, from, to } => {
                let entry = Entry { reason: Reason::Loss, from, to };
                self.tell_ledger(at, (id, mirror), (topic_number(&topic), partition), ticket, entry);
            }
            CloudOutput::DeleteBefore { topic, partition, offset, .. } => {
                let what = format!("{topic} partition {partition} keeps its records, and is to begin at {offset}");
                self.ghost.violated(Rule::Protocol, what);
            }
            CloudOutput::Event(event) => self.cloud_event(id, &event),
            CloudOutput::Close { code, reason } => {
                self.trace(|| format!("gateway {at}: session {id} closes: {code:?} {reason}"));
                if code == CloseCode::Protocol {
                    self.ghost.violated(Rule::Protocol, format!("the gateway closes: {reason}"));
                }
                self.close_link(session.connection, true);
            }
        }
    }

    fn tell_ledger(&mut self, at: usize, (session, mirror): (u64, MirrorId), place: Place, ticket: u64, entry: Entry) {
        let line = ToLedger { session, mirror: mirror.0, place, ticket, entry };
        let wait = self.registry_delay();
        self.gateway_after(at, wait, GatewayEvent::WriteLedger(line));
    }

    fn cloud_event(&mut self, session: u64, event: &CloudEvent) {
        self.trace(|| format!("session {session}: {event:?}"));
        match event {
            CloudEvent::MirrorFailed { topic, failure, told_by_agent: false } => {
                self.failed(topic_number(topic), failure);
            }
            CloudEvent::Rewound { .. } => self.ghost.count("rewound"),
            CloudEvent::Unverified { .. } => self.ghost.count("unverified"),
            CloudEvent::Started { .. } => self.ghost.count("started where the source does"),
            CloudEvent::LossSkipped { .. } => self.ghost.count("loss skipped"),
            CloudEvent::MirrorDiscovered { .. } => self.ghost.count("mirror made by a filter"),
            CloudEvent::MirrorPassedOver { topic, reason } => {
                self.ghost.violated(Rule::Protocol, format!("{topic} passed over: {reason}"));
            }
            CloudEvent::MirrorFailed { .. }
            | CloudEvent::NotDeleted { .. }
            | CloudEvent::SourceUnavailable { .. }
            | CloudEvent::MirrorActive { .. } => {}
        }
    }

    fn gateway_sends(&mut self, session: &mut Session, message: &CloudMessage) {
        self.trace(|| format!("to agent on {}: {message:?}", session.connection));
        match &message.body {
            Some(CloudBody::Mirror(mirror)) if session.topics.len() == mirror.mirror as usize => {
                let name = tombolo_proto::id::TopicName::new(&mirror.topic).expect("a legal name");
                session.topics.push(topic_number(&name));
            }
            Some(CloudBody::Position(position)) => {
                if let Some(&topic) = session.topics.get(position.mirror as usize) {
                    self.judge_position((topic, position.partition));
                    self.ghost.told((topic, position.partition), position.next_offset);
                }
            }
            Some(CloudBody::Confirm(confirmed)) => {
                for entry in &confirmed.entries {
                    if let Some(&topic) = session.topics.get(entry.mirror as usize) {
                        self.confirms((topic, entry.partition), entry.offset);
                    }
                }
            }
            _ => {}
        }
        self.send(session.connection, Flow::GatewayControl, encode(message));
    }

    fn topic_ready(&mut self, at: usize, id: u64, mirror: u32, partitions: i32) {
        let now = self.now;
        let Some(session) = self.session(at, id) else { return };
        let permitted = session.lease.as_ref().is_some_and(|lease| lease.permits(now).is_ok());
        let mirror = MirrorId(mirror);
        if permitted && !self.dice.chance(100) {
            self.drive(at, id, CloudInput::TopicReady { mirror, partitions });
            return;
        }
        let reason = "no controller, or no lease".to_owned();
        self.drive(at, id, CloudInput::TopicUnavailable { mirror, reason });
        let wait = self.dice.millis(50, 500);
        let event = GatewayEvent::TopicReady { session: id, mirror: mirror.0, partitions };
        self.gateway_after(at, wait, event);
    }

    /// A gateway dies on the spot.
    pub(crate) fn kill_gateway(&mut self, at: usize) {
        if self.gateway(at).process == 0 {
            return;
        }
        self.trace(|| format!("gateway {at} is killed"));
        for connection in self.cluster.connections_of(at) {
            self.cut_broker(connection, true);
        }
        for id in self.carrier.ids() {
            let Some(link) = self.carrier.connection(id) else { continue };
            if link.gateway == at && link.gateway_up {
                link.gateway_up = false;
                link.broken = true;
                let (low, high) = if self.dice.chance(500) { (10, 100) } else { (1_000, 5_000) };
                let seen = self.dice.millis(low, high);
                self.agent_loses(id, seen);
            }
        }
        *self.gateway(at) = Gateway::new(at);
        self.gateway(at).process = 0;
        let down = self.dice.millis(100, 6_000);
        self.after(down, crate::world::Event::GatewayStart(at));
    }

    pub(crate) fn start_gateway(&mut self, at: usize) {
        let process = self.serial() + 2;
        let gateway = self.gateway(at);
        if gateway.process == 0 {
            *gateway = Gateway::new(at);
            gateway.process = process;
        }
    }

    /// SIGCONT: what waited happens now, in the order in which it came.
    pub(crate) fn continue_gateway(&mut self, at: usize) {
        let gateway = self.gateway(at);
        if !std::mem::take(&mut gateway.paused) {
            return;
        }
        let (process, deferred) = (gateway.process, std::mem::take(&mut gateway.deferred));
        self.trace(|| format!("gateway {at} goes on"));
        for event in deferred {
            self.on_gateway(at, process, event);
        }
    }
}
