//! What of a partition goes to the journal, and how it comes back.

use super::{EdgePartition, Held, Placement, SentWhat};
use crate::frame::{Entry, FrameLimits, Packed};
use crate::id::{Offset, Time};
use crate::limits::{MAX_FRAME_BYTES, MAX_FRAME_ENTRIES};
use crate::progress::EdgeProgress;
use crate::wire::TailBatch;

impl EdgePartition {
    /// Takes up what a former process left: a checkpoint's offset, where there is one, and the journal's range.
    pub(in crate::edge) fn restore(
        &mut self,
        confirmed: Option<Offset>,
        shipped: (Vec<TailBatch>, i32),
        journal: Option<(Offset, Offset, i32)>,
    ) {
        // What is being written is in the journal soon, and kept like the rest.
        let spilling = self.spilling;
        self.forget_memory();
        self.spilling = spilling;
        (self.shipped, self.shipped_epoch) = shipped;
        // The journal lets go of confirmed offsets only: a checkpoint below its start is an old one.
        self.known |= confirmed.is_some() || journal.is_some();
        let confirmed = match (confirmed, journal) {
            (Some(confirmed), Some((first, _, _))) => confirmed.max(first),
            (Some(confirmed), None) => confirmed,
            (None, Some((first, _, _))) => first,
            (None, None) => return,
        };
        let journal = journal.filter(|&(_, next, _)| next > confirmed);
        self.journal = journal.map(|(first, next, _)| (first, next));
        self.journal_epoch = journal.map_or(-1, |(_, _, epoch)| epoch);
        let fetched = self.journal.map_or(confirmed, |(_, next)| next);
        self.progress = Some(EdgeProgress { confirmed, sent: confirmed, fetched });
    }

    /// Where to read the journal on, if its frames are what comes next and few are there.
    pub(in crate::edge) fn wants(&self, ahead: usize) -> Option<Offset> {
        let end = self
            .drain
            .back()
            .map(|packed| packed.next_offset)
            .or_else(|| self.progress.map(|progress| progress.sent))?;
        let below_window = self.window_start().is_some_and(|start| end < start);
        let placed = matches!(self.placement, Placement::Placed { .. });
        (placed && self.loading.is_none() && below_window && self.drain_bytes < ahead).then_some(end)
    }

    /// Lets go of what was read back from the journal and is not sent: it can be read again.
    pub(in crate::edge) fn undrain(&mut self) {
        self.drain.clear();
        self.drain_bytes = 0;
        self.loading = None;
    }

    /// Takes frames read back from the journal, made anew where they are larger than `max_bytes`: they were kept for a
    /// gateway that took more. Returns false where they do not join.
    pub(in crate::edge) fn loaded(&mut self, frames: Vec<Packed>, max_bytes: usize) -> bool {
        self.loading = None;
        let Some(progress) = self.progress else { return false };
        if frames.is_empty() {
            return false;
        }
        let sent = progress.sent;
        let pieces = frames.into_iter().flat_map(|packed| fitting(packed, max_bytes));
        for packed in pieces.skip_while(|packed| packed.next_offset <= sent) {
            let end = self.drain.back().map_or(progress.sent, |last| last.next_offset);
            let joins = match self.drain.back() {
                Some(_) => packed.first_offset == end,
                None => packed.first_offset <= end && end < packed.next_offset,
            };
            if !joins {
                return false;
            }
            // What the window holds from there on goes from the window.
            if self.window_start().is_some_and(|start| end >= start) {
                break;
            }
            self.drain_bytes += packed.body_bytes();
            self.drain.push_back(packed);
        }
        true
    }

    /// A journal of which the cloud has everything is of no more use, unless more is being written to it.
    pub(super) fn drop_journal_below(&mut self, offset: Offset) {
        if self.spilling.is_none()
            && let Some((_, next)) = self.journal.take_if(|(_, next)| *next <= offset)
        {
            self.left_behind = Some((next, self.journal_epoch));
        }
    }

    /// Where the journal would be written on.
    pub(super) fn durable_end(&self) -> Option<Offset> {
        let confirmed = self.progress?.confirmed;
        Some(self.journal.map_or(confirmed, |(_, next)| next.max(confirmed)))
    }

    /// Since when the oldest entry that is neither confirmed nor in the journal was fetched.
    pub(in crate::edge) fn unsafe_since(&self) -> Option<Time> {
        let end = self.durable_end()?;
        if self.spilling.is_some() {
            return None;
        }
        self.held().find(|held| held.next() > end).map(|held| held.since)
    }

    /// Entries for the journal, in frames of about `target` bytes, each with the epoch of the last: those fetched at `until` or before, as far as `room`
    /// bytes go. Nothing more is given until [`EdgePartition::spilled`].
    pub(in crate::edge) fn spill(&mut self, until: Time, target: usize, room: usize) -> Vec<(Vec<Entry>, i32)> {
        let Some(end) = self.durable_end().filter(|_| self.spilling.is_none()) else { return Vec::new() };
        let mut frames: Vec<(Vec<Entry>, i32)> = Vec::new();
        let (mut frame_bytes, mut bytes) = (0, 0);
        let mut next = None;
        let due = |held: &&Held| held.next() > end && held.since <= until;
        for held in self.held().filter(due) {
            if bytes >= room {
                break;
            }
            let fits = frame_bytes + held.bytes() <= target
                && frames.last().is_some_and(|(frame, _)| frame.len() < MAX_FRAME_ENTRIES);
            let entry = held.entry_from(end);
            if let Some((frame, epoch)) = frames.last_mut().filter(|_| fits) {
                frame.push(entry);
                *epoch = held.epoch();
            } else {
                frames.push((vec![entry], held.epoch()));
                frame_bytes = 0;
            }
            frame_bytes += held.bytes();
            bytes += held.bytes();
            next = Some(held.next());
        }
        self.spilling = next;
        frames
    }

    /// What was given for the journal is in it, or is not. Lets go of what need not be in memory any more.
    pub(in crate::edge) fn spilled(&mut self, first: Offset, next: Offset, epoch: i32, kept: bool) {
        if self.spilling.take() != Some(next) {
            return;
        }
        // What does not join was meant for a journal that has lost its end since.
        let joins = self.durable_end().is_some_and(|end| first <= end);
        let Some(progress) = self.progress.as_mut().filter(|_| kept && joins) else { return };
        // Its memory may be forgotten meanwhile: the mirror was paused.
        progress.fetched = progress.fetched.max(next);
        let confirmed = progress.confirmed;
        let first = self.journal.filter(|&(_, end)| end == first).map_or(first, |(first, _)| first);
        self.journal = Some((first, next));
        self.journal_epoch = epoch;
        for sent in &mut self.flight {
            if let SentWhat::Held(held) = &sent.what
                && sent.next_offset <= next
            {
                self.window_bytes -= held.bytes();
                sent.what = SentWhat::Journaled(vec![held.tail()]);
            }
        }
        while let Some(held) = self.window.pop_front_if(|held| held.next() <= next) {
            self.window_bytes -= held.bytes();
        }
        self.drop_journal_below(confirmed);
    }
}

/// A frame in pieces of at most `max_bytes`, or of one entry. One that cannot be read stays whole.
fn fitting(packed: Packed, max_bytes: usize) -> Vec<Packed> {
    if packed.raw_bytes <= max_bytes {
        return vec![packed];
    }
    let limits = FrameLimits { max_bytes: MAX_FRAME_BYTES };
    let Ok(entries) = packed.unpack(limits) else { return vec![packed] };
    let mut pieces: Vec<Vec<Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        if bytes > 0
            && bytes + entry.bytes() <= max_bytes
            && let Some(piece) = pieces.last_mut()
        {
            bytes += entry.bytes();
            piece.push(entry);
        } else {
            bytes = entry.bytes();
            pieces.push(vec![entry]);
        }
    }
    let mut pieces: Vec<_> = pieces.iter().map(|piece| Packed::new(piece)).collect();
    if let Some(last) = pieces.last_mut() {
        last.last_epoch = packed.last_epoch;
    }
    pieces
}
