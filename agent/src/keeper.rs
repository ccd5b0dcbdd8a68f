//! The thread that owns the site's disk: journal and checkpoint. Calls into them block, so they have no place on the
//! runtime.
//!
//! Answers go to the owner of the site over a bounded channel; it sends commands without waiting, and few are out at a
//! time (one spill, a few loads), so neither waits for the other. A journal that failed is opened anew for as long as
//! it takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tombolo_proto::edge::{Checkpoint, EdgeInput, EdgeOutput, SpillError, SpillFrame};
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};

use crate::evidence;
use crate::journal::{Journal, JournalError, JournalFrame, JournalRange, Limits, LostRange, SegmentJournal, Usage};
use crate::settings::JournalSettings;
use crate::state::{State, StateError};

/// Commands on their way; more wait with the owner of the site.
const COMMANDS: usize = 64;
/// Before a journal that failed is opened again.
const REOPEN_EVERY: Duration = Duration::from_secs(5);
/// Files of the journal, in the data folder.
const SEGMENTS: &str = "segments";
/// The checkpoint's file, in the data folder.
const STATE: &str = "state.redb";

/// Opens the journal of these settings. Answers with it what damage has cost.
pub(crate) fn open_journal(settings: &JournalSettings) -> Result<(SegmentJournal, Vec<LostRange>), KeeperError> {
    let folder = settings.path.join(SEGMENTS);
    let limits = Limits { max_bytes: settings.max_bytes, segment_bytes: settings.segment_bytes };
    SegmentJournal::open(&folder, limits).map_err(|source| KeeperError::Journal { folder, source })
}

/// Opens the checkpoint of these settings.
pub(crate) fn open_state(settings: &JournalSettings) -> Result<State, KeeperError> {
    let (state, warning) = State::open(&settings.path.join(STATE))?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(state)
}

/// What is to be done on disk.
#[derive(Debug)]
pub(crate) enum Command {
    Spill {
        ticket: u64,
        frames: Vec<SpillFrame>,
    },
    Load {
        topic: TopicName,
        partition: Partition,
        ticket: u64,
        offset: Offset,
        max_bytes: usize,
    },
    Trim {
        confirmed: Vec<(TopicName, Partition, Offset)>,
    },
    Discard {
        partitions: Vec<(TopicName, Partition)>,
    },
    /// A [`EdgeOutput::CompareTail`]: answered from the journal where it can be, else given back.
    Compare(EdgeOutput),
    Save(Checkpoint),
    /// The id of the source cluster.
    Cluster(String),
    /// Everything before is done, then it ends.
    Close(oneshot::Sender<()>),
}

/// What the owner of the site hears.
#[derive(Debug)]
pub(crate) enum Answer {
    Input(EdgeInput),
    /// The journal knows nothing of this mirror's end.
    NoEvidence(EdgeOutput),
}

/// Figures for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskView {
    pub(crate) usage: Usage,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The journal.
    #[error("the journal in {} cannot be opened: {source}", folder.display())]
    Journal {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        source: JournalError,
    },
    /// The folder of both.
    #[error("journal.path {} cannot be made: {source}", folder.display())]
    Folder {
        /// It.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The checkpoint.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its thread ended.
    #[error("the journal's thread has ended: see the log before")]
    Died,
    /// No thread.
    #[error("no thread for the journal")]
    Thread(#[source] std::io::Error),
}

/// The owner's end.
#[derive(Debug)]
pub(crate) struct KeeperHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) answers: mpsc::Receiver<Answer>,
    pub(crate) view: watch::Receiver<DiskView>,
    /// What a former process left.
    pub(crate) checkpoint: Checkpoint,
    pub(crate) ranges: Vec<JournalRange>,
}

/// Opens what is on disk and starts the thread. Blocks for as long as the repair of a segment takes.
pub(crate) fn start(settings: &JournalSettings) -> Result<KeeperHandle, KeeperError> {
    std::fs::create_dir_all(&settings.path)
        .map_err(|source| KeeperError::Folder { folder: settings.path.clone(), source })?;
    warn_of_room(settings);
    let mut state = open_state(settings)?;
    let checkpoint = state.load()?;
    let began = Instant::now();
    let (journal, lost) = open_journal(settings)?;
    log_lost(&lost);
    let (usage, ranges) = (journal.usage(), whole(journal.ranges(), &lost));
    tracing::info!(
        folder = %settings.path.display(),
        file_bytes = usage.file_bytes,
        frame_bytes = usage.frame_bytes,
        partitions = ranges.len(),
        took_ms = began.elapsed().as_millis(),
        "journal opened"
    );
    let (commands, next_command) = mpsc::channel(COMMANDS);
    let (answer, answers) = mpsc::channel(COMMANDS);
    let (publish, view) = watch::channel(DiskView { usage });
    let keeper = Keeper { settings: settings.clone(), journal: Some(journal), state, answer, publish };
    thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || keeper.run(next_command))
        .map_err(KeeperError::Thread)?;
    Ok(KeeperHandle { commands, answers, view, checkpoint, ranges })
}

/// Bytes of all files in a folder and below.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(file) if file.is_dir() => folder_bytes(&entry.path()),
            Ok(file) => file.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A cap that the disk cannot hold is found out now rather than in the outage.
fn warn_of_room(settings: &JournalSettings) {
    let Ok(disk) = rustix::fs::statvfs(&settings.path) else { return };
    let (free, used) = (disk.f_bavail * disk.f_frsize, folder_bytes(&settings.path));
    if free + used < settings.max_bytes {
        tracing::warn!(
            max_bytes = settings.max_bytes,
            free_bytes = free,
            used_bytes = used,
            "the disk has less room than journal.max_bytes: the journal will be full when the disk is"
        );
    }
}

struct Keeper {
    settings: JournalSettings,
    /// `None` after a failure, until it could be opened anew.
    journal: Option<SegmentJournal>,
    state: State,
    answer: mpsc::Sender<Answer>,
    publish: watch::Sender<DiskView>,
}

impl Keeper {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            if let Command::Close(done) = command {
                // Whoever waits may have given up.
                done.send(()).ok();
                return;
            }
            self.obey(command);
            if self.journal.is_none() {
                self.reopen(&mut commands);
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let usage = self.journal.as_ref().map(Journal::usage);
        self.publish.send_if_modified(|view| {
            let new = DiskView { usage: usage.unwrap_or(view.usage) };
            std::mem::replace(view, new) != new
        });
    }

    fn tell(&self, input: EdgeInput) {
        // Nobody listens when the process ends.
        drop(self.answer.blocking_send(Answer::Input(input)));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Spill { ticket, frames } => {
                let result = self.spill(frames);
                self.tell(EdgeInput::Spilled { ticket, result });
            }
            Command::Load { topic, partition, ticket, offset, max_bytes } => {
                let (frames, lost) = match self.load(&topic, partition, offset, max_bytes) {
                    Ok(frames) => (Some(frames), None),
                    Err(lost) => (None, Some(lost)),
                };
                self.tell(EdgeInput::Loaded { topic, partition, ticket, frames });
                if let Some(lost) = lost {
                    self.tell_ranges(&lost);
                }
            }
            Command::Trim { confirmed } => {
                let trimmed = self.journal.as_mut().map(|journal| journal.trim(&confirmed));
                self.look(trimmed, "trim");
            }
            Command::Discard { partitions } => {
                let discarded = self.journal.as_mut().map(|journal| journal.discard(&partitions));
                self.look(discarded, "discard");
            }
            Command::Compare(output) => self.compare(output),
            Command::Save(checkpoint) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                if let Err(error) = self.state.save(&checkpoint, now) {
                    tracing::error!(%error, "the checkpoint could not be kept: a restart reads some records again");
                }
            }
            Command::Cluster(id) => {
                if self.state.cluster_id() != id
                    && let Err(error) = self.state.set_cluster_id(&id)
                {
                    tracing::error!(%error, "the source cluster's id could not be kept: an export would lack it");
                }
            }
            Command::Close(_) => {}
        }
    }

    fn spill(&mut self, frames: Vec<SpillFrame>) -> Result<(), SpillError> {
        let Some(journal) = &mut self.journal else {
            return Err(SpillError::Broken { reason: "the journal is being opened anew".to_owned() });
        };
        if let Some(reason) = stale(journal, &frames) {
            return Err(SpillError::Full { reason });
        }
        let frames: Vec<_> = frames
            .into_iter()
            .map(|frame| {
                let packed = frame.pack();
                let SpillFrame { topic, topic_id, partition, .. } = frame;
                JournalFrame { topic, topic_id, partition, packed }
            })
            .collect();
        let began = Instant::now();
        match journal.append(&frames) {
            Ok(()) => {
                metrics::histogram!("tombolo_journal_commit_seconds").record(began.elapsed().as_secs_f64());
                Ok(())
            }
            Err(error @ JournalError::Full { .. }) => Err(SpillError::Full { reason: error.to_string() }),
            Err(error) => {
                self.broke(&error, "append");
                Err(SpillError::Broken { reason: error.to_string() })
            }
        }
    }

    /// Frames, or what damage has cost.
    fn load(
        &mut self,
        topic: &TopicName,
        partition: Partition,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Packed>, Vec<LostRange>> {
        let Some(journal) = &mut self.journal else { return Err(Vec::new()) };
        match journal.read(topic, partition, offset, max_bytes) {
            Ok(frames) if !frames.is_empty() => Ok(frames),
            Ok(_) => {
                tracing::error!(%topic, partition, offset, "the journal has lost frames; they are read from the source again");
                Err(Vec::new())
            }
            Err(JournalError::Damaged { cause, lost }) => {
                tracing::error!(cause, "the journal is damaged");
                log_lost(&lost);
                Err(lost)
            }
            Err(error) => {
                self.broke(&error, "read");
                Err(Vec::new())
            }
        }
    }

    /// What is left after damage.
    fn tell_ranges(&self, lost: &[LostRange]) {
        if let Some(journal) = &self.journal {
            self.tell(EdgeInput::JournalOpened { ranges: whole(journal.ranges(), lost) });
        }
    }

    fn look(&mut self, result: Option<Result<(), JournalError>>, what: &'static str) {
        match result {
            Some(Ok(()) | Err(JournalError::Full { .. })) | None => {}
            Some(Err(JournalError::Damaged { cause, lost })) => {
                tracing::error!(cause, "the journal is damaged");
                log_lost(&lost);
                self.tell_ranges(&lost);
            }
            Some(Err(error)) => self.broke(&error, what),
        }
    }

    fn broke(&mut self, error: &JournalError, what: &'static str) {
        tracing::error!(%error, what, "the journal failed and is opened anew");
        self.journal = None;
    }

    /// Opens the journal again and again. What comes in meanwhile is answered as it can be.
    fn reopen(&mut self, commands: &mut mpsc::Receiver<Command>) {
        loop {
            match open_journal(&self.settings) {
                Ok((journal, lost)) => {
                    log_lost(&lost);
                    tracing::info!("journal opened anew");
                    self.journal = Some(journal);
                    return self.tell_ranges(&lost);
                }
                Err(error) => tracing::error!(%error, "the journal cannot be opened; tried again"),
            }
            let until = Instant::now() + REOPEN_EVERY;
            while Instant::now() < until {
                match commands.try_recv() {
                    Ok(Command::Close(done)) => {
                        done.send(()).ok();
                        return commands.close();
                    }
                    Ok(command) => self.obey(command),
                    Err(mpsc::error::TryRecvError::Empty) => thread::sleep(Duration::from_millis(50)),
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    fn compare(&mut self, output: EdgeOutput) {
        let EdgeOutput::CompareTail { topic, partition, ticket, tail, next_offset, compacted } = &output else {
            return;
        };
        let compared = self
            .journal
            .as_mut()
            .map(|journal| evidence::compare(journal, topic, *partition, tail, *next_offset, *compacted));
        let verdict = match compared {
            Some(Ok(verdict)) => verdict,
            Some(Err(error)) => {
                self.look(Some(Err(error)), "read");
                None
            }
            None => None,
        };
        let answer = match verdict {
            Some(verdict) => {
                let (topic, partition, ticket) = (topic.clone(), *partition, *ticket);
                Answer::Input(EdgeInput::TailCompared { topic, partition, ticket, verdict })
            }
            None => Answer::NoEvidence(output),
        };
        // Nobody listens when the process ends.
        drop(self.answer.blocking_send(answer));
    }
}

/// Why frames that were chosen before damage was found must not be kept: a frame that does not join starts a run of its
/// own, and what is left of the one before would count as confirmed.
fn stale(journal: &impl Journal, frames: &[SpillFrame]) -> Option<String> {
    let ranges = journal.ranges();
    let mut checked = BTreeSet::new();
    for SpillFrame { topic, partition, after, .. } in frames {
        // Later frames of the partition join the first.
        let first = checked.insert((topic, *partition));
        let Some(after) = after.filter(|_| first) else { continue };
        let range = ranges.binary_search_by(|range| (&range.topic, range.partition).cmp(&(topic, *partition)));
        let end = range.ok().and_then(|at| ranges.get(at)).map(|range| range.next);
        if end != Some(after) {
            return Some(format!(
                "{topic} partition {partition} was to go on at offset {after}, which damage has taken"
            ));
        }
    }
    None
}

/// Ranges that begin where they should: what damage has taken the beginning of is read again from there on.
fn whole(mut ranges: Vec<JournalRange>, lost: &[LostRange]) -> Vec<JournalRange> {
    ranges.retain(|range| {
        let is_before = |lost: &LostRange| {
            lost.topic == range.topic && lost.partition == range.partition && lost.next == Some(range.first)
        };
        !lost.iter().any(is_before)
    });
    ranges
}

pub(crate) fn log_lost(lost: &[LostRange]) {
    for LostRange { topic, partition, first, next } in lost {
        tracing::warn!(%topic, partition, first, ?next, "journal damage: these offsets are read from the source again");
    }
}

#[cfg(test)]
mod tests {
    use tombolo_proto::frame::Entry;
    use tombolo_proto::testing::BatchBuilder;

    use super::*;
    use crate::journal::MemoryJournal;

    fn frame(base: Offset, after: Option<Offset>) -> SpillFrame {
        let entries = vec![Entry::Batch(BatchBuilder::new(base).records(2).build())];
        SpillFrame {
            topic: TopicName::new("orders").unwrap(),
            topic_id: None,
            partition: 0,
            after,
            entries,
            last_epoch: 0,
        }
    }

    #[test]
    fn only_frames_that_damage_has_cut_off_are_stale() {
        let mut journal = MemoryJournal::new(1 << 20);
        let run = [frame(0, None), frame(2, Some(2)), frame(4, Some(4))];
        assert_eq!(stale(&journal, &run), None, "a run begins, and goes on within the commit");
        let kept = run.map(|frame| JournalFrame {
            packed: frame.pack(),
            topic: frame.topic,
            topic_id: frame.topic_id,
            partition: frame.partition,
        });
        journal.append(&kept).unwrap();
        assert_eq!(stale(&journal, &[frame(6, Some(6)), frame(8, Some(8))]), None);
        assert!(stale(&journal, &[frame(8, Some(8))]).is_some());
        assert_eq!(stale(&journal, &[frame(8, None)]), None, "what there was is confirmed");
    }

    #[test]
    fn a_range_whose_beginning_is_lost_is_none() {
        let mut journal = MemoryJournal::new(1 << 20);
        let SpillFrame { topic, entries, .. } = frame(6, None);
        let packed = Packed::new(&entries);
        journal.append(&[JournalFrame { topic: topic.clone(), topic_id: None, partition: 0, packed }]).unwrap();
        let lost = |next| vec![LostRange { topic: topic.clone(), partition: 0, first: 2, next }];
        assert_eq!(whole(journal.ranges(), &lost(Some(6))), []);
        assert_eq!(whole(journal.ranges(), &lost(Some(4))).len(), 1);
        assert_eq!(whole(journal.ranges(), &lost(None)).len(), 1);
    }
}
