//! What tombolo's tests stand on: real brokers, the daemons as processes, a link that is not to be trusted, and the
//! check that two clusters hold the same.
//!
//! - [`broker`]: Kafka from Maven, KRaft clusters on loopback ports, and what may happen to them.
//! - [`process`]: the daemons as processes; [`log_guard`] reads what they logged.
//! - [`rig`]: a whole link of an agent and a gateway, with certificates and settings.
//! - [`commits`]: what the journal is given, for benchmarks.
//! - [`mirror_maker`]: what benchmarks compare tombolo with.
//! - [`lossy_link`]: a UDP forwarder that delays, loses, reorders, duplicates, goes dark and changes addresses.
//! - [`producer`]: what a site's applications write; [`transactions`]: the same in transactions.
//! - [`compare`]: the proof that source and cloud hold the same; [`consumer`]: what consumers see of one; `java`: a
//!   consumer that is not librdkafka's.
//!
//! A harness has nobody to hand an error to: what goes wrong here panics with the evidence (a log's tail, a command's
//! output). Only [`lossy_link`], which the demo uses too, returns errors.

pub mod broker;
pub mod child;
pub mod commits;
pub mod compare;
pub mod consumer;
pub mod image;
mod java;
pub mod log_guard;
pub mod lossy_link;
pub mod mirror_maker;
mod ports;
pub mod process;
pub mod producer;
pub mod rig;
pub mod scratch;
pub mod transactions;
pub mod wait;

pub use ports::free_port;
