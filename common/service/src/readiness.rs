//! Readiness by latches: ready when the last latch is gone, and by construction never unready again.
//!
//! A restart cannot help a daemon whose link is down, so the link is no part of this: it has a field in `/status`.

use std::sync::{Arc, Weak};

/// The reader's end, for the HTTP server.
#[derive(Clone, Debug)]
pub struct Readiness(Weak<()>);

/// Something that must be done before the process is ready; dropping it says that it is. A clone is one more such thing,
/// and only a holder can make one: when none is left none can come back.
#[derive(Clone, Debug)]
#[must_use = "dropping the latch says ready"]
pub struct Latch {
    _held: Arc<()>,
}

impl Readiness {
    /// Not ready until the latch and all its clones are dropped.
    pub fn new() -> (Self, Latch) {
        let held = Arc::new(());
        (Self(Arc::downgrade(&held)), Latch { _held: held })
    }

    pub fn is_ready(&self) -> bool {
        self.0.strong_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_when_the_last_latch_is_gone() {
        let (readiness, settings) = Readiness::new();
        let registry = settings.clone();
        assert!(!readiness.is_ready());
        drop(settings);
        assert!(!readiness.is_ready());
        drop(registry);
        assert!(readiness.is_ready());
    }
}
