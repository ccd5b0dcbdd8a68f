//! The agent's own classification of what a source's broker answers, private to its crate.

#[path = "../../../agent/src/source/records/transactions.rs"]
mod transactions;
#[path = "../../../agent/src/source/records/walk.rs"]
#[expect(dead_code, reason = "the agent counts what it reads, the simulation does not")]
mod walk;

pub(in crate::source) use walk::{Answer, Found, Origin, Stop, Walk};
