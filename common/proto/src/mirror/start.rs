//! A source whose log starts above what the mirror holds: the mirror is made to start there, or what lies between is lost.
//!
//! Must never: skip a lost record before the registry holds that it is lost.

use super::errand::ErrandKind;
use super::{Mirror, Place, State};
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::{Offset, Time};
use crate::limits::MAX_START;

/// What becomes of offsets that the source deleted before they were mirrored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// The mirror is FAILED: an operator decides.
    #[default]
    Halt,
    /// They become a gap, and the registry's loss ledger keeps the range for ever.
    Skip,
}

impl Mirror {
    /// The agent says that the source's log starts at `offset`, in the current run, which ends with it. Returns whether
    /// that was in order: all that was sent before is confirmed, and `offset` lies beyond it. `seen`: the source was once
    /// read from where the mirror ends, which then is no mirror that has yet to start.
    #[must_use]
    pub fn source_start(&mut self, offset: Offset, seen: bool, on_loss: OnLoss) -> bool {
        if self.place != Place::Told {
            return true;
        }
        let from = self.progress.confirmed;
        if !self.held.is_empty() || offset <= from {
            return false;
        }
        if self.state != State::Live {
            // Where the log ends is being read, and a new run begins there: the agent says it again then.
            self.place = Place::Over;
            return true;
        }
        if !seen && (from == 0 || self.starting.is_some_and(|starting| starting > from)) {
            if offset > MAX_START {
                let detail = format!(
                    "the source's log starts at {offset}; a mirror is made to start at {MAX_START} at most, since every \
                     offset below takes filler"
                );
                self.fail_with(Failure::at(FailureCode::GapLimit, self.partition, from, detail));
                return true;
            }
            self.place = Place::Nowhere;
            self.send_out(ErrandKind::FastForward, from, offset);
            return true;
        }
        match on_loss {
            OnLoss::Halt => {
                let detail = "the source deleted these offsets before they were mirrored. To go on without them, set \
                              on_loss = \"skip\" for the mirror, then pause and resume it";
                let failure = Failure::at(FailureCode::SourceDataLost, self.partition, from, detail);
                self.fail_with(failure.until(offset));
            }
            OnLoss::Skip => {
                self.place = Place::Over;
                self.send_out(ErrandKind::RecordLoss, from, offset);
            }
        }
        true
    }

    /// The answer to a `FastForward`: where the mirror starts, if it was made to. Answers to tickets that no longer matter
    /// are ignored.
    pub fn fast_forwarded(&mut self, ticket: u64, result: Result<(), String>, now: Time) -> Option<Offset> {
        let errand = self.returned(ErrandKind::FastForward, ticket)?;
        if self.state != State::Live {
            self.settled();
            return None;
        }
        match result {
            Ok(()) => {
                self.errand_backoff.reset();
                self.ask();
                Some(errand.to)
            }
            Err(reason) => {
                self.put_off(reason, now);
                None
            }
        }
    }

    /// The answer to a `RecordLoss`: the range that becomes a gap, if it does. Answers to tickets that no longer matter are
    /// ignored.
    pub fn loss_recorded(&mut self, ticket: u64, result: Result<(), String>, now: Time) -> Option<(Offset, Offset)> {
        let errand = self.returned(ErrandKind::RecordLoss, ticket)?;
        if self.state != State::Live {
            self.settled();
            return None;
        }
        match result {
            Ok(()) => {
                self.errand_backoff.reset();
                self.place = Place::Filling;
                self.progress.received = errand.to;
                self.held.push(Entry::Gap { offset: errand.from, count: errand.to - errand.from });
                self.produce();
                Some((errand.from, errand.to))
            }
            Err(reason) => {
                self.put_off(reason, now);
                None
            }
        }
    }
}
