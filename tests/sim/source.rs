//! A partition of the source cluster: a log that grows, changes its leader, forgets its beginning, and may lose its tail
//! and write another.

use bytes::Bytes;
use tombolo_proto::batch::Batch;
use tombolo_proto::edge::Verdict;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{Offset, Partition};
use tombolo_proto::testing::BatchBuilder;
use tombolo_proto::wire::TailBatch;

use crate::dice::Dice;
use crate::plan::{OddBatch, TopicPlan};

/// What identifies a batch: where it lies, and its canonical CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) base_offset: Offset,
    pub(crate) next_offset: Offset,
    pub(crate) crc: u32,
}

impl Mark {
    pub(crate) fn of(batch: &Batch) -> Self {
        Self { base_offset: batch.base_offset(), next_offset: batch.next_offset(), crc: batch.canonical_crc() }
    }
}

/// Answer to a fetch.
#[derive(Debug, Clone)]
pub(crate) enum Fetched {
    Batches { batches: Vec<Batch>, high_watermark: Offset, log_start: Offset },
    Failed(Failure),
}

/// One partition of the source.
#[derive(Debug)]
pub(crate) struct SourcePartition {
    partition: Partition,
    batches: Vec<Batch>,
    log_start: Offset,
    /// As the leader knows it; a new one may know less than was true.
    high_watermark: Offset,
    /// Highest it ever was: what every replica in sync holds.
    committed: Offset,
    leader_epoch: i32,
    /// First offset of each leader epoch that wrote something.
    epochs: Vec<(i32, Offset)>,
    /// The log as it was before each loss of its tail, and of topics that had the name before, then the log as it is: all
    /// marks since the beginning.
    histories: Vec<Vec<Mark>>,
    serial: i64,
}

impl SourcePartition {
    pub(crate) fn new(partition: Partition, begin: Offset) -> Self {
        Self {
            partition,
            batches: Vec::new(),
            log_start: begin,
            high_watermark: begin,
            committed: begin,
            leader_epoch: 0,
            epochs: Vec::new(),
            histories: vec![Vec::new()],
            serial: 0,
        }
    }

    /// The partition of a topic that takes this one's name.
    pub(crate) fn remade(&self) -> Self {
        let mut histories = self.histories.clone();
        histories.push(Vec::new());
        Self { histories, serial: self.serial, ..Self::new(self.partition, 0) }
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.log_start
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.batches.last().map_or(self.log_start, Batch::next_offset)
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub(crate) fn batches(&self) -> &[Batch] {
        &self.batches
    }

    pub(crate) fn histories(&self) -> &[Vec<Mark>] {
        &self.histories
    }

    /// A producer writes a batch.
    pub(crate) fn append(&mut self, dice: &mut Dice, topic: &TopicPlan, now_ms: i64, odd: Option<(OddBatch, usize)>) {
        self.serial += 1;
        let most = if dice.chance(100) { 300 } else { 8 };
        let records = i32::try_from(dice.between(1, most)).expect("small");
        let mut payload = dice.between(1, topic.payload);
        // The serial number makes every batch different from every other, whatever else it holds.
        let serial = self.serial + i64::from(self.leader_epoch) * 1_000_000;
        let mut builder = BatchBuilder::new(self.log_end())
            .records(records)
            .timestamps(serial, now_ms - topic.age_ms)
            .leader_epoch(self.leader_epoch)
            .fill(u8::try_from(dice.below(256)).expect("a byte"));
        if dice.chance(300) {
            builder = builder.stamp(77, 0, i32::try_from(self.serial).expect("small"));
        }
        match odd {
            Some((OddBatch::Transactional, _)) => builder = builder.transactional(),
            Some((OddBatch::Thinned, _)) => builder = builder.last_offset_delta(records + 3),
            Some((OddBatch::LogAppendTime, _)) => builder = builder.attributes(0x08),
            Some((OddBatch::TooLargeForFrame | OddBatch::TooLargeForCloud, bytes)) => payload = bytes,
            Some((OddBatch::Corrupt, _)) | None => {}
        }
        let mut bytes = builder.payload(payload).bytes();
        if matches!(odd, Some((OddBatch::Corrupt, _))) {
            let mut damaged = bytes.to_vec();
            if let Some(last) = damaged.last_mut() {
                *last ^= 1;
            }
            bytes = damaged.into();
        }
        self.store(bytes);
    }

    fn store(&mut self, bytes: Bytes) {
        let batch = Batch::parse(bytes).expect("built in range");
        if self.epochs.last().is_none_or(|&(epoch, _)| epoch < self.leader_epoch) {
            self.epochs.push((self.leader_epoch, batch.base_offset()));
        }
        self.history().push(Mark::of(&batch));
        self.batches.push(batch);
    }

    fn history(&mut self) -> &mut Vec<Mark> {
        self.histories.last_mut().expect("there is always one")
    }

    /// The replicas in sync hold everything.
    pub(crate) fn replicated(&mut self) {
        self.high_watermark = self.log_end();
        self.committed = self.high_watermark;
    }

    /// Another replica leads: it holds everything that was below the high watermark, and may not know how far that was.
    pub(crate) fn change_leader(&mut self, dice: &mut Dice) {
        let end = self.border_between(dice, self.committed, self.log_end());
        self.cut(end);
        self.leader_epoch += 1;
        let known = self.border_between(dice, self.log_start.max(self.committed - 40), self.committed);
        self.high_watermark = known;
    }

    /// An unclean election: what was below the high watermark is lost as well. False where there was nothing to lose.
    pub(crate) fn lose_tail(&mut self, dice: &mut Dice) -> bool {
        let end = self.border_between(dice, self.log_start.max(self.committed - 60), self.committed);
        if end >= self.committed {
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
        self.batches.retain(|batch| batch.next_offset() <= end);
        self.epochs.retain(|&(_, start)| start < end);
        self.history().retain(|mark| mark.next_offset <= end);
    }

    /// Retention removes what lies below the last border at or below `offset`.
    pub(crate) fn retain_from(&mut self, offset: Offset) {
        let start = self.batches.iter().map(Batch::base_offset).chain([self.log_end()]);
        let start = start.filter(|&start| start <= offset).max().unwrap_or(self.log_start);
        self.log_start = self.log_start.max(start);
        let keep_last = self.batches.len().saturating_sub(1);
        // The last batch stays as the log's end, below its start and out of reach.
        let from = self.log_start;
        let gone = self.batches.iter().take(keep_last).take_while(|batch| batch.next_offset() <= from).count();
        self.batches.drain(..gone);
    }

    /// A border of batches within `[low, high]`, or `high`.
    pub(crate) fn border_between(&self, dice: &mut Dice, low: Offset, high: Offset) -> Offset {
        let borders: Vec<_> = self
            .batches
            .iter()
            .flat_map(|batch| [batch.base_offset(), batch.next_offset()])
            .filter(|border| (low..=high).contains(border))
            .collect();
        dice.pick(&borders).unwrap_or(high)
    }

    /// Fetch v12: everything from the batch that holds `offset` on, up to `max_bytes`, but the first batch whole.
    /// `last_epoch` is the epoch of the record before it, where the reader knows.
    pub(crate) fn fetch(&self, offset: Offset, last_epoch: Option<i32>, max_bytes: usize) -> Fetched {
        if let Some(epoch) = last_epoch
            && let Some(diverging) = self.diverges(offset, epoch)
        {
            return Fetched::Failed(diverging);
        }
        if offset > self.log_end() {
            return Fetched::Failed(self.truncated(offset));
        }
        if offset < self.log_start {
            let code = if offset == 0 { FailureCode::LogStartAboveZero } else { FailureCode::SourceDataLost };
            let failure = Failure::at(code, self.partition, offset, "retention").until(self.log_start);
            return Fetched::Failed(failure);
        }
        let mut bytes = 0;
        let visible = self
            .batches
            .get(self.batches.partition_point(|batch| batch.next_offset() <= offset)..)
            .unwrap_or_default()
            .iter()
            .take_while(|batch| batch.next_offset() <= self.high_watermark);
        let batches = visible
            .take_while(|batch| {
                let first = bytes == 0;
                bytes += batch.len();
                first || bytes <= max_bytes
            })
            .cloned()
            .collect();
        Fetched::Batches { batches, high_watermark: self.high_watermark, log_start: self.log_start }
    }

    /// `Partition.readRecords`: where the log of that epoch ends before `offset`, the reader holds another log.
    fn diverges(&self, offset: Offset, epoch: i32) -> Option<Failure> {
        let known = self.epochs.iter().any(|&(own, _)| own == epoch);
        let later = self.epochs.iter().find(|&&(own, _)| own > epoch);
        let end = later.map_or_else(|| self.log_end(), |&(_, start)| start);
        // The epoch's last records may all lie below the log's start.
        let gone = self.epochs.first().is_none_or(|&(own, _)| epoch < own) && offset <= self.log_start;
        ((!known && !gone) || end < offset).then(|| self.truncated(offset))
    }

    fn truncated(&self, offset: Offset) -> Failure {
        let detail = "the source lost its tail";
        Failure::at(FailureCode::UnexpectedTruncation, self.partition, self.log_end().min(offset), detail).until(offset)
    }

    /// Compares a mirror's tail with the log. `None` while the leader does not know its high watermark; with the
    /// verdict, the epoch of the record before `next_offset`.
    pub(crate) fn compare(&self, tail: &[TailBatch], next_offset: Offset) -> Option<(Verdict, Option<i32>)> {
        if self.log_end() < next_offset {
            return Some((Verdict::Failed(self.truncated(next_offset)), None));
        }
        if self.high_watermark < next_offset {
            return None;
        }
        let mut compared = false;
        for theirs in tail {
            if theirs.base_offset < self.log_start {
                continue;
            }
            let holder = self
                .batches
                .iter()
                .find(|batch| batch.base_offset() <= theirs.last_offset && theirs.base_offset < batch.next_offset());
            let ours = holder.map(Mark::of);
            let same = Mark { base_offset: theirs.base_offset, next_offset: theirs.last_offset + 1, crc: theirs.crc };
            if ours != Some(same) {
                let detail = format!("the source holds {ours:?}, the mirror {same:?}");
                let failure = Failure::at(FailureCode::Diverged, self.partition, theirs.base_offset, detail);
                return Some((Verdict::Failed(failure), None));
            }
            compared = true;
        }
        let before = self.batches.iter().find(|batch| batch.next_offset() == next_offset);
        let epoch = before.map(Batch::leader_epoch);
        let verdict = if compared { Verdict::Agrees } else { Verdict::Unverified };
        Some((verdict, epoch))
    }
}
