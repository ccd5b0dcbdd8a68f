//! Whether a stretch is still to be skipped: shared by the session, which gives it up, and by who sends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const QUEUED: u8 = 0;
const SENT: u8 = 1;
/// Given up before it was sent: it never will be.
const DROPPED: u8 = 2;
/// Given up after it was sent: a broker may still append it.
const ABANDONED: u8 = 3;

/// Clones are of one stretch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish(Arc<AtomicU8>);

impl Wish {
    /// Whether it may be sent, directly before it is: it counts as sent then, and did so where it was before.
    pub(super) fn is_sent(&self) -> bool {
        let sent = self.0.compare_exchange(QUEUED, SENT, Ordering::AcqRel, Ordering::Acquire);
        matches!(sent, Ok(_) | Err(SENT))
    }

    /// Nobody waits for it any more; returns whether a broker may still append it.
    pub(crate) fn give_up(&self) -> bool {
        match self.0.compare_exchange(QUEUED, DROPPED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(DROPPED) => false,
            Err(_) => {
                self.0.store(ABANDONED, Ordering::Release);
                true
            }
        }
    }

    /// Whether it was sent, and its outcome is waited for.
    pub(crate) fn is_out(&self) -> bool {
        self.0.load(Ordering::Acquire) == SENT
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), DROPPED | ABANDONED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_it_is_sent_or_it_was_given_up_before() {
        let wish = Wish::default();
        assert!(!wish.is_out() && !wish.give_up());
        assert!(!wish.is_sent() && wish.is_given_up() && !wish.give_up());

        let wish = Wish::default();
        assert!(wish.is_sent() && wish.is_out() && wish.is_sent());
        assert!(wish.give_up() && wish.give_up(), "a broker may have it");
        assert!(!wish.is_sent() && wish.is_given_up() && !wish.is_out());
    }
}
