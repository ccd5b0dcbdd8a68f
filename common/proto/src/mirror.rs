//! One partition of a mirror, on the gateway's side: what to do with the next entry, and when to ask the cluster first.
//!
//! ```text
//!            recover()                recovered()            doubt
//!   Idle ----------------> Recovering -------------> Live -----------> Draining
//!    |                      ^ ^  ^ |                 | |                  |
//!    | an errand is         | |  | | recovery        | | a look, or an    | last answer
//!    | unanswered           | |  | | failed          | | errand is done   |
//!    v                      | |  | v                 | |                  |
//!   Settling -- answered ---+ | Waiting <------------+ |                  |
//!                             |    markers in doubt,   |                  |
//!                             |    an errand put off   |                  |
//!                             +------------------------+------------------+
//!   any state: foreign bytes, a refusal or a peer's word -> Failed; stop() -> Idle
//!   Idle, Settling: to Waiting where markers were in doubt less than the settle time ago
//! ```
//!
//! When Live and nothing is in flight, an errand may go out, and nothing else until its answer: Skip for a gap (`skip`),
//! `FastForward` and `RecordLoss` for a source that starts above the mirror's end (`start`). What the agent knows:
//!
//! ```text
//!            recovered()            SourceStart: the mirror starts there
//!   Nowhere -------------> Told ------------------------------------------> Nowhere
//!                          ^  |
//!              recovered() |  | SourceStart: a loss, or not Live
//!                          |  v
//!                          Over -- loss recorded --> Filling -- filled, recovered() --> Told
//! ```
//!
//! Must never: confirm before the broker's answer; send a batch whose place in the log it does not know; go on after a
//! base offset it did not expect; send what lies behind a gap before the gap is whole.

mod decide;
mod errand;
mod exchange;
mod held;
mod judge;
mod recover;
mod skip;
mod start;

pub use decide::{Decision, decide};
pub use exchange::{MirrorOutput, Outcome, Recovery, SkipOutcome};
pub use skip::MARKER_SETTLE;
pub use start::OnLoss;

use std::collections::VecDeque;

use crate::batch::Stamp;
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{Offset, Partition, Time};
use crate::limits::MAX_IN_FLIGHT;
use crate::progress::{ChainError, CloudProgress};

use errand::{Errand, ErrandKind};
use held::Held;
use skip::Strays;

/// First wait before the log end is read again after it could not be; doubles up to [`LAST_BACKOFF`].
const FIRST_BACKOFF: Time = Time::from_millis(100);
/// Longest wait between two reads of the log end.
const LAST_BACKOFF: Time = Time::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    /// Begins once the errand of before the stop is answered.
    Settling,
    Recovering {
        attempt: u32,
    },
    Waiting {
        until: Time,
    },
    Live,
    Draining,
    Failed,
}

/// What the agent knows of where the partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing, or nothing that counts any more.
    Nowhere,
    /// A run was told; its frames come.
    Told,
    /// The run is over: the agent waits for another.
    Over,
    /// The same, and a lost range is held: the next run begins behind it.
    Filling,
}

/// A wait that doubles, from [`FIRST_BACKOFF`] to [`LAST_BACKOFF`].
#[derive(Debug)]
struct Backoff(Time);

impl Backoff {
    fn step(&mut self) -> Time {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_BACKOFF);
        wait
    }

    fn reset(&mut self) {
        self.0 = FIRST_BACKOFF;
    }
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    offset: Offset,
    next_offset: Offset,
}

/// One partition of a mirror. Calls: `recover` once, then any `receive`, `source_start`, answers, `handle_timeout`; after
/// each, `poll_output` until it is empty.
#[derive(Debug)]
pub struct Mirror {
    partition: Partition,
    producer_id: i64,
    state: State,
    place: Place,
    run: u32,
    progress: CloudProgress,
    /// The most that was handed to the broker in this run; unlike `produced` it does not fall back.
    handed: Offset,
    held: Held,
    in_flight: VecDeque<InFlight>,
    errand: Option<Errand>,
    next_ticket: u64,
    next_sequence: i32,
    /// The broker has an entry for our producer id, as far as is known: made by a batch, or by a marker.
    remembered: bool,
    /// The broker has taken a batch since nothing was in flight, so it holds our sequence and refuses what stands behind
    /// a refused batch.
    known_to_broker: bool,
    strays: Strays,
    /// Where the registry says that the mirror starts.
    starting: Option<Offset>,
    log_start: Offset,
    skipped: i64,
    attempts: u32,
    backoff: Backoff,
    errand_backoff: Backoff,
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
            place: Place::Nowhere,
            run: 0,
            progress: CloudProgress::at(0),
            handed: 0,
            held: Held::default(),
            in_flight: VecDeque::new(),
            errand: None,
            next_ticket: 0,
            next_sequence: 0,
            remembered: false,
            known_to_broker: false,
            strays: Strays::default(),
            starting: None,
            log_start: 0,
            skipped: 0,
            attempts: 0,
            backoff: Backoff(FIRST_BACKOFF),
            errand_backoff: Backoff(FIRST_BACKOFF),
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
        self.held.bytes()
    }

    /// First offset of the mirror's log, when it was last read or moved up.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Its log was made to start at `offset`, unless it starts above it.
    pub fn trimmed(&mut self, offset: Offset) {
        self.log_start = self.log_start.max(offset);
    }

    /// Last thing that put an append in doubt since the last success, for status.
    pub fn last_doubt(&self) -> Option<&str> {
        self.last_doubt.as_deref()
    }

    /// Offsets without records beyond the records that came with them, since the last stop: skipped, held, or about to be
    /// recorded as lost. The markers of transactions do not add up; a log that holds next to nothing does.
    pub fn gap_offsets(&self) -> i64 {
        let lost = match self.errand {
            Some(Errand { kind: ErrandKind::RecordLoss, from, to, .. }) if self.state == State::Live => to - from,
            Some(_) | None => 0,
        };
        self.skipped.saturating_add(self.held.gap_offsets()).saturating_add(lost)
    }

    /// What is being done other than appending batches, for people.
    pub fn doing(&self) -> Option<String> {
        self.errand.map(|errand| errand.to_string())
    }

    /// Times the cloud lost its tail in this session.
    pub fn rewinds(&self) -> u64 {
        self.rewinds
    }

    /// Whether the agent was told a position that counts: only then it is to hear what is confirmed.
    pub fn is_told(&self) -> bool {
        self.place == Place::Told
    }

    /// Whether a position was told and nothing is in doubt.
    pub fn is_live(&self) -> bool {
        self.state == State::Live && self.is_told()
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
        let CloudProgress { confirmed, produced, received } = self.progress;
        debug_assert!(self.in_flight.len() <= MAX_IN_FLIGHT);
        debug_assert!(produced <= self.handed && self.handed <= received, "{:?} {}", self.progress, self.handed);
        debug_assert!(self.held.spans(confirmed, received), "{:?} {:?}", self.progress, self.held);
        debug_assert!(self.errand.is_none() || self.in_flight.is_empty(), "nothing is sent during {:?}", self.errand);
        debug_assert!(self.strays.late >= 0 && self.skipped >= 0);
        match (&self.state, self.errand) {
            (State::Live, None) => debug_assert!(!self.in_flight.is_empty() || produced == confirmed),
            (State::Live, Some(Errand { kind: ErrandKind::Skip, from, to, .. })) => {
                let in_gap = self.held.first_gap_end().is_some_and(|end| to <= end);
                debug_assert!((from, to) == (confirmed, produced) && from < to && in_gap, "{:?}", self.errand);
            }
            (State::Live, Some(_)) | (State::Idle | State::Failed | State::Settling, _) => {
                debug_assert!(self.held.is_empty() && self.in_flight.is_empty());
            }
            (State::Draining, _) => debug_assert!(!self.in_flight.is_empty()),
            (State::Recovering { .. } | State::Waiting { .. }, _) => {
                debug_assert!(self.errand.is_none() && self.in_flight.is_empty());
            }
        }
        debug_assert!(self.state != State::Settling || self.errand.is_some());
        self.progress.validate()
    }

    /// Starts: reads where the partition stands, as soon as nothing of before a stop can change it. Nothing happens unless
    /// it is idle.
    pub fn recover(&mut self) {
        if self.state == State::Idle {
            self.begin();
        }
    }

    /// The partition has another leader, which may have less than we know: reads where it stands, unless answers that will
    /// tell are still to come.
    pub fn look_again(&mut self) {
        if self.state == State::Live && self.in_flight.is_empty() && self.errand.is_none() {
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

    /// Takes an entry of the current run. [`Decision::Append`], [`Decision::Skip`] and [`Decision::AlreadyThere`] are done
    /// with; [`Decision::Diverged`] has failed the mirror; [`Decision::Wait`] is the peer's breach of order, for the caller
    /// to answer.
    pub fn receive(&mut self, entry: Entry) -> Decision {
        if self.place != Place::Told {
            return Decision::AlreadyThere;
        }
        let decision = decide(self.progress.received, &entry);
        match decision {
            Decision::Append => self.hold(entry),
            Decision::Skip => {
                let offset = self.progress.received;
                self.hold(Entry::Gap { offset, count: entry.next_offset() - offset });
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

    fn hold(&mut self, entry: Entry) {
        self.progress.received = entry.next_offset();
        self.held.push(entry);
        self.produce();
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
                self.remembered = true;
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
            State::Draining
            | State::Idle
            | State::Settling
            | State::Recovering { .. }
            | State::Waiting { .. }
            | State::Failed => {}
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.next_timeout().is_some_and(|until| until <= now) {
            self.ask();
        }
    }

    /// Batches that may be in flight: one to a broker that may have forgotten us, since then the first of several could
    /// be refused and the next be taken in its place.
    fn depth(&self) -> usize {
        if self.known_to_broker { MAX_IN_FLIGHT } else { 1 }
    }

    /// Sends what comes next, as far as it may be sent.
    fn produce(&mut self) {
        while self.state == State::Live && self.errand.is_none() && self.in_flight.len() < self.depth() {
            let batch = match self.held.starting_at(self.progress.produced) {
                Some(Entry::Batch(batch)) => batch,
                Some(Entry::Gap { .. }) if self.in_flight.is_empty() => return self.skip(),
                Some(Entry::Gap { .. }) | None => return,
            };
            let stamp = Stamp { producer_id: self.producer_id, sequence: self.next_sequence };
            let (offset, next_offset, count) = (batch.base_offset(), batch.next_offset(), batch.record_count());
            let batch = batch.stamped(stamp);
            self.next_sequence = advance(self.next_sequence, count);
            self.hand_over(next_offset);
            let ticket = self.take_ticket();
            self.in_flight.push_back(InFlight { ticket, offset, next_offset });
            self.outputs.push_back(MirrorOutput::Produce { ticket, offset, batch });
        }
    }

    fn hand_over(&mut self, next_offset: Offset) {
        self.progress.produced = next_offset;
        self.handed = self.handed.max(next_offset);
    }

    fn take_ticket(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    /// The high watermark is at or beyond `offset`.
    fn confirm(&mut self, offset: Offset) {
        let before = self.progress.confirmed;
        if offset > before {
            self.progress.confirmed = offset;
            self.sequence_doubts = 0;
            self.last_doubt = None;
        }
        let gaps = self.held.release(self.progress.confirmed);
        let records = (self.progress.confirmed - before).saturating_sub(gaps).max(0);
        self.skipped = self.skipped.saturating_add(gaps).saturating_sub(records).max(0);
        if self.held.first_gap_end().is_none() {
            self.strays.wary = false;
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
        if self.place != Place::Nowhere {
            self.run += 1;
            self.strays.ceiling = Some(self.sent_up_to());
        }
        self.place = Place::Nowhere;
        self.skipped = 0;
        self.in_flight.clear();
        self.call_back();
        self.outputs.clear();
        self.sequence_doubts = 0;
        self.forget(self.progress.confirmed);
    }

    fn forget(&mut self, offset: Offset) {
        self.held.clear();
        self.handed = offset;
        self.progress = CloudProgress::at(offset);
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

#[cfg(test)]
#[path = "mirror/skip_test.rs"]
mod skip_tests;

#[cfg(test)]
#[path = "mirror/model_test.rs"]
mod model_tests;

#[cfg(test)]
#[path = "mirror/start_test.rs"]
mod start_tests;

#[cfg(test)]
#[path = "mirror/states_test.rs"]
mod states_tests;
