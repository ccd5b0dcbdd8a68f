//! Merging: what is still of interest in mostly confirmed segments is copied to one file, so that a partition that is
//! stuck cannot pin the disk.
//!
//! Sources are sealed neighbours. The copy takes the number of the last of them and replaces its file by renaming; then
//! the others are removed. So segments stay in the order of offsets, and a power cut leaves the sources, or the copy and
//! some of its sources, which it supersedes. A step copies a bounded number of bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::JournalError;
use super::super::disk::Disk;
use super::super::index::{Index, Key};
use super::super::schema::{RangeRow, RunKey};
use super::super::segment::{EMPTY_BYTES, Entry, MERGE_CACHE, Writer};
use super::super::store::StoreError;
use super::{FREE_MARGIN, SegmentJournal, body_bytes, segment_name, unfinished_name};

/// Most bytes of bodies that a step copies, but for a single frame that is larger.
const STEP_BYTES: usize = 4 << 20;
/// What a segment has of interest at most, as a part of its file, to be merged: a quarter.
const SURVIVORS: u64 = 4;

/// A merge under way.
#[derive(Debug)]
pub(super) struct Merge {
    sources: BTreeSet<u64>,
    target: u64,
    writer: Writer,
    partitions: VecDeque<Key>,
    rows: BTreeMap<Key, RangeRow>,
}

impl Merge {
    pub(super) fn written(&self) -> u64 {
        self.writer.written()
    }

    pub(super) fn reads(&self, number: u64) -> bool {
        self.sources.contains(&number)
    }
}

/// What a segment with so many bytes of bodies takes on disk, or less.
fn estimate(live: u64) -> u64 {
    EMPTY_BYTES + live + live / 8
}

impl<D: Disk> SegmentJournal<D> {
    /// Goes on with a merge, or begins one where it pays.
    pub(super) fn merge_step(&mut self) -> Result<(), JournalError> {
        let merge = match self.merge.take() {
            Some(merge) => merge,
            None => match self.begin_merge() {
                Ok(Some(merge)) => merge,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.poisoned(&error)),
            },
        };
        self.copy(merge)
    }

    /// Gives a merge up; nothing depends on it before it is finished.
    pub(super) fn abandon_merge(&mut self) -> Result<(), JournalError> {
        let Some(merge) = self.merge.take() else { return Ok(()) };
        merge.writer.retire();
        self.disk.remove(&unfinished_name(merge.target)).map_err(|error| self.poisoned(&error))
    }

    fn begin_merge(&mut self) -> Result<Option<Merge>, StoreError> {
        let Some(sources) = self.merge_sources() else { return Ok(None) };
        let Some(target) = sources.last().copied() else { return Ok(None) };
        if self.resumable.is_some_and(|number| sources.contains(&number)) {
            self.resumable = None;
        }
        let file = self.disk.open(&unfinished_name(target)).map_err(redb::Error::from)?;
        let writer = Writer::create(file, MERGE_CACHE)?;
        let partitions = self.index.partitions(&sources);
        Ok(Some(Merge { sources, target, writer, partitions, rows: BTreeMap::new() }))
    }

    /// Neighbours whose survivors fit the reserve and take at most half of the files they are in.
    fn merge_sources(&self) -> Option<BTreeSet<u64>> {
        let room = self.reserve().min(self.disk.free_bytes().unwrap_or(u64::MAX).saturating_sub(FREE_MARGIN));
        let mut group = (BTreeSet::new(), 0, 0);
        for (number, length) in &self.sealed {
            let live = self.index.live(*number).bytes;
            let apart = group.0.last().is_some_and(|last| self.damaged.range(last..number).next().is_some());
            let fits = live * SURVIVORS <= *length && estimate(group.1 + live) <= room;
            if apart || !fits {
                if pays(&group) {
                    break;
                }
                group = (BTreeSet::new(), 0, 0);
            }
            if live * SURVIVORS <= *length && estimate(live) <= room {
                group.0.insert(*number);
                group.1 += live;
                group.2 += length;
            }
        }
        pays(&group).then_some(group.0)
    }

    /// One step.
    fn copy(&mut self, mut merge: Merge) -> Result<(), JournalError> {
        let mut left = STEP_BYTES;
        while let Some(key) = merge.partitions.front().cloned() {
            match self.copy_some(&mut merge, &key, left) {
                Ok((copied, done)) => {
                    left = left.saturating_sub(copied);
                    if done {
                        merge.partitions.pop_front();
                    }
                }
                Err(Failure::Source(number, error)) => {
                    self.merge = Some(merge);
                    return Err(self.read_failed(number, &error));
                }
                Err(Failure::Target(error)) => return Err(self.poisoned(&error)),
            }
            if left == 0 {
                self.merge = Some(merge);
                return Ok(());
            }
        }
        self.finish(merge)
    }

    /// Copies frames of a partition; answers how many bytes, and whether that was all.
    fn copy_some(&mut self, merge: &mut Merge, key: &Key, max_bytes: usize) -> Result<(usize, bool), Failure> {
        let Some((head, pieces)) = self.index.within(key, &merge.sources) else { return Ok((0, true)) };
        let mut row = merge.rows.get(key).copied().unwrap_or(RangeRow { next: head.first, ..head });
        let from = row.next.max(head.first);
        let run_key = RunKey { topic: key.0.as_str(), partition: key.1, run: row.run };
        let mut frames = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.next > from) {
            let read = self.read_piece(run_key, *piece, from, max_bytes, &mut frames);
            if !read.map_err(|error| Failure::Source(piece.segment, error))? {
                break;
            }
        }
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok((0, true)) };
        if first.first_offset != row.next {
            // The first ones; or what was copied so far was confirmed meanwhile, and more.
            row = RangeRow { first: first.first_offset, bytes: 0, ..row };
        }
        row.next = last.next_offset;
        let copied = body_bytes(frames.iter());
        row.bytes += copied;
        row.last_epoch = last.last_epoch;
        let entries: Vec<Entry<'_>> =
            frames.iter().map(|packed| Entry { topic: &key.0, partition: key.1, run: row.run, packed }).collect();
        merge.writer.append(&entries, std::iter::once((&key.0, key.1, row))).map_err(Failure::Target)?;
        self.written_bytes += copied;
        merge.rows.insert(key.clone(), row);
        Ok((usize::try_from(copied).unwrap_or(usize::MAX).max(1), row.next >= head.next))
    }

    fn finish(&mut self, merge: Merge) -> Result<(), JournalError> {
        let Merge { sources, target, writer, rows, .. } = merge;
        debug_assert!(covers(&self.index, &sources, &rows), "a merge has copied all that is of interest");
        let length = writer.seal().map_err(|error| self.poisoned(&error))?;
        self.readers.close(target);
        let renamed = self.disk.rename(&unfinished_name(target), &segment_name(target));
        renamed.and_then(|()| self.disk.sync()).map_err(|error| self.poisoned(&error))?;
        self.sealed.insert(target, length);
        self.index.moved(&sources, target, rows);
        self.remove_dead()
    }
}

type Group = (BTreeSet<u64>, u64, u64);

fn pays((_, live, length): &Group) -> bool {
    estimate(*live) * 2 <= *length
}

fn covers(index: &Index, sources: &BTreeSet<u64>, rows: &BTreeMap<Key, RangeRow>) -> bool {
    index.partitions(sources).iter().all(|key| {
        index.within(key, sources).is_none_or(|(head, _)| {
            rows.get(key).is_some_and(|row| row.run == head.run && row.first <= head.first && row.next >= head.next)
        })
    })
}

/// Whose fault it is.
enum Failure {
    Source(u64, StoreError),
    Target(StoreError),
}
