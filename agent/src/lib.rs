//! The agent: runs on site, reads the local Kafka cluster, dials out to the gateway and sends what it asks for.
//!
//! | module | job |
//! |---|---|
//! | [`settings`] | what the operator wrote, checked |
//! | [`filter`] | what may leave the site |
//! | `site` | the single owner: one event after the other through the state machine of `tombolo_proto::edge` |
//! | [`journal`], [`state`] | frames that the link does not take, on disk; what is kept over a restart |
//! | `keeper`, `evidence` | the thread that owns both; what the journal says about a mirror's end |
//! | `source` | the source cluster: topics, fetchers, comparison of a mirror's end |
//! | [`dial`], `carrier` | QUIC: the way to the gateway, and one connection's streams |
//! | `loss` | how long until the source deletes what is nowhere else |
//! | `export` | the journal in a folder that is carried by hand |
//! | `status` | `/status` and metrics |
//! | [`cli`] | `run`, `check`, `status` |

mod carrier;
mod check;
pub mod cli;
pub mod dial;
mod evidence;
mod export;
pub mod filter;
pub mod journal;
mod keeper;
mod loss;
pub mod settings;
mod site;
mod source;
pub mod state;
mod status;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tombolo_service::admin_http::{AdminHttp, Sources, StatusDocument};
use tombolo_service::metrics::MetricsError;
use tombolo_service::readiness::Readiness;
use tombolo_service::settings::SettingsError;
use tombolo_service::tasks::{TaskFailure, Tasks};

pub use keeper::KeeperError;
pub use settings::Settings;

/// For tasks to end after the gateway was told.
const GRACE: Duration = Duration::from_secs(5);
/// Fetch answers on their way to the owner of the site. Each fetcher holds one more.
const SOURCE_EVENTS: usize = 1;

/// Why an agent ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The local HTTP address cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// No metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Journal or checkpoint cannot be used.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// A task that should run on did not.
    #[error(transparent)]
    Task(#[from] TaskFailure),
}

/// Runs an agent until `shutdown`, inside the runtime of the caller. Several may run in one process, on ports of their
/// own; they share the metrics.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = tombolo_service::metrics::install()?;
    tombolo_service::metrics::describe(status::METRICS);
    tombolo_service::metrics::build_info("tombolo-agent", env!("CARGO_PKG_VERSION"));
    let (readiness, latch) = Readiness::new();
    let (published, status) = watch::channel(StatusDocument::default());
    let http = AdminHttp::start(settings.http, Sources { readiness, metrics, status })?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), http = %http.address(), "agent started");

    let journal = settings.journal.clone();
    let opened = tokio::task::spawn_blocking(move || keeper::start(&journal)).await;
    let keeper = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    // Tasks outlive the order to stop: the gateway is told first.
    let tasks = Tasks::new(&CancellationToken::new());
    let (events, source_events) = mpsc::channel(SOURCE_EVENTS);
    let source = source::start(&settings, &tasks, events, latch);
    let site = site::Site::new(&settings, tasks.clone(), source, source_events, keeper, published);
    let failed = tasks.stop_token().clone();
    let outcome = tokio::select! {
        ended = site.run(shutdown) => ended.map_err(RunError::Keeper),
        // Nobody else has stopped the group yet.
        () = failed.cancelled() => tasks.failure().map_or(Ok(()), |failure| Err(RunError::Task(failure))),
    };
    // Those that overrun were named and ended.
    drop(tasks.shutdown(GRACE).await);
    match &outcome {
        Ok(()) => tracing::info!("agent stopped"),
        Err(error) => tracing::error!(%error, "agent ended"),
    }
    outcome
}
