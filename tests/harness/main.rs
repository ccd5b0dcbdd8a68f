//! The harness itself: brokers start, break and come back as the tests that use them believe.

mod brokers;
