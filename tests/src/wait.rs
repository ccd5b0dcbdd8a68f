//! Waiting for a condition, with a deadline: the one way a test lets time pass.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Looks every 50 ms until `look` answers `Ok`; panics with the last `Err` once `deadline` has passed.
pub async fn until<T, E: Debug>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() >= deadline => {
                panic!("{what}: not within {deadline:?}; last seen: {seen:?}")
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}
