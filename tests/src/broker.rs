//! Real Kafka clusters on loopback, started and broken at will.
//!
//! [`KafkaCluster`] owns its broker processes: they die with it, and with the test process however that one ends.
//! `distribution` gets Kafka from Maven, `node` runs one broker, `settings` says how, `certificates` makes what TLS
//! needs, `admin` asks the cluster, `acl` gives rights, `old` is a release with ZooKeeper, `shared` is the pair of clusters that most tests use.

mod acl;
mod admin;
mod certificates;
mod cluster;
mod distribution;
mod node;
mod old;
mod settings;
mod shared;

pub use acl::ClusterOperation;
pub use certificates::Certificates;
pub use cluster::{ClusterSpec, KafkaCluster, Listener, Mechanism, PASSWORD, USER};
pub(crate) use distribution::Distribution;
pub use shared::{Pair, shared_pair, unique_name};
