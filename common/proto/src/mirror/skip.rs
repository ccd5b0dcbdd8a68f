//! Gaps: the log's end is moved past offsets that hold no record, by markers that no consumer sees.
//!
//! A broker does not notice that it appends a marker twice. So there is one request at a time, nothing behind a gap is
//! sent before the gap is whole, and what counts is where the log ends. After a request that was not answered, up to its
//! number of markers may come late: as long as the gap has room for them, only so many are sent that all fit; where it has
//! not, all but one, and the last one after another look at the log.

use super::errand::{Errand, ErrandKind};
use super::{Mirror, Place, SkipOutcome, State};
use crate::failure::{Failure, FailureCode};
use crate::id::{Offset, Time};
use crate::limits::MAX_MARKERS;

/// Wait after markers are in doubt before the log end is read: a broker may still hold the request.
pub const MARKER_SETTLE: Time = Time::from_secs(1);

/// Markers that were in doubt, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Markers that may still be appended, of those that were in doubt in this session.
    pub(super) late: i64,
    /// Some of them were in doubt since the gap that comes next was begun: they are kept room for.
    pub(super) wary: bool,
    /// Where the log ends was read since the last markers were sent.
    pub(super) looked: bool,
    /// No look at the log end tells what became of markers before this.
    pub(super) settle_until: Option<Time>,
    /// The most that the broker may have appended of a run that was stopped, until the next begins.
    pub(super) ceiling: Option<Offset>,
}

impl Mirror {
    /// The answer to a Skip. Answers to tickets that no longer matter are ignored.
    pub fn skipped(&mut self, ticket: u64, outcome: SkipOutcome, now: Time) {
        let Some(errand) = self.returned(ErrandKind::Skip, ticket) else {
            return;
        };
        if self.state != State::Live {
            // Stopped since. Where the log ends is read before it goes on, but not too early.
            if let SkipOutcome::Doubt { .. } = outcome {
                self.expect_late(errand, now);
            }
            return self.settled();
        }
        match outcome {
            SkipOutcome::Appended { log_end } => self.moved(errand, log_end, now),
            SkipOutcome::Doubt { reason } => {
                let until = self.expect_late(errand, now);
                self.last_doubt = Some(reason);
                self.state = State::Waiting { until };
            }
            SkipOutcome::Refused { reason } => {
                let detail = format!(
                    "the cloud cluster refuses the markers that offsets without records need: {reason}. Allow them with \
                     kafka-acls.sh --add --allow-principal User:<the gateway's> --operation Alter --cluster, then pause \
                     and resume the mirror"
                );
                let failure = Failure::at(FailureCode::CloudRefused, self.partition, errand.from, detail);
                self.fail_with(failure.until(self.held.first_gap_end().unwrap_or(errand.to)));
            }
        }
    }

    /// Markers may come late: when the log end tells more. Returns until when to wait.
    fn expect_late(&mut self, errand: Errand, now: Time) -> Time {
        self.strays.late = self.strays.late.saturating_add(errand.to - errand.from);
        self.strays.wary = true;
        let until = now + MARKER_SETTLE;
        self.strays.settle_until = Some(until);
        until
    }

    /// Markers were answered, and the log ends at `log_end`.
    fn moved(&mut self, errand: Errand, log_end: Offset, now: Time) {
        let gap_end = self.held.first_gap_end().unwrap_or(errand.to);
        if log_end > gap_end {
            let detail = format!(
                "the mirror's log ends at {log_end}, but the source's records go on at {gap_end}: a marker came twice, or \
                 somebody else wrote into the mirror. Delete the mirror topic, take WRITE from everybody else, and let it \
                 be mirrored anew"
            );
            let failure = Failure::at(FailureCode::ForeignWrite, self.partition, gap_end, detail);
            return self.fail_with(failure.until(log_end));
        }
        if log_end <= errand.from {
            self.last_doubt = Some(format!("markers from offset {} on left the log's end at {log_end}", errand.from));
            let until = now + MARKER_SETTLE;
            self.strays.settle_until = Some(until);
            self.state = State::Waiting { until };
            return;
        }
        if !self.remembered {
            // The markers made the broker's entry, whose last sequence is -1.
            self.remembered = true;
            self.next_sequence = 0;
        }
        let end = log_end.min(errand.to);
        self.progress.produced = end;
        self.confirm(end);
        // Beyond what was sent lie late markers, or what somebody else wrote: the log itself tells.
        let filled = self.place == Place::Filling && self.held.is_empty();
        if log_end > errand.to || filled { self.ask() } else { self.produce() }
    }

    /// Sends markers for the gap that comes next, or takes another look first. Nothing is in flight.
    pub(super) fn skip(&mut self) {
        let from = self.progress.confirmed;
        let Some(left) = self.held.first_gap_end().map(|end| end - from) else { return };
        let late = if self.strays.wary { self.strays.late } else { 0 };
        let count = match left - late {
            room if room > 0 => room,
            _ if left > 1 => left - 1,
            _ if self.strays.looked => 1,
            _ => return self.ask(),
        };
        self.strays.looked = false;
        let to = from + count.min(MAX_MARKERS);
        self.hand_over(to);
        self.send_out(ErrandKind::Skip, from, to);
    }

    /// The log's end has come to `log_end` by itself: late markers, where a gap comes next.
    pub(super) fn take_late(&mut self, log_end: Offset) {
        if let Some(gap_end) = self.held.first_gap_end() {
            let came = log_end.min(gap_end) - self.progress.confirmed;
            self.strays.late = (self.strays.late - came).max(0);
        }
    }
}
