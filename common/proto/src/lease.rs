//! The right of one gateway process to write for a link: the session's term, kept alive by looking at the registry.
//!
//! A gateway may send to brokers only while its last look at the registry's end, which showed no newer term, is younger
//! than the lease. A look counts from when it was *asked for*: what was appended after that may not be in it.

use crate::id::{Term, Time};

/// Why a write is not permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another session holds the link; this one never writes again.
    #[error("term {newer} took the link over")]
    Superseded {
        /// The newer term.
        newer: Term,
    },
    /// The registry was not read lately; the right returns with the next look.
    #[error("the registry was last read longer ago than the lease")]
    Lapsed,
}

/// The lease of one session.
#[derive(Debug, Clone)]
pub struct Lease {
    term: Term,
    duration: Time,
    asked_at: Option<Time>,
    newer: Option<Term>,
}

impl Lease {
    /// A lease for `term` that permits nothing until the first look.
    pub fn new(term: Term, duration: Time) -> Self {
        Self { term, duration, asked_at: None, newer: None }
    }

    /// A look at the registry's end, asked for at `asked_at`, saw `newest` as the link's latest term.
    pub fn looked(&mut self, asked_at: Time, newest: Term) {
        if newest > self.term {
            self.newer = Some(newest);
        } else {
            self.asked_at = self.asked_at.max(Some(asked_at));
        }
    }

    /// Whether a write to a broker may start at `now`.
    pub fn permits(&self, now: Time) -> Result<(), LeaseError> {
        match (self.newer, self.asked_at) {
            (Some(newer), _) => Err(LeaseError::Superseded { newer }),
            (None, Some(asked_at)) if now.saturating_sub(asked_at) < self.duration => Ok(()),
            (None, _) => Err(LeaseError::Lapsed),
        }
    }

    /// The session's term.
    pub fn term(&self) -> Term {
        self.term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn lapses_and_returns_but_never_after_a_newer_term() {
        let mut lease = Lease::new(Term(4), at(3));
        assert_eq!(lease.permits(at(0)), Err(LeaseError::Lapsed));
        lease.looked(at(10), Term(4));
        assert_eq!(lease.permits(at(12)), Ok(()));
        assert_eq!(lease.permits(at(13)), Err(LeaseError::Lapsed));
        lease.looked(at(13), Term(4));
        assert_eq!(lease.permits(at(13)), Ok(()));
        lease.looked(at(14), Term(5));
        lease.looked(at(15), Term(4));
        assert_eq!(lease.permits(at(15)), Err(LeaseError::Superseded { newer: Term(5) }));
    }

    #[test]
    fn an_older_look_does_not_shorten_it() {
        let mut lease = Lease::new(Term(1), at(3));
        lease.looked(at(10), Term(1));
        lease.looked(at(8), Term(0));
        assert_eq!(lease.permits(at(12)), Ok(()));
    }
}
