//! Virtual time: one queue of events, worked off in order of time and of their making.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tombolo_proto::cloud::DEFAULT_MAX_GAP;
use tombolo_proto::failure::FailureCode;
use tombolo_proto::id::{Offset, Partition, Time, TopicName};

use crate::carrier::{Carrier, Flow, Line};
use crate::cloud::{Gateway, Registry, ToLedger};
use crate::cluster::{Answer, Cluster, ClusterEvent, Hosted};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::faults::MAX_NEW_TOPICS;
use crate::plan::{Fault, Plan};
use crate::properties::{Ghost, Rule, Violation};
use crate::site::{Agent, AgentEvent};
use crate::source::SourcePartition;

/// A topic's number, which is also its name's, and a partition.
pub(crate) type Place = (usize, Partition);

/// Wall clock of the world's beginning, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_750_000_000_000;
/// After the faults are over, something must go forward within this until everything is equal.
const PROGRESS_WITHIN: Time = Time::from_mins(1);
/// After the faults are over, everything must be equal within this; slow links carry a backlog of minutes.
const HEALED_WITHIN: Time = Time::from_mins(15);
const CHECK_EVERY: Time = Time::from_millis(500);
/// Checks after which the whole journal is looked at.
const KEPT_EVERY: u32 = 8;
/// What a phase of darkness of any length is like in numbers of events.
const LONG_DARK_LIKE: Time = Time::from_secs(20);

/// Whatever happens.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Fault(Fault),
    Append(Place),
    SourceReplicated(Place),
    SourceBack(usize),
    /// The hours or days of darkness are over.
    LongDarkOver,
    /// The operator deletes the mirror of a topic that was made anew, if that has stopped.
    DeleteMirror {
        topic: usize,
        tries: u32,
    },
    /// Of one run of the agent.
    Agent(u64, AgentEvent),
    AgentStart,
    /// Of one process of a gateway.
    Gateway(usize, u64, GatewayEvent),
    GatewayStart(usize),
    GatewayContinue(usize),
    Cluster(ClusterEvent),
    /// Bytes arrive at the agent, or at a gateway.
    Stream {
        connection: u64,
        flow: Flow,
    },
    Check,
}

/// What happens to a gateway's process; it waits while the process stands still.
#[derive(Debug, Clone)]
pub(crate) enum GatewayEvent {
    Accepted { connection: u64 },
    Stream { connection: u64, flow: Flow },
    LinkLost { connection: u64 },
    Timer { session: u64 },
    ReadRegistry { session: u64, tries: u32 },
    AppendTerm { session: u64, tries: u32, read: u64, asked_at: Time },
    Claimed { session: u64, term: u64, asked_at: Time },
    Look { session: u64 },
    LookRead { session: u64, asked_at: Time },
    Looked { session: u64, asked_at: Time, newest: u64 },
    TopicReady { session: u64, mirror: u32, partitions: i32 },
    ReadLogEnd { read: Read },
    ReadProducers { read: Read, log_end: Offset, epoch: i32 },
    ReadTail { read: Read, log_end: Offset, epoch: i32, last_sequence: Option<i32> },
    DeleteLeftFiller { read: Read, log_end: Offset },
    DeleteFiller { session: u64, place: Place },
    WriteLedger(ToLedger),
    Write { connection: u64 },
    Answered { connection: u64, session: u64, place: Place, ticket: u64, answer: Answer },
    BrokerLost { connection: u64 },
    Settings,
}

/// A read of where a partition stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) session: u64,
    pub(crate) mirror: u32,
    pub(crate) place: Place,
    pub(crate) attempt: u32,
    pub(crate) tries: u32,
}

/// A topic as the operator wants it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) known: bool,
    pub(crate) paused: bool,
}

/// What is kept of what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracing {
    Off,
    /// A hash of every line.
    Hashed,
    /// Every line, on standard error.
    Printed,
}

/// A run's end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) violation: Option<Violation>,
    pub(crate) counters: BTreeMap<&'static str, u64>,
    pub(crate) trace_hash: u32,
    pub(crate) events: u64,
    /// Bytes written to the journal, and batches appended to the mirrors.
    pub(crate) journal_written: u64,
    pub(crate) appended: usize,
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) now: Time,
    pub(crate) ghost: Ghost,
    pub(crate) source: BTreeMap<Place, SourcePartition>,
    /// Source topics that cannot be read now.
    pub(crate) source_gone: BTreeMap<usize, bool>,
    /// Times a source topic was made anew.
    pub(crate) remade: BTreeMap<usize, u8>,
    pub(crate) cluster: Cluster,
    pub(crate) registry: Registry,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) agent: Agent,
    /// What the agent's box keeps when the agent dies.
    pub(crate) disk: Option<Disk>,
    pub(crate) carrier: Carrier,
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) registry_slow_until: Time,
    pub(crate) reads_fail_until: Time,
    pub(crate) healed: Option<Time>,
    /// Until then the link is dark for hours or days, and everything happens as much more slowly as `slowness` says.
    pub(crate) long_dark_until: Time,
    long_dark: Time,
    slowness: u32,
    /// When the sum of what the agent knows to be confirmed last changed, and the sum.
    last_progress: (Time, Offset),
    checks: u32,
    pub(crate) long_darks: u32,
    queue: BTreeMap<(Time, u64), Event>,
    serial: u64,
    tracing: Tracing,
    trace_hash: u32,
    events: u64,
}

/// Topics from this number on are mirrored because [`FILTER`] means them, under their own name.
pub(crate) const FILTERED: usize = 8;
pub(crate) const FILTER: &str = "f*";

/// Name of a source topic.
pub(crate) fn source_topic(number: usize) -> TopicName {
    topic_name(if number < FILTERED { 's' } else { 'f' }, number)
}

/// Name of a mirror topic.
pub(crate) fn mirror_topic(number: usize) -> TopicName {
    topic_name(if number < FILTERED { 'm' } else { 'f' }, number)
}

fn topic_name(letter: char, number: usize) -> TopicName {
    TopicName::new(&format!("{letter}{number}")).expect("a legal name")
}

/// Number of a topic by its name.
pub(crate) fn topic_number(name: &TopicName) -> usize {
    let digits = name.as_str().get(1..).unwrap_or_default();
    digits.parse().expect("names are made here")
}

impl World {
    pub(crate) fn new(plan: Plan, dice: Dice, tracing: Tracing) -> Self {
        let wanted = plan.topics.values().map(|topic| Wanted { known: topic.known, paused: false }).collect();
        let agent = Agent::new(&plan, 1);
        let mut world = Self {
            dice,
            now: Time::ZERO,
            ghost: Ghost::default(),
            source: BTreeMap::new(),
            source_gone: BTreeMap::new(),
            remade: BTreeMap::new(),
            cluster: Cluster::default(),
            registry: Registry::default(),
            gateways: (0..2).map(Gateway::new).collect(),
            agent,
            disk: plan.disk.map(|disk| Disk::new(disk, plan.bug)),
            carrier: Carrier::default(),
            wanted,
            registry_slow_until: Time::ZERO,
            reads_fail_until: Time::ZERO,
            healed: None,
            long_dark_until: Time::ZERO,
            long_dark: Time::ZERO,
            slowness: 1,
            last_progress: (Time::ZERO, 0),
            checks: 0,
            long_darks: 0,
            queue: BTreeMap::new(),
            serial: 0,
            tracing,
            trace_hash: 0,
            events: 0,
            plan,
        };
        world.begin();
        world
    }

    pub(crate) fn long_dark_length(&self) -> Time {
        self.long_dark
    }

    /// Whether a request for a partition is on its way to a broker.
    pub(crate) fn is_on_its_way(&self, place: Place) -> bool {
        self.queue.values().any(
            |event| matches!(event, Event::Cluster(ClusterEvent::Arrive { request, .. }) if request.place == place),
        )
    }

    fn begin(&mut self) {
        let plan = format!("{:?}", self.plan);
        self.trace(|| plan);
        for (topic, plan) in self.plan.topics.clone() {
            for partition in 0..plan.partitions {
                self.add_partition((topic, partition), plan.begin, plan.late);
            }
        }
        for (fault, mean) in self.plan.faults.clone() {
            let first = self.dice.millis(0, 2 * usize::try_from(mean.as_millis()).expect("small"));
            self.after(first, Event::Fault(fault));
        }
        if self.plan.max_gap < DEFAULT_MAX_GAP {
            for topic in 0..FILTERED + MAX_NEW_TOPICS {
                self.ghost.excuse(topic, &[FailureCode::GapLimit]);
            }
        }
        self.agent_begins();
        self.after(CHECK_EVERY, Event::Check);
    }

    /// A partition at the source, and its mirror, which holds a part of it where the logs do not begin at 0.
    pub(crate) fn add_partition(&mut self, place: Place, begin: Offset, late: bool) {
        self.add_empty_partition(place, begin, late);
        if begin > 0 || self.dice.chance(200) {
            let history = self.dice.between(0, 30);
            for _ in 0..history {
                self.append_at_source(place, None);
            }
            let mirrored = if late { 0 } else { self.dice.between(0, history) };
            self.mirror_beforehand(place, mirrored);
        }
    }

    /// A partition at the source without records, and its mirror, which begins at 0 if it is to start late.
    pub(crate) fn add_empty_partition(&mut self, place: Place, begin: Offset, late: bool) {
        self.source.insert(place, SourcePartition::new(place.1, begin));
        let mirror_begin = if late { 0 } else { begin };
        let hosted = Hosted {
            log: self.new_log(place, mirror_begin),
            leader: Some(self.dice.below(crate::cluster::BROKERS)),
            before: None,
            epoch: 0,
            stalled: self.plan.stalled == Some(place),
        };
        self.cluster.partitions.insert(place, hosted);
        self.ghost.add(place, mirror_begin);
        let wait = self.dice.millis(0, 1_000);
        self.after(wait, Event::Append(place));
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        let serial = self.serial();
        self.queue.insert((at.max(self.now), serial), event);
    }

    pub(crate) fn after(&mut self, wait: Time, event: Event) {
        self.at(self.now + wait, event);
    }

    /// A wait that is longer while the link is dark for days, but not beyond the end of that.
    pub(crate) fn slowly(&self, wait: Time) -> Time {
        let left = self.long_dark_until.saturating_sub(self.now);
        if left == Time::ZERO { wait } else { (wait * self.slowness).min(left + wait) }
    }

    /// Nothing gets through the link for so long. As many things happen as in [`LONG_DARK_LIKE`] otherwise.
    pub(crate) fn darken_for_long(&mut self, dark: Time) {
        (self.long_dark, self.long_dark_until) = (dark, self.now + dark);
        let slowness = dark.as_secs() / LONG_DARK_LIKE.as_secs();
        self.slowness = u32::try_from(slowness).expect("small").max(1);
        self.plan.trouble += dark;
        self.at(self.long_dark_until, Event::LongDarkOver);
    }

    pub(crate) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn wall_ms(&self) -> i64 {
        EPOCH_MS + i64::try_from(self.now.as_millis()).expect("small")
    }

    pub(crate) fn line(&self) -> Line {
        Line { delay: self.plan.link_delay, bytes_per_second: self.plan.link_bytes_per_second }
    }

    /// Notes what happened.
    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing == Tracing::Off {
            return;
        }
        let mut text = String::new();
        write!(text, "{:>12.6} {}", self.now.as_secs_f64(), line()).expect("a string takes all");
        self.trace_hash = tombolo_hash(self.trace_hash, text.as_bytes());
        if self.tracing == Tracing::Printed {
            crate::print(&text);
        }
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(mut self) -> Ended {
        while self.ghost.violation.is_none() {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                break;
            };
            self.now = at;
            self.events += 1;
            if self.healed.is_none() && self.now >= self.plan.trouble {
                self.heal();
            }
            if matches!(event, Event::Check) {
                if self.checked() {
                    break;
                }
                let wait = self.slowly(CHECK_EVERY);
                self.after(wait, Event::Check);
            } else {
                self.happen(event);
            }
        }
        Ended {
            journal_written: self.disk.as_ref().map_or(0, Disk::written_bytes),
            appended: self.cluster.partitions.values().map(|hosted| hosted.log.batches().len()).sum(),
            violation: self.ghost.violation,
            counters: self.ghost.counters,
            trace_hash: self.trace_hash,
            events: self.events,
        }
    }

    /// Whether all is over.
    fn checked(&mut self) -> bool {
        self.carrier.tidy();
        self.checks += 1;
        if self.checks.is_multiple_of(KEPT_EVERY) {
            self.check_kept();
        }
        let Some(healed) = self.healed else { return false };
        match self.unfinished() {
            None => {
                if self.plan.stalled.is_some() {
                    self.ghost.count("others equal beside a stalled partition");
                }
                self.release_stalled()
            }
            Some(what) => {
                let confirmed = self.confirmed_in_all();
                if confirmed != self.last_progress.1 {
                    self.last_progress = (self.now, confirmed);
                }
                let still = self.now.saturating_sub(self.last_progress.0.max(healed));
                if still > PROGRESS_WITHIN || self.now > healed + HEALED_WITHIN {
                    let text = format!("{what}; nothing moved for {} s", still.as_secs());
                    self.ghost.violated(Rule::Liveness, text);
                }
                false
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fault(fault) => self.on_fault(fault),
            Event::Append(place) => self.on_append(place),
            Event::SourceReplicated(place) => {
                if let Some(source) = self.source.get_mut(&place) {
                    source.replicated();
                }
            }
            Event::SourceBack(topic) => {
                self.source_gone.remove(&topic);
                self.source_changed(topic);
            }
            Event::Agent(agent, event) => {
                if self.agent.up && self.agent.run == agent {
                    self.on_agent(event);
                }
            }
            Event::LongDarkOver => self.long_dark_is_over(),
            Event::DeleteMirror { topic, tries } => self.delete_mirror(topic, tries),
            Event::AgentStart => self.start_agent(),
            Event::Gateway(at, process, event) => self.on_gateway(at, process, event),
            Event::GatewayStart(at) => self.start_gateway(at),
            Event::GatewayContinue(at) => self.continue_gateway(at),
            Event::Cluster(event) => self.on_cluster(event),
            Event::Stream { connection, flow } => self.on_stream(connection, flow),
            Event::Check => {}
        }
    }

    fn on_stream(&mut self, connection: u64, flow: Flow) {
        let Some(at) = self.carrier.connection(connection) else {
            return;
        };
        let (gateway, process, agent) = (at.gateway, at.process, at.agent);
        if flow == Flow::GatewayControl {
            if self.agent.up && self.agent.run == agent {
                self.agent_receives(connection);
            }
        } else {
            self.on_gateway(gateway, process, GatewayEvent::Stream { connection, flow });
        }
    }

    /// Sends bytes over the link.
    pub(crate) fn send(&mut self, connection: u64, flow: Flow, bytes: bytes::Bytes) {
        let line = self.line();
        let due = self.carrier.send(connection, flow, bytes, line, &mut self.dice, self.now);
        if let Some(due) = due {
            self.at(due, Event::Stream { connection, flow });
        }
    }

    /// Bytes that have arrived.
    pub(crate) fn arrived(&mut self, connection: u64, flow: Flow) -> Vec<bytes::Bytes> {
        let (bytes, next) = self.carrier.arrived(connection, flow, self.now);
        if let Some(next) = next {
            self.at(next, Event::Stream { connection, flow });
        }
        bytes
    }

    fn on_append(&mut self, place: Place) {
        if self.healed.is_some() {
            return;
        }
        let Some(plan) = self.plan.topics.get(&place.0).cloned() else {
            return;
        };
        let odd = plan.odd.filter(|_| self.dice.chance(20));
        if let Some(odd) = odd {
            self.ghost.excuse(place.0, &[odd.code()]);
        }
        self.append_at_source(place, odd);
        let pace = usize::try_from(plan.pace.as_millis()).expect("small");
        let wait = if self.dice.chance(50) { self.dice.millis(0, 12 * pace) } else { self.dice.millis(0, 2 * pace) };
        let wait = self.slowly(wait);
        self.after(wait, Event::Append(place));
        let behind = self.dice.millis(0, 60);
        self.after(behind, Event::SourceReplicated(place));
    }
}

/// Folds a line into the trace's hash.
fn tombolo_hash(hash: u32, line: &[u8]) -> u32 {
    line.iter()
        .fold(hash ^ 0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        .rotate_left(5)
}
