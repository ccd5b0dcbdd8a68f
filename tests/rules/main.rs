//! Each broker rule that tombolo relies on, against a real broker.
//!
//! The simulation's broker model says the same of itself: a rule of the model names its twin here, `broker_<rule>`. Where
//! a new Kafka version behaves otherwise, this is the test that says so first. Batches are made by hand here, byte for
//! byte, and what was stored is read from the broker's own log file: neither goes through the product's code.

#![expect(clippy::unwrap_used, reason = "a test has nobody to hand an error to")]

mod batch;
mod bytes;
mod consumer;
mod deletion;
mod expiry;
mod markers;
mod partition;
mod reencoded;
mod replicas;
mod sequences;
mod transactions;
