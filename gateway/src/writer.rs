//! Appends batches: a few connections to each leader, every batch answered exactly once.
//!
//! A lane is one connection and the task that owns it. It sends what is queued, one batch per partition and request,
//! several requests in flight, in the order the session gave it. A lane's queue needs no bound of its own: a partition
//! has at most five batches out, and the bytes of all of them are within the link's credit.
//!
//! One lane is filled before the next is used, so that requests carry batches of many partitions: what a batch of its own
//! request costs a broker is many times what it costs in company. A partition stays with its lane for as long as it has
//! batches there. A broker answers a connection in order, so a partition that cannot be written holds up whatever shares
//! its lane: a lane that waits is passed over, and the partition goes to the last one until it was written.
//!
//! Must never: send a batch anywhere but to the leader that the partition's log end was read from; write without the
//! lease, which the connection asks before each write.

mod lane;
mod outcome;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tombolo_kafka::produce::{self, ProduceAnswer, ProduceBatch};
use tombolo_kafka::{Connection, ErrorCode, KafkaError, TopicId};
use tombolo_proto::id::{MirrorId, Offset, Partition, TopicName};
use tombolo_proto::mirror::Outcome;
use tombolo_service::tasks::Tasks;

use crate::leased::{LeasedCluster, NotReady};
use crate::metrics;
use crate::registry::Lapse;
use crate::session::Event;
use crate::settings::ProduceSettings;
use lane::Lane;

/// Requests in flight on one connection.
const MAX_REQUESTS: usize = 5;
/// An answer that puts a batch in doubt is held back for so long: the partition looks at its log and tries again at
/// once, and a broker that cannot help now would be asked a thousand times a second.
const DOUBT_PACE: Duration = Duration::from_millis(100);

/// A batch to append.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) mirror: MirrorId,
    pub(crate) partition: Partition,
    pub(crate) ticket: u64,
    pub(crate) topic: TopicName,
    /// Of the topic that was looked at, where brokers tell.
    pub(crate) topic_id: Option<TopicId>,
    /// Where it must end up.
    pub(crate) offset: Offset,
    pub(crate) batch: Bytes,
    /// It was sent before in this session.
    pub(crate) again: bool,
}

impl Job {
    fn place(&self) -> Place {
        (self.mirror, self.partition)
    }
}

type Place = (MirrorId, Partition);

/// The lanes of one session.
#[derive(Debug)]
pub(crate) struct Writers {
    context: Context,
    tasks: Tasks,
    /// Of each leader; one is opened when it is first used.
    lanes: BTreeMap<i32, Vec<Option<Arc<Lane>>>>,
}

/// What all lanes of a session share.
#[derive(Debug, Clone)]
struct Context {
    cloud: LeasedCluster,
    settings: ProduceSettings,
    events: mpsc::Sender<Event>,
    /// Partitions whose replicas did not follow when they were last written.
    hanging: Arc<Mutex<HashSet<Place>>>,
}

impl Writers {
    pub(crate) fn new(
        cloud: LeasedCluster,
        settings: ProduceSettings,
        events: mpsc::Sender<Event>,
        tasks: Tasks,
    ) -> Self {
        let context = Context { cloud, settings, events, hanging: Arc::default() };
        Self { context, tasks, lanes: BTreeMap::new() }
    }

    /// Queues a batch for the broker; [`Event::Produced`] follows.
    pub(crate) fn write(&mut self, broker: i32, job: Job) {
        let settings = self.context.settings;
        let lanes = self.lanes.entry(broker).or_insert_with(|| vec![None; settings.connections_per_broker.max(1)]);
        let now = Instant::now();
        let slot = lane::choose(lanes, job.place(), self.context.hangs(job.place()), settings.request_bytes, now);
        if let Some(place) = lanes.get_mut(slot) {
            let open = || open_lane(&self.context, &self.tasks, broker, slot);
            place.get_or_insert_with(open).put(job, now);
        }
    }
}

fn open_lane(context: &Context, tasks: &Tasks, broker: i32, slot: usize) -> Arc<Lane> {
    let lane = Arc::<Lane>::default();
    let run = run(Arc::clone(&lane), context.clone(), broker);
    let stop = tasks.stop_token().clone();
    tasks.spawn(format!("writer {broker}/{slot}"), async move {
        tokio::select! {
            () = run => {}
            () = stop.cancelled() => {}
        }
    });
    lane
}

impl Drop for Writers {
    /// What was never sent because the lease had lapsed, or another session had taken the link, is told: it is the lease
    /// at work.
    fn drop(&mut self) {
        if self.context.cloud.lease.permits().is_err() {
            let left = self.lanes.values().flatten().flatten().map(|lane| lane.queued()).sum();
            metrics::stale_answers("lease", left);
        }
    }
}

/// A request that was sent, and its answer.
struct Sent {
    jobs: Vec<Job>,
    since: Instant,
    result: Result<Vec<ProduceAnswer>, KafkaError>,
}

type Requests = FuturesUnordered<BoxFuture<'static, Sent>>;
type Delayed = FuturesUnordered<BoxFuture<'static, Event>>;

async fn run(lane: Arc<Lane>, context: Context, broker: i32) {
    let mut connection: Option<Connection> = None;
    let mut requests = Requests::new();
    let mut delayed = Delayed::new();
    loop {
        let events = tokio::select! {
            Some(sent) = requests.next() => {
                lane.answered(&sent.jobs);
                context.events_of(&sent, &delayed)
            }
            Some(event) = delayed.next() => vec![event],
            () = lane.filled(), if requests.len() < MAX_REQUESTS => Vec::new(),
        };
        for event in events {
            if context.events.send(event).await.is_err() {
                return;
            }
        }
        let broken = connection.as_ref().is_none_or(Connection::is_poisoned);
        // What a broken connection had in flight is answered first: nothing overtakes it.
        if broken && !requests.is_empty() {
            continue;
        }
        while requests.len() < MAX_REQUESTS && lane.queued() > 0 {
            // Jobs stay in the queue meanwhile: a session that ends here counts what the lease kept back.
            let ready = context.cloud.ready(&mut connection, broker).await;
            let jobs = lane.gather(context.settings.request_bytes);
            match ready {
                Ok(connection) => {
                    let since = Instant::now();
                    lane.sent(since);
                    requests.push(context.send(&connection, jobs, since));
                }
                Err(cause) => {
                    lane.let_go(&jobs);
                    context.put_off(&jobs, &cause, &delayed);
                    break;
                }
            }
        }
        if lane.queued() > 0 && requests.is_empty() {
            lane.ring();
        }
    }
}

impl Context {
    fn hangs(&self, place: Place) -> bool {
        self.hanging().contains(&place)
    }

    /// Held for an instant only.
    fn hanging(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a broker answered for partitions.
    fn note_hanging(&self, jobs: &[Job], answers: &[ProduceAnswer]) {
        let mut hanging = self.hanging();
        for (job, answer) in jobs.iter().zip(answers) {
            match answer.result {
                Err(
                    ErrorCode::REQUEST_TIMED_OUT
                    | ErrorCode::NOT_ENOUGH_REPLICAS
                    | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
                ) => {
                    hanging.insert(job.place());
                }
                Ok(_) if !hanging.is_empty() => {
                    hanging.remove(&job.place());
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn send(&self, connection: &Connection, jobs: Vec<Job>, since: Instant) -> BoxFuture<'static, Sent> {
        let batches = jobs
            .iter()
            .map(|job| ProduceBatch {
                topic: job.topic.shared(),
                topic_id: job.topic_id,
                partition: job.partition,
                batch: job.batch.clone(),
            })
            .collect();
        let answer = produce::send_produce(connection, batches, self.settings.timeout);
        Box::pin(async move {
            let result = answer.await;
            Sent { jobs, since, result }
        })
    }

    /// What the session hears now; doubts come later, through `delayed`.
    fn events_of(&self, sent: &Sent, delayed: &Delayed) -> Vec<Event> {
        metrics::write_seconds(sent.since.elapsed());
        let outcomes: Vec<Outcome> = match &sent.result {
            Ok(answers) => {
                self.note_hanging(&sent.jobs, answers);
                answers.iter().map(|answer| outcome::of_answer(answer.result, answer.message.as_deref())).collect()
            }
            Err(error) => {
                if error.is_lapse() {
                    metrics::stale_answers("lease", sent.jobs.len());
                }
                sent.jobs.iter().map(|_| outcome::of_error(error)).collect()
            }
        };
        let mut now = Vec::with_capacity(outcomes.len());
        for (job, outcome) in sent.jobs.iter().zip(outcomes) {
            count(job, &outcome);
            if let Outcome::Doubt { reason } = outcome {
                self.cloud.cluster.forget_leader(job.topic.as_str(), job.partition);
                put_off(job, reason, delayed);
            } else {
                now.push(produced(job, outcome));
            }
        }
        now
    }

    /// Answers jobs that were never sent.
    fn put_off(&self, jobs: &[Job], cause: &NotReady, delayed: &Delayed) {
        if matches!(cause, NotReady::Lease(_)) {
            metrics::stale_answers("lease", jobs.len());
        }
        let reason = cause.to_string();
        for job in jobs {
            self.cloud.cluster.forget_leader(job.topic.as_str(), job.partition);
            put_off(job, reason.clone(), delayed);
        }
    }
}

fn put_off(job: &Job, reason: String, delayed: &Delayed) {
    let event = produced(job, Outcome::Doubt { reason });
    delayed.push(Box::pin(async move {
        tokio::time::sleep(DOUBT_PACE).await;
        event
    }));
}

fn produced(job: &Job, outcome: Outcome) -> Event {
    Event::Produced { mirror: job.mirror, partition: job.partition, ticket: job.ticket, outcome }
}

fn count(job: &Job, outcome: &Outcome) {
    match outcome {
        Outcome::Appended { base_offset } if *base_offset == job.offset => {
            metrics::confirmed_bytes(job.batch.len());
            if job.again {
                metrics::duplicate_discarded();
            }
        }
        Outcome::Appended { .. } => metrics::stale_answers("shifted", 1),
        Outcome::Sequence => metrics::stale_answers("sequence", 1),
        Outcome::Doubt { .. } | Outcome::Refused { .. } => {}
    }
}
