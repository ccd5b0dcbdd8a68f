//! What one connection has to send, and what it has sent that is not answered yet.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tombolo_kafka::TopicId;
use tombolo_proto::id::MirrorId;

use super::{Job, Place};

/// What a batch weighs beyond its bytes: what a broker does for any batch takes it as long as so many bytes do, about.
const BATCH_WEIGHT: usize = 16 << 10;
/// A request that is not answered for so long waits for something, replicas that lag or a disk; a batch that is not even
/// sent for so long with nothing else on its way waits for a connection.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a lane has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    /// It waits for its broker.
    waits: bool,
    /// Bytes of its batches, and what they weigh beyond those.
    weight: usize,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// With when they came.
    queue: VecDeque<(Instant, Job)>,
    /// Batches of each partition that are not answered, queued ones included.
    out: HashMap<Place, usize>,
    /// What they weigh.
    weight: usize,
    /// When the requests in flight were sent; a connection answers the oldest first.
    sent: VecDeque<Instant>,
}

impl Lane {
    /// Held for an instant only.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch that comes `now`, and says so.
    pub(super) fn put(&self, job: Job, now: Instant) {
        let mut state = self.state();
        *state.out.entry(job.place()).or_default() += 1;
        state.weight += weight(&job);
        state.queue.push_back((now, job));
        drop(state);
        self.ring();
    }

    /// Batches that were not sent yet.
    pub(super) fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Waits until there is something to send.
    pub(super) async fn filled(&self) {
        self.bell.notified().await;
    }

    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    /// Whether batches of the partition are here.
    pub(super) fn holds(&self, place: Place) -> bool {
        self.state().out.contains_key(&place)
    }

    /// How much is here; the less, the sooner what comes now is done.
    pub(super) fn load(&self, now: Instant) -> Load {
        let state = self.state();
        let oldest = state.sent.front().or_else(|| state.queue.front().map(|(since, _)| since));
        let waits = oldest.is_some_and(|since| now.duration_since(*since) > PATIENCE);
        Load { waits, weight: state.weight }
    }

    /// The next request: jobs in order, one of a partition, up to `bytes`. It names topics by id or by name, all of
    /// them, and each once. [`Lane::sent`] or [`Lane::let_go`] follows.
    pub(super) fn gather(&self, bytes: usize) -> Vec<Job> {
        let mut state = self.state();
        let mut room = bytes;
        let mut taken = HashSet::new();
        let mut ids: HashMap<MirrorId, Option<TopicId>> = HashMap::new();
        let mut by_id = None;
        let mut jobs = Vec::new();
        let mut left = VecDeque::new();
        while let Some((since, job)) = state.queue.pop_front() {
            let has_id = job.topic_id.is_some();
            let same = *by_id.get_or_insert(has_id) == has_id
                && *ids.entry(job.mirror).or_insert(job.topic_id) == job.topic_id;
            let fits = same && (jobs.is_empty() || job.batch.len() <= room);
            if taken.insert(job.place()) && fits {
                room = room.saturating_sub(job.batch.len());
                jobs.push(job);
            } else {
                // What follows of this partition must stay behind it.
                left.push_back((since, job));
                if room == 0 {
                    break;
                }
            }
        }
        left.append(&mut state.queue);
        state.queue = left;
        jobs
    }

    /// A request went out. [`Lane::answered`] follows.
    pub(super) fn sent(&self, now: Instant) {
        self.state().sent.push_back(now);
    }

    /// A request that was sent has its answer.
    pub(super) fn answered(&self, jobs: &[Job]) {
        self.state().sent.pop_front();
        self.let_go(jobs);
    }

    /// These jobs are here no more.
    pub(super) fn let_go(&self, jobs: &[Job]) {
        let mut state = self.state();
        for job in jobs {
            state.weight = state.weight.saturating_sub(weight(job));
            if let Entry::Occupied(mut out) = state.out.entry(job.place()) {
                *out.get_mut() -= 1;
                if *out.get() == 0 {
                    out.remove();
                }
            }
        }
    }
}

/// Which of a leader's lanes a batch goes to: that of the batches before it, else the first that has less than `room` to
/// do, else the one that has the least; the last, where the broker could not write the partition lately (`hangs`).
pub(super) fn choose(lanes: &[Option<Arc<Lane>>], place: Place, hangs: bool, room: usize, now: Instant) -> usize {
    let holds = |lane: &Option<Arc<Lane>>| lane.as_ref().is_some_and(|lane| lane.holds(place));
    if let Some(slot) = lanes.iter().position(holds) {
        return slot;
    }
    if hangs {
        return lanes.len().saturating_sub(1);
    }
    let loads = || lanes.iter().map(|lane| lane.as_ref().map(|lane| lane.load(now)).unwrap_or_default()).enumerate();
    let roomy = loads().find(|(_, load)| !load.waits && load.weight < room);
    roomy.or_else(|| loads().min_by_key(|(_, load)| *load)).map_or(0, |(slot, _)| slot)
}

fn weight(job: &Job) -> usize {
    job.batch.len() + BATCH_WEIGHT
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
