//! What a group of tasks promises: nothing ends unseen, nothing outlives the grace period.

use std::future::pending;
use std::io;
use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

async fn failed(tasks: &Tasks) -> TaskFailure {
    tokio::time::timeout(DEADLINE, tasks.failed()).await.expect("no failure within the deadline")
}

fn group() -> Tasks {
    Tasks::new(&CancellationToken::new())
}

#[tokio::test]
async fn names_a_task_that_returned_early_and_stops_the_group() {
    let tasks = group();
    let stop = tasks.stop_token().clone();
    tasks.spawn("watcher", async move { stop.cancelled().await });
    tasks.spawn("fetcher", async {});
    let failure = failed(&tasks).await;
    assert_eq!(failure.to_string(), "task fetcher ended: returned although it should run on");
    assert!(tasks.stop_token().is_cancelled());
    assert_eq!(tasks.shutdown(DEADLINE).await, Ok(()));
}

#[tokio::test]
async fn gives_the_error_of_a_failed_task() {
    let tasks = group();
    tasks.spawn("writer", async { Err::<(), _>(io::Error::other("disk full")) });
    assert_eq!(failed(&tasks).await.to_string(), "task writer ended: disk full");
}

#[tokio::test]
async fn gives_the_text_of_a_panic() {
    let tasks = group();
    tasks.spawn("dialer", async {
        assert!(pending_never(), "offset {} is gone", 7);
    });
    assert_eq!(failed(&tasks).await.to_string(), "task dialer ended: panicked: offset 7 is gone");
}

fn pending_never() -> bool {
    std::hint::black_box(false)
}

#[tokio::test]
async fn keeps_the_first_failure() {
    let tasks = group();
    tasks.spawn("first", async { Err::<(), _>(io::Error::other("one")) });
    assert_eq!(failed(&tasks).await.name, "first");
    tasks.spawn("second", async { Err::<(), _>(io::Error::other("two")) });
    assert_eq!(tasks.shutdown(DEADLINE).await, Ok(()));
    assert_eq!(tasks.failure().expect("a failure").name, "first");
}

#[tokio::test]
async fn ends_in_order_are_no_failure() {
    let parent = CancellationToken::new();
    let tasks = Tasks::new(&parent);
    let stop = tasks.stop_token().clone();
    tasks.spawn("session", async move { stop.cancelled().await });
    parent.cancel();
    assert_eq!(tasks.shutdown(DEADLINE).await, Ok(()));
    assert!(tasks.failure().is_none());
}

#[tokio::test]
async fn a_failing_group_leaves_its_parent_alone() {
    let parent = CancellationToken::new();
    let tasks = Tasks::new(&parent);
    tasks.spawn("short", async {});
    failed(&tasks).await;
    assert!(!parent.is_cancelled());
}

#[tokio::test]
async fn a_child_may_end_or_panic_without_ending_the_group() {
    let tasks = group();
    assert_eq!(tasks.spawn_child("session 1", async { 5 }).await.expect("no panic"), 5);
    let panicked = tasks.spawn_child("session 2", async { assert!(pending_never(), "bad frame") }).await;
    assert!(panicked.expect_err("a panic").is_panic());
    assert!(!tasks.stop_token().is_cancelled());
    assert!(tasks.failure().is_none());
    assert_eq!(tasks.running(), Vec::<String>::new());
}

#[tokio::test]
async fn names_and_aborts_what_exceeds_the_grace_period() {
    let tasks = group();
    tasks.spawn("stuck", pending::<()>());
    let child = tasks.spawn_child("stuck child", pending::<()>());
    let stop = tasks.stop_token().clone();
    tasks.spawn("orderly", async move { stop.cancelled().await });
    let overrun = tasks.shutdown(Duration::from_millis(50)).await.expect_err("an overrun");
    assert_eq!(overrun.names, ["stuck", "stuck child"]);
    assert_eq!(overrun.to_string(), "still running after the grace period of 50ms: stuck, stuck child");
    assert!(child.await.expect_err("aborted").is_cancelled());
    tokio::time::timeout(DEADLINE, tasks.group.tracker.wait()).await.expect("aborted tasks end");
    assert_eq!(tasks.running(), Vec::<String>::new());
}

#[test]
fn a_task_started_while_the_runtime_ends_does_not_hang() {
    struct SpawnOnDrop(Tasks);
    impl Drop for SpawnOnDrop {
        fn drop(&mut self) {
            self.0.spawn("late", pending::<()>());
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let tasks = group();
    let late = SpawnOnDrop(tasks.clone());
    runtime.block_on(async {
        drop(tasks.spawn_child("holder", async move {
            let _late = late;
            pending::<()>().await;
        }));
    });
    runtime.shutdown_timeout(DEADLINE);
    assert_eq!(tasks.running(), Vec::<String>::new());
}
