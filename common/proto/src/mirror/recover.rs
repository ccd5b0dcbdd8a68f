//! Where a partition stands is read from the cluster: at the start, after a doubt, where a run ends.

use super::{Mirror, MirrorOutput, Place, Recovery, State, advance};
use crate::failure::{Failure, FailureCode};
use crate::id::Time;
use crate::progress::CloudProgress;
use crate::wire::TailBatch;

/// Times the broker may refuse our sequence at one log end before the mirror is FAILED.
const MAX_SEQUENCE_DOUBTS: u32 = 5;

impl Mirror {
    /// The log end could not be read; it is tried again later.
    pub fn recovery_failed(&mut self, attempt: u32, reason: String, now: Time) {
        if self.state == (State::Recovering { attempt }) {
            self.last_doubt = Some(reason);
            self.state = State::Waiting { until: now + self.backoff.step() };
        }
    }

    /// What the cluster holds. Stale answers are ignored.
    pub fn recovered(&mut self, attempt: u32, recovery: &Recovery) {
        if self.state != (State::Recovering { attempt }) {
            return;
        }
        self.backoff.reset();
        if let Err(failure) = self.judge(recovery) {
            return self.fail_with(failure);
        }
        self.next_sequence = next_sequence(recovery);
        self.remembered = recovery.last_sequence.is_some();
        self.known_to_broker = false;
        self.log_start = recovery.log_start;
        self.starting = recovery.starting;
        self.strays.looked = true;
        self.state = State::Live;
        let CloudProgress { confirmed, received, .. } = self.progress;
        let log_end = recovery.log_end;
        let goes_on = match self.place {
            Place::Told => confirmed <= log_end,
            Place::Filling => confirmed <= log_end && log_end < received,
            Place::Nowhere | Place::Over => false,
        };
        if goes_on {
            self.take_late(log_end);
            self.hand_over(log_end);
            self.confirm(log_end);
            self.produce();
        } else {
            self.start_run(recovery);
        }
    }

    /// Starts a run at the log end.
    fn start_run(&mut self, recovery: &Recovery) {
        let log_end = recovery.log_end;
        let rewind = self.place != Place::Nowhere && log_end < self.progress.confirmed;
        self.rewinds += u64::from(rewind);
        if self.place == Place::Filling {
            // The lost range that is filled, or the part of it that is.
            self.confirm(log_end);
        }
        self.place = Place::Told;
        self.strays.ceiling = None;
        self.run += 1;
        self.forget(log_end);
        let mut tail = Vec::new();
        for batch in &recovery.tail {
            if batch.is_control() {
                TailBatch::gap(batch.base_offset(), batch.next_offset()).append(&mut tail);
            } else if batch.may_be_cleaned() {
                // Not what was sent any more, so no evidence.
                tail.clear();
            } else {
                TailBatch::of(batch).append(&mut tail);
            }
        }
        self.outputs.push_back(MirrorOutput::Position { run: self.run, next_offset: log_end, tail, rewind });
    }

    pub(super) fn ask(&mut self) {
        if self.sequence_doubts > MAX_SEQUENCE_DOUBTS {
            let detail = format!(
                "the broker refused the link's sequence {} times in a row at this offset",
                self.sequence_doubts
            );
            let offset = self.progress.confirmed;
            return self.fail_with(Failure::at(FailureCode::IllegalState, self.partition, offset, detail));
        }
        self.strays.settle_until = None;
        self.attempts += 1;
        self.state = State::Recovering { attempt: self.attempts };
        self.outputs.push_back(MirrorOutput::Recover { attempt: self.attempts });
    }
}

/// Sequence of the next batch: behind the broker's last one; 0 behind a marker; the log end where the broker remembers
/// nothing and takes any (design: compare-and-append).
pub(super) fn next_sequence(recovery: &Recovery) -> i32 {
    match recovery.last_sequence {
        Some(last) if last >= 0 => advance(last, 1),
        Some(_) => 0,
        None => i32::try_from(recovery.log_end & i64::from(i32::MAX)).unwrap_or(0),
    }
}
