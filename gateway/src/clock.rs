//! The process's monotone time, as the pure core takes it.

use std::time::Instant;

use tombolo_proto::id::Time;

/// Time since the gateway started. Copies count from the same start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Time {
        self.0.elapsed()
    }

    /// The tokio instant of a time.
    pub(crate) fn at(self, time: Time) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0 + time)
    }
}
