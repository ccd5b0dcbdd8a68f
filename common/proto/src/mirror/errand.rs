//! What moves a log's end other than batches do, or is written down first: one at a time in a partition, while no batch is
//! in flight.

use std::fmt;

use super::{Mirror, MirrorOutput, State};
use crate::id::{Offset, Time};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrandKind {
    Skip,
    FastForward,
    RecordLoss,
}

/// Outlives a stop: until it is answered, the log may be changed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errand {
    pub(super) kind: ErrandKind,
    pub(super) ticket: u64,
    pub(super) from: Offset,
    pub(super) to: Offset,
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, from, to, .. } = self;
        match kind {
            ErrandKind::Skip => write!(f, "skips offsets {from} to {}, which hold no record", to - 1),
            ErrandKind::FastForward => {
                write!(f, "moves the empty log's end from {from} to {to}, where the source starts")
            }
            ErrandKind::RecordLoss => write!(f, "records that offsets {from} to {} are lost at the source", to - 1),
        }
    }
}

impl Mirror {
    /// Asks for an errand.
    pub(super) fn send_out(&mut self, kind: ErrandKind, from: Offset, to: Offset) {
        let ticket = self.take_ticket();
        self.errand = Some(Errand { kind, ticket, from, to });
        self.outputs.push_back(match kind {
            ErrandKind::Skip => MirrorOutput::Skip { ticket, offset: from, count: to - from },
            ErrandKind::FastForward => MirrorOutput::FastForward { ticket, from, to },
            ErrandKind::RecordLoss => MirrorOutput::RecordLoss { ticket, from, to },
        });
    }

    /// The errand that is answered, if it is the one.
    pub(super) fn returned(&mut self, kind: ErrandKind, ticket: u64) -> Option<Errand> {
        self.errand.take_if(|errand| errand.kind == kind && errand.ticket == ticket)
    }

    /// An errand that nobody has seen yet will never be answered.
    pub(super) fn call_back(&mut self) {
        let unseen = |output: &MirrorOutput| match output {
            MirrorOutput::Skip { .. } | MirrorOutput::FastForward { .. } | MirrorOutput::RecordLoss { .. } => true,
            MirrorOutput::Recover { .. }
            | MirrorOutput::Position { .. }
            | MirrorOutput::Produce { .. }
            | MirrorOutput::Failed(_) => false,
        };
        if self.outputs.iter().any(unseen) {
            self.errand = None;
        }
    }

    /// Reads where the partition stands once nothing of before a stop can change it any more.
    pub(super) fn begin(&mut self) {
        if self.errand.is_some() {
            self.state = State::Settling;
        } else if let Some(until) = self.strays.settle_until {
            self.state = State::Waiting { until };
        } else {
            self.ask();
        }
    }

    /// What an errand's answer means once the mirror was stopped: it may begin again.
    pub(super) fn settled(&mut self) {
        if self.state == State::Settling {
            self.begin();
        }
    }

    /// An errand could not be done: reads where the partition stands, later.
    pub(super) fn put_off(&mut self, reason: String, now: Time) {
        self.last_doubt = Some(reason);
        let wait = self.errand_backoff.step();
        self.state = State::Waiting { until: now + wait };
    }
}
