//! What is known of one cluster (brokers, topics, leaders) and the connections to it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};

use crate::TopicId;
use crate::connection::{self, Connection};
use crate::error::{AnswerError, Api, ConnectionError, ErrorCode, KafkaError, KafkaErrorKind, WriteRefused};
use crate::settings::ClientSettings;
use crate::wire::{self, text};

/// Node id of a connection made before the broker's id is known.
const UNKNOWN_BROKER: i32 = -1;
/// A kept connection may turn out to be dead only when it is used: then one new one is made.
const METADATA_TRIES: usize = 2;

/// Asked synchronously, immediately before each write of a write request to the socket. `Err` refuses the request
/// without writing it.
pub type WriteGuard = Arc<dyn Fn() -> Result<(), WriteRefused> + Send + Sync>;

/// Metadata of a cluster, as one broker saw it.
#[derive(Debug, Clone)]
pub struct ClusterMetadata {
    /// Cluster id; old brokers have none.
    pub cluster_id: Option<String>,
    /// The broker to send topic changes to, where one is known.
    pub controller: Option<i32>,
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
    /// Error of the partition (`LEADER_NOT_AVAILABLE`, ...).
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
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ClientSettings,
    guard: Option<WriteGuard>,
    known: Mutex<Known>,
    /// Shared connections by broker. A slot's lock is held while its connection is made, so that only one is.
    shared: Mutex<HashMap<i32, Slot>>,
    /// The connection that metadata is asked over.
    seed: Slot,
}

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// What the last answers said.
#[derive(Default)]
struct Known {
    brokers: HashMap<i32, (String, u16)>,
    leaders: HashMap<String, HashMap<i32, (Leader, Instant)>>,
}

impl Cluster {
    /// Nothing is contacted yet.
    pub fn new(settings: ClientSettings) -> Self {
        Self::with_guard(settings, None)
    }

    /// The same cluster with fresh caches, every connection of which asks `guard` before it writes a write request.
    #[must_use]
    pub fn with_write_guard(self, guard: WriteGuard) -> Self {
        Self::with_guard(self.inner.settings.clone(), Some(guard))
    }

    fn with_guard(settings: ClientSettings, guard: Option<WriteGuard>) -> Self {
        let inner = Inner { settings, guard, known: Mutex::default(), shared: Mutex::default(), seed: Slot::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Asks a broker for the cluster, its brokers and `topics` (`None` = all), and refreshes the caches. Never creates
    /// a topic: one that does not exist has `UNKNOWN_TOPIC_OR_PARTITION` as its error.
    pub async fn metadata(&self, topics: Option<&[String]>) -> Result<ClusterMetadata, KafkaError> {
        let request = MetadataRequest::default()
            .with_topics(topics.map(|names| {
                names
                    .iter()
                    .map(|name| MetadataRequestTopic::default().with_name(Some(TopicName(text(name)))))
                    .collect()
            }))
            .with_allow_auto_topic_creation(false);
        let mut tries = 1;
        let answer = loop {
            match self.ask_metadata(&request).await {
                Err(error) if tries < METADATA_TRIES && error.retriable() && error.refresh_metadata() => tries += 1,
                answered => break answered?,
            }
        };
        if let Some(code) = ErrorCode::from_wire(answer.error_code) {
            return Err(KafkaError::code(Api::Metadata, code));
        }
        let metadata = read_metadata(answer)?;
        self.remember(&metadata);
        Ok(metadata)
    }

    async fn ask_metadata(&self, request: &MetadataRequest) -> Result<MetadataResponse, KafkaError> {
        let connection = self.seed().await?;
        let version = connection.version::<MetadataRequest>(i16::MAX)?;
        connection.call(request, version, connection.deadline(Duration::ZERO)).await
    }

    /// Leader of a partition, from the cache or fresh.
    pub async fn leader(&self, topic: &str, partition: i32) -> Result<Leader, KafkaError> {
        let max_age = self.inner.settings.metadata_max_age;
        let cached = lock(&self.inner.known).leaders.get(topic).and_then(|leaders| leaders.get(&partition)).copied();
        if let Some((leader, since)) = cached
            && since.elapsed() < max_age
        {
            return Ok(leader);
        }
        let name: Arc<str> = topic.into();
        let fail = |kind| KafkaError::new(Api::Metadata, kind).at(&name, partition);
        let metadata = self.metadata(Some(&[topic.to_owned()])).await?;
        let found = metadata.topics.iter().find(|found| &*found.name == topic);
        if let Some(code) = found.and_then(|topic| topic.error) {
            return Err(fail(KafkaErrorKind::Broker { code, message: None }));
        }
        match found.and_then(|topic| topic.partitions.iter().find(|found| found.id == partition)) {
            None => {
                let code = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION;
                Err(fail(KafkaErrorKind::Broker { code, message: None }))
            }
            Some(found) => found.leader().ok_or_else(|| fail(KafkaErrorKind::NoLeader)),
        }
    }

    /// After `NOT_LEADER_OR_FOLLOWER` and the like: the next [`Cluster::leader`] asks again.
    pub fn forget_leader(&self, topic: &str, partition: i32) {
        if let Some(leaders) = lock(&self.inner.known).leaders.get_mut(topic) {
            leaders.remove(&partition);
        }
    }

    /// A new connection to that broker that nobody else uses.
    pub async fn connect(&self, broker: i32) -> Result<Connection, KafkaError> {
        let mut address = lock(&self.inner.known).brokers.get(&broker).cloned();
        if address.is_none() {
            self.metadata(Some(&[])).await?;
            address = lock(&self.inner.known).brokers.get(&broker).cloned();
        }
        let Some((host, port)) = address else {
            return Err(KafkaError::new(Api::Metadata, KafkaErrorKind::UnknownBroker(broker)));
        };
        match self.open(broker, &host, port).await {
            Ok(connection) => Ok(connection),
            Err(cause) => {
                // It may have moved: look its address up again the next time.
                lock(&self.inner.known).brokers.remove(&broker);
                Err(KafkaError::unsent(Api::ApiVersions, cause))
            }
        }
    }

    /// The shared connection to that broker, made anew when broken. Not for requests that wait at the broker: they
    /// hold up everybody's answers.
    pub async fn shared(&self, broker: i32) -> Result<Connection, KafkaError> {
        let slot = Arc::clone(lock(&self.inner.shared).entry(broker).or_default());
        let mut slot = slot.lock().await;
        match &*slot {
            Some(connection) if !connection.is_poisoned() => Ok(connection.clone()),
            Some(_) | None => {
                let connection = self.connect(broker).await?;
                *slot = Some(connection.clone());
                Ok(connection)
            }
        }
    }

    /// The shared connection to the controller. Where brokers hide it (KRaft), to the broker that they name instead, or
    /// to any: it forwards. Brokers name a dead one until its session ends, so the others are tried after it.
    pub async fn controller(&self) -> Result<Connection, KafkaError> {
        let metadata = self.metadata(Some(&[])).await?;
        let mut brokers: Vec<_> = metadata.brokers.iter().map(|broker| broker.id).collect();
        brokers.sort_by_key(|id| Some(*id) != metadata.controller);
        let mut failed = KafkaError::code(Api::Metadata, ErrorCode::BROKER_NOT_AVAILABLE);
        for broker in brokers {
            match self.shared(broker).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn open(&self, broker: i32, host: &str, port: u16) -> Result<Connection, Arc<ConnectionError>> {
        let opened = connection::open(&self.inner.settings, broker, host, port, self.inner.guard.clone()).await;
        match &opened {
            Ok(connection) => tracing::debug!(broker, address = %connection.address(), "connected"),
            Err(error) => tracing::debug!(broker, %error, "cannot connect"),
        }
        opened
    }

    /// A connection to any broker: the last one used, the bootstrap servers, or brokers known from before.
    async fn seed(&self) -> Result<Connection, KafkaError> {
        let mut slot = self.inner.seed.lock().await;
        if let Some(connection) = &*slot
            && !connection.is_poisoned()
        {
            return Ok(connection.clone());
        }
        let known: Vec<_> = lock(&self.inner.known).brokers.values().cloned().collect();
        let bootstrap = self.inner.settings.bootstrap.iter().filter(|server| !known.contains(server)).cloned();
        let candidates: Vec<_> = known.iter().cloned().chain(bootstrap).collect();
        let mut tried = 0;
        let mut last = None;
        for (host, port) in candidates {
            tried += 1;
            match self.open(UNKNOWN_BROKER, &host, port).await {
                Ok(connection) => {
                    *slot = Some(connection.clone());
                    return Ok(connection);
                }
                Err(cause) => last = Some(cause),
            }
        }
        let last = last.expect("settings hold at least one bootstrap server");
        Err(KafkaError::new(Api::Metadata, KafkaErrorKind::Unreachable { tried, last }))
    }

    fn remember(&self, metadata: &ClusterMetadata) {
        let now = Instant::now();
        let mut known = lock(&self.inner.known);
        known.brokers = metadata.brokers.iter().map(|broker| (broker.id, (broker.host.clone(), broker.port))).collect();
        for topic in &metadata.topics {
            let leaders = topic
                .partitions
                .iter()
                .filter_map(|partition| Some((partition.id, (partition.leader()?, now))))
                .collect::<HashMap<_, _>>();
            if leaders.is_empty() {
                known.leaders.remove(&*topic.name);
            } else {
                known.leaders.insert(topic.name.to_string(), leaders);
            }
        }
    }
}

impl Partition {
    fn leader(&self) -> Option<Leader> {
        self.leader.map(|broker| Leader { broker, epoch: self.leader_epoch })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("settings", &self.inner.settings)
            .field("guarded", &self.inner.guard.is_some())
            .finish_non_exhaustive()
    }
}

/// The caches hold plain values that are right after every statement, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_metadata(answer: MetadataResponse) -> Result<ClusterMetadata, KafkaError> {
    let range = |what| KafkaError::answer(Api::Metadata, AnswerError::Range(what));
    let brokers = answer
        .brokers
        .into_iter()
        .map(|broker| {
            let port = u16::try_from(broker.port).map_err(|_| range("a broker's port"))?;
            Ok(Broker { id: broker.node_id.0, host: broker.host.to_string(), port })
        })
        .collect::<Result<_, _>>()?;
    let topics = answer
        .topics
        .into_iter()
        .map(|topic| {
            let mut partitions = topic.partitions.iter().map(read_partition).collect::<Vec<_>>();
            partitions.sort_by_key(|partition| partition.id);
            // Partitions are numbered from 0 without holes; a topic being made or deleted may still lack some.
            if partitions.iter().zip(partitions.iter().skip(1)).any(|(one, next)| one.id == next.id)
                || partitions.first().is_some_and(|first| first.id < 0)
            {
                return Err(range("a partition number"));
            }
            Ok(Topic {
                name: topic.name.as_ref().ok_or_else(|| range("a topic's name"))?.as_str().into(),
                topic_id: wire::known_id(topic.topic_id.into_bytes()),
                internal: topic.is_internal,
                partitions,
                error: ErrorCode::from_wire(topic.error_code),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(ClusterMetadata {
        cluster_id: answer.cluster_id.map(|id| id.to_string()),
        controller: Some(answer.controller_id.0).filter(|id| *id >= 0),
        brokers,
        topics,
    })
}

fn read_partition(partition: &MetadataResponsePartition) -> Partition {
    let error = ErrorCode::from_wire(partition.error_code);
    Partition {
        id: partition.partition_index,
        leader: Some(partition.leader_id.0).filter(|id| *id >= 0),
        leader_epoch: partition.leader_epoch,
        error,
    }
}

#[cfg(test)]
#[path = "cluster/cluster_test.rs"]
mod tests;
