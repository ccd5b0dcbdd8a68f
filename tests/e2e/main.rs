//! End to end: the two daemons as processes between real Kafka clusters. Every test ends with both logs compared, raw and
//! by a consumer, and with the daemons' logs read for warnings that nobody expects.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test has nobody to hand an error to")]

mod carried;
mod codecs;
mod compacted;
mod course;
mod deleted;
mod flash;
mod foreign;
mod formats;
mod growth;
mod history;
mod kills;
mod link;
mod log_start;
mod lost_tail;
mod memory;
mod outage;
mod planted;
mod refusals;
mod replicas;
mod retention;
mod rights;
mod secure;
mod stranger;
mod takeover;
mod timestamps;
mod topics;
mod transactions;
mod trimmed;
mod unsupported;
mod verify;
