//! A source whose log starts above what the mirror holds: the mirror is made to start there, or what lies between is lost.

use super::Mirror;
use crate::id::{Offset, Time};

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
    /// The agent says that the source's log starts at `offset`, in the current run. Returns whether that was in order:
    /// all that was sent before is confirmed, and `offset` lies beyond it.
    #[must_use]
    pub fn source_start(&mut self, _offset: Offset, _on_loss: OnLoss) -> bool {
        true
    }

    /// The answer to a `FastForward`: where the mirror starts, if it was made to.
    pub fn fast_forwarded(&mut self, _ticket: u64, _result: Result<(), String>, _now: Time) -> Option<Offset> {
        None
    }

    /// The answer to a `RecordLoss`: the range that becomes a gap, if it does.
    pub fn loss_recorded(&mut self, _ticket: u64, _result: Result<(), String>, _now: Time) -> Option<(Offset, Offset)> {
        None
    }
}
