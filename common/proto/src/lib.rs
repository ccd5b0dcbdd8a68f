//! The pure core of tombolo: what a batch is, what goes over the link, and both half-protocols.
//!
//! No socket, file, clock, thread or random number here: time and bytes come in as arguments, decisions go out as
//! values. So one thread can run a whole site and a whole cloud in virtual time.

pub mod batch;
pub mod cloud;
pub mod edge;
pub mod export;
pub mod failure;
pub mod frame;
pub mod id;
pub mod lease;
pub mod limits;
pub mod mirror;
pub mod pattern;
pub mod progress;
pub mod testing;
pub mod wire;
