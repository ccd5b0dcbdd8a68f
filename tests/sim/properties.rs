//! What must hold at every moment, and what must have been seen at least once.
//!
//! Judged by what only the simulation knows: both logs whole, what each batch was meant for, which faults were injected.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_proto::cloud::OnLoss;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::Offset;

use crate::broker::{Refusal, Stored};
use crate::cloud::{Entry, Reason};
use crate::kept::Kept;
use crate::plan::{OddBatch, Plan};
use crate::source::{History, Mark};
use crate::world::{Place, World, source_topic};

/// The promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// I1, I3, I7: the mirror is a prefix of the source, batch for batch and gap for gap, at every append. It holds nothing
    /// only where the source has no committed record, or the ledger says that it is lost.
    Prefix,
    /// A mirror is made to start where its source does, not beyond, and shows nothing of how.
    Start,
    /// The ledger says what is true.
    Ledger,
    /// I2: what is confirmed is behind the high watermark.
    Confirmed,
    /// I3: nothing is sent behind a batch that ended up elsewhere.
    BaseOffset,
    /// I5: no older term appends after a newer one did.
    Term,
    /// I8: memory stays within its budgets.
    Budget,
    /// I4: what the journal said is durable is there until the cloud has it, or the mirror is FAILED.
    Kept,
    /// In the dark the journal takes what the source has, while it can.
    Dark,
    /// Both ends are ours: neither breaks the protocol.
    Protocol,
    /// I11: a mirror is FAILED only for a reason that was given it.
    FailStop,
    /// I11: the failure tells what was done to the mirror, and how far.
    Extent,
    /// I10: when all is well again, everything becomes equal, or FAILED where it has to be.
    Liveness,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) text: String,
}

/// Things that some seed among the default ones must have met, or the simulation does not test what it says.
pub(crate) const SOMETIMES: [&str; 76] = [
    "gap limit reached",
    "skip",
    "skip in doubt",
    "skip of more than one request",
    "markers half done",
    "late markers applied",
    "stray marker within the gap",
    "marker-only producer entry",
    "waited for markers in doubt",
    "gap taken up within",
    "source starts above the position",
    "fast-forward",
    "fast-forward killed half way",
    "started where the source does",
    "loss skipped",
    "compacted at the source",
    "duplicate answered",
    "sequence refused",
    "too few replicas",
    "not leader",
    "produce timed out",
    "late request applied",
    "producer forgotten",
    "sequence wrapped",
    "sequence of an unknown producer",
    "rewound",
    "confirmed records lost",
    "unconfirmed records lost",
    "lease refused",
    "superseded",
    "waited for lease and settle time",
    "waited for a dead connection's requests",
    "not sent on a new connection",
    "term read back",
    "term taken by another",
    "others equal beside a stalled partition",
    "went on from the window",
    "fetched again",
    "tail compared from memory",
    "tail compared from the source",
    "no tail to compare",
    "tail found different",
    "unverified",
    "fetch throttled",
    "foreign write found",
    "source truncation found",
    "lost at the source",
    "odd batch found",
    "credit nearly used up",
    "window nearly full",
    "mirror made by a filter",
    "spilled",
    "drained",
    "journal full",
    "failed write found later",
    "journal opened anew",
    "damage found",
    "read below the journal",
    "found what was never answered",
    "power cut with unsynced data",
    "old backup restored",
    "disk lost",
    "lost with the disk",
    "tail compared from the journal",
    "dark restart",
    "rewound into the journal",
    "rewound below the journal",
    "deleted at the source what only the journal had",
    "topic made anew",
    "topic made anew in the dark",
    "old topic shipped to the old mirror",
    "old mirror failed for the new topic",
    "new topic adopted by a new mirror",
    "new topic in the dark",
    "kept up in the long dark",
    "producer forgotten in the dark",
];

/// Reads of the journal that the agent has under way at most; each brings a frame, however large.
const MAX_LOADS: usize = 4;

#[derive(Debug, Default)]
struct GhostPlace {
    /// Histories of the source that the mirror is a prefix of.
    agrees: Vec<bool>,
    /// Offsets that somebody else's records took.
    foreign: Option<(Offset, Offset)>,
    newest_term: u64,
    /// Highest the high watermark ever was.
    highest: Offset,
    lost_tails: u32,
    /// Highest offset the agent was told, less what was lost since.
    confirmed: Offset,
    fetched_to: Offset,
    /// Sessions that were told a base offset which was not the one they wanted.
    mismatched: BTreeSet<u64>,
}

/// The judge.
#[derive(Debug, Default)]
pub(crate) struct Ghost {
    pub(crate) violation: Option<Violation>,
    pub(crate) counters: BTreeMap<&'static str, u64>,
    places: BTreeMap<Place, GhostPlace>,
    /// What the journal owes.
    pub(crate) kept: Kept,
    /// Topics whose mirror was made anew after they were.
    remade_mirrors: BTreeSet<usize>,
    /// Partitions that were placed with nothing left to compare.
    unverified: BTreeSet<Place>,
    /// Failures that a topic may end with, for what was done to it.
    excused: BTreeMap<usize, BTreeSet<FailureCode>>,
}

impl Ghost {
    pub(crate) fn add(&mut self, place: Place, begin: Offset) {
        let ghost = GhostPlace { agrees: vec![true], highest: begin, confirmed: begin, ..GhostPlace::default() };
        self.places.insert(place, ghost);
    }

    /// The mirror was deleted, and will be made anew.
    pub(crate) fn mirror_remade(&mut self, place: Place) {
        self.places.remove(&place);
        self.add(place, 0);
        self.kept.forget(place);
        self.remade_mirrors.insert(place.0);
    }

    pub(crate) fn placed_unverified(&mut self, place: Place) {
        self.unverified.insert(place);
    }

    pub(crate) fn mirror_is_remade(&self, topic: usize) -> bool {
        self.remade_mirrors.contains(&topic)
    }

    /// A gateway told the agent where a mirror ends.
    pub(crate) fn told(&mut self, place: Place, offset: Offset) {
        self.kept.told(place, offset);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        debug_assert!(SOMETIMES.contains(&what), "{what} is not awaited");
        *self.counters.entry(what).or_default() += 1;
    }

    pub(crate) fn violated(&mut self, rule: Rule, text: String) {
        self.violation.get_or_insert(Violation { rule, text });
    }

    pub(crate) fn excuse(&mut self, topic: usize, codes: &[FailureCode]) {
        self.excused.entry(topic).or_default().extend(codes);
    }

    pub(crate) fn is_excused(&self, topic: usize) -> bool {
        self.excused.contains_key(&topic)
    }

    pub(crate) fn refused(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::OutOfOrderSequence => self.count("sequence refused"),
            Refusal::NotEnoughReplicas => self.count("too few replicas"),
            Refusal::InvalidRecord
            | Refusal::CorruptMessage
            | Refusal::MessageTooLarge
            | Refusal::OffsetOutOfRange
            // Only a lease that does not hold lets a marker of an older term come after one of a newer.
            | Refusal::CoordinatorFenced
            | Refusal::InvalidProducerEpoch => {}
        }
    }

    fn place(&mut self, place: Place) -> &mut GhostPlace {
        self.places.entry(place).or_default()
    }

    pub(crate) fn mismatched(&mut self, session: u64, place: Place) {
        self.place(place).mismatched.insert(session);
    }

    pub(crate) fn is_mismatched(&mut self, session: u64, place: Place) -> bool {
        self.place(place).mismatched.contains(&session)
    }

    pub(crate) fn fetched(&mut self, place: Place, to: Offset) {
        let ghost = self.place(place);
        ghost.fetched_to = ghost.fetched_to.max(to);
    }

    pub(crate) fn fetched_beyond(&mut self, place: Place, offset: Offset) -> bool {
        self.place(place).fetched_to > offset
    }

    /// Offset below which the agent was told that all is safe, and it still is.
    pub(crate) fn confirmed(&mut self, place: Place) -> Offset {
        self.place(place).confirmed
    }

    pub(crate) fn has_foreign(&mut self, place: Place) -> bool {
        self.place(place).foreign.is_some()
    }
}

fn mark_of(stored: &Stored) -> Mark {
    let (base_offset, next_offset) = (stored.batch.base_offset(), stored.batch.next_offset());
    Mark { base_offset, next_offset, crc: stored.crc }
}

impl World {
    /// The broker appended a batch.
    pub(crate) fn appended(&mut self, place: Place, unknown_producer: bool) {
        let (Some(hosted), Some(source)) = (self.cluster.partitions.get(&place), self.source.get(&place)) else {
            return;
        };
        let Some(stored) = hosted.log.batches().last() else { return };
        let batch = &stored.batch;
        let ghost = self.ghost.places.entry(place).or_default();
        let Some(intent) = stored.intent else {
            let start = ghost.foreign.map_or_else(|| batch.base_offset(), |(start, _)| start);
            ghost.foreign = Some((start, batch.next_offset()));
            return;
        };
        if unknown_producer {
            *self.ghost.counters.entry("sequence of an unknown producer").or_default() += 1;
        }
        if i64::from(batch.base_sequence()) + i64::from(batch.last_offset_delta()) >= i64::from(i32::MAX) {
            *self.ghost.counters.entry("sequence wrapped").or_default() += 1;
        }
        let (mark, intent_term) = (mark_of(stored), intent.term.0);
        let agrees: Vec<bool> =
            source.histories().iter().map(|history| self.may_hold(place, history, stored)).collect();
        let is_data = !stored.is_marker() && !stored.is_filler();
        let ghost = self.ghost.places.entry(place).or_default();
        for (so_far, agrees) in ghost.agrees.iter_mut().zip(agrees) {
            *so_far &= agrees;
        }
        let newest = ghost.newest_term;
        ghost.newest_term = newest.max(intent.term.0);
        // Behind a foreign write, what is in flight ends up elsewhere; the answer tells.
        let shifted = ghost.foreign.is_some();
        let prefix = ghost.agrees.contains(&true);
        let is_new = ghost.agrees.last() == Some(&true);
        // A transaction that had to end again is what it was, by now.
        let misfits = if prefix { Vec::new() } else { self.first_misfits(place) };
        if !prefix && misfits.contains(&None) {
            return self.judge_anew(place);
        }
        let is_blind = self.is_blind(place);
        if !prefix && !shifted && is_blind {
            self.trace(|| format!("another topic's records behind an unverified tail at {place:?}"));
        } else if !prefix && !shifted {
            let text = format!(
                "{place:?}: {mark:?} meant for {intent:?} is not what the source holds there; misfits {misfits:?}"
            );
            self.ghost.violated(Rule::Prefix, text);
        }
        if self.remade.contains_key(&place.0) && prefix && is_data {
            let adopted = is_new && self.ghost.mirror_is_remade(place.0);
            self.ghost.count(if adopted {
                "new topic adopted by a new mirror"
            } else {
                "old topic shipped to the old mirror"
            });
        }
        if intent_term < newest {
            let text = format!("{place:?}: {intent:?} appends {mark:?} after term {newest} did");
            self.ghost.violated(Rule::Term, text);
        }
    }

    /// Whether a mirror may hold a batch, if its source's log is that one.
    fn may_hold(&self, place: Place, history: &History, stored: &Stored) -> bool {
        let (first, next) = (stored.batch.base_offset(), stored.batch.next_offset());
        if stored.is_marker() {
            history.is_nothing(first) || self.registry.covers(place, Reason::Loss, (first, next))
        } else if stored.is_filler() {
            self.registry.covers(place, Reason::Start, (first, next))
        } else {
            history.has(mark_of(stored))
        }
    }

    /// Whether nobody could have seen that the source's log is another: the disk is lost, and the topic made anew after
    /// retention went over all that the two had in common (only the topic's id would tell, and the cloud does not keep it
    /// yet), or its end written anew and compacted to less than the mirror has. The status says "unverified".
    fn is_blind(&self, place: Place) -> bool {
        let is_another = self.source.get(&place).is_some_and(|source| source.histories().len() > 1);
        let compacted = self.plan.topics.get(&place.0).is_some_and(|topic| topic.compacted);
        let is_other = self.remade.contains_key(&place.0) || (is_another && compacted);
        is_other && self.ghost.unverified.contains(&place)
    }

    /// Of each history of the source, the first batch or marker of the mirror that it does not hold.
    fn first_misfits(&self, place: Place) -> Vec<Option<Mark>> {
        let (Some(hosted), Some(source)) = (self.cluster.partitions.get(&place), self.source.get(&place)) else {
            return Vec::new();
        };
        let misfit = |history| {
            let found = hosted.log.batches().iter().find(|stored| !self.may_hold(place, history, stored));
            found.map(mark_of)
        };
        source.histories().iter().map(misfit).collect()
    }

    /// The log of a mirror's partition begins elsewhere.
    pub(crate) fn judge_start(&mut self, place: Place, before: &[Stored]) {
        let (Some(hosted), Some(source)) = (self.cluster.partitions.get(&place), self.source.get(&place)) else {
            return;
        };
        let (start, at_source) = (hosted.log.log_start(), source.log_start());
        let deleted = before.iter().find(|stored| {
            let is_filler = stored.is_filler() || stored.is_marker();
            stored.batch.base_offset() < start && !is_filler
        });
        // Of a topic made anew, the old start is of another log.
        let beyond = start > at_source && !self.remade.contains_key(&place.0);
        if beyond || deleted.is_some() {
            let text = format!("{place:?} begins at {start}, its source at {at_source}; deleted: {deleted:?}");
            self.ghost.violated(Rule::Start, text);
        }
    }

    /// The agent is told where a mirror ends, and consumers may read up to there.
    pub(crate) fn judge_position(&mut self, place: Place) {
        let Some(hosted) = self.cluster.partitions.get(&place) else { return };
        let shown = hosted.log.batches().iter().find(|stored| stored.is_filler());
        if let Some(shown) = shown {
            let text = format!("{place:?} shows filler: {shown:?}");
            self.ghost.violated(Rule::Start, text);
        }
    }

    /// A line was written into a partition's ledger.
    pub(crate) fn judge_ledger(&mut self, place: Place, entry: Entry) {
        let Some(source) = self.source.get(&place) else { return };
        let at_source = source.log_start();
        // Of a topic made anew, the old start is of another log.
        if entry.to > at_source && !self.remade.contains_key(&place.0) {
            let text = format!("{place:?}: {entry:?}, but the source has everything from {at_source} on");
            self.ghost.violated(Rule::Ledger, text);
        }
        if entry.reason == Reason::Start {
            return;
        }
        if self.ghost.kept.owes(place, (entry.from, entry.to)) {
            let text = format!("{place:?}: {entry:?}, but the journal has some of it");
            self.ghost.violated(Rule::Kept, text);
        }
        // What the cloud had and lost, a journal that was trimmed may show again after trouble with its disk.
        if self.ghost.place(place).lost_tails > 0 {
            self.ghost.excuse(place.0, &[FailureCode::Diverged]);
        }
    }

    /// The mirror's log was cut, below the high watermark if `lost`.
    pub(crate) fn truncated(&mut self, place: Place, end: Offset, lost: bool) {
        self.trace(|| format!("cluster: {place:?} cut at {end}, lost {lost}"));
        self.ghost.count(if lost { "confirmed records lost" } else { "unconfirmed records lost" });
        let gone = self.source.get(&place).is_some_and(|source| source.log_start() > end);
        let ghost = self.ghost.place(place);
        ghost.confirmed = ghost.confirmed.min(end);
        ghost.lost_tails += u32::from(lost);
        ghost.foreign = ghost.foreign.filter(|&(start, _)| start < end).map(|(start, next)| (start, next.min(end)));
        // What it had confirmed the source may have deleted, or delete before it is asked for it again.
        if gone || lost {
            self.ghost.excuse(place.0, &[FailureCode::SourceDataLost]);
        }
        self.judge_anew(place);
    }

    /// Compares the whole mirror with every history of its source.
    pub(crate) fn judge_anew(&mut self, place: Place) {
        let (Some(hosted), Some(source)) = (self.cluster.partitions.get(&place), self.source.get(&place)) else {
            return;
        };
        let agrees = source
            .histories()
            .iter()
            .map(|history| hosted.log.batches().iter().all(|stored| self.may_hold(place, history, stored)))
            .collect();
        self.ghost.place(place).agrees = agrees;
    }

    pub(crate) fn watermark_moved(&mut self, place: Place) {
        let Some(hosted) = self.cluster.partitions.get(&place) else {
            return;
        };
        let high_watermark = hosted.log.high_watermark();
        let ghost = self.ghost.place(place);
        ghost.highest = ghost.highest.max(high_watermark);
    }

    /// A gateway tells the agent that everything below `offset` is safe.
    pub(crate) fn confirms(&mut self, place: Place, offset: Offset) {
        let Some(hosted) = self.cluster.partitions.get(&place) else {
            return;
        };
        let high_watermark = hosted.log.high_watermark();
        let ghost = self.ghost.place(place);
        let (highest, lost) = (ghost.highest, ghost.lost_tails > 0);
        let bound = if lost { highest } else { high_watermark };
        ghost.confirmed = ghost.confirmed.max(offset.min(high_watermark));
        self.ghost.told(place, offset);
        if offset > bound {
            let text = format!("{place:?}: {offset} confirmed, high watermark {high_watermark}, ever {highest}");
            self.ghost.violated(Rule::Confirmed, text);
        }
    }

    /// A mirror is FAILED, found by either end.
    pub(crate) fn failed(&mut self, topic: usize, failure: &Failure) {
        self.trace(|| format!("topic {topic} FAILED: {failure}"));
        let excused = self.ghost.excused.get(&topic);
        if !excused.is_some_and(|codes| codes.contains(&failure.code)) {
            let text = format!("topic {topic}: {failure}, but only {excused:?} was injected");
            self.ghost.violated(Rule::FailStop, text);
            return;
        }
        let odd = self.plan.topics.get(&topic).and_then(|plan| plan.odd).map(OddBatch::code);
        match failure.code {
            FailureCode::ForeignWrite => self.judge_extent(topic, failure),
            FailureCode::SourceTopicIdChanged => self.ghost.count("old mirror failed for the new topic"),
            FailureCode::UnexpectedTruncation | FailureCode::Diverged => self.ghost.count("source truncation found"),
            FailureCode::SourceDataLost if self.plan.on_loss == OnLoss::Skip => {
                let text = format!("topic {topic}: {failure}, but losses are to be skipped");
                self.ghost.violated(Rule::FailStop, text);
            }
            FailureCode::SourceDataLost => self.ghost.count("lost at the source"),
            FailureCode::GapLimit => self.ghost.count("gap limit reached"),
            code if Some(code) == odd => self.ghost.count("odd batch found"),
            _ => {}
        }
    }

    fn judge_extent(&mut self, topic: usize, failure: &Failure) {
        self.ghost.count("foreign write found");
        let told = failure.offset.zip(failure.end_offset);
        let done = failure
            .partition
            .and_then(|partition| self.ghost.places.get(&(topic, partition)))
            .and_then(|ghost| ghost.foreign);
        // Written within a gap, it is taken for markers as far as the gap has room: what is told is by how much it has not.
        let overshoots =
            told.zip(done).is_some_and(|(told, done)| told.0 >= done.0 && told.1 - told.0 <= done.1 - done.0);
        if told != done && !overshoots {
            let text = format!("topic {topic}: {failure}, but {done:?} was written");
            self.ghost.violated(Rule::Extent, text);
        }
    }

    pub(crate) fn check_edge_budget(&mut self) {
        let status = self.agent.status();
        let fetching = self.source.len() * self.plan.fetch_bytes.max(self.plan.max_frame_bytes);
        let reading = if self.disk.is_some() { MAX_LOADS * self.plan.max_frame_bytes } else { 0 };
        let limit = self.plan.window_bytes;
        if status.window_bytes * 10 > limit * 9 {
            self.ghost.count("window nearly full");
        }
        if status.in_flight_bytes * 10 > status.credit_bytes * 9 && status.credit_bytes > 0 {
            self.ghost.count("credit nearly used up");
        }
        if status.window_bytes > limit + fetching + reading || status.in_flight_bytes > status.credit_bytes {
            let text = format!("window {limit}, fetching {fetching}: {status:?}");
            self.ghost.violated(Rule::Budget, text);
        }
    }

    pub(crate) fn check_cloud_budget(&mut self, held_bytes: usize) {
        if held_bytes > self.plan.credit_bytes {
            let text = format!("a gateway holds {held_bytes} bytes, credit is {}", self.plan.credit_bytes);
            self.ghost.violated(Rule::Budget, text);
        }
    }

    /// Sum of all offsets that the agent knows to be confirmed.
    pub(crate) fn confirmed_in_all(&self) -> Offset {
        let status = self.agent.status();
        let partitions = status.mirrors.iter().flat_map(|mirror| &mirror.partitions);
        partitions.filter_map(|partition| partition.confirmed).sum()
    }

    /// What is not as it must be in the end; `None` where all is.
    pub(crate) fn unfinished(&mut self) -> Option<String> {
        let places: Vec<_> = self.source.keys().copied().collect();
        let stalled = self.plan.stalled;
        places.into_iter().find_map(|place| {
            // What was read before the source failed goes to the cloud first, for as long as that takes.
            let waits = stalled.is_some_and(|stalled| stalled.0 == place.0 && self.ghost.is_excused(place.0));
            if Some(place) == stalled || waits || self.is_blind(place) || self.is_equal(place) {
                return None;
            }
            let excused = self.ghost.is_excused(place.0);
            let failed = self.mirror_is_failed(place.0);
            (!excused || !failed).then(|| self.describe(place))
        })
    }

    /// Whether a partition of a mirror holds exactly what its source holds, and the agent knows.
    pub(crate) fn is_equal(&mut self, place: Place) -> bool {
        let (Some(hosted), Some(source)) = (self.cluster.partitions.get(&place), self.source.get(&place)) else {
            return false;
        };
        let end = source.log_end();
        if hosted.log.log_end() != end || hosted.log.high_watermark() != end || self.ghost.has_foreign(place) {
            return false;
        }
        let told = self.agent.status().mirrors.iter().any(|mirror| {
            let partition = usize::try_from(place.1).ok().and_then(|at| mirror.partitions.get(at));
            mirror.topic == source_topic(place.0) && partition.is_some_and(|at| at.confirmed == Some(end))
        });
        let newest = source.histories().last();
        let all_are = |history| hosted.log.batches().iter().all(|stored| self.may_hold(place, history, stored));
        told && newest.is_some_and(all_are)
    }

    /// Whether both ends hold a mirror FAILED.
    pub(crate) fn mirror_is_failed(&self, topic: usize) -> bool {
        let name = source_topic(topic);
        let status = self.agent.status();
        let mirror = status.mirrors.iter().find(|mirror| mirror.topic == name);
        let at_edge = mirror.is_some_and(|mirror| mirror.state.name() == "FAILED");
        at_edge && self.gateways.iter().any(|gateway| gateway.holds_failed(topic))
    }

    fn describe(&self, place: Place) -> String {
        let source = self.source.get(&place).map(|source| (source.log_start(), source.log_end()));
        let mirror = self.cluster.partitions.get(&place).map(|hosted| {
            let log = &hosted.log;
            (log.log_end(), log.high_watermark(), hosted.leader, hosted.stalled)
        });
        let ghost = self.ghost.places.get(&place);
        format!(
            "{place:?} is neither equal nor FAILED: source {source:?}, mirror {mirror:?}, {ghost:?}, agent {:?}, gateways {} | {}",
            self.agent.status(),
            self.gateways.first().map(crate::cloud::Gateway::describe).unwrap_or_default(),
            self.gateways.get(1).map(crate::cloud::Gateway::describe).unwrap_or_default(),
        )
    }
}

impl Plan {
    /// Largest batch that the mirror of a topic takes.
    pub(crate) fn cloud_batch_bytes(&self, topic: usize) -> usize {
        let topic = self.topics.get(&topic);
        match topic.map(|topic| (topic.odd, topic.payload)) {
            Some((Some(OddBatch::TooLargeForCloud), payload)) => payload + 80,
            _ => 1 << 20,
        }
    }
}
