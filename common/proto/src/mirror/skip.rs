//! Gaps: the log end is moved past offsets that hold no record, by markers that no consumer sees.

use super::{Mirror, SkipOutcome};
use crate::id::Time;

/// Wait after markers are in doubt before the log end is read: a broker may still hold the request.
pub const MARKER_SETTLE: Time = Time::from_secs(1);

impl Mirror {
    /// The answer to a Skip.
    pub fn skipped(&mut self, _ticket: u64, _outcome: SkipOutcome, _now: Time) {}
}
