//! tombolo in the cloud: accepts links and appends to mirrors.
//!
//! | module | job |
//! |---|---|
//! | [`settings`] | the settings file, checked |
//! | `gateway` | [`run`]: starts everything, stops it in order |
//! | `listener` | QUIC, mutual certificates, whose connection it is (`identity`) |
//! | `carrier` | one connection's streams: control messages, frames |
//! | `session` | one connection's owner: drives `tombolo_proto::cloud` |
//! | `import` | a session whose other end reads an export instead of a link |
//! | `registry` | who holds which link: terms and leases in a compacted topic |
//! | `topics` | mirror topics: made, grown, checked |
//! | `recover` | where a partition stands in the cloud |
//! | `leased` | the cloud cluster under a session's lease: writes wait for it |
//! | `writer` | appends to partitions' leaders |
//! | `skip` | moves log ends past offsets that hold no record |
//! | `fast_forward` | makes mirrors start above 0 |
//! | `status`, `metrics` | what is shown |
//! | [`cli`] | the commands |

mod carrier;
pub mod cli;
mod clock;
mod fast_forward;
mod gateway;
mod identity;
mod import;
mod leased;
mod listener;
mod metrics;
mod recover;
mod registry;
mod session;
pub mod settings;
mod shared;
mod skip;
mod status;
mod topics;
mod writer;

pub use gateway::{RunError, run};
pub use identity::{DomainError, TrustDomain};
pub use settings::Settings;
