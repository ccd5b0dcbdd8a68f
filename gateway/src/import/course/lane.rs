//! One partition of an import: where its mirror stands, what is read for it and what is on its way.

use std::collections::VecDeque;
use std::sync::Arc;

use tombolo_proto::export::ExportRange;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::frame::{Entry, FrameLimits};
use tombolo_proto::id::Offset;
use tombolo_proto::limits::MAX_FRAME_ENTRIES;
use tombolo_proto::wire::{Position, TailBatch};

use crate::import::folder::{Cursor, Export, FolderError};
use crate::import::report::{Outcome, Stood};

/// Frames are filled up to this: a larger one would hold up the others for nothing.
const FRAME_TARGET: usize = 1 << 20;

#[derive(Debug)]
pub(super) enum Stage {
    /// The session has not told a position.
    Unplaced,
    /// It has; the partition waits for its turn.
    Positioned(Position),
    Sending(Sending),
    Done(Outcome),
}

/// What is read and not yet sent.
#[derive(Debug)]
pub(super) struct Sending {
    cursor: Cursor,
    entries: VecDeque<Entry>,
}

/// What comes of a partition's turn.
pub(super) enum Begun {
    Sending {
        /// The mirror's end agrees with the export; else there was nothing to compare.
        verified: bool,
    },
    Done(Outcome),
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) range: ExportRange,
    pub(super) stage: Stage,
    pub(super) stood: Stood,
    run: u32,
    /// Next offset and bytes of each frame that is not confirmed.
    in_flight: VecDeque<(Offset, usize)>,
    /// Bytes that are done with and were not told yet, and all that were.
    progress: u64,
    told: u64,
}

impl Lane {
    pub(super) fn new(range: ExportRange) -> Self {
        Self {
            range,
            stage: Stage::Unplaced,
            stood: Stood::default(),
            run: 0,
            in_flight: VecDeque::new(),
            progress: 0,
            told: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }

    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// Takes up a run, which may be a rewind: nothing counts as sent. Whether the partition wants a turn: one that has come
    /// to a bad end does not.
    pub(super) fn place(&mut self, position: Position) -> bool {
        self.in_flight.clear();
        self.run = position.run;
        if matches!(&self.stage, Stage::Done(outcome) if !outcome.is_good()) {
            return false;
        }
        self.stood.before.get_or_insert(position.next_offset);
        self.stood.after = Some(position.next_offset);
        self.stage = Stage::Positioned(position);
        true
    }

    /// Compares the mirror's tail with the export's batches and finds the first entry to send.
    pub(super) async fn begin(
        &mut self,
        export: &Arc<Export>,
        topic: u32,
        position: &Position,
        limits: FrameLimits,
    ) -> Begun {
        let &Position { next_offset, ref tail, .. } = position;
        let ExportRange { first_offset, next_offset: end, .. } = self.range;
        if next_offset < first_offset {
            return Begun::Done(Outcome::Missing { from: next_offset, until: first_offset });
        }
        let compares = tail.iter().any(|batch| batch.base_offset < end && batch.last_offset >= first_offset);
        self.stood.verified = if next_offset == 0 { None } else { Some(compares) };
        if next_offset >= end && !compares {
            return Begun::Done(Outcome::AlreadyThere);
        }
        let mut cursor = Cursor::new(Arc::clone(export), topic, self.range, limits);
        match find(&mut cursor, tail, &self.range, next_offset).await {
            Ok(_) if next_offset >= end => Begun::Done(Outcome::AlreadyThere),
            Ok(entries) => {
                self.stage = Stage::Sending(Sending { cursor, entries });
                Begun::Sending { verified: compares || next_offset == 0 }
            }
            Err(outcome) => Begun::Done(outcome),
        }
    }

    /// The next frame's entries, and the run they belong to, if the credit has room for them; an error ends the partition.
    pub(super) async fn next_entries(
        &mut self,
        max_frame: usize,
        in_flight: usize,
        credit: usize,
    ) -> Result<Option<(u32, Vec<Entry>)>, Outcome> {
        let own = self.in_flight_bytes();
        let room = credit.saturating_sub(in_flight);
        let Stage::Sending(sending) = &mut self.stage else { return Ok(None) };
        // One alone gets half of the credit, each of n an n+1th: a partition that stalls stalls itself.
        if own >= room {
            return Ok(None);
        }
        if sending.entries.is_empty() {
            let Some(header) = sending.cursor.header().await.map_err(damaged)? else { return Ok(None) };
            sending.entries = sending.cursor.body(&header).await.map_err(damaged)?.entries.into();
        }
        let target = max_frame.min(FRAME_TARGET);
        let (mut count, mut bytes) = (0, 0);
        for entry in sending.entries.iter().take(MAX_FRAME_ENTRIES) {
            if count > 0 && bytes + entry.bytes() > target {
                break;
            }
            count += 1;
            bytes += entry.bytes();
        }
        let Some(first) = sending.entries.front() else { return Ok(None) };
        if bytes > max_frame {
            let detail =
                format!("a batch of {bytes} bytes, the largest frame takes {max_frame}: raise memory.max_frame");
            let failure = Failure::at(FailureCode::BatchTooLarge, self.range.partition, first.offset(), detail);
            return Err(Outcome::Failed(failure));
        }
        if bytes > room {
            return Ok(None);
        }
        let entries: Vec<Entry> = sending.entries.drain(..count).collect();
        let next_offset = entries.last().map_or(self.range.next_offset, Entry::next_offset);
        self.in_flight.push_back((next_offset, bytes));
        Ok(Some((self.run, entries)))
    }

    /// The cloud has everything below `offset`. Returns the credit that is free again.
    pub(super) fn confirm(&mut self, run: u32, offset: Offset) -> usize {
        if run != self.run || self.is_done() {
            return 0;
        }
        self.stood.after = self.stood.after.max(Some(offset));
        let mut freed = 0;
        while let Some((_, bytes)) = self.in_flight.pop_front_if(|(next, _)| *next <= offset) {
            freed += bytes;
        }
        self.progress += freed as u64;
        if offset >= self.range.next_offset && matches!(self.stage, Stage::Sending(_)) {
            self.end(Outcome::Complete);
        }
        freed
    }

    pub(super) fn end(&mut self, outcome: Outcome) {
        self.in_flight.clear();
        self.stage = Stage::Done(outcome);
        // What was there before, or will never be, is done with too.
        self.progress = self.range.raw_bytes.saturating_sub(self.told);
    }

    /// Bytes done with since the last call; all calls together give the range's.
    pub(super) fn take_progress(&mut self) -> u64 {
        let progress = std::mem::take(&mut self.progress).min(self.range.raw_bytes.saturating_sub(self.told));
        self.told += progress;
        progress
    }
}

/// Brings the cursor to `next_offset`; on the way, every batch that a batch of the tail overlaps must be that batch. Gives
/// the entries of the frame that holds `next_offset` from there on.
async fn find(
    cursor: &mut Cursor,
    tail: &[TailBatch],
    range: &ExportRange,
    next_offset: Offset,
) -> Result<VecDeque<Entry>, Outcome> {
    let from = tail.first().map_or(next_offset, |batch| batch.base_offset);
    while let Some(header) = cursor.header().await.map_err(damaged)? {
        if header.next_offset <= from {
            cursor.skip(&header).await.map_err(damaged)?;
            continue;
        }
        let mut rest = VecDeque::new();
        for entry in cursor.body(&header).await.map_err(damaged)?.entries {
            if entry.offset() >= next_offset {
                rest.push_back(entry);
            } else {
                agrees(&entry, tail, range, next_offset).map_err(Outcome::Failed)?;
            }
        }
        if !rest.is_empty() || header.next_offset >= next_offset {
            return Ok(rest);
        }
    }
    Ok(VecDeque::new())
}

/// Compares an entry that the mirror has.
fn agrees(entry: &Entry, tail: &[TailBatch], range: &ExportRange, next_offset: Offset) -> Result<(), Failure> {
    let (first, end) = (entry.offset(), entry.next_offset());
    let failure = |detail: String| Failure::at(FailureCode::Diverged, range.partition, first, detail).until(end);
    if end > next_offset {
        return Err(failure(format!(
            "the mirror ends at offset {next_offset}, inside the export's batch of offsets {first} to {}",
            end - 1
        )));
    }
    let Some(theirs) = tail.iter().find(|batch| batch.base_offset < end && batch.last_offset >= first) else {
        return Ok(());
    };
    let Entry::Batch(batch) = entry else {
        return Err(failure("the export has no records here, the mirror has".to_owned()));
    };
    let ours = TailBatch::of(batch);
    if ours == *theirs {
        return Ok(());
    }
    Err(failure(format!(
        "the export's batch of offsets {first} to {} has canonical CRC {:#010x}, the mirror's of offsets {} to {} has {:#010x}",
        end - 1,
        ours.crc,
        theirs.base_offset,
        theirs.last_offset,
        theirs.crc
    )))
}

#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn damaged(error: FolderError) -> Outcome {
    Outcome::Damaged(error.to_string())
}
