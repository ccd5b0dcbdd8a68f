//! Writers of the source: what a site's applications would send, of every shape that a mirror has to keep.
//!
//! Every value names its topic, partition and sequence number, but for those that are empty or null on purpose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Message};
use tokio::task::spawn_blocking;

/// How long the last records may take to be acknowledged, broker failovers included.
const FLUSH_DEADLINE: Duration = Duration::from_mins(2);
/// The largest record of [`Shape::Mixed`]: it fits a topic's default `max.message.bytes` of 1 048 588.
const LARGE: usize = 1_000_000;

/// Compression of the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The name in `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What the records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A key and a value of this many bytes (at least what names the record).
    Plain(usize),
    /// In turn: plain, with headers, null key, null value, both null, empty, and one record of 1 MB in a hundred.
    Mixed,
    /// For compacted topics: all with a key, one in three with headers, one in seven without a value.
    Keyed,
}

/// What to write, and how.
#[derive(Clone, Debug)]
pub struct Workload {
    topics: Vec<(String, i32)>,
    codec: Codec,
    idempotent: bool,
    shape: Shape,
    age: Duration,
    ahead: Duration,
    keys: u64,
    rate: Option<u32>,
    headers: bool,
    client: Vec<(String, String)>,
}

impl Workload {
    /// Plain records of 200 bytes, not compressed and idempotent, as fast as they go.
    pub fn new() -> Self {
        Self {
            topics: Vec::new(),
            codec: Codec::None,
            idempotent: true,
            shape: Shape::Plain(200),
            age: Duration::ZERO,
            ahead: Duration::ZERO,
            keys: 1_000,
            rate: None,
            headers: true,
            client: Vec::new(),
        }
    }

    /// Writes to this topic too, to all its partitions in turn.
    #[must_use]
    pub fn topic(mut self, name: &str, partitions: i32) -> Self {
        self.topics.push((name.to_owned(), partitions));
        self
    }

    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Timestamps lie this far in the past.
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }

    /// Timestamps lie this far in the future.
    #[must_use]
    pub fn ahead(mut self, ahead: Duration) -> Self {
        self.ahead = ahead;
        self
    }

    /// No record has headers, whatever its shape: messages of formats v0 and v1 have no place for them.
    #[must_use]
    pub fn without_headers(mut self) -> Self {
        self.headers = false;
        self
    }

    /// How many keys the records have.
    #[must_use]
    pub fn keys(mut self, keys: u64) -> Self {
        self.keys = keys;
        self
    }

    /// Records per second over all partitions, at most.
    #[must_use]
    pub fn rate(mut self, records_per_second: u32) -> Self {
        self.rate = Some(records_per_second);
        self
    }

    /// A client property of librdkafka, such as `linger.ms` or `batch.size`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.client.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Writes `records` in all, spread over the partitions, and waits until all are acknowledged.
    pub async fn produce(&self, cluster: &ClientConfig, records: u64) -> Produced {
        self.spawn(cluster, Some(records)).finish().await
    }

    /// Writes until stopped.
    pub fn start(&self, cluster: &ClientConfig) -> BackgroundProducer {
        self.spawn(cluster, None)
    }

    fn spawn(&self, cluster: &ClientConfig, records: Option<u64>) -> BackgroundProducer {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Tally::default());
        let (workload, config) = (self.clone(), self.config(cluster));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&tally));
        let thread = thread::Builder::new()
            .name("producer".to_owned())
            .spawn(move || workload.run(&config, records, &stopped, &counted))
            .expect("a thread can be started");
        BackgroundProducer { stop, tally, thread: Some(thread) }
    }

    fn config(&self, cluster: &ClientConfig) -> ClientConfig {
        let mut config = cluster.clone();
        config
            .set("compression.type", self.codec.name())
            .set("enable.idempotence", self.idempotent.to_string())
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("message.max.bytes", "1048576")
            .set("message.timeout.ms", FLUSH_DEADLINE.as_millis().to_string())
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "65536");
        config.extend(self.client.iter().cloned());
        config
    }

    fn run(&self, config: &ClientConfig, records: Option<u64>, stop: &AtomicBool, tally: &Arc<Tally>) {
        let context = Deliveries(Arc::clone(tally));
        let producer: ThreadedProducer<Deliveries> =
            config.create_with_context(context).expect("librdkafka takes the producer's settings");
        let partitions: Vec<(&str, i32)> = self
            .topics
            .iter()
            .flat_map(|(topic, count)| (0..*count).map(move |partition| (topic.as_str(), partition)))
            .collect();
        assert!(!partitions.is_empty(), "a workload needs a topic");
        let start = Instant::now();
        let targets = (0_u64..).flat_map(|sequence| partitions.iter().map(move |target| (*target, sequence)));
        for (sent, ((topic, partition), sequence)) in (0_u64..).zip(targets) {
            if records.is_some_and(|records| sent >= records) || stop.load(Ordering::Relaxed) {
                break;
            }
            if let Some(rate) = self.rate {
                let due = Duration::from_secs(sent) / rate;
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            self.send(&producer, topic, partition, sequence);
        }
        producer.flush(FLUSH_DEADLINE).expect("what was written is acknowledged in time");
    }

    fn send(&self, producer: &ThreadedProducer<Deliveries>, topic: &str, partition: i32, sequence: u64) {
        let content = Content::new(self.shape, topic, partition, sequence, self.keys);
        let mut record =
            BaseRecord::<[u8], [u8]>::to(topic).partition(partition).timestamp(timestamp(self.age, self.ahead));
        record.key = content.key.as_deref();
        record.payload = content.value.as_deref();
        record.headers = content.headers.filter(|_| self.headers);
        loop {
            match producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("cannot write to {topic}/{partition}: {error}"),
            }
        }
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self::new()
    }
}

/// A producer at work.
#[derive(Debug)]
pub struct BackgroundProducer {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundProducer {
    /// How many records were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.tally.produced().acknowledged()
    }

    /// Writes nothing new, and waits until all that was written is acknowledged.
    pub async fn stop(self) -> Produced {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    async fn finish(mut self) -> Produced {
        let thread = self.thread.take().expect("the thread is joined once");
        let ended = spawn_blocking(move || thread.join()).await.expect("joining does not panic");
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        let produced = self.tally.produced();
        assert_eq!(produced.refused, 0, "the cluster refused records: {:?}", produced.last_refusal);
        produced
    }
}

impl Drop for BackgroundProducer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What became of the records.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    /// Acknowledged records of each partition.
    pub partitions: BTreeMap<(String, i32), u64>,
    refused: u64,
    last_refusal: Option<KafkaError>,
}

impl Produced {
    pub fn acknowledged(&self) -> u64 {
        self.partitions.values().sum()
    }
}

#[derive(Debug, Default)]
struct Tally(Mutex<Produced>);

impl Tally {
    fn produced(&self) -> Produced {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// librdkafka's reports of what was acknowledged.
#[derive(Debug)]
struct Deliveries(Arc<Tally>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut produced = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(record) => {
                *produced.partitions.entry((record.topic().to_owned(), record.partition())).or_default() += 1;
            }
            Err((error, _)) => {
                produced.refused += 1;
                produced.last_refusal = Some(error.clone());
            }
        }
    }
}

struct Content {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<OwnedHeaders>,
}

impl Content {
    fn new(shape: Shape, topic: &str, partition: i32, sequence: u64, keys: u64) -> Self {
        let name = format!("{topic}/{partition}/{sequence}");
        let plain = |bytes| Self {
            key: Some(format!("key-{}", sequence % keys).into_bytes()),
            value: Some(padded(&name, bytes)),
            headers: None,
        };
        match (shape, sequence % 8) {
            (Shape::Plain(bytes), _) => plain(bytes),
            (Shape::Keyed, _) => Self {
                key: Some(format!("key-{}", skewed(sequence, keys)).into_bytes()),
                value: (sequence % 7 != 6).then(|| padded(&name, 20 + usize::try_from(sequence % 300).unwrap_or(0))),
                headers: (sequence % 3 == 1).then(|| headers(&name)),
            },
            (Shape::Mixed, _) if sequence % 100 == 50 => plain(LARGE),
            (Shape::Mixed, 0) => plain(0),
            (Shape::Mixed, 1) => Self { headers: Some(headers(&name)), ..plain(100) },
            (Shape::Mixed, 2) => Self { key: None, ..plain(100) },
            (Shape::Mixed, 3) => Self { value: None, ..plain(0) },
            (Shape::Mixed, 4) => Self { key: None, value: None, headers: Some(headers(&name)) },
            (Shape::Mixed, 5) => Self { key: Some(Vec::new()), value: Some(Vec::new()), headers: None },
            (Shape::Mixed, 6) => Self { key: None, value: None, headers: None },
            (Shape::Mixed, _) => plain(5_000),
        }
    }
}

/// One of so many keys: low ones come often and high ones seldom, so that a compacted log keeps records everywhere.
fn skewed(sequence: u64, keys: u64) -> u64 {
    let mixed = sequence.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 32) % (1 + (mixed & 0xffff_ffff) % keys)
}

/// A value and a null value, an empty value, and a name that comes twice.
fn headers(name: &str) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header { key: "source", value: Some(name) })
        .insert(Header { key: "source", value: Some("again") })
        .insert(Header { key: "empty", value: Some("") })
        .insert(Header::<&str> { key: "null", value: None })
}

/// The name, then letters that compress to about half, up to this many bytes.
fn padded(name: &str, bytes: usize) -> Vec<u8> {
    let mut value = name.as_bytes().to_vec();
    let mut state =
        name.bytes().fold(0x9e37_79b9_u32, |state, byte| (state ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    while value.len() < bytes {
        // A linear congruence is random enough to keep batches from being all alike.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value.extend_from_slice(format!("{state:08x}").as_bytes());
    }
    value.truncate(bytes.max(name.len()));
    value
}

fn timestamp(age: Duration, ahead: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from((now.saturating_sub(age) + ahead).as_millis()).expect("the year is below 292 million")
}
