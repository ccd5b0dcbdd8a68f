//! The source cluster: who leads which partition, and who reads it.
//!
//! One task owns this picture ([`Source`]). It takes commands, hands partitions to the fetchers of their leaders and
//! moves them when leaders change; topics are looked at by [`discovery`], records read by [`fetcher`], mirrors' tails
//! compared by [`tail`]. All of them report straight to the owner of the site, over one bounded channel.
//!
//! Must never: wait for the owner of the site, who waits for it.

mod discovery;
mod fetcher;
mod hanging;
mod holes;
mod records;
mod tail;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tombolo_kafka::fetch::FetchOptions;
use tombolo_kafka::{Cluster, ErrorCode, TopicId};
use tombolo_proto::edge::{EdgeInput, EdgeOutput};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_service::readiness::Latch;
use tombolo_service::tasks::Tasks;

use crate::settings::{MemorySettings, Settings};
use discovery::{Discovery, Found, Watched};
use fetcher::{Assignment, Change, Cursor, Fetcher, Inbox};
pub(crate) use hanging::Hanging;
use holes::Holes;
use tail::Missing;

/// How long a broker holds back the answer to a fetch when there is nothing new.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Commands on their way. The task takes them at once.
const COMMANDS: usize = 64;
/// Notes and findings on their way to this task, which takes them at once.
const NOTES: usize = 64;
/// Tail comparisons at a time: each holds the records of one partition in one answer.
const COMPARISONS: usize = 8;

type Key = (TopicName, Partition);

/// What the owner of the site hears.
#[derive(Debug)]
pub(crate) enum SourceEvent {
    /// The source cluster was asked for the first time, or its id became known.
    Contact {
        /// Its id, empty where it did not answer or has none.
        cluster_id: String,
    },
    /// Why the cluster does not answer, or `None` since it does again.
    Trouble(Option<String>),
    /// For the state machine, in order.
    Inputs(Vec<EdgeInput>),
    /// Partitions that wait for a transaction at the source to end, all of them.
    Hanging(BTreeMap<(TopicName, Partition), Hanging>),
}

/// What the owner of the site says.
#[derive(Debug)]
pub(crate) enum SourceCommand {
    /// An output that concerns the source.
    Do(EdgeOutput),
    /// The session is over: its comparisons are of no more use.
    SessionEnded,
}

/// The owner's end.
#[derive(Debug)]
pub(crate) struct SourceHandle {
    pub(crate) commands: mpsc::Sender<SourceCommand>,
    /// Whether fetchers may ask for more: false while the window is full.
    pub(crate) room: watch::Sender<bool>,
}

/// Starts all tasks that speak to the source cluster. `contacted` is dropped after the first try.
pub(crate) fn start(
    settings: &Settings,
    tasks: &Tasks,
    events: mpsc::Sender<SourceEvent>,
    contacted: Latch,
) -> SourceHandle {
    let cluster = Cluster::new(settings.source.clone());
    let (commands, next_command) = mpsc::channel(COMMANDS);
    let (room, room_seen) = watch::channel(true);
    let (watched, seen) = watch::channel(Watched::default());
    let (found, next_found) = mpsc::channel(NOTES);
    let (notes, next_note) = mpsc::channel(NOTES);
    let discovery = Discovery {
        cluster: cluster.clone(),
        filter: settings.topics.clone(),
        interval: settings.discovery_interval,
        watched: seen,
        found,
        events: events.clone(),
    };
    let memory = settings.memory;
    let source = Source {
        cluster,
        options: FetchOptions {
            max_wait: MAX_WAIT,
            min_bytes: 1,
            max_bytes: memory.fetch,
            partition_max_bytes: memory.fetch_partition,
            read_committed: true,
            sessions: true,
        },
        memory,
        share: Arc::new(AtomicI32::new(memory.fetch)),
        tasks: tasks.clone(),
        events,
        room: room_seen,
        watched,
        notes,
        topics: BTreeMap::new(),
        partitions: BTreeMap::new(),
        fetchers: BTreeMap::new(),
        comparisons: BTreeMap::new(),
        comparing: Arc::new(Semaphore::new(COMPARISONS)),
        holes: Holes::default(),
        hanging: Some(false),
        jobs: FuturesUnordered::new(),
    };
    let stop = || tasks.stop_token().clone();
    tasks.spawn("discovery", until(stop(), discovery.run(contacted)));
    tasks.spawn("source", until(stop(), source.run(next_command, next_found, next_note)));
    SourceHandle { commands, room }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// A partition's reader says something about it.
#[derive(Debug)]
pub(crate) enum Note {
    /// It reads the partition no more.
    Returned { key: Key, fetch: u64, why: Why },
    /// A partition taken up on trial can be read.
    Readable { topic: TopicName },
    /// Offsets of its log hold nothing at all.
    Holes { key: Key, holes: Vec<Range<Offset>> },
    /// The broker cannot be reached.
    Unreachable,
}

/// Why a reader gave a partition back.
#[derive(Debug)]
pub(crate) enum Why {
    /// Another broker leads it, or the broker cannot serve it now.
    Trouble(ErrorCode),
    /// The log does not hold the offset.
    OutOfRange { offset: Offset },
    /// No right to read.
    Denied(ErrorCode),
    /// Its failure was told.
    Failed,
    /// It was told that the log begins above the offset.
    Overtaken,
}

/// A job of this task came to its end.
enum Done {
    Compared {
        key: Key,
        ticket: u64,
    },
    /// The log holds the offset after all.
    InRange {
        key: Key,
        fetch: u64,
    },
    /// It does not, as was told.
    OutOfRange,
    /// Waiting transactions were looked for; whether there are some.
    Hanging(bool),
}

/// A partition that is to be read.
struct Reading {
    fetch: u64,
    /// Id of the topic that the offset is of, where the brokers tell one: not another's that has its name since.
    topic_id: Option<TopicId>,
    cursor: Arc<Cursor>,
    paused: bool,
    /// The broker whose fetcher has it; `None` while its leader is looked for or a job has it.
    reader: Option<i32>,
    /// A job finds out what became of the log.
    in_doubt: bool,
}

struct KnownTopic {
    topic_id: Option<TopicId>,
    /// Whether it is compacted, or was since this process knows it; `None` while that is not known.
    compacted: Option<bool>,
    /// Leader and epoch by partition.
    leaders: Vec<Option<(i32, i32)>>,
}

struct Source {
    cluster: Cluster,
    options: FetchOptions,
    memory: MemorySettings,
    /// What each fetcher may ask for at a time: less where brokers are many.
    share: Arc<AtomicI32>,
    tasks: Tasks,
    events: mpsc::Sender<SourceEvent>,
    room: watch::Receiver<bool>,
    watched: watch::Sender<Watched>,
    notes: mpsc::Sender<Note>,
    topics: BTreeMap<TopicName, KnownTopic>,
    partitions: BTreeMap<Key, Reading>,
    /// By broker. Kept for good: brokers are few.
    fetchers: BTreeMap<i32, Arc<Inbox>>,
    comparisons: BTreeMap<Key, (u64, CancellationToken)>,
    comparing: Arc<Semaphore>,
    holes: Holes,
    /// Whether partitions were told to wait for a transaction; `None` while that is being found out.
    hanging: Option<bool>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Source {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<SourceCommand>,
        mut found: mpsc::Receiver<Found>,
        mut notes: mpsc::Receiver<Note>,
    ) {
        let mut looks = tokio::time::interval(hanging::LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => self.look_for_hanging(),
                command = commands.recv() => match command {
                    Some(SourceCommand::Do(output)) => self.obey(output),
                    Some(SourceCommand::SessionEnded) => self.cancel_comparisons(|_| true),
                    None => return,
                },
                Some(found) = found.recv() => self.found(found),
                Some(note) = notes.recv() => self.note(note),
                Some(done) = self.jobs.next() => self.done(done),
            }
        }
    }

    fn obey(&mut self, output: EdgeOutput) {
        match output {
            EdgeOutput::Discover { topic } => self.watched.send_modify(|watched| {
                watched.topics.insert(topic);
                watched.looks += 1;
            }),
            EdgeOutput::Forget { topic } => self.forget(&topic),
            // The source's own records tell where it lacks some.
            EdgeOutput::CompareTail { topic, partition, ticket, tail, next_offset, compacted: _ } => {
                self.compare(tail::Question { topic, partition, ticket, tail, next_offset });
            }
            EdgeOutput::Watch { filters } => self.watched.send_modify(|watched| {
                watched.filters = filters;
                watched.looks += 1;
            }),
            EdgeOutput::Fetch { topic, partition, fetch, offset, epoch } => {
                self.fetch(&(topic, partition), fetch, offset, epoch);
            }
            EdgeOutput::PauseFetch { topic, partition } => self.set_paused(&(topic, partition), true),
            EdgeOutput::ResumeFetch { topic, partition } => self.set_paused(&(topic, partition), false),
            EdgeOutput::StopFetch { topic, partition } => self.stop(&(topic, partition)),
            // The link's and the journal's.
            EdgeOutput::Send(_)
            | EdgeOutput::Event(_)
            | EdgeOutput::Close { .. }
            | EdgeOutput::Spill { .. }
            | EdgeOutput::Load { .. }
            | EdgeOutput::Trim { .. }
            | EdgeOutput::Discard { .. } => {}
        }
    }

    fn forget(&mut self, topic: &TopicName) {
        self.watched.send_modify(|watched| {
            watched.topics.remove(topic);
            watched.problems.remove(topic);
        });
        self.cancel_comparisons(|key| key.0 == *topic);
        let keys: Vec<_> = self.partitions.keys().filter(|key| key.0 == *topic).cloned().collect();
        for key in &keys {
            self.stop(key);
        }
        self.topics.remove(topic);
        self.holes.forget(topic);
    }

    fn fetch(&mut self, key: &Key, fetch: u64, offset: Offset, epoch: Option<i32>) {
        let fetched_before = self.partitions.get(key).map_or(0, |reading| reading.cursor.fetched_before());
        self.stop(key);
        let cursor = Arc::new(Cursor::new(offset, epoch, fetched_before));
        let topic_id = self.topics.get(&key.0).and_then(|topic| topic.topic_id);
        let reading = Reading { fetch, topic_id, cursor, paused: false, reader: None, in_doubt: false };
        self.partitions.insert(key.clone(), reading);
        if !self.assign(key) {
            self.look();
        }
    }

    fn stop(&mut self, key: &Key) {
        if let Some(reading) = self.partitions.remove(key) {
            self.withdraw(key, reading.reader, Change::Leave);
        }
    }

    fn withdraw(&self, key: &Key, reader: Option<i32>, change: Change) {
        if let Some(inbox) = reader.and_then(|broker| self.fetchers.get(&broker)) {
            inbox.put(key.clone(), change);
        }
    }

    fn set_paused(&mut self, key: &Key, paused: bool) {
        let Some(reading) = self.partitions.get_mut(key) else { return };
        reading.paused = paused;
        if paused {
            let reader = reading.reader.take();
            self.withdraw(key, reader, Change::Rest);
        } else if !self.assign(key) {
            self.look();
        }
    }

    /// Hands a partition to the fetcher of its leader; false where it is to be read and the leader is not known.
    fn assign(&mut self, key: &Key) -> bool {
        let Some(reading) = self.partitions.get_mut(key) else { return true };
        if reading.paused || reading.in_doubt {
            return true;
        }
        let Some(topic) = self.topics.get(&key.0) else { return false };
        if let (Some(ours), Some(found)) = (reading.topic_id, topic.topic_id)
            && ours != found
        {
            // The owner of the site hears of the other topic with this look, and decides.
            return true;
        }
        reading.topic_id = topic.topic_id;
        let leader = usize::try_from(key.1).ok().and_then(|at| topic.leaders.get(at)).copied().flatten();
        let Some((broker, leader_epoch)) = leader else { return false };
        let assignment = Assignment {
            fetch: reading.fetch,
            cursor: Arc::clone(&reading.cursor),
            topic_id: topic.topic_id,
            leader_epoch,
            on_trial: self.watched.borrow().problems.contains_key(&key.0),
        };
        let before = reading.reader.replace(broker).filter(|before| *before != broker);
        self.withdraw(key, before, Change::Leave);
        self.fetcher(broker).put(key.clone(), Change::Read(assignment));
        true
    }

    fn fetcher(&mut self, broker: i32) -> Arc<Inbox> {
        if let Some(inbox) = self.fetchers.get(&broker) {
            return Arc::clone(inbox);
        }
        let inbox = Arc::new(Inbox::default());
        let fetcher = Fetcher::new(
            broker,
            self.cluster.clone(),
            self.options.clone(),
            self.memory.max_frame,
            fetcher::Lines {
                inbox: Arc::clone(&inbox),
                share: Arc::clone(&self.share),
                room: self.room.clone(),
                notes: self.notes.clone(),
                events: self.events.clone(),
            },
        );
        self.tasks.spawn(format!("fetcher of broker {broker}"), until(self.tasks.stop_token().clone(), fetcher.run()));
        self.fetchers.insert(broker, Arc::clone(&inbox));
        self.share.store(self.memory.fetch_of(self.fetchers.len()), Ordering::Relaxed);
        inbox
    }

    /// Asks for a look at the topics soon.
    fn look(&self) {
        self.watched.send_modify(|watched| watched.looks += 1);
    }

    fn found(&mut self, found: Found) {
        for topic in found.topics {
            let same = self.topics.get(&topic.name).filter(|known| known.topic_id == topic.topic_id);
            let compacted = same.and_then(|known| known.compacted);
            let known = KnownTopic { topic_id: topic.topic_id, compacted, leaders: topic.leaders };
            let before = self.topics.insert(topic.name.clone(), known);
            let all = (topic.name.clone(), 0)..=(topic.name.clone(), Partition::MAX);
            let keys: Vec<_> = self.partitions.range(all).map(|(key, _)| key.clone()).collect();
            for key in keys {
                if self.is_out_of_date(&key, before.as_ref()) {
                    // Unknown leaders are looked for again by the next look.
                    self.assign(&key);
                }
            }
        }
        for (topic, compacted) in found.compacted {
            if let Some(known) = self.topics.get_mut(&topic) {
                known.compacted = Some(compacted || known.compacted == Some(true));
            }
        }
    }

    fn is_out_of_date(&self, key: &Key, before: Option<&KnownTopic>) -> bool {
        let Some(reading) = self.partitions.get(key) else { return false };
        let leader = |topic: &KnownTopic| {
            let leader = usize::try_from(key.1).ok().and_then(|at| topic.leaders.get(at)).copied().flatten();
            (topic.topic_id, leader)
        };
        reading.reader.is_none() || self.topics.get(&key.0).map(leader) != before.map(leader)
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Unreachable => self.look(),
            Note::Readable { topic } => self.watched.send_modify(|watched| {
                if watched.problems.remove(&topic).is_some() {
                    watched.looks += 1;
                }
            }),
            Note::Returned { key, fetch, why } => self.returned(key, fetch, &why),
            Note::Holes { key, holes } => self.tell_holes(&key, &holes),
        }
    }

    fn tell_holes(&mut self, key: &Key, holes: &[Range<Offset>]) {
        let compacted = self.topics.get(&key.0).and_then(|topic| topic.compacted);
        let Some(found) = self.holes.found(key, holes, compacted) else { return };
        metrics::counter!("tombolo_source_hole_offsets_total").increment(found.offsets);
        if found.is_first {
            tracing::warn!(
                topic = %key.0, partition = key.1, from = found.hole.start, to = found.hole.end - 1, offsets = found.offsets,
                "the source holds nothing at these offsets, though its topic is not compacted: records may have been lost \
                 there. The mirror has a gap; compare the replicas of the source"
            );
        }
    }

    fn returned(&mut self, key: Key, fetch: u64, why: &Why) {
        let Some(reading) = self.partitions.get_mut(&key).filter(|reading| reading.fetch == fetch) else { return };
        reading.reader = None;
        match *why {
            Why::Trouble(code) => {
                tracing::debug!(topic = %key.0, partition = key.1, %code, "leader looked for again");
                self.look();
            }
            Why::OutOfRange { offset } => {
                reading.in_doubt = true;
                let (cluster, events) = (self.cluster.clone(), self.events.clone());
                self.jobs.push(Box::pin(async move {
                    match tail::find_offset(&cluster, &key.0, key.1, offset).await {
                        Ok(()) => Done::InRange { key, fetch },
                        Err(missing) => {
                            let (topic, partition) = key;
                            let input = match missing {
                                Missing::Deleted { log_start } => {
                                    tracing::info!(%topic, partition, offset, log_start, "the source's log starts above");
                                    EdgeInput::Overtaken { topic, partition, fetch, log_start }
                                }
                                Missing::Truncated(failure) => EdgeInput::FetchFailed { topic, fetch, failure },
                            };
                            // Nobody listens when the process ends.
                            drop(events.send(SourceEvent::Inputs(vec![input])).await);
                            Done::OutOfRange
                        }
                    }
                }));
            }
            Why::Denied(code) => {
                let topic = key.0;
                self.watched.send_if_modified(|watched| {
                    let problem = format!("the source refuses to let topic {topic} be read: {code}; grant READ on it");
                    let is_new = watched.problems.insert(topic, problem).is_none();
                    watched.looks += u64::from(is_new);
                    is_new
                });
            }
            Why::Failed | Why::Overtaken => {
                self.partitions.remove(&key);
            }
        }
    }

    /// Finds out what partitions wait for whose last stable offset stays where it is.
    fn look_for_hanging(&mut self) {
        let Some(told) = self.hanging else { return };
        let stalled = |(key, reading): (&Key, &Reading)| {
            let reads = reading.reader.is_some() && !reading.in_doubt;
            reads.then(|| reading.cursor.stalled(hanging::PATIENCE)).flatten().map(|offset| (key.clone(), offset))
        };
        let stalled: BTreeMap<_, _> = self.partitions.iter().filter_map(stalled).collect();
        if stalled.is_empty() && !told {
            return;
        }
        self.hanging = None;
        let (cluster, events) = (self.cluster.clone(), self.events.clone());
        self.jobs.push(Box::pin(async move {
            let found = hanging::find(&cluster, stalled).await;
            let some = !found.is_empty();
            // Nobody listens when the process ends.
            drop(events.send(SourceEvent::Hanging(found)).await);
            Done::Hanging(some)
        }));
    }

    fn compare(&mut self, question: tail::Question) {
        let key = (question.topic.clone(), question.partition);
        self.cancel_comparisons(|other| *other == key);
        let cancel = CancellationToken::new();
        let ticket = question.ticket;
        self.comparisons.insert(key.clone(), (ticket, cancel.clone()));
        let (cluster, events) = (self.cluster.clone(), self.events.clone());
        let comparing = Arc::clone(&self.comparing);
        let limit = self.options.partition_max_bytes;
        self.jobs.push(Box::pin(async move {
            let work = async {
                // The semaphore is never closed.
                let _turn = comparing.acquire().await;
                let input = tail::compare_with_source(&cluster, question, limit).await;
                drop(events.send(SourceEvent::Inputs(vec![input])).await);
            };
            tokio::select! {
                () = work => {}
                () = cancel.cancelled() => {}
            }
            Done::Compared { key, ticket }
        }));
    }

    fn cancel_comparisons(&mut self, which: impl Fn(&Key) -> bool) {
        self.comparisons.retain(|key, (_, cancel)| {
            let cancelled = which(key);
            if cancelled {
                cancel.cancel();
            }
            !cancelled
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Compared { key, ticket } => {
                if self.comparisons.get(&key).is_some_and(|(current, _)| *current == ticket) {
                    self.comparisons.remove(&key);
                }
            }
            Done::InRange { key, fetch } => {
                if let Some(reading) = self.partitions.get_mut(&key).filter(|reading| reading.fetch == fetch) {
                    reading.in_doubt = false;
                    self.look();
                }
            }
            Done::OutOfRange => {}
            Done::Hanging(some) => self.hanging = Some(some),
        }
    }
}
