//! Transactional writers of the source: transactions of several partitions that are committed or aborted, one after
//! another, and one that hangs.
//!
//! Every value says what becomes of it: it begins with [`COMMITTED`] or with [`ABORTED`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio::task::spawn_blocking;

use crate::broker::unique_name;
use crate::producer::Codec;

/// Beginning of the values that readers of committed records see.
pub const COMMITTED: &str = "committed";
/// Beginning of the values that they do not.
pub const ABORTED: &str = "aborted";

/// How long one step of a transaction may take.
const PATIENCE: Duration = Duration::from_mins(1);

type Client = ThreadedProducer<rdkafka::producer::DefaultProducerContext>;

/// What transactions to write.
#[derive(Clone, Debug)]
pub struct Transactions {
    topic: String,
    partitions: i32,
    codec: Codec,
    records: u32,
    abort_every: Option<u32>,
    rate: Option<u32>,
    keys: u64,
}

impl Transactions {
    /// Of two records to each partition of a topic, every third aborted, as fast as they go.
    pub fn new(topic: &str, partitions: i32) -> Self {
        let topic = topic.to_owned();
        Self { topic, partitions, codec: Codec::None, records: 2, abort_every: Some(3), rate: None, keys: 1_000 }
    }

    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Records to each partition in one transaction.
    #[must_use]
    pub fn records(mut self, records: u32) -> Self {
        self.records = records;
        self
    }

    /// One of so many transactions is aborted; `None`: all are committed.
    #[must_use]
    pub fn abort_every(mut self, abort_every: Option<u32>) -> Self {
        self.abort_every = abort_every;
        self
    }

    /// Transactions per second, at most.
    #[must_use]
    pub fn rate(mut self, transactions_per_second: u32) -> Self {
        self.rate = Some(transactions_per_second);
        self
    }

    /// How many keys the records have.
    #[must_use]
    pub fn keys(mut self, keys: u64) -> Self {
        self.keys = keys;
        self
    }

    /// So many transactions.
    pub async fn write(&self, cluster: &ClientConfig, count: u32) -> Settled {
        self.spawn(cluster, Some(count)).finish().await
    }

    /// Transactions until stopped.
    pub fn start(&self, cluster: &ClientConfig) -> BackgroundTransactions {
        self.spawn(cluster, None)
    }

    fn spawn(&self, cluster: &ClientConfig, count: Option<u32>) -> BackgroundTransactions {
        let stop = Arc::new(AtomicBool::new(false));
        let settled = Arc::new(Mutex::new(Settled::default()));
        let (workload, stopped, counted) = (self.clone(), Arc::clone(&stop), Arc::clone(&settled));
        let mut config = client_config(cluster, PATIENCE);
        config.set("compression.type", self.codec.name());
        let thread = thread::Builder::new()
            .name("transactions".to_owned())
            .spawn(move || workload.run(&config, count, &stopped, &counted))
            .expect("a thread can be started");
        BackgroundTransactions { stop, settled, thread: Some(thread) }
    }

    fn run(&self, config: &ClientConfig, count: Option<u32>, stop: &AtomicBool, settled: &Mutex<Settled>) {
        let client = client(config);
        let start = Instant::now();
        let numbers = 0..count.unwrap_or(u32::MAX);
        for number in numbers {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if let Some(rate) = self.rate {
                let due = Duration::from_secs(number.into()) / rate;
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            let aborted = self.abort_every.is_some_and(|every| number % every == every - 1);
            self.write_one(&client, number, aborted);
            let records = u64::from(self.records) * u64::try_from(self.partitions).expect("a count is positive");
            let mut settled = settled.lock().unwrap_or_else(PoisonError::into_inner);
            settled.add(aborted, records);
        }
    }

    fn write_one(&self, client: &Client, number: u32, aborted: bool) {
        client.begin_transaction().expect("a transaction can begin");
        for partition in 0..self.partitions {
            for record in 0..self.records {
                let sequence = u64::from(number) * u64::from(self.records) + u64::from(record);
                let name = format!("{}/{partition}/{sequence}", self.topic);
                send(client, &self.topic, partition, &format!("key-{}", sequence % self.keys), aborted, &name);
            }
        }
        // What was not sent yet would be thrown away by an abort.
        client.flush(PATIENCE).expect("the records are acknowledged in time");
        if aborted {
            client.abort_transaction(PATIENCE).expect("a transaction can be aborted");
        } else {
            client.commit_transaction(PATIENCE).expect("a transaction can be committed");
        }
    }
}

fn send(client: &Client, topic: &str, partition: i32, key: &str, aborted: bool, name: &str) {
    let value = format!("{}/{name}", if aborted { ABORTED } else { COMMITTED });
    let record = BaseRecord::to(topic).partition(partition).key(key).payload(&value);
    let sent = client.send(record);
    sent.unwrap_or_else(|(error, _)| panic!("cannot write to {topic}/{partition}: {error}"));
}

fn client_config(cluster: &ClientConfig, timeout: Duration) -> ClientConfig {
    let mut config = cluster.clone();
    config
        .set("transactional.id", unique_name("transactions"))
        .set("transaction.timeout.ms", timeout.as_millis().to_string())
        .set("linger.ms", "0");
    config
}

fn client(config: &ClientConfig) -> Client {
    let client: Client = config.create().expect("librdkafka takes the producer's settings");
    client.init_transactions(PATIENCE).expect("the coordinator answers");
    client
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Transactions that were committed.
    pub commits: u64,
    /// Transactions that were aborted.
    pub aborts: u64,
    /// Records that were committed.
    pub committed: u64,
    /// Records that were aborted.
    pub aborted: u64,
}

impl Settled {
    fn add(&mut self, aborted: bool, records: u64) {
        let (transactions, sum) =
            if aborted { (&mut self.aborts, &mut self.aborted) } else { (&mut self.commits, &mut self.committed) };
        *transactions += 1;
        *sum += records;
    }
}

impl std::iter::Sum for Settled {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            commits: sum.commits + one.commits,
            aborts: sum.aborts + one.aborts,
            committed: sum.committed + one.committed,
            aborted: sum.aborted + one.aborted,
        })
    }
}

/// A writer of transactions at work.
#[derive(Debug)]
pub struct BackgroundTransactions {
    stop: Arc<AtomicBool>,
    settled: Arc<Mutex<Settled>>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundTransactions {
    /// What was settled so far.
    pub fn settled(&self) -> Settled {
        *self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins no new one, and waits until the last is settled.
    pub async fn stop(self) -> Settled {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    async fn finish(mut self) -> Settled {
        let thread = self.thread.take().expect("the thread is joined once");
        let ended = spawn_blocking(move || thread.join()).await.expect("joining does not panic");
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        self.settled()
    }
}

impl Drop for BackgroundTransactions {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A transaction that was begun, wrote, and is neither committed nor aborted.
pub struct Hanging {
    client: Client,
}

impl std::fmt::Debug for Hanging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hanging")
    }
}

impl Hanging {
    /// Begins one and writes some records to a partition, which are in its log when this returns.
    pub async fn begin(cluster: &ClientConfig, topic: &str, partition: i32, records: u32) -> Self {
        let config = client_config(cluster, Duration::from_mins(10));
        let topic = topic.to_owned();
        let begun = spawn_blocking(move || {
            let client = client(&config);
            client.begin_transaction().expect("a transaction can begin");
            for record in 0..records {
                send(&client, &topic, partition, "hanging", true, &format!("hanging/{record}"));
            }
            client.flush(PATIENCE).expect("the records are acknowledged in time");
            Self { client }
        });
        begun.await.expect("a transaction can begin")
    }

    /// Ends it.
    pub async fn abort(self) {
        let aborted = spawn_blocking(move || self.client.abort_transaction(PATIENCE));
        aborted.await.expect("aborting does not panic").expect("a transaction can be aborted");
    }
}
