//! From the producer's call to the consumer of the mirror, at 1 000 records a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use tombolo_tests::broker::{KafkaCluster, unique_name};

use crate::Run;
use crate::contender::{self, Contender, Running, Start};
use crate::report::{Report, Row};
use crate::suites::{DEADLINE, say};
use crate::watch::Watch;

const RATE: u32 = 1_000;
const PARTITIONS: i32 = 6;
const RECORD_BYTES: usize = 200;
/// Not counted: compilers and caches get warm.
const WARM_UP: u32 = 10 * RATE;
const COUNTED: u32 = 30 * RATE;
const P50: &str = "p50 ms";
const P99: &str = "p99 ms";
/// Nothing may wait for company here.
const MIRROR_MAKER: [(&str, &str); 1] = [("cloud.producer.linger.ms", "0")];

pub(crate) async fn run(run: &Run) -> Report {
    let data = format!(
        "{RATE} records of {RECORD_BYTES} bytes a second, {PARTITIONS} partitions, linger.ms=0; {COUNTED} are counted, from \
         the producer's call to the mirror's consumer, both in one process."
    );
    let mut report = Report::new("latency", data);
    report.settings = contender::settings(run);
    let of_suite = MIRROR_MAKER.map(|(key, value)| format!("{key}={value}")).join(", ");
    report.settings.push(("MirrorMaker 2, in this suite".to_owned(), of_suite));
    let source = contender::broker().await;
    for number in 1..=run.runs {
        say(&format!("run {number} of {}", run.runs));
        for contender in run.contenders() {
            report.rows.push(measure(&source, contender, run).await);
        }
    }
    for figure in [P50, P99] {
        let (ours, theirs) = (Contender::Tombolo.name(), Contender::MirrorMaker.name());
        let seen = report.median(ours, figure) / report.median(theirs, figure);
        report.at_most(&format!("{figure}, times MirrorMaker 2's"), seen, 1.0);
    }
    report
}

async fn measure(source: &KafkaCluster, contender: Contender, run: &Run) -> Row {
    let cloud = contender::warm_broker().await;
    let topics = [(unique_name("latency"), PARTITIONS)];
    let topic = topics[0].0.clone();
    source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let start = Start {
        source,
        cloud: &cloud,
        topics: &topics,
        mirror_maker: &MIRROR_MAKER,
        tombolo: contender::tombolo(run, &topics),
    };
    let mut running = Running::start(contender, start).await;
    // Every partition has been through once before anything counts.
    let epoch = Instant::now();
    let first = u32::try_from(PARTITIONS).expect("a small count");
    let config = source.client_config();
    let (of_topic, of_config) = (topic.clone(), config.clone());
    spawn_blocking(move || produce(&of_config, &of_topic, first, epoch)).await.expect("producing does not panic");
    let offsets = u64::from(first);
    Watch::new(&cloud, &topics).until(offsets, DEADLINE, || running.assert_running()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let counted = u32::try_from(run.scaled(COUNTED.into())).expect("a share of it");
    let all = WARM_UP + counted;
    let (cloud_config, of_topic, stopped) = (cloud.client_config(), topic.clone(), Arc::clone(&stop));
    let consumer = spawn_blocking(move || consume(cloud_config, &of_topic, first + all, epoch, &stopped));
    spawn_blocking(move || produce(&config, &topic, all, epoch)).await.expect("producing does not panic");
    let mut seen = tokio::time::timeout(Duration::from_mins(1), consumer).await.unwrap_or_else(|_| {
        stop.store(true, Ordering::Relaxed);
        panic!("{}: records do not arrive", contender.name())
    });
    let latencies = seen.as_mut().expect("consuming does not panic");
    let skipped = usize::try_from(first + WARM_UP).expect("a small count");
    let mut latencies = latencies.split_off(skipped.min(latencies.len()));
    latencies.sort_unstable();
    running.assert_running();
    let milliseconds = |share: f64| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (latencies.len() as f64 * share) as usize;
        latencies.get(place).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let figures = vec![(P50, milliseconds(0.5)), ("p90 ms", milliseconds(0.9)), (P99, milliseconds(0.99))];
    say(&format!("  {}: {figures:?}", contender.name()));
    Row { contender: contender.name().to_owned(), figures }
}

/// Records in turn to all partitions, each with the time since `epoch` in nanoseconds.
fn produce(config: &ClientConfig, topic: &str, records: u32, epoch: Instant) {
    let mut config = config.clone();
    config.set("linger.ms", "0").set("enable.idempotence", "true");
    let producer: BaseProducer = config.create().expect("librdkafka takes the producer's settings");
    let begin = Instant::now();
    for (number, partition) in (0..records).zip((0..PARTITIONS).cycle()) {
        let due = begin + Duration::from_secs(number.into()) / RATE;
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            producer.poll(Duration::ZERO);
            thread::sleep(left.min(Duration::from_micros(500)));
        }
        let mut value = vec![b'.'; RECORD_BYTES];
        let nanos = u64::try_from(epoch.elapsed().as_nanos()).expect("a run of minutes");
        value.splice(..8, nanos.to_be_bytes());
        let record = BaseRecord::<(), _>::to(topic).partition(partition).payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("the queue has room at this rate");
    }
    producer.flush(Duration::from_secs(30)).expect("the broker acknowledges all");
}

/// How long each of so many records took, in the order in which they came.
fn consume(mut config: ClientConfig, topic: &str, records: u32, epoch: Instant, stop: &AtomicBool) -> Vec<Duration> {
    config.set("group.id", "bench-latency").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "100");
    let consumer: BaseConsumer = config.create().expect("librdkafka takes the consumer's settings");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset to begin with");
    }
    consumer.assign(&list).expect("partitions can be assigned");
    let wanted = usize::try_from(records).expect("a small count");
    let mut latencies = Vec::with_capacity(wanted);
    while latencies.len() < wanted && !stop.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap_or_else(|error| panic!("{topic}: {error}"));
        let stamp = message.payload().and_then(|value| value.first_chunk::<8>()).expect("values begin with their time");
        latencies.push(epoch.elapsed().saturating_sub(Duration::from_nanos(u64::from_be_bytes(*stamp))));
    }
    latencies
}
