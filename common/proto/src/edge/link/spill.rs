//! What goes to the journal, comes back from it, and is kept over a restart.
//!
//! ```text
//!           Restored            batches grow old             Spilled
//!   Absent ---------> Idle { due } ------------> Writing ------------> Idle
//!                       ^                           |  full: Idle, later
//!                       +------- JournalOpened -- Broken  <- a failed write, a damaged frame
//! ```
//!
//! A frame that is confirmed within the spill delay is never written.

use std::collections::BTreeMap;

use super::flow::is_blocked;
use super::{EdgeLink, EdgeMirror, Key, Phase, Session};
use crate::edge::partition::{EdgePartition, Fetching, Placement};
use crate::edge::{
    Checkpoint, CheckpointMirror, CheckpointPartition, EdgeEvent, EdgeOutput, JournalRange, SpillError, SpillFrame,
};
use crate::frame::{Entry, Packed};
use crate::id::{Offset, Time, TopicName};
use crate::pattern::TopicPattern;
use crate::wire::CloseCode;

/// Bytes of one commit, about: what it takes to write must not keep reads of the journal waiting.
const SPILL_BYTES: usize = 2 << 20;
/// Bytes of a partition read back at a time.
const LOAD_BYTES: usize = 512 << 10;
/// Reads of the journal under way.
const MAX_LOADS: usize = 4;
/// Before a full journal is tried again.
const FULL_PAUSE: Time = Time::from_secs(1);
/// While partitions wait for room, a batch goes to the journal after this part of the spill delay.
const PRESSURE: u32 = 4;

/// What the journal is doing.
#[derive(Debug, Default)]
pub(super) struct JournalState {
    phase: JournalPhase,
    trouble: Option<String>,
    loads: usize,
    /// Where the last commit left off: the next one begins with the partitions behind it.
    cursor: Option<Key>,
}

#[derive(Debug, Default)]
enum JournalPhase {
    /// There is none: what is not confirmed stays in memory.
    #[default]
    Absent,
    /// `due`: when batches will have waited for too long; `None` while there are none.
    Idle {
        due: Option<Time>,
        /// `due` was found while partitions waited for room.
        pressed: bool,
    },
    Writing(Writing),
    Broken,
}

impl JournalPhase {
    const IDLE: Self = Self::Idle { due: None, pressed: false };
}

#[derive(Debug)]
struct Writing {
    ticket: u64,
    frames: Vec<(Key, Offset, Offset, i32)>,
}

impl JournalState {
    pub(super) fn due(&self) -> Option<Time> {
        if let JournalPhase::Idle { due, .. } = self.phase { due } else { None }
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.phase, JournalPhase::Absent)
    }
}

impl EdgeLink {
    /// What is to be kept over a restart, if anything changed. `all` asks for the partitions too, which change with every
    /// confirm; without it only changed lists of mirrors and filters count, which must be kept before the journal holds
    /// frames of them. Partitions go along with the lists: those of a topic made anew begin anew.
    pub fn take_checkpoint(&mut self, all: bool) -> Option<Checkpoint> {
        if !all && !self.lists_changed {
            return None;
        }
        let dirty = |partition: &&mut EdgePartition| partition.dirty;
        let partitions: Vec<_> = self
            .mirrors
            .iter_mut()
            .flat_map(|(topic, mirror)| mirror.partitions.iter_mut().filter(dirty).map(move |at| (topic, at)))
            .filter_map(|(topic, partition)| {
                partition.dirty = false;
                let confirmed = partition.progress()?.confirmed;
                let (shipped, last_epoch) = partition.shipped();
                let (topic, seen) = (topic.clone(), partition.has_seen());
                let partition = partition.partition();
                Some(CheckpointPartition { topic, partition, confirmed, last_epoch, shipped, seen })
            })
            .collect();
        if partitions.is_empty() && !std::mem::take(&mut self.lists_changed) {
            return None;
        }
        self.lists_changed = false;
        let mirror = |(topic, mirror): (&TopicName, &EdgeMirror)| CheckpointMirror {
            topic: topic.clone(),
            topic_id: mirror.topic_id,
            paused: matches!(mirror.phase, Phase::Paused),
            failed: matches!(mirror.phase, Phase::Failed(_)),
            settled: mirror.settled,
            partitions: mirror.shape.0,
            configs: mirror.shape.1.clone(),
        };
        Some(Checkpoint {
            filters: self.filters.iter().map(TopicPattern::to_string).collect(),
            mirrors: self.mirrors.iter().map(mirror).collect(),
            partitions,
        })
    }

    /// Takes up what a former process left, and goes on in the dark.
    pub(super) fn restored(&mut self, checkpoint: Checkpoint, ranges: &[JournalRange]) {
        self.journal.phase = JournalPhase::IDLE;
        self.filters = checkpoint.filters.iter().filter_map(|text| TopicPattern::new(text).ok()).collect();
        if !self.filters.is_empty() {
            self.outputs.push_back(EdgeOutput::Watch { filters: self.filters.clone() });
        }
        for CheckpointMirror { topic, topic_id, paused, failed, settled, partitions, configs } in checkpoint.mirrors {
            let phase = if paused { Phase::Paused } else { Phase::Discovering };
            let shape = (partitions, configs);
            let mirror = EdgeMirror { topic_id, shape, settled, resting: failed, ..EdgeMirror::new(phase) };
            self.mirrors.insert(topic, mirror);
        }
        // Frames of a mirror that no checkpoint names: kept all the same, for the gateway to say.
        for range in ranges {
            let unknown = || EdgeMirror { settled: true, ..EdgeMirror::new(Phase::Discovering) };
            let mirror = self.mirrors.entry(range.topic.clone()).or_insert_with(unknown);
            mirror.topic_id = mirror.topic_id.or(range.topic_id);
            mirror.ensure(range.partition);
        }
        for CheckpointPartition { topic, partition, confirmed, last_epoch, shipped, seen } in checkpoint.partitions {
            if let Some(at) = self.mirrors.get_mut(&topic).and_then(|mirror| mirror.ensure(partition)) {
                at.restore(Some(confirmed), (shipped, last_epoch), None);
                at.restore_seen(seen);
            }
        }
        self.take_ranges(ranges);
        for (topic, mirror) in &self.mirrors {
            if matches!(mirror.phase, Phase::Discovering) {
                self.outputs.push_back(EdgeOutput::Discover { topic: topic.clone() });
            }
        }
    }

    /// The journal is another than we knew: what it holds now counts, and the session begins anew.
    pub(super) fn journal_opened(&mut self, ranges: &[JournalRange], now: Time) {
        self.close(CloseCode::Unavailable, "the journal was opened anew");
        // What is being written after a damage was found may yet be kept; its answer is to come.
        if !matches!(self.journal.phase, JournalPhase::Writing(_)) {
            // What waited meanwhile may be all that there is room for.
            self.journal.phase = JournalPhase::Idle { due: Some(now), pressed: false };
        }
        self.journal.loads = 0;
        self.take_ranges(ranges);
        if self.journal.trouble.take().is_some() {
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::Journal { trouble: None }));
        }
        self.fetch_all_in_the_dark();
    }

    /// The link is gone: partitions whose turn to be fetched had not come yet are read all the same.
    pub(super) fn fetch_all_in_the_dark(&mut self) {
        if self.journal.is_open() {
            for topic in self.mirrors.keys().cloned().collect::<Vec<_>>() {
                self.fetch_in_the_dark(&topic);
            }
        }
    }

    /// Every partition goes on from what the journal holds of it, or from what the cloud confirmed.
    fn take_ranges(&mut self, ranges: &[JournalRange]) {
        let by_key: BTreeMap<_, _> = ranges.iter().map(|range| ((&range.topic, range.partition), range)).collect();
        let (mut trims, mut others) = (Vec::new(), Vec::new());
        for key in self.keys() {
            let range = by_key.get(&(&key.0, key.1)).copied();
            let topic_id = self.mirrors.get(&key.0).and_then(|mirror| mirror.topic_id);
            // Of a topic that had the name before, and whose mirror is no more.
            if let (Some(ours), Some(theirs)) = (topic_id, range.and_then(|range| range.topic_id))
                && ours != theirs
            {
                others.push(key);
                continue;
            }
            let range = range.map(|range| (range.first, range.next, range.last_epoch));
            self.stop_fetch(&key);
            let confirmed = self.with(&key, |partition| {
                let confirmed = partition.progress().map(|progress| progress.confirmed);
                let shipped = partition.shipped();
                partition.restore(confirmed, shipped, range);
                partition.progress().map(|progress| progress.confirmed)
            });
            if let (Some(Some(confirmed)), Some(_)) = (confirmed, range) {
                trims.push((key.0, key.1, confirmed));
            }
        }
        if !trims.is_empty() {
            self.outputs.push_back(EdgeOutput::Trim { confirmed: trims });
        }
        if !others.is_empty() {
            self.outputs.push_back(EdgeOutput::Discard { partitions: others });
        }
    }

    fn stop_fetch(&mut self, key: &Key) {
        self.throttled.remove(key);
        if self.with(key, |at| at.fetching).is_some_and(|fetching| fetching != Fetching::Off) {
            let (topic, partition) = key.clone();
            self.outputs.push_back(EdgeOutput::StopFetch { topic, partition });
        }
    }

    /// Reads partitions on that no session has placed since they were last read: the journal is there for that.
    pub(super) fn fetch_in_the_dark(&mut self, topic: &TopicName) {
        let alone = match &self.session {
            Session::Down | Session::Closing => true,
            Session::AwaitWelcome => false,
            Session::Open(open) => open.impatient,
        };
        if !self.journal.is_open() || !alone {
            return;
        }
        let Some(mirror) = self.mirrors.get(topic) else { return };
        if !matches!(mirror.phase, Phase::Ready(_))
            || mirror.ending.is_some()
            || mirror.replaced.is_some()
            || mirror.resting
        {
            return;
        }
        let settled = mirror.settled;
        for key in self.keys_of(topic) {
            let goes_on = self.with(&key, |partition| {
                if settled && partition.is_new() {
                    // Made since the last session: the mirror of it will begin where it begins.
                    partition.start(0);
                }
                if let Some(looks) = &mut partition.stuck {
                    *looks = looks.saturating_sub(1);
                }
                let waits = partition.fetching == Fetching::Off && partition.placement == Placement::None;
                waits && partition.stuck.is_none_or(|looks| looks == 0) && partition.progress().is_some()
            });
            if goes_on == Some(true) {
                self.fetch(&key);
            }
        }
    }

    /// Batches have been added: they must not stay for longer than the spill delay.
    pub(super) fn expect_spill(&mut self, now: Time) {
        if let JournalPhase::Idle { due: due @ None, .. } = &mut self.journal.phase {
            *due = Some(now + self.config.spill_delay);
        }
    }

    /// Gives the journal what has waited for too long. In the dark all that is held goes with it: none of it can be
    /// confirmed soon.
    pub(super) fn spill(&mut self, now: Time) {
        // A partition that holds its share is read no further, and the window need not be full for that.
        let full = if self.is_open() { self.window.free() == 0 } else { !self.throttled.is_empty() };
        let JournalPhase::Idle { due: Some(due), pressed } = self.journal.phase else { return };
        // In the dark nothing will be confirmed, and little is read before there is room. A quarter of the window is worth
        // a commit: one partition that holds its share has a third of it, many have half.
        let worth = SPILL_BYTES.min(self.window.free() / 3);
        let at_once = full && !self.is_open() && self.window.used() >= worth;
        let sooner = if at_once { self.journal.trouble.is_none() } else { full && !pressed };
        if now < due && !sooner {
            return;
        }
        let delay = match (at_once, full) {
            (true, _) => Time::ZERO,
            (false, true) => self.config.spill_delay / PRESSURE,
            (false, false) => self.config.spill_delay,
        };
        let since = |partition: &EdgePartition| partition.unsafe_since();
        let oldest = self.mirrors.values().flat_map(|mirror| &mirror.partitions).filter_map(since).min();
        let Some(oldest) = oldest else {
            self.journal.phase = JournalPhase::IDLE;
            return;
        };
        if now < oldest + delay {
            self.journal.phase = JournalPhase::Idle { due: Some(oldest + delay), pressed: full };
            return;
        }
        let until = if self.is_open() { now.saturating_sub(delay) } else { now };
        let frames = self.choose_spills(until);
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let frame = |frame: &SpillFrame| {
            let first = frame.entries.first().map_or(0, Entry::offset);
            let next = frame.entries.last().map_or(0, Entry::next_offset);
            ((frame.topic.clone(), frame.partition), first, next, frame.last_epoch)
        };
        let writing = Writing { ticket, frames: frames.iter().map(frame).collect() };
        self.journal.phase = JournalPhase::Writing(writing);
        self.outputs.push_back(EdgeOutput::Spill { ticket, frames });
    }

    fn choose_spills(&mut self, until: Time) -> Vec<SpillFrame> {
        let target = self.rate.frame_target().min(self.config.max_frame_bytes);
        let mut keys = self.keys();
        let begin = self.journal.cursor.as_ref().map_or(0, |last| keys.partition_point(|key| key <= last));
        let begin = begin.min(keys.len());
        keys.rotate_left(begin);
        let mut frames = Vec::new();
        let mut room = SPILL_BYTES;
        for key in keys {
            if room == 0 {
                break;
            }
            let topic_id = self.mirrors.get(&key.0).and_then(|mirror| mirror.topic_id);
            let chosen = self.with(&key, |partition| {
                // What the cloud has of it the journal may have let go of.
                let confirmed = partition.progress().map_or(0, |progress| progress.confirmed);
                let after = partition.journal().map(|(_, next)| next).filter(|&next| next > confirmed);
                (after, partition.spill(until, target, room))
            });
            let Some((mut after, chosen)) = chosen else { continue };
            for (entries, last_epoch) in chosen {
                room = room.saturating_sub(entries.iter().map(Entry::bytes).sum());
                let next = entries.last().map(Entry::next_offset);
                frames.push(SpillFrame {
                    topic: key.0.clone(),
                    topic_id,
                    partition: key.1,
                    after,
                    entries,
                    last_epoch,
                });
                after = next;
                self.journal.cursor = Some(key.clone());
            }
        }
        frames
    }

    pub(super) fn spilled(&mut self, answered: u64, result: Result<(), SpillError>, now: Time) {
        let JournalPhase::Writing(writing) = &mut self.journal.phase else { return };
        if writing.ticket != answered {
            return;
        }
        let mut runs: Vec<(Key, Offset, Offset, i32)> = Vec::new();
        for (key, first, next, epoch) in std::mem::take(&mut writing.frames) {
            match runs.last_mut().filter(|run| run.0 == key) {
                Some(run) => (run.2, run.3) = (next, epoch),
                None => runs.push((key, first, next, epoch)),
            }
        }
        for (key, first, next, epoch) in runs {
            self.with(&key, |partition| partition.spilled(first, next, epoch, result.is_ok()));
            self.expect_load(&key);
        }
        let trouble = match result {
            Ok(()) => {
                self.journal.phase = JournalPhase::Idle { due: Some(now), pressed: false };
                None
            }
            Err(SpillError::Full { reason }) => {
                self.journal.phase = JournalPhase::Idle { due: Some(now + FULL_PAUSE), pressed: true };
                Some(reason)
            }
            Err(SpillError::Broken { reason }) => {
                self.journal.phase = JournalPhase::Broken;
                Some(reason)
            }
        };
        if self.journal.trouble.is_some() != trouble.is_some() {
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::Journal { trouble: trouble.clone() }));
        }
        self.journal.trouble = trouble;
        self.unthrottle();
        self.load();
    }

    /// The partition may want frames from the journal.
    pub(super) fn expect_load(&mut self, key: &Key) {
        if self.with(key, |partition| !std::mem::replace(&mut partition.in_loads, true)) == Some(true) {
            self.loads.push_back(key.clone());
        }
    }

    /// Reads ahead of what the link takes.
    pub(super) fn load(&mut self) {
        if matches!(self.journal.phase, JournalPhase::Absent | JournalPhase::Broken) {
            return;
        }
        for _ in 0..self.loads.len() {
            if self.journal.loads >= MAX_LOADS || (self.drain.free() == 0 && !self.undrain()) {
                return;
            }
            let Some(key) = self.loads.pop_front() else { return };
            if self.is_blocked(&key) {
                self.loads.push_back(key);
                continue;
            }
            let max_bytes = LOAD_BYTES.min(self.drain.free() / MAX_LOADS);
            self.next_ticket += 1;
            let ticket = self.next_ticket;
            let offset = self.with(&key, |partition| {
                partition.in_loads = false;
                let offset = partition.wants(LOAD_BYTES)?;
                partition.loading = Some(ticket);
                Some(offset)
            });
            let Some(Some(offset)) = offset else { continue };
            self.journal.loads += 1;
            let (topic, partition) = key;
            self.outputs.push_back(EdgeOutput::Load { topic, partition, ticket, offset, max_bytes });
        }
    }

    fn is_blocked(&self, key: &Key) -> bool {
        let Session::Open(open) = &self.session else { return false };
        let partitions = self.mirrors.get(&key.0).map_or(&[][..], |mirror| &mirror.partitions);
        let partition = usize::try_from(key.1).ok().and_then(|at| partitions.get(at));
        partition.is_some_and(|partition| is_blocked(&open.credit, partition))
    }

    /// Lets go of what was read for partitions that stall in the cloud, so that they do not keep the others from being
    /// read. Returns whether that gave room.
    fn undrain(&mut self) -> bool {
        for key in self.keys() {
            if self.is_blocked(&key) && self.with(&key, |at| at.drain_bytes() > 0) == Some(true) {
                self.with(&key, EdgePartition::undrain);
                self.expect_load(&key);
            }
        }
        self.drain.free() > 0
    }

    pub(super) fn loaded(&mut self, key: &Key, ticket: u64, frames: Option<Vec<Packed>>) {
        self.journal.loads = self.journal.loads.saturating_sub(1);
        let current = self.with(key, |partition| partition.loading == Some(ticket)) == Some(true);
        if current {
            let Some(frames) = frames else {
                self.with(key, |partition| partition.loading = None);
                // What is being written is answered in any case.
                if !matches!(self.journal.phase, JournalPhase::Writing(_)) {
                    self.journal.phase = JournalPhase::Broken;
                }
                return;
            };
            let max_bytes = if let Session::Open(open) = &self.session { open.max_frame_bytes } else { usize::MAX };
            let joined = self.with(key, |partition| partition.loaded(frames, max_bytes));
            debug_assert_eq!(joined, Some(true), "the journal lost {key:?}");
            if joined != Some(true) {
                return self.close(CloseCode::Unavailable, "the journal's frames do not join");
            }
            self.queue(key);
            self.expect_load(key);
        }
        self.load();
    }

    /// Tells the journal what it may let go of.
    pub(super) fn trim(&mut self) {
        if !self.journal.is_open() {
            return;
        }
        let mut confirmed = Vec::new();
        for (topic, mirror) in &mut self.mirrors {
            for partition in mirror.partitions.iter_mut().filter(|partition| partition.untrimmed) {
                partition.untrimmed = false;
                confirmed.extend(partition.progress().map(|at| (topic.clone(), partition.partition(), at.confirmed)));
            }
        }
        if !confirmed.is_empty() {
            self.outputs.push_back(EdgeOutput::Trim { confirmed });
        }
    }
}
