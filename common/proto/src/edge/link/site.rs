//! A site for the tests of its link: one partition, a journal and a clock that the test keeps, and the answers that a site's
//! shells would give.

pub(super) use super::inputs::{batch, failure, gap, source_start, topic};
use super::inputs::{confirm, connected, filters, found_as, message, position, told, welcome};
use super::*;
use crate::edge::{
    Checkpoint, CheckpointMirror, CheckpointPartition, JournalRange, OutgoingBody, SpillError, SpillFrame,
};
use crate::frame::{Entry, Packed};
use crate::id::Offset;
use crate::wire::TailBatch;

pub(super) const DELAY: Time = Time::from_secs(2);
pub(super) const START: Time = Time::from_secs(100);

pub(super) fn tail(base: Offset) -> Vec<TailBatch> {
    vec![TailBatch::of(&batch(base))]
}

/// A site with a journal that a test keeps, and a clock.
pub(super) struct Site {
    pub(super) link: EdgeLink,
    pub(super) now: Time,
    pub(super) journal: Vec<Packed>,
    pub(super) outputs: Vec<EdgeOutput>,
    /// Commits so far.
    pub(super) spills: usize,
    /// Loads without an answer: ticket and offset.
    pub(super) loads: Vec<(u64, Offset)>,
    /// The Spill without an answer.
    pub(super) waiting: Option<(u64, Vec<SpillFrame>)>,
}

impl Site {
    pub(super) fn new() -> Self {
        Self::restored(Checkpoint::default(), Vec::new())
    }

    /// As a process that finds this checkpoint and these frames.
    pub(super) fn restored(checkpoint: Checkpoint, journal: Vec<Packed>) -> Self {
        let link = EdgeLink::new(EdgeConfig {
            software: "test".to_owned(),
            incarnation: 7,
            window_bytes: 8_000,
            spill_delay: DELAY,
            max_frame_bytes: 2_000,
        });
        let mut site =
            Self { link, now: START, journal, outputs: Vec::new(), spills: 0, loads: Vec::new(), waiting: None };
        let ranges = site.ranges();
        site.feed(EdgeInput::Restored { checkpoint, ranges });
        site
    }

    pub(super) fn ranges(&self) -> Vec<JournalRange> {
        let (Some(first), Some(last)) = (self.journal.first(), self.journal.last()) else { return Vec::new() };
        let (first, next, last_epoch) = (first.first_offset, last.next_offset, last.last_epoch);
        vec![JournalRange { topic: topic(), topic_id: None, partition: 0, first, next, last_epoch, bytes: 1 }]
    }

    pub(super) fn feed(&mut self, input: EdgeInput) -> Vec<EdgeOutput> {
        self.link.handle(input, self.now);
        self.poll();
        self.outputs.clone()
    }

    pub(super) fn poll(&mut self) {
        self.outputs = std::iter::from_fn(|| self.link.poll_output()).collect();
        if let Some(spill) = spill(&self.outputs) {
            assert!(self.waiting.replace(spill).is_none(), "one commit at a time");
        }
        self.loads.extend(self.outputs.iter().filter_map(|output| {
            if let EdgeOutput::Load { ticket, offset, .. } = output { Some((*ticket, *offset)) } else { None }
        }));
    }

    pub(super) fn message(&mut self, body: CloudBody) -> Vec<EdgeOutput> {
        self.feed(message(body))
    }

    /// Opens a session that has the mirror.
    pub(super) fn connect(&mut self) {
        self.open(&[]);
        self.feed(told(0, "orders", false));
        self.found(1);
    }

    pub(super) fn open(&mut self, patterns: &[&str]) -> Vec<EdgeOutput> {
        self.feed(connected());
        self.feed(welcome(1));
        if patterns.is_empty() {
            return Vec::new();
        }
        self.feed(filters(patterns))
    }

    pub(super) fn found(&mut self, id: u8) -> Vec<EdgeOutput> {
        self.feed(found_as(id, 1))
    }

    pub(super) fn position(&mut self, run: u32, next_offset: Offset, tail: Vec<TailBatch>) -> Vec<EdgeOutput> {
        self.feed(position(run, next_offset, tail))
    }

    pub(super) fn confirm(&mut self, run: u32, offset: Offset) -> Vec<EdgeOutput> {
        self.feed(confirm(run, offset))
    }

    pub(super) fn fetched(&mut self, fetch: u64, bases: &[Offset]) -> Vec<EdgeOutput> {
        self.entries(fetch, bases.iter().map(|&base| Entry::Batch(batch(base))).collect())
    }

    pub(super) fn entries(&mut self, fetch: u64, entries: Vec<Entry>) -> Vec<EdgeOutput> {
        self.entries_of(fetch, entries, None)
    }

    /// As [`Site::entries`], with the epoch of what stands before their end.
    pub(super) fn entries_of(&mut self, fetch: u64, entries: Vec<Entry>, epoch: Option<i32>) -> Vec<EdgeOutput> {
        let high_watermark = entries.last().map_or(0, Entry::next_offset);
        self.feed(EdgeInput::Fetched {
            topic: topic(),
            partition: 0,
            fetch,
            entries,
            epoch,
            high_watermark,
            log_start: 0,
        })
    }

    /// Lets time pass, and the journal take what it is given.
    pub(super) fn pass(&mut self, time: Time) {
        let until = self.now + time;
        loop {
            let due = self.link.next_timeout().map_or(until, |(at, _)| at.min(until));
            self.now = self.now.max(due);
            self.feed(EdgeInput::Timeout);
            self.keep(&Ok(()));
            if self.now >= until {
                return;
            }
        }
    }

    /// Answers Spills for as long as there are any.
    pub(super) fn keep(&mut self, result: &Result<(), SpillError>) {
        while let Some((ticket, frames)) = self.waiting.take() {
            self.spills += 1;
            if result.is_ok() {
                for frame in frames {
                    // One that does not join begins a run, and what was there before counts as confirmed.
                    if frame.after != self.journal.last().map(|last| last.next_offset) {
                        self.journal.clear();
                    }
                    self.journal.push(frame.pack());
                }
            }
            self.feed(EdgeInput::Spilled { ticket, result: result.clone() });
        }
    }

    /// Answers Loads, and gives what is sent, with the journal's frames marked.
    pub(super) fn sent(&mut self) -> Vec<(Offset, Offset, bool)> {
        let mut sent = Vec::new();
        loop {
            while let Some(frame) = self.link.poll_frame() {
                sent.push((frame.first_offset(), frame.next_offset(), matches!(frame.body, OutgoingBody::Packed(_))));
            }
            self.poll();
            let Some((ticket, offset)) = self.loads.pop() else { return sent };
            let from = self.journal.iter().position(|packed| packed.next_offset > offset).expect("in the journal");
            let frames = Some(self.journal[from..=from].to_vec());
            self.feed(EdgeInput::Loaded { topic: topic(), partition: 0, ticket, frames });
        }
    }

    pub(super) fn status(&self) -> EdgePartitionStatus {
        self.link.status().mirrors[0].partitions[0].clone()
    }
}

pub(super) fn spill(outputs: &[EdgeOutput]) -> Option<(u64, Vec<SpillFrame>)> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Spill { ticket, frames } = output { Some((*ticket, frames.clone())) } else { None }
    })
}

pub(super) fn fetch_of(outputs: &[EdgeOutput]) -> Option<(u64, Offset, Option<i32>)> {
    outputs.iter().find_map(|output| {
        if let EdgeOutput::Fetch { fetch, offset, epoch, .. } = output { Some((*fetch, *offset, *epoch)) } else { None }
    })
}

pub(super) fn discards(outputs: &[EdgeOutput]) -> bool {
    outputs.iter().any(|output| matches!(output, EdgeOutput::Discard { .. }))
}

/// A site that fetches from offset 0, with its session up.
pub(super) fn live() -> (Site, u64) {
    let mut site = Site::new();
    site.connect();
    let outputs = site.position(1, 0, Vec::new());
    let (fetch, offset, epoch) = fetch_of(&outputs).expect("fetches");
    assert_eq!((offset, epoch), (0, None));
    (site, fetch)
}

/// A checkpoint at this offset.
pub(super) fn checkpoint(confirmed: Offset, shipped: Vec<TailBatch>) -> Checkpoint {
    Checkpoint {
        filters: Vec::new(),
        mirrors: vec![CheckpointMirror {
            topic: topic(),
            topic_id: Some([1; 16]),
            paused: false,
            failed: false,
            settled: true,
            partitions: 1,
            configs: Vec::new(),
        }],
        partitions: vec![CheckpointPartition {
            topic: topic(),
            partition: 0,
            confirmed,
            last_epoch: 0,
            shipped,
            seen: true,
        }],
    }
}

pub(super) fn frames(bases: &[Offset]) -> Vec<Packed> {
    bases.iter().map(|&base| Packed::new(&[Entry::Batch(batch(base)), Entry::Batch(batch(base + 2))])).collect()
}
