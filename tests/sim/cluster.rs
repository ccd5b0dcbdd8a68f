//! The cloud cluster around its partitions: leaders, replication, and connections that a broker works off one request
//! after another, answering in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tombolo_proto::id::{Offset, Time};

use crate::broker::{Coordinator, Intent, PartitionLog, Refusal};
use crate::plan::LATE_MS;
use crate::world::{Event, GatewayEvent, Place, World};

/// Brokers of the cloud cluster.
pub(crate) const BROKERS: usize = 3;

/// What a broker is asked for one partition.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) session: u64,
    pub(crate) place: Place,
    pub(crate) mirror: u32,
    pub(crate) ticket: u64,
    pub(crate) intent: Intent,
    pub(crate) what: What,
}

/// Kinds of requests.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// A Produce of one batch.
    Batch(Bytes),
    /// The same, of a fast-forward.
    Filler(Bytes),
    /// `WriteTxnMarkers` of the link's producer id.
    Markers { count: i64 },
    /// `ListOffsets` of log end and high watermark, behind such markers.
    Look,
}

impl Request {
    /// Whether it appends, or may have appended, markers: which nothing deduplicates.
    pub(crate) fn is_skip(&self) -> bool {
        matches!(self.what, What::Markers { .. } | What::Look)
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Appended {
        base_offset: Offset,
    },
    /// No error: which says nothing of how many markers there are, where more than one was asked for.
    Marked,
    Offsets {
        log_end: Offset,
        high_watermark: Offset,
    },
    NotLeader,
    TimedOut,
    Refused(Refusal),
}

/// What happens in the cluster.
#[derive(Debug, Clone)]
pub(crate) enum ClusterEvent {
    /// A request reaches its broker.
    Arrive {
        connection: u64,
        request: Request,
    },
    /// A request has waited long enough for the high watermark.
    TimedOut {
        connection: u64,
        serial: u64,
    },
    /// The broker looks at the next request of a connection.
    Next {
        connection: u64,
    },
    /// The followers have caught up to `end`, if the leader is still the same.
    Replicated {
        place: Place,
        epoch: i32,
        end: Offset,
    },
    /// A partition without a leader gets one.
    Elect {
        place: Place,
    },
    /// A fault is over.
    EnoughReplicas {
        place: Place,
    },
    ReplicasMove {
        place: Place,
    },
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    /// Once the high watermark is there.
    answer: Answer,
    end: Offset,
    serial: u64,
}

#[derive(Debug)]
struct Connection {
    gateway: usize,
    process: u64,
    broker: usize,
    queue: VecDeque<Request>,
    waiting: Option<Waiting>,
    /// The client is gone: this many more requests are applied, and nothing is answered.
    late: Option<usize>,
    late_from: Time,
    last_arrival: Time,
    last_answer: Time,
}

/// A partition and who leads it.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) log: PartitionLog,
    pub(crate) leader: Option<usize>,
    /// Who led last.
    pub(crate) before: Option<usize>,
    pub(crate) epoch: i32,
    /// The followers stand still.
    pub(crate) stalled: bool,
}

/// The cluster.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) partitions: BTreeMap<Place, Hosted>,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    /// Markers of a request whose connection died before it was looked at: one of them may come after all, by whatever way.
    strays: BTreeMap<Place, Intent>,
}

impl Cluster {
    pub(crate) fn connect(&mut self, gateway: usize, process: u64, broker: usize) -> u64 {
        self.next_id += 1;
        self.connections.insert(
            self.next_id,
            Connection {
                gateway,
                process,
                broker,
                queue: VecDeque::new(),
                waiting: None,
                late: None,
                late_from: Time::ZERO,
                last_arrival: Time::ZERO,
                last_answer: Time::ZERO,
            },
        );
        self.next_id
    }

    /// Connections whose client is still there: number, gateway, broker.
    pub(crate) fn live_connections(&self) -> Vec<(u64, usize, usize)> {
        let live = self.connections.iter().filter(|(_, connection)| connection.late.is_none());
        live.map(|(&id, connection)| (id, connection.gateway, connection.broker)).collect()
    }

    /// Whether a broker has a request for a partition still to answer or to apply.
    pub(crate) fn has_requests(&self, place: Place) -> bool {
        let requests = self.connections.values().flat_map(|connection| {
            connection.queue.iter().chain(connection.waiting.iter().map(|waiting| &waiting.request))
        });
        requests.into_iter().any(|request| request.place == place)
    }

    pub(crate) fn connections_of(&self, gateway: usize) -> Vec<u64> {
        let own = self.live_connections().into_iter().filter(|&(_, owner, _)| owner == gateway);
        own.map(|(id, _, _)| id).collect()
    }
}

impl World {
    /// Puts a request on the wire.
    pub(crate) fn send_to_broker(&mut self, id: u64, request: Request) {
        let delay = self.dice.millis(0, self.plan.broker_delay);
        let Some(connection) = self.cluster.connections.get_mut(&id) else {
            return;
        };
        connection.last_arrival = connection.last_arrival.max(self.now + delay);
        let at = connection.last_arrival;
        let event = ClusterEvent::Arrive { connection: id, request };
        self.at(at, Event::Cluster(event));
    }

    pub(crate) fn on_cluster(&mut self, event: ClusterEvent) {
        match event {
            ClusterEvent::Arrive { connection, request } => {
                if let Some(at) = self.cluster.connections.get_mut(&connection) {
                    at.queue.push_back(request);
                    self.work_off(connection);
                }
            }
            ClusterEvent::Next { connection } => self.work_off(connection),
            ClusterEvent::TimedOut { connection, serial } => {
                let waiting = self
                    .cluster
                    .connections
                    .get_mut(&connection)
                    .and_then(|at| at.waiting.take_if(|waiting| waiting.serial == serial));
                if let Some(waiting) = waiting {
                    self.ghost.count("produce timed out");
                    self.answer(connection, &waiting.request, Answer::TimedOut);
                    self.work_off(connection);
                }
            }
            ClusterEvent::Replicated { place, epoch, end } => {
                if let Some(hosted) = self.cluster.partitions.get_mut(&place)
                    && hosted.epoch == epoch
                    && !hosted.stalled
                {
                    hosted.log.replicated(end);
                    self.high_watermark_moved(place);
                }
            }
            ClusterEvent::Elect { place } => self.elect(place),
            ClusterEvent::EnoughReplicas { place } => {
                if let Some(hosted) = self.cluster.partitions.get_mut(&place) {
                    hosted.log.short_of_replicas = false;
                }
            }
            ClusterEvent::ReplicasMove { place } => {
                if let Some(hosted) = self.cluster.partitions.get_mut(&place) {
                    hosted.stalled = false;
                    self.replicate(place);
                }
            }
        }
    }

    /// Works off the next requests of a connection until one has to wait.
    /// Twin: `broker_takes_requests_of_one_connection_in_order`.
    fn work_off(&mut self, id: u64) {
        loop {
            let Some(connection) = self.cluster.connections.get_mut(&id) else {
                return;
            };
            if connection.waiting.is_some() || self.now < connection.late_from {
                return;
            }
            if connection.late == Some(0) {
                for lost in connection.queue.drain(..).filter(|lost| matches!(lost.what, What::Markers { .. })) {
                    self.cluster.strays.insert(lost.place, lost.intent);
                }
                return;
            }
            let Some(request) = connection.queue.pop_front() else {
                return;
            };
            if let Some(left) = &mut connection.late {
                *left -= 1;
                self.ghost.count(if request.is_skip() { "late markers applied" } else { "late request applied" });
            }
            let broker = connection.broker;
            if let Some(answer) = self.serve(id, broker, &request) {
                self.answer(id, &request, answer);
            }
        }
    }

    /// One request. `None` where the answer has to wait for the high watermark.
    fn serve(&mut self, connection: u64, broker: usize, request: &Request) -> Option<Answer> {
        let hosted = self.cluster.partitions.get(&request.place)?;
        // Twins: broker_refuses_writes_where_it_follows, broker_refuses_markers_for_a_partition_it_has_not.
        if hosted.leader != Some(broker) {
            self.ghost.count("not leader");
            return Some(Answer::NotLeader);
        }
        match &request.what {
            What::Batch(batch) | What::Filler(batch) => self.produce(connection, request, batch),
            What::Markers { count } => self.write_markers(connection, request, *count),
            What::Look => {
                let (log_end, high_watermark) = (hosted.log.log_end(), hosted.log.high_watermark());
                Some(Answer::Offsets { log_end, high_watermark })
            }
        }
    }

    /// `WriteTxnMarkers`. Each marker is appended on its own, and a failure of some may be hidden by the success of others:
    /// their results are merged into one (`KafkaApis.handleWriteTxnMarkersRequest`).
    /// Twin: `broker_appends_as_many_markers_as_one_request_holds`.
    fn write_markers(&mut self, connection: u64, request: &Request, count: i64) -> Option<Answer> {
        let (place, intent) = (request.place, request.intent);
        let half_done = count > 1 && self.healed.is_none() && self.dice.chance(30);
        let mut appended = if half_done { count / 2 } else { count };
        if self.a_stray_comes(request, count) {
            self.ghost.count("stray marker within the gap");
            appended += 1;
        }
        let by = Coordinator { producer_id: Self::producer_id(), epoch: Self::coordinator_epoch(intent.term) };
        let now_ms = self.wall_ms();
        for _ in 0..appended {
            let hosted = self.cluster.partitions.get_mut(&place)?;
            if let Err(refusal) = hosted.log.mark(by, now_ms, intent) {
                self.trace(|| format!("broker: {place:?} markers of {intent:?}: {refusal:?}"));
                self.ghost.refused(refusal);
                return Some(Answer::Refused(refusal));
            }
            self.appended(place, false);
        }
        self.trace(|| format!("broker: {place:?} {appended} markers of {count}, {intent:?}"));
        self.replicate(place);
        if half_done {
            self.ghost.count("markers half done");
            if self.dice.chance(500) {
                return Some(Answer::NotLeader);
            }
        }
        let end = self.cluster.partitions.get(&place)?.log.log_end();
        self.when_replicated(connection, request, Answer::Marked, end)
    }

    /// Whether a marker of a request that died comes at last, where that is known to be harmless: within a gap of which
    /// less is being written than is left.
    fn a_stray_comes(&mut self, request: &Request, count: i64) -> bool {
        let Some(stray) = self.cluster.strays.remove(&request.place) else { return false };
        let left = self.gap_left(request.session, request.place, request.intent.offset);
        stray == request.intent && left > count && self.dice.chance(500)
    }

    /// The answer, now or when the replicas in sync hold everything below `end`.
    fn when_replicated(&mut self, connection: u64, request: &Request, answer: Answer, end: Offset) -> Option<Answer> {
        if self.cluster.partitions.get(&request.place)?.log.high_watermark() >= end {
            return Some(answer);
        }
        let serial = self.serial();
        let at = self.cluster.connections.get_mut(&connection)?;
        at.waiting = Some(Waiting { request: request.clone(), answer, end, serial });
        let timed_out = ClusterEvent::TimedOut { connection, serial };
        self.after(self.plan.produce_timeout, Event::Cluster(timed_out));
        None
    }

    /// One Produce.
    fn produce(&mut self, connection: u64, request: &Request, batch: &Bytes) -> Option<Answer> {
        let place = request.place;
        let hosted = self.cluster.partitions.get_mut(&place)?;
        let accepted = match hosted.log.append(batch, Some(request.intent)) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                self.trace(|| format!("broker: {place:?} {:?}: {refusal:?}", request.intent));
                self.ghost.refused(refusal);
                return Some(Answer::Refused(refusal));
            }
        };
        self.trace(|| format!("broker: {place:?} {:?}: {accepted:?}", request.intent));
        if accepted.duplicate {
            self.ghost.count("duplicate answered");
        } else {
            if accepted.marker_only {
                self.ghost.count("marker-only producer entry");
            }
            self.appended(place, accepted.unknown_producer);
            self.replicate(place);
        }
        let answer = Answer::Appended { base_offset: accepted.base_offset };
        self.when_replicated(connection, request, answer, accepted.next_offset)
    }

    /// Lets the followers fetch what is new.
    pub(crate) fn replicate(&mut self, place: Place) {
        let delay = self.dice.millis(0, 30);
        let Some(hosted) = self.cluster.partitions.get(&place) else {
            return;
        };
        let event = ClusterEvent::Replicated { place, epoch: hosted.epoch, end: hosted.log.log_end() };
        self.after(delay, Event::Cluster(event));
    }

    fn high_watermark_moved(&mut self, place: Place) {
        self.watermark_moved(place);
        let Some(high_watermark) = self.cluster.partitions.get(&place).map(|hosted| hosted.log.high_watermark()) else {
            return;
        };
        self.release(|waiting| waiting.request.place == place && waiting.end <= high_watermark, None);
    }

    /// Answers requests that wait, and goes on behind them.
    fn release(&mut self, done: impl Fn(&Waiting) -> bool, answer: Option<Answer>) {
        let mut released = Vec::new();
        for (&id, connection) in &mut self.cluster.connections {
            if let Some(waiting) = connection.waiting.take_if(|waiting| done(waiting)) {
                released.push((id, waiting));
            }
        }
        for (id, waiting) in released {
            self.answer(id, &waiting.request, answer.unwrap_or(waiting.answer));
            self.work_off(id);
        }
    }

    fn answer(&mut self, id: u64, request: &Request, answer: Answer) {
        let delay = self.dice.millis(0, self.plan.broker_delay);
        let Some(connection) = self.cluster.connections.get_mut(&id) else {
            return;
        };
        if connection.late.is_some() {
            return;
        }
        connection.last_answer = connection.last_answer.max(self.now + delay);
        let (at, gateway, process) = (connection.last_answer, connection.gateway, connection.process);
        let event = GatewayEvent::Answered {
            connection: id,
            ticket: request.ticket,
            session: request.session,
            place: request.place,
            answer,
        };
        self.at(at, Event::Gateway(gateway, process, event));
    }

    /// A connection dies: the client learns it later; what the broker already has may be applied, soon or late, unless
    /// the broker died with it.
    /// Twin: `broker_appends_a_request_whose_connection_died`.
    pub(crate) fn cut_broker(&mut self, id: u64, broker_lives: bool) {
        let waits = self.dice.millis(0, LATE_MS);
        let applied = if broker_lives && self.dice.chance(600) { self.dice.between(0, 6) } else { 0 };
        let Some(connection) = self.cluster.connections.get_mut(&id) else {
            return;
        };
        if connection.late.replace(applied).is_some() {
            return;
        }
        connection.late_from = self.now + waits;
        let (gateway, process) = (connection.gateway, connection.process);
        self.after(waits, Event::Cluster(ClusterEvent::Next { connection: id }));
        let seen = self.dice.millis(0, 50);
        self.after(seen, Event::Gateway(gateway, process, GatewayEvent::BrokerLost { connection: id }));
    }

    /// A broker dies; what it led has no leader for a while. With `lose`, one of its partitions is then led by a replica
    /// that lacks confirmed records.
    pub(crate) fn kill_broker(&mut self, broker: usize, lose: Option<Place>) {
        for (id, _, to) in self.cluster.live_connections() {
            if to == broker {
                self.cut_broker(id, false);
            }
        }
        let led: Vec<_> = self
            .cluster
            .partitions
            .iter()
            .filter(|(_, hosted)| hosted.leader == Some(broker))
            .map(|(&place, _)| place)
            .collect();
        for place in led {
            self.move_leader(place, lose == Some(place));
        }
    }

    /// A partition is led by another replica after a while without any: one that holds everything that was below the high
    /// watermark, or, with `lose`, not even that.
    /// Twin: `broker_loses_an_unreplicated_tail_with_its_leader`.
    pub(crate) fn move_leader(&mut self, place: Place, lose: bool) {
        self.depose(place);
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else { return };
        let (high_watermark, log_end) = (hosted.log.high_watermark(), hosted.log.log_end());
        let kept = |border: &Offset| {
            if lose {
                (high_watermark - 50..high_watermark).contains(border)
            } else {
                (high_watermark..=log_end).contains(border)
            }
        };
        let borders: Vec<_> = hosted.log.borders().into_iter().filter(kept).collect();
        let Some(end) = self.dice.pick(&borders) else { return };
        let forgets = self.dice.chance(300);
        if let Some(hosted) = self.cluster.partitions.get_mut(&place) {
            hosted.log.truncate(end);
        }
        if forgets {
            self.forget_producers_of(place);
        }
        self.truncated(place, end, lose);
    }

    /// A partition loses its leader for a while.
    fn depose(&mut self, place: Place) {
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else {
            return;
        };
        hosted.before = hosted.leader.take().or(hosted.before);
        hosted.epoch += 1;
        self.release(|waiting| waiting.request.place == place, Some(Answer::NotLeader));
        let without = self.dice.millis(50, 1_500);
        self.after(without, Event::Cluster(ClusterEvent::Elect { place }));
    }

    fn elect(&mut self, place: Place) {
        let broker = self.dice.below(BROKERS);
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else {
            return;
        };
        if hosted.leader.is_none() {
            hosted.leader = Some(broker);
            hosted.epoch += 1;
            self.replicate(place);
        }
    }

    /// Sweeps producers by record time; tells whether any was forgotten.
    pub(crate) fn forget_producers_of(&mut self, place: Place) -> bool {
        let now_ms = self.wall_ms();
        let expiration_ms = self.plan.expiration_ms;
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else { return false };
        let forgotten = hosted.log.forget_producers(now_ms, expiration_ms) > 0;
        if forgotten {
            self.ghost.count("producer forgotten");
            self.trace(|| format!("broker: {place:?} forgets its producers"));
        }
        forgotten
    }
}
