//! The lease of one session, shared between the registry's follower, which keeps it alive, and the connections to
//! brokers, which ask it before every write.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tombolo_kafka::WriteRefused;
use tombolo_proto::id::{LinkName, Term, Time};
use tombolo_proto::lease::{Lease, LeaseError};

use crate::clock::Clock;

/// How long a write waits for a lapsed lease where its partition may as well start over.
const PATIENCE: Duration = Duration::from_secs(1);

/// One session's right to write.
#[derive(Debug)]
pub(crate) struct SessionLease {
    link: LinkName,
    term: Term,
    clock: Clock,
    lease: Mutex<Lease>,
    looks: watch::Sender<Looks>,
}

/// An error of something that wrote.
pub(crate) trait Lapse {
    /// Whether the lease kept it from writing.
    fn is_lapse(&self) -> bool;
}

#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    count: u64,
    newer: Option<Term>,
}

impl SessionLease {
    pub(super) fn new(link: LinkName, term: Term, duration: Time, clock: Clock) -> Self {
        Self { link, term, clock, lease: Mutex::new(Lease::new(term, duration)), looks: watch::Sender::default() }
    }

    pub(super) fn link(&self) -> &LinkName {
        &self.link
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    pub(super) fn looked(&self, asked_at: Time, newest: Term) {
        self.lease().looked(asked_at, newest);
        let own = self.term;
        self.looks.send_modify(|looks| {
            looks.count += 1;
            looks.newer = looks.newer.max(Some(newest).filter(|&newest| newest > own));
        });
    }

    /// Whether a write may start now.
    pub(crate) fn permits(&self) -> Result<(), LeaseError> {
        let now = self.clock.now();
        self.lease().permits(now)
    }

    /// As a connection's write guard answers.
    pub(crate) fn guard(&self) -> Result<(), WriteRefused> {
        self.permits().map_err(|error| WriteRefused {
            reason: match error {
                LeaseError::Superseded { .. } => "another session holds the link",
                LeaseError::Lapsed => "the lease has lapsed",
            },
        })
    }

    /// Waits until a write is permitted, or never will be again.
    pub(crate) async fn settled(&self) -> Result<(), LeaseError> {
        let mut looks = self.looks.subscribe();
        loop {
            match self.permits() {
                Err(LeaseError::Lapsed) => {}
                settled => return settled,
            }
            // The sender lives in `self`.
            if looks.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// As [`Self::settled`], but not for ever.
    pub(crate) async fn soon(&self) -> Result<(), LeaseError> {
        self.within(PATIENCE).await
    }

    async fn within(&self, patience: Duration) -> Result<(), LeaseError> {
        tokio::time::timeout(patience, self.settled()).await.unwrap_or(Err(LeaseError::Lapsed))
    }

    /// Does `work` once writes are permitted, and again where the lease lapsed before all of it was written. It must be
    /// such as may be done twice, and has time: it ends with the session, or once another has taken the link.
    pub(crate) async fn patiently<T, E, W>(&self, mut work: impl FnMut() -> W) -> Result<T, E>
    where
        E: From<LeaseError> + Lapse + fmt::Display,
        W: Future<Output = Result<T, E>>,
    {
        loop {
            self.settled().await?;
            match work().await {
                Err(error) if error.is_lapse() => {
                    tracing::debug!(link = %self.link, %error, "the lease lapsed before a write, which is tried again");
                }
                done => return done,
            }
        }
    }

    /// Waits for a newer term of the link.
    pub(crate) async fn superseded(&self) -> Term {
        let mut looks = self.looks.subscribe();
        match looks.wait_for(|looks| looks.newer.is_some()).await.map(|looks| looks.newer) {
            Ok(Some(newer)) => newer,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Held for an instant only: brokers' connections ask between two writes.
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(seconds: u64) -> SessionLease {
        let link = LinkName::new("ship-17").unwrap();
        SessionLease::new(link, Term(4), Duration::from_secs(seconds), Clock::start())
    }

    #[tokio::test]
    async fn permits_after_a_look_and_never_after_a_newer_term() {
        let lease = lease(60);
        assert_eq!(lease.permits(), Err(LeaseError::Lapsed));
        assert_eq!(lease.guard().unwrap_err().reason, "the lease has lapsed");
        let (settled, ()) = tokio::join!(lease.settled(), async { lease.looked(lease.clock.now(), Term(4)) });
        assert_eq!(settled, Ok(()));
        lease.looked(lease.clock.now(), Term(5));
        assert_eq!(lease.superseded().await, Term(5));
        lease.looked(lease.clock.now(), Term(4));
        assert_eq!(lease.settled().await, Err(LeaseError::Superseded { newer: Term(5) }));
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Refused {
        ByGuard,
        Otherwise,
        Lease(LeaseError),
    }

    impl From<LeaseError> for Refused {
        fn from(error: LeaseError) -> Self {
            Self::Lease(error)
        }
    }

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Debug::fmt(self, f)
        }
    }

    impl Lapse for Refused {
        fn is_lapse(&self) -> bool {
            *self == Self::ByGuard
        }
    }

    #[tokio::test]
    async fn what_has_time_waits_for_the_lease_and_is_done_again_where_it_lapsed_meanwhile() {
        let lease = lease(60);
        let mut answers = vec![Ok(7), Err(Refused::ByGuard), Err(Refused::ByGuard)];
        let mut work = || std::future::ready(answers.pop().unwrap());
        let (done, ()) = tokio::join!(lease.patiently(&mut work), async { lease.looked(lease.clock.now(), Term(4)) });
        assert_eq!(done, Ok(7));
        let other = lease.patiently(|| std::future::ready(Err::<(), _>(Refused::Otherwise))).await;
        assert_eq!(other, Err(Refused::Otherwise), "is not the lease's");
        let work = || {
            lease.looked(lease.clock.now(), Term(5));
            std::future::ready(Err::<(), _>(Refused::ByGuard))
        };
        let newer = Term(5);
        assert_eq!(lease.patiently(work).await, Err(Refused::Lease(LeaseError::Superseded { newer })));
    }

    #[tokio::test]
    async fn what_may_start_over_does_not_wait_for_ever() {
        let lease = lease(60);
        assert_eq!(lease.within(Duration::ZERO).await, Err(LeaseError::Lapsed));
        let (ready, ()) = tokio::join!(lease.soon(), async { lease.looked(lease.clock.now(), Term(4)) });
        assert_eq!(ready, Ok(()));
    }

    #[tokio::test]
    async fn an_old_look_permits_nothing() {
        let lease = lease(0);
        lease.looked(Duration::ZERO, Term(4));
        assert_eq!(lease.permits(), Err(LeaseError::Lapsed));
    }
}
