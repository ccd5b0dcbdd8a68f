//! A partition of the source cluster: a log that grows, changes its leader, forgets its beginning, is compacted, and may
//! lose its tail and write another. Some of its records belong to transactions.

mod history;
mod item;
mod records;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tombolo_kafka::fetch::AbortedTransaction;
use tombolo_kafka::records::{Piece, Unfit};
use tombolo_proto::batch::Batch;
use tombolo_proto::edge::{Verdict, contradicts, differs, proves};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::frame::Entry;
use tombolo_proto::id::{Offset, Partition};
use tombolo_proto::limits::MAX_FRAME_BYTES;
use tombolo_proto::wire::TailBatch;

use crate::dice::Dice;
use crate::plan::{OddBatch, TopicPlan};

pub(crate) use history::{History, Mark};
use item::{End, Item, New};
use records::{Answer, Found, Origin, Stop, Walk};

/// Producers with transactions.
const PRODUCERS: usize = 3;
const FIRST_PRODUCER: i64 = 100;
/// Most that an unclean election takes below what was committed. The cleaner keeps off what it may take.
const LOST_TAIL: Offset = 60;

/// Answer to a fetch.
#[derive(Debug, Clone)]
pub(crate) enum Fetched {
    Records(Records),
    /// The log begins above the offset asked for.
    Overtaken {
        log_start: Offset,
    },
    Failed(Failure),
}

/// Whole batches, the first of which may begin below the offset asked for, up to the last stable offset.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    bytes: Bytes,
    aborted: Vec<AbortedTransaction>,
    pub(crate) high_watermark: Offset,
    pub(crate) log_start: Offset,
}

/// Why an answer is not read to its end.
#[derive(Debug)]
pub(crate) enum Ending {
    Failed(Failure),
    Overtaken,
}

/// What a reader makes of an answer.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) entries: Vec<Entry>,
    pub(crate) ending: Option<Ending>,
    /// Of the last entry.
    pub(crate) epoch: Option<i32>,
}

impl Records {
    fn walk(self, partition: Partition, offset: Offset, max_batch: usize) -> Walk {
        let Self { bytes, aborted, log_start, .. } = self;
        Walk::new(Answer { partition, offset, log_start, records: bytes, aborted, read_before: 0, max_batch })
    }

    /// As the agent reads it.
    pub(crate) fn read(self, partition: Partition, offset: Offset, max_batch: usize) -> Read {
        let mut read = Read { entries: Vec::new(), ending: None, epoch: None };
        for found in self.walk(partition, offset, max_batch) {
            let Found { entry, epoch, .. } = match found {
                Ok(found) => found,
                Err(Stop::Failed(failure)) => {
                    read.ending = Some(Ending::Failed(failure));
                    break;
                }
                Err(Stop::Overtaken) => {
                    read.ending = Some(Ending::Overtaken);
                    break;
                }
            };
            read.epoch = epoch;
            if let (Some(Entry::Gap { count, .. }), Entry::Gap { count: more, .. }) = (read.entries.last_mut(), &entry)
            {
                *count += more;
            } else {
                read.entries.push(entry);
            }
        }
        read
    }
}

/// A transaction that has ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    first: Offset,
    marker: Offset,
    timestamp: i64,
}

/// A transaction that was aborted, up to its marker.
#[derive(Debug, Clone, Copy)]
struct Aborted {
    producer: i64,
    first: Offset,
    marker: Offset,
}

/// One partition of the source.
#[derive(Debug)]
pub(crate) struct SourcePartition {
    partition: Partition,
    items: Vec<Item>,
    log_start: Offset,
    log_end: Offset,
    /// As the leader knows it; a new one may know less than was true.
    high_watermark: Offset,
    /// Highest it ever was: what every replica in sync holds.
    committed: Offset,
    leader_epoch: i32,
    /// First offset of each leader epoch that wrote something.
    epochs: Vec<(i32, Offset)>,
    /// First offsets of open transactions, by producer.
    open: BTreeMap<i64, Offset>,
    ended: Vec<Ended>,
    aborted: Vec<Aborted>,
    /// The log as it was before each loss of its tail, and of topics that had the name before, then the log as it is.
    histories: Vec<History>,
    serial: i64,
}

impl SourcePartition {
    pub(crate) fn new(partition: Partition, begin: Offset) -> Self {
        Self {
            partition,
            items: Vec::new(),
            log_start: begin,
            log_end: begin,
            high_watermark: begin,
            committed: begin,
            leader_epoch: 0,
            epochs: Vec::new(),
            open: BTreeMap::new(),
            ended: Vec::new(),
            aborted: Vec::new(),
            histories: vec![History::default()],
            serial: 0,
        }
    }

    /// The partition of a topic that takes this one's name.
    pub(crate) fn remade(&self) -> Self {
        let mut histories = self.histories.clone();
        histories.push(History::default());
        Self { histories, serial: self.serial, ..Self::new(self.partition, 0) }
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.log_start
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Where committed readers end: no transaction below is open, or ended by a marker that is not replicated.
    pub(crate) fn last_stable(&self) -> Offset {
        self.stable(|ended| ended.marker < self.high_watermark)
    }

    /// Where they ended at that time at the latest.
    pub(crate) fn last_stable_before(&self, timestamp: i64) -> Offset {
        self.stable(|ended| ended.marker < self.high_watermark && ended.timestamp < timestamp)
    }

    fn stable(&self, counts: impl Fn(&Ended) -> bool) -> Offset {
        let unstable = self.ended.iter().filter(|ended| !counts(ended)).map(|ended| ended.first);
        self.open.values().copied().chain(unstable).min().unwrap_or(Offset::MAX).min(self.high_watermark)
    }

    pub(crate) fn batches(&self) -> impl DoubleEndedIterator<Item = &Batch> {
        self.items.iter().map(|item| &item.batch)
    }

    pub(crate) fn histories(&self) -> &[History] {
        &self.histories
    }

    /// A producer writes a batch, in a transaction or not; and one may end its transaction.
    pub(crate) fn append(&mut self, dice: &mut Dice, topic: &TopicPlan, now_ms: i64, odd: Option<(OddBatch, usize)>) {
        self.serial += 1;
        let most = if dice.chance(100) { 200 } else { 8 };
        let records = i32::try_from(dice.between(1, most)).expect("small");
        let mut bytes = dice.between(1, topic.payload);
        if let Some((OddBatch::TooLargeForFrame | OddBatch::TooLargeForCloud, odd_bytes)) = odd {
            bytes = odd_bytes;
        }
        let producer = (odd.is_none() && dice.chance(topic.transactional))
            .then(|| FIRST_PRODUCER + i64::try_from(dice.below(PRODUCERS)).expect("small"));
        let mut item = Item::new(New {
            base: self.log_end,
            records,
            bytes,
            serial: self.serial + i64::from(self.leader_epoch) * 1_000_000,
            fill: u8::try_from(dice.below(256)).expect("a byte"),
            timestamp: now_ms - topic.age_ms,
            leader_epoch: self.leader_epoch,
            producer,
        });
        if matches!(odd, Some((OddBatch::Corrupt, _))) {
            item.damage();
        }
        if let Some(producer) = producer {
            self.open.entry(producer).or_insert(self.log_end);
        } else {
            let mark = Mark::of(&item.batch);
            self.history().holds(mark, mark.next_offset);
        }
        self.store(item);
        if dice.chance(250) {
            let open: Vec<_> = self.open.keys().copied().collect();
            if let Some(producer) = dice.pick(&open) {
                self.end(dice, producer, now_ms - topic.age_ms);
            }
        }
    }

    /// Ends all transactions.
    pub(crate) fn end_all(&mut self, dice: &mut Dice, timestamp: i64) {
        for producer in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(dice, producer, timestamp);
        }
    }

    fn end(&mut self, dice: &mut Dice, producer: i64, timestamp: i64) {
        let Some(first) = self.open.remove(&producer) else { return };
        let end = if dice.chance(400) { End::Abort } else { End::Commit };
        let marker = self.log_end;
        self.store(Item::marker(marker, producer, end, (timestamp, self.leader_epoch)));
        let decided = marker + 1;
        self.history().lacks(marker, decided, decided);
        let its =
            |item: &&Item| item.producer == Some(producer) && item.end.is_none() && item.batch.base_offset() >= first;
        let marks: Vec<Mark> = self.items.iter().filter(its).map(|item| Mark::of(&item.batch)).collect();
        for mark in marks {
            match end {
                End::Commit => self.history().holds(mark, decided),
                End::Abort => self.history().lacks(mark.base_offset, mark.next_offset, decided),
            }
        }
        self.ended.push(Ended { first, marker, timestamp });
        if end == End::Abort {
            self.aborted.push(Aborted { producer, first, marker });
        }
    }

    fn store(&mut self, item: Item) {
        if self.epochs.last().is_none_or(|&(epoch, _)| epoch < self.leader_epoch) {
            self.epochs.push((self.leader_epoch, item.batch.base_offset()));
        }
        self.log_end = item.batch.next_offset();
        self.items.push(item);
    }

    fn history(&mut self) -> &mut History {
        self.histories.last_mut().expect("there is always one")
    }

    /// The replicas in sync hold everything.
    pub(crate) fn replicated(&mut self) {
        self.high_watermark = self.log_end;
        self.committed = self.high_watermark;
    }

    /// Another replica leads: it holds everything that was below the high watermark, and may not know how far that was.
    pub(crate) fn change_leader(&mut self, dice: &mut Dice) {
        let end = self.border_between(dice, self.committed, self.log_end);
        self.cut(end);
        self.leader_epoch += 1;
        let known = self.border_between(dice, self.log_start.max(self.committed - 40), self.committed);
        self.high_watermark = known;
    }

    /// An unclean election: what was below the high watermark is lost as well, but for transactions half of which would
    /// stay. False where there was nothing to lose.
    pub(crate) fn lose_tail(&mut self, dice: &mut Dice) -> bool {
        let end = self.border_between(dice, self.log_start.max(self.committed - LOST_TAIL), self.committed);
        // A transaction whose marker is lost may end otherwise the next time, and records far below with it: further than
        // the tail of a mirror shows.
        let revives = self.ended.iter().any(|ended| ended.first < end && end <= ended.marker);
        if end >= self.committed || revives {
            return false;
        }
        let before = self.history().clone();
        self.histories.insert(self.histories.len() - 1, before);
        self.cut(end);
        self.leader_epoch += 1;
        self.high_watermark = end;
        self.committed = end;
        true
    }

    fn cut(&mut self, end: Offset) {
        self.items.retain(|item| item.batch.next_offset() <= end);
        self.log_end = end;
        self.epochs.retain(|&(_, start)| start < end);
        self.history().cut(end);
        self.ended.retain(|ended| ended.marker < end);
        self.aborted.retain(|aborted| aborted.marker < end);
        // What a marker that is gone had ended is open again.
        self.open.clear();
        for item in &self.items {
            match (item.producer, item.end) {
                (Some(producer), Some(_)) => drop(self.open.remove(&producer)),
                (Some(producer), None) => {
                    self.open.entry(producer).or_insert_with(|| item.batch.base_offset());
                }
                (None, _) => {}
            }
        }
    }

    /// The log begins at `offset`, or at the last border of batches below it. No open transaction is cut.
    pub(crate) fn retain_from(&mut self, offset: Offset, within_a_batch: bool) {
        let offset = offset.min(self.last_stable());
        let borders = self.items.iter().map(|item| item.batch.base_offset()).chain([self.log_end]);
        let border = borders.filter(|&border| border <= offset).max().unwrap_or(self.log_start);
        self.log_start = self.log_start.max(if within_a_batch { offset } else { border });
        let from = self.log_start;
        self.items.retain(|item| item.batch.next_offset() > from);
        if let Some(first) = self.items.first().cloned() {
            self.hold_pieces(&first);
        }
    }

    /// The cleaner takes records away: some of a batch, all of it but its header, or all of it. Returns whether it did.
    pub(crate) fn compact(&mut self, dice: &mut Dice) -> bool {
        let below = self.last_stable().min(self.committed - LOST_TAIL);
        let candidates = self.items.iter().filter(|item| item.batch.next_offset() < below).count();
        if candidates == 0 {
            return false;
        }
        let (from, count) = (dice.below(candidates), dice.between(1, 6));
        for at in (from..candidates.min(from + count)).rev() {
            let Some(mut item) = self.items.get(at).cloned() else { continue };
            let goes = dice.pick(&[200, 600, 1_000, 1_000]).unwrap_or(200);
            let is_whole = item.batch.base_offset() >= self.log_start && item.batch.crc_is_valid();
            if !is_whole {
                continue;
            }
            if item.end.is_none() {
                for offset in item.thin(|| dice.chance(goes)) {
                    self.history().lacks(offset, offset + 1, offset + 1);
                }
                self.hold_pieces(&item);
            }
            let keeps = match item.end {
                None => item.has_records() || dice.chance(300),
                // A marker stays as long as anything of its transaction does.
                Some(_) => self.ended_by(&item).is_none_or(|ended| self.has_of(item.producer, ended)),
            };
            if keeps && let Some(there) = self.items.get_mut(at) {
                *there = item;
            } else if !keeps {
                let marker = self.items.remove(at).batch.base_offset();
                self.aborted.retain(|aborted| aborted.marker != marker);
            }
        }
        true
    }

    /// The transaction that a marker ended.
    fn ended_by(&self, marker: &Item) -> Option<Ended> {
        self.ended.iter().copied().find(|ended| ended.marker == marker.batch.base_offset())
    }

    fn has_of(&self, producer: Option<i64>, Ended { first, marker, .. }: Ended) -> bool {
        self.items.iter().any(|item| {
            item.producer == producer && item.end.is_none() && (first..marker).contains(&item.batch.base_offset())
        })
    }

    /// What a mirror may hold of a batch that is not what was written, or that the log begins within.
    fn hold_pieces(&mut self, item: &Item) {
        let (base, decided) = (item.batch.base_offset(), item.batch.next_offset());
        let hidden = self.history().is_nothing(base) && self.history().gap_end(base) >= decided;
        if item.end.is_some() || hidden || self.open.values().any(|&first| first < decided) {
            return;
        }
        let from = self.log_start.max(base);
        let unfit = Unfit::new(item.batch.clone()).or_else(|batch| Unfit::begun(batch, from));
        let Ok(unfit) = unfit else { return };
        let pieces: Vec<_> = unfit.runs(from, MAX_FRAME_BYTES).expect("written here").collect();
        for piece in pieces {
            if let Piece::Run(batch) = piece.expect("written here") {
                let mark = Mark::of(&batch);
                self.history().holds(mark, decided);
            }
        }
    }

    /// A border of batches within `[low, high]`, or `high`.
    pub(crate) fn border_between(&self, dice: &mut Dice, low: Offset, high: Offset) -> Offset {
        let borders: Vec<_> = self
            .batches()
            .flat_map(|batch| [batch.base_offset(), batch.next_offset()])
            .filter(|border| (low..=high).contains(border))
            .collect();
        dice.pick(&borders).unwrap_or(high)
    }

    /// Fetch v12, read committed: everything from the batch that holds `offset` on, up to `max_bytes`, but the first batch
    /// whole. `last_epoch` is the epoch of the record before it, where the reader knows.
    pub(crate) fn fetch(&self, offset: Offset, last_epoch: Option<i32>, max_bytes: usize, committed: bool) -> Fetched {
        if let Some(epoch) = last_epoch
            && let Some(diverging) = self.diverges(offset, epoch)
        {
            return Fetched::Failed(diverging);
        }
        if offset > self.log_end {
            return Fetched::Failed(self.truncated(offset));
        }
        if offset < self.log_start {
            return Fetched::Overtaken { log_start: self.log_start };
        }
        let below = if committed { self.last_stable() } else { self.high_watermark };
        Fetched::Records(self.read(offset, below, max_bytes))
    }

    /// What a reader gets that goes on at the log's start without a word.
    pub(crate) fn fetch_as_if_begun_at(&self, offset: Offset, max_bytes: usize) -> Fetched {
        let records = self.read(self.log_start, self.last_stable(), max_bytes);
        Fetched::Records(Records { log_start: offset, ..records })
    }

    fn read(&self, offset: Offset, below: Offset, max_bytes: usize) -> Records {
        let mut records = BytesMut::new();
        let from = self.items.partition_point(|item| item.batch.next_offset() <= offset);
        let mut end = offset;
        for item in self.items.get(from..).unwrap_or_default() {
            let fits = records.is_empty() || records.len() + item.batch.len() <= max_bytes;
            if item.batch.next_offset() > below || !fits {
                break;
            }
            records.extend_from_slice(item.batch.bytes());
            end = item.batch.next_offset();
        }
        let named = self.aborted.iter().filter(|aborted| aborted.marker >= offset && aborted.first < end);
        Records {
            bytes: records.freeze(),
            aborted: named
                .map(|aborted| AbortedTransaction { first_offset: aborted.first, producer_id: aborted.producer })
                .collect(),
            high_watermark: self.high_watermark,
            log_start: self.log_start,
        }
    }

    /// What a mirror holds that has all of the log, or the first `count` batches of it.
    pub(crate) fn first_entries(&self, count: usize) -> Vec<Entry> {
        let below = self.items.get(count).map_or(Offset::MAX, |item| item.batch.base_offset()).min(self.last_stable());
        let read = self.read(self.log_start, below, usize::MAX);
        read.read(self.partition, self.log_start, MAX_FRAME_BYTES).entries
    }

    /// `Partition.readRecords`: where the log of that epoch ends before `offset`, the reader holds another log.
    fn diverges(&self, offset: Offset, epoch: i32) -> Option<Failure> {
        let known = self.epochs.iter().any(|&(own, _)| own == epoch);
        let later = self.epochs.iter().find(|&&(own, _)| own > epoch);
        let end = later.map_or(self.log_end, |&(_, start)| start);
        // The epoch's last records may all lie below the log's start.
        let gone = self.epochs.first().is_none_or(|&(own, _)| epoch < own) && offset <= self.log_start;
        ((!known && !gone) || end < offset).then(|| self.truncated(offset))
    }

    fn truncated(&self, offset: Offset) -> Failure {
        let detail = format!("the source lost its tail; it ends at {}, with epochs {:?}", self.log_end, self.epochs);
        Failure::at(FailureCode::UnexpectedTruncation, self.partition, self.log_end.min(offset), detail).until(offset)
    }

    /// Compares a mirror's tail with the log. `None` while the leader cannot serve all of it; with the verdict, the epoch
    /// of the record before `next_offset`.
    pub(crate) fn compare(
        &self,
        tail: &[TailBatch],
        next_offset: Offset,
        compacted: bool,
    ) -> Option<(Verdict, Option<i32>)> {
        if self.log_end < next_offset {
            return Some((Verdict::Failed(self.truncated(next_offset)), None));
        }
        if self.last_stable() < next_offset {
            return None;
        }
        let before = self.batches().find(|batch| batch.next_offset() == next_offset);
        let epoch = before.map(Batch::leader_epoch);
        let first = tail.first().map_or(next_offset, |first| first.base_offset).max(self.log_start);
        let read = self.read(first, self.last_stable(), usize::MAX);
        let mut known = Vec::new();
        for found in read.walk(self.partition, first, usize::MAX) {
            let found = match found {
                Ok(found) => found,
                Err(Stop::Failed(failure)) => return Some((Verdict::Failed(failure), None)),
                Err(Stop::Overtaken) => break,
            };
            let ours = TailBatch::of_entry(&found.entry);
            // What was made anew is what is left of a batch that the mirror may have whole.
            let is_less = compacted || found.origin == Origin::Remade;
            if let Some(theirs) = tail.iter().find(|theirs| contradicts(&ours, theirs, is_less)) {
                return Some((Verdict::Failed(differs(self.partition, &ours, theirs)), None));
            }
            known.push(ours);
            if ours.last_offset + 1 >= next_offset {
                break;
            }
        }
        let verdict = if proves(&known, tail) { Verdict::Agrees } else { Verdict::Unverified };
        Some((verdict, epoch))
    }
}
