//! The agent's box: its disk, with journal and checkpoint, and the thread that works on it.
//!
//! Commands are worked off one after another, each in its time. What was under way when the process died is done or not;
//! what is found afterwards may still hold what was trimmed or discarded, which a journal need not remember.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tombolo_agent::journal::{Journal, JournalError, JournalFrame, MemoryJournal};
use tombolo_proto::edge::{Checkpoint, EdgeInput, JournalRange, SpillError, SpillFrame};
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, Time, TopicName};
use tombolo_proto::wire::TailBatch;

use crate::bugs::Bug;
use crate::plan::DiskPlan;
use crate::site::AgentEvent;
use crate::world::{Place, World, source_topic, topic_number};

/// What the thread is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    Spill { ticket: u64, frames: Vec<SpillFrame> },
    Load { topic: TopicName, partition: Partition, ticket: u64, offset: Offset, max_bytes: usize },
    Trim { confirmed: Vec<(TopicName, Partition, Offset)> },
    Discard { partitions: Vec<(TopicName, Partition)> },
    Compare { place: Place, ticket: u64, tail: Vec<TailBatch>, next_offset: Offset, compacted: bool },
    Save(Checkpoint),
}

/// The disk.
#[derive(Debug)]
pub(crate) struct Disk {
    plan: DiskPlan,
    /// As the process that has it open knows it.
    journal: MemoryJournal,
    /// As another process would find it: whole segments go when all in them is trimmed, so some of that is there still.
    found: MemoryJournal,
    checkpoint: Checkpoint,
    backup: Option<(MemoryJournal, Checkpoint)>,
    /// The first of them is under way.
    commands: VecDeque<Command>,
    pub(crate) full_until: Time,
    pub(crate) fails_next: bool,
    /// A write failed, and it is yet to be opened anew.
    failed: bool,
    /// From here on the partition's frames cannot be read.
    damage: Option<(Place, Offset)>,
}

impl Disk {
    pub(crate) fn new(plan: DiskPlan, bug: Option<Bug>) -> Self {
        let mut journal = MemoryJournal::new(plan.max_bytes);
        journal.skip_syncs(bug == Some(Bug::SkipSync));
        Self {
            plan,
            found: journal.clone(),
            journal,
            checkpoint: Checkpoint::default(),
            backup: None,
            commands: VecDeque::new(),
            full_until: Time::ZERO,
            fails_next: false,
            failed: false,
            damage: None,
        }
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.journal.usage().written_bytes
    }

    /// What the journal holds of a partition.
    pub(crate) fn range(&self, place: Place) -> Option<(Offset, Offset)> {
        self.ranges_by_place().get(&place).copied()
    }

    pub(crate) fn ranges_by_place(&self) -> BTreeMap<Place, (Offset, Offset)> {
        let ranges = self.journal.ranges();
        ranges.iter().map(|range| ((topic_number(&range.topic), range.partition), (range.first, range.next))).collect()
    }

    fn ranges(&self) -> Vec<JournalRange> {
        self.journal.ranges()
    }

    /// Opens what is there anew.
    fn open(&mut self) {
        self.journal = self.found.clone();
        self.failed = false;
    }

    /// A restart of the process: what a former one left.
    pub(crate) fn restored(&mut self) -> EdgeInput {
        self.open();
        EdgeInput::Restored { checkpoint: self.checkpoint.clone(), ranges: self.ranges() }
    }

    /// Whether a process of before had mirrors.
    pub(crate) fn knows_mirrors(&self) -> bool {
        !self.checkpoint.mirrors.is_empty()
    }

    /// Puts an empty disk in its place.
    pub(crate) fn lose(&mut self, bug: Option<Bug>) {
        *self = Self { backup: self.backup.take(), ..Self::new(self.plan, bug) };
    }

    pub(crate) fn back_up(&mut self) {
        self.backup = Some((self.found.clone(), self.checkpoint.clone()));
    }

    /// False where there is no backup.
    pub(crate) fn restore_backup(&mut self) -> bool {
        let Some((journal, checkpoint)) = self.backup.clone() else { return false };
        (self.found, self.checkpoint) = (journal, checkpoint);
        self.open();
        true
    }

    /// The frames of a partition that can be read, `pick` of which, from some frame on, will not be.
    pub(crate) fn damage(&mut self, pick: impl Fn(&[Packed]) -> Option<Offset>, place: Place) {
        let Some((first, _)) = self.range(place).filter(|_| !self.failed) else { return };
        let frames = self.journal.read(&source_topic(place.0), place.1, first, usize::MAX).expect("it works");
        if let Some(hole) = pick(&frames) {
            self.damage = Some((place, hole));
        }
    }

    /// Places of which the journal holds something.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.ranges_by_place().into_keys().collect()
    }

    fn append(&mut self, frames: &[JournalFrame]) -> Result<(), JournalError> {
        self.journal.append(frames)?;
        if self.found.append(frames).is_err() {
            // No room for what is trimmed: it went first.
            self.found = self.journal.clone();
        }
        Ok(())
    }

    /// The segment with the damage is set aside; the partition keeps what lies before.
    fn cut(&mut self, (topic, partition): (TopicName, Partition), hole: Offset) {
        for journal in [&mut self.journal, &mut self.found] {
            let ranges = journal.ranges();
            let first = ranges.iter().find(|range| range.topic == topic && range.partition == partition);
            let Some((first, topic_id)) = first.map(|range| (range.first, range.topic_id)) else { continue };
            let mut frames = journal.read(&topic, partition, first, usize::MAX).expect("it works");
            frames.retain(|packed| packed.next_offset <= hole);
            journal.discard(&[(topic.clone(), partition)]).expect("it works");
            let frame = |packed| JournalFrame { topic: topic.clone(), topic_id, partition, packed };
            let frames: Vec<_> = frames.into_iter().map(frame).collect();
            journal.append(&frames).expect("there was room for them");
            journal.trim(&[(topic.clone(), partition, first)]).expect("it works");
        }
    }

    fn save(&mut self, new: Checkpoint) {
        let kept = &mut self.checkpoint;
        (kept.filters, kept.mirrors) = (new.filters, new.mirrors);
        for partition in new.partitions {
            kept.partitions.retain(|old| (&old.topic, old.partition) != (&partition.topic, partition.partition));
            kept.partitions.push(partition);
        }
        let mirrors = &kept.mirrors;
        kept.partitions.retain(|partition| mirrors.iter().any(|mirror| mirror.topic == partition.topic));
    }
}

fn packed(frames: &[SpillFrame]) -> Vec<JournalFrame> {
    let frame = |frame: &SpillFrame| JournalFrame {
        topic: frame.topic.clone(),
        topic_id: frame.topic_id,
        partition: frame.partition,
        packed: frame.pack(),
    };
    frames.iter().map(frame).collect()
}

impl World {
    /// Gives the thread a command.
    pub(crate) fn tell_disk(&mut self, command: Command) {
        let Some(disk) = &mut self.disk else { return };
        disk.commands.push_back(command);
        if disk.commands.len() == 1 {
            self.work_on_disk();
        }
    }

    /// Begins the next command.
    fn work_on_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        let DiskPlan { sync, slow_per_mille, .. } = disk.plan;
        let took = match disk.commands.front() {
            None => return,
            Some(Command::Spill { .. } | Command::Save(_)) if self.dice.chance(slow_per_mille) => {
                self.dice.millis(500, 5_000)
            }
            Some(Command::Spill { .. } | Command::Save(_)) => self.dice.millis(1, sync),
            Some(_) => self.dice.millis(0, 5),
        };
        self.agent_after(took, AgentEvent::DiskDone);
    }

    /// The command under way is done.
    pub(crate) fn disk_done(&mut self) {
        let Some(command) = self.disk.as_mut().and_then(|disk| disk.commands.pop_front()) else { return };
        self.trace(|| format!("disk: {}", describe(&command)));
        self.work_on_disk();
        match command {
            Command::Spill { ticket, frames } => {
                let result = self.spill(&frames);
                self.tell_agent(EdgeInput::Spilled { ticket, result });
            }
            Command::Load { topic, partition, ticket, offset, max_bytes } => {
                self.load(topic, partition, ticket, offset, max_bytes);
            }
            Command::Trim { confirmed } => self.trim(&confirmed),
            Command::Discard { partitions } => self.discard(&partitions),
            Command::Compare { place, ticket, tail, next_offset, compacted } => {
                self.compare_with_journal(place, ticket, tail, next_offset, compacted);
            }
            Command::Save(checkpoint) => {
                if let Some(disk) = &mut self.disk {
                    disk.save(checkpoint);
                }
            }
        }
    }

    fn spill(&mut self, frames: &[SpillFrame]) -> Result<(), SpillError> {
        let (lands, now) = (self.dice.chance(500), self.now);
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if disk.failed {
            return Err(SpillError::Broken { reason: "it is being opened anew".to_owned() });
        }
        if now < disk.full_until {
            self.ghost.count("journal full");
            return Err(SpillError::Full { reason: "the disk is full".to_owned() });
        }
        let packed = packed(frames);
        let ranges = disk.ranges_by_place();
        let mut seen = BTreeSet::new();
        let parted = frames.iter().any(|frame| {
            let place = (topic_number(&frame.topic), frame.partition);
            // Only a partition's first frame joins what is there before; the others join that.
            let end = ranges.get(&place).map(|&(_, next)| next);
            seen.insert(place) && frame.after.is_some_and(|after| end != Some(after))
        });
        if parted {
            return Err(SpillError::Full { reason: "the journal was damaged meanwhile".to_owned() });
        }
        let fails = std::mem::take(&mut disk.fails_next);
        disk.journal.fail_next(u32::from(fails));
        match disk.append(&packed) {
            Ok(()) => {
                self.ghost.count("spilled");
                for frame in &packed {
                    let place = (topic_number(&frame.topic), frame.partition);
                    self.is_kept(place, (frame.packed.first_offset, frame.packed.next_offset));
                }
                Ok(())
            }
            Err(error @ JournalError::Full { .. }) => {
                disk.journal.fail_next(0);
                self.ghost.count("journal full");
                Err(SpillError::Full { reason: error.to_string() })
            }
            Err(error) => {
                if lands && disk.found.append(&packed).is_ok() {
                    self.ghost.count("failed write found later");
                }
                disk.failed = true;
                let wait = self.dice.millis(500, 6_000);
                self.agent_after(wait, AgentEvent::ReopenJournal);
                Err(SpillError::Broken { reason: error.to_string() })
            }
        }
    }

    /// The journal is opened anew after a failed write.
    pub(crate) fn reopen_journal(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        disk.open();
        self.ghost.count("journal opened anew");
        self.tell_ranges();
    }

    fn tell_ranges(&mut self) {
        let ranges = self.disk.as_ref().map(Disk::ranges).unwrap_or_default();
        self.tell_agent(EdgeInput::JournalOpened { ranges });
    }

    fn load(&mut self, topic: TopicName, partition: Partition, ticket: u64, offset: Offset, max_bytes: usize) {
        let Some(disk) = &mut self.disk else { return };
        let place = (topic_number(&topic), partition);
        let frames = if disk.failed {
            None
        } else {
            let frames = disk.journal.read(&topic, partition, offset, max_bytes).expect("it works");
            Some(frames).filter(|frames| !frames.is_empty())
        };
        let reaches = |frames: &Vec<Packed>, hole| frames.iter().any(|packed| packed.next_offset > hole);
        let hole = disk.damage.filter(|damage| damage.0 == place).map(|damage| damage.1);
        let hole = hole.filter(|&hole| frames.as_ref().is_some_and(|frames| reaches(frames, hole)));
        if let Some(hole) = hole {
            disk.damage = None;
            disk.cut((topic.clone(), partition), hole);
            self.ghost.count("damage found");
            self.owe_what_is_there();
        } else if frames.is_none() {
            self.ghost.count("read below the journal");
        }
        let failed = self.disk.as_ref().is_some_and(|disk| disk.failed);
        let frames = frames.filter(|_| hole.is_none());
        let lost = frames.is_none();
        self.tell_agent(EdgeInput::Loaded { topic, partition, ticket, frames });
        if lost && !failed {
            self.tell_ranges();
        }
    }

    fn trim(&mut self, confirmed: &[(TopicName, Partition, Offset)]) {
        let goes: Vec<_> = confirmed.iter().filter(|_| self.dice.chance(300)).cloned().collect();
        let Some(disk) = self.disk.as_mut().filter(|disk| !disk.failed) else { return };
        disk.journal.trim(confirmed).expect("it works");
        disk.found.trim(&goes).expect("it works");
    }

    fn discard(&mut self, partitions: &[(TopicName, Partition)]) {
        let goes: Vec<_> = partitions.iter().filter(|_| self.dice.chance(300)).cloned().collect();
        let Some(disk) = self.disk.as_mut().filter(|disk| !disk.failed) else { return };
        for (topic, partition) in partitions {
            self.ghost.kept.discarded((topic_number(topic), *partition));
        }
        disk.journal.discard(partitions).expect("it works");
        disk.found.discard(&goes).expect("it works");
    }

    fn compare_with_journal(
        &mut self,
        place: Place,
        ticket: u64,
        tail: Vec<TailBatch>,
        next_offset: Offset,
        compacted: bool,
    ) {
        let Some(disk) = &mut self.disk else { return };
        let topic = source_topic(place.0);
        let journal = (!disk.failed).then_some(&mut disk.journal);
        let verdict = journal.and_then(|journal| {
            crate::evidence::compare(journal, &topic, place.1, &tail, next_offset, compacted).expect("it works")
        });
        let Some(verdict) = verdict else {
            let wait = self.dice.millis(1, 200);
            return self.agent_after(wait, AgentEvent::Compare { place, ticket, tail, next_offset, compacted });
        };
        self.ghost.count("tail compared from the journal");
        self.tell_agent(EdgeInput::TailCompared { topic, partition: place.1, ticket, verdict });
    }

    /// The process is dead, or the box without power: what was under way is done or not, what waited is not.
    pub(crate) fn disk_stops(&mut self, power_cut: bool) {
        let done = self.dice.chance(500);
        let Some(disk) = &mut self.disk else { return };
        let commands = std::mem::take(&mut disk.commands);
        let unsynced = matches!(commands.front(), Some(Command::Spill { .. } | Command::Save(_)));
        match commands.into_iter().next().filter(|_| done && !disk.failed) {
            Some(Command::Spill { frames, .. }) if disk.append(&packed(&frames)).is_ok() => {
                self.ghost.count("found what was never answered");
            }
            Some(Command::Save(checkpoint)) => disk.save(checkpoint),
            _ => {}
        }
        if power_cut {
            disk.journal.power_cut();
            disk.found.power_cut();
            if unsynced {
                self.ghost.count("power cut with unsynced data");
            }
        }
    }

    /// Another disk than the one that was there.
    pub(crate) fn other_disk(&mut self, old_backup: bool) {
        let bug = self.plan.bug;
        self.trace(|| format!("another disk, an old backup {old_backup}"));
        let Some(disk) = &mut self.disk else { return };
        if old_backup {
            if disk.restore_backup() {
                self.ghost.count("old backup restored");
            }
        } else {
            disk.lose(bug);
            self.ghost.count("disk lost");
        }
        self.owe_what_is_there();
    }

    /// A damage that no read has met is found when the journal is opened.
    pub(crate) fn open_disk(&mut self) -> Option<EdgeInput> {
        let disk = self.disk.as_mut()?;
        let restored = disk.restored();
        let Some(((topic, partition), hole)) = disk.damage.take() else { return Some(restored) };
        disk.cut((source_topic(topic), partition), hole);
        self.ghost.count("damage found");
        self.owe_what_is_there();
        self.disk.as_mut().map(Disk::restored)
    }
}

fn describe(command: &Command) -> String {
    match command {
        Command::Spill { ticket, frames } => {
            let frame = |frame: &SpillFrame| {
                let first = frame.entries.first().map_or(0, tombolo_proto::frame::Entry::offset);
                let next = frame.entries.last().map_or(0, tombolo_proto::frame::Entry::next_offset);
                format!("{}-{} {first}..{next}", frame.topic, frame.partition)
            };
            format!("spill {ticket}: {}", frames.iter().map(frame).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}
