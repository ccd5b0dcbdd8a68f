//! What is known of one cluster (brokers, topics, leaders) and the connections to it.

use std::sync::Arc;

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{ErrorCode, KafkaError, WriteRefused};
use crate::settings::ClientSettings;

/// Asked synchronously, immediately before each write of a write request to the socket. `Err` refuses the request
/// without writing it.
pub type WriteGuard = Arc<dyn Fn() -> Result<(), WriteRefused> + Send + Sync>;

/// Metadata of a cluster, as one broker saw it.
#[derive(Debug, Clone)]
pub struct ClusterMetadata {
    /// Cluster id; old brokers have none.
    pub cluster_id: Option<String>,
    /// Live brokers.
    pub brokers: Vec<Broker>,
    /// The topics asked for, or all.
    pub topics: Vec<Topic>,
}

/// One broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Node id.
    pub id: i32,
    /// Advertised host.
    pub host: String,
    /// Advertised port.
    pub port: u16,
}

/// One topic.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Name.
    pub name: Arc<str>,
    /// Id, where the broker knows ids.
    pub topic_id: Option<TopicId>,
    /// Kafka's own topic (`__consumer_offsets`, ...).
    pub internal: bool,
    /// Partitions by id.
    pub partitions: Vec<Partition>,
    /// Why nothing is known of it.
    pub error: Option<ErrorCode>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Partition number.
    pub id: i32,
    /// Leader, `None` while there is none.
    pub leader: Option<i32>,
    /// Leader epoch, -1 where the broker does not tell.
    pub leader_epoch: i32,
    /// Error of the partition (LEADER_NOT_AVAILABLE, ...).
    pub error: Option<ErrorCode>,
}

/// Leader of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Broker id.
    pub broker: i32,
    /// Leader epoch, -1 where unknown.
    pub epoch: i32,
}

/// One cluster, for one purpose. Clones share caches and connections.
#[derive(Debug, Clone)]
pub struct Cluster {}

impl Cluster {
    /// Nothing is contacted yet.
    pub fn new(_settings: ClientSettings) -> Self {
        todo!()
    }

    /// The same cluster with fresh caches, every connection of which asks `guard` before it writes a write request.
    #[must_use]
    pub fn with_write_guard(self, _guard: WriteGuard) -> Self {
        todo!()
    }

    /// Asks a broker for the cluster, its brokers and `topics` (`None` = all), and refreshes the caches. Never creates
    /// a topic.
    pub async fn metadata(&self, _topics: Option<&[String]>) -> Result<ClusterMetadata, KafkaError> {
        todo!()
    }

    /// Leader of a partition, from the cache or fresh.
    pub async fn leader(&self, _topic: &str, _partition: i32) -> Result<Leader, KafkaError> {
        todo!()
    }

    /// After NOT_LEADER_OR_FOLLOWER and the like: the next [`Cluster::leader`] asks again.
    pub fn forget_leader(&self, _topic: &str, _partition: i32) {
        todo!()
    }

    /// A new connection to that broker that nobody else uses.
    pub async fn connect(&self, _broker: i32) -> Result<Connection, KafkaError> {
        todo!()
    }

    /// The shared connection to that broker, made anew when broken.
    pub async fn shared(&self, _broker: i32) -> Result<Connection, KafkaError> {
        todo!()
    }

    /// A shared connection to the controller (to any broker where the cluster forwards such requests itself).
    pub async fn controller(&self) -> Result<Connection, KafkaError> {
        todo!()
    }
}
