//! The journal on disk: a folder of segments, `<number>.redb`, of which the newest is written.
//!
//! The folder is the index: which segments there are and what stands in them is all that is known after a restart. A
//! segment is made under another name and renamed once it is whole, so every file named `.redb` is one.
//!
//! Must never: answer an append that is not durable; remove a segment that holds a frame above the confirmed offset,
//! unless its copy is durable.

mod merge;
mod readers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use redb::StorageBackend;
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};

use super::disk::{Disk, Folder};
use super::index::{Index, Piece};
use super::schema::{FORMAT, RunKey};
use super::segment::{EMPTY_BYTES, Span, WRITER_CACHE, Writer, fits, needed_bytes};
use super::store::StoreError;
use super::{Journal, JournalError, JournalFrame, JournalRange, LostRange, Usage};
use merge::Merge;
use readers::Readers;

/// Damaged files that are kept for a look; the oldest go.
const KEPT_DAMAGED: usize = 3;
/// Room on the disk that is left to others.
const FREE_MARGIN: u64 = 1 << 20;

/// How large the journal and its files may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together, at least those of two segments; holes in the file that is written do not count. A quarter of a segment is kept for
    /// merging.
    pub max_bytes: u64,
    /// Bytes written to one file, at least 1 MiB; best 64 KiB times a power of two, as redb doubles files. Its length may
    /// be a sixteenth more. A file gets larger only for a single append that is.
    pub segment_bytes: u64,
}

/// Frames in a folder of redb files. Memory: some 100 bytes for each partition in each segment, caches of 5 MiB for the
/// file that is written, 384 KiB for each of at most four that are read, and 1 MiB while files are merged.
#[derive(Debug)]
pub struct SegmentJournal<D: Disk = Folder> {
    disk: D,
    limits: Limits,
    index: Index,
    /// Length of each sealed segment.
    sealed: BTreeMap<u64, u64>,
    active: Option<(u64, Writer)>,
    /// A sealed segment that is small enough to go on with.
    resumable: Option<u64>,
    next_number: u64,
    readers: Readers,
    merge: Option<Merge>,
    /// Length of each segment that is out of use: set aside, or unreadable since it was opened.
    damaged: BTreeMap<u64, u64>,
    /// Those of them that were renamed.
    aside: BTreeSet<u64>,
    damaged_segments: u64,
    written_bytes: u64,
    poison: Option<String>,
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:020}.redb")
}

fn unfinished_name(number: u64) -> String {
    format!("{number:020}.new")
}

fn damaged_name(number: u64) -> String {
    format!("{number:020}.damaged")
}

fn parse_name(name: &str) -> Option<(u64, &str)> {
    let (number, kind) = name.split_once('.')?;
    (number.len() == 20).then_some(())?;
    Some((number.parse().ok()?, kind))
}

impl SegmentJournal {
    /// Opens the journal in a folder, which is made where it does not exist. Answers with it what damage found now has
    /// cost, or may have: what a damaged segment held is known by its neighbours only.
    ///
    /// Fails where another process has the folder open, where a segment was written by a newer release, where there is
    /// no room to repair one that was not closed, and where the folder or none of its segments can be read. A single
    /// segment that the medium does not give is left out until the journal is opened anew.
    pub fn open(folder: impl Into<PathBuf>, limits: Limits) -> Result<(Self, Vec<LostRange>), JournalError> {
        Self::open_on(Folder::open(folder)?, limits)
    }
}

impl<D: Disk> SegmentJournal<D> {
    /// Opens the journal on a disk; see [`SegmentJournal::open`].
    pub fn open_on(disk: D, limits: Limits) -> Result<(Self, Vec<LostRange>), JournalError> {
        let mut journal = Self {
            disk,
            limits,
            index: Index::default(),
            sealed: BTreeMap::new(),
            active: None,
            resumable: None,
            next_number: 0,
            readers: Readers::default(),
            merge: None,
            damaged: BTreeMap::new(),
            aside: BTreeSet::new(),
            damaged_segments: 0,
            written_bytes: 0,
            poison: None,
        };
        let lost = journal.load()?;
        Ok((journal, lost))
    }

    fn load(&mut self) -> Result<Vec<LostRange>, JournalError> {
        let mut names = self.disk.list().map_err(|error| unusable(&error))?;
        names.sort();
        let mut segments = Vec::new();
        for name in &names {
            match parse_name(name) {
                Some((number, "redb")) => segments.push(number),
                Some((_, "new")) => self.disk.remove(name).map_err(|error| unusable(&error))?,
                Some((number, "damaged")) => {
                    self.aside.insert(number);
                    self.damaged.insert(number, file_length(&self.disk, name));
                }
                _ => {}
            }
        }
        self.next_number = segments.iter().chain(&self.aside).max().map_or(0, |newest| newest + 1);
        let mut failures = Vec::new();
        for number in &segments {
            if let Err(error) = self.load_segment(*number) {
                if let StoreError::Version(found) = error {
                    return Err(JournalError::Version { file: segment_name(*number), found, known: FORMAT });
                }
                if let StoreError::Io(_) = error {
                    // No room for a repair, or no right: what is in the segment is not lost.
                    return Err(unusable(&format!("{}: {error}", segment_name(*number))));
                }
                failures.push((*number, error));
            }
        }
        let unread = failures.iter().find(|(_, error)| matches!(error, StoreError::Medium(_)));
        if let (true, Some((number, error))) = (self.sealed.is_empty(), unread) {
            // Rather the disk than each of its segments.
            return Err(unusable(&format!("{}: {error}", segment_name(*number))));
        }
        for (number, error) in &failures {
            self.set_aside(*number, error)?;
        }
        let lost = self.index.settle(&self.damaged.keys().copied().collect());
        let newest = self.sealed.last_key_value().map(|(number, length)| (*number, *length));
        let small = newest.filter(|(_, length)| *length <= self.limits.segment_bytes / 2);
        // Behind damage the newest may hold hidden frames, which others will take the place of.
        self.resumable = small.map(|(number, _)| number).filter(|_| self.damaged.is_empty());
        self.remove_dead()?;
        Ok(lost)
    }

    fn load_segment(&mut self, number: u64) -> Result<(), StoreError> {
        let reader = self.readers.get(&self.disk, number)?;
        let (length, ranges) = (reader.length(), reader.read()?.ranges()?);
        self.sealed.insert(number, length);
        for (topic, partition, row) in ranges {
            self.index.load(number, (topic, partition), row);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), JournalError> {
        self.poison.as_ref().map_or(Ok(()), |cause| Err(JournalError::Poisoned { cause: cause.clone() }))
    }

    /// Nothing more is written: what the disk holds is known after opening it anew.
    fn poisoned(&mut self, cause: &impl Display) -> JournalError {
        let cause = self.poison.get_or_insert_with(|| cause.to_string()).clone();
        JournalError::Poisoned { cause }
    }

    fn file_bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |(_, writer)| writer.written());
        let merging = self.merge.as_ref().map_or(0, Merge::written);
        active + merging + self.sealed.values().sum::<u64>() + self.damaged.values().sum::<u64>()
    }

    /// What merging may take beyond the appends' share of the cap.
    fn reserve(&self) -> u64 {
        self.limits.segment_bytes / 4
    }

    fn fits_active(&self, needed: u64) -> bool {
        let segment_bytes = self.limits.segment_bytes;
        match (&self.active, self.resumable) {
            (Some((_, writer)), _) => writer.fits(needed, segment_bytes),
            (None, Some(number)) => {
                let length = self.sealed.get(&number).copied();
                length.is_some_and(|length| fits(length, length, needed, segment_bytes))
            }
            (None, None) => false,
        }
    }

    fn check_room(&self, needed: u64) -> Result<(), JournalError> {
        let (used, max) = (self.file_bytes(), self.limits.max_bytes);
        let needed = if self.fits_active(needed) { needed } else { needed + EMPTY_BYTES };
        let kept = self.reserve().saturating_sub(self.merge.as_ref().map_or(0, Merge::written));
        if used + needed + kept > max {
            return Err(JournalError::Full { used, max, disk: false });
        }
        match self.disk.free_bytes() {
            Ok(free) if free < needed + FREE_MARGIN => Err(JournalError::Full { used, max, disk: true }),
            // Where it cannot tell, the write will.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Makes the active segment one that takes `needed` bytes; answers its number.
    fn prepare_active(&mut self, needed: u64) -> Result<u64, StoreError> {
        if !self.fits_active(needed) {
            self.seal_active()?;
            self.resumable = None;
        }
        if let Some((number, _)) = &self.active {
            return Ok(*number);
        }
        let (number, writer) = if let Some(number) = self.resumable.take() {
            self.readers.close(number);
            let file = self.disk.open(&segment_name(number)).map_err(redb::Error::from)?;
            (number, Writer::resume(file)?)
        } else {
            let number = self.next_number;
            let file = self.disk.open(&unfinished_name(number)).map_err(redb::Error::from)?;
            let writer = Writer::create(file, WRITER_CACHE)?;
            self.disk.rename(&unfinished_name(number), &segment_name(number)).map_err(redb::Error::from)?;
            self.disk.sync().map_err(redb::Error::from)?;
            self.next_number += 1;
            (number, writer)
        };
        self.sealed.remove(&number);
        self.active = Some((number, writer));
        Ok(number)
    }

    fn seal_active(&mut self) -> Result<(), StoreError> {
        if let Some((number, writer)) = self.active.take() {
            let length = writer.seal()?;
            self.sealed.insert(number, length);
        }
        Ok(())
    }

    fn write(&mut self, needed: u64, frames: &[JournalFrame]) -> Result<(), StoreError> {
        let number = self.prepare_active(needed)?;
        let plan = self.index.plan(number, frames);
        if let Some((_, writer)) = &mut self.active {
            let rows = plan.rows.iter().map(|((topic, partition), row)| (topic, *partition, *row));
            writer.append(&plan.entries, rows)?;
        }
        self.written_bytes += body_bytes(frames.iter().map(|frame| &frame.packed));
        let (segment, next_run, rows) = plan.done();
        self.index.apply(segment, next_run, rows);
        Ok(())
    }

    /// Reads frames off a piece; see [`super::segment::Snapshot::frames`].
    fn read_piece(
        &mut self,
        key: RunKey<'_>,
        piece: Piece,
        from: Offset,
        max_bytes: usize,
        frames: &mut Vec<Packed>,
    ) -> Result<bool, StoreError> {
        let snapshot = match &self.active {
            Some((number, writer)) if *number == piece.segment => writer.read()?,
            _ => self.readers.get(&self.disk, piece.segment)?.read()?,
        };
        snapshot.frames(key, Span { from: from.max(piece.first), until: piece.next }, max_bytes, frames)
    }

    /// What a read that failed is answered with, and what comes of it.
    fn read_failed(&mut self, number: u64, error: &StoreError) -> JournalError {
        let cause = format!("{}: {error}", segment_name(number));
        match error {
            StoreError::Io(_) | StoreError::Version(_) => self.poisoned(&cause),
            StoreError::Medium(_) | StoreError::Corrupt(_) => match self.set_aside(number, error) {
                Ok(lost) => JournalError::Damaged { cause, lost },
                Err(error) => error,
            },
        }
    }

    /// Takes a segment out of use. One that holds what was not written is renamed; one that cannot be read is left
    /// where it is and tried again when the journal is opened anew.
    fn set_aside(&mut self, number: u64, error: &StoreError) -> Result<Vec<LostRange>, JournalError> {
        tracing::error!(segment = segment_name(number), %error, "journal segment is damaged");
        self.seal_active().map_err(|error| self.poisoned(&error))?;
        self.abandon_merge()?;
        self.readers.close(number);
        self.resumable = None;
        let name = segment_name(number);
        let known = self.sealed.remove(&number);
        let length = known.unwrap_or_else(|| file_length(&self.disk, &name));
        self.damaged.insert(number, length);
        self.damaged_segments += 1;
        let lost = self.index.lose(number);
        if let StoreError::Corrupt(_) = error {
            let renamed = self.disk.rename(&name, &damaged_name(number));
            renamed.map_err(|error| self.poisoned(&error))?;
            self.aside.insert(number);
            while self.aside.len() > KEPT_DAMAGED {
                let Some(oldest) = self.aside.pop_first() else { break };
                self.damaged.remove(&oldest);
                self.disk.remove(&damaged_name(oldest)).map_err(|error| self.poisoned(&error))?;
            }
            self.disk.sync().map_err(|error| self.poisoned(&error))?;
        }
        Ok(lost)
    }

    /// Removes segments in which nothing is of interest.
    fn remove_dead(&mut self) -> Result<(), JournalError> {
        let index = &self.index;
        let dead: Vec<u64> = self.sealed.keys().copied().filter(|number| index.live(*number).pieces == 0).collect();
        let dead_active = self.active.take_if(|(number, _)| index.live(*number).pieces == 0);
        if dead.is_empty() && dead_active.is_none() {
            return Ok(());
        }
        if self.merge.as_ref().is_some_and(|merge| dead.iter().any(|number| merge.reads(*number))) {
            self.abandon_merge()?;
        }
        for number in &dead {
            self.remove_segment(*number)?;
        }
        if let Some((number, writer)) = dead_active {
            writer.retire();
            self.remove_segment(number)?;
        }
        self.disk.sync().map_err(|error| self.poisoned(&error))
    }

    fn remove_segment(&mut self, number: u64) -> Result<(), JournalError> {
        self.readers.close(number);
        self.sealed.remove(&number);
        self.index.forget(number);
        if self.resumable == Some(number) {
            self.resumable = None;
        }
        self.disk.remove(&segment_name(number)).map_err(|error| self.poisoned(&error))
    }
}

impl<D: Disk> Journal for SegmentJournal<D> {
    fn append(&mut self, frames: &[JournalFrame]) -> Result<(), JournalError> {
        self.check()?;
        if frames.is_empty() {
            return Ok(());
        }
        let needed = needed_bytes(frames.iter().map(|frame| (&frame.topic, &frame.packed)));
        if let Err(full) = self.check_room(needed) {
            // A merge gives room without being told of another confirmation.
            self.merge_step()?;
            self.check_room(needed).map_err(|_| full)?;
        }
        self.write(needed, frames).map_err(|error| self.poisoned(&error))
    }

    fn read(
        &mut self,
        topic: &TopicName,
        partition: Partition,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Packed>, JournalError> {
        self.check()?;
        let Some((run, pieces)) = self.index.locate(&(topic.clone(), partition), offset) else {
            return Ok(Vec::new());
        };
        let key = RunKey { topic: topic.as_str(), partition, run };
        let mut frames = Vec::new();
        for piece in pieces {
            match self.read_piece(key, piece, offset, max_bytes, &mut frames) {
                Ok(true) => {}
                Ok(false) => break,
                // Whoever reads on meets it again.
                Err(_) if !frames.is_empty() => break,
                Err(error) => return Err(self.read_failed(piece.segment, &error)),
            }
        }
        Ok(frames)
    }

    fn trim(&mut self, confirmed: &[(TopicName, Partition, Offset)]) -> Result<(), JournalError> {
        self.check()?;
        for (topic, partition, offset) in confirmed {
            self.index.trim((topic.clone(), *partition), *offset);
        }
        self.remove_dead()?;
        self.merge_step()
    }

    fn discard(&mut self, partitions: &[(TopicName, Partition)]) -> Result<(), JournalError> {
        self.check()?;
        for key in partitions {
            self.index.discard(key.clone());
        }
        self.remove_dead()?;
        self.merge_step()
    }

    fn ranges(&self) -> Vec<JournalRange> {
        self.index.ranges()
    }

    fn usage(&self) -> Usage {
        Usage {
            frame_bytes: self.index.frame_bytes(),
            file_bytes: self.file_bytes(),
            max_bytes: self.limits.max_bytes,
            segments: self.sealed.len() + usize::from(self.active.is_some()) + usize::from(self.merge.is_some()),
            written_bytes: self.written_bytes,
            damaged_segments: self.damaged_segments,
        }
    }
}

fn body_bytes<'a>(frames: impl Iterator<Item = &'a Packed>) -> u64 {
    frames.map(|packed| packed.body_bytes() as u64).sum()
}

/// 0 where it cannot be told.
fn file_length<D: Disk>(disk: &D, name: &str) -> u64 {
    disk.open(name).and_then(|file| file.len()).unwrap_or_default()
}

fn unusable(error: &impl Display) -> JournalError {
    JournalError::Unusable { cause: error.to_string() }
}
