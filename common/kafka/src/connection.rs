//! One connection to one broker: requests go out in the order they were submitted, several at a time, answers come
//! back in that order.
//!
//! One task owns the socket (`driver`). The first error poisons the connection: every waiter and every later caller
//! gets that same error, and the owner makes a new connection. A request whose future is dropped stays in flight and
//! its answer is thrown away.

mod driver;
mod setup;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::WriteGuard;
use crate::error::{Api, ConnectionError, ConnectionErrorKind, KafkaError, KafkaErrorKind, Versions};
use crate::wire::{self, Call};
use driver::{Driver, Outgoing};

pub(crate) use setup::open;

/// Requests in flight on one connection.
pub(crate) const MAX_IN_FLIGHT: usize = 64;

/// What a connection needs to know about itself.
#[derive(Clone)]
pub(crate) struct ConnectionOptions {
    /// Node id, -1 for a bootstrap address.
    pub(crate) broker: i32,
    /// `host:port`, for errors.
    pub(crate) address: Arc<str>,
    pub(crate) client_id: Arc<str>,
    /// Deadline of a request, on top of what the request itself lets the broker wait.
    pub(crate) request_timeout: Duration,
    pub(crate) max_answer_bytes: usize,
    pub(crate) guard: Option<WriteGuard>,
}

/// Handle of a connection; clones share it. The socket closes with the last handle.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    options: ConnectionOptions,
    versions: OnceLock<BTreeMap<i16, Versions>>,
    correlation: AtomicI32,
    slots: Arc<Semaphore>,
    queue: mpsc::Sender<Outgoing>,
    fate: Arc<Fate>,
    /// Aborts the driver, and so closes the socket, when the last handle goes.
    _driver: JoinSet<()>,
}

/// The end of a connection, told once.
struct Fate {
    address: Arc<str>,
    cause: OnceLock<Arc<ConnectionError>>,
    dead: CancellationToken,
}

impl Fate {
    /// The first cause stays.
    fn seal(&self, kind: ConnectionErrorKind) -> Arc<ConnectionError> {
        let cause = self.cause.get_or_init(|| Arc::new(ConnectionError { address: Arc::clone(&self.address), kind }));
        self.dead.cancel();
        Arc::clone(cause)
    }

    fn cause(&self) -> Arc<ConnectionError> {
        self.cause.get().map_or_else(|| self.seal(ConnectionErrorKind::Dropped), Arc::clone)
    }
}

impl Connection {
    /// Runs a connection over an open byte stream. Nothing is asked yet: [`Connection::set_versions`] follows.
    pub(crate) fn start(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        options: ConnectionOptions,
    ) -> Self {
        let fate = Arc::new(Fate {
            address: Arc::clone(&options.address),
            cause: OnceLock::new(),
            dead: CancellationToken::new(),
        });
        let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let (queue, incoming) = mpsc::channel(MAX_IN_FLIGHT);
        let driver = Driver::new(incoming, options.guard.clone(), options.max_answer_bytes);
        let mut tasks = JoinSet::new();
        let (end, gate) = (Arc::clone(&fate), Arc::clone(&slots));
        let _abort = tasks.spawn(async move {
            driver.run(stream, &end).await;
            gate.close();
        });
        Self {
            inner: Arc::new(Inner {
                options,
                versions: OnceLock::new(),
                correlation: AtomicI32::new(0),
                slots,
                queue,
                fate,
                _driver: tasks,
            }),
        }
    }

    /// Node id of the broker, -1 for a bootstrap address.
    pub fn broker_id(&self) -> i32 {
        self.inner.options.broker
    }

    /// `host:port` of the broker.
    pub fn address(&self) -> &Arc<str> {
        &self.inner.options.address
    }

    /// Whether the connection has failed for good.
    pub fn is_poisoned(&self) -> bool {
        self.inner.fate.dead.is_cancelled()
    }

    /// Waits until the connection has failed, and says why.
    pub async fn poisoned(&self) -> Arc<ConnectionError> {
        self.inner.fate.dead.cancelled().await;
        self.inner.fate.cause()
    }

    /// Versions of a request that the broker offers, `None` where it does not know the request.
    pub fn offers(&self, api: Api) -> Option<Versions> {
        self.inner.versions.get().and_then(|versions| versions.get(&api.key())).copied()
    }

    /// Deadline of a request that lets the broker wait for `wait`.
    pub(crate) fn deadline(&self, wait: Duration) -> Duration {
        self.inner.options.request_timeout.saturating_add(wait)
    }

    pub(crate) fn set_versions(&self, versions: BTreeMap<i16, Versions>) {
        // Set once by the connection's set-up; a second set would change nothing.
        let _first = self.inner.versions.set(versions);
    }

    /// The newest version of a request that both sides speak, up to `newest`.
    pub(crate) fn version<C: Call>(&self, newest: i16) -> Result<i16, KafkaError> {
        self.version_since::<C>(C::VERSIONS.min, newest)
    }

    /// The newest version of a request that both sides speak within a range of this client's.
    pub(crate) fn version_since<C: Call>(&self, oldest: i16, newest: i16) -> Result<i16, KafkaError> {
        let ours = Versions { min: oldest.max(C::VERSIONS.min), max: newest.min(C::VERSIONS.max) };
        let theirs = self.offers(C::API);
        match theirs {
            Some(theirs) if theirs.min.max(ours.min) <= theirs.max.min(ours.max) => Ok(theirs.max.min(ours.max)),
            Some(_) | None => Err(KafkaError::new(
                C::API,
                KafkaErrorKind::Unsupported { api: C::API, ours, theirs, address: Arc::clone(self.address()) },
            )),
        }
    }

    /// Queues a request before it returns and waits for its answer in the future, which may be dropped. `guarded`
    /// requests ask the write guard.
    pub(crate) fn submit<C: Call>(
        &self,
        request: &C,
        version: i16,
        deadline: Duration,
        guarded: bool,
    ) -> impl Future<Output = Result<C::Answer, KafkaError>> + Send + use<C> {
        let queued = match Arc::clone(&self.inner.slots).try_acquire_owned() {
            Ok(slot) => self.enqueue(request, version, deadline, guarded, slot),
            Err(tokio::sync::TryAcquireError::NoPermits) => {
                Err(KafkaError::new(C::API, KafkaErrorKind::Busy { limit: MAX_IN_FLIGHT }))
            }
            Err(tokio::sync::TryAcquireError::Closed) => Err(KafkaError::unsent(C::API, self.inner.fate.cause())),
        };
        let connection = self.clone();
        async move {
            let answer = connection.answer(C::API, queued?).await?;
            connection.decode::<C>(answer, version)
        }
    }

    /// Sends a request, waiting for a free slot first.
    pub(crate) async fn call<C: Call>(
        &self,
        request: &C,
        version: i16,
        deadline: Duration,
    ) -> Result<C::Answer, KafkaError> {
        let answer = self.call_undecoded(request, version, deadline).await?;
        self.decode::<C>(answer, version)
    }

    /// The same for an answer whose version only its content tells.
    pub(crate) async fn call_undecoded<C: Call>(
        &self,
        request: &C,
        version: i16,
        deadline: Duration,
    ) -> Result<Bytes, KafkaError> {
        let Ok(slot) = Arc::clone(&self.inner.slots).acquire_owned().await else {
            return Err(KafkaError::unsent(C::API, self.inner.fate.cause()));
        };
        let queued = self.enqueue(request, version, deadline, false, slot)?;
        self.answer(C::API, queued).await
    }

    fn enqueue<C: Call>(
        &self,
        request: &C,
        version: i16,
        after: Duration,
        guarded: bool,
        slot: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Result<Bytes, KafkaErrorKind>>, KafkaError> {
        let correlation = self.inner.correlation.fetch_add(1, Ordering::Relaxed);
        let frame = wire::encode(request, version, correlation, &self.inner.options.client_id)
            .map_err(|reason| KafkaError::new(C::API, KafkaErrorKind::Encode(reason.into())))?;
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + after;
        let outgoing = Outgoing { frame, guarded, api: C::API, correlation, after, deadline, reply, _slot: slot };
        // A slot is held, so the queue has room: it is closed if it refuses.
        match self.inner.queue.try_send(outgoing) {
            Ok(()) => Ok(answer),
            Err(_) => Err(KafkaError::unsent(C::API, self.inner.fate.cause())),
        }
    }

    async fn answer(
        &self,
        api: Api,
        queued: oneshot::Receiver<Result<Bytes, KafkaErrorKind>>,
    ) -> Result<Bytes, KafkaError> {
        if let Ok(answer) = queued.await {
            return answer.map_err(|kind| KafkaError::new(api, kind));
        }
        // The driver answers whatever it took; only a runtime that shuts down drops it unanswered.
        let cause = self.inner.fate.cause();
        Err(KafkaError::new(api, KafkaErrorKind::Connection { cause, sent: true }))
    }

    pub(crate) fn decode<C: Call>(&self, answer: Bytes, version: i16) -> Result<C::Answer, KafkaError> {
        wire::decode::<C>(answer, version).map_err(|reason| {
            let kind = ConnectionErrorKind::Decode { api: C::API, version, reason: reason.into() };
            let cause = self.inner.fate.seal(kind);
            KafkaError::new(C::API, KafkaErrorKind::Connection { cause, sent: true })
        })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("broker", &self.inner.options.broker)
            .field("address", &self.inner.options.address)
            .field("poisoned", &self.is_poisoned())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "connection/connection_test.rs"]
mod tests;
