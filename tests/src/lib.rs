//! Harness and tests of tombolo.
