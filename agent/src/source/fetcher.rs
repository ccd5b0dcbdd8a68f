//! Reads all partitions of one leader over one connection, with an incremental session where the broker grants one.
//!
//! Holds at most one answer: it asks for more when the owner of the site has taken what it brought, and while the window
//! is full for nothing at all. Must never: give up, spin, or keep an idle partition in a request's way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::block_in_place;
use tokio::time::Instant;
use tombolo_kafka::fetch::{
    FetchOnce, FetchOptions, FetchPosition, FetchSession, FetchedPartition, Isolation, fetch_once,
};
use tombolo_kafka::{Cluster, ErrorCode, KafkaError, TopicId};
use tombolo_proto::edge::EdgeInput;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{Offset, TopicName};

use super::records::{Answer, Read, Stop, Taken, makes_anew, take, unshared};
use super::{Key, Note, SourceEvent, Why};

const RECONNECT_MIN: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Pause after an answer that came at once and brought nothing: not every broker waits when it should.
const EMPTY_PAUSE: Duration = Duration::from_millis(50);
/// A partition that rests is back within milliseconds as a rule. For so long the broker is not asked to wait for records of
/// the others: it would keep the returning one waiting behind them.
const SHORT_REST: Duration = Duration::from_secs(1);
/// Most that one batch is asked for with when the usual limits cut it off, beyond the largest frame.
const ONE_BATCH_EXTRA: usize = 64 << 10;

/// How far a partition was read. Moves with the partition from fetcher to fetcher.
#[derive(Debug)]
pub(super) struct Cursor(Mutex<Place>);

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: Offset,
    /// Leader epoch of the last batch, where it is known.
    epoch: Option<i32>,
    /// What this process has fetched before, at most.
    fetched_before: Offset,
    /// The last stable offset, while it is below the high watermark, and since when it has been there.
    unsettled: Option<(Offset, Instant)>,
}

impl Cursor {
    /// `epoch`: leader epoch of the record before `offset`, where it is known.
    pub(super) fn new(offset: Offset, epoch: Option<i32>, fetched_before: Offset) -> Self {
        Self(Mutex::new(Place { offset, epoch, fetched_before, unsettled: None }))
    }

    /// The last stable offset, where reading has come to it and it has not moved for so long.
    pub(super) fn stalled(&self, patience: Duration) -> Option<Offset> {
        let place = *self.place();
        let (last_stable, since) = place.unsettled?;
        (place.offset >= last_stable && since.elapsed() >= patience).then_some(last_stable)
    }

    /// What a broker says of the log's end.
    fn note_end(&self, last_stable: Offset, high_watermark: Offset) {
        let mut place = self.place();
        place.unsettled = match place.unsettled {
            _ if last_stable < 0 || last_stable >= high_watermark => None,
            Some((before, since)) if before == last_stable => Some((before, since)),
            Some(_) | None => Some((last_stable, Instant::now())),
        };
    }

    pub(super) fn fetched_before(&self) -> Offset {
        let place = self.place();
        place.fetched_before.max(place.offset)
    }

    /// Plain values: a panic elsewhere leaves nothing half done.
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A partition to be read.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) fetch: u64,
    pub(super) cursor: Arc<Cursor>,
    pub(super) topic_id: Option<TopicId>,
    pub(super) leader_epoch: i32,
    /// Reading it was refused before: say so when it works.
    pub(super) on_trial: bool,
}

impl Assignment {
    fn position(&self) -> FetchPosition {
        let place = *self.cursor.place();
        FetchPosition { offset: place.offset, current_leader_epoch: self.leader_epoch, last_fetched_epoch: place.epoch }
    }
}

/// What is to change about a partition.
#[derive(Debug)]
pub(super) enum Change {
    /// It is read from the assignment's cursor on.
    Read(Assignment),
    /// It is not read for a moment: it holds its share of the window.
    Rest,
    /// It is read no more.
    Leave,
}

/// What is to change for a fetcher, at most one change a partition: giving one in never waits.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    changes: Mutex<BTreeMap<Key, Change>>,
    bell: Notify,
}

impl Inbox {
    pub(super) fn put(&self, key: Key, change: Change) {
        self.changes().insert(key, change);
        self.bell.notify_one();
    }

    fn take(&self) -> BTreeMap<Key, Change> {
        std::mem::take(&mut *self.changes())
    }

    fn changes(&self) -> MutexGuard<'_, BTreeMap<Key, Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who a fetcher speaks with.
pub(super) struct Lines {
    pub(super) inbox: Arc<Inbox>,
    /// Bytes of records to ask for.
    pub(super) share: Arc<AtomicI32>,
    pub(super) room: watch::Receiver<bool>,
    pub(super) notes: mpsc::Sender<Note>,
    pub(super) events: mpsc::Sender<SourceEvent>,
}

pub(super) struct Fetcher {
    broker: i32,
    cluster: Cluster,
    options: FetchOptions,
    max_batch: usize,
    lines: Lines,
    partitions: BTreeMap<Key, Assignment>,
    /// Partitions that rest, and since when.
    resting: BTreeMap<Key, Instant>,
}

/// Partitions that are to be read no more, and why.
type Returns = Vec<(Key, u64, Why)>;

impl Fetcher {
    pub(super) fn new(broker: i32, cluster: Cluster, options: FetchOptions, max_batch: usize, lines: Lines) -> Self {
        Self { broker, cluster, options, max_batch, lines, partitions: BTreeMap::new(), resting: BTreeMap::new() }
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        let backoff =
            ExponentialBuilder::new().with_min_delay(RECONNECT_MIN).with_max_delay(RECONNECT_MAX).with_jitter();
        let backoff = backoff.without_max_times();
        let mut delays = backoff.build();
        loop {
            self.wait_for_partitions().await;
            let error = match self.cluster.connect(self.broker).await {
                Ok(connection) => {
                    let mut session = FetchSession::new(connection, self.options.clone());
                    for (key, assignment) in &self.partitions {
                        add(&mut session, key, assignment);
                    }
                    let (error, answered) = self.read(&mut session).await;
                    if answered {
                        delays = backoff.build();
                    }
                    error
                }
                Err(error) => error,
            };
            tracing::debug!(broker = self.broker, %error, "fetching interrupted");
            self.note(Note::Unreachable).await;
            tokio::time::sleep(delays.next().unwrap_or(RECONNECT_MAX)).await;
        }
    }

    async fn note(&self, note: Note) {
        // Nobody listens when the process ends.
        drop(self.lines.notes.send(note).await);
    }

    /// A fetcher without partitions needs no connection.
    async fn wait_for_partitions(&mut self) {
        loop {
            self.take_changes(None);
            if !self.partitions.is_empty() {
                return;
            }
            self.lines.inbox.bell.notified().await;
        }
    }

    /// Reads until the connection fails. Also tells whether anything was answered.
    async fn read(&mut self, session: &mut FetchSession) -> (KafkaError, bool) {
        let mut answered = false;
        loop {
            self.take_changes(Some(session));
            if self.partitions.is_empty() {
                self.lines.inbox.bell.notified().await;
                continue;
            }
            if !*self.lines.room.borrow_and_update() {
                tokio::select! {
                    // The owner's end lives as long as the process.
                    _ = self.lines.room.changed() => {}
                    () = self.lines.inbox.bell.notified() => {}
                }
                continue;
            }
            let patient = self.is_patient();
            session.set_max_wait(if patient { self.options.max_wait } else { Duration::ZERO });
            session.set_max_bytes(self.lines.share.load(Ordering::Relaxed));
            let asked = Instant::now();
            let fetched = match session.fetch().await {
                Ok(fetched) => fetched,
                Err(error) => return (error, answered),
            };
            answered = true;
            let idle = fetched.iter().all(|partition| partition.records.is_empty());
            let nothing = fetched.is_empty();
            if let Err(error) = self.deliver(session, fetched).await {
                return (error, answered);
            }
            if idle && !patient {
                // The one that comes back rings.
                drop(tokio::time::timeout(EMPTY_PAUSE, self.lines.inbox.bell.notified()).await);
            } else if nothing && asked.elapsed() < EMPTY_PAUSE {
                tokio::time::sleep(EMPTY_PAUSE).await;
            }
        }
    }

    /// Whether the broker may wait for records.
    fn is_patient(&mut self) -> bool {
        self.resting.retain(|_, since| since.elapsed() < SHORT_REST);
        self.resting.is_empty()
    }

    fn take_changes(&mut self, mut session: Option<&mut FetchSession>) {
        for (key, change) in self.lines.inbox.take() {
            self.resting.remove(&key);
            if let Change::Read(assignment) = change {
                if let Some(session) = &mut session {
                    add(session, &key, &assignment);
                }
                self.partitions.insert(key, assignment);
                continue;
            }
            if let Some(session) = &mut session {
                session.remove(key.0.as_str(), key.1);
            }
            self.partitions.remove(&key);
            if let Change::Rest = change {
                self.resting.insert(key, Instant::now());
            }
        }
    }

    /// Hands an answer to the owner of the site, and waits until it is taken.
    async fn deliver(&mut self, session: &mut FetchSession, fetched: Vec<FetchedPartition>) -> Result<(), KafkaError> {
        let others = fetched.iter().filter(|partition| !partition.records.is_empty()).count() > 1;
        let mut inputs = Vec::new();
        let mut returns = Returns::new();
        let mut places = Vec::new();
        let mut readable = Vec::new();
        for partition in fetched {
            let Ok(topic) = TopicName::new(&partition.topic) else { continue };
            let key = (topic, partition.partition);
            let Some(assignment) = self.partitions.get_mut(&key) else { continue };
            if let Some(why) = refused(&partition, assignment, &key, &mut inputs) {
                returns.push((key, assignment.fetch, why));
                continue;
            }
            if std::mem::take(&mut assignment.on_trial) {
                readable.push(key.0.clone());
            }
            let assignment = assignment.clone();
            assignment.cursor.note_end(partition.last_stable_offset, partition.high_watermark);
            let read = match self.read_answer(session, &key, &assignment, partition, others).await? {
                Ok(read) => read,
                Err(code) => {
                    returns.push((key, assignment.fetch, Why::Trouble(code)));
                    continue;
                }
            };
            let (taken, high_watermark, log_start) = read;
            let Taken { entries, stop, next, epoch, starved: _, read, remade, holes } = taken;
            let (topic, partition, fetch) = (key.0.clone(), key.1, assignment.fetch);
            count(read, remade);
            if remade > 0 {
                // That was work: others of this thread are to have their turn.
                tokio::task::yield_now().await;
            }
            if !holes.is_empty() {
                self.note(Note::Holes { key: key.clone(), holes }).await;
            }
            let of = topic.clone();
            inputs.push(EdgeInput::Fetched { topic: of, partition, fetch, entries, epoch, high_watermark, log_start });
            match stop {
                Some(Stop::Failed(failure)) => {
                    inputs.push(EdgeInput::FetchFailed { topic, fetch, failure });
                    returns.push((key, fetch, Why::Failed));
                }
                Some(Stop::Overtaken) => {
                    inputs.push(EdgeInput::Overtaken { topic, partition, fetch, log_start });
                    returns.push((key, fetch, Why::Overtaken));
                }
                None => places.push((key, assignment, next, epoch)),
            }
        }
        if !inputs.is_empty() {
            drop(self.lines.events.send(SourceEvent::Inputs(inputs)).await);
        }
        // Only what is delivered counts as read: whoever takes the partition over delivers after it.
        for (key, assignment, next, epoch) in places {
            {
                let mut place = assignment.cursor.place();
                // A broker that was slow to let go of the partition may still deliver what another has read since.
                if next > place.offset {
                    (place.offset, place.epoch) = (next, epoch);
                }
            }
            session.advance(key.0.as_str(), key.1, assignment.position());
        }
        for (key, fetch, why) in returns {
            session.remove(key.0.as_str(), key.1);
            self.partitions.remove(&key);
            self.note(Note::Returned { key, fetch, why }).await;
        }
        for topic in readable {
            self.note(Note::Readable { topic }).await;
        }
        Ok(())
    }

    /// What an answer holds of a partition, with high watermark and log start. Asks for the next batch alone where not even
    /// that was whole.
    async fn read_answer(
        &self,
        session: &FetchSession,
        key: &Key,
        assignment: &Assignment,
        partition: FetchedPartition,
        others: bool,
    ) -> Result<Result<(Taken, Offset, Offset), ErrorCode>, KafkaError> {
        let ends = (partition.high_watermark, partition.log_start_offset);
        let taken = work(self.answer(partition, assignment, others));
        if !taken.starved {
            return Ok(Ok((taken, ends.0, ends.1)));
        }
        let offset = assignment.cursor.place().offset;
        let whole = self.ask_for_one(session, key, assignment, offset).await?;
        if let Some(code) = whole.error {
            return Ok(Err(code));
        }
        let ends = (whole.high_watermark, whole.log_start_offset);
        let mut taken = work(self.answer(whole, assignment, false));
        if taken.starved {
            taken.stop = Some(Stop::Failed(unreadable(key, offset, self.one_batch())));
        }
        Ok(Ok((taken, ends.0, ends.1)))
    }

    fn answer(&self, fetched: FetchedPartition, assignment: &Assignment, others: bool) -> Answer {
        let place = *assignment.cursor.place();
        Answer {
            partition: fetched.partition,
            offset: place.offset,
            log_start: fetched.log_start_offset,
            records: unshared(fetched.records, others),
            aborted: fetched.aborted,
            read_before: place.fetched_before,
            max_batch: self.max_batch,
        }
    }

    fn one_batch(&self) -> usize {
        self.max_batch + ONE_BATCH_EXTRA
    }

    /// The next batch alone, however large: the usual limits cut it off.
    async fn ask_for_one(
        &self,
        session: &FetchSession,
        key: &Key,
        assignment: &Assignment,
        offset: Offset,
    ) -> Result<FetchedPartition, KafkaError> {
        let once = FetchOnce {
            topic: &key.0.shared(),
            topic_id: assignment.topic_id,
            partition: key.1,
            offset,
            leader_epoch: assignment.leader_epoch,
            max_bytes: i32::try_from(self.one_batch()).unwrap_or(i32::MAX),
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadCommitted,
        };
        fetch_once(session.connection(), once).await
    }
}

fn add(session: &mut FetchSession, key: &Key, assignment: &Assignment) {
    session.add(&key.0.shared(), assignment.topic_id, key.1, assignment.position());
}

/// Why the broker gives nothing of the partition, if so.
fn refused(
    partition: &FetchedPartition,
    assignment: &Assignment,
    key: &Key,
    inputs: &mut Vec<EdgeInput>,
) -> Option<Why> {
    if let Some((epoch, end_offset)) = partition.diverging_epoch {
        let offset = assignment.cursor.place().offset;
        let failure = parted(key, offset, epoch, end_offset);
        inputs.push(EdgeInput::FetchFailed { topic: key.0.clone(), fetch: assignment.fetch, failure });
        return Some(Why::Failed);
    }
    match partition.error? {
        ErrorCode::OFFSET_OUT_OF_RANGE => Some(Why::OutOfRange { offset: assignment.cursor.place().offset }),
        code @ ErrorCode::TOPIC_AUTHORIZATION_FAILED => Some(Why::Denied(code)),
        // Retriable or not: the next look shows whether the topic is still there, and it is tried again.
        code => Some(Why::Trouble(code)),
    }
}

/// The source's log was cut back below what was read from it, and goes on with other records.
fn parted(key: &Key, offset: Offset, epoch: i32, end_offset: Offset) -> Failure {
    let detail = format!(
        "the source lost the records from offset {end_offset} on, of which those below {offset} were read before (its \
         leader epoch {epoch} ends there): an unclean leader election"
    );
    Failure::at(FailureCode::UnexpectedTruncation, key.1, end_offset, detail).until(offset.max(end_offset + 1))
}

fn unreadable(key: &Key, offset: Offset, asked: usize) -> Failure {
    let detail = format!(
        "the source gives no whole batch here when asked for {asked} bytes: raise memory.max_frame on both sides"
    );
    Failure::at(FailureCode::BatchTooLarge, key.1, offset, detail)
}

/// Takes an answer. Where batches of it must be made anew, which may take seconds, the thread's other tasks go on elsewhere.
fn work(answer: Answer) -> Taken {
    let elsewhere = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if elsewhere && makes_anew(&answer) { block_in_place(|| take(answer)) } else { take(answer) }
}

fn count(read: Read, remade: u64) {
    if read != Read::default() {
        metrics::counter!("tombolo_fetched_bytes_total").increment(read.bytes as u64);
        metrics::counter!("tombolo_refetched_bytes_total").increment(read.again as u64);
    }
    if remade > 0 {
        metrics::counter!("tombolo_reencoded_batches_total").increment(remade);
    }
}

#[cfg(test)]
#[path = "fetcher/fetcher_test.rs"]
mod tests;
