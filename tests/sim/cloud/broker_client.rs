//! A gateway's connections to the brokers: what is written, under which lease, and what is read before.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Time};
use tombolo_proto::limits::MAX_TAIL;
use tombolo_proto::mirror::{Outcome, Recovery};

use super::Session;
use crate::broker::{Intent, Refusal};
use crate::bugs::Bug;
use crate::cluster::{Answer, ProduceRequest};
use crate::plan::CONNECTION_DEPTH;
use crate::properties::Rule;
use crate::world::{GatewayEvent, Place, Read, World};

/// Connections to one broker; partitions are spread over them.
const LANES: usize = 2;
/// Reads of a log end that changes all the time, before it is given up for a while.
const MAX_READS: u32 = 5;

#[derive(Debug)]
struct BrokerConnection {
    id: u64,
    unsent: VecDeque<ProduceRequest>,
    outstanding: VecDeque<ProduceRequest>,
}

/// All connections of a process, and what it believes of the cluster.
#[derive(Debug, Default)]
pub(super) struct BrokerClient {
    connections: BTreeMap<(usize, usize), BrokerConnection>,
    leaders: BTreeMap<Place, usize>,
    settle_until: BTreeMap<Place, Time>,
}

fn lane(place: Place) -> usize {
    (place.0 + usize::try_from(place.1).expect("not negative")) % LANES
}

impl BrokerClient {
    fn by_id(&mut self, id: u64) -> Option<&mut BrokerConnection> {
        self.connections.values_mut().find(|connection| connection.id == id)
    }

    /// The connection a partition's batches would take now.
    fn of(&mut self, place: Place) -> Option<&mut BrokerConnection> {
        let leader = *self.leaders.get(&place)?;
        self.connections.get_mut(&(leader, lane(place)))
    }

    /// Batches of a partition in flight, those not yet written among them.
    pub(super) fn in_flight(&self, place: Place) -> usize {
        let requests =
            self.connections.values().flat_map(|connection| connection.unsent.iter().chain(&connection.outstanding));
        requests.filter(|request| request.place == place).count()
    }
}

fn produced(request: &ProduceRequest, outcome: Outcome) -> CloudInput {
    CloudInput::Produced {
        mirror: MirrorId(request.mirror),
        partition: request.place.1,
        ticket: request.ticket,
        outcome,
    }
}

fn doubt(reason: &str) -> Outcome {
    Outcome::Doubt { reason: reason.to_owned() }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Appended { base_offset } => Outcome::Appended { base_offset },
        Answer::NotLeader => doubt("NOT_LEADER_OR_FOLLOWER"),
        Answer::TimedOut => doubt("REQUEST_TIMED_OUT"),
        Answer::Refused(Refusal::NotEnoughReplicas) => doubt("NOT_ENOUGH_REPLICAS"),
        Answer::Refused(Refusal::OutOfOrderSequence) => Outcome::Sequence,
        Answer::Refused(
            refusal @ (Refusal::InvalidRecord
            | Refusal::CorruptMessage
            | Refusal::MessageTooLarge
            | Refusal::InvalidProducerEpoch),
        ) => Outcome::Refused { reason: format!("{refusal:?}") },
    }
}

impl World {
    pub(super) fn broker_delay(&mut self) -> Time {
        self.dice.millis(0, self.plan.broker_delay)
    }

    pub(super) fn on_broker_client(&mut self, at: usize, process: u64, event: GatewayEvent) {
        match event {
            GatewayEvent::ReadLogEnd { read } => self.read_log_end(at, read),
            GatewayEvent::ReadProducers { read, log_end, epoch } => self.read_producers(at, read, log_end, epoch),
            GatewayEvent::ReadTail { read, log_end, epoch, last_sequence } => {
                self.read_tail(at, process, read, (log_end, epoch), last_sequence);
            }
            GatewayEvent::Write { connection } => self.write(at, connection),
            GatewayEvent::Answered { connection, session, place, ticket, answer } => {
                self.answered(at, connection, (session, place, ticket), answer);
            }
            GatewayEvent::BrokerLost { connection } => self.broker_lost(at, connection),
            _ => {}
        }
    }

    /// Queues a batch for its leader. Returns what the session has to hear at once.
    pub(super) fn produce_for(
        &mut self,
        at: usize,
        id: u64,
        session: &Session,
        (mirror, place): (MirrorId, Place),
        (ticket, offset): (u64, Offset),
        batch: Bytes,
    ) -> Option<CloudInput> {
        let term = session.link.term()?;
        let mut request =
            ProduceRequest { session: id, place, mirror: mirror.0, ticket, batch, intent: Intent { term, offset } };
        let bug = self.plan.bug;
        if bug == Some(Bug::WrongWrap) {
            request.batch = crate::bugs::wrongly_wrapped(&request.batch, offset);
        }
        if self.ghost.is_mismatched(id, place) {
            let text = format!("{place:?}: a batch for offset {offset} follows one that ended up elsewhere");
            self.ghost.violated(Rule::BaseOffset, text);
        }
        let verified = session.verified.get(&place).copied();
        let now = self.gateway(at).brokers.of(place);
        let Some(connection) = now.filter(|connection| Some(connection.id) == verified) else {
            self.ghost.count("not sent on a new connection");
            return Some(produced(&request, doubt("the connection is another")));
        };
        let connection_id = connection.id;
        let early = (bug == Some(Bug::ConfirmBeforeAnswer))
            .then(|| produced(&request, Outcome::Appended { base_offset: offset }));
        connection.unsent.push_back(request);
        let most = if self.dice.chance(100) { 60 } else { 3 };
        let wait = self.dice.millis(0, most);
        let event = GatewayEvent::Write { connection: connection_id };
        self.gateway_after(at, wait, event);
        early
    }

    /// The place where a batch is written to a broker's socket.
    fn write(&mut self, at: usize, connection: u64) {
        let now = self.now;
        let ignores_lease = self.plan.bug == Some(Bug::IgnoreLease);
        loop {
            let gateway = self.gateway(at);
            let Some(found) = gateway.brokers.by_id(connection) else {
                return;
            };
            if found.outstanding.len() >= CONNECTION_DEPTH {
                return;
            }
            let Some(request) = found.unsent.pop_front() else {
                return;
            };
            let Some(session) = gateway.sessions.get(&request.session) else {
                continue;
            };
            let permitted = session.lease.as_ref().is_some_and(|lease| lease.permits(now).is_ok());
            if permitted || ignores_lease {
                found.outstanding.push_back(request.clone());
                self.send_to_broker(connection, request);
                continue;
            }
            self.ghost.count("lease refused");
            self.drive(at, request.session, produced(&request, doubt("no lease")));
        }
    }

    fn answered(&mut self, at: usize, connection: u64, (session, place, ticket): (u64, Place, u64), answer: Answer) {
        let brokers = &mut self.gateway(at).brokers;
        if answer == Answer::NotLeader {
            brokers.leaders.remove(&place);
        }
        let Some(found) = brokers.by_id(connection) else { return };
        let is_asked =
            |request: &ProduceRequest| (request.session, request.place, request.ticket) == (session, place, ticket);
        let Some(request) =
            found.outstanding.iter().position(is_asked).and_then(|position| found.outstanding.remove(position))
        else {
            return;
        };
        let mut outcome = outcome(answer);
        if let Outcome::Appended { base_offset } = outcome
            && base_offset != request.intent.offset
        {
            self.ghost.mismatched(session, place);
            if self.plan.bug == Some(Bug::TrustAnyBaseOffset) {
                outcome = Outcome::Appended { base_offset: request.intent.offset };
            }
        }
        self.trace(|| format!("session {session}: {place:?} {:?}: {outcome:?}", request.intent));
        self.drive(at, session, produced(&request, outcome));
        self.write(at, connection);
    }

    fn broker_lost(&mut self, at: usize, connection: u64) {
        let settled = self.now + self.plan.settle;
        let brokers = &mut self.gateway(at).brokers;
        let key = brokers.connections.iter().find(|(_, found)| found.id == connection).map(|(&key, _)| key);
        let Some(lost) = key.and_then(|key| brokers.connections.remove(&key)) else {
            return;
        };
        for request in &lost.outstanding {
            brokers.settle_until.insert(request.place, settled);
        }
        for request in lost.outstanding.into_iter().chain(lost.unsent) {
            self.drive(at, request.session, produced(&request, doubt("the connection died")));
        }
    }

    fn recovered(&mut self, at: usize, read: Read, result: Result<Recovery, String>) {
        self.trace(|| format!("session {}: {:?} recovered: {result:?}", read.session, read.place));
        let input = CloudInput::Recovered {
            mirror: MirrorId(read.mirror),
            partition: read.place.1,
            attempt: read.attempt,
            result,
        };
        self.drive(at, read.session, input);
    }

    fn read_log_end(&mut self, at: usize, read: Read) {
        let (now, careful) = (self.now, self.plan.careful);
        let place = read.place;
        let gateway = self.gateway(at);
        let Some(session) = gateway.sessions.get(&read.session) else {
            return;
        };
        let permitted = session.lease.as_ref().is_some_and(|lease| lease.permits(now).is_ok());
        let settled = gateway.brokers.settle_until.get(&place).copied().unwrap_or_default();
        if settled > now && careful {
            self.ghost.count("waited for a dead connection's requests");
            self.gateway_after(at, settled.saturating_sub(now), GatewayEvent::ReadLogEnd { read });
            return;
        }
        if careful && gateway.brokers.in_flight(place) > 0 {
            self.gateway_after(at, Time::from_millis(20), GatewayEvent::ReadLogEnd { read });
            return;
        }
        if !permitted {
            self.recovered(at, read, Err("no lease".to_owned()));
            return;
        }
        let fails = now < self.reads_fail_until && self.dice.chance(500);
        let hosted = self.cluster.partitions.get(&place).filter(|hosted| hosted.leader.is_some());
        let Some(hosted) = hosted.filter(|_| !fails) else {
            self.recovered(at, read, Err("no leader".to_owned()));
            return;
        };
        let (log_end, epoch) = (hosted.log.log_end(), hosted.epoch);
        let wait = self.broker_delay();
        self.gateway_after(at, wait, GatewayEvent::ReadProducers { read, log_end, epoch });
    }

    fn read_producers(&mut self, at: usize, read: Read, log_end: Offset, epoch: i32) {
        let Some(hosted) = self.cluster.partitions.get(&read.place) else {
            return;
        };
        let event = GatewayEvent::ReadTail {
            read,
            log_end,
            epoch,
            last_sequence: hosted.log.last_sequence(Self::producer_id()),
        };
        let wait = self.broker_delay();
        self.gateway_after(at, wait, event);
    }

    fn read_tail(
        &mut self,
        at: usize,
        process: u64,
        mut read: Read,
        (log_end, epoch): (Offset, i32),
        last_sequence: Option<i32>,
    ) {
        let place = read.place;
        let Some(hosted) = self.cluster.partitions.get(&place) else {
            return;
        };
        let Some(leader) = hosted.leader.filter(|_| hosted.epoch == epoch) else {
            self.recovered(at, read, Err("the leader changed".to_owned()));
            return;
        };
        let settled = hosted.log.log_end() == log_end && hosted.log.high_watermark() == log_end;
        if !settled {
            read.tries += 1;
            if read.tries == MAX_READS {
                self.recovered(at, read, Err("the high watermark stays behind".to_owned()));
                return;
            }
            let wait = self.dice.millis(50, 150);
            self.gateway_after(at, wait, GatewayEvent::ReadLogEnd { read });
            return;
        }
        let recovery = Recovery { log_end, last_sequence, tail: hosted.log.tail(MAX_TAIL) };
        let key = (leader, lane(place));
        let connected = self.gateway(at).brokers.connections.contains_key(&key);
        if !connected {
            let id = self.cluster.connect(at, process, leader);
            let connection = BrokerConnection { id, unsent: VecDeque::new(), outstanding: VecDeque::new() };
            self.gateway(at).brokers.connections.insert(key, connection);
        }
        let brokers = &mut self.gateway(at).brokers;
        brokers.leaders.insert(place, leader);
        let connection = brokers.of(place).map(|connection| connection.id);
        if let (Some(session), Some(connection)) = (self.session(at, read.session), connection) {
            session.verified.insert(place, connection);
        }
        self.recovered(at, read, Ok(recovery));
    }
}
