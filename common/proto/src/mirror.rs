//! One partition of a mirror, on the gateway's side: what to do with the next entry, and when to ask the cluster first.
//!
//! ```text
//!            recover()                recovered()
//!   Idle ---------------> Recovering -------------> Live <-----+
//!                          ^      |                  |         | last answer
//!                  timeout |      | recovery failed  | doubt   | (then straight to
//!                          |      v                  v         |  Recovering)
//!                          +--- Waiting          Draining -----+
//!   any state: foreign bytes, a refusal or a peer's word -> Failed
//! ```
//!
//! Must never: confirm before the broker's answer; send a batch whose place in the log it does not know; go on after a
//! base offset it did not expect.

mod decide;
mod exchange;
mod skip;
mod start;

pub use decide::{Decision, decide};
pub use exchange::{MirrorOutput, Outcome, Recovery, SkipOutcome};
pub use skip::MARKER_SETTLE;
pub use start::OnLoss;

use std::collections::VecDeque;

use crate::batch::{Batch, Stamp};
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{Offset, Partition, Time};
use crate::limits::{MAX_IN_FLIGHT, MAX_TAIL};
use crate::progress::{ChainError, CloudProgress};
use crate::wire::TailBatch;

/// First wait before the log end is read again after it could not be; doubles up to [`LAST_BACKOFF`].
const FIRST_BACKOFF: Time = Time::from_millis(100);
/// Longest wait between two reads of the log end.
const LAST_BACKOFF: Time = Time::from_secs(5);
/// Times the broker may refuse our sequence at one log end before the mirror is FAILED.
const MAX_SEQUENCE_DOUBTS: u32 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    Recovering { attempt: u32 },
    Waiting { until: Time },
    Live,
    Draining,
    Failed,
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    offset: Offset,
    next_offset: Offset,
}

/// One partition of a mirror. Calls: `recover` once, then any `receive`, `produced`, `recovered`, `recovery_failed`,
/// `handle_timeout`; after each, `poll_output` until it is empty.
#[derive(Debug)]
pub struct Mirror {
    partition: Partition,
    producer_id: i64,
    state: State,
    run: u32,
    placed: bool,
    progress: CloudProgress,
    held: VecDeque<Entry>,
    held_bytes: usize,
    in_flight: VecDeque<InFlight>,
    next_ticket: u64,
    next_sequence: i32,
    /// The broker has taken a batch since nothing was in flight, so it holds our sequence and refuses what stands behind
    /// a refused batch.
    known_to_broker: bool,
    attempts: u32,
    backoff: Time,
    sequence_doubts: u32,
    last_doubt: Option<String>,
    rewinds: u64,
    outputs: VecDeque<MirrorOutput>,
}

impl Mirror {
    /// A partition that is written under `producer_id`. Does nothing until [`Mirror::recover`].
    pub fn new(partition: Partition, producer_id: i64) -> Self {
        Self {
            partition,
            producer_id,
            state: State::Idle,
            run: 0,
            placed: false,
            progress: CloudProgress::at(0),
            held: VecDeque::new(),
            held_bytes: 0,
            in_flight: VecDeque::new(),
            next_ticket: 0,
            next_sequence: 0,
            known_to_broker: false,
            attempts: 0,
            backoff: FIRST_BACKOFF,
            sequence_doubts: 0,
            last_doubt: None,
            rewinds: 0,
            outputs: VecDeque::new(),
        }
    }

    /// How far the partition has come.
    pub fn progress(&self) -> CloudProgress {
        self.progress
    }

    /// Run that frames must belong to; frames of older runs are to be dropped.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// Bytes held in memory, as frames count them.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Last thing that put an append in doubt since the last success, for status.
    pub fn last_doubt(&self) -> Option<&str> {
        self.last_doubt.as_deref()
    }

    /// Offsets of gaps that came in this session.
    pub fn gap_offsets(&self) -> i64 {
        0
    }

    /// What is being done other than appending batches, for people.
    pub fn doing(&self) -> Option<String> {
        None
    }

    /// Times the cloud lost its tail in this session.
    pub fn rewinds(&self) -> u64 {
        self.rewinds
    }

    /// Whether a position was told and nothing is in doubt.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Whether it is to be left alone for good.
    pub fn is_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// When [`Mirror::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Time> {
        if let State::Waiting { until } = self.state { Some(until) } else { None }
    }

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<MirrorOutput> {
        self.outputs.pop_front()
    }

    /// Checks the offset chain and what memory must hold; a bug of ours where it fails.
    pub fn validate(&self) -> Result<(), ChainError> {
        debug_assert!(self.in_flight.len() <= MAX_IN_FLIGHT);
        debug_assert_eq!(self.held_bytes, self.held.iter().map(Entry::bytes).sum::<usize>());
        debug_assert!(self.held.front().is_none_or(|entry| entry.offset() <= self.progress.confirmed));
        debug_assert!(self.held.back().is_none_or(|entry| entry.next_offset() == self.progress.received));
        self.progress.validate()
    }

    /// Starts: reads where the partition stands. Nothing happens unless it is idle.
    pub fn recover(&mut self) {
        if self.state == State::Idle {
            self.ask();
        }
    }

    /// The partition has another leader, which may have less than we know: reads where it stands, unless answers that will
    /// tell are still to come.
    pub fn look_again(&mut self) {
        if self.state == State::Live && self.in_flight.is_empty() {
            self.ask();
        }
    }

    /// Stops and forgets what is held; answers still to come are ignored. The next [`Mirror::recover`] starts a new run.
    pub fn stop(&mut self) {
        self.halt(State::Idle);
    }

    /// Stops for good.
    pub fn fail(&mut self) {
        self.halt(State::Failed);
    }

    /// Takes an entry of the current run. [`Decision::Append`] and [`Decision::AlreadyThere`] are done with;
    /// [`Decision::Skip`] and [`Decision::Diverged`] have failed the mirror; [`Decision::Wait`] is the peer's breach of
    /// order, for the caller to answer.
    pub fn receive(&mut self, entry: Entry) -> Decision {
        if !self.placed {
            return Decision::AlreadyThere;
        }
        let decision = decide(self.progress.received, &entry);
        match decision {
            Decision::Append => {
                self.progress.received = entry.next_offset();
                self.held_bytes += entry.bytes();
                self.held.push_back(entry);
                self.produce();
            }
            Decision::Skip => {
                let detail = "the source has no records here, and gaps are not mirrored yet";
                self.fail_with(
                    Failure::at(FailureCode::UnsupportedGap, self.partition, entry.offset(), detail)
                        .until(entry.next_offset()),
                );
            }
            Decision::Diverged => {
                let detail = format!(
                    "the agent sent a batch up to offset {} that starts below the mirror's end {}",
                    entry.next_offset() - 1,
                    self.progress.received
                );
                self.fail_with(Failure::at(FailureCode::Diverged, self.partition, entry.offset(), detail));
            }
            Decision::AlreadyThere | Decision::Wait => {}
        }
        decision
    }

    /// The answer to a Produce. Answers to tickets that no longer matter are ignored.
    pub fn produced(&mut self, ticket: u64, outcome: Outcome) {
        let Some(at) = self.in_flight.iter().position(|sent| sent.ticket == ticket) else {
            return;
        };
        let Some(sent) = self.in_flight.remove(at) else { return };
        match outcome {
            Outcome::Appended { base_offset } if base_offset == sent.offset => {
                self.known_to_broker = true;
                self.confirm(sent.next_offset);
            }
            Outcome::Appended { base_offset } => return self.shifted(&sent, base_offset),
            Outcome::Doubt { reason } => {
                self.last_doubt = Some(reason);
                self.state = State::Draining;
            }
            Outcome::Sequence => {
                self.last_doubt = Some("OUT_OF_ORDER_SEQUENCE_NUMBER".to_owned());
                // Those sent behind a batch in doubt are refused as a matter of course.
                if self.state == State::Live {
                    self.sequence_doubts += 1;
                }
                self.state = State::Draining;
            }
            Outcome::Refused { reason } => {
                let detail = format!("the cloud cluster refuses the batch: {reason}");
                return self.fail_with(Failure::at(FailureCode::CloudRefused, self.partition, sent.offset, detail));
            }
        }
        match self.state {
            State::Live => {
                self.produce();
                self.known_to_broker &= !self.in_flight.is_empty();
            }
            State::Draining if self.in_flight.is_empty() => self.ask(),
            State::Draining | State::Idle | State::Recovering { .. } | State::Waiting { .. } | State::Failed => {}
        }
    }

    /// The log end could not be read; it is tried again later.
    pub fn recovery_failed(&mut self, attempt: u32, reason: String, now: Time) {
        if self.state == (State::Recovering { attempt }) {
            self.last_doubt = Some(reason);
            self.state = State::Waiting { until: now + self.backoff };
            self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.next_timeout().is_some_and(|until| until <= now) {
            self.ask();
        }
    }

    /// What the cluster holds. Stale answers are ignored.
    pub fn recovered(&mut self, attempt: u32, recovery: &Recovery) {
        if self.state != (State::Recovering { attempt }) {
            return;
        }
        self.backoff = FIRST_BACKOFF;
        if let Err(failure) = self.judge(recovery) {
            return self.fail_with(failure);
        }
        self.next_sequence = next_sequence(recovery);
        self.known_to_broker = false;
        self.state = State::Live;
        let log_end = recovery.log_end;
        let goes_on = self.placed && self.progress.confirmed <= log_end;
        if goes_on {
            self.progress.produced = log_end;
            self.confirm(log_end);
            self.produce();
        } else {
            self.place(recovery);
        }
    }

    /// Whether what the cluster holds can be ours.
    fn judge(&self, recovery: &Recovery) -> Result<(), Failure> {
        let log_end = recovery.log_end;
        let foreign = |batch: &&Batch| batch.producer_id() != self.producer_id;
        if let Some(first) = recovery.tail.iter().find(foreign) {
            let last = recovery.tail.iter().rfind(foreign).unwrap_or(first);
            let detail = format!(
                "producer id {} wrote into the mirror, which only the link may (producer id {}); the mirror's log ends at \
                 {log_end}. Delete the mirror topic, take WRITE from everybody else, and let it be mirrored anew",
                first.producer_id(),
                self.producer_id,
            );
            return Err(Failure::at(FailureCode::ForeignWrite, self.partition, first.base_offset(), detail)
                .until(last.next_offset()));
        }
        if !self.placed || log_end <= self.progress.confirmed {
            return Ok(());
        }
        let received = self.progress.received;
        if log_end > received {
            let detail = format!("the mirror's log ends at {log_end}, but only offsets below {received} were sent");
            return Err(Failure::at(FailureCode::ForeignWrite, self.partition, received, detail).until(log_end));
        }
        let on_border = log_end == received || self.held.iter().any(|entry| entry.offset() == log_end);
        if !on_border {
            let detail = format!("the mirror's log ends at {log_end}, inside a batch that was sent");
            return Err(Failure::at(FailureCode::Diverged, self.partition, log_end, detail));
        }
        Ok(())
    }

    /// Starts a run at the log end.
    fn place(&mut self, recovery: &Recovery) {
        let rewind = self.placed;
        self.rewinds += u64::from(rewind);
        self.placed = true;
        self.run += 1;
        self.forget(recovery.log_end);
        let tail = recovery.tail.iter().rev().take(MAX_TAIL).rev().map(TailBatch::of).collect();
        self.outputs.push_back(MirrorOutput::Position { run: self.run, next_offset: recovery.log_end, tail, rewind });
    }

    fn ask(&mut self) {
        if self.sequence_doubts > MAX_SEQUENCE_DOUBTS {
            let detail = format!(
                "the broker refused the link's sequence {} times in a row at this offset",
                self.sequence_doubts
            );
            let offset = self.progress.confirmed;
            return self.fail_with(Failure::at(FailureCode::IllegalState, self.partition, offset, detail));
        }
        self.attempts += 1;
        self.state = State::Recovering { attempt: self.attempts };
        self.outputs.push_back(MirrorOutput::Recover { attempt: self.attempts });
    }

    /// Batches that may be in flight: one to a broker that may have forgotten us, since then the first of several could
    /// be refused and the next be taken in its place.
    fn depth(&self) -> usize {
        if self.known_to_broker { MAX_IN_FLIGHT } else { 1 }
    }

    fn produce(&mut self) {
        while self.state == State::Live && self.in_flight.len() < self.depth() {
            let next = self.progress.produced;
            let at = self.held.partition_point(|entry| entry.offset() < next);
            let Some(Entry::Batch(batch)) = self.held.get(at) else {
                return;
            };
            let stamp = Stamp { producer_id: self.producer_id, sequence: self.next_sequence };
            let (offset, next_offset, count) = (batch.base_offset(), batch.next_offset(), batch.record_count());
            let batch = batch.stamped(stamp);
            self.next_sequence = advance(self.next_sequence, count);
            self.progress.produced = next_offset;
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            self.in_flight.push_back(InFlight { ticket, offset, next_offset });
            self.outputs.push_back(MirrorOutput::Produce { ticket, offset, batch });
        }
    }

    /// The high watermark is at or beyond `offset`.
    fn confirm(&mut self, offset: Offset) {
        if offset > self.progress.confirmed {
            self.progress.confirmed = offset;
            self.sequence_doubts = 0;
            self.last_doubt = None;
        }
        while let Some(entry) = self.held.pop_front_if(|entry| entry.next_offset() <= offset) {
            self.held_bytes -= entry.bytes();
        }
    }

    /// An append ended up where it should not have.
    fn shifted(&mut self, sent: &InFlight, base_offset: Offset) {
        let detail = format!(
            "the batch of offset {} was answered with offset {base_offset}: somebody else wrote into the mirror, or it lost \
             records unseen. Delete the mirror topic, take WRITE from everybody else, and let it be mirrored anew",
            sent.offset
        );
        let failure = Failure::at(FailureCode::ForeignWrite, self.partition, sent.offset.min(base_offset), detail);
        self.fail_with(failure.until(sent.offset.max(base_offset)));
    }

    fn fail_with(&mut self, failure: Failure) {
        self.fail();
        self.outputs.push_back(MirrorOutput::Failed(failure));
    }

    fn halt(&mut self, state: State) {
        self.state = state;
        // Frames of the run that ends here are still on their way.
        self.run += u32::from(self.placed);
        self.placed = false;
        self.in_flight.clear();
        self.outputs.clear();
        self.sequence_doubts = 0;
        self.forget(self.progress.confirmed);
    }

    fn forget(&mut self, offset: Offset) {
        self.held.clear();
        self.held_bytes = 0;
        self.progress = CloudProgress::at(offset);
    }
}

/// Sequence of the next batch: behind the broker's last one; 0 behind a marker; the log end where the broker remembers
/// nothing and takes any (design: compare-and-append).
fn next_sequence(recovery: &Recovery) -> i32 {
    match recovery.last_sequence {
        Some(last) if last >= 0 => advance(last, 1),
        Some(_) => 0,
        None => i32::try_from(recovery.log_end & i64::from(i32::MAX)).unwrap_or(0),
    }
}

/// `sequence + count`, wrapping from 2^31 - 1 to 0 (`DefaultRecordBatch.incrementSequence`).
pub fn advance(sequence: i32, count: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(count);
    i32::try_from(sum & i64::from(i32::MAX)).unwrap_or(0)
}

#[cfg(test)]
#[path = "mirror/mirror_test.rs"]
mod tests;
