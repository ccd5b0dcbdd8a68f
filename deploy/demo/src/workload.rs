//! What the site's applications write: several topics, every codec, records of every shape.
//!
//! Rates are such that no partition grows beyond what a mock cluster keeps of it (5 MB, librdkafka's
//! `rd_kafka_mock_partition_s.max_size`): what falls out there could not be compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio_util::sync::CancellationToken;

/// How often the producer looks what is due.
const TICK: Duration = Duration::from_millis(20);
/// For how long a partition stays with one codec.
const CODEC_TURN: Duration = Duration::from_millis(200);
/// How long the last records may take to be acknowledged.
const FLUSH_DEADLINE: Duration = Duration::from_secs(20);
/// The rates hold for runs up to this long; longer ones write more slowly, and no more in all.
const FULL_RATE_SECONDS: u64 = 20;
/// Compression, and whether the producer is idempotent.
const CODECS: [(&str, bool); 5] = [("none", true), ("gzip", false), ("snappy", true), ("lz4", false), ("zstd", true)];

/// What a topic's records look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Small JSON, no key.
    Reading,
    /// JSON with a key; now and then a tombstone.
    Order,
    /// Bytes that do not compress.
    Image,
    /// A key, headers (one without a value, one name twice), sometimes an empty value.
    Alarm,
}

/// One topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topic {
    name: &'static str,
    pub(crate) partitions: i32,
    /// Records per second and partition.
    rate: u64,
    shape: Shape,
}

/// All topics.
pub(crate) const TOPICS: [Topic; 5] = [
    Topic { name: "line-1.readings", partitions: 6, rate: 400, shape: Shape::Reading },
    Topic { name: "line-2.readings", partitions: 3, rate: 400, shape: Shape::Reading },
    Topic { name: "orders", partitions: 4, rate: 150, shape: Shape::Order },
    Topic { name: "inspection.images", partitions: 2, rate: 20, shape: Shape::Image },
    Topic { name: "alarms", partitions: 1, rate: 10, shape: Shape::Alarm },
];

impl Topic {
    /// Its name in a run with this prefix.
    pub(crate) fn name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.name)
    }
}

/// Why records could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProduceError {
    #[error("librdkafka refuses the producer's settings: {0}")]
    Settings(#[source] KafkaError),
    #[error("cannot write to {topic}: {source}")]
    Send {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("records are not acknowledged within {FLUSH_DEADLINE:?}: {0}")]
    Flush(#[source] KafkaError),
    #[error("{0} records were not acknowledged by the source cluster")]
    Refused(u64),
}

/// Acknowledged and refused records; shared with librdkafka's threads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    acknowledged: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    /// Records the source cluster has.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// librdkafka's reports of what was acknowledged.
struct Deliveries(Arc<Tally>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.acknowledged } else { &self.0.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One partition and how far it was written.
struct Lane {
    topic: String,
    partition: i32,
    rate: u64,
    shape: Shape,
    written: u64,
}

/// Writes for `length`, or until stopped, and waits for the last acknowledgement. Blocks.
pub(crate) fn produce(
    bootstrap: &str,
    prefix: &str,
    length: Duration,
    tally: &Arc<Tally>,
    stop: &CancellationToken,
) -> Result<(), ProduceError> {
    let producers: Vec<_> = CODECS
        .iter()
        .map(|(codec, idempotent)| producer(bootstrap, codec, *idempotent, tally))
        .collect::<Result<_, _>>()?;
    let mut lanes: Vec<_> = TOPICS
        .iter()
        .flat_map(|topic| {
            (0..topic.partitions).map(|partition| Lane {
                topic: topic.name(prefix),
                partition,
                rate: topic.rate,
                shape: topic.shape,
                written: 0,
            })
        })
        .collect();
    let start = Instant::now();
    loop {
        if stop.is_cancelled() {
            // Nobody waits for what is still in the queues.
            return Ok(());
        }
        let elapsed = start.elapsed().min(length);
        for (number, lane) in lanes.iter_mut().enumerate() {
            let turn = elapsed.as_millis() / CODEC_TURN.as_millis() + number as u128;
            let Some(producer) = usize::try_from(turn).ok().and_then(|turn| producers.get(turn % producers.len()))
            else {
                continue;
            };
            for _ in lane.written..due(lane.rate, elapsed, length) {
                send(producer, lane)?;
                lane.written += 1;
            }
        }
        if elapsed == length {
            break;
        }
        thread::sleep(TICK);
    }
    for producer in &producers {
        producer.flush(FLUSH_DEADLINE).map_err(ProduceError::Flush)?;
    }
    match tally.refused.load(Ordering::Relaxed) {
        0 => Ok(()),
        refused => Err(ProduceError::Refused(refused)),
    }
}

/// Records that a partition should hold after `elapsed` of a run of `length`.
fn due(rate: u64, elapsed: Duration, length: Duration) -> u64 {
    let whole = rate * length.as_secs().clamp(1, FULL_RATE_SECONDS);
    let (elapsed, length) = (elapsed.as_millis(), length.as_millis().max(1));
    u64::try_from(u128::from(whole) * elapsed / length).unwrap_or(whole)
}

fn producer(
    bootstrap: &str,
    codec: &str,
    idempotent: bool,
    tally: &Arc<Tally>,
) -> Result<ThreadedProducer<Deliveries>, ProduceError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("client.id", format!("tombolo-demo-{codec}"))
        .set("compression.type", codec)
        .set("enable.idempotence", idempotent.to_string())
        .set("acks", "all")
        .set("linger.ms", "50")
        .set("message.timeout.ms", FLUSH_DEADLINE.as_millis().to_string())
        .create_with_context(Deliveries(Arc::clone(tally)))
        .map_err(ProduceError::Settings)
}

fn send(producer: &ThreadedProducer<Deliveries>, lane: &Lane) -> Result<(), ProduceError> {
    let content = Content::new(lane);
    let mut record = BaseRecord::<[u8], [u8]>::to(&lane.topic).partition(lane.partition);
    record.key = content.key.as_deref();
    record.payload = content.value.as_deref();
    record.headers = content.headers;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                thread::sleep(TICK);
            }
            Err((source, _)) => return Err(ProduceError::Send { topic: lane.topic.clone(), source }),
        }
    }
}

/// Key, value and headers of one record.
struct Content {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<OwnedHeaders>,
}

impl Content {
    fn new(lane: &Lane) -> Self {
        let Lane { topic, partition, shape, written: number, .. } = lane;
        let mut noise = Noise::new(*partition, *number);
        let key = || Some(format!("{}-{}", partition, noise.seed % 500).into_bytes());
        match shape {
            Shape::Reading => {
                let (celsius, bar) = (noise.seed % 900, noise.next() % 400);
                let value = format!(
                    r#"{{"machine":"{topic}/{partition}","number":{number},"celsius":{celsius},"bar":{bar},"state":"RUNNING"}}"#
                );
                Self { key: None, value: Some(value.into_bytes()), headers: None }
            }
            Shape::Order if number % 50 == 49 => Self { key: key(), value: None, headers: None },
            Shape::Order => {
                let key = key();
                let value = format!(
                    r#"{{"order":{number},"customer":"{:016x}","lines":[{{"part":"A-{}","count":{}}},{{"part":"B-{}","count":1}}],"note":"{}"}}"#,
                    noise.next(),
                    noise.next() % 1_000,
                    noise.next() % 20,
                    noise.next() % 1_000,
                    "handle with care ".repeat(6),
                );
                Self { key, value: Some(value.into_bytes()), headers: None }
            }
            Shape::Image => {
                let key = key();
                let bytes = 1_000 + noise.next() % 8_000;
                let value = (0..bytes / 8).flat_map(|_| noise.next().to_be_bytes()).collect();
                Self { key, value: Some(value), headers: None }
            }
            Shape::Alarm => {
                let value = if number % 3 == 2 { Vec::new() } else { format!("alarm {number}").into_bytes() };
                Self { key: key(), value: Some(value), headers: Some(headers(*number)) }
            }
        }
    }
}

fn headers(number: u64) -> OwnedHeaders {
    let severity = if number.is_multiple_of(10) { "high" } else { "low" };
    OwnedHeaders::new()
        .insert(Header { key: "severity", value: Some(severity) })
        .insert(Header { key: "seen-by", value: Some("plc-7") })
        .insert(Header { key: "seen-by", value: Some("scada") })
        .insert(Header::<&str> { key: "acknowledged-by", value: None })
}

/// Numbers without a pattern that a codec would find (splitmix64).
struct Noise {
    seed: u64,
}

impl Noise {
    fn new(partition: i32, number: u64) -> Self {
        let mut noise = Self { seed: number.wrapping_mul(31).wrapping_add(u64::from(partition.unsigned_abs())) };
        noise.seed = noise.next();
        noise
    }

    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Less than what a mock cluster keeps, with room for headers of batches.
    const MOST_BYTES: usize = 4 << 20;
    /// Framing of one record and, at worst, of a batch of its own.
    const FRAMING: usize = 21 + 61;

    #[test]
    fn no_partition_outgrows_a_mock_cluster() {
        for topic in TOPICS {
            for length in [10, 20, 600].map(Duration::from_secs) {
                let records = due(topic.rate, length, length);
                let mut lane =
                    Lane { topic: topic.name("p-"), partition: 0, rate: topic.rate, shape: topic.shape, written: 0 };
                let bytes: usize = (0..records)
                    .map(|number| {
                        lane.written = number;
                        let content = Content::new(&lane);
                        let headers = if content.headers.is_some() { 100 } else { 0 };
                        content.key.map_or(0, |key| key.len())
                            + content.value.map_or(0, |value| value.len())
                            + headers
                            + FRAMING
                    })
                    .sum();
                assert!(bytes < MOST_BYTES, "{}: {bytes} bytes in {length:?}", topic.name);
            }
        }
    }

    #[test]
    fn what_is_due_grows_to_the_whole() {
        let length = Duration::from_secs(16);
        assert_eq!(due(400, Duration::ZERO, length), 0);
        assert_eq!(due(400, length / 2, length), 3_200);
        assert_eq!(due(400, length, length), 6_400);
    }

    #[test]
    fn records_have_every_shape() {
        let content =
            |shape, written| Content::new(&Lane { topic: "t".to_owned(), partition: 1, rate: 1, shape, written });
        assert!(content(Shape::Reading, 0).key.is_none());
        assert!(content(Shape::Order, 49).value.is_none());
        assert_eq!(content(Shape::Alarm, 2).value, Some(Vec::new()));
        assert!(content(Shape::Alarm, 0).headers.is_some());
        assert_ne!(content(Shape::Image, 1).value, content(Shape::Image, 2).value);
    }
}
