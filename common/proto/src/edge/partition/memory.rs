//! What is remembered of what was shipped, and what that says about a mirror's end.

use super::{EdgePartition, Held, Placement, SentWhat};
use crate::edge::evidence::{contradicts, differs, entry_contradicts, proves};
use crate::failure::Failure;
use crate::id::Offset;
use crate::wire::TailBatch;

/// What memory says about a mirror's tail.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::edge) enum Recall {
    Agrees,
    Unknown,
    Differs(Failure),
}

impl EdgePartition {
    /// What is remembered of what the cloud confirmed, and the source's epoch of its last batch.
    pub(in crate::edge) fn shipped(&self) -> (Vec<TailBatch>, i32) {
        (self.shipped.clone(), self.shipped_epoch)
    }

    /// Compares a mirror's tail with what was shipped and what is held. `compacted`: what is held may have been read after
    /// the source had lost records that were shipped.
    pub(in crate::edge) fn recall(&self, tail: &[TailBatch], next_offset: Offset, compacted: bool) -> Recall {
        if next_offset == 0 {
            return Recall::Agrees;
        }
        let started = self.deleted_before(next_offset);
        // What was shipped and what was read since may be of two histories.
        let sure: Vec<TailBatch> = self.shipped.iter().copied().chain(started).collect();
        let read: Vec<(TailBatch, &Held)> = self.held().map(|held| (held.tail(), held)).collect();
        let mut pairs = tail.iter().flat_map(|theirs| sure.iter().map(move |ours| (*ours, *theirs)));
        let shipped = pairs.find(|(ours, theirs)| contradicts(ours, theirs, false));
        let mut pairs = tail.iter().flat_map(|theirs| read.iter().map(move |ours| (ours, *theirs)));
        let held = pairs.find(|((ours, held), theirs)| entry_contradicts(held.entry(), ours, theirs, compacted));
        if let Some((ours, theirs)) = shipped.or_else(|| held.map(|((ours, _), theirs)| (*ours, theirs))) {
            return Recall::Differs(differs(self.partition, &ours, &theirs));
        }
        let read: Vec<TailBatch> = read.into_iter().map(|(ours, _)| ours).collect();
        let known = [sure.as_slice(), &read].concat();
        // A mirror that holds nothing at all, as we know it.
        let nothing = tail.is_empty()
            && sure.iter().all(|ours| ours.gap)
            && sure.last().is_some_and(|last| last.last_offset + 1 == next_offset);
        if nothing || proves(&known, tail) { Recall::Agrees } else { Recall::Unknown }
    }

    /// What the gateway was told to be no more at the source, if that ends at `next_offset` or, where the gateway is not
    /// done with it, goes on there.
    pub(in crate::edge) fn deleted_before(&self, next_offset: Offset) -> Option<TailBatch> {
        let (first, start) = self.started?;
        (first < next_offset && next_offset <= start).then(|| TailBatch::gap(first, next_offset))
    }

    /// The start of the source's log, if it is time to tell it: all that was fetched before is confirmed.
    pub(in crate::edge) fn take_start(&mut self) -> Option<Offset> {
        let progress = self.progress.filter(|progress| progress.confirmed == progress.fetched)?;
        let start = self.overtaken.take_if(|_| matches!(self.placement, Placement::Placed { .. }))?;
        self.started = Some((progress.fetched, start));
        Some(start)
    }

    pub(super) fn shipped_end(&self) -> Option<Offset> {
        self.shipped.last().map(|last| last.last_offset + 1)
    }

    /// A run begins at `next_offset`: what was deleted at the source before it is known to be a gap, and what the cloud lost
    /// is shipped again, and then known again.
    pub(super) fn forget_above(&mut self, next_offset: Offset) {
        if let Some(deleted) = self.deleted_before(next_offset) {
            self.remember(deleted);
            self.shipped_epoch = -1;
        }
        self.started = None;
        self.shipped.retain(|one| one.base_offset < next_offset);
        if let Some(last) = self.shipped.last_mut().filter(|last| last.gap) {
            last.last_offset = last.last_offset.min(next_offset - 1);
        }
    }

    /// Remembers what the cloud has, up to `offset`, of a frame or a gap that it does not have whole.
    pub(super) fn remember_part(&mut self, offset: Offset) {
        let end = self.shipped_end();
        let tail = match self.flight.front().map(|sent| &sent.what) {
            Some(SentWhat::Held(held)) => vec![held.tail()],
            Some(SentWhat::Journaled(tail)) => tail.clone(),
            None => return,
        };
        for one in tail.into_iter().filter(|one| one.base_offset < offset) {
            if one.last_offset < offset {
                self.remember(one);
            } else if one.gap {
                self.remember(TailBatch::gap(one.base_offset, offset));
            }
        }
        if self.shipped_end() != end {
            self.shipped_epoch = -1;
        }
    }

    pub(super) fn remember(&mut self, entry: TailBatch) {
        let end = self.shipped_end().unwrap_or(0);
        // A frame of the journal may reach below where it was taken up.
        if entry.last_offset < end {
            return;
        }
        let entry =
            if entry.gap && entry.base_offset < end { TailBatch::gap(end, entry.last_offset + 1) } else { entry };
        entry.append(&mut self.shipped);
    }
}
