//! Where partitions go on, what is fetched for them, sent and confirmed.

use super::mirrors::{replaced, topic_of};
use super::{Breach, EdgeLink, Key, Phase, Session};
use crate::edge::check::too_large;
use crate::edge::partition::{EdgePartition, Fetching, Placement, Recall};
use crate::edge::pool::Pool;
use crate::edge::{EdgeEvent, EdgeOutput, Outgoing, Verdict};
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{MirrorId, Offset, Partition, Time, TopicName};
use crate::limits::{MAX_ENTRIES, MAX_TAIL};
use crate::wire::{EdgeBody, PartitionOffset, Placed, Position, Positions, SourceStart, TailBatch};

/// How often it is told to the gateway where the source's logs start and end.
pub(super) const POSITIONS_EVERY: Time = Time::from_secs(1);
/// Looks at the source before a partition that could not be read in the dark is tried again.
const STUCK_LOOKS: u32 = 30;

impl EdgeLink {
    /// The next frame to send, chosen now; `None` until more is fetched, confirmed or placed.
    pub fn poll_frame(&mut self) -> Option<Outgoing> {
        for _ in 0..self.ready.len() {
            let Session::Open(open) = &mut self.session else { return None };
            let key = self.ready.pop_front()?;
            let Some(mirror) = self.mirrors.get_mut(&key.0) else { continue };
            let Some(id) = mirror.id else { continue };
            let Some(partition) = mirror.partition(key.1) else { continue };
            let Placement::Placed { run } = partition.placement else {
                partition.queued = false;
                continue;
            };
            // A new run may have emptied the window since.
            if !partition.has_unsent() {
                partition.queued = false;
                continue;
            }
            // The gateway's largest frame may be smaller than ours, by which the batch was checked.
            if let Some(offsets) = partition.next_offsets()
                && partition.next_bytes() > open.max_frame_bytes
            {
                let failure = too_large(key.1, offsets, partition.next_bytes(), open.max_frame_bytes);
                self.fail(&key.0, failure, false);
                continue;
            }
            if !may_send(&open.credit, partition, open.max_frame_bytes) {
                self.ready.push_back(key);
                continue;
            }
            let target = self.rate.frame_target().min(open.max_frame_bytes).min(open.credit.free());
            let taken = self.with(&key, |partition| {
                let body = partition.take_next(target);
                partition.queued = partition.has_unsent();
                (body, partition.queued)
            });
            let Some((Some(body), queued)) = taken else { continue };
            let frame = Outgoing { mirror: id, run, partition: key.1, body };
            self.expect_load(&key);
            if queued {
                self.ready.push_back(key);
            }
            return Some(frame);
        }
        None
    }

    pub(super) fn position(&mut self, topic: &TopicName, position: &Position) -> Result<(), Breach> {
        check_tail(position)?;
        let Some(mirror) = self.mirrors.get_mut(topic) else {
            return Ok(());
        };
        if matches!(mirror.phase, Phase::Paused | Phase::Failed(_)) {
            return Ok(());
        }
        let number = position.partition;
        let Some(partition) = mirror.partition(number) else {
            return Err(format!("a position of {topic} partition {number}, which does not exist"));
        };
        let run = position.run;
        if run <= partition.last_run {
            return Err(format!("{topic} partition {number}: run {run} after run {}", partition.last_run));
        }
        partition.last_run = run;
        mirror.undecided.retain(|waiting| waiting.partition != number);
        self.take_position(topic, position);
        self.decided(topic);
        Ok(())
    }

    fn take_position(&mut self, topic: &TopicName, position: &Position) {
        let &Position { partition: number, run, next_offset, ref tail, rewind, .. } = position;
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let compacted = mirror.is_compacted();
        let Some(partition) = mirror.partition(number) else { return };
        // A cloud that lost its tail between two sessions cannot know what it had confirmed: we do.
        let confirmed = partition.progress().map_or(0, |progress| progress.confirmed);
        let lost = rewind || next_offset < confirmed;
        partition.rewinds += u64::from(lost);
        self.lists_changed |= !mirror.settled;
        mirror.settled = true;
        mirror.resting = false;
        if mirror.replaced.is_some() {
            let ours = mirror.partitions.iter().filter_map(EdgePartition::progress).any(|at| at.confirmed > 0);
            match (next_offset, confirmed) {
                (0, 1..) => self.adopt_replacement(topic),
                // Empty, as it always was: a partition that was not will show whose the mirror is.
                (0, _) if ours && !mirror.is_old => {
                    mirror.undecided.push(position.clone());
                    return;
                }
                (0, _) if mirror.ending.is_none() => self.adopt_replacement(topic),
                (0, _) => {}
                // The mirror holds the old topic's records, and we nothing to add to them.
                _ if mirror.ending.is_none() => return self.fail(topic, replaced(), false),
                _ => mirror.is_old = true,
            }
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let key = (topic.clone(), number);
        let found = self.with(&key, |partition| {
            partition.unsend();
            partition.placement = Placement::Comparing { run, next_offset, ticket };
            // What memory knows was true when it was fetched. Only a fetch that goes on behind it would notice that the
            // source lost its tail and wrote another; before a new one the source itself is asked.
            let memory_will_do = next_offset == 0
                || partition.goes_on_at(next_offset)
                || partition.deleted_before(next_offset).is_some();
            (partition.recall(tail, next_offset, compacted), memory_will_do)
        });
        let Some((recall, memory_will_do)) = found else { return };
        if lost {
            let event = EdgeEvent::Rewound { topic: topic.clone(), partition: number, next_offset };
            self.outputs.push_back(EdgeOutput::Event(event));
        }
        match recall {
            Recall::Agrees if memory_will_do => self.place(&key, false),
            Recall::Differs(failure) => self.fail(topic, failure, false),
            Recall::Agrees | Recall::Unknown => {
                let (topic, partition, tail) = (topic.clone(), number, tail.clone());
                let output = EdgeOutput::CompareTail { topic, partition, ticket, tail, next_offset, compacted };
                self.outputs.push_back(output);
            }
        }
    }

    /// Goes on with positions that had to wait until it was known which topic the mirror is of.
    fn decided(&mut self, topic: &TopicName) {
        let Some(mirror) = self.mirrors.get_mut(topic).filter(|at| at.replaced.is_none() || at.is_old) else { return };
        for position in std::mem::take(&mut mirror.undecided) {
            self.take_position(topic, &position);
        }
    }

    pub(super) fn tail_compared(&mut self, topic: &TopicName, partition: Partition, answered: u64, verdict: Verdict) {
        let placement =
            self.mirrors.get_mut(topic).and_then(|mirror| mirror.partition(partition)).map(|at| at.placement);
        if !matches!(placement, Some(Placement::Comparing { ticket, .. }) if ticket == answered) {
            return;
        }
        match verdict {
            Verdict::Agrees => self.place(&(topic.clone(), partition), false),
            Verdict::Unverified => self.place(&(topic.clone(), partition), true),
            Verdict::Failed(failure) => self.fail(topic, failure, false),
        }
    }

    /// The tail agrees: the run begins.
    fn place(&mut self, key: &Key, unverified: bool) {
        let Some(mirror) = self.mirrors.get_mut(&key.0) else { return };
        let Some(id) = mirror.id else { return };
        let ending = mirror.ending.is_some();
        let Some(Placement::Comparing { run, next_offset, .. }) = mirror.partition(key.1).map(|at| at.placement) else {
            return;
        };
        let placed = self.with(key, |partition| {
            partition.unverified = unverified;
            // What was told before may have been another topic's: the gateway acts on what follows Placed.
            partition.told_source = None;
            (partition.place(run, next_offset), partition.fetching == Fetching::Off)
        });
        let Some((goes_on, off)) = placed else { return };
        let (topic, partition) = key.clone();
        self.send(EdgeBody::Placed(Placed { mirror: id.0, partition, run, unverified }));
        if unverified {
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::Unverified { topic: topic.clone(), partition }));
        }
        if !goes_on && self.journal.is_open() {
            self.outputs.push_back(EdgeOutput::Discard { partitions: vec![key.clone()] });
        }
        if off && !ending {
            self.fetch(key);
        }
        self.queue(key);
        self.expect_load(key);
        self.load();
        self.unthrottle();
        self.end_if_shipped(&topic);
    }

    pub(super) fn fetch(&mut self, key: &Key) {
        self.next_ticket += 1;
        let fetch = self.next_ticket;
        let Some(partition) = self.mirrors.get_mut(&key.0).and_then(|mirror| mirror.partition(key.1)) else { return };
        let Some(progress) = partition.progress() else { return };
        let epoch = partition.fetched_epoch();
        partition.fetching = Fetching::Running { fetch };
        self.throttled.remove(key);
        let (topic, partition) = key.clone();
        self.outputs.push_back(EdgeOutput::Fetch { topic, partition, fetch, offset: progress.fetched, epoch });
        self.throttle(key);
    }

    pub(super) fn fetched(
        &mut self,
        key: &Key,
        fetch: u64,
        (entries, epoch): (Vec<Entry>, Option<i32>),
        (log_start, high_watermark): (Offset, Offset),
        now: Time,
    ) {
        let some = !entries.is_empty();
        let added = self.with(key, |partition| {
            partition.fetching.is(fetch).then(|| {
                partition.high_watermark = Some(high_watermark);
                partition.note_log_start(log_start);
                partition.add(entries, epoch, now)
            })
        });
        let Some(Some(failure)) = added else { return };
        if some {
            self.expect_spill(now);
        }
        self.queue(key);
        self.throttle(key);
        if let Some(failure) = failure {
            self.end(&key.0, failure);
        }
    }

    pub(super) fn fetch_failed(&mut self, topic: &TopicName, fetch: u64, failure: Failure) {
        let Some(mirror) = self.mirrors.get(topic) else { return };
        let Some(partition) = mirror.partitions.iter().find(|partition| partition.fetching.is(fetch)) else { return };
        let key = (topic.clone(), partition.partition());
        if matches!(partition.placement, Placement::Placed { .. }) {
            return self.end(topic, failure);
        }
        self.stuck(key, failure);
    }

    /// The source's log begins above what was fetched of a partition.
    pub(super) fn overtaken(&mut self, key: &Key, fetch: u64, log_start: Offset) {
        let Some(partition) = self.mirrors.get_mut(&key.0).and_then(|mirror| mirror.partition(key.1)) else { return };
        let Some(progress) = partition.progress().filter(|_| partition.fetching.is(fetch)) else { return };
        if log_start <= progress.fetched {
            return self.fetch(key);
        }
        partition.log_start = Some(log_start);
        if !matches!(partition.placement, Placement::Placed { .. }) {
            let detail = format!("the source's log starts at offset {log_start}: what lies before it is lost there");
            let failure = Failure::at(FailureCode::SourceDataLost, key.1, progress.fetched, detail).until(log_start);
            return self.stuck(key.clone(), failure);
        }
        partition.fetching = Fetching::Off;
        partition.overtaken = Some(log_start);
        self.throttled.remove(key);
        self.tell_start(key);
    }

    /// Tells the gateway that the source's log begins above the mirror, once that ends where reading did.
    fn tell_start(&mut self, key: &Key) {
        let Some(mirror) = self.mirrors.get_mut(&key.0).filter(|mirror| mirror.ending.is_none()) else { return };
        let Some(MirrorId(id)) = mirror.id else { return };
        let Some(partition) = mirror.partition(key.1) else { return };
        let Placement::Placed { run } = partition.placement else { return };
        let seen = partition.has_seen();
        if let Some(offset) = partition.take_start() {
            self.send(EdgeBody::SourceStart(SourceStart { mirror: id, partition: key.1, run, offset, seen }));
        }
    }

    /// A partition cannot be read in the dark: from where an old checkpoint left off, perhaps. The gateway will say where
    /// to go on.
    fn stuck(&mut self, key: Key, failure: Failure) {
        let stuck_before = self.with(&key, |partition| {
            partition.fetching = Fetching::Off;
            partition.stuck.replace(STUCK_LOOKS).is_some()
        });
        self.throttled.remove(&key);
        if stuck_before == Some(false) {
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::Stuck { topic: key.0, failure }));
        }
    }

    /// Pauses the partition's fetch where it holds its share of the window.
    fn throttle(&mut self, key: &Key) {
        let Some(partition) = self.mirrors.get_mut(&key.0).and_then(|mirror| mirror.partition(key.1)) else { return };
        if let Fetching::Running { fetch } = partition.fetching
            && !self.window.admits(partition.window_bytes())
        {
            partition.fetching = Fetching::Paused { fetch };
            self.throttled.insert(key.clone());
            let (topic, partition) = key.clone();
            self.outputs.push_back(EdgeOutput::PauseFetch { topic, partition });
        }
    }

    /// Resumes fetches for which there is room again.
    pub(super) fn unthrottle(&mut self) {
        if self.throttled.is_empty() || self.window.free() == 0 {
            return;
        }
        for key in std::mem::take(&mut self.throttled) {
            let Some(partition) = self.mirrors.get_mut(&key.0).and_then(|mirror| mirror.partition(key.1)) else {
                continue;
            };
            let Fetching::Paused { fetch } = partition.fetching else { continue };
            if self.window.admits(partition.window_bytes()) {
                partition.fetching = Fetching::Running { fetch };
                let (topic, partition) = key;
                self.outputs.push_back(EdgeOutput::ResumeFetch { topic, partition });
            } else {
                self.throttled.insert(key);
            }
        }
    }

    /// Gives the partition its turn at the link.
    pub(super) fn queue(&mut self, key: &Key) {
        let Some(partition) = self.mirrors.get_mut(&key.0).and_then(|mirror| mirror.partition(key.1)) else { return };
        let placed = matches!(partition.placement, Placement::Placed { .. });
        if placed && !partition.queued && partition.has_unsent() {
            partition.queued = true;
            self.ready.push_back(key.clone());
        }
    }

    pub(super) fn confirm(&mut self, positions: &Positions, now: Time) -> Result<(), Breach> {
        if positions.entries.len() > MAX_ENTRIES {
            return Err(format!("{} confirms in one message", positions.entries.len()));
        }
        let mut freed_in_all = 0;
        for entry in &positions.entries {
            let Session::Open(open) = &mut self.session else {
                return Ok(());
            };
            let topic = topic_of(open, entry.mirror)?;
            let Some(partition) = self.mirrors.get_mut(&topic).and_then(|mirror| mirror.partition(entry.partition))
            else {
                return Err(format!("a confirm of {topic} partition {}, which does not exist", entry.partition));
            };
            if partition.placement != (Placement::Placed { run: entry.run }) {
                continue;
            }
            let key = (topic, entry.partition);
            let Some(Some(freed)) = self.with(&key, |partition| partition.confirm(entry.offset)) else {
                return Err(format!(
                    "{} partition {}: offset {} confirmed, but never sent",
                    key.0, key.1, entry.offset
                ));
            };
            freed_in_all += freed;
            self.tell_start(&key);
            self.end_if_shipped(&key.0);
        }
        self.confirmed_bytes += freed_in_all as u64;
        self.rate.confirmed(freed_in_all, now);
        self.unthrottle();
        self.load();
        Ok(())
    }

    pub(super) fn tell_source_positions(&mut self, now: Time) {
        let Session::Open(open) = &mut self.session else { return };
        if now < open.positions_due {
            return;
        }
        open.positions_due = now + POSITIONS_EVERY;
        open.impatient = now >= open.patience;
        let mut entries = Vec::new();
        for mirror in self.mirrors.values_mut() {
            let Some(MirrorId(id)) = mirror.id else { continue };
            for partition in &mut mirror.partitions {
                let (Some(offset), log_start) = (partition.high_watermark, partition.log_start) else { continue };
                if partition.told_source.replace((offset, log_start)) == Some((offset, log_start)) {
                    continue;
                }
                entries.push(PartitionOffset {
                    mirror: id,
                    partition: partition.partition(),
                    offset,
                    run: 0,
                    log_start,
                });
            }
        }
        for entries in entries.chunks(MAX_ENTRIES) {
            self.send(EdgeBody::SourcePositions(Positions { entries: entries.to_vec() }));
        }
        self.trim();
    }
}

/// Whether the partition has used up its share of the credit: what is read for it from the journal would only lie there.
pub(super) fn is_blocked(credit: &Pool, partition: &EdgePartition) -> bool {
    let own = partition.in_flight_bytes();
    own > 0 && !credit.admits(own)
}

/// Whether the partition may send its next batch: its share of the credit, less the reserve of one largest frame that
/// is kept for partitions with nothing in flight.
fn may_send(credit: &Pool, partition: &EdgePartition, reserve: usize) -> bool {
    let (own, next) = (partition.in_flight_bytes(), partition.next_bytes());
    if own == 0 { next <= credit.free() } else { credit.admits(own) && next + reserve <= credit.free() }
}

/// A tail is bounded, joined, and ends at the position.
fn check_tail(position: &Position) -> Result<(), Breach> {
    let Position { tail, next_offset, .. } = position;
    let joined = tail
        .windows(2)
        .all(|pair| matches!(pair, [first, second] if first.last_offset.checked_add(1) == Some(second.base_offset)));
    let ordered = |batch: &TailBatch| 0 <= batch.base_offset && batch.base_offset <= batch.last_offset;
    let ends = tail.last().is_none_or(|last| last.last_offset.checked_add(1) == Some(*next_offset));
    if *next_offset >= 0 && tail.len() <= MAX_TAIL && joined && ends && tail.iter().all(ordered) {
        Ok(())
    } else {
        Err(format!("a position at offset {next_offset} with a tail that does not lead there"))
    }
}
