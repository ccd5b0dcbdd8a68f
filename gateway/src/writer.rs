//! Appends batches: a few connections to each leader, partitions spread over them, every batch answered exactly once.
//!
//! A lane is one connection and the task that owns it. It sends what is queued, one batch per partition and request,
//! several requests in flight, in the order the session gave it. A lane's queue needs no bound of its own: a partition
//! has at most five batches out, and the bytes of all of them are within the link's credit.
//!
//! Must never: send a batch anywhere but to the leader that the partition's log end was read from; write without the
//! lease, which the connection asks before each write.

mod outcome;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tombolo_kafka::produce::{self, ProduceAnswer, ProduceBatch};
use tombolo_kafka::{Connection, KafkaError, TopicId};
use tombolo_proto::id::{MirrorId, Offset, Partition, TopicName};
use tombolo_proto::mirror::Outcome;
use tombolo_service::tasks::Tasks;

use crate::leased::{LeasedCluster, NotReady};
use crate::metrics;
use crate::registry::Lapse;
use crate::session::Event;
use crate::settings::ProduceSettings;

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

/// The lanes of one session.
#[derive(Debug)]
pub(crate) struct Writers {
    context: Context,
    tasks: Tasks,
    lanes: BTreeMap<(i32, usize), Arc<Lane>>,
}

/// What all lanes of a session share.
#[derive(Debug, Clone)]
struct Context {
    cloud: LeasedCluster,
    settings: ProduceSettings,
    events: mpsc::Sender<Event>,
}

#[derive(Debug, Default)]
struct Lane {
    queue: Mutex<VecDeque<Job>>,
    ready: Notify,
}

impl Writers {
    pub(crate) fn new(
        cloud: LeasedCluster,
        settings: ProduceSettings,
        events: mpsc::Sender<Event>,
        tasks: Tasks,
    ) -> Self {
        let context = Context { cloud, settings, events };
        Self { context, tasks, lanes: BTreeMap::new() }
    }

    /// Queues a batch for the broker; [`Event::Produced`] follows.
    pub(crate) fn write(&mut self, broker: i32, job: Job) {
        let spread = job.mirror.0 as usize + usize::try_from(job.partition).unwrap_or(0);
        let slot = spread % self.context.settings.connections_per_broker;
        let lane = self.lanes.entry((broker, slot)).or_insert_with(|| {
            let lane = Arc::<Lane>::default();
            let run = run(Arc::clone(&lane), self.context.clone(), broker);
            let stop = self.tasks.stop_token().clone();
            self.tasks.spawn(format!("writer {broker}/{slot}"), async move {
                tokio::select! {
                    () = run => {}
                    () = stop.cancelled() => {}
                }
            });
            lane
        });
        lane.queue().push_back(job);
        lane.ready.notify_one();
    }
}

impl Drop for Writers {
    /// What was never sent because the lease had lapsed, or another session had taken the link, is told: it is the lease
    /// at work.
    fn drop(&mut self) {
        if self.context.cloud.lease.permits().is_err() {
            let left = self.lanes.values().map(|lane| lane.queue().len()).sum();
            metrics::stale_answers("lease", left);
        }
    }
}

impl Lane {
    /// Held for an instant only.
    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request: jobs in order, one of a partition, up to `bytes`. It names topics by id or by name, all of them,
    /// and each once.
    fn gather(&self, bytes: usize) -> Vec<Job> {
        let mut queue = self.queue();
        let mut room = bytes;
        let mut taken = HashSet::new();
        let mut ids: HashMap<MirrorId, Option<TopicId>> = HashMap::new();
        let mut by_id = None;
        let mut jobs = Vec::new();
        let mut left = VecDeque::new();
        while let Some(job) = queue.pop_front() {
            let place = (job.mirror, job.partition);
            let has_id = job.topic_id.is_some();
            let same = *by_id.get_or_insert(has_id) == has_id
                && *ids.entry(job.mirror).or_insert(job.topic_id) == job.topic_id;
            let fits = same && (jobs.is_empty() || job.batch.len() <= room);
            if fits && taken.insert(place) {
                room = room.saturating_sub(job.batch.len());
                jobs.push(job);
            } else {
                // What follows of this partition must stay behind it.
                taken.insert(place);
                left.push_back(job);
                if room == 0 {
                    break;
                }
            }
        }
        left.append(&mut queue);
        *queue = left;
        jobs
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
            Some(sent) = requests.next() => context.events_of(&sent, &delayed),
            Some(event) = delayed.next() => vec![event],
            () = lane.ready.notified(), if requests.len() < MAX_REQUESTS => Vec::new(),
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
        while requests.len() < MAX_REQUESTS && !lane.queue().is_empty() {
            // Jobs stay in the queue meanwhile: a session that ends here counts what the lease kept back.
            let ready = context.cloud.ready(&mut connection, broker).await;
            let jobs = lane.gather(context.settings.request_bytes);
            match ready {
                Ok(connection) => requests.push(context.send(&connection, jobs)),
                Err(cause) => {
                    context.put_off(&jobs, &cause, &delayed);
                    break;
                }
            }
        }
        if !lane.queue().is_empty() && requests.is_empty() {
            lane.ready.notify_one();
        }
    }
}

impl Context {
    fn send(&self, connection: &Connection, jobs: Vec<Job>) -> BoxFuture<'static, Sent> {
        let batches = jobs
            .iter()
            .map(|job| ProduceBatch {
                topic: job.topic.shared(),
                topic_id: job.topic_id,
                partition: job.partition,
                batch: job.batch.clone(),
            })
            .collect();
        let since = Instant::now();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn job(partition: Partition, ticket: u64, bytes: usize) -> Job {
        Job {
            mirror: MirrorId(0),
            partition,
            ticket,
            topic: TopicName::new("t").unwrap(),
            topic_id: Some([1; 16]),
            offset: 0,
            batch: Bytes::from(vec![0; bytes]),
            again: false,
        }
    }

    fn gathered(lane: &Lane, bytes: usize) -> Vec<(Partition, u64)> {
        lane.gather(bytes).iter().map(|job| (job.partition, job.ticket)).collect()
    }

    #[test]
    fn a_request_takes_one_batch_of_a_partition_and_keeps_order() {
        let lane = Lane::default();
        lane.queue().extend([job(0, 0, 10), job(0, 1, 10), job(1, 0, 10), job(0, 2, 10)]);
        assert_eq!(gathered(&lane, 100), [(0, 0), (1, 0)]);
        assert_eq!(gathered(&lane, 100), [(0, 1)]);
        assert_eq!(gathered(&lane, 100), [(0, 2)]);
        assert_eq!(gathered(&lane, 100), []);
    }

    #[test]
    fn a_batch_that_does_not_fit_is_not_overtaken_by_its_successor() {
        let lane = Lane::default();
        lane.queue().extend([job(0, 0, 60), job(1, 0, 60), job(1, 1, 10), job(2, 0, 10)]);
        assert_eq!(gathered(&lane, 100), [(0, 0), (2, 0)]);
        assert_eq!(gathered(&lane, 100), [(1, 0)]);
        assert_eq!(gathered(&lane, 100), [(1, 1)]);
    }

    #[test]
    fn a_request_names_topics_in_one_way_and_each_once() {
        let lane = Lane::default();
        let of = |id: Option<u8>, job| Job { topic_id: id.map(|id| [id; 16]), ..job };
        lane.queue().extend([
            of(Some(1), job(0, 0, 10)),
            of(None, Job { mirror: MirrorId(1), ..job(5, 0, 10) }),
            of(Some(2), job(1, 0, 10)),
            of(Some(1), job(2, 0, 10)),
        ]);
        assert_eq!(gathered(&lane, 100), [(0, 0), (2, 0)]);
        assert_eq!(gathered(&lane, 100), [(5, 0)]);
        assert_eq!(gathered(&lane, 100), [(1, 0)]);
    }

    #[test]
    fn a_batch_larger_than_a_request_goes_alone() {
        let lane = Lane::default();
        lane.queue().extend([job(0, 0, 500), job(1, 0, 10)]);
        assert_eq!(gathered(&lane, 100), [(0, 0)]);
        assert_eq!(gathered(&lane, 100), [(1, 0)]);
    }
}
