//! What the segments hold of each partition, in memory: a piece for each segment and partition, nothing for a frame.
//!
//! A run is a sequence of joined frames; its pieces lie in segments of ascending numbers. Frames that do not join begin a
//! run with a higher number, which replaces the older one. A segment whose pieces are all confirmed is removed though
//! older ones may stay, so a run read from files may have a hole, and what that means depends on damage:
//!
//! - no damaged segment lies between: all below the hole was confirmed, or that segment would be there;
//! - one does: what is behind the hole is *hidden*. If the owner confirms beyond the hole, it was confirmed frames that
//!   are missing, and what was hidden is the range. If the owner appends before the hole, it fetched the rest anew.
//!
//! Must never: show a range with a hole; count a piece for a segment it is not in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tombolo_proto::id::{Offset, Partition, TopicName};

use super::schema::RangeRow;
use super::segment::Entry;
use super::{JournalFrame, JournalRange, LostRange};

pub(super) type Key = (TopicName, Partition);

/// What a segment holds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of the segment.
    pub(super) segment: u64,
    pub(super) first: Offset,
    pub(super) next: Offset,
    bytes: u64,
    /// Of the last batch up to the end of the piece; -1 where it is not known.
    last_epoch: i32,
}

/// The run of a partition. Never empty.
#[derive(Debug)]
struct Chain {
    run: u64,
    /// The topic's id; 0 where it was not known.
    topic_id: u128,
    start: Offset,
    /// First offset that is of interest; within or before the first piece.
    trimmed: Offset,
    /// In offset order, which is the order of their segments.
    pieces: VecDeque<Piece>,
}

/// What is of interest in a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Live {
    /// Bytes of bodies that are not confirmed.
    pub(super) bytes: u64,
    /// Pieces that are not confirmed; with none the segment may go.
    pub(super) pieces: usize,
}

/// All chains, and how much of each segment is of interest.
#[derive(Debug, Default)]
pub(super) struct Index {
    chains: BTreeMap<Key, Chain>,
    live: BTreeMap<u64, Live>,
    next_run: u64,
}

/// Frames to be appended: rows for the segment that takes them, and the change to the index once they are durable.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    segment: u64,
    next_run: u64,
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) rows: BTreeMap<Key, RangeRow>,
}

impl Index {
    /// Takes up what a segment holds; segments in ascending order. [`Index::settle`] ends it.
    pub(super) fn load(&mut self, segment: u64, (topic, partition): Key, row: RangeRow) {
        self.next_run = self.next_run.max(row.run + 1);
        self.change((topic, partition), |chain| match chain {
            Some(chain) if chain.run > row.run => Some(chain),
            Some(chain) if chain.run == row.run => {
                let mut chain = chain.extended(segment, row);
                // Nothing is confirmed yet; a merged segment may begin lower than a source that is still there.
                chain.trimmed = chain.pieces.front().map_or(row.first, |piece| piece.first);
                Some(chain)
            }
            _ => Some(Chain::new(segment, row)),
        });
    }

    /// Resolves holes, given the numbers of damaged segments. Answers what they may have cost.
    pub(super) fn settle(&mut self, damaged: &BTreeSet<u64>) -> Vec<LostRange> {
        let mut lost = Vec::new();
        for key in self.keys() {
            self.change(key.clone(), |chain| {
                let mut chain = chain?;
                lost.extend(chain.settle(damaged).map(|(first, next)| lost_range(&key, first, next)));
                Some(chain)
            });
        }
        lost
    }

    /// What is to be written to `segment` for these frames.
    pub(super) fn plan<'a>(&self, segment: u64, frames: &'a [JournalFrame]) -> Plan<'a> {
        let mut plan = Plan { segment, next_run: self.next_run, entries: Vec::new(), rows: BTreeMap::new() };
        for JournalFrame { topic, topic_id, partition, packed } in frames {
            let topic_id = topic_id.map_or(0, u128::from_be_bytes);
            let key = (topic.clone(), *partition);
            let known = plan.rows.get(&key).copied();
            let end = known.or_else(|| self.chains.get(&key).map(|chain| chain.open_row(segment)));
            let joined = end.filter(|row| row.next == packed.first_offset && row.topic_id == topic_id);
            let mut row = joined.unwrap_or_else(|| {
                let run = plan.next_run;
                plan.next_run += 1;
                let first = packed.first_offset;
                RangeRow { run, topic_id, start: first, first, next: first, last_epoch: -1, bytes: 0 }
            });
            row.next = packed.next_offset;
            row.bytes += packed.body_bytes() as u64;
            // It may not be known, whatever its predecessor's was.
            row.last_epoch = packed.last_epoch;
            plan.entries.push(Entry { topic, partition: *partition, run: row.run, packed });
            plan.rows.insert(key, row);
        }
        plan
    }

    /// The planned frames are durable.
    pub(super) fn apply(&mut self, segment: u64, next_run: u64, rows: BTreeMap<Key, RangeRow>) {
        self.next_run = next_run;
        for (key, row) in rows {
            self.change(key, |chain| match chain {
                Some(chain) if chain.run == row.run => Some(chain.extended(segment, row)),
                _ => Some(Chain::new(segment, row)),
            });
        }
    }

    pub(super) fn trim(&mut self, key: Key, confirmed: Offset) {
        self.change(key, |chain| chain.map(|chain| chain.trimmed_to(confirmed)));
    }

    pub(super) fn discard(&mut self, key: Key) {
        self.change(key, |_| None);
    }

    /// A segment is out of use. Answers what it held that was of interest, and what is hidden for it.
    pub(super) fn lose(&mut self, segment: u64) -> Vec<LostRange> {
        let mut lost = Vec::new();
        for key in self.keys() {
            self.change(key.clone(), |chain| {
                let mut chain = chain?;
                lost.extend(chain.lose(segment).map(|(first, next)| lost_range(&key, first, Some(next))));
                Some(chain)
            });
        }
        self.live.remove(&segment);
        lost
    }

    /// The pieces of `sources` were copied to `target`, as far as `rows` say.
    pub(super) fn moved(&mut self, sources: &BTreeSet<u64>, target: u64, mut rows: BTreeMap<Key, RangeRow>) {
        for key in self.keys() {
            let row = rows.remove(&key);
            self.change(key, |chain| chain.map(|chain| chain.moved(sources, target, row)));
        }
    }

    /// Where to find `offset` of a partition and what follows: the run, and pieces in order, the first of which holds it.
    pub(super) fn locate(&self, key: &Key, offset: Offset) -> Option<(u64, Vec<Piece>)> {
        let chain = self.chains.get(key)?;
        let (first, next) = (chain.trimmed, chain.visible().last()?.next);
        let pieces = || chain.visible().filter(|piece| piece.next > offset).copied().collect();
        (first..next).contains(&offset).then(|| (chain.run, pieces()))
    }

    /// What `segments` hold of the run of a partition that is of interest: run and start of it, first offset, pieces.
    pub(super) fn within(&self, key: &Key, segments: &BTreeSet<u64>) -> Option<(RangeRow, Vec<Piece>)> {
        let chain = self.chains.get(key)?;
        let pieces: Vec<Piece> =
            chain.pieces.iter().filter(|piece| segments.contains(&piece.segment)).copied().collect();
        let (head, last) = (pieces.first()?, pieces.last()?);
        let first = head.first.max(chain.trimmed);
        let row = RangeRow {
            run: chain.run,
            topic_id: chain.topic_id,
            start: chain.start,
            first,
            next: last.next,
            last_epoch: -1,
            bytes: 0,
        };
        Some((row, pieces))
    }

    /// Partitions of which `segments` hold something of interest.
    pub(super) fn partitions(&self, segments: &BTreeSet<u64>) -> VecDeque<Key> {
        let held = |chain: &Chain| chain.pieces.iter().any(|piece| segments.contains(&piece.segment));
        self.chains.iter().filter(|(_, chain)| held(chain)).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn live(&self, segment: u64) -> Live {
        self.live.get(&segment).copied().unwrap_or_default()
    }

    /// The segment is no more; nothing of it is of interest.
    pub(super) fn forget(&mut self, segment: u64) {
        self.live.remove(&segment);
    }

    pub(super) fn frame_bytes(&self) -> u64 {
        self.chains.values().map(Chain::bytes).sum()
    }

    pub(super) fn ranges(&self) -> Vec<JournalRange> {
        let range = |((topic, partition), chain): (&Key, &Chain)| {
            let last = chain.visible().last()?;
            Some(JournalRange {
                topic: topic.clone(),
                topic_id: (chain.topic_id != 0).then(|| chain.topic_id.to_be_bytes()),
                partition: *partition,
                first: chain.trimmed,
                next: last.next,
                last_epoch: last.last_epoch,
                bytes: chain.bytes(),
            })
        };
        self.chains.iter().filter_map(range).collect()
    }

    fn keys(&self) -> Vec<Key> {
        self.chains.keys().cloned().collect()
    }

    /// Every change of a chain: keeps the account of the segments.
    fn change(&mut self, key: Key, change: impl FnOnce(Option<Chain>) -> Option<Chain>) {
        let old = self.chains.remove(&key);
        for (segment, bytes) in old.iter().flat_map(Chain::shares) {
            if let Some(live) = self.live.get_mut(&segment) {
                live.bytes -= bytes;
                live.pieces -= 1;
            }
        }
        let Some(new) = change(old).filter(|chain| !chain.pieces.is_empty()) else { return };
        for (segment, bytes) in new.shares() {
            let live = self.live.entry(segment).or_default();
            live.bytes += bytes;
            live.pieces += 1;
        }
        self.chains.insert(key, new);
    }
}

impl Plan<'_> {
    /// What [`Index::apply`] takes, when the entries were written.
    pub(super) fn done(self) -> (u64, u64, BTreeMap<Key, RangeRow>) {
        (self.segment, self.next_run, self.rows)
    }
}

impl Chain {
    fn new(segment: u64, row: RangeRow) -> Self {
        let chain = Self {
            run: row.run,
            topic_id: row.topic_id,
            start: row.start,
            trimmed: row.first,
            pieces: VecDeque::new(),
        };
        chain.extended(segment, row)
    }

    /// With a piece of the same run from a segment at least as new as the others. Pieces from where it begins on are
    /// superseded: copies that a merge left, or frames behind a hole that were fetched anew.
    fn extended(mut self, segment: u64, row: RangeRow) -> Self {
        self.pieces.retain(|piece| piece.first < row.first);
        if let Some(last) = self.pieces.back_mut() {
            last.next = last.next.min(row.first);
        }
        let RangeRow { first, next, bytes, last_epoch, .. } = row;
        self.pieces.push_back(Piece { segment, first, next, bytes, last_epoch });
        self
    }

    fn trimmed_to(mut self, confirmed: Offset) -> Self {
        self.trimmed = self.trimmed.max(confirmed);
        while self.pieces.front().is_some_and(|piece| piece.next <= self.trimmed) {
            self.pieces.pop_front();
        }
        // Beyond a hole: it was confirmed frames that are missing.
        self.trimmed = self.pieces.front().map_or(self.trimmed, |piece| self.trimmed.max(piece.first));
        self
    }

    /// Number of pieces before the first hole.
    fn joined(&self) -> usize {
        let joins =
            self.pieces.iter().zip(self.pieces.iter().skip(1)).take_while(|(piece, next)| piece.next == next.first);
        1 + joins.count()
    }

    fn visible(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().take(self.joined())
    }

    /// The row of this partition in `segment`, if frames are appended there that join; an empty one where there is none.
    fn open_row(&self, segment: u64) -> RangeRow {
        let (run, topic_id, start) = (self.run, self.topic_id, self.start);
        match self.visible().last() {
            Some(&Piece { segment: last, first, next, bytes, last_epoch }) if last == segment => {
                RangeRow { run, topic_id, start, first, next, last_epoch, bytes }
            }
            last => {
                let (next, last_epoch) = last.map_or((self.trimmed, -1), |piece| (piece.next, piece.last_epoch));
                RangeRow { run, topic_id, start, first: next, next, last_epoch, bytes: 0 }
            }
        }
    }

    /// Holes that no damage explains are confirmed frames. Answers what damage may have cost.
    fn settle(&mut self, damaged: &BTreeSet<u64>) -> Option<(Offset, Option<Offset>)> {
        let mut begin = self.start;
        let mut older = 0;
        loop {
            let joined = self.joined();
            let (Some(last), Some(behind)) = (self.pieces.get(joined - 1), self.pieces.get(joined)) else { break };
            if damaged.range(last.segment..behind.segment).next().is_some() {
                return Some((last.next, self.pieces.back().map(|end| end.next)));
            }
            (begin, older) = (behind.first, last.segment);
            self.trimmed = behind.first;
            self.pieces.drain(..joined);
        }
        let (head, end) = (self.pieces.front()?, self.pieces.back()?);
        if damaged.range(end.segment..).next().is_some() {
            return Some((end.next, None));
        }
        let before = older..head.segment;
        (begin < head.first && damaged.range(before).next().is_some()).then_some((begin, Some(head.first)))
    }

    fn lose(&mut self, segment: u64) -> Option<(Offset, Offset)> {
        let at = self.pieces.iter().position(|piece| piece.segment == segment)?;
        let piece = self.pieces.remove(at)?;
        if at > 0 {
            return Some((piece.first, self.pieces.back()?.next.max(piece.next)));
        }
        let first = self.trimmed.max(piece.first);
        self.trimmed = self.pieces.front().map_or(self.trimmed, |front| front.first);
        Some((first, piece.next))
    }

    fn moved(mut self, sources: &BTreeSet<u64>, target: u64, row: Option<RangeRow>) -> Self {
        let row = row.filter(|row| row.run == self.run && row.next > self.trimmed);
        let at = self.pieces.iter().position(|piece| sources.contains(&piece.segment));
        let last_epoch =
            self.pieces.iter().rfind(|piece| sources.contains(&piece.segment)).map(|piece| piece.last_epoch);
        self.pieces.retain(|piece| !sources.contains(&piece.segment));
        if let (Some(at), Some(last_epoch), Some(RangeRow { first, next, bytes, .. })) = (at, last_epoch, row) {
            self.pieces.insert(at, Piece { segment: target, first, next, bytes, last_epoch });
        }
        self
    }

    fn bytes(&self) -> u64 {
        self.shares().map(|(_, bytes)| bytes).sum()
    }

    /// What each piece has of interest. The bytes of one that is confirmed in part are estimated by its offsets: frames
    /// are not looked up for it.
    fn shares(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().map(|piece| {
            let share = |left: Offset, all: Offset| {
                let part = u128::from(piece.bytes) * u128::from(left.unsigned_abs()) / u128::from(all.unsigned_abs());
                u64::try_from(part).unwrap_or(piece.bytes).max(1)
            };
            let left = piece.next - self.trimmed;
            let bytes = if self.trimmed <= piece.first { piece.bytes } else { share(left, piece.next - piece.first) };
            (piece.segment, bytes)
        })
    }
}

fn lost_range((topic, partition): &Key, first: Offset, next: Option<Offset>) -> LostRange {
    LostRange { topic: topic.clone(), partition: *partition, first, next }
}
