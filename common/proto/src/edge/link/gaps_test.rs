//! Any log of batches and gaps reaches its mirror whole and in order, whatever is cut where: reads, confirms, sessions,
//! processes, and a cloud that loses its end.

use proptest::collection::vec;
use proptest::prelude::*;

use super::site::*;
use super::*;
use crate::edge::{Checkpoint, OutgoingBody, Verdict};
use crate::frame::{Entry, FrameLimits, Packed};
use crate::id::Offset;
use crate::testing::BatchBuilder;
use crate::wire::TailBatch;

const LIMITS: FrameLimits = FrameLimits { max_bytes: 1 << 20 };

#[derive(Debug, Clone)]
enum Step {
    /// The source is read so far.
    Read(u8),
    Send,
    /// The cloud confirms this part of what it has.
    Confirm(u8),
    Pass(u8),
    /// A new session; the mirror has this part of what was sent and not confirmed.
    Session(u8),
    /// As a session, but the mirror has this part of all it ever had.
    Rewind(u8),
    /// The process is killed; it kept a checkpoint only if so.
    Kill(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let part = any::<u8>;
    prop_oneof![
        4 => part().prop_map(Step::Read),
        4 => Just(Step::Send),
        4 => part().prop_map(Step::Confirm),
        2 => (0_u8..60).prop_map(Step::Pass),
        2 => part().prop_map(Step::Session),
        1 => part().prop_map(Step::Rewind),
        1 => any::<bool>().prop_map(Step::Kill),
    ]
}

/// A log: batches of so many records, or gaps.
fn log(shape: &[(bool, u8)]) -> Vec<Entry> {
    let mut next = 0;
    let entries = shape.iter().map(|&(is_gap, size)| {
        let offset = next;
        let count = i32::from(size % 7) + 1;
        next += i64::from(count);
        if is_gap {
            Entry::Gap { offset, count: i64::from(count) }
        } else {
            Entry::Batch(BatchBuilder::new(offset).records(count).payload(usize::from(size) * 2).fill(size).build())
        }
    });
    entries.collect()
}

struct World {
    site: Site,
    source: Vec<Entry>,
    checkpoint: Checkpoint,
    /// The fetch that is on, and where it stands.
    fetch: Option<(u64, Offset)>,
    connected: bool,
    run: u32,
    /// Ends of what the mirror confirmed, and of what it was sent.
    confirmed: Offset,
    received: Offset,
    placed: bool,
}

impl World {
    fn new(source: Vec<Entry>) -> Self {
        let mut world = Self {
            site: Site::new(),
            source,
            checkpoint: Checkpoint::default(),
            fetch: None,
            connected: false,
            run: 0,
            confirmed: 0,
            received: 0,
            placed: false,
        };
        world.session(0);
        world
    }

    fn end(&self) -> Offset {
        self.source.last().map_or(0, Entry::next_offset)
    }

    /// The offset at this part of a range, moved down to where a batch begins.
    fn part(&self, part: u8, from: Offset, to: Offset) -> Offset {
        let offset = from + (to - from) * i64::from(part) / 255;
        let holds = |entry: &&Entry| entry.offset() <= offset && offset < entry.next_offset();
        match self.source.iter().find(holds) {
            Some(Entry::Batch(batch)) => batch.base_offset().max(from),
            Some(Entry::Gap { .. }) | None => offset,
        }
    }

    /// What the log holds of a range, its gaps clipped.
    fn stretch(&self, from: Offset, to: Offset) -> Vec<Entry> {
        let clip = |entry: &Entry| match entry {
            Entry::Gap { .. } => {
                let (first, next) = (entry.offset().max(from), entry.next_offset().min(to));
                (first < next).then_some(Entry::Gap { offset: first, count: next - first })
            }
            Entry::Batch(batch) => {
                (from <= batch.base_offset() && batch.next_offset() <= to).then(|| Entry::Batch(batch.clone()))
            }
        };
        self.source.iter().filter_map(clip).collect()
    }

    fn tail(&self, to: Offset) -> Vec<TailBatch> {
        let mut tail = Vec::new();
        for entry in self.stretch(0, to) {
            TailBatch::of_entry(&entry).append(&mut tail);
        }
        tail
    }

    fn take(&mut self, outputs: &[EdgeOutput]) {
        for output in outputs {
            match output {
                EdgeOutput::Fetch { fetch, offset, .. } => self.fetch = Some((*fetch, *offset)),
                EdgeOutput::StopFetch { .. } => self.fetch = None,
                EdgeOutput::CompareTail { ticket, tail, next_offset, .. } => {
                    assert_eq!(*tail, self.tail(*next_offset));
                    let (ticket, verdict) = (*ticket, Verdict::Agrees);
                    let input = EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict };
                    let outputs = self.site.feed(input);
                    self.take(&outputs);
                }
                EdgeOutput::Discard { .. } => self.site.journal.clear(),
                EdgeOutput::Send(EdgeMessage { body: Some(EdgeBody::Placed(placed)) }) => {
                    assert!(!placed.unverified);
                    self.placed = placed.run == self.run;
                }
                EdgeOutput::Trim { confirmed } => {
                    for (_, _, offset) in confirmed {
                        self.site.journal.retain(|packed| packed.next_offset > *offset);
                    }
                }
                EdgeOutput::Event(EdgeEvent::MirrorFailed { failure, .. }) => panic!("{failure}"),
                EdgeOutput::Close { reason, .. } => panic!("{reason}"),
                EdgeOutput::Send(_)
                | EdgeOutput::Discover { .. }
                | EdgeOutput::Watch { .. }
                | EdgeOutput::Forget { .. }
                | EdgeOutput::PauseFetch { .. }
                | EdgeOutput::ResumeFetch { .. }
                | EdgeOutput::Spill { .. }
                | EdgeOutput::Load { .. }
                | EdgeOutput::Event(_) => {}
            }
        }
    }

    fn session(&mut self, next_offset: Offset) {
        if self.connected {
            let outputs = self.site.feed(EdgeInput::Disconnected);
            self.take(&outputs);
        }
        self.connected = true;
        self.site.connect();
        self.run += 1;
        (self.confirmed, self.received, self.placed) = (next_offset, next_offset, false);
        let outputs = self.site.position(self.run, next_offset, self.tail(next_offset));
        self.take(&outputs);
    }

    fn read(&mut self, part: u8) {
        let Some((fetch, offset)) = self.fetch else { return };
        let to = self.part(part, offset, (offset + 40).min(self.end()));
        // Gaps come in pieces, as answers cut them.
        for entry in self.stretch(offset, to) {
            let next = entry.next_offset();
            let outputs = self.site.entries(fetch, vec![entry]);
            self.take(&outputs);
            if self.fetch.is_some_and(|(current, _)| current == fetch) {
                self.fetch = Some((fetch, next));
            }
        }
    }

    fn send(&mut self) {
        loop {
            while let Some(frame) = self.site.link.poll_frame() {
                let entries = match frame.body {
                    OutgoingBody::Entries(entries) => entries,
                    OutgoingBody::Packed(packed) => packed.unpack(LIMITS).expect("as encoded"),
                };
                for entry in entries {
                    let (first, next) = (entry.offset(), entry.next_offset());
                    assert!(first <= self.received, "{first} after {}", self.received);
                    if let Entry::Batch(_) = entry {
                        assert!(self.source.contains(&entry), "{entry:?}");
                    } else {
                        let ours = self.stretch(first, next);
                        assert!(ours.iter().all(|entry| matches!(entry, Entry::Gap { .. })), "{entry:?} {ours:?}");
                    }
                    self.received = self.received.max(next);
                }
            }
            self.site.poll();
            let Some((ticket, offset)) = self.site.loads.pop() else { return };
            // Nothing for a session that is over: its frames may have been discarded since.
            let from = self.site.journal.iter().position(|packed| packed.next_offset > offset);
            let frames = Some(from.map_or_else(Vec::new, |from| self.site.journal[from..=from].to_vec()));
            let outputs = self.site.feed(EdgeInput::Loaded { topic: topic(), partition: 0, ticket, frames });
            self.take(&outputs);
        }
    }

    fn confirm(&mut self, part: u8) {
        if self.placed {
            self.confirmed = self.part(part, self.confirmed, self.received);
            let outputs = self.site.confirm(self.run, self.confirmed);
            self.take(&outputs);
        }
    }

    fn kill(&mut self, keeps: bool) {
        let kept = self.site.link.take_checkpoint(true);
        if let Some(kept) = kept.filter(|_| keeps) {
            self.checkpoint = kept;
        }
        let journal = std::mem::take(&mut self.site.journal);
        self.site = Site::restored(self.checkpoint.clone(), journal);
        (self.fetch, self.connected) = (None, false);
        let outputs = self.site.found(1);
        self.take(&outputs);
    }

    fn take_step(&mut self, step: &Step) {
        match *step {
            Step::Read(part) => self.read(part),
            Step::Send => self.send(),
            Step::Confirm(part) => self.confirm(part),
            Step::Pass(tenths) => self.site.pass(Time::from_millis(u64::from(tenths) * 100)),
            Step::Session(part) => self.session(self.part(part, self.confirmed, self.received)),
            Step::Rewind(part) => self.session(self.part(part, 0, self.received)),
            Step::Kill(keeps) => {
                self.kill(keeps);
                self.session(self.confirmed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn any_log_reaches_its_mirror(
        shape in vec((any::<bool>(), any::<u8>()), 1..40),
        steps in vec(step(), 0..60),
    ) {
        let mut world = World::new(log(&shape));
        for step in &steps {
            world.take_step(step);
        }
        for _ in 0..200 {
            world.read(255);
            world.send();
            world.confirm(255);
        }
        prop_assert_eq!(world.confirmed, world.end());
        prop_assert_eq!(world.site.link.status().in_flight_bytes, 0);
    }
}

#[test]
fn gaps_go_to_the_journal_and_come_back() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    site.entries(fetch, vec![Entry::Batch(batch(0)), gap(2, 50), Entry::Batch(batch(50)), gap(52, 60)]);
    site.pass(DELAY);
    assert_eq!((site.status().journal, site.status().window_bytes), (Some((0, 60)), 0));
    site.entries(fetch, vec![gap(60, 62)]);
    site.connect();
    site.position(1, 0, Vec::new());
    assert_eq!(site.sent(), [(0, 60, true), (60, 62, false)]);
    site.confirm(1, 40);
    site.confirm(1, 62);
    assert_eq!((site.status().journal, site.status().window_bytes), (None, 0));
    site.feed(EdgeInput::Disconnected);
    site.connect();
    let outputs = site.position(1, 62, vec![TailBatch::of(&batch(50)), TailBatch::gap(52, 62)]);
    assert!(matches!(outputs[..], [EdgeOutput::Send(_), ..]), "known: {outputs:?}");
}

#[test]
fn a_mirror_that_ends_within_a_journaled_gap_goes_on_there() {
    let entries = [Entry::Batch(batch(0)), gap(2, 50), Entry::Batch(batch(50))];
    let mut site = Site::restored(checkpoint(0, Vec::new()), vec![Packed::new(&entries)]);
    site.found(1);
    site.connect();
    let end = vec![TailBatch::of(&batch(0)), TailBatch::gap(2, 20)];
    let outputs = site.position(1, 20, end);
    let ticket = outputs
        .iter()
        .find_map(|output| if let EdgeOutput::CompareTail { ticket, .. } = output { Some(*ticket) } else { None });
    let (ticket, verdict) = (ticket.expect("the journal is asked"), Verdict::Agrees);
    let outputs = site.feed(EdgeInput::TailCompared { topic: topic(), partition: 0, ticket, verdict });
    assert!(!discards(&outputs), "{outputs:?}");
    assert_eq!(site.sent(), [(0, 52, true)], "the gateway takes what it lacks");
    site.confirm(1, 52);
    let shipped = site.link.take_checkpoint(true).expect("changed").partitions.remove(0).shipped;
    assert_eq!(shipped.last(), Some(&TailBatch::of(&batch(50))));
}

#[test]
fn a_gap_of_which_the_cloud_has_a_part_is_written_from_there() {
    let (mut site, fetch) = live();
    site.entries(fetch, vec![gap(0, 50), Entry::Batch(batch(50))]);
    site.sent();
    site.confirm(1, 20);
    site.pass(DELAY + DELAY);
    assert_eq!(site.journal.iter().map(|packed| packed.first_offset).min(), Some(20), "and none is left out");
    assert_eq!(site.status().journal, Some((20, 52)));
    site.feed(EdgeInput::Disconnected);
    site.connect();
    site.position(2, 20, vec![TailBatch::gap(0, 20)]);
    assert_eq!(site.sent(), [(20, 52, true)]);
}

#[test]
fn a_gap_that_is_being_written_does_not_grow() {
    let (mut site, fetch) = live();
    site.feed(EdgeInput::Disconnected);
    site.entries(fetch, vec![gap(0, 10)]);
    site.now += DELAY;
    site.feed(EdgeInput::Timeout);
    assert!(site.waiting.is_some());
    site.entries(fetch, vec![gap(10, 20)]);
    site.keep(&Ok(()));
    assert_eq!(site.status().journal.map(|(first, _)| first), Some(0));
    site.pass(DELAY);
    assert_eq!((site.status().journal, site.status().window_bytes), (Some((0, 20)), 0));
    let ends: Vec<_> = site.journal.iter().map(|packed| (packed.first_offset, packed.next_offset)).collect();
    assert_eq!(ends, [(0, 10), (10, 20)]);
}

#[test]
fn behind_a_gap_the_source_is_asked_with_the_epoch_of_its_markers() {
    for (told, known) in [(None, None), (Some(5), Some(5))] {
        let (mut site, fetch) = live();
        site.feed(EdgeInput::Disconnected);
        site.entries_of(fetch, vec![Entry::Batch(batch(0)), gap(2, 3)], Some(3));
        site.entries_of(fetch, vec![gap(3, 4)], told);
        site.pass(DELAY);
        let mut again = Site::restored(checkpoint(0, Vec::new()), site.journal.clone());
        assert_eq!(fetch_of(&again.found(1)).map(|(_, offset, epoch)| (offset, epoch)), Some((4, known)));
    }
}

#[test]
fn the_epoch_is_that_of_what_stands_before_the_end() {
    let (mut site, fetch) = live();
    site.entries_of(fetch, vec![gap(0, 1), Entry::Batch(batch(1)), gap(3, 6)], Some(5));
    site.sent();
    site.confirm(1, 6);
    let kept = site.link.take_checkpoint(true).expect("changed");
    assert_eq!(kept.partitions[0].last_epoch, 5);
    let (mut site, fetch) = live();
    site.entries_of(fetch, vec![gap(0, 1), Entry::Batch(batch(1)), gap(3, 6)], Some(5));
    site.sent();
    site.confirm(1, 5);
    let kept = site.link.take_checkpoint(true).expect("changed");
    assert_eq!(kept.partitions[0].last_epoch, -1, "within the gap it is not known");
}
