//! The daemon's local HTTP: `/livez`, `/readyz`, `/metrics`, `/status`.
//!
//! It has its own thread and runtime, so that it answers when the data path hangs: that is when it is needed. It reads
//! and never changes anything, and it only listens on loopback: what it tells (topics, lags, addresses) is not for the
//! network, and it has no authentication.

mod bounded;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::bounded::Bounded;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::settings::SettingsError;

/// How often recorded histogram samples are folded when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Connections at a time, and how long one may live: the few who ask are on this machine.
const MAX_CONNECTIONS: usize = 32;
const CONNECTION_LIFE: Duration = Duration::from_mins(1);

/// The `[http]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// Loopback address and port. Port 0 lets the system choose, for tests.
    pub listen: SocketAddr,
}

impl HttpSettings {
    /// Refuses an address that others on the network could reach.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        Err(SettingsError::new(
            "http.listen",
            format!("{} is not on loopback", self.listen),
            "a loopback address and port, such as 127.0.0.1:9644",
        ))
    }
}

/// What the endpoints tell.
#[derive(Clone, Debug)]
pub struct Sources {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// What `/status` answers: the owner of the state publishes, readers never wait for it.
    pub status: watch::Receiver<StatusDocument>,
}

/// A JSON document, written out: of thousands of partitions, made anew each second, that costs a fraction of a tree of
/// values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDocument(Bytes);

impl StatusDocument {
    /// # Panics
    ///
    /// Where `document` cannot be JSON: a map whose keys are no text.
    pub fn new(document: &impl Serialize) -> Self {
        Self(serde_json::to_vec(document).expect("plain values with text keys").into())
    }

    /// Its values, as a client reads them.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }
}

/// `null`.
impl Default for StatusDocument {
    fn default() -> Self {
        Self(Bytes::from_static(b"null"))
    }
}

/// The running server. Dropping it stops the thread.
#[derive(Debug)]
pub struct AdminHttp {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl AdminHttp {
    /// Binds and serves. An address that cannot be bound is an error of `http.listen`.
    pub fn start(settings: HttpSettings, sources: Sources) -> Result<Self, SettingsError> {
        settings.check()?;
        Self::serve(settings.listen, sources).map_err(|error| {
            SettingsError::new(
                "http.listen",
                format!("cannot listen on {}: {error}", settings.listen),
                "a free loopback address and port",
            )
        })
    }

    /// The bound address, with the port the system chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn serve(listen: SocketAddr, sources: Sources) -> io::Result<Self> {
        let listener = StdListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("admin-http".to_owned())
            .spawn(move || runtime.block_on(run(listener, sources, stopped)))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for AdminHttp {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic was printed by its own thread; there is nothing more to do with it here.
            drop(thread.join());
        }
    }
}

async fn run(listener: StdListener, sources: Sources, stop: CancellationToken) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "local HTTP cannot start");
            return;
        }
    };
    let metrics = sources.metrics.clone();
    let serve = axum::serve(Bounded::new(listener, MAX_CONNECTIONS, CONNECTION_LIFE), router(sources));
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            metrics.upkeep();
        }
    };
    // Open requests are dropped at the stop: none of them changes anything.
    tokio::select! {
        result = serve => {
            if let Err(error) = result {
                tracing::error!(%error, "local HTTP ended");
            }
        }
        () = upkeep => {}
        () = stop.cancelled() => {}
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(Arc::new(sources))
}

async fn readyz(State(sources): State<Arc<Sources>>) -> (StatusCode, &'static str) {
    if sources.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(sources): State<Arc<Sources>>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], sources.metrics.render()).into_response()
}

async fn status(State(sources): State<Arc<Sources>>) -> Response {
    let StatusDocument(json) = sources.status.borrow().clone();
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

#[cfg(test)]
#[path = "admin_http/admin_http_test.rs"]
mod admin_http_test;
