//! A KRaft cluster of one or three brokers: how it is made, started and broken.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tombolo_kafka::{ClientSettings, Cluster};

use super::certificates::Certificates;
use super::distribution::Distribution;
use super::node::{ClassArchive, Jvm, Node, Ports};
use super::{old, settings};
use crate::child::Program;
use crate::ports::free_port;
use crate::scratch::Scratch;

/// The user whom brokers with SASL know, by every mechanism.
pub const USER: &str = "tombolo";
/// The password of [`USER`].
pub const PASSWORD: &str = "correct-horse-battery";

/// A cold start of three brokers on two busy cores takes a quarter of this.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// How clients reach the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Plaintext,
    /// TLS; the brokers ask for a client certificate.
    Ssl,
    /// TLS, then SASL with PLAIN or SCRAM.
    SaslSsl,
}

/// SASL mechanisms that brokers with [`Listener::SaslSsl`] offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    /// The name in `sasl.mechanism`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Which Kafka a cluster is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    Current,
    /// With ZooKeeper, see `old`.
    Old,
}

/// What cluster to start.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    pub(super) release: Release,
    pub(super) brokers: u16,
    pub(super) listener: Listener,
    heap_mib: u32,
    jvm: Jvm,
    pub(super) settings: Vec<(String, String)>,
}

impl ClusterSpec {
    /// One broker, plain text.
    pub fn single() -> Self {
        let (release, listener) = (Release::Current, Listener::Plaintext);
        Self { release, brokers: 1, listener, heap_mib: 384, jvm: Jvm::Brisk, settings: Vec::new() }
    }

    /// One broker of an old release, plain text: topics may have `message.format.version` 0.9.0 (v0) or 0.10.2 (v1).
    pub fn old() -> Self {
        Self { release: Release::Old, ..Self::single() }
    }

    /// Three brokers, plain text; topics have three replicas and need two in sync unless told otherwise.
    pub fn three() -> Self {
        Self { brokers: 3, heap_mib: 256, ..Self::single() }
    }

    #[must_use]
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listener = listener;
        self
    }

    /// A broker setting; wins over what the harness sets.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Brokers that are slow to start and fast to work, as Kafka's own start script has them.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.jvm = Jvm::Steady;
        self
    }

    #[must_use]
    pub fn heap_mib(mut self, heap_mib: u32) -> Self {
        self.heap_mib = heap_mib;
        self
    }
}

/// A running cluster. Brokers have the ids 1, 2, 3. Dropping it kills them and removes their data.
pub struct KafkaCluster {
    pub(super) admin: Arc<AdminClient<DefaultClientContext>>,
    nodes: Mutex<Vec<Node>>,
    bootstrap: String,
    listener: Listener,
    certificates: Option<Certificates>,
    brokers: u16,
    /// Of an old release: killed after its broker.
    _keeper: Option<Program>,
    // After the nodes: their files go once they are dead.
    _scratch: Scratch,
}

impl fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaCluster").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

impl KafkaCluster {
    /// Starts a cluster and waits until every broker serves. Panics with the brokers' last words if they do not.
    pub async fn start(spec: ClusterSpec) -> Self {
        let wanted = match spec.release {
            Release::Current => Distribution::current,
            Release::Old => Distribution::old,
        };
        let found = spawn_blocking(move || wanted().clone()).await;
        let distribution = found.unwrap_or_else(|failure| resume_unwind(failure.into_panic()));
        make_class_archive(&distribution, spec.release).await;
        let archive = ClassArchive::Use(distribution.class_archive());
        Self::start_with(&spec, &distribution, &archive).await
    }

    async fn start_with(spec: &ClusterSpec, distribution: &Distribution, archive: &ClassArchive) -> Self {
        for _ in 0..5 {
            if let Ok(cluster) = Self::try_start(spec, distribution, archive).await {
                return cluster;
            }
        }
        panic!("five times a broker's port was taken between its choice and its start");
    }

    async fn try_start(
        spec: &ClusterSpec,
        distribution: &Distribution,
        archive: &ClassArchive,
    ) -> Result<Self, PortTaken> {
        let scratch = Scratch::new("kafka");
        let certificates = (spec.listener != Listener::Plaintext).then(|| Certificates::make(&scratch));
        let ports: Vec<Ports> = (0..spec.brokers)
            .map(|_| Ports { client: free_port(), internal: free_port(), controller: free_port() })
            .collect();
        let mut nodes: Vec<Node> = (1..)
            .zip(&ports)
            .map(|(id, ports)| {
                let folder = scratch.path().join(format!("broker-{id}"));
                Node::new(id, *ports, folder, distribution, archive.clone(), (spec.jvm, spec.heap_mib))
            })
            .collect();
        let keeper = match spec.release {
            Release::Current => {
                format(spec, &nodes, &ports, certificates.as_ref()).await;
                None
            }
            Release::Old => Some(old::prepare(spec, &nodes, &ports)),
        };
        for node in &mut nodes {
            node.start();
        }
        let addresses: Vec<String> = ports.iter().map(|ports| format!("127.0.0.1:{}", ports.client)).collect();
        let bootstrap = addresses.join(",");
        let config = settings::client_config(&bootstrap, spec.listener, certificates.as_ref(), Mechanism::ScramSha512);
        let cluster = Self {
            admin: Arc::new(config.create().expect("librdkafka takes the client's settings")),
            nodes: Mutex::new(nodes),
            bootstrap,
            listener: spec.listener,
            certificates,
            brokers: spec.brokers,
            _keeper: keeper,
            _scratch: scratch,
        };
        cluster.wait_until_serving().await.map(|()| cluster)
    }

    /// `host:port` of every broker, for clients.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The ids of all brokers, running or not.
    pub fn broker_ids(&self) -> impl Iterator<Item = i32> + use<> {
        1..=i32::from(self.brokers)
    }

    /// Files for clients of a cluster with TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// What a client of this cluster needs, under librdkafka's property names. The mechanism counts for
    /// [`Listener::SaslSsl`] only.
    pub fn properties(&self, mechanism: Mechanism) -> Vec<(String, String)> {
        settings::properties(&self.bootstrap, self.listener, self.certificates.as_ref(), mechanism)
    }

    /// The same as a client configuration of rdkafka.
    pub fn client_config(&self) -> ClientConfig {
        settings::client_config(&self.bootstrap, self.listener, self.certificates.as_ref(), Mechanism::ScramSha512)
    }

    /// The product's own client for this cluster.
    pub fn raw_client(&self) -> Cluster {
        let properties = self.properties(Mechanism::ScramSha512);
        let properties = properties.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        Cluster::new(ClientSettings::from_properties(properties).expect("the product takes librdkafka's properties"))
    }

    /// SIGKILL: the machine is gone.
    pub fn kill_broker(&self, id: i32) {
        self.with_node(id, Node::kill);
    }

    /// SIGTERM: leaders are moved first. Waits for the end.
    pub async fn stop_broker(&self, id: i32) {
        self.with_node(id, |node| node.signal(Signal::TERM));
        let deadline = Instant::now() + START_DEADLINE;
        while self.with_node(id, Node::running) {
            assert!(Instant::now() < deadline, "broker {id} does not stop\n{}", tails(&self.nodes()));
            sleep(Duration::from_millis(50)).await;
        }
        self.with_node(id, Node::kill);
    }

    /// SIGSTOP: the broker hangs, its connections stay open.
    pub fn pause_broker(&self, id: i32) {
        self.with_node(id, |node| node.signal(Signal::STOP));
    }

    /// SIGCONT.
    pub fn continue_broker(&self, id: i32) {
        self.with_node(id, |node| node.signal(Signal::CONT));
    }

    /// Kills the broker if it runs, starts it on its data and ports, and waits until it serves again.
    pub async fn restart_broker(&self, id: i32) {
        self.with_node(id, |node| {
            node.kill();
            node.start();
        });
        assert!(self.wait_until_serving().await.is_ok(), "another process took a dead broker's port");
    }

    /// Continues paused brokers, starts dead ones, and waits until all serve.
    pub async fn heal(&self) {
        for node in &mut *self.nodes() {
            if node.running() {
                node.signal(Signal::CONT);
            } else {
                node.kill();
                node.start();
            }
        }
        assert!(self.wait_until_serving().await.is_ok(), "another process took a dead broker's port");
    }

    /// Bytes of a partition's segments on the disk of the first broker.
    pub fn stored_bytes(&self, topic: &str, partition: i32) -> u64 {
        self.with_node(1, |node| node.stored_bytes(topic, partition))
    }

    /// A partition's segments, one after another, as they lie on a broker's disk.
    pub fn stored_log(&self, id: i32, topic: &str, partition: i32) -> Vec<u8> {
        self.with_node(id, |node| node.stored_log(topic, partition))
    }

    /// Flips a byte of a partition's first segment on the disk of a broker that was stopped, as a failing disk would.
    pub fn damage_log(&self, id: i32, topic: &str, partition: i32, at: usize) {
        self.with_node(id, |node| node.damage_log(topic, partition, at));
    }

    /// Makes an empty partition's log begin and end at `start`, on the disk of a broker that was stopped: what years of
    /// writing and deleting leave.
    pub fn place_log(&self, id: i32, topic: &str, partition: i32, start: i64) {
        self.with_node(id, |node| node.place_log(topic, partition, start));
    }

    /// `host:port` of every broker's own listener, where nobody has to log in.
    pub(crate) fn internal_bootstrap(&self) -> String {
        let addresses: Vec<String> =
            self.nodes().iter().map(|node| format!("127.0.0.1:{}", node.ports.internal)).collect();
        addresses.join(",")
    }

    /// Port of the first broker's own listener.
    pub(super) fn internal_port(&self) -> u16 {
        self.with_node(1, |node| node.ports.internal)
    }

    pub(super) fn with_node<T>(&self, id: i32, act: impl FnOnce(&mut Node) -> T) -> T {
        act(self.nodes().iter_mut().find(|node| node.id == id).expect("a cluster's brokers are 1 to 3"))
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all brokers that were started answer on their client ports and the cluster counts them as its own.
    async fn wait_until_serving(&self) -> Result<(), PortTaken> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let mut expected = Vec::new();
            for node in &mut *self.nodes() {
                if node.running() {
                    expected.push((node.id, node.ports.client));
                } else if node.should_run() {
                    assert!(node.port_taken(), "broker {} ended by itself\n{}", node.id, node.log_tail());
                    return Err(PortTaken);
                }
            }
            if listening(&expected).await {
                let seen = self.brokers().await;
                if expected.iter().all(|(id, _)| seen.contains(id)) {
                    return Ok(());
                }
            }
            assert!(Instant::now() < deadline, "no service within {START_DEADLINE:?}\n{}", tails(&self.nodes()));
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Somebody else listens on a chosen port.
struct PortTaken;

/// Formats the data folders, all at once.
async fn format(spec: &ClusterSpec, nodes: &[Node], ports: &[Ports], certificates: Option<&Certificates>) {
    let cluster_id = settings::cluster_id();
    let scram = settings::scram_users(spec.listener);
    let mut running: Vec<Program> = nodes
        .iter()
        .map(|node| node.format(&cluster_id, &settings::broker(spec, node.id, ports, certificates), &scram))
        .collect();
    let deadline = Instant::now() + START_DEADLINE;
    while !running.is_empty() {
        running.retain_mut(|format| match format.ended() {
            Some(status) => {
                assert!(status.success(), "a data folder cannot be formatted\n{}", tails(nodes));
                false
            }
            None => true,
        });
        assert!(Instant::now() < deadline, "no data folder within {START_DEADLINE:?}\n{}", tails(nodes));
        sleep(Duration::from_millis(20)).await;
    }
}

/// The archive of parsed classes halves the start of a broker (measured: 2.0 s against 1.0 s on an idle machine). It is
/// written by a broker that ends by itself, once per Kafka version in the cache.
async fn make_class_archive(distribution: &Distribution, release: Release) {
    let archive = distribution.class_archive();
    if archive.exists() {
        return;
    }
    let locked = distribution.clone();
    let _lock = spawn_blocking(move || locked.lock()).await.expect("locking the cache does not panic twice");
    if archive.exists() {
        return;
    }
    let partial = archive.with_extension("partial");
    let spec = ClusterSpec { release, ..ClusterSpec::single() };
    let make = ClassArchive::Make(partial.clone());
    let cluster = KafkaCluster::start_with(&spec, distribution, &make).await;
    cluster.stop_broker(1).await;
    fs::rename(&partial, &archive)
        .unwrap_or_else(|error| panic!("java wrote no {}: {error}\n{}", partial.display(), tails(&cluster.nodes())));
}

async fn listening(brokers: &[(i32, u16)]) -> bool {
    let mut dials = JoinSet::new();
    for (_, port) in brokers {
        dials.spawn(timeout(Duration::from_secs(1), TcpStream::connect((Ipv4Addr::LOCALHOST, *port))));
    }
    dials.join_all().await.iter().all(|dial| matches!(dial, Ok(Ok(_))))
}

fn tails(nodes: &[Node]) -> String {
    nodes.iter().map(Node::log_tail).collect()
}
