//! One partition of a topic of its own, and a connection to its leader.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tombolo_kafka::admin::{
    DeleteBefore, MarkerRange, MarkerWriter, OffsetQuery, OffsetSpec, ProducerState, delete_records,
    describe_producers, list_offsets, send_txn_markers,
};
use tombolo_kafka::produce::{ProduceBatch, send_produce};
use tombolo_kafka::{Connection, ErrorCode, KafkaError};
use tombolo_tests::broker::{KafkaCluster, unique_name};

use crate::batch::HandMade;

/// How long the broker may wait for its replicas.
const REPLICATION: Duration = Duration::from_secs(10);

/// An id that no broker allots, as tombolo derives them.
pub(crate) const PRODUCER: i64 = (1 << 62) + 4_711;

pub(crate) struct Partition<'a> {
    pub(crate) kafka: &'a KafkaCluster,
    pub(crate) topic: Arc<str>,
    pub(crate) leader: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) connection: Connection,
}

impl<'a> Partition<'a> {
    /// A new topic of one partition with as many replicas as there are brokers.
    pub(crate) async fn new(kafka: &'a KafkaCluster, configs: &[(&str, &str)]) -> Self {
        let topic = unique_name("rule");
        let replicas = i32::try_from(kafka.broker_ids().count()).unwrap();
        kafka.create_topic(&topic, 1, replicas, configs).await;
        Self::open(kafka, &topic).await
    }

    /// A new connection to the partition's leader, as it is now.
    pub(crate) async fn open(kafka: &'a KafkaCluster, topic: &str) -> Self {
        Self::at(kafka, topic, None).await
    }

    /// A new connection to a broker, where it is to be another than the leader.
    pub(crate) async fn at(kafka: &'a KafkaCluster, topic: &str, broker: Option<i32>) -> Self {
        let cluster = kafka.raw_client();
        let leader = cluster.leader(topic, 0).await.unwrap();
        let connection = cluster.connect(broker.unwrap_or(leader.broker)).await.unwrap();
        Self { kafka, topic: topic.into(), leader: leader.broker, leader_epoch: leader.epoch, connection }
    }

    /// Appends and returns the offset that the broker answers.
    pub(crate) async fn append(&self, batch: &HandMade) -> Result<i64, ErrorCode> {
        self.append_bytes(batch.bytes()).await
    }

    pub(crate) async fn append_bytes(&self, batch: Bytes) -> Result<i64, ErrorCode> {
        self.send(batch, REPLICATION).await.unwrap()
    }

    /// The request is in the connection's queue when this returns.
    pub(crate) fn send(
        &self,
        batch: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Result<i64, ErrorCode>, KafkaError>> + Send + 'static {
        let batch = ProduceBatch { topic: Arc::clone(&self.topic), topic_id: None, partition: 0, batch };
        let answers = send_produce(&self.connection, vec![batch], timeout);
        async { Ok(answers.await?.remove(0).result.map(|ack| ack.base_offset)) }
    }

    /// Appends so many markers of [`PRODUCER`] with one request; what the broker says of them.
    pub(crate) async fn mark(&self, epoch: i16, coordinator_epoch: i32, count: u32) -> Result<(), ErrorCode> {
        let writer = MarkerWriter { producer_id: PRODUCER, producer_epoch: epoch, coordinator_epoch };
        let ranges = vec![MarkerRange { topic: Arc::clone(&self.topic), partition: 0, count }];
        send_txn_markers(&self.connection, writer, ranges, REPLICATION).await.unwrap().remove(0).result
    }

    /// Moves the log start to `offset`; where it is then.
    pub(crate) async fn delete_before(&self, offset: i64) -> Result<i64, ErrorCode> {
        let wanted = [DeleteBefore { topic: Arc::clone(&self.topic), partition: 0, offset }];
        delete_records(&self.connection, &wanted, REPLICATION).await.unwrap().remove(0).result
    }

    pub(crate) async fn log_end(&self) -> i64 {
        self.offset(OffsetSpec::LogEnd, self.leader_epoch).await.unwrap()
    }

    pub(crate) async fn high_watermark(&self) -> i64 {
        self.offset(OffsetSpec::HighWatermark, self.leader_epoch).await.unwrap()
    }

    pub(crate) async fn offset(&self, spec: OffsetSpec, leader_epoch: i32) -> Result<i64, ErrorCode> {
        let query = OffsetQuery { topic: Arc::clone(&self.topic), partition: 0, leader_epoch };
        let answer = list_offsets(&self.connection, spec, &[query]).await.unwrap().remove(0);
        answer.result.map(|found| found.offset)
    }

    /// What the leader remembers of a producer.
    pub(crate) async fn state(&self, producer_id: i64) -> Option<ProducerState> {
        let asked = [(Arc::clone(&self.topic), 0)];
        let answer = describe_producers(&self.connection, &asked).await.unwrap().remove(0);
        answer.result.unwrap().into_iter().find(|state| state.producer_id == producer_id)
    }

    /// The log as it lies on the leader's disk.
    pub(crate) fn stored(&self) -> Bytes {
        self.kafka.stored_log(self.leader, &self.topic, 0).into()
    }
}
