//! A gateway's connections to the brokers: what is written, under which lease, and what is read before.

mod fast_forward;
mod skip;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Time};
use tombolo_proto::limits::MAX_TAIL;
use tombolo_proto::mirror::{Outcome, Recovery, SkipOutcome};

use super::Session;
use crate::broker::{Intent, Refusal, Stored};
use crate::bugs::Bug;
use crate::cluster::{Answer, Request, What};
use crate::plan::CONNECTION_DEPTH;
use crate::properties::Rule;
use crate::world::{GatewayEvent, Place, Read, World};

use fast_forward::Fill;

/// Connections to one broker; partitions are spread over them, and markers have one of their own.
const LANES: usize = 2;
const ADMIN: usize = LANES;
/// Batches and markers that are read of a log's end: a tail holds fewer, but markers side by side are one gap of it.
const TAIL_BATCHES: usize = 3 * MAX_TAIL;
/// Reads of a log end that changes all the time, before it is given up for a while.
const MAX_READS: u32 = 5;

#[derive(Debug)]
struct BrokerConnection {
    id: u64,
    unsent: VecDeque<Request>,
    outstanding: VecDeque<Request>,
}

/// All connections of a process, and what it believes of the cluster.
#[derive(Debug, Default)]
pub(super) struct BrokerClient {
    connections: BTreeMap<(usize, usize), BrokerConnection>,
    leaders: BTreeMap<Place, usize>,
    /// After a connection died with batches unanswered.
    settle_until: BTreeMap<Place, Time>,
    /// After one died with markers unanswered: which nothing but time makes safe.
    markers_settle_until: BTreeMap<Place, Time>,
    pub(super) fills: BTreeMap<(u64, Place), Fill>,
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

    /// The connection its markers would take now.
    fn admin_of(&mut self, place: Place) -> Option<&mut BrokerConnection> {
        let leader = *self.leaders.get(&place)?;
        self.connections.get_mut(&(leader, ADMIN))
    }

    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.connections.values().flat_map(|connection| connection.unsent.iter().chain(&connection.outstanding))
    }

    /// Requests of a partition in flight, those not yet written among them.
    pub(super) fn in_flight(&self, place: Place) -> usize {
        self.requests().filter(|request| request.place == place).count()
    }

    /// Whether markers of a partition were sent and not answered.
    fn skips(&self, place: Place) -> bool {
        self.requests().any(|request| request.place == place && request.is_skip())
    }

    /// Whether any markers may still be appended.
    pub(super) fn skips_anywhere(&self, now: Time) -> bool {
        self.requests().any(Request::is_skip) || self.markers_settle_until.values().any(|&until| until > now)
    }
}

/// What a session hears of a batch or of markers.
fn told(request: &Request, outcome: Outcome) -> CloudInput {
    let (mirror, partition, ticket) = (MirrorId(request.mirror), request.place.1, request.ticket);
    if request.is_skip() {
        let outcome = match outcome {
            Outcome::Refused { reason } => SkipOutcome::Refused { reason },
            Outcome::Doubt { reason } => SkipOutcome::Doubt { reason },
            Outcome::Appended { base_offset } => SkipOutcome::Appended { log_end: base_offset },
            Outcome::Sequence => SkipOutcome::Doubt { reason: "a sequence".to_owned() },
        };
        CloudInput::Skipped { mirror, partition, ticket, outcome }
    } else {
        CloudInput::Produced { mirror, partition, ticket, outcome }
    }
}

fn doubt(reason: &str) -> Outcome {
    Outcome::Doubt { reason: reason.to_owned() }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Appended { base_offset } => Outcome::Appended { base_offset },
        Answer::Marked | Answer::Offsets { .. } => doubt("nothing of a batch"),
        Answer::NotLeader => doubt("NOT_LEADER_OR_FOLLOWER"),
        Answer::TimedOut => doubt("REQUEST_TIMED_OUT"),
        Answer::Refused(Refusal::NotEnoughReplicas) => doubt("NOT_ENOUGH_REPLICAS"),
        Answer::Refused(Refusal::OutOfOrderSequence) => Outcome::Sequence,
        // A newer term has written.
        Answer::Refused(Refusal::CoordinatorFenced) => doubt("TRANSACTION_COORDINATOR_FENCED"),
        Answer::Refused(
            refusal @ (Refusal::InvalidRecord
            | Refusal::CorruptMessage
            | Refusal::MessageTooLarge
            | Refusal::OffsetOutOfRange
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
            GatewayEvent::DeleteLeftFiller { read, log_end } => self.delete_left_filler(at, read, log_end),
            GatewayEvent::DeleteFiller { session, place } => self.delete_filler(at, (session, place)),
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
        let wrongly = self.plan.bug == Some(Bug::WrongWrap);
        let what = What::Batch(if wrongly { crate::bugs::wrongly_wrapped(&batch, offset) } else { batch });
        let request = Request { session: id, place, mirror: mirror.0, ticket, what, intent: Intent { term, offset } };
        let bug = self.plan.bug;
        if self.ghost.is_mismatched(id, place) {
            let text = format!("{place:?}: a batch for offset {offset} follows one that ended up elsewhere");
            self.ghost.violated(Rule::BaseOffset, text);
        }
        let early =
            (bug == Some(Bug::ConfirmBeforeAnswer)).then(|| told(&request, Outcome::Appended { base_offset: offset }));
        if let Err(request) = self.queue_request(at, session.verified.get(&place), request) {
            return Some(told(&request, doubt("the connection is another")));
        }
        early
    }

    /// Queues a request on the connection that stood when the log end was read; gives it back where that is another now.
    fn queue_request(&mut self, at: usize, verified: Option<&[u64; 2]>, request: Request) -> Result<(), Request> {
        let brokers = &mut self.gateway(at).brokers;
        let (is_skip, place) = (request.is_skip(), request.place);
        let (found, verified) = if is_skip {
            (brokers.admin_of(place), verified.map(|[_, admin]| *admin))
        } else {
            (brokers.of(place), verified.map(|[data, _]| *data))
        };
        let Some(connection) = found.filter(|connection| Some(connection.id) == verified) else {
            self.ghost.count("not sent on a new connection");
            return Err(request);
        };
        let id = connection.id;
        connection.unsent.push_back(request);
        let most = if self.dice.chance(100) { 60 } else { 3 };
        let wait = self.dice.millis(0, most);
        self.gateway_after(at, wait, GatewayEvent::Write { connection: id });
        Ok(())
    }

    /// The place where a request is written to a broker's socket.
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
            self.give_up(at, &request, "no lease");
        }
    }

    /// A request has no answer, and will get none.
    fn give_up(&mut self, at: usize, request: &Request, reason: &str) {
        if matches!(request.what, What::Filler(_)) {
            return self.end_fill(at, (request.session, request.place), Err(reason.to_owned()));
        }
        self.drive(at, request.session, told(request, doubt(reason)));
    }

    fn answered(&mut self, at: usize, connection: u64, (session, place, ticket): (u64, Place, u64), answer: Answer) {
        let brokers = &mut self.gateway(at).brokers;
        if answer == Answer::NotLeader {
            brokers.leaders.remove(&place);
        }
        let Some(found) = brokers.by_id(connection) else { return };
        let is_asked = |request: &Request| (request.session, request.place, request.ticket) == (session, place, ticket);
        let Some(request) =
            found.outstanding.iter().position(is_asked).and_then(|position| found.outstanding.remove(position))
        else {
            return;
        };
        match request.what {
            What::Batch(_) => self.batch_answered(at, &request, answer),
            What::Filler(_) => self.filler_answered(at, &request, answer),
            What::Markers { count } => self.markers_answered(at, connection, request, count, answer),
            What::Look => self.looked_behind_markers(at, &request, answer),
        }
        self.write(at, connection);
    }

    fn batch_answered(&mut self, at: usize, request: &Request, answer: Answer) {
        let (session, place) = (request.session, request.place);
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
        self.drive(at, session, told(request, outcome));
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
            if request.is_skip() {
                brokers.markers_settle_until.insert(request.place, settled);
            }
        }
        let (sent, unsent) = (lost.outstanding, lost.unsent);
        for request in sent {
            if !self.resends(at, &request) {
                self.give_up(at, &request, "the connection died");
            }
        }
        for request in unsent {
            self.give_up(at, &request, "the connection died");
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
        let markers_settled = gateway.brokers.markers_settle_until.get(&place).copied().unwrap_or_default();
        if (settled > now && careful) || markers_settled > now {
            let until = if careful { settled.max(markers_settled) } else { markers_settled };
            let for_markers = markers_settled > now;
            let what =
                if for_markers { "waited for markers in doubt" } else { "waited for a dead connection's requests" };
            self.ghost.count(what);
            self.gateway_after(at, until.saturating_sub(now), GatewayEvent::ReadLogEnd { read });
            return;
        }
        if (careful && gateway.brokers.in_flight(place) > 0) || gateway.brokers.skips(place) {
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
        // Filler that a fast-forward left behind goes before anything is told of the log.
        let is_filler = hosted.log.batches().last().is_some_and(Stored::is_filler);
        if is_filler && self.plan.bug != Some(Bug::FillerLeft) {
            let wait = self.broker_delay();
            return self.gateway_after(at, wait, GatewayEvent::DeleteLeftFiller { read, log_end });
        }
        let recovery = Recovery {
            log_start: hosted.log.log_start(),
            log_end,
            starting: self.registry.starting(place),
            last_sequence,
            tail: hosted.log.tail(TAIL_BATCHES),
        };
        let verified = [lane(place), ADMIN].map(|lane| self.connect(at, process, (leader, lane)));
        self.gateway(at).brokers.leaders.insert(place, leader);
        if let Some(session) = self.session(at, read.session) {
            session.verified.insert(place, verified);
        }
        self.recovered(at, read, Ok(recovery));
    }

    /// The connection to a broker, made where there is none.
    fn connect(&mut self, at: usize, process: u64, key: (usize, usize)) -> u64 {
        if let Some(found) = self.gateway(at).brokers.connections.get(&key) {
            return found.id;
        }
        let id = self.cluster.connect(at, process, key.0);
        let connection = BrokerConnection { id, unsent: VecDeque::new(), outstanding: VecDeque::new() };
        self.gateway(at).brokers.connections.insert(key, connection);
        id
    }

    fn delete_left_filler(&mut self, at: usize, read: Read, log_end: Offset) {
        let now = self.now;
        let permitted = self.permits(at, read.session, now);
        if permitted && self.delete_records(read.place, log_end) {
            self.ghost.count("fast-forward killed half way");
        }
        self.gateway_after(at, Time::ZERO, GatewayEvent::ReadLogEnd { read });
    }

    /// Whether a session's lease permits writing.
    pub(super) fn permits(&mut self, at: usize, session: u64, now: Time) -> bool {
        let lease = self.session(at, session).and_then(|session| session.lease.as_ref());
        lease.is_some_and(|lease| lease.permits(now).is_ok())
    }
}
