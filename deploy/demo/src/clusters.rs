//! The two clusters of a run: mock clusters of this process, or real ones by address.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::options::Options;
use crate::workload::TOPICS;

/// Brokers of a mock cluster: leaders spread over them as over real ones.
const MOCK_BROKERS: i32 = 3;
const MOCK_REPLICAS: i32 = 2;
const ADMIN_DEADLINE: Duration = Duration::from_secs(15);
/// Where the gateway keeps the links' terms.
const REGISTRY: &str = "_tombolo";

/// Why there are no clusters to run on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("cannot make a mock cluster: {0}")]
    Mock(#[source] KafkaError),
    #[error("cannot reach {bootstrap}: {source}")]
    Unreachable {
        bootstrap: String,
        #[source]
        source: KafkaError,
    },
    #[error("cannot make topic {topic} on {bootstrap}: {code}")]
    Create { bootstrap: String, topic: String, code: RDKafkaErrorCode },
    #[error("cannot remove topic {topic} from {bootstrap}: {code}")]
    Remove { bootstrap: String, topic: String, code: RDKafkaErrorCode },
}

/// A source and a cloud cluster with the topics of a run.
pub(crate) struct Clusters {
    /// Brokers of the source, as `bootstrap.servers`.
    pub(crate) source: String,
    /// Brokers of the cloud.
    pub(crate) cloud: String,
    /// In front of every topic's name: none on mock clusters, unique on real ones.
    pub(crate) prefix: String,
    mocks: Option<[MockCluster<'static, DefaultProducerContext>; 2]>,
}

impl Clusters {
    /// Makes mock clusters, or takes the real ones, and makes the source topics.
    pub(crate) async fn start(options: &Options) -> Result<Self, ClusterError> {
        match (&options.source, &options.cloud) {
            (Some(source), Some(cloud)) => Self::real(source, cloud).await,
            (None, _) | (_, None) => Self::mock().map_err(ClusterError::Mock),
        }
    }

    /// A mock cluster knows no `CreateTopics`, so the mirrors and the registry are made here, too.
    fn mock() -> Result<Self, KafkaError> {
        let (source, cloud) = (MockCluster::new(MOCK_BROKERS)?, MockCluster::new(MOCK_BROKERS)?);
        for topic in TOPICS {
            for cluster in [&source, &cloud] {
                cluster.create_topic(&topic.name(""), topic.partitions, MOCK_REPLICAS)?;
            }
        }
        cloud.create_topic(REGISTRY, 1, MOCK_REPLICAS)?;
        Ok(Self {
            source: source.bootstrap_servers(),
            cloud: cloud.bootstrap_servers(),
            prefix: String::new(),
            mocks: Some([source, cloud]),
        })
    }

    async fn real(source: &str, cloud: &str) -> Result<Self, ClusterError> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let prefix = format!("tombolo-demo-{seconds}-{}-", std::process::id());
        let topics: Vec<_> = TOPICS.iter().map(|topic| (topic.name(&prefix), topic.partitions)).collect();
        let new: Vec<_> =
            topics.iter().map(|(name, count)| NewTopic::new(name, *count, TopicReplication::Fixed(-1))).collect();
        let made = admin(source)?
            .create_topics(&new, &admin_options())
            .await
            .map_err(|error| ClusterError::Unreachable { bootstrap: source.to_owned(), source: error })?;
        for result in made {
            if let Err((topic, code)) = result {
                return Err(ClusterError::Create { bootstrap: source.to_owned(), topic, code });
            }
        }
        Ok(Self { source: source.to_owned(), cloud: cloud.to_owned(), prefix, mocks: None })
    }

    /// Whether the clusters live in this process.
    pub(crate) fn are_mocks(&self) -> bool {
        self.mocks.is_some()
    }

    /// The gateway's registry topic; on a real cluster not the one that other gateways share.
    pub(crate) fn registry(&self) -> String {
        format!("{}{REGISTRY}", self.prefix)
    }

    /// Every topic of the run and its partition count.
    pub(crate) fn topics(&self) -> Vec<(String, i32)> {
        TOPICS.iter().map(|topic| (topic.name(&self.prefix), topic.partitions)).collect()
    }

    /// Removes what the run made on real clusters.
    pub(crate) async fn clean_up(&self) -> Result<(), ClusterError> {
        if self.are_mocks() {
            return Ok(());
        }
        let topics: Vec<_> = self.topics().into_iter().map(|(name, _)| name).collect();
        remove(&self.source, &topics).await?;
        let registry = [self.registry()];
        remove(&self.cloud, &[&topics[..], &registry[..]].concat()).await
    }
}

async fn remove(bootstrap: &str, topics: &[String]) -> Result<(), ClusterError> {
    let names: Vec<_> = topics.iter().map(String::as_str).collect();
    let removed = admin(bootstrap)?
        .delete_topics(&names, &admin_options())
        .await
        .map_err(|source| ClusterError::Unreachable { bootstrap: bootstrap.to_owned(), source })?;
    for result in removed {
        match result {
            // A mirror that was never made needs no removing.
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => return Err(ClusterError::Remove { bootstrap: bootstrap.to_owned(), topic, code }),
        }
    }
    Ok(())
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ADMIN_DEADLINE)).request_timeout(Some(ADMIN_DEADLINE))
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>, ClusterError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("socket.connection.setup.timeout.ms", "5000")
        .create()
        .map_err(|source| ClusterError::Unreachable { bootstrap: bootstrap.to_owned(), source })
}
