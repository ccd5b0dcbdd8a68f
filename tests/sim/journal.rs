//! The agent's journal, under the name that its evidence knows it by.

pub(crate) use tombolo_agent::journal::{Journal, JournalError};
#[cfg(test)]
pub(crate) use tombolo_agent::journal::{JournalFrame, MemoryJournal};
