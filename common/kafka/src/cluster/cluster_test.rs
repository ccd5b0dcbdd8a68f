//! Caches and connections of a cluster, against a scripted broker on a loopback socket.

use std::sync::atomic::{AtomicUsize, Ordering};

use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, BrokerId};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::error::ConnectionErrorKind;
use crate::testing::{Script, api_key, encode_answer, read_request};

const BROKER: i32 = 7;

/// A broker that answers version queries and metadata until it is dropped.
struct Stub {
    port: u16,
    counts: Arc<Counts>,
    sever: Arc<tokio::sync::Notify>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    metadata: AtomicUsize,
    epoch: AtomicUsize,
}

impl Stub {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let sever = Arc::new(tokio::sync::Notify::new());
        let (counted, severed) = (Arc::clone(&counts), Arc::clone(&sever));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let (counted, severed) = (Arc::clone(&counted), Arc::clone(&severed));
                connections.spawn(async move {
                    tokio::select! {
                        () = serve(stream, port, &counted) => {}
                        () = severed.notified() => {}
                    }
                });
            }
        });
        Self { port, counts, sever, _serving: serving }
    }

    fn cluster(&self) -> Cluster {
        cluster(self.port, "60000")
    }

    fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    fn metadata(&self) -> usize {
        self.counts.metadata.load(Ordering::SeqCst)
    }
}

fn cluster(port: u16, setup_timeout: &str) -> Cluster {
    let servers = format!("127.0.0.1:{port}");
    let properties = [("bootstrap.servers", &*servers), ("socket.connection.setup.timeout.ms", setup_timeout)];
    Cluster::new(ClientSettings::from_properties(properties).unwrap())
}

async fn serve(stream: TcpStream, port: u16, counts: &Counts) {
    let mut script = Script { stream };
    while let Some(frame) = script.frame().await {
        let answer = if api_key(&frame) == Api::ApiVersions.key() {
            let asked = read_request::<ApiVersionsRequest>(frame);
            let metadata = ApiVersion::default().with_api_key(Api::Metadata.key()).with_max_version(12);
            let answer = ApiVersionsResponse::default().with_api_keys(vec![metadata]);
            encode_answer::<ApiVersionsRequest>(asked.version, asked.correlation, &answer)
        } else {
            counts.metadata.fetch_add(1, Ordering::SeqCst);
            let asked = read_request::<MetadataRequest>(frame);
            assert!(!asked.request.allow_auto_topic_creation, "nobody may make topics by asking for them");
            let epoch = i32::try_from(counts.epoch.load(Ordering::SeqCst)).unwrap();
            let answer = metadata(&asked.request, port, epoch);
            encode_answer::<MetadataRequest>(asked.version, asked.correlation, &answer)
        };
        script.send(&answer).await;
    }
}

/// Topic `t` has partition 0, led, and 1, without leader.
fn metadata(request: &MetadataRequest, port: u16, epoch: i32) -> MetadataResponse {
    let names = request.topics.iter().flatten().map(|topic| topic.name.clone().unwrap());
    let topics = names.map(|name| {
        let topic = MetadataResponseTopic::default();
        if name.as_str() != "t" {
            let code = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.number();
            return topic.with_name(Some(name)).with_error_code(code);
        }
        let led = MetadataResponsePartition::default().with_leader_id(BrokerId(BROKER)).with_leader_epoch(epoch);
        let lost = MetadataResponsePartition::default().with_partition_index(1).with_leader_id(BrokerId(-1));
        topic.with_name(Some(name)).with_partitions(vec![lost, led])
    });
    let broker = MetadataResponseBroker::default().with_node_id(BrokerId(BROKER)).with_host(text("127.0.0.1"));
    MetadataResponse::default()
        .with_cluster_id(Some(text("c")))
        .with_controller_id(BrokerId(0))
        .with_brokers(vec![broker.with_port(i32::from(port))])
        .with_topics(topics.collect())
}

#[tokio::test]
async fn leader_is_cached_until_forgotten() {
    let stub = Stub::start().await;
    let cluster = stub.cluster();
    for _ in 0..3 {
        assert_eq!(cluster.leader("t", 0).await.unwrap(), Leader { broker: BROKER, epoch: 0 });
    }
    assert_eq!(stub.metadata(), 1);
    stub.counts.epoch.store(5, Ordering::SeqCst);
    cluster.forget_leader("t", 0);
    assert_eq!(cluster.leader("t", 0).await.unwrap().epoch, 5);
    assert_eq!((stub.metadata(), stub.connections()), (2, 1));
}

#[tokio::test]
async fn partition_without_leader_and_unknown_topic_are_told_apart() {
    let stub = Stub::start().await;
    let cluster = stub.cluster();
    let lost = cluster.leader("t", 1).await.unwrap_err();
    assert!(matches!(lost.kind(), KafkaErrorKind::NoLeader) && lost.retriable() && lost.refresh_metadata());
    assert_eq!((lost.topic(), lost.partition()), (Some("t"), Some(1)));
    for (topic, partition) in [("t", 2), ("nope", 0)] {
        let unknown = cluster.leader(topic, partition).await.unwrap_err();
        assert_eq!(unknown.error_code(), Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
    }
    let metadata = cluster.metadata(Some(&["nope".to_owned()])).await.unwrap();
    assert_eq!(metadata.topics.first().unwrap().error, Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION));
    assert_eq!(metadata.cluster_id.as_deref(), Some("c"));
}

#[tokio::test]
async fn shared_connection_is_made_once_and_again_when_broken() {
    let stub = Stub::start().await;
    let cluster = stub.cluster();
    cluster.metadata(Some(&[])).await.unwrap();
    let all = (0..10).map(|_| {
        let cluster = cluster.clone();
        async move { cluster.shared(BROKER).await.unwrap() }
    });
    let all = all.collect::<JoinSet<_>>().join_all().await;
    assert_eq!((all.len(), stub.connections()), (10, 2), "one for metadata, one shared");
    let own = cluster.connect(BROKER).await.unwrap();
    assert_eq!((own.broker_id(), stub.connections()), (BROKER, 3));
    stub.sever.notify_waiters();
    for connection in all {
        connection.poisoned().await;
    }
    let again = cluster.shared(BROKER).await.unwrap();
    assert!(!again.is_poisoned());
    assert_eq!(stub.connections(), 4);
    cluster.metadata(None).await.unwrap();
    assert_eq!(stub.connections(), 5, "the connection for metadata broke too");
}

#[tokio::test]
async fn controller_that_does_not_exist_is_any_broker() {
    let stub = Stub::start().await;
    assert_eq!(stub.cluster().controller().await.unwrap().broker_id(), BROKER);
}

#[tokio::test]
async fn unknown_broker_and_unreachable_cluster_are_clear() {
    let stub = Stub::start().await;
    let error = stub.cluster().connect(99).await.unwrap_err();
    assert!(matches!(error.kind(), KafkaErrorKind::UnknownBroker(99)) && error.refresh_metadata());
    let port = stub.port;
    drop(stub);
    let error = cluster(port, "60000").metadata(None).await.unwrap_err();
    let KafkaErrorKind::Unreachable { tried: 1, last } = error.kind() else { panic!("{error}") };
    assert!(matches!(last.kind, ConnectionErrorKind::Connect(_)));
    assert!(error.retriable() && !error.is_ambiguous());
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn broker_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = cluster(listener.local_addr().unwrap().port(), "1000");
    let error = cluster.metadata(None).await.unwrap_err();
    let KafkaErrorKind::Unreachable { last, .. } = error.kind() else { panic!("{error}") };
    assert!(matches!(last.kind, ConnectionErrorKind::SetupTimeout(after) if after == Duration::from_secs(1)));
}
