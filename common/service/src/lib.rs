//! What both tombolo daemons need to be processes: settings, logs, signals, tasks, TLS files, metrics, local HTTP.
//!
//! Knows nothing of Kafka, links or mirrors, and depends on no other crate of this workspace.
//!
//! | module | job |
//! |---|---|
//! | [`settings`] | strict TOML, errors that name the key, units as text |
//! | [`logging`] | one subscriber on stderr, text or JSON |
//! | [`shutdown`] | SIGTERM, SIGINT, SIGHUP |
//! | [`tasks`] | named tasks; one that ends early ends the group |
//! | [`tls`] | certificates and keys from PEM files |
//! | [`signature`] | signatures by a certificate's key, SHA-256 |
//! | [`metrics`] | the process-wide Prometheus recorder |
//! | [`progress`] | bars and lines of long commands |
//! | [`readiness`] | latches behind `/readyz` |
//! | [`admin_http`] | `/livez`, `/readyz`, `/metrics`, `/status` on a thread of their own |
//! | [`status_client`] | asks a running daemon for `/status`, prints tables |

pub mod admin_http;
pub mod logging;
pub mod metrics;
pub mod progress;
pub mod readiness;
pub mod settings;
pub mod shutdown;
pub mod signature;
pub mod status_client;
pub mod tasks;
pub mod tls;
