//! The journal without a disk, for the simulation and as the yardstick of the one on disk: same contract, no I/O, no
//! clock. Clone it and you have a backup of the disk.
//!
//! Must never: lose a frame that the journal on disk would keep, unless it was told to misbehave.

use std::collections::{BTreeMap, VecDeque};

use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};

use super::{Journal, JournalError, JournalFrame, JournalRange, Usage};

type Runs = BTreeMap<(TopicName, Partition), Run>;

/// Frames in memory. Its files take as many bytes as the bodies of the frames.
#[derive(Debug, Clone)]
pub struct MemoryJournal {
    runs: Runs,
    max_bytes: u64,
    written_bytes: u64,
    skips_syncs: bool,
    /// What a power cut goes back to, where appends were not synced.
    synced: Option<Runs>,
    broken: bool,
    failures: u32,
    poisoned: bool,
}

/// Joined frames of one partition; never empty.
#[derive(Debug, Clone)]
struct Run {
    topic_id: Option<[u8; 16]>,
    frames: VecDeque<Packed>,
    trimmed: Offset,
    last_epoch: i32,
}

impl MemoryJournal {
    /// An empty journal whose frames take at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            runs: Runs::new(),
            max_bytes,
            written_bytes: 0,
            skips_syncs: false,
            synced: None,
            broken: false,
            failures: 0,
            poisoned: false,
        }
    }

    /// Whether appends are answered without being durable: a bug to be planted.
    pub fn skip_syncs(&mut self, skip: bool) {
        self.skips_syncs = skip;
    }

    /// Loses what was appended and is not durable, which is nothing unless syncs are skipped; trims and discards since
    /// then are forgotten with it. Then opens it anew.
    pub fn power_cut(&mut self) {
        if let Some(synced) = self.synced.take() {
            self.runs = synced;
        }
        self.reopen();
    }

    /// Lets the next `count` appends fail, each of which poisons it.
    pub fn fail_next(&mut self, count: u32) {
        self.failures = count;
    }

    /// Whether every append fails and poisons it.
    pub fn set_broken(&mut self, broken: bool) {
        self.broken = broken;
    }

    /// Ends being poisoned.
    pub fn reopen(&mut self) {
        self.poisoned = false;
    }

    fn check(&self) -> Result<(), JournalError> {
        if self.poisoned { Err(JournalError::Poisoned { cause: "write failed".into() }) } else { Ok(()) }
    }

    fn frame_bytes(&self) -> u64 {
        self.runs.values().map(Run::bytes).sum()
    }
}

impl Journal for MemoryJournal {
    fn append(&mut self, frames: &[JournalFrame]) -> Result<(), JournalError> {
        self.check()?;
        if frames.is_empty() {
            return Ok(());
        }
        let used = self.frame_bytes();
        let added: u64 = frames.iter().map(|frame| body_bytes(&frame.packed)).sum();
        if used + added > self.max_bytes {
            return Err(JournalError::Full { used, max: self.max_bytes, disk: false });
        }
        if self.broken || self.failures > 0 {
            self.failures = self.failures.saturating_sub(1);
            self.poisoned = true;
            return self.check();
        }
        if !self.skips_syncs {
            self.synced = None;
        } else if self.synced.is_none() {
            self.synced = Some(self.runs.clone());
        }
        for JournalFrame { topic, topic_id, partition, packed } in frames {
            let run = self.runs.entry((topic.clone(), *partition)).or_insert_with(|| Run::new(*topic_id, packed));
            if run.next() != packed.first_offset || run.topic_id != *topic_id {
                *run = Run::new(*topic_id, packed);
            }
            run.push(packed.clone());
        }
        self.written_bytes += added;
        Ok(())
    }

    fn read(
        &mut self,
        topic: &TopicName,
        partition: Partition,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Packed>, JournalError> {
        self.check()?;
        let run = self.runs.get(&(topic.clone(), partition));
        let Some(run) = run.filter(|run| (run.first()..run.next()).contains(&offset)) else {
            return Ok(Vec::new());
        };
        let mut frames: Vec<Packed> = Vec::new();
        let mut bytes = 0;
        for packed in run.frames.iter().skip_while(|packed| packed.next_offset <= offset) {
            bytes += packed.body_bytes();
            if !frames.is_empty() && bytes > max_bytes {
                break;
            }
            frames.push(packed.clone());
        }
        Ok(frames)
    }

    fn trim(&mut self, confirmed: &[(TopicName, Partition, Offset)]) -> Result<(), JournalError> {
        self.check()?;
        for (topic, partition, offset) in confirmed {
            let key = (topic.clone(), *partition);
            if let Some(run) = self.runs.get_mut(&key) {
                run.trim(*offset);
                if run.frames.is_empty() {
                    self.runs.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn discard(&mut self, partitions: &[(TopicName, Partition)]) -> Result<(), JournalError> {
        self.check()?;
        for key in partitions {
            self.runs.remove(key);
        }
        Ok(())
    }

    fn ranges(&self) -> Vec<JournalRange> {
        let range = |((topic, partition), run): (&(TopicName, Partition), &Run)| JournalRange {
            topic: topic.clone(),
            topic_id: run.topic_id,
            partition: *partition,
            first: run.first(),
            next: run.next(),
            last_epoch: run.last_epoch,
            bytes: run.bytes(),
        };
        self.runs.iter().map(range).collect()
    }

    fn usage(&self) -> Usage {
        Usage {
            frame_bytes: self.frame_bytes(),
            file_bytes: self.frame_bytes(),
            max_bytes: self.max_bytes,
            segments: usize::from(!self.runs.is_empty()),
            written_bytes: self.written_bytes,
            damaged_segments: 0,
        }
    }
}

impl Run {
    /// A run that begins with `packed`, which is yet to be pushed.
    fn new(topic_id: Option<[u8; 16]>, packed: &Packed) -> Self {
        Self { topic_id, frames: VecDeque::new(), trimmed: packed.first_offset, last_epoch: -1 }
    }

    fn first(&self) -> Offset {
        self.trimmed
    }

    fn next(&self) -> Offset {
        self.frames.back().map_or(self.trimmed, |packed| packed.next_offset)
    }

    fn bytes(&self) -> u64 {
        self.frames.iter().map(body_bytes).sum()
    }

    fn push(&mut self, packed: Packed) {
        self.last_epoch = packed.last_epoch;
        self.frames.push_back(packed);
    }

    fn trim(&mut self, offset: Offset) {
        self.trimmed = self.trimmed.max(offset);
        while self.frames.front().is_some_and(|packed| packed.next_offset <= self.trimmed) {
            self.frames.pop_front();
        }
    }
}

fn body_bytes(packed: &Packed) -> u64 {
    packed.body_bytes() as u64
}

#[cfg(test)]
mod tests {
    use super::super::spec_test::{frame, topic};
    use super::*;

    fn next(journal: &MemoryJournal) -> Option<Offset> {
        journal.ranges().first().map(|range| range.next)
    }

    #[test]
    fn power_cut_costs_nothing_that_was_synced() {
        let mut journal = MemoryJournal::new(1 << 20);
        journal.append(&[frame("t", 0, 0, 5)]).expect("room");
        journal.power_cut();
        assert_eq!(next(&journal), Some(5));
    }

    #[test]
    fn power_cut_costs_what_was_not_synced() {
        let mut journal = MemoryJournal::new(1 << 20);
        journal.append(&[frame("t", 0, 0, 5)]).expect("room");
        journal.skip_syncs(true);
        journal.append(&[frame("t", 0, 5, 5)]).expect("room");
        journal.append(&[frame("t", 0, 10, 5)]).expect("room");
        assert_eq!(next(&journal), Some(15));
        journal.power_cut();
        assert_eq!(next(&journal), Some(5));
        journal.append(&[frame("t", 0, 5, 5)]).expect("room");
        journal.skip_syncs(false);
        journal.append(&[frame("t", 0, 10, 5)]).expect("room");
        journal.power_cut();
        assert_eq!(next(&journal), Some(15), "a sync takes earlier appends along");
    }

    #[test]
    fn failed_append_poisons_until_reopened() {
        let mut journal = MemoryJournal::new(1 << 20);
        journal.append(&[frame("t", 0, 0, 5)]).expect("room");
        journal.fail_next(1);
        let failed = journal.append(&[frame("t", 0, 5, 5)]).expect_err("ordered");
        assert!(matches!(failed, JournalError::Poisoned { .. }), "{failed}");
        assert_eq!(journal.append(&[frame("t", 0, 5, 5)]), Err(failed.clone()));
        assert_eq!(journal.read(&topic("t"), 0, 0, 1), Err(failed));
        journal.reopen();
        journal.append(&[frame("t", 0, 5, 5)]).expect("one failure was ordered");
        journal.set_broken(true);
        assert!(journal.append(&[frame("t", 0, 10, 5)]).is_err());
        journal.reopen();
        assert!(journal.append(&[frame("t", 0, 10, 5)]).is_err(), "still broken");
        journal.set_broken(false);
        journal.reopen();
        journal.append(&[frame("t", 0, 10, 5)]).expect("repaired");
        assert_eq!(next(&journal), Some(15));
    }

    #[test]
    fn clone_is_a_backup() {
        let mut journal = MemoryJournal::new(1 << 20);
        journal.append(&[frame("t", 0, 0, 5)]).expect("room");
        let backup = journal.clone();
        journal.append(&[frame("t", 0, 5, 5)]).expect("room");
        assert_eq!((next(&backup), next(&journal)), (Some(5), Some(10)));
    }
}
