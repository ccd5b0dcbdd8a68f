//! Raw Kafka client of tombolo: record batches are moved as brokers store them, never decoded and encoded again.
//!
//! [`Cluster`] knows brokers and leaders and makes connections, [`Connection`] carries requests to one broker,
//! [`fetch`], [`produce`] and [`admin`] are the requests. `kafka-protocol` is the codec; its types stay in this crate.

pub mod admin;
pub mod cluster;
pub mod compare;
pub mod connection;
pub mod error;
pub mod fetch;
pub mod produce;
pub mod records;
pub mod settings;
#[cfg(test)]
mod testing;
mod wire;

pub use cluster::Cluster;
pub use connection::Connection;
pub use error::{ErrorCode, KafkaError, WriteRefused};
pub use settings::ClientSettings;

/// Topic id as the protocol carries it (KIP-516).
pub type TopicId = [u8; 16];
