//! Which process of a link's agent is served. Every process draws a number at its start; of two with one certificate, the
//! one that came last is served, and the other is refused while that one is there: a disk that was cloned to a second box
//! must not feed one mirror from two places. Once it has been gone for [`QUIET`] the other may come back: the word of a
//! process that died may have arrived after that of its successor, and nobody is on site to restart that.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::record::{IncarnationRecord, TermRecord};

/// Processes remembered after they were replaced. One that comes back after so many others is taken for a new one.
const MAX_REPLACED: usize = 64;
/// A process that has no session here and took its last term so long ago leaves its place to whom it replaced.
const QUIET: Duration = Duration::from_mins(10);
/// A process that took its last term so recently counts as still there.
const RECENT: Duration = Duration::from_mins(5);

/// Who asks for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claimant {
    /// The agent's process; 0 where it does not tell, and is not checked.
    pub(crate) incarnation: u64,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// An earlier session of the link stands in this gateway.
    pub(crate) earlier_connected: bool,
}

/// What the registry holds of a link's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Incarnations {
    taken_at: u64,
    current: Option<IncarnationRecord>,
    replaced: Vec<IncarnationRecord>,
}

/// A process that another has taken the link from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// When, in seconds since 1970.
    at: u64,
    /// Where the other came from.
    from: String,
}

/// A process whose place the claimant takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Former {
    pub(super) address: String,
    /// It was connected just now, from another address: two boxes at work, rather than one that was restarted.
    pub(super) still_there: bool,
}

/// For the operator who finds it in the agent's log at night.
impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = utc(self.at);
        write!(
            f,
            "another agent with this link's certificate took over at {at}, from {}: stop one of the two; restart this \
             one to take the link back",
            self.from
        )
    }
}

impl Incarnations {
    pub(super) fn of_record(record: &TermRecord) -> Self {
        let replaced = record.replaced.iter().take(MAX_REPLACED).cloned().collect();
        Self { taken_at: record.taken_at, current: record.incarnation.clone(), replaced }
    }

    pub(super) fn write(self, record: &mut TermRecord) {
        record.taken_at = self.taken_at;
        record.incarnation = self.current;
        record.replaced = self.replaced;
    }

    /// When the process that is served was first seen.
    pub(super) fn since(&self) -> Option<SystemTime> {
        self.current.as_ref().and_then(|current| UNIX_EPOCH.checked_add(Duration::from_secs(current.since)))
    }

    /// What there is after `claimant` took the link at `now` (seconds since 1970), and whose place it takes; an error where
    /// another has its place.
    pub(super) fn claim(&self, claimant: Claimant, now: u64) -> Result<(Self, Option<Former>), Replaced> {
        let Claimant { incarnation, address, earlier_connected } = claimant;
        let mut next = Self { taken_at: now, ..self.clone() };
        if incarnation == 0 {
            return Ok((next, None));
        }
        let quiet = !earlier_connected && now.saturating_sub(self.taken_at) > QUIET.as_secs();
        if let Some(at) = self.replaced.iter().position(|other| other.incarnation == incarnation) {
            let other = next.replaced.remove(at);
            if !quiet {
                return Err(Replaced { at: other.replaced_at, from: other.replaced_from });
            }
        }
        let address = address.to_string();
        if let Some(current) = next.current.as_mut().filter(|current| current.incarnation == incarnation) {
            current.address = address;
            return Ok((next, None));
        }
        let own = IncarnationRecord { incarnation, since: now, address: address.clone(), ..Default::default() };
        let former = next.current.replace(own).map(|mut former| {
            let recent = now.saturating_sub(self.taken_at) <= RECENT.as_secs();
            let still_there = former.address != address && (earlier_connected || recent);
            let shown = Former { address: former.address.clone(), still_there };
            former.replaced_at = now;
            former.replaced_from = address;
            next.replaced.insert(0, former);
            next.replaced.truncate(MAX_REPLACED);
            shown
        });
        Ok((next, former))
    }
}

/// Seconds since 1970 as RFC 3339 has it; whatever a record says can be shown.
fn utc(seconds: u64) -> String {
    // Beyond the year 9999 there is no such text.
    let seconds = seconds.min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_790_164_800;

    fn claimant(incarnation: u64, last: u8) -> Claimant {
        Claimant { incarnation, address: IpAddr::from([10, 0, 0, last]), earlier_connected: false }
    }

    /// The state after these claimants took the link, a day apart.
    fn after(claimants: &[Claimant]) -> Incarnations {
        let mut state = Incarnations::default();
        for (&claimant, day) in claimants.iter().zip(0..) {
            state = state.claim(claimant, NOON + day * 86_400).unwrap().0;
        }
        state
    }

    #[test]
    fn the_process_that_came_last_is_served_and_the_others_are_refused() {
        let state = after(&[claimant(7, 1), claimant(8, 2)]);
        let soon = NOON + 86_400 + 60;
        assert_eq!(state.claim(claimant(8, 3), soon).unwrap().1, None, "it may come back");
        let refused = state.claim(claimant(7, 1), soon).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "another agent with this link's certificate took over at 2026-09-24T12:00:00Z, from 10.0.0.2: stop one of \
             the two; restart this one to take the link back"
        );
        // Restarted, it has another number.
        let (state, former) = state.claim(claimant(9, 1), soon).unwrap();
        assert_eq!(former, Some(Former { address: "10.0.0.2".to_owned(), still_there: true }));
        assert!(state.claim(claimant(7, 1), soon).is_err() && state.claim(claimant(8, 2), soon).is_err());
    }

    #[test]
    fn one_that_was_replaced_comes_back_when_the_other_is_gone() {
        let state = after(&[claimant(7, 1), claimant(8, 1)]);
        let later = NOON + 86_400 + QUIET.as_secs() + 1;
        assert!(state.claim(Claimant { earlier_connected: true, ..claimant(7, 1) }, later).is_err(), "it is connected");
        let (state, former) = state.claim(claimant(7, 1), later).unwrap();
        assert!(former.is_some());
        assert!(state.claim(claimant(8, 1), later + 1).is_err(), "now it is the older one");
    }

    #[test]
    fn who_does_not_tell_is_not_checked_and_changes_nothing() {
        let state = after(&[claimant(7, 1), claimant(0, 2)]);
        assert_eq!(state.since(), UNIX_EPOCH.checked_add(Duration::from_secs(NOON)));
        assert!(state.claim(claimant(7, 1), NOON * 2).is_ok());
        assert_eq!(after(&[claimant(0, 2)]).current, None);
    }

    #[test]
    fn two_boxes_at_work_are_told_from_one_that_was_restarted() {
        let state = after(&[claimant(7, 1)]);
        let still_there = |claimant, now| state.claim(claimant, now).unwrap().1.unwrap().still_there;
        assert!(still_there(claimant(8, 2), NOON + 100));
        assert!(!still_there(claimant(8, 1), NOON + 100), "the same address");
        assert!(!still_there(claimant(8, 2), NOON + 1_000), "not seen for a while");
        assert!(still_there(Claimant { earlier_connected: true, ..claimant(8, 2) }, NOON + 1_000));
    }

    #[test]
    fn the_last_64_are_remembered_and_a_record_holds_them() {
        let claimants: Vec<Claimant> = (1..=70).map(|number| claimant(number, 1)).collect();
        let state = after(&claimants);
        let numbers: Vec<u64> = state.replaced.iter().map(|other| other.incarnation).collect();
        assert_eq!(numbers, (6..=69).rev().collect::<Vec<_>>());
        let link = tombolo_proto::id::LinkName::new("ship-17").unwrap();
        let mut record = TermRecord::new(&link, tombolo_proto::id::Term(1), 5, 1);
        state.clone().write(&mut record);
        assert_eq!(Incarnations::of_record(&record), state);
        assert!(record.value().len() < 4_096, "{} bytes", record.value().len());
        assert_eq!(utc(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
