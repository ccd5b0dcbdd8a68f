//! A mirror against a broker that loses answers, appends late and hides that it did not append.

use proptest::prelude::*;

use super::skip_tests::{control, gap, in_doubt, log_end};
use super::tests::{appended, batch, empty, live, ours, outputs};
use super::*;
use crate::batch::Batch;
use crate::wire::TailBatch;

const NOW: Time = Time::from_secs(50);

/// What a log holds at an offset: the number of a source's entry, or a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Record(usize),
    Marker,
}

/// A broker that appends what it is sent, loses answers, appends late, and hides that it did not append.
struct Broker {
    log: Vec<Slot>,
    last_sequence: Option<i32>,
    /// Markers of requests whose connection is dead.
    late: usize,
    /// What goes wrong; once there is none left, nothing.
    choices: Vec<u8>,
}

impl Broker {
    fn end(&self) -> Offset {
        Offset::try_from(self.log.len()).expect("small")
    }

    fn choose(&mut self, of: u8) -> u8 {
        self.choices.pop().unwrap_or(0) % of
    }

    /// The last batches, as a broker serves them.
    fn tail(&self, source: &[Entry]) -> Vec<Batch> {
        let (mut tail, mut at) = (Vec::new(), 0);
        while let Some(slot) = self.log.get(at) {
            let offset = Offset::try_from(at).expect("small");
            let served = match slot {
                Slot::Marker => control(offset),
                Slot::Record(of) => {
                    let records = i32::try_from(source[*of].next_offset() - source[*of].offset()).expect("small");
                    ours(offset, records)
                }
            };
            at += usize::try_from(served.record_count()).expect("small");
            tail.push(served);
        }
        // Two batches, and all markers behind the first.
        let data = tail.iter().rev().enumerate().filter(|(_, batch)| !batch.is_control());
        let from = data.map(|(at, _)| tail.len() - 1 - at).nth(1).unwrap_or(0);
        tail.split_off(from)
    }

    /// Late markers come, some or all.
    fn flush(&mut self, all: bool) {
        let most = u8::try_from(self.late).expect("small");
        let count = if all { self.late } else { usize::from(self.choose(most + 1)) };
        self.late -= count;
        self.append_markers(count);
    }

    fn append_markers(&mut self, count: usize) {
        self.log.extend(std::iter::repeat_n(Slot::Marker, count));
        if count > 0 {
            self.last_sequence.get_or_insert(-1);
        }
    }

    fn produce(&mut self, at: usize, batch: &Batch) -> Outcome {
        let sequence = batch.base_sequence();
        if self.last_sequence.is_some_and(|last| last + 1 != sequence) {
            return Outcome::Sequence;
        }
        let doubt = Outcome::Doubt { reason: "connection lost".to_owned() };
        let (base, choice) = (self.end(), self.choose(6));
        if choice == 1 {
            return doubt;
        }
        let records = batch.record_count();
        self.log.extend(std::iter::repeat_n(Slot::Record(at), usize::try_from(records).expect("small")));
        self.last_sequence = Some(sequence + records - 1);
        if choice == 2 { doubt } else { appended(base) }
    }

    fn skip(&mut self, count: i64) -> SkipOutcome {
        let count = usize::try_from(count).expect("small");
        let outcome = self.choices.pop().unwrap_or(4) % 5;
        match outcome {
            0 => self.append_markers(count / 2),
            1 => {
                self.append_markers(count / 2);
                self.late += count - count / 2;
                return in_doubt();
            }
            2 => {
                self.append_markers(count);
                return in_doubt();
            }
            3 => {
                self.late += count;
                return in_doubt();
            }
            _ => self.append_markers(count),
        }
        log_end(self.end())
    }
}

fn layout(source: &[Entry]) -> Vec<Slot> {
    let slots = source.iter().enumerate().flat_map(|(at, entry)| {
        let slot = if matches!(entry, Entry::Batch(_)) { Slot::Record(at) } else { Slot::Marker };
        std::iter::repeat_n(slot, usize::try_from(entry.next_offset() - entry.offset()).expect("small"))
    });
    slots.collect()
}

/// What an agent says to a position.
fn compare(source: &[Entry], next_offset: Offset, tail: &[TailBatch]) -> Option<Failure> {
    let fits = |entry: &Entry| {
        let ours = TailBatch::of_entry(entry);
        let cut = matches!(entry, Entry::Batch(_)) && entry.offset() < next_offset && next_offset < entry.next_offset();
        !cut && tail.iter().all(|theirs| !ours.overlaps(theirs) || ours.agrees(theirs))
    };
    let end = source.last().map_or(0, Entry::next_offset);
    let detail = "the agent finds another log";
    (next_offset > end || !source.iter().all(fits)).then(|| Failure::at(FailureCode::Diverged, 0, next_offset, detail))
}

/// Drives a mirror against the broker until it has nothing more to do. `settles` says that what is late comes before the
/// settle time is over. Returns what is confirmed, and the failure, if it came to one.
fn drive(source: &[Entry], broker: &mut Broker, settles: bool) -> (Offset, Option<Failure>) {
    let (mut mirror, mut now) = (live(0), NOW);
    let (mut run, mut unread) = (mirror.run(), source.iter());
    for _ in 0..10_000 {
        if run == mirror.run()
            && let Some(entry) = unread.next()
        {
            mirror.receive(entry.clone());
        }
        match broker.choose(20) {
            1 => {
                mirror.stop();
                mirror.recover();
            }
            2 => mirror.look_again(),
            _ => {}
        }
        let asked = outputs(&mut mirror);
        assert!(mirror.progress().confirmed <= broker.end(), "confirmed ahead of the log");
        if asked.is_empty() && unread.len() == 0 && mirror.is_live() && mirror.held_bytes() == 0 {
            let confirmed = mirror.progress().confirmed;
            assert_eq!(confirmed, source.last().map_or(0, Entry::next_offset));
            return (confirmed, None);
        }
        for output in asked {
            if !settles {
                broker.flush(false);
            }
            if broker.choose(20) == 1 {
                mirror.stop();
                mirror.recover();
            }
            match output {
                MirrorOutput::Recover { attempt } => {
                    let (last_sequence, tail) = (broker.last_sequence, broker.tail(source));
                    mirror.recovered(attempt, &Recovery { last_sequence, tail, ..empty(broker.end()) });
                }
                MirrorOutput::Position { run: told, next_offset, tail, .. } => {
                    if let Some(failure) = compare(source, next_offset, &tail) {
                        return (0, Some(failure));
                    }
                    let at = source.partition_point(|entry| entry.next_offset() <= next_offset);
                    (run, unread) = (told, source[at..].iter());
                }
                MirrorOutput::Produce { ticket, offset, batch } => {
                    let at = source.partition_point(|entry| entry.offset() < offset);
                    let outcome = broker.produce(at, &Batch::parse(batch).expect("a batch"));
                    mirror.produced(ticket, outcome);
                }
                MirrorOutput::Skip { ticket, count, .. } => {
                    let outcome = broker.skip(count);
                    mirror.skipped(ticket, outcome, now);
                }
                MirrorOutput::Failed(failure) => return (mirror.progress().confirmed, Some(failure)),
                MirrorOutput::FastForward { .. } | MirrorOutput::RecordLoss { .. } => panic!("{output:?}"),
            }
        }
        if let Some(until) = mirror.next_timeout() {
            broker.flush(settles);
            now = now.max(until);
            mirror.handle_timeout(now);
        }
    }
    panic!("it does not come to an end: {mirror:?}");
}

proptest! {
    /// What is confirmed is what the source holds, whatever comes late: it fails rather than shift a record. Where the
    /// settle time is as long as it should be, it never fails.
    #[test]
    fn no_record_ends_up_where_it_does_not_belong(
        lengths in prop::collection::vec((any::<bool>(), 1_u8..9), 1..12),
        choices in prop::collection::vec(any::<u8>(), 0..200),
        settles in any::<bool>(),
    ) {
        let (mut source, mut next) = (Vec::new(), 0);
        for (is_gap, length) in lengths {
            let entry = if is_gap { gap(next, length.into()) } else { batch(next, length.into()) };
            next = entry.next_offset();
            source.push(entry);
        }
        let mut broker = Broker { log: Vec::new(), last_sequence: None, late: 0, choices };
        let (confirmed, failure) = drive(&source, &mut broker, settles);
        let (expected, confirmed) = (layout(&source), usize::try_from(confirmed).expect("small"));
        prop_assert_eq!(&broker.log[..confirmed], &expected[..confirmed], "{:?}", failure);
        if settles {
            prop_assert_eq!((failure, broker.log), (None, expected));
        }
    }
}
