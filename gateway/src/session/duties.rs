//! What a session has tasks do: take the link, make topics ready, read log ends, append batches and markers, make mirrors
//! start, note losses.

mod ids;
mod ledgers;
mod topics;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_kafka::TopicId;
use tombolo_kafka::cluster::{ClusterMetadata, Leader};
use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{LinkName, MirrorId, Offset, Partition, TopicName};
use tombolo_proto::mirror::{Outcome, SkipOutcome};
use tombolo_service::tasks::Tasks;

use super::Event;
use crate::leased::LeasedCluster;
use crate::metrics;
use crate::recover::{self, Found, RecoverError};
use crate::registry::{Claim, ClaimError, Claimant, SessionLease};
use crate::shared::{Presence, Shared};
use crate::skip::{self, MarkerRights, Queue, Skipper, Skips, Stretch, Transactions, Wish};
use crate::topics::Kept;
use crate::writer::{Job, Writers};
use ids::TopicIds;

/// Partitions that are looked at together: each may hold its last batches in memory.
const MAX_RECOVERIES: usize = 16;
/// Partitions that are made to start together: brokers walk every record of filler.
const MAX_STARTS: usize = 4;
/// Partitions whose log starts are moved up together: brokers wait for their replicas.
const MAX_DELETIONS: usize = 4;
/// For another link to leave memory to this one.
const CREDIT_PATIENCE: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// An append unanswered for so long makes the session look whether its leader still leads.
const SUSPICION: Duration = Duration::from_secs(3);
/// How often the leaders of all partitions are looked up: a new one may have lost what an idle mirror had confirmed.
const LEADERS_EVERY: Duration = Duration::from_secs(10);

type Key = (MirrorId, Partition);

/// The tasks of one session and what they must know of it.
#[derive(Debug)]
pub(super) struct Duties {
    shared: Arc<Shared>,
    link: LinkName,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
    pub(super) stop: CancellationToken,
    writing: Option<Writing>,
    recoveries: Arc<Semaphore>,
    starts: Arc<Semaphore>,
    deletions: Arc<Semaphore>,
    preparing: HashMap<MirrorId, AbortHandle>,
    kept: HashMap<MirrorId, Kept>,
    ids: TopicIds,
    partitions: HashMap<Key, Outstanding>,
    looking: bool,
    /// When the leaders of all partitions were asked for.
    looked: Instant,
    /// Dropped last: nothing of the session is left then.
    presence: Arc<Presence>,
}

/// What a session that holds its link writes with.
#[derive(Debug)]
struct Writing {
    cloud: LeasedCluster,
    agent_since: Option<SystemTime>,
    writers: Writers,
    skipper: Skipper,
    /// Whether it may; not asked where it writes no markers itself.
    rights: Option<Arc<MarkerRights>>,
    /// Memory for the link's frames, given back with the session.
    _credit: tokio::sync::OwnedSemaphorePermit,
}

/// A partition that was looked at.
#[derive(Debug)]
struct Outstanding {
    topic: TopicName,
    /// Who told the log end; batches go nowhere else.
    leader: Leader,
    topic_id: Option<TopicId>,
    /// Batches and markers without an answer.
    tickets: BTreeMap<u64, Asked>,
    /// Markers that were given up and may have been sent.
    late: BTreeMap<u64, Late>,
    /// Offset after the last batch that was sent in this session.
    sent: Offset,
}

/// What has no answer yet.
#[derive(Debug)]
struct Asked {
    since: Instant,
    /// Markers rather than a batch.
    markers: Option<Wish>,
}

/// Markers that nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    /// The broker may have them, and append them.
    At(i32),
    /// It has done with them.
    Answered,
}

impl Late {
    /// Whether a log end that was read from this broker may be out of date.
    fn concerns(self, broker: i32) -> bool {
        match self {
            Self::At(sent_to) => sent_to == broker,
            Self::Answered => true,
        }
    }
}

impl Duties {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: LinkName,
        presence: Presence,
        events: mpsc::Sender<Event>,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        Self {
            shared,
            link,
            events,
            tasks,
            stop,
            writing: None,
            recoveries: Arc::new(Semaphore::new(MAX_RECOVERIES)),
            starts: Arc::new(Semaphore::new(MAX_STARTS)),
            deletions: Arc::new(Semaphore::new(MAX_DELETIONS)),
            preparing: HashMap::new(),
            kept: HashMap::new(),
            ids: TopicIds::default(),
            partitions: HashMap::new(),
            looking: false,
            looked: Instant::now(),
            presence: Arc::new(presence),
        }
    }

    /// The session's lease, once it has the link.
    pub(super) fn lease(&self) -> Option<Arc<SessionLease>> {
        self.writing.as_ref().map(|writing| Arc::clone(&writing.cloud.lease))
    }

    /// When the agent's process was first seen, where it tells who it is.
    pub(super) fn agent_since(&self) -> Option<SystemTime> {
        self.writing.as_ref().and_then(|writing| writing.agent_since)
    }

    /// Takes the link: the term, the end of earlier sessions here, the memory.
    pub(super) fn claim(&self, incarnation: u64, address: IpAddr) {
        let claimant = Claimant { incarnation, address, earlier_connected: self.presence.has_earlier() };
        let (shared, link) = (Arc::clone(&self.shared), self.link.clone());
        let presence = Arc::clone(&self.presence);
        self.spawn("claim", async move {
            let failed = |reason: String| Event::Input(CloudInput::ClaimFailed { reason });
            let mut claim = match shared.registry.claim(&link, claimant).await {
                Ok(claim) => claim,
                Err(ClaimError::Replaced(replaced)) => {
                    metrics::incarnation_refused();
                    return Event::Input(CloudInput::Refused { reason: replaced.to_string() });
                }
                Err(error) => return failed(error.to_string()),
            };
            // Sessions of this process stop writing when they see the new term; nobody needs to wait for their lease, but
            // for markers that they left at a broker.
            if tokio::time::timeout(claim.patience, presence.alone()).await.is_err() {
                claim.write_after = claim.write_after.max(shared.clock.now() + claim.patience);
            }
            claim.write_after = claim.write_after.max(shared.markers_settled(&link));
            match tokio::time::timeout(CREDIT_PATIENCE, shared.credit()).await {
                Ok(Some(credit)) => Event::Claimed { claim, credit },
                Ok(None) | Err(_) => failed("memory.credit_total is taken by other links".to_owned()),
            }
        });
    }

    /// Looks at a partition.
    pub(super) fn recover(&self, mirror: MirrorId, topic: TopicName, partition: Partition, attempt: u32) {
        let Some(writing) = &self.writing else { return };
        let (cloud, slots) = (writing.cloud.clone(), Arc::clone(&self.recoveries));
        let key = self.ledger_key(&topic, partition);
        let registry = self.shared.registry.clone();
        let place = self.place(topic, partition);
        self.spawn("recover", async move {
            let _slot = slots.acquire_owned().await;
            let result = recover::recover(&cloud, &place, &registry.ledger(&key)).await;
            Event::Found { mirror, partition, attempt, result }
        });
    }

    /// Appends a batch at the leader that told the partition's log end.
    pub(super) fn produce(
        &mut self,
        mirror: MirrorId,
        topic: TopicName,
        partition: Partition,
        ticket: u64,
        offset: Offset,
        batch: Bytes,
    ) {
        // The half-protocol asks for a look before the first batch, and for the link before that.
        let (Some(writing), Some(place)) = (&mut self.writing, self.partitions.get_mut(&(mirror, partition))) else {
            return;
        };
        place.tickets.insert(ticket, Asked { since: Instant::now(), markers: None });
        let again = offset < place.sent;
        place.sent = place.sent.max(offset + 1);
        let topic_id = place.topic_id;
        let job = Job { mirror, partition, ticket, topic, topic_id, offset, batch, again };
        writing.writers.write(place.leader.broker, job);
    }

    /// Appends markers at the leader that told the partition's log end; or has the answer at once, where that may still
    /// append earlier ones that were given up.
    pub(super) fn skip(
        &mut self,
        mirror: MirrorId,
        topic: TopicName,
        partition: Partition,
        ticket: u64,
        offset: Offset,
        count: i64,
    ) -> Option<CloudInput> {
        let (writing, place) = (self.writing.as_mut()?, self.partitions.get_mut(&(mirror, partition))?);
        if place.late.values().any(|late| late.concerns(place.leader.broker)) {
            // Where it was answered, one more look is enough: the last one may have been just before that.
            place.late.retain(|_, late| *late != Late::Answered);
            let reason = format!("broker {} has not answered an earlier request yet", place.leader.broker);
            return Some(CloudInput::Skipped { mirror, partition, ticket, outcome: SkipOutcome::Doubt { reason } });
        }
        let wish = Wish::default();
        place.tickets.insert(ticket, Asked { since: Instant::now(), markers: Some(wish.clone()) });
        place.sent = place.sent.max(offset + 1);
        let leader = place.leader;
        writing.skipper.skip(Stretch { mirror, partition, ticket, topic, leader, offset, count, wish });
        None
    }

    /// The session is over: what it leaves at brokers, and what it knows of mirror topics, is told to the next one.
    pub(super) fn leave(&mut self) {
        for kept in std::mem::take(&mut self.kept).into_values() {
            self.shared.leave_kept(&self.link, kept);
        }
        let out = |place: &Outstanding| {
            let mut wishes = place.tickets.values().filter_map(|asked| asked.markers.as_ref());
            place.late.values().any(|late| *late != Late::Answered) || wishes.any(Wish::is_out)
        };
        if self.partitions.values().any(out) {
            self.shared.leaves_markers(&self.link);
        }
    }

    /// What an answer means to the half-protocol.
    pub(super) fn settle(&mut self, event: Event) -> Vec<CloudInput> {
        match event {
            Event::Input(input) => {
                if let CloudInput::FastForwarded { mirror, .. } = &input
                    && let Some(kept) = self.kept.get_mut(mirror)
                {
                    kept.started(Instant::now());
                }
                vec![input]
            }
            Event::Claimed { claim, credit } => vec![self.claimed(claim, credit)],
            Event::Found { mirror, partition, attempt, result } => {
                vec![self.found((mirror, partition), attempt, result)]
            }
            Event::Produced { mirror, partition, ticket, outcome } => {
                let place = self.partitions.get_mut(&(mirror, partition));
                // A ticket that was given up before has had its answer.
                match place.and_then(|place| place.tickets.remove(&ticket)) {
                    Some(_) => vec![CloudInput::Produced { mirror, partition, ticket, outcome }],
                    None => Vec::new(),
                }
            }
            Event::Skipped { mirror, partition, ticket, outcome } => {
                if matches!(outcome, SkipOutcome::Doubt { .. }) {
                    self.shared.leaves_markers(&self.link);
                }
                let Some(place) = self.partitions.get_mut(&(mirror, partition)) else { return Vec::new() };
                if let Some(late) = place.late.get_mut(&ticket) {
                    *late = Late::Answered;
                }
                match place.tickets.remove(&ticket) {
                    Some(_) => vec![CloudInput::Skipped { mirror, partition, ticket, outcome }],
                    None => Vec::new(),
                }
            }
            Event::Missing { mirror } => {
                self.ids.forget(mirror);
                if let Some(kept) = self.kept.get_mut(&mirror) {
                    kept.made(Instant::now());
                }
                Vec::new()
            }
            Event::Kept { mirror, upkeep, result } => {
                if let Some(kept) = self.kept.get_mut(&mirror) {
                    kept.done(upkeep, result.is_ok(), Instant::now());
                }
                if let Err(reason) = result {
                    tracing::debug!(link = %self.link, %mirror, ?upkeep, reason, "mirror topic not changed yet");
                }
                Vec::new()
            }
            Event::Leaders(metadata) => {
                self.looking = false;
                metadata.map_or_else(Vec::new, |metadata| self.give_up_moved(&metadata))
            }
        }
    }

    fn claimed(&mut self, claim: Claim, credit: tokio::sync::OwnedSemaphorePermit) -> CloudInput {
        let Claim { lease, write_after, agent_since, .. } = claim;
        let term = lease.term();
        let cloud = LeasedCluster::new(self.shared.write_settings(), lease);
        let (events, tasks) = (self.events.clone(), self.tasks.clone());
        let writers = Writers::new(cloud.clone(), self.shared.settings.produce, events, tasks);
        let (skipper, rights) = self.skipper(&cloud);
        metrics::session_began();
        let wait_ms = write_after.saturating_sub(self.shared.clock.now()).as_millis();
        tracing::info!(link = %self.link, term = term.0, wait_ms, "session holds the link");
        self.writing = Some(Writing { cloud, agent_since, writers, skipper, rights, _credit: credit });
        CloudInput::Claimed { term, write_after }
    }

    fn skipper(&self, cloud: &LeasedCluster) -> (Skipper, Option<Arc<MarkerRights>>) {
        let (cloud, events) = (cloud.clone(), self.events.clone());
        if self.shared.settings.by_transactions.contains(&self.link) {
            let (link, registry) = (self.link.clone(), self.shared.registry.clone());
            let context = Transactions { link, cloud, registry, events };
            return (Skipper::Transactions(Queue::start(context, &self.tasks)), None);
        }
        let producer_id = self.link.producer_id();
        let rights = MarkerRights::of_session(cloud.clone(), skip::writer(producer_id, cloud.lease.term()));
        let skips = Skips::new(cloud, producer_id, events, self.tasks.clone());
        (Skipper::Markers(skips), Some(Arc::new(rights)))
    }

    fn found(&mut self, key: Key, attempt: u32, result: Result<Found, RecoverError>) -> CloudInput {
        let (mirror, partition) = key;
        let result = match result {
            Ok(Found { recovery, leader, topic, topic_id }) => {
                if let Err(failure) = self.ids.check(mirror, &topic, topic_id) {
                    return CloudInput::TopicFailed { mirror, failure };
                }
                let place = self.partitions.entry(key).or_insert_with(|| Outstanding {
                    topic,
                    leader,
                    topic_id,
                    tickets: BTreeMap::new(),
                    late: BTreeMap::new(),
                    sent: 0,
                });
                (place.leader, place.topic_id) = (leader, topic_id);
                Ok(recovery)
            }
            Err(error) => Err(error.to_string()),
        };
        CloudInput::Recovered { mirror, partition, attempt, result }
    }

    /// Looks up leaders from time to time, and at once where an append stays unanswered: a leader that hangs does not say
    /// that it was replaced.
    pub(super) fn watch_leaders(&mut self) {
        let Some(writing) = &self.writing else { return };
        let all = self.looked.elapsed() > LEADERS_EVERY;
        let suspicious =
            |place: &&Outstanding| all || place.tickets.values().any(|asked| asked.since.elapsed() > SUSPICION);
        let mut topics: Vec<String> =
            self.partitions.values().filter(suspicious).map(|place| place.topic.to_string()).collect();
        if topics.is_empty() || self.looking {
            return;
        }
        topics.sort();
        topics.dedup();
        self.looking = true;
        if all {
            self.looked = Instant::now();
        }
        let cluster = writing.cloud.cluster.clone();
        self.spawn("leaders", async move { Event::Leaders(cluster.metadata(Some(&topics)).await.ok()) });
    }

    /// Puts in doubt what was sent to leaders that lead no more, and what they held where nothing was.
    fn give_up_moved(&mut self, metadata: &ClusterMetadata) -> Vec<CloudInput> {
        let mut leaders = HashMap::new();
        for topic in &metadata.topics {
            for partition in &topic.partitions {
                if let Some(broker) = partition.leader {
                    leaders.insert((&*topic.name, partition.id), (broker, partition.leader_epoch));
                }
            }
        }
        let (mut inputs, mut left) = (Vec::new(), false);
        for (&(mirror, partition), place) in &mut self.partitions {
            let Some(&(broker, epoch)) = leaders.get(&(place.topic.as_str(), partition)) else { continue };
            if broker == place.leader.broker && epoch <= place.leader.epoch {
                continue;
            }
            if place.tickets.is_empty() {
                inputs.push(CloudInput::LeaderMoved { mirror, partition });
            }
            let reason = format!("broker {broker} leads the partition, no longer broker {}", place.leader.broker);
            let same = broker == place.leader.broker;
            for (ticket, asked) in std::mem::take(&mut place.tickets) {
                let reason = reason.clone();
                let Some(wish) = &asked.markers else {
                    let outcome = Outcome::Doubt { reason };
                    inputs.push(CloudInput::Produced { mirror, partition, ticket, outcome });
                    continue;
                };
                if same && wish.is_out() {
                    // Its broker still answers, and until then might append them after any look at the log.
                    place.tickets.insert(ticket, asked);
                    continue;
                }
                if wish.give_up() {
                    place.late.insert(ticket, Late::At(place.leader.broker));
                    left = true;
                }
                inputs.push(CloudInput::Skipped { mirror, partition, ticket, outcome: SkipOutcome::Doubt { reason } });
            }
        }
        if left {
            self.shared.leaves_markers(&self.link);
        }
        inputs
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        let work = async move {
            let event = work.await;
            // Nobody to hear it means that the session is over.
            drop(events.send(event).await);
        };
        // Ends by itself or with the session.
        drop(self.tasks.spawn_child(name, until_stopped(self.tasks.stop_token().clone(), work)));
    }
}

async fn until_stopped(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}
