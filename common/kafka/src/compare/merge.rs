//! Two logs side by side, batch after batch.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::doubts::Doubts;
use super::entry::{Entry, Kind};
use super::loose::{Behind, Loose, Meeting};
use super::original::Original;
use super::reader::Reader;
use super::{CompareError, CompareOptions, Comparison, Difference, DifferenceKind, Extent, LogPair, Passed, Side};
use crate::records::RecordSum;

/// Batches of open transactions that are remembered until it is known how they ended; more are told at once.
const MAX_PENDING: usize = 10_000;

pub(super) struct Merge<'a> {
    pair: &'a LogPair,
    options: CompareOptions,
    passed: Passed<'a>,
    pub(super) found: Comparison,
    /// The source's batch that gaps were found in, by its base offset.
    covered: Option<i64>,
    /// Whether something was said of what the mirror has beyond its source.
    beyond: bool,
    source_end: i64,
    /// Batches that gaps stand for, by producer, until their transaction ends.
    pending: HashMap<i64, Vec<Range<i64>>>,
    pending_count: usize,
    /// First offset that is compared.
    start: i64,
    /// Offsets that each log has been read to.
    read: [i64; 2],
    /// Where batches are not cut alike.
    loose: Loose,
    /// What only the source has of a compacted topic.
    doubts: Doubts,
}

/// Which log goes on after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Both,
    Source,
    Mirror,
    Neither,
}

impl<'a> Merge<'a> {
    pub(super) fn new(pair: &'a LogPair, options: CompareOptions, passed: Passed<'a>) -> Self {
        let found = Comparison::default();
        let pending = HashMap::new();
        let (covered, beyond, source_end, pending_count) = (None, false, i64::MAX, 0);
        let (start, read, loose) = (0, [0; 2], Loose::default());
        let doubts = Doubts::default();
        Self {
            pair,
            options,
            passed,
            found,
            covered,
            beyond,
            source_end,
            pending,
            pending_count,
            start,
            read,
            loose,
            doubts,
        }
    }

    pub(super) async fn compare(
        mut self,
        mut source: Original<'_>,
        ours: Range<i64>,
        mut mirror: Reader<'_>,
        theirs: Range<i64>,
    ) -> Result<Comparison, CompareError> {
        let reads_on = matches!(source, Original::Log(_));
        let (shared, end) = self.bounds(ours, theirs);
        let mirror_end = if reads_on { end } else { shared.end };
        let whole = shared.start..mirror_end;
        let windows = match &self.pair.extent {
            Extent::Whole | Extent::Offsets(_) => std::slice::from_ref(&whole),
            Extent::Windows(windows) => windows.as_slice(),
        };
        for window in windows {
            let window = within(window, &whole);
            self.begin(window.start);
            source.seek(within(&window, &shared));
            mirror.seek(window);
            if !self.run(&mut source, &mut mirror).await? {
                break;
            }
        }
        self.settle_rest();
        self.read_on(&mut mirror, whole.end).await?;
        self.tell_doubts();
        if reads_on && end > shared.end && !self.beyond {
            self.note(shared.end, DifferenceKind::End { source: shared.end, mirror: end });
        }
        if let Original::Log(reader) = &source {
            self.found.reads[0] = reader.reads();
        }
        self.found.reads[1] = mirror.reads();
        Ok(self.found)
    }

    /// What the mirror's cleaner took, it took for a record that was there before we came by, but maybe beyond the end that we
    /// were to read to.
    async fn read_on(&mut self, mirror: &mut Reader<'_>, from: i64) -> Result<(), CompareError> {
        if self.doubts.is_empty() || matches!(self.pair.extent, Extent::Windows(_)) {
            return Ok(());
        }
        let end = mirror.extent().await?.end;
        mirror.seek(from..end.max(from));
        while let Some(Ok(entry)) = mirror.peek().await? {
            let entry = entry.clone();
            self.see(&entry);
            if self.doubts.is_empty() {
                break;
            }
            mirror.pass();
        }
        Ok(())
    }

    /// Nothing more will be seen of the mirror.
    fn tell_doubts(&mut self) {
        let windows = matches!(self.pair.extent, Extent::Windows(_));
        let rest = self.doubts.take();
        if windows {
            self.found.undecided += rest.offsets.len() as u64 + rest.between;
        } else {
            for offset in rest.offsets {
                self.note(offset, DifferenceKind::Missing);
            }
            self.found.difference_count += rest.between;
        }
        if let Some((offset, records)) = rest.beyond {
            self.found.undecided += records;
            if !windows {
                self.note(offset, DifferenceKind::Undecided { records });
            }
        }
    }

    /// A batch of the mirror, which may be why it lacks earlier records.
    fn see(&mut self, theirs: &Entry) {
        if self.doubts.is_empty() || theirs.is_control() {
            return;
        }
        for sum in theirs.sums().into_iter().flatten().map_while(Result::ok) {
            self.see_record(sum);
        }
    }

    fn see_record(&mut self, sum: RecordSum) {
        if let Some(key) = sum.key {
            self.found.cleaned[1] += self.doubts.see(key, sum.offset);
        }
    }

    /// A record of a compacted topic that the mirror does not have. Its cleaner takes those without a key, and deletions
    /// after a while; else only what a later record replaces, such as one of those deletions.
    fn doubt(&mut self, sum: RecordSum, transaction: Option<i64>) {
        self.found.cleaned[1] += match sum.key {
            Some(key) if sum.tombstone => 1 + self.doubts.delete(key, sum.offset, transaction),
            Some(key) => {
                self.doubts.add(key, sum.offset, transaction);
                0
            }
            None => 1,
        };
    }

    fn begin(&mut self, offset: i64) {
        self.start = offset;
        self.read = [offset; 2];
        self.loose.begin(offset);
    }

    /// What both logs have of the extent and where the mirror ends; differences for what only one has. A mirror that is
    /// longer is not told here: its batches are.
    pub(super) fn bounds(&mut self, source: Range<i64>, mirror: Range<i64>) -> (Range<i64>, i64) {
        let wanted = match &self.pair.extent {
            Extent::Whole | Extent::Windows(_) => 0..i64::MAX,
            Extent::Offsets(range) => range.clone(),
        };
        let (source, mirror) = (within(&source, &wanted), within(&mirror, &wanted));
        if source.start != mirror.start {
            self.note(source.start, DifferenceKind::Start { source: source.start, mirror: mirror.start });
        }
        if source.end > mirror.end {
            self.note(source.end, DifferenceKind::End { source: source.end, mirror: mirror.end });
        }
        self.source_end = source.end;
        let start = source.start.max(mirror.start);
        let end = source.end.min(mirror.end).max(start);
        (start..end, mirror.end.max(end))
    }

    /// Whether both could be read to their ends.
    async fn run(&mut self, source: &mut Original<'_>, mirror: &mut Reader<'_>) -> Result<bool, CompareError> {
        let mut told = mirror.position();
        loop {
            let at = (source.position(), mirror.position());
            let mirrored = async { mirror.peek().await.map_err(CompareError::from) };
            let (ours, theirs) = tokio::try_join!(source.peek(), mirrored)?;
            let step = match (ours, theirs) {
                (None, None) if self.loose.behind().is_none() => {
                    (self.passed)(u64::try_from(mirror.position() - told).unwrap_or(0));
                    return Ok(true);
                }
                (Some(Err(error)), _) => {
                    self.note(at.0, DifferenceKind::Unreadable { side: Side::Source, error });
                    return Ok(false);
                }
                (_, Some(Err(error))) => {
                    self.note(at.1, DifferenceKind::Unreadable { side: Side::Mirror, error });
                    return Ok(false);
                }
                (ours, theirs) => self.step(ours.and_then(Result::ok), theirs.and_then(Result::ok)),
            };
            if matches!(step, Step::Both | Step::Source) {
                source.pass();
            }
            if matches!(step, Step::Both | Step::Mirror) {
                mirror.pass();
                (self.passed)(u64::try_from(mirror.position() - told).unwrap_or(0));
                told = mirror.position();
            }
        }
    }

    /// As [`Merge::run`], of batches at hand.
    #[cfg(test)]
    pub(super) fn walk(&mut self, mut ours: &[Entry], mut theirs: &[Entry]) {
        loop {
            if ours.is_empty() && theirs.is_empty() && self.loose.behind().is_none() {
                break;
            }
            let step = self.step(ours.first(), theirs.first());
            ours = &ours[usize::from(matches!(step, Step::Both | Step::Source))..];
            theirs = &theirs[usize::from(matches!(step, Step::Both | Step::Mirror))..];
        }
        self.settle_rest();
        self.tell_doubts();
    }

    /// One step on, with the next batch of each log.
    fn step(&mut self, ours: Option<&Entry>, theirs: Option<&Entry>) -> Step {
        let mut loosely = true;
        let step = match (self.loose.behind(), ours, theirs) {
            (Some(behind), ..) => self.loosely(behind, ours, theirs),
            (None, Some(ours), Some(theirs)) if self.not_cut_alike(ours, theirs) => {
                self.loose.begin(self.read[0].max(self.read[1]).min(ours.base_offset.min(theirs.base_offset)));
                let first = if ours.base_offset <= theirs.base_offset { Behind::Source } else { Behind::Mirror };
                self.loosely(first, Some(ours), Some(theirs))
            }
            (None, ours, theirs) => {
                loosely = false;
                match (ours, theirs) {
                    (Some(ours), Some(theirs)) => self.both(ours, theirs),
                    (Some(ours), None) => self.missing(ours, None),
                    (None, Some(theirs)) => self.extra(theirs, None),
                    (None, None) => Step::Neither,
                }
            }
        };
        if let Some(theirs) = theirs.filter(|_| !loosely && matches!(step, Step::Both | Step::Mirror)) {
            self.see(theirs);
        }
        for (at, (entry, of)) in [(ours, Step::Source), (theirs, Step::Mirror)].into_iter().enumerate() {
            if let Some(entry) = entry.filter(|_| step == Step::Both || step == of)
                && let Some(read) = self.read.get_mut(at)
            {
                *read = entry.next_offset();
            }
        }
        step
    }

    /// Whether the two are to be compared record by record: they overlap, are no equal batches, and one is as compaction,
    /// re-encoding or the log's start leave it.
    fn not_cut_alike(&self, ours: &Entry, theirs: &Entry) -> bool {
        let overlap = ours.base_offset <= theirs.last_offset && theirs.base_offset <= ours.last_offset;
        let foreign = !self.is_gap(theirs) && self.is_foreign(theirs);
        let records = ours.batch.is_some() && !ours.is_control() && !foreign;
        let unfit = ours.is_unfit(self.start) || theirs.is_unfit(self.start);
        overlap && records && unfit && !(same_place(ours, theirs) && ours.same_content(theirs))
    }

    /// Reads the log that is behind on by a batch, or to where the other one was read to if it has none before that.
    fn loosely(&mut self, behind: Behind, ours: Option<&Entry>, theirs: Option<&Entry>) -> Step {
        let next = match behind {
            Behind::Source => ours,
            Behind::Mirror => theirs,
        };
        let first = self.loose.behind().is_none();
        let step = if let Some(next) = next.filter(|next| first || self.loose.reaches(next.base_offset)) {
            self.take(behind, next);
            if behind == Behind::Source { Step::Source } else { Step::Mirror }
        } else {
            self.loose.pass(behind);
            Step::Neither
        };
        while let Some(meeting) = self.loose.meet() {
            self.meet(&meeting);
        }
        step
    }

    fn take(&mut self, of: Behind, entry: &Entry) {
        let marker = of == Behind::Mirror && self.is_gap(entry);
        if !self.loose.take(of, entry, self.start, marker) {
            self.note_corrupt(of, entry.base_offset);
        }
        if of == Behind::Mirror {
            return;
        }
        if entry.is_control() {
            self.settle(entry);
        } else {
            self.found.bytes += u64::from(entry.bytes);
            self.found.remade += 1;
        }
    }

    fn note_corrupt(&mut self, of: Behind, offset: i64) {
        let side = if of == Behind::Source { Side::Source } else { Side::Mirror };
        self.note(offset, DifferenceKind::Corrupt { side });
    }

    fn meet(&mut self, meeting: &Meeting) {
        match *meeting {
            Meeting::Equal(sum) => {
                self.see_record(sum);
                self.found.records += 1;
            }
            Meeting::Different { source, mirror } => {
                self.see_record(mirror);
                let offset = mirror.offset;
                self.note(offset, DifferenceKind::Changed { source: (offset, source), mirror: (offset, mirror.crc) });
            }
            Meeting::Covered(batch) => {
                self.found.gaps += 1;
                self.cover(batch.transaction, batch.base_offset..batch.last_offset);
            }
            Meeting::OursOnly(sum, batch) if self.options.compacted => self.doubt(sum, batch.transaction),
            Meeting::OursOnly(sum, _) => self.note(sum.offset, DifferenceKind::Missing),
            Meeting::TheirsOnly(sum) => {
                self.see_record(sum);
                self.found.cleaned[0] += 1;
            }
            Meeting::Gap => self.found.gaps += 1,
            Meeting::Unreadable(of, batch) => self.note_corrupt(of, batch.base_offset),
        }
    }

    pub(super) fn both(&mut self, ours: &Entry, theirs: &Entry) -> Step {
        if self.is_gap(theirs) {
            return self.gap(ours, theirs);
        }
        for (side, batch) in [(Side::Source, ours), (Side::Mirror, theirs)] {
            if !batch.sound {
                self.note(batch.base_offset, DifferenceKind::Corrupt { side });
            }
        }
        let same_place = same_place(ours, theirs);
        let same_content = ours.same_content(theirs);
        if same_content && same_place {
            self.found.batches += 1;
            self.found.records += u64::try_from(ours.records).unwrap_or(0);
            self.found.bytes += u64::from(ours.bytes);
            Step::Both
        } else if same_content {
            self.note(ours.base_offset, DifferenceKind::Shifted { mirror: theirs.base_offset });
            Step::Both
        } else if ours.base_offset == theirs.base_offset {
            self.changed(ours, theirs);
            Step::Both
        } else if ours.base_offset < theirs.base_offset {
            self.missing(ours, Some(theirs))
        } else {
            self.extra(theirs, Some(ours))
        }
    }

    fn is_gap(&self, theirs: &Entry) -> bool {
        theirs.is_control() && self.options.writer == Some(theirs.producer_id)
    }

    fn is_foreign(&self, theirs: &Entry) -> bool {
        self.options.writer.is_some_and(|writer| writer != theirs.producer_id)
    }

    /// A gap stands for what no consumer of committed records sees: nothing, a control record, an aborted record.
    fn gap(&mut self, ours: &Entry, theirs: &Entry) -> Step {
        if theirs.base_offset > ours.last_offset {
            return self.missing(ours, Some(theirs));
        }
        self.found.gaps += u64::try_from(theirs.next_offset() - theirs.base_offset).unwrap_or(0);
        if theirs.last_offset < ours.base_offset {
            return Step::Mirror;
        }
        if ours.is_control() {
            self.settle(ours);
            return Step::Both;
        }
        if ours.records > 0 {
            let transaction = ours.is_transactional().then_some(ours.producer_id);
            self.cover(transaction, ours.base_offset..ours.last_offset);
        }
        Step::Mirror
    }

    /// Records of a batch of the source have a gap in their place, which is told once.
    fn cover(&mut self, transaction: Option<i64>, batch: Range<i64>) {
        if self.covered == Some(batch.start) {
            return;
        }
        self.covered = Some(batch.start);
        match transaction {
            Some(producer_id) if self.pending_count < MAX_PENDING => {
                self.pending_count += 1;
                self.pending.entry(producer_id).or_default().push(batch);
            }
            Some(_) | None => self.note(batch.start, DifferenceKind::Covered { last: batch.end }),
        }
    }

    /// A transaction of the source ended: what was aborted may be a gap, what was committed may not.
    fn settle(&mut self, marker: &Entry) {
        let covered = self.pending.remove(&marker.producer_id).unwrap_or_default();
        self.pending_count -= covered.len();
        self.found.cleaned[1] += self.doubts.settle(marker.producer_id, marker.kind == Kind::Abort);
        if marker.kind != Kind::Abort {
            for batch in covered {
                self.note(batch.start, DifferenceKind::Covered { last: batch.end });
            }
        }
    }

    fn settle_rest(&mut self) {
        let mut rest: Vec<_> = self.pending.drain().flat_map(|(_, covered)| covered).collect();
        rest.sort_by_key(|batch| batch.start);
        for batch in rest {
            self.note(batch.start, DifferenceKind::Covered { last: batch.end });
        }
    }

    /// The mirror's next batch is `theirs`.
    fn missing(&mut self, ours: &Entry, theirs: Option<&Entry>) -> Step {
        let next = theirs.map_or(i64::MAX, |theirs| theirs.base_offset);
        let is_hole = self.read[1] <= ours.base_offset && ours.last_offset < next;
        if ours.is_control() {
            self.settle(ours);
        }
        let sums = if self.options.compacted && is_hole && !ours.is_control() { ours.sums() } else { None };
        if let Some(sums) = sums {
            let transaction = ours.is_transactional().then_some(ours.producer_id);
            for sum in sums {
                match sum {
                    Ok(sum) => self.doubt(sum, transaction),
                    Err(_) => self.note(ours.base_offset, DifferenceKind::Corrupt { side: Side::Source }),
                }
            }
        } else if self.options.compacted && is_hole && ours.is_control() {
            // Gone with the transaction's records.
        } else if self.covered != Some(ours.base_offset) && ours.records > 0 {
            self.note(ours.base_offset, DifferenceKind::Missing);
        }
        Step::Source
    }

    /// The source's next batch is `ours`.
    fn extra(&mut self, theirs: &Entry, ours: Option<&Entry>) -> Step {
        self.beyond |= theirs.last_offset >= self.source_end;
        let is_hole =
            self.read[0] <= theirs.base_offset && ours.is_some_and(|ours| theirs.last_offset < ours.base_offset);
        if self.is_gap(theirs) {
            self.found.gaps += u64::try_from(theirs.next_offset() - theirs.base_offset).unwrap_or(0);
        } else if self.is_foreign(theirs) {
            self.note(theirs.base_offset, foreign(theirs));
        } else if is_hole && !theirs.is_control() {
            self.found.cleaned[0] += u64::try_from(theirs.records).unwrap_or(0);
        } else {
            self.note(theirs.base_offset, DifferenceKind::Extra);
        }
        Step::Mirror
    }

    fn changed(&mut self, ours: &Entry, theirs: &Entry) {
        self.beyond |= theirs.last_offset >= self.source_end;
        let kind = if self.is_foreign(theirs) {
            foreign(theirs)
        } else {
            DifferenceKind::Changed {
                source: (ours.last_offset, ours.canonical_crc),
                mirror: (theirs.last_offset, theirs.canonical_crc),
            }
        };
        self.note(ours.base_offset, kind);
    }

    pub(super) fn note(&mut self, offset: i64, kind: DifferenceKind) {
        let (source, partition) = (Arc::clone(&self.pair.source), self.pair.partition);
        let difference = Difference { source, partition, offset, kind };
        self.found.difference_count += 1;
        self.found.extent_count += u64::from(difference.is_extent());
        self.found.foreign_count += u64::from(matches!(difference.kind, DifferenceKind::Foreign { .. }));
        if self.found.differences.len() < self.options.max_differences {
            self.found.differences.push(difference);
        }
    }
}

fn same_place(ours: &Entry, theirs: &Entry) -> bool {
    (ours.base_offset, ours.last_offset) == (theirs.base_offset, theirs.last_offset)
}

fn foreign(theirs: &Entry) -> DifferenceKind {
    DifferenceKind::Foreign { last: theirs.last_offset, producer_id: theirs.producer_id }
}

/// The part of `range` that lies in `limits`; empty where none does.
fn within(range: &Range<i64>, limits: &Range<i64>) -> Range<i64> {
    let last = limits.end.max(limits.start);
    range.start.clamp(limits.start, last)..range.end.clamp(limits.start, last)
}
