//! One partition at the site: its window, and what is remembered of what was shipped.

use std::collections::VecDeque;

use crate::batch::Batch;
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{Offset, Partition};
use crate::limits::{MAX_FRAME_ENTRIES, MAX_TAIL};
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

#[derive(Debug)]
struct Held {
    batch: Batch,
    crc: u32,
}

impl Held {
    fn tail(&self) -> TailBatch {
        TailBatch { base_offset: self.batch.base_offset(), last_offset: self.batch.last_offset(), crc: self.crc }
    }

    fn bytes(&self) -> usize {
        Entry::batch_bytes(&self.batch)
    }
}

/// What memory says about a mirror's tail.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recall {
    Agrees,
    Unknown,
    Differs(Failure),
}

#[derive(Debug)]
pub(super) struct EdgePartition {
    partition: Partition,
    pub(super) placement: Placement,
    pub(super) fetching: Fetching,
    pub(super) last_run: u32,
    pub(super) high_watermark: Option<Offset>,
    pub(super) told_high_watermark: Option<Offset>,
    pub(super) queued: bool,
    pub(super) unverified: bool,
    /// Times the cloud came back without what it had confirmed, over all sessions.
    pub(super) rewinds: u64,
    progress: Option<EdgeProgress>,
    window: VecDeque<Held>,
    window_bytes: usize,
    /// Batches at the window's front that were sent in this session, and their bytes.
    sent_batches: usize,
    in_flight_bytes: usize,
    shipped: VecDeque<TailBatch>,
}

impl EdgePartition {
    pub(super) fn new(partition: Partition) -> Self {
        Self {
            partition,
            placement: Placement::None,
            fetching: Fetching::Off,
            last_run: 0,
            high_watermark: None,
            told_high_watermark: None,
            queued: false,
            unverified: false,
            rewinds: 0,
            progress: None,
            window: VecDeque::new(),
            window_bytes: 0,
            sent_batches: 0,
            in_flight_bytes: 0,
            shipped: VecDeque::new(),
        }
    }

    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    pub(super) fn progress(&self) -> Option<EdgeProgress> {
        self.progress
    }

    pub(super) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.sent_batches < self.window.len()
    }

    pub(super) fn validate(&self) {
        debug_assert_eq!(self.window_bytes, self.window.iter().map(Held::bytes).sum::<usize>());
        debug_assert_eq!(
            self.in_flight_bytes,
            self.window.iter().take(self.sent_batches).map(Held::bytes).sum::<usize>()
        );
        debug_assert_eq!(self.progress.as_ref().map(EdgeProgress::validate), self.progress.as_ref().map(|_| Ok(())));
    }

    /// Compares a mirror's tail with what was shipped and what is held.
    pub(super) fn recall(&self, tail: &[TailBatch], next_offset: Offset) -> Recall {
        if next_offset == 0 {
            return Recall::Agrees;
        }
        let known = || self.shipped.iter().copied().chain(self.window.iter().map(Held::tail));
        for theirs in tail {
            let overlaps =
                |ours: &TailBatch| ours.base_offset <= theirs.last_offset && theirs.base_offset <= ours.last_offset;
            if let Some(ours) = known().find(overlaps)
                && ours != *theirs
            {
                return Recall::Differs(differs(self.partition, &ours, theirs));
            }
        }
        let last_is_known = tail.last().is_some_and(|last| known().any(|ours| ours == *last));
        if last_is_known { Recall::Agrees } else { Recall::Unknown }
    }

    /// Whether the window and the fetch behind it go on at `next_offset`.
    pub(super) fn goes_on_at(&self, next_offset: Offset) -> bool {
        self.progress.is_some_and(|progress| progress.fetched == next_offset)
            || self.window.iter().any(|held| held.batch.base_offset() == next_offset)
    }

    /// Goes on at `next_offset`, with what of the window lies behind it. Returns whether fetching has to start anew, at
    /// [`EdgeProgress::fetched`].
    pub(super) fn place(&mut self, run: u32, next_offset: Offset) -> bool {
        debug_assert_eq!(self.sent_batches, 0, "unsend comes first");
        self.placement = Placement::Placed { run };
        if let (true, Some(progress)) = (self.goes_on_at(next_offset), self.progress) {
            self.drop_confirmed(next_offset);
            self.progress = Some(EdgeProgress { confirmed: next_offset, sent: next_offset, ..progress });
        } else {
            self.window.clear();
            self.window_bytes = 0;
            self.progress = Some(EdgeProgress::at(next_offset));
            self.fetching = Fetching::Off;
        }
        self.fetching == Fetching::Off
    }

    /// The session is over, or the run: nothing counts as sent. Returns the bytes that were in flight.
    pub(super) fn unsend(&mut self) -> usize {
        self.sent_batches = 0;
        if let Some(progress) = &mut self.progress {
            progress.sent = progress.confirmed;
        }
        std::mem::take(&mut self.in_flight_bytes)
    }

    /// Forgets the window. Returns its bytes.
    pub(super) fn clear(&mut self) -> usize {
        self.window.clear();
        self.progress = None;
        self.placement = Placement::None;
        self.fetching = Fetching::Off;
        std::mem::take(&mut self.window_bytes)
    }

    /// Takes what was fetched, up to the first batch that does not join; returns why that one does not.
    pub(super) fn add(&mut self, batches: Vec<Batch>) -> Option<Failure> {
        let progress = self.progress.as_mut()?;
        for batch in batches {
            let (base, next) = (batch.base_offset(), progress.fetched);
            if batch.next_offset() <= next {
                continue;
            }
            if base != next {
                return Some(misfit(self.partition, next, &batch));
            }
            progress.fetched = batch.next_offset();
            let held = Held { crc: batch.canonical_crc(), batch };
            self.window_bytes += held.bytes();
            self.window.push_back(held);
        }
        None
    }

    /// The next frame's entries: at least one batch, then as many as fit into `target` bytes. Counts them as sent.
    pub(super) fn next_entries(&mut self, target: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for held in self.window.iter().skip(self.sent_batches) {
            if !entries.is_empty() && (bytes + held.bytes() > target || entries.len() == MAX_FRAME_ENTRIES) {
                break;
            }
            bytes += held.bytes();
            entries.push(Entry::Batch(held.batch.clone()));
        }
        self.sent_batches += entries.len();
        self.in_flight_bytes += bytes;
        if let (Some(progress), Some(last)) = (&mut self.progress, entries.last()) {
            progress.sent = last.next_offset();
        }
        entries
    }

    /// The next unsent batch.
    pub(super) fn next_batch(&self) -> Option<&Batch> {
        self.window.get(self.sent_batches).map(|held| &held.batch)
    }

    /// Size of the next unsent batch, as budgets count it.
    pub(super) fn next_bytes(&self) -> usize {
        self.next_batch().map_or(0, Entry::batch_bytes)
    }

    /// The cloud holds everything below `offset`. Returns the bytes confirmed, or `None` where that was never sent.
    pub(super) fn confirm(&mut self, offset: Offset) -> Option<usize> {
        let progress = self.progress.as_mut()?;
        if offset > progress.sent {
            return None;
        }
        progress.confirmed = progress.confirmed.max(offset);
        let before = self.window_bytes;
        self.drop_confirmed(offset);
        let freed = before - self.window_bytes;
        self.in_flight_bytes -= freed;
        Some(freed)
    }

    fn drop_confirmed(&mut self, offset: Offset) {
        while let Some(held) = self.window.pop_front_if(|held| held.batch.next_offset() <= offset) {
            self.window_bytes -= held.bytes();
            self.sent_batches = self.sent_batches.saturating_sub(1);
            self.shipped.push_back(held.tail());
            if self.shipped.len() > MAX_TAIL {
                self.shipped.pop_front();
            }
        }
    }
}

fn misfit(partition: Partition, next: Offset, batch: &Batch) -> Failure {
    let base = batch.base_offset();
    if base > next {
        let detail = "the source has no records here: compacted and transactional logs are not mirrored yet";
        return Failure::at(FailureCode::UnsupportedGap, partition, next, detail).until(base);
    }
    let detail = format!(
        "the mirror ends inside the source's batch of offsets {base} to {}: the two logs were not written alike",
        batch.last_offset()
    );
    Failure::at(FailureCode::Diverged, partition, next, detail)
}

/// The failure of two batches that should be one.
pub(super) fn differs(partition: Partition, ours: &TailBatch, theirs: &TailBatch) -> Failure {
    let detail = format!(
        "the source's batch of offsets {} to {} has canonical CRC {:#010x}, the mirror's of offsets {} to {} has {:#010x}",
        ours.base_offset, ours.last_offset, ours.crc, theirs.base_offset, theirs.last_offset, theirs.crc
    );
    let at = ours.base_offset.max(theirs.base_offset);
    Failure::at(FailureCode::Diverged, partition, at, detail).until(theirs.last_offset + 1)
}
