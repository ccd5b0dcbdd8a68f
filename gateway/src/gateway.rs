//! The life of a gateway: everything is started, runs until the stop, and is stopped in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_service::admin_http::{AdminHttp, Sources, StatusDocument};
use tombolo_service::readiness::Readiness;
use tombolo_service::settings::SettingsError;
use tombolo_service::shutdown;
use tombolo_service::tasks::{TaskFailure, Tasks};

use crate::listener::Listener;
use crate::metrics;
use crate::settings::Settings;
use crate::shared::Shared;

/// For sessions to take leave and for answers on their way.
const GRACE: Duration = Duration::from_secs(5);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Why a gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file or address of the settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The metrics recorder could not be set up.
    #[error(transparent)]
    Metrics(#[from] tombolo_service::metrics::MetricsError),
    /// Signals cannot be watched, or the bound address not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A task ended that must not.
    #[error(transparent)]
    Task(#[from] TaskFailure),
}

/// Runs a gateway until `stop`. Reads its settings file again at SIGHUP, where it has one. Must be called within a tokio
/// runtime; several may run in one process.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), RunError> {
    let recorder = tombolo_service::metrics::install()?;
    metrics::describe_all();
    let tasks = Tasks::new(&stop);
    let (readiness, latch) = Readiness::new();
    let (status_sender, status) = watch::channel(StatusDocument::default());
    let http_settings = settings.http;
    let reloads = if settings.file.is_some() { Some(shutdown::reloads()?) } else { None };
    let shared = Shared::new(settings);
    let listener = Listener::bind(Arc::clone(&shared), tasks.clone())?;
    let http = AdminHttp::start(http_settings, Sources { readiness, metrics: recorder, status })?;
    tracing::info!(listen = %listener.address()?, http = %http.address(), "gateway started");

    let token = tasks.stop_token().clone();
    tasks.spawn("registry", until(token.clone(), shared.registry.clone().follow(latch)));
    tasks.spawn("listener", listener.run(token.clone()));
    tasks.spawn("status", until(token.clone(), show(Arc::clone(&shared), status_sender)));
    if let Some(reloads) = reloads {
        tasks.spawn("reload", until(token.clone(), reload(Arc::clone(&shared), reloads)));
    }
    // A task that ends too early stops the group.
    token.cancelled().await;
    // An overrun is told by `Tasks` itself.
    drop(tasks.shutdown(GRACE).await);
    drop(http);
    if let Some(failure) = tasks.failure() {
        return Err(failure.into());
    }
    tracing::info!("gateway stopped");
    Ok(())
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn show(shared: Arc<Shared>, sender: watch::Sender<StatusDocument>) {
    let mut every = tokio::time::interval(SHOW_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let links = Arc::clone(&shared.links.borrow());
        sender.send_replace(shared.board.document(&links, &shared.registry.ledgers()));
    }
}

async fn reload(shared: Arc<Shared>, mut reloads: shutdown::Reloads) {
    loop {
        reloads.next().await;
        let Some(file) = &shared.settings.file else { return };
        let new = match Settings::load(file) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "settings refused, the old ones stay");
                continue;
            }
        };
        for key in new.need_restart(&shared.settings) {
            tracing::warn!(key, "changed setting needs a restart");
        }
        tracing::info!(links = new.links.len(), "links and mirrors read again");
        shared.links.send_replace(Arc::new(new.links));
    }
}
