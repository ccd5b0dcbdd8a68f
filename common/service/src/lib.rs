//! What a tombolo daemon needs to be a process.
