//! What the source holds: telemetry-like records of one size, written as fast as the broker takes them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::task::spawn_blocking;
use tombolo_tests::broker::{KafkaCluster, unique_name};

const FLUSH_DEADLINE: Duration = Duration::from_mins(5);
/// Values in turn: more of them than a batch holds, so that a batch repeats none.
const VALUES: usize = 4_096;

/// What to write.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) partitions: i32,
    pub(crate) records: u64,
    pub(crate) record_bytes: usize,
    pub(crate) codec: &'static str,
    /// Most records of a batch.
    pub(crate) batch: u32,
}

/// What was written.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) topic: String,
    pub(crate) partitions: i32,
    pub(crate) records: u64,
    /// Of keys and values.
    pub(crate) record_bytes: u64,
    /// Of batches, as the source stores them.
    pub(crate) stored_bytes: u64,
    /// Records a second that the producer wrote.
    pub(crate) rate: f64,
}

impl Load {
    pub(crate) async fn write(&self, source: &KafkaCluster, topic: &str) -> Loaded {
        let topic = unique_name(topic);
        source.create_topic(&topic, self.partitions, 1, &[]).await;
        self.write_to(source, &topic).await
    }

    /// As [`Load::write`], to a topic that exists.
    pub(crate) async fn write_to(&self, source: &KafkaCluster, topic: &str) -> Loaded {
        let topic = topic.to_owned();
        let mut config = source.client_config();
        config
            .set("compression.type", self.codec)
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("batch.num.messages", self.batch.to_string())
            .set("queue.buffering.max.messages", "200000")
            .set("queue.buffering.max.kbytes", "262144");
        let (load, name, start) = (self.clone(), topic.clone(), Instant::now());
        spawn_blocking(move || load.run(&config, &name)).await.expect("loading does not panic");
        let seconds = start.elapsed().as_secs_f64();
        let stored_bytes = (0..self.partitions).map(|partition| source.stored_bytes(&topic, partition)).sum();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rate = self.records as f64 / seconds;
        let record_bytes = self.records * u64::try_from(self.record_bytes).expect("a size");
        Loaded { topic, partitions: self.partitions, records: self.records, record_bytes, stored_bytes, rate }
    }

    fn run(&self, config: &ClientConfig, topic: &str) {
        let producer: BaseProducer = config.create().expect("librdkafka takes the producer's settings");
        let values: Vec<Vec<u8>> = (0..VALUES).map(|number| value(number, self.record_bytes)).collect();
        let partitions = (0..self.partitions).cycle();
        for ((number, partition), value) in (0..self.records).zip(partitions).zip(values.iter().cycle()) {
            let key = number.to_be_bytes();
            let mut record = BaseRecord::to(topic).partition(partition).key(&key[..]).payload(value.as_slice());
            while let Err((error, back)) = producer.send(record) {
                let KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) = error else {
                    panic!("{topic}/{partition}: {error}");
                };
                producer.poll(Duration::from_millis(5));
                record = back;
            }
            if number % 1_024 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(FLUSH_DEADLINE).expect("the broker acknowledges all");
    }
}

/// A reading of many sensors as JSON: names that repeat, and digits that do not.
fn value(number: usize, bytes: usize) -> Vec<u8> {
    let mut state = u64::try_from(number).expect("a small number").wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut digits = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % 100_000
    };
    let mut text = format!("{{\"vessel\":\"ship-17\",\"sequence\":{number},\"readings\":[");
    let mut sensor = 0;
    while text.len() < bytes {
        write!(text, "{{\"sensor\":\"engine-{}\",\"celsius\":{}}},", sensor % 12, digits())
            .expect("a string takes all");
        sensor += 1;
    }
    text.truncate(bytes);
    text.into_bytes()
}
