//! One partition at the site: what is in memory, what is in the journal, and what is remembered of what was shipped.
//!
//! ```text
//!   journal   [first ............... next)          on disk
//!   flight        [confirmed .. sent)               sent in this session
//!   drain                      [sent ..)            read back from the journal, sent next
//!   window                          [.. fetched)    in memory, sent after the journal
//! ```
//!
//! `confirmed <= sent <= fetched`, and every offset in between is in flight, in the journal or in the window: a window
//! that does not begin where the flight ends begins within the journal.
//!
//! A gap is an entry like a batch, but that a position may lie within it.
//!
//! Must never: let go of an unconfirmed batch before the journal has it, unless the source still does.

mod held;
mod journaled;
mod memory;

use std::collections::VecDeque;

use held::{Held, Sent, SentWhat};
pub(super) use memory::Recall;

use super::outgoing::OutgoingBody;
use crate::failure::{Failure, FailureCode};
use crate::frame::{Entry, Packed};
use crate::id::{Offset, Partition, Time};
use crate::limits::MAX_FRAME_ENTRIES;
use crate::progress::EdgeProgress;
use crate::wire::TailBatch;

/// Where the partition stands in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// The gateway has not told a position.
    None,
    /// The tail is being compared with the source.
    Comparing { run: u32, next_offset: Offset, ticket: u64 },
    /// Frames go out.
    Placed { run: u32 },
}

/// What the fetchers are doing for the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetching {
    Off,
    Running { fetch: u64 },
    Paused { fetch: u64 },
}

impl Fetching {
    /// Whether this fetch goes on.
    pub(super) fn is(self, fetch: u64) -> bool {
        match self {
            Self::Running { fetch: current } | Self::Paused { fetch: current } => current == fetch,
            Self::Off => false,
        }
    }
}

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Drain,
    Window,
    /// To be read back from the journal first.
    Load,
    Nothing,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a turn or a mark of its own, not a state")]
pub(super) struct EdgePartition {
    partition: Partition,
    pub(super) placement: Placement,
    pub(super) fetching: Fetching,
    pub(super) last_run: u32,
    pub(super) high_watermark: Option<Offset>,
    pub(super) log_start: Option<Offset>,
    /// High watermark and log start that the gateway was told in this run.
    pub(super) told_source: Option<(Offset, Option<Offset>)>,
    pub(super) queued: bool,
    pub(super) unverified: bool,
    /// Times the cloud came back without what it had confirmed, over all sessions.
    pub(super) rewinds: u64,
    /// Reading it failed in the dark: a position will tell whether that matters. It is tried again after so many looks.
    pub(super) stuck: Option<u32>,
    /// The source's log begins here, above what was fetched: told to the gateway when all of that is confirmed.
    pub(super) overtaken: Option<Offset>,
    /// What the gateway was told to be no more at the source, before the position that answers it.
    started: Option<(Offset, Offset)>,
    /// A position was told, or a checkpoint: it does not begin anew at 0 by itself.
    known: bool,
    /// The source was read at the mirror's end, or before: what is no more there was there.
    seen: bool,
    /// Changed since the last checkpoint.
    pub(super) dirty: bool,
    /// The journal has not been told how far it may let go.
    pub(super) untrimmed: bool,
    /// Waits for its turn to have the journal read.
    pub(super) in_loads: bool,
    /// The read of the journal that is awaited.
    pub(super) loading: Option<u64>,
    progress: Option<EdgeProgress>,
    journal: Option<(Offset, Offset)>,
    journal_epoch: i32,
    /// Where the journal ended when it was let go of, and the source's epoch of its last batch.
    left_behind: Option<(Offset, i32)>,
    /// Being written to the journal, up to here.
    spilling: Option<Offset>,
    flight: VecDeque<Sent>,
    in_flight_bytes: usize,
    drain: VecDeque<Packed>,
    drain_bytes: usize,
    window: VecDeque<Held>,
    /// Entries in flight and in the window.
    window_bytes: usize,
    last_timestamp: Option<i64>,
    shipped: Vec<TailBatch>,
    shipped_epoch: i32,
}

impl EdgePartition {
    pub(super) fn new(partition: Partition) -> Self {
        Self {
            partition,
            placement: Placement::None,
            fetching: Fetching::Off,
            last_run: 0,
            high_watermark: None,
            log_start: None,
            told_source: None,
            queued: false,
            unverified: false,
            rewinds: 0,
            stuck: None,
            overtaken: None,
            started: None,
            known: false,
            seen: false,
            dirty: false,
            untrimmed: false,
            in_loads: false,
            loading: None,
            progress: None,
            journal: None,
            journal_epoch: -1,
            left_behind: None,
            spilling: None,
            flight: VecDeque::new(),
            in_flight_bytes: 0,
            drain: VecDeque::new(),
            drain_bytes: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            last_timestamp: None,
            shipped: Vec::new(),
            shipped_epoch: -1,
        }
    }

    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    pub(super) fn progress(&self) -> Option<EdgeProgress> {
        self.progress
    }

    /// Bytes of batches in flight and in the window.
    pub(super) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// Bytes read back from the journal.
    pub(super) fn drain_bytes(&self) -> usize {
        self.drain_bytes
    }

    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// What of the partition the journal holds.
    pub(super) fn journal(&self) -> Option<(Offset, Offset)> {
        self.journal
    }

    /// Timestamp of the first batch that is neither confirmed nor in the journal, in ms since 1970; of the last one fetched
    /// where all of them are.
    pub(super) fn unsafe_timestamp(&self) -> Option<i64> {
        let end = self.durable_end()?;
        self.held().filter(|held| held.next() > end).find_map(Held::timestamp).or(self.last_timestamp)
    }

    /// Whether the cloud lacks something that was fetched.
    pub(super) fn is_unshipped(&self) -> bool {
        self.progress.is_some_and(|progress| progress.confirmed < progress.fetched)
    }

    pub(super) fn validate(&self) {
        debug_assert_eq!(self.window_bytes, self.held().map(Held::bytes).sum::<usize>());
        debug_assert_eq!(self.in_flight_bytes, self.flight.iter().map(|sent| sent.credit).sum::<usize>());
        debug_assert_eq!(self.drain_bytes, self.drain.iter().map(Packed::body_bytes).sum::<usize>());
        let Some(progress) = self.progress else {
            debug_assert!(self.flight.is_empty() && self.drain.is_empty() && self.window.is_empty());
            return;
        };
        debug_assert_eq!(progress.validate(), Ok(()));
        debug_assert!(self.flight.front().is_none_or(|sent| sent.offset <= progress.confirmed));
        debug_assert!(self.flight.back().is_none_or(|sent| sent.next_offset == progress.sent));
        debug_assert!(self.window.back().is_none_or(|held| held.next() == progress.fetched));
        let in_reach = self.window_start() == Some(progress.sent)
            || self.journal.is_some_and(|(first, next)| {
                first <= progress.sent && self.window_start().is_some_and(|start| start <= next)
            });
        debug_assert!(in_reach, "offsets between flight and window are nowhere: {self:?}");
    }

    /// What is in memory, in order.
    fn held(&self) -> impl Iterator<Item = &Held> {
        let in_flight = self.flight.iter().filter_map(|sent| match &sent.what {
            SentWhat::Held(held) => Some(held),
            SentWhat::Journaled(_) => None,
        });
        in_flight.chain(&self.window)
    }

    /// Where the window begins; where it would, if it is empty.
    fn window_start(&self) -> Option<Offset> {
        self.window.front().map(Held::first).or_else(|| self.progress.map(|progress| progress.fetched))
    }

    /// Whether nothing was ever told or kept of it.
    pub(super) fn is_new(&self) -> bool {
        !self.known && self.progress.is_none()
    }

    /// Starts from nothing at an offset.
    pub(super) fn start(&mut self, offset: Offset) {
        self.forget_memory();
        self.journal = None;
        self.progress = Some(EdgeProgress::at(offset));
    }

    /// Another topic has the name: nothing that is known of the old one counts.
    pub(super) fn begin_anew(&mut self) {
        self.start(0);
        self.shipped.clear();
        self.shipped_epoch = -1;
        self.left_behind = None;
        self.seen = false;
        self.dirty = true;
    }

    /// The source answered, with this first offset. Before it delivers.
    pub(super) fn note_log_start(&mut self, log_start: Offset) {
        self.log_start = Some(log_start);
        if !self.seen && self.progress.is_some_and(|progress| log_start <= progress.fetched) {
            self.seen = true;
            self.dirty = true;
        }
    }

    /// What a former process had seen.
    pub(super) fn restore_seen(&mut self, seen: bool) {
        self.seen = seen;
    }

    /// Whether the source was read at the mirror's end, or before.
    pub(super) fn has_seen(&self) -> bool {
        self.seen
    }

    /// Leader epoch of the record before `fetched`, where it is known.
    pub(super) fn fetched_epoch(&self) -> Option<i32> {
        let epoch = if let Some(held) = self.window.back() {
            held.epoch()
        } else if self.journal.is_some_and(|(_, next)| Some(next) == self.progress.map(|progress| progress.fetched)) {
            self.journal_epoch
        } else if let Some((_, epoch)) =
            self.left_behind.filter(|&(end, _)| Some(end) == self.progress.map(|progress| progress.fetched))
        {
            epoch
        } else if self.progress.is_some_and(|progress| self.shipped_end() == Some(progress.fetched)) {
            self.shipped_epoch
        } else {
            -1
        };
        (epoch >= 0).then_some(epoch)
    }

    /// Whether memory, the journal and the fetch behind them go on at `next_offset`.
    pub(super) fn goes_on_at(&self, next_offset: Offset) -> bool {
        let Some(progress) = self.progress else { return false };
        progress.fetched == next_offset
            || self.held().any(|held| held.goes_on_at(next_offset))
            || self.flight.iter().any(|sent| sent.offset == next_offset)
            || self.journal.is_some_and(|(first, next)| {
                (first..next).contains(&next_offset) && self.window_start().is_some_and(|start| start <= next)
            })
    }

    /// Goes on at `next_offset`, with what lies behind it. Returns false where nothing does: all is forgotten, the
    /// journal's part is to be discarded and fetching to start anew at [`EdgeProgress::fetched`].
    pub(super) fn place(&mut self, run: u32, next_offset: Offset) -> bool {
        debug_assert!(self.flight.is_empty(), "unsend comes first");
        self.stuck = None;
        self.known = true;
        self.dirty = true;
        self.untrimmed = true;
        let had = self.progress.map(|progress| progress.confirmed).max(self.shipped_end());
        // The mirror was made anew, or is to be filled again: it may have to start where the source does by now.
        self.seen &= had.is_none_or(|had| had <= next_offset);
        self.forget_above(next_offset);
        let goes_on = self.goes_on_at(next_offset);
        if let (true, Some(progress)) = (goes_on, self.progress) {
            self.progress = Some(EdgeProgress { confirmed: next_offset, sent: next_offset, ..progress });
            self.drop_below(next_offset);
            self.drop_journal_below(next_offset);
        } else {
            self.start(next_offset);
            self.fetching = Fetching::Off;
        }
        self.placement = Placement::Placed { run };
        goes_on
    }

    /// The session is over, or the run: nothing counts as sent. Returns the bytes that were in flight.
    pub(super) fn unsend(&mut self) -> usize {
        for sent in std::mem::take(&mut self.flight).into_iter().rev() {
            let joins = self.window_start() == Some(sent.next_offset);
            match sent.what {
                SentWhat::Held(held) if joins => self.window.push_front(held),
                // Behind it the journal begins, which then has it too.
                SentWhat::Held(held) => self.window_bytes -= held.bytes(),
                SentWhat::Journaled(_) => {}
            }
        }
        self.drain.clear();
        self.drain_bytes = 0;
        self.loading = None;
        self.overtaken = None;
        if let Some(progress) = &mut self.progress {
            progress.sent = progress.confirmed;
        }
        let confirmed = self.progress.map_or(0, |progress| progress.confirmed);
        self.drop_below(confirmed);
        std::mem::take(&mut self.in_flight_bytes)
    }

    /// Forgets what is in memory, and keeps what the journal holds and the cloud lacks. Returns the bytes let go.
    pub(super) fn pause(&mut self) -> usize {
        let bytes = self.window_bytes;
        let (confirmed, shipped) = (self.progress.map(|progress| progress.confirmed), self.shipped());
        let journal = self.journal.map(|(first, next)| (first, next, self.journal_epoch));
        self.progress = None;
        let confirmed = confirmed.filter(|_| journal.is_some() || self.spilling.is_some());
        self.restore(confirmed, shipped, journal);
        bytes
    }

    /// Forgets everything but what was shipped. Returns the bytes let go.
    pub(super) fn clear(&mut self) -> usize {
        let bytes = self.window_bytes;
        self.forget_memory();
        self.journal = None;
        self.progress = None;
        bytes
    }

    fn forget_memory(&mut self) {
        self.placement = Placement::None;
        self.fetching = Fetching::Off;
        self.flight.clear();
        self.in_flight_bytes = 0;
        self.drain.clear();
        self.drain_bytes = 0;
        self.window.clear();
        self.window_bytes = 0;
        self.spilling = None;
        self.loading = None;
        self.overtaken = None;
        self.started = None;
    }

    /// Takes what was fetched, up to the first entry that does not join; returns why that one does not. `epoch`: of the
    /// source's record before the end of it all, where that is known.
    pub(super) fn add(&mut self, entries: Vec<Entry>, epoch: Option<i32>, now: Time) -> Option<Failure> {
        let end = entries.last().map(Entry::next_offset);
        // A gap that the journal has, or is given, stays as it is.
        let written = self.durable_end().max(self.spilling);
        let progress = self.progress.as_mut()?;
        for entry in entries {
            let (base, next) = (entry.offset(), progress.fetched);
            if entry.next_offset() <= next {
                continue;
            }
            let entry = match entry {
                Entry::Gap { .. } if base < next => Entry::Gap { offset: next, count: entry.next_offset() - next },
                Entry::Gap { .. } | Entry::Batch(_) if base != next => {
                    return Some(misfit(self.partition, next, &entry));
                }
                Entry::Gap { .. } | Entry::Batch(_) => entry,
            };
            progress.fetched = entry.next_offset();
            let told = epoch.filter(|_| end == Some(entry.next_offset()));
            let epoch = told.unwrap_or_else(|| entry.leader_epoch());
            if let Entry::Batch(batch) = &entry {
                self.last_timestamp = Some(batch.max_timestamp());
            }
            let last = self.window.back_mut().filter(|last| written.is_none_or(|written| written <= last.first()));
            if last.is_some_and(|last| last.extend(&entry, epoch)) {
                continue;
            }
            let held = Held::new(entry, epoch, now);
            self.window_bytes += held.bytes();
            self.window.push_back(held);
        }
        None
    }

    fn next(&self) -> Next {
        let Some(progress) = self.progress else { return Next::Nothing };
        if !self.drain.is_empty() {
            Next::Drain
        } else if self.window.front().is_some_and(|held| held.first() == progress.sent) {
            Next::Window
        } else if progress.sent < progress.fetched {
            Next::Load
        } else {
            Next::Nothing
        }
    }

    /// Whether a frame could be sent now.
    pub(super) fn has_unsent(&self) -> bool {
        matches!(self.next(), Next::Drain | Next::Window)
    }

    /// The next frame's content: a frame of the journal, or at least one entry and as many as fit into `target` bytes.
    /// Counts it as sent.
    pub(super) fn take_next(&mut self, target: usize) -> Option<OutgoingBody> {
        match self.next() {
            Next::Drain => self.drain.pop_front().map(|packed| self.send_packed(packed)),
            Next::Window => Some(OutgoingBody::Entries(self.send_entries(target))),
            Next::Load | Next::Nothing => None,
        }
    }

    fn send_packed(&mut self, packed: Packed) -> OutgoingBody {
        self.drain_bytes -= packed.body_bytes();
        let sent = self.progress.map_or(packed.first_offset, |progress| progress.sent);
        self.flight.push_back(Sent {
            offset: sent,
            next_offset: packed.next_offset,
            credit: packed.raw_bytes,
            epoch: packed.last_epoch,
            what: SentWhat::Journaled(packed.tail.clone()),
        });
        self.in_flight_bytes += packed.raw_bytes;
        if let Some(progress) = &mut self.progress {
            progress.sent = packed.next_offset;
        }
        // The frame may reach into the window, where it was spilled and not yet let go of.
        while let Some(held) = self.window.pop_front_if(|held| held.next() <= packed.next_offset) {
            self.window_bytes -= held.bytes();
        }
        OutgoingBody::Packed(packed)
    }

    fn send_entries(&mut self, target: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(held) = self.window.pop_front_if(|held| {
            entries.is_empty() || (bytes + held.bytes() <= target && entries.len() < MAX_FRAME_ENTRIES)
        }) {
            bytes += held.bytes();
            entries.push(held.entry().clone());
            self.flight.push_back(held.into());
        }
        self.in_flight_bytes += bytes;
        if let (Some(progress), Some(last)) = (&mut self.progress, entries.last()) {
            progress.sent = last.next_offset();
        }
        entries
    }

    /// Offsets of what is sent next and cannot be made smaller: an entry of the window, or a frame of the journal.
    pub(super) fn next_offsets(&self) -> Option<(Offset, Offset)> {
        match self.next() {
            Next::Drain => self.drain.front().map(|packed| (packed.first_offset, packed.next_offset)),
            Next::Window => self.window.front().map(|held| (held.first(), held.next())),
            Next::Load | Next::Nothing => None,
        }
    }

    /// Least credit that the next frame takes.
    pub(super) fn next_bytes(&self) -> usize {
        match self.next() {
            Next::Drain => self.drain.front().map_or(0, |packed| packed.raw_bytes),
            Next::Window => self.window.front().map_or(0, Held::bytes),
            Next::Load | Next::Nothing => 0,
        }
    }

    /// The cloud holds everything below `offset`. Returns the bytes of credit given back, or `None` where that was never
    /// sent.
    pub(super) fn confirm(&mut self, offset: Offset) -> Option<usize> {
        let progress = self.progress.as_mut()?;
        if offset > progress.sent {
            return None;
        }
        progress.confirmed = progress.confirmed.max(offset);
        self.dirty = true;
        self.untrimmed = true;
        let before = self.in_flight_bytes;
        while let Some(sent) = self.flight.pop_front_if(|sent| sent.next_offset <= offset) {
            self.in_flight_bytes -= sent.credit;
            self.shipped_epoch = sent.epoch;
            match sent.what {
                SentWhat::Held(held) => {
                    self.window_bytes -= held.bytes();
                    self.remember(held.tail());
                }
                SentWhat::Journaled(tail) => tail.into_iter().for_each(|batch| self.remember(batch)),
            }
        }
        self.remember_part(offset);
        self.drop_journal_below(offset);
        Some(before - self.in_flight_bytes)
    }

    fn drop_below(&mut self, offset: Offset) {
        while let Some(held) = self.window.pop_front_if(|held| held.next() <= offset) {
            self.window_bytes -= held.bytes();
            self.shipped_epoch = held.epoch();
            self.remember(held.tail());
        }
        if let Some(part) = self.window.front_mut().and_then(|held| held.clip(offset)) {
            self.shipped_epoch = -1;
            self.remember(part);
        }
    }
}

fn misfit(partition: Partition, next: Offset, entry: &Entry) -> Failure {
    let base = entry.offset();
    if base > next {
        let detail = "offsets of the source were left out: a fault of the agent";
        return Failure::at(FailureCode::IllegalState, partition, next, detail).until(base);
    }
    let detail = format!(
        "the mirror ends inside the source's batch of offsets {base} to {}: the two logs were not written alike",
        entry.next_offset() - 1
    );
    Failure::at(FailureCode::Diverged, partition, next, detail)
}
