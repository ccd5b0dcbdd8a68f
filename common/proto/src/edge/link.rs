//! The site's state machine: sessions come and go, partitions stay.

mod flow;
mod mirrors;
mod spill;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flow::POSITIONS_EVERY;
use mirrors::{tell, topic_of};
use spill::JournalState;

use super::partition::{EdgePartition, Placement};
use super::pool::{Pool, Rate};
use super::status::{EdgeMirrorState, EdgeMirrorStatus, EdgePartitionStatus, EdgeStatus};
use super::{EdgeConfig, EdgeEvent, EdgeInput, EdgeOutput, Retention, SourceTopic};
use crate::failure::{Failure, cut};
use crate::id::{MirrorId, Partition, Term, Time, TopicName};
use crate::pattern::TopicPattern;
use crate::wire::{
    Close, CloseCode, CloudBody, EdgeBody, EdgeMessage, Hello, Position, TopicConfig, VERSIONS, Welcome,
};

/// For a session to tell positions. A partition that has none by then is read all the same, as in the dark.
const PATIENCE: Time = Time::from_secs(30);
/// Of the window, this part is for what is read back from the journal.
const DRAIN_SHARE: usize = 4;

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
    topics: Vec<TopicName>,
    /// All mirrors of the Welcome were told, and the filters.
    listed: bool,
    /// What has no position by then is read all the same.
    patience: Time,
    /// It is past that.
    impatient: bool,
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
    /// Partitions and configs of the source topic when it was last seen.
    shape: (Partition, Vec<TopicConfig>),
    /// When it was last seen.
    retention: Retention,
    /// Id of the topic that has taken the source topic's place.
    replaced: Option<[u8; 16]>,
    /// While a topic has taken its place: whether the mirror was found to be the old one's, and positions that wait for
    /// another partition's to show that.
    is_old: bool,
    undecided: Vec<Position>,
    /// Its partitions have been told a position, by this session or an earlier one, or it is new at the source: a new
    /// partition begins at offset 0.
    settled: bool,
    /// It is FAILED once what is held has reached the cloud.
    ending: Option<Failure>,
    /// Not read in the dark: it was FAILED when the last process ended, or the gateway did not want it.
    resting: bool,
    /// Credit of frames that the gateway holds until it hears that the mirror is FAILED.
    owed_credit: usize,
    partitions: Vec<EdgePartition>,
}

impl EdgeMirror {
    fn new(phase: Phase) -> Self {
        Self {
            id: None,
            phase,
            topic_id: None,
            shape: (0, Vec::new()),
            retention: Retention::default(),
            replaced: None,
            is_old: false,
            undecided: Vec::new(),
            settled: false,
            ending: None,
            resting: false,
            owed_credit: 0,
            partitions: Vec::new(),
        }
    }

    fn partition(&mut self, partition: Partition) -> Option<&mut EdgePartition> {
        usize::try_from(partition).ok().and_then(|at| self.partitions.get_mut(at))
    }

    /// Whether the source may lose records between others.
    fn is_compacted(&self) -> bool {
        let policy = self.shape.1.iter().find(|config| config.name == "cleanup.policy");
        policy.is_some_and(|policy| policy.value.split(',').any(|one| one.trim() == "compact"))
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
    filters: Vec<TopicPattern>,
    window: Pool,
    /// Frames read back from the journal.
    drain: Pool,
    journal: JournalState,
    rate: Rate,
    /// Partitions with unsent batches, in turn.
    ready: VecDeque<Key>,
    /// Partitions whose fetch is paused for want of room.
    throttled: BTreeSet<Key>,
    /// Partitions that may want frames from the journal, in turn.
    loads: VecDeque<Key>,
    /// Mirrors or filters have changed since the last checkpoint.
    lists_changed: bool,
    confirmed_bytes: u64,
    next_ticket: u64,
    outputs: VecDeque<EdgeOutput>,
}

impl EdgeLink {
    /// A site that has never met its gateway: nothing is fetched before the first position, or [`EdgeInput::Restored`].
    pub fn new(config: EdgeConfig) -> Self {
        let drain = Pool::new(config.window_bytes / DRAIN_SHARE);
        let window = Pool::new(config.window_bytes - config.window_bytes / DRAIN_SHARE);
        Self {
            config,
            session: Session::Down,
            mirrors: BTreeMap::new(),
            filters: Vec::new(),
            window,
            drain,
            journal: JournalState::default(),
            rate: Rate::default(),
            ready: VecDeque::new(),
            throttled: BTreeSet::new(),
            loads: VecDeque::new(),
            lists_changed: false,
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
            EdgeInput::Fetched { topic, partition, fetch, entries, epoch, high_watermark, log_start } => {
                self.fetched(&(topic, partition), fetch, (entries, epoch), (log_start, high_watermark), now);
            }
            EdgeInput::Overtaken { topic, partition, fetch, log_start } => {
                self.overtaken(&(topic, partition), fetch, log_start);
            }
            EdgeInput::FetchFailed { topic, fetch, failure } => self.fetch_failed(&topic, fetch, failure),
            EdgeInput::Restored { checkpoint, ranges } => self.restored(checkpoint, &ranges),
            EdgeInput::JournalOpened { ranges } => self.journal_opened(&ranges, now),
            EdgeInput::Spilled { ticket, result } => self.spilled(ticket, result, now),
            EdgeInput::Loaded { topic, partition, ticket, frames } => self.loaded(&(topic, partition), ticket, frames),
            EdgeInput::Discovered { topics } => self.discovered(topics),
            EdgeInput::Breach { reason } => self.close(CloseCode::Protocol, reason),
            EdgeInput::Shutdown => self.close(CloseCode::Shutdown, "the agent stops"),
            EdgeInput::Timeout => self.tell_source_positions(now),
        }
        self.spill(now);
    }

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<EdgeOutput> {
        self.outputs.pop_front()
    }

    /// When [`EdgeInput::Timeout`] is due, and what for.
    pub fn next_timeout(&self) -> Option<(Time, &'static str)> {
        let positions = match &self.session {
            Session::Open(open) => Some((open.positions_due, "tell source positions")),
            Session::Down | Session::AwaitWelcome | Session::Closing => None,
        };
        let spill = self.journal.due().map(|at| (at, "spill"));
        positions.into_iter().chain(spill).min()
    }

    /// What there is to show.
    pub fn status(&self) -> EdgeStatus {
        let mut status = EdgeStatus {
            window_bytes: self.window.used() + self.drain.used(),
            confirmed_bytes: self.confirmed_bytes,
            mirrors: self.mirrors.iter().map(mirror_status).collect(),
            bytes_per_second: self.rate.bytes_per_second(),
            journal_trouble: self.journal.trouble().map(str::to_owned),
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
        // Topics that the gateway had time to make mirrors of, and did not.
        if let Session::Open(Open { listed: true, impatient: true, .. }) = self.session {
            for mirror in self.mirrors.values_mut().filter(|mirror| mirror.id.is_none()) {
                mirror.resting = true;
            }
        }
        self.session = Session::Down;
        self.ready.clear();
        self.loads.clear();
        for key in self.keys() {
            self.with(&key, |partition| {
                partition.unsend();
                partition.placement = Placement::None;
                partition.queued = false;
                partition.in_loads = false;
                partition.last_run = 0;
                partition.told_source = None;
            });
        }
        for mirror in self.mirrors.values_mut() {
            mirror.id = None;
            mirror.owed_credit = 0;
            mirror.is_old = false;
            mirror.undecided.clear();
        }
        self.unthrottle();
        self.fetch_all_in_the_dark();
    }

    /// All partitions, by topic.
    fn keys(&self) -> Vec<Key> {
        let keys = |(topic, mirror): (&TopicName, &EdgeMirror)| {
            mirror.partitions.iter().map(|partition| (topic.clone(), partition.partition())).collect::<Vec<_>>()
        };
        self.mirrors.iter().flat_map(keys).collect()
    }

    /// Lets `act` change a partition, and keeps the budgets.
    fn with<R>(&mut self, key: &Key, act: impl FnOnce(&mut EdgePartition) -> R) -> Option<R> {
        let partition = self.mirrors.get_mut(&key.0)?.partition(key.1)?;
        let before = (partition.window_bytes(), partition.drain_bytes(), partition.in_flight_bytes());
        let result = act(partition);
        partition.validate();
        self.window.change(before.0, partition.window_bytes());
        self.drain.change(before.1, partition.drain_bytes());
        if let Session::Open(open) = &mut self.session {
            open.credit.change(before.2, partition.in_flight_bytes());
        }
        Some(result)
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
            (Session::Open(_), Some(CloudBody::Filters(filters))) => self.filters(&filters),
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
        let mirrors = welcome.mirrors;
        if max_frame_bytes > self.config.max_frame_bytes || credit_bytes < max_frame_bytes {
            return Err(format!("a Welcome with credit {credit_bytes}, frame {max_frame_bytes}"));
        }
        let software = cut(welcome.software);
        let event = EdgeEvent::Welcomed { term: Term(welcome.term), software: software.clone(), mirrors };
        self.outputs.push_back(EdgeOutput::Event(event));
        self.session = Session::Open(Open {
            term: Term(welcome.term),
            software,
            credit: Pool::new(credit_bytes),
            max_frame_bytes,
            topics: Vec::new(),
            listed: false,
            patience: now + PATIENCE,
            impatient: false,
            positions_due: now + POSITIONS_EVERY,
        });
        Ok(())
    }
}

fn mirror_status((topic, mirror): (&TopicName, &EdgeMirror)) -> EdgeMirrorStatus {
    let placed = |partition: &EdgePartition| matches!(partition.placement, Placement::Placed { .. });
    let state = match &mirror.phase {
        Phase::Ready(_) if let Some(failure) = &mirror.ending => {
            EdgeMirrorState::SourceUnavailable { reason: format!("{failure}; what is held goes to the cloud first") }
        }
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
        journal: partition.journal(),
        source_log_start: partition.log_start,
        unsafe_timestamp: partition.unsafe_timestamp(),
        stuck: partition.stuck.is_some(),
    };
    EdgeMirrorStatus {
        topic: topic.clone(),
        state,
        retention: mirror.retention,
        partitions: mirror.partitions.iter().map(partition).collect(),
    }
}

#[cfg(test)]
mod inputs;

#[cfg(test)]
#[path = "link/link_test.rs"]
mod tests;

#[cfg(test)]
#[path = "link/starts_test.rs"]
mod starts_tests;

#[cfg(test)]
mod site;

#[cfg(test)]
#[path = "link/spill_test.rs"]
mod spill_tests;

#[cfg(test)]
#[path = "link/gaps_test.rs"]
mod gaps_tests;
