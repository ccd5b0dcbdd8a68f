//! The harness itself: brokers start, break and come back as the tests that use them believe.

#![expect(clippy::unwrap_used, reason = "a test has nobody to hand an error to")]

mod brokers;
mod daemons;
mod java;
mod lossy_link;
mod records;
mod transactions;
