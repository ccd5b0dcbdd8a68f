//! Appends control markers where the source has no records: each takes one offset that no consumer sees.
//!
//! A lane is one connection to a leader and the task that owns it: one request at a time, for all partitions that have
//! a stretch to skip by then, each with one stretch. A broker answers a connection in order, so once it has answered,
//! nothing of the request is still to come; that is why a slow request is waited for, and its connection kept.
//!
//! Must never: send markers anywhere but to the leader that the partition's log end was read from; send what was given
//! up; write without the lease, which the connection asks before each write; call markers appended that the high watermark has not reached.

mod outcome;
mod right;
mod transactions;
mod wish;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tombolo_kafka::admin::{self, MarkerRange, MarkerWriter, MarkersAnswer, OffsetQuery, OffsetSpec};
use tombolo_kafka::cluster::Leader;
use tombolo_kafka::error::ErrorCode;
use tombolo_kafka::{Connection, KafkaError};
use tombolo_proto::id::{MirrorId, Offset, Partition, Term, TopicName};
use tombolo_proto::mirror::SkipOutcome;
use tombolo_service::tasks::Tasks;

use crate::leased::LeasedCluster;
use crate::metrics;
use crate::registry::Lapse;
use crate::session::Event;
use outcome::Appended;
pub(crate) use right::{MarkerRight, MarkerRights};
pub(crate) use transactions::{Queue, Transactions};
pub(crate) use wish::Wish;

/// Lanes to each leader: a partition whose replicas are slow holds up those that share its lane.
const LANES: usize = 4;
/// Partitions of one request.
const MAX_PARTITIONS: usize = 64;
/// Markers of one request, of all partitions together.
const MAX_MARKERS: i64 = 10_000;
/// The broker lets its replicas take its own `request.timeout.ms`, of which this is the default.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);
/// For the high watermark to reach the log end after the broker's answer.
const REPLICATION_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A stretch to skip.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    pub(crate) mirror: MirrorId,
    pub(crate) partition: Partition,
    pub(crate) ticket: u64,
    pub(crate) topic: TopicName,
    /// The leader that told the log end.
    pub(crate) leader: Leader,
    /// Where the first marker must end up.
    pub(crate) offset: Offset,
    pub(crate) count: i64,
    pub(crate) wish: Wish,
}

/// How a session skips.
#[derive(Debug)]
pub(crate) enum Skipper {
    Markers(Skips),
    Transactions(Queue),
}

impl Skipper {
    /// Queues a stretch; [`Event::Skipped`] follows.
    pub(crate) fn skip(&mut self, stretch: Stretch) {
        match self {
            Self::Markers(skips) => skips.skip(stretch),
            Self::Transactions(queue) => queue.skip(stretch),
        }
    }
}

/// The lanes of one session.
#[derive(Debug)]
pub(crate) struct Skips {
    context: Context,
    tasks: Tasks,
    lanes: BTreeMap<(i32, usize), Arc<Lane>>,
}

/// What all lanes of a session share.
#[derive(Debug, Clone)]
struct Context {
    cloud: LeasedCluster,
    writer: MarkerWriter,
    events: mpsc::Sender<Event>,
}

#[derive(Debug, Default)]
struct Lane {
    queue: Mutex<VecDeque<Stretch>>,
    ready: Notify,
}

/// Who writes the markers of a session: the coordinator's epoch is the term, so that once a newer one has written a
/// marker, a broker refuses the older one's (design: skip). 2^31 - 1 is the fence's, and is never reached.
pub(crate) fn writer(producer_id: i64, term: Term) -> MarkerWriter {
    let epoch = term.0 % u64::from(i32::MAX.cast_unsigned());
    MarkerWriter { producer_id, producer_epoch: 0, coordinator_epoch: i32::try_from(epoch).unwrap_or(0) }
}

impl Skips {
    pub(crate) fn new(cloud: LeasedCluster, producer_id: i64, events: mpsc::Sender<Event>, tasks: Tasks) -> Self {
        let writer = writer(producer_id, cloud.lease.term());
        let context = Context { cloud, writer, events };
        Self { context, tasks, lanes: BTreeMap::new() }
    }

    /// Queues a stretch for its leader; [`Event::Skipped`] follows.
    pub(crate) fn skip(&mut self, stretch: Stretch) {
        let broker = stretch.leader.broker;
        let spread = stretch.mirror.0 as usize + usize::try_from(stretch.partition).unwrap_or(0);
        let slot = spread % LANES;
        let lane = self.lanes.entry((broker, slot)).or_insert_with(|| {
            let lane = Arc::<Lane>::default();
            let run = run(Arc::clone(&lane), self.context.clone(), broker);
            let stop = self.tasks.stop_token().clone();
            self.tasks.spawn(format!("skips {broker}/{slot}"), async move {
                tokio::select! {
                    () = run => {}
                    () = stop.cancelled() => {}
                }
            });
            lane
        });
        lane.queue().push_back(stretch);
        lane.ready.notify_one();
    }
}

impl Lane {
    /// Held for an instant only.
    fn queue(&self) -> MutexGuard<'_, VecDeque<Stretch>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request: stretches in order, as many as fit, none of which was given up; of one partition never two at
    /// once.
    fn gather(&self) -> Vec<Stretch> {
        let mut queue = self.queue();
        queue.retain(|stretch| !stretch.wish.is_given_up());
        let mut taken: Vec<Stretch> = Vec::new();
        let mut markers = 0;
        while let Some(next) = queue.front() {
            let full = taken.len() == MAX_PARTITIONS || (markers + next.count > MAX_MARKERS && !taken.is_empty());
            let twice = taken.iter().any(|one| one.topic == next.topic && one.partition == next.partition);
            if full || twice {
                break;
            }
            markers += next.count;
            taken.extend(queue.pop_front());
        }
        taken
    }
}

async fn run(lane: Arc<Lane>, context: Context, broker: i32) {
    let mut connection: Option<Connection> = None;
    loop {
        let stretches = lane.gather();
        if stretches.is_empty() {
            lane.ready.notified().await;
            continue;
        }
        for (stretch, outcome) in context.skip(&mut connection, broker, stretches).await {
            if let SkipOutcome::Appended { log_end } = outcome {
                metrics::markers_appended((log_end - stretch.offset).clamp(0, stretch.count));
            } else {
                context.cloud.cluster.forget_leader(stretch.topic.as_str(), stretch.partition);
            }
            let Stretch { mirror, partition, ticket, .. } = stretch;
            if context.events.send(Event::Skipped { mirror, partition, ticket, outcome }).await.is_err() {
                return;
            }
        }
    }
}

impl Context {
    async fn skip(
        &self,
        connection: &mut Option<Connection>,
        broker: i32,
        mut stretches: Vec<Stretch>,
    ) -> Vec<(Stretch, SkipOutcome)> {
        let all = |stretches: Vec<Stretch>, outcome: SkipOutcome| {
            stretches.into_iter().map(|one| (one, outcome.clone())).collect()
        };
        let fresh = connection.as_ref().is_none_or(Connection::is_poisoned);
        let open = match self.cloud.ready(connection, broker).await {
            Ok(open) => open,
            Err(error) => return all(stretches, SkipOutcome::Doubt { reason: error.to_string() }),
        };
        // From here on they may be appended, whoever gives them up.
        stretches.retain(|stretch| stretch.wish.is_sent());
        if stretches.is_empty() {
            return Vec::new();
        }
        let ranges = stretches.iter().map(|stretch| MarkerRange {
            topic: stretch.topic.shared(),
            partition: stretch.partition,
            count: u32::try_from(stretch.count).unwrap_or(0),
        });
        match admin::send_txn_markers(&open, self.writer, ranges.collect(), BROKER_TIMEOUT).await {
            Ok(answers) => self.settle(&open, fresh, stretches, answers).await,
            Err(error) => {
                if error.is_lapse() {
                    metrics::stale_answers("lease", stretches.len());
                }
                all(stretches, outcome::of_error(&error))
            }
        }
    }

    /// Looks at the logs where the answers do not say it all: over a fresh connection never, since the broker may have
    /// been gone meanwhile, and lead again without the log's end.
    async fn settle(
        &self,
        connection: &Connection,
        fresh: bool,
        stretches: Vec<Stretch>,
        answers: Vec<MarkersAnswer>,
    ) -> Vec<(Stretch, SkipOutcome)> {
        let mut settled = Vec::with_capacity(stretches.len());
        let mut unclear = Vec::new();
        for (stretch, answer) in stretches.into_iter().zip(answers) {
            match outcome::of_answer(stretch.offset, stretch.count, answer.result) {
                Appended::Told(SkipOutcome::Appended { .. }) if fresh => unclear.push((stretch, None)),
                Appended::Told(outcome) => settled.push((stretch, outcome)),
                Appended::Look(error) => unclear.push((stretch, error)),
            }
        }
        if unclear.is_empty() {
            return settled;
        }
        let looked = log_ends(connection, &unclear).await;
        for ((stretch, error), found) in unclear.into_iter().zip(looked) {
            let outcome = outcome::of_look(stretch.offset, error, found);
            settled.push((stretch, outcome));
        }
        settled
    }
}

/// The log end of each, which the high watermark has reached, or why it is not known. Over the connection that the
/// markers were written over, behind them.
async fn log_ends(connection: &Connection, stretches: &[(Stretch, Option<ErrorCode>)]) -> Vec<Result<Offset, String>> {
    let deadline = Instant::now() + REPLICATION_DEADLINE;
    let mut found: Vec<Result<Offset, String>> = vec![Err("not looked at".to_owned()); stretches.len()];
    let mut open: Vec<usize> = (0..stretches.len()).collect();
    loop {
        let queries: Vec<OffsetQuery> =
            open.iter().filter_map(|&at| stretches.get(at)).map(|(stretch, _)| query(stretch)).collect();
        let (ends, marks) = match look(connection, &queries).await {
            Ok(looked) => looked,
            Err(error) => {
                for at in open {
                    if let Some(place) = found.get_mut(at) {
                        *place = Err(error.to_string());
                    }
                }
                return found;
            }
        };
        let late = Instant::now() > deadline;
        let mut left = Vec::new();
        for (at, (end, mark)) in open.into_iter().zip(ends.into_iter().zip(marks)) {
            let result = match (end, mark) {
                (Ok(end), Ok(mark)) if mark >= end => Ok(end),
                (Ok(_), Ok(_)) if !late => {
                    left.push(at);
                    continue;
                }
                (Ok(end), Ok(mark)) => Err(format!("the high watermark {mark} has not reached the log end {end}")),
                (Err(code), _) | (_, Err(code)) => Err(code.to_string()),
            };
            if let Some(place) = found.get_mut(at) {
                *place = result;
            }
        }
        if left.is_empty() {
            return found;
        }
        open = left;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn query(stretch: &Stretch) -> OffsetQuery {
    OffsetQuery { topic: stretch.topic.shared(), partition: stretch.partition, leader_epoch: stretch.leader.epoch }
}

type Offsets = Vec<Result<Offset, ErrorCode>>;

/// Log ends and high watermarks, in this order.
async fn look(connection: &Connection, queries: &[OffsetQuery]) -> Result<(Offsets, Offsets), KafkaError> {
    let offsets = |answers: Vec<admin::OffsetAnswer>| -> Offsets {
        answers.into_iter().map(|answer| answer.result.map(|found| found.offset)).collect()
    };
    let ends = admin::list_offsets(connection, OffsetSpec::LogEnd, queries).await?;
    let marks = admin::list_offsets(connection, OffsetSpec::HighWatermark, queries).await?;
    Ok((offsets(ends), offsets(marks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(partition: Partition, ticket: u64, count: i64) -> Stretch {
        Stretch {
            mirror: MirrorId(0),
            partition,
            ticket,
            topic: TopicName::new("t").unwrap(),
            leader: Leader { broker: 1, epoch: 3 },
            offset: 7,
            count,
            wish: Wish::default(),
        }
    }

    fn gathered(lane: &Lane) -> Vec<(Partition, u64)> {
        lane.gather().iter().map(|one| (one.partition, one.ticket)).collect()
    }

    #[test]
    fn a_request_takes_one_stretch_of_each_partition() {
        let lane = Lane::default();
        lane.queue().extend([stretch(0, 0, 1_000), stretch(1, 0, 1), stretch(0, 1, 1), stretch(2, 0, 1)]);
        assert_eq!(gathered(&lane), [(0, 0), (1, 0)]);
        assert_eq!(gathered(&lane), [(0, 1), (2, 0)]);
        assert_eq!(gathered(&lane), []);
    }

    #[test]
    fn what_was_given_up_is_not_sent_later() {
        let lane = Lane::default();
        let stretches = [stretch(0, 0, 1), stretch(0, 1, 1), stretch(1, 0, 1)];
        lane.queue().extend(stretches.clone());
        assert!(!stretches[0].wish.give_up(), "nothing of it is at a broker");
        assert_eq!(gathered(&lane), [(0, 1), (1, 0)]);
    }

    #[test]
    fn a_request_is_bounded() {
        let lane = Lane::default();
        lane.queue().extend((0..20).map(|partition| stretch(partition, 0, 1_000)));
        assert_eq!(gathered(&lane).len(), 10);
        assert_eq!(gathered(&lane).len(), 10);
        lane.queue().extend((0..100).map(|partition| stretch(partition, 0, 1)));
        assert_eq!(gathered(&lane).len(), MAX_PARTITIONS);
    }

    #[test]
    fn the_term_is_the_coordinators_epoch_and_never_the_fences() {
        let epoch = |term| writer(1 << 62, Term(term)).coordinator_epoch;
        assert_eq!((epoch(7), epoch(u64::from(u32::MAX) / 2 - 1)), (7, i32::MAX - 1));
        assert_eq!((epoch(u64::from(u32::MAX) / 2), epoch(u64::MAX)), (0, 3));
        assert_eq!(writer(5, Term(1)).producer_epoch, 0);
    }
}
