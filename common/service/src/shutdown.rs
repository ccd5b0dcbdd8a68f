//! Signals: SIGTERM and SIGINT stop the process in order, a second one at once; SIGHUP asks for a reload.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Exit code after a second signal: 128 + SIGINT, as shells report it.
const EXIT_AT_ONCE: i32 = 130;

/// SIGHUPs, coalesced while nobody waits.
#[derive(Debug)]
pub struct Reloads(Signal);

/// Watches for SIGTERM and SIGINT from here on. The first cancels the returned token; the second ends the process at
/// once, for whoever does not want to wait for the grace period. Called once, inside the runtime.
pub fn listen() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // A group of its own: it must outlive the daemon's tasks to see the second signal.
    let watcher = Tasks::new(&CancellationToken::new());
    let task = watcher.spawn_child("signals", async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stopped.is_cancelled() {
                tracing::warn!(signal = name, "second signal, ending at once");
                std::process::exit(EXIT_AT_ONCE);
            }
            tracing::info!(signal = name, "stopping");
            stopped.cancel();
        }
    });
    // It ends with the runtime.
    drop(task);
    Ok(stop)
}

/// Watches for SIGHUP from here on.
pub fn reloads() -> io::Result<Reloads> {
    signal(SignalKind::hangup()).map(Reloads)
}

impl Reloads {
    /// Waits for the next SIGHUP.
    pub async fn next(&mut self) {
        // `None` means that no further signal can come.
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
