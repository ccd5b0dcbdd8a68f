//! Named tasks that are stopped together and never lost.
//!
//! The only place of the workspace that calls `tokio::spawn`. A task of [`Tasks::spawn`] is meant to live as long as its
//! group: if it ends before the group is told to stop, by return, error or panic, the group is told to stop and
//! [`Tasks::failed`] gives its name and the cause. Work that ends by itself (one session, one fetcher) goes through
//! [`Tasks::spawn_child`], whose owner sees the outcome and decides: one link's panic must not end the others'.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks with one stop. Clones are the same group.
#[derive(Clone, Debug)]
pub struct Tasks {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    stop: CancellationToken,
    tracker: TaskTracker,
    failure: watch::Sender<Option<TaskFailure>>,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    next_id: u64,
    tasks: BTreeMap<u64, RunningTask>,
}

#[derive(Debug)]
struct RunningTask {
    name: String,
    /// Set right after the task was started.
    abort: Option<AbortHandle>,
}

/// A task that ended although its group was not told to stop.
#[derive(Clone, Debug, thiserror::Error)]
#[error("task {name} ended: {cause}")]
pub struct TaskFailure {
    pub name: String,
    pub cause: EndCause,
}

/// How a task ended too early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndCause {
    #[error("returned although it should run on")]
    Returned,
    #[error("{0}")]
    Failed(Arc<dyn Error + Send + Sync>),
    #[error("panicked: {0}")]
    Panicked(String),
}

/// Tasks that did not end within the grace period. They were aborted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running after the grace period of {}: {}", humantime::format_duration(*grace), names.join(", "))]
pub struct Overrun {
    pub grace: Duration,
    pub names: Vec<String>,
}

/// What a long-lived task may return: nothing, or a `Result` whose error becomes the cause.
pub trait Outcome: Send + 'static {
    fn into_cause(self) -> Option<EndCause>;
}

impl Outcome for () {
    fn into_cause(self) -> Option<EndCause> {
        None
    }
}

impl<E: Error + Send + Sync + 'static> Outcome for Result<(), E> {
    fn into_cause(self) -> Option<EndCause> {
        self.err().map(|error| EndCause::Failed(Arc::new(error)))
    }
}

impl Tasks {
    /// A group that stops when `parent` is cancelled. Stopping the group does not cancel `parent`.
    pub fn new(parent: &CancellationToken) -> Self {
        Self {
            group: Arc::new(Group {
                stop: parent.child_token(),
                tracker: TaskTracker::new(),
                failure: watch::Sender::new(None),
                running: Mutex::default(),
            }),
        }
    }

    /// Cancelled when the group is told to stop. Every task watches it.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.group.stop
    }

    /// Runs `future` for as long as the group lives.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Outcome,
    {
        let name = name.into();
        let group = Arc::clone(&self.group);
        let watched = {
            let name = name.clone();
            async move {
                let cause = match AssertUnwindSafe(future).catch_unwind().await {
                    Ok(outcome) => outcome.into_cause(),
                    Err(panic) => Some(EndCause::Panicked(panic_text(panic.as_ref()))),
                };
                group.ended(name, cause);
            }
        };
        drop(self.track(name, watched));
    }

    /// Runs `future`, which may end by itself. Whoever holds the handle sees its result or panic.
    pub fn spawn_child<F>(&self, name: impl Into<String>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.track(name.into(), future)
    }

    /// Waits for the first task of [`Tasks::spawn`] that ended too early. Never resolves if none does.
    pub async fn failed(&self) -> TaskFailure {
        let mut failure = self.group.failure.subscribe();
        match failure.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(failure)) => failure.clone(),
            // The sender lives in the group, which `self` holds.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// The first failure so far.
    pub fn failure(&self) -> Option<TaskFailure> {
        self.group.failure.borrow().clone()
    }

    /// The names of the tasks that run, in the order they were started.
    pub fn running(&self) -> Vec<String> {
        self.group.running().tasks.values().map(|task| task.name.clone()).collect()
    }

    /// Tells the group to stop and waits for its tasks, at most `grace`. Those that still run then are named in a WARN,
    /// aborted, and returned as the error.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), Overrun> {
        self.group.stop.cancel();
        self.group.tracker.close();
        if tokio::time::timeout(grace, self.group.tracker.wait()).await.is_ok() {
            return Ok(());
        }
        let names = self.running();
        tracing::warn!(grace = ?grace, tasks = ?names, "grace period exceeded, aborting tasks");
        let tasks = self.group.running();
        tasks.tasks.values().filter_map(|task| task.abort.as_ref()).for_each(AbortHandle::abort);
        drop(tasks);
        Err(Overrun { grace, names })
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where tasks begin: all are named and tracked")]
    fn track<F>(&self, name: String, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = self.group.enter(name);
        let entry = Entry { group: Arc::clone(&self.group), id };
        // The lock is not held here: a runtime that shuts down drops the future, and the entry with it, at once.
        let task = tokio::spawn(self.group.tracker.track_future(async move {
            let _entry = entry;
            future.await
        }));
        if let Some(running) = self.group.running().tasks.get_mut(&id) {
            running.abort = Some(task.abort_handle());
        }
        task
    }
}

impl Group {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, name: String) -> u64 {
        let mut running = self.running();
        let id = running.next_id;
        running.next_id += 1;
        running.tasks.insert(id, RunningTask { name, abort: None });
        id
    }

    fn ended(&self, name: String, cause: Option<EndCause>) {
        let cause = match cause {
            // After the stop only what went wrong is worth telling.
            None if self.stop.is_cancelled() => return,
            None => EndCause::Returned,
            Some(cause) => cause,
        };
        self.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(TaskFailure { name, cause });
            is_first
        });
        self.stop.cancel();
    }
}

/// Takes a task off the list when it ends, however it ends.
struct Entry {
    group: Arc<Group>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.group.running().tasks.remove(&self.id);
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
#[path = "tasks/tasks_test.rs"]
mod tasks_test;
