//! What the product re-encodes is taken by a broker, and a consumer reads on it what it reads on the source: same offsets,
//! keys, values, headers and timestamps. Sources are compressed by librdkafka, by the broker (Java), and by its cleaner.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio::task::spawn_blocking;
use tombolo_kafka::fetch::{FetchOnce, Isolation, fetch_once};
use tombolo_kafka::records::{Piece, Unfit, from_legacy};
use tombolo_proto::batch::{Batch, Codec as BatchCodec, Stamp, split};
use tombolo_tests::broker::{ClusterSpec, KafkaCluster, shared_pair, unique_name};
use tombolo_tests::producer::Codec;
use tombolo_tests::wait::until;

use crate::consumer::{Consumed, consume};
use crate::partition::{PRODUCER, Partition};

const LIMIT: usize = 16 << 20;
const RECORDS: usize = 600;
const PER_BATCH: &str = "50";

/// Who compresses the batches.
#[derive(Debug, Clone, Copy)]
enum Packer {
    Librdkafka,
    Broker,
}

/// Keyed records in several batches, with headers; of one key in three only the last record stays in a compacted topic.
async fn produce(cluster: &KafkaCluster, topic: &str, codec: Codec) {
    let mut config = cluster.client_config();
    config.set("linger.ms", "50").set("batch.num.messages", PER_BATCH).set("compression.codec", codec.name());
    let topic = topic.to_owned();
    spawn_blocking(move || {
        let producer: ThreadedProducer<_> = config.create().unwrap();
        for number in 0..RECORDS {
            let key = if number % 3 == 1 { "again".to_owned() } else { format!("key-{number}") };
            let value = format!("value {number} ").repeat(number % 40);
            let headers = OwnedHeaders::new()
                .insert(Header { key: "number", value: Some(&number.to_string()) })
                .insert(Header { key: "number", value: Some("") })
                .insert(Header::<&str> { key: "null", value: None });
            let mut record = BaseRecord::to(&topic).key(&key).headers(headers);
            // Timestamps of their own, out of order, and a tombstone now and then.
            record = record.timestamp(1_700_000_000_000 + i64::try_from(number * 7 % 100).unwrap());
            if number % 50 != 2 {
                record = record.payload(&value);
            }
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    })
    .await
    .unwrap();
}

/// All batches from log start to high watermark, as a broker serves them.
async fn fetch(partition: &Partition<'_>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    loop {
        let once = FetchOnce {
            topic: &partition.topic,
            topic_id: None,
            partition: 0,
            offset: batches.last().map_or(0, Batch::next_offset),
            leader_epoch: partition.leader_epoch,
            max_bytes: 1 << 20,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
        };
        let fetched = fetch_once(&partition.connection, once).await.unwrap();
        assert_eq!(fetched.error, None);
        let before = batches.len();
        batches.extend(split(fetched.records).map(Result::unwrap));
        if batches.len() == before {
            return batches;
        }
    }
}

/// What of a log was how.
#[derive(Debug, Default)]
struct Mirrored {
    as_is: usize,
    runs: usize,
    gaps: usize,
}

/// Brings every batch to the mirror: as it is where that is right, else its runs and gaps.
async fn mirror(source: &Partition<'_>, mirror: &Partition<'_>, codec: Option<BatchCodec>) -> Mirrored {
    let mut done = Mirrored::default();
    let (mut sequence, mut next) = (0, 0);
    let batches = fetch(source).await;
    for batch in batches {
        // The cleaner takes whole batches too.
        if batch.base_offset() > next {
            mark(mirror, batch.base_offset() - next).await;
        }
        next = batch.next_offset();
        let pieces = match Unfit::new(batch) {
            Err(batch) => {
                done.as_is += 1;
                vec![Piece::Run(batch)]
            }
            Ok(unfit) => {
                let base = unfit.batch().base_offset();
                let pieces: Vec<_> = unfit.runs(base, LIMIT).unwrap().map(Result::unwrap).collect();
                done.runs += pieces.iter().filter(|piece| matches!(piece, Piece::Run(_))).count();
                done.gaps += pieces.iter().filter(|piece| matches!(piece, Piece::Gap { .. })).count();
                pieces
            }
        };
        for piece in pieces {
            match piece {
                Piece::Run(run) => {
                    assert!(codec.is_none_or(|codec| run.codec() == codec), "{run:?}: {:?}", run.codec());
                    let stamped = run.stamped(Stamp { producer_id: PRODUCER, sequence });
                    assert_eq!(mirror.append_bytes(stamped.clone()).await, Ok(run.base_offset()));
                    sequence += run.record_count();
                }
                Piece::Gap { first, next } => mark(mirror, next - first).await,
            }
        }
    }
    done
}

async fn mark(partition: &Partition<'_>, count: i64) {
    assert_eq!(partition.mark(0, 6, u32::try_from(count).unwrap()).await, Ok(()));
}

/// The logs are the same for a consumer, and the mirror's broker kept every run as it was sent.
async fn assert_equal(source: &Partition<'_>, mirror: &Partition<'_>, least: usize) {
    let (expected, found) = (consume(source, "read_committed").await, consume(mirror, "read_committed").await);
    assert!(expected.len() >= least, "{} records", expected.len());
    assert_eq!(expected, found);
    assert_eq!(source.log_end().await, mirror.log_end().await);
    for batch in fetch(mirror).await {
        assert!(batch.crc_is_valid() && !batch.is_log_append_time());
        assert!(batch.is_control() || batch.is_dense(), "{batch:?}");
    }
}

async fn empty_mirror() -> Partition<'static> {
    let configs = [("compression.type", "producer"), ("message.timestamp.after.max.ms", "9223372036854775807")];
    Partition::new(&shared_pair().await.cloud, &configs).await
}

fn on_wire(codec: Codec) -> BatchCodec {
    match codec {
        Codec::None => BatchCodec::None,
        Codec::Gzip => BatchCodec::Gzip,
        Codec::Snappy => BatchCodec::Snappy,
        Codec::Lz4 => BatchCodec::Lz4,
        Codec::Zstd => BatchCodec::Zstd,
    }
}

/// A topic of one partition whose batches are packed by `packer`, with records in it.
async fn filled<'a>(
    cluster: &'a KafkaCluster,
    codec: Codec,
    packer: Packer,
    configs: &[(&str, &str)],
) -> Partition<'a> {
    let topic = unique_name("held");
    let (broker, client) = match packer {
        Packer::Librdkafka => ("producer", codec),
        Packer::Broker => (if codec == Codec::None { "uncompressed" } else { codec.name() }, Codec::None),
    };
    let configs: Vec<_> = configs.iter().copied().chain([("compression.type", broker)]).collect();
    cluster.create_topic(&topic, 1, 1, &configs).await;
    produce(cluster, &topic, client).await;
    Partition::open(cluster, &topic).await
}

#[tokio::test]
async fn broker_takes_append_times_as_create_times() {
    let source = &shared_pair().await.source;
    for codec in Codec::ALL {
        for packer in [Packer::Librdkafka, Packer::Broker] {
            let held = filled(source, codec, packer, &[("message.timestamp.type", "LogAppendTime")]).await;
            let mirror_log = empty_mirror().await;
            let done = mirror(&held, &mirror_log, Some(on_wire(codec))).await;
            assert!(done.as_is == 0 && done.runs > 1 && done.gaps == 0, "{codec:?} {packer:?}: {done:?}");
            assert_equal(&held, &mirror_log, RECORDS).await;
        }
    }
}

#[tokio::test]
async fn broker_takes_the_runs_of_compacted_logs() {
    let spec = ClusterSpec::single().set("log.cleaner.backoff.ms", "100").set("log.roll.jitter.ms", "0");
    let cluster = KafkaCluster::start(spec).await;
    let compact = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("segment.ms", "100"),
        ("delete.retention.ms", "86400000"),
    ];
    let mut held = Vec::new();
    for codec in Codec::ALL {
        for time in ["CreateTime", "LogAppendTime"] {
            let configs: Vec<_> = compact.into_iter().chain([("message.timestamp.type", time)]).collect();
            held.push((codec, filled(&cluster, codec, Packer::Librdkafka, &configs).await));
        }
    }
    for (codec, held) in &held {
        until("the log is thinned", Duration::from_mins(2), async || {
            // Only a later record makes the broker roll the segment, which is then cleaned.
            produce_one(&cluster, &held.topic).await;
            let thinned = fetch(held).await.iter().filter(|batch| !batch.is_dense()).count();
            if thinned >= RECORDS / 100 { Ok(()) } else { Err(thinned) }
        })
        .await;
        // The cleaner works on: what is compared is what was fetched at one time.
        let frozen = freeze(&cluster, held).await;
        let mirror_log = empty_mirror().await;
        let done = mirror(held, &mirror_log, None).await;
        assert!(done.runs > RECORDS / 6 && done.gaps > RECORDS / 6, "{codec:?}: {done:?}");
        assert_eq!(fetch(held).await, frozen, "{codec:?}: the source changed meanwhile");
        let thinned = frozen.iter().filter(|batch| !batch.is_dense() && batch.record_count() > 0);
        assert!(thinned.into_iter().all(|batch| batch.codec() == on_wire(*codec)));
        assert_equal(held, &mirror_log, RECORDS / 2).await;
    }
}

#[tokio::test]
async fn broker_takes_old_messages_as_batches() {
    // No broker of this version writes v0 or v1: the messages are made by hand.
    let set = [
        old_message(0, None, Some(b"key"), Some(b"of v0")),
        old_message(1, None, None, None),
        old_message(2, Some(1_400_000_000_000), Some(b"key"), Some(b"of v1")),
        old_message(5, Some(1_300_000_000_000), Some(b""), Some(b"")),
    ];
    let mirror_log = empty_mirror().await;
    let mut sequence = 0;
    for piece in from_legacy(Bytes::from(set.concat()), 0, LIMIT).map(Result::unwrap) {
        match piece {
            Piece::Run(run) => {
                let stamped = run.stamped(Stamp { producer_id: PRODUCER, sequence });
                assert_eq!(mirror_log.append_bytes(stamped).await, Ok(run.base_offset()));
                sequence += run.record_count();
            }
            Piece::Gap { first, next } => mark(&mirror_log, next - first).await,
        }
    }
    let record = |offset, timestamp, key: Option<&[u8]>, value: Option<&[u8]>| Consumed {
        offset,
        timestamp,
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: Vec::new(),
    };
    // librdkafka says of a timestamp of -1 that there is none.
    let expected = [
        record(0, None, Some(b"key"), Some(b"of v0")),
        record(1, None, None, None),
        record(2, Some(1_400_000_000_000), Some(b"key"), Some(b"of v1")),
        record(5, Some(1_300_000_000_000), Some(b""), Some(b"")),
    ];
    assert_eq!(consume(&mirror_log, "read_committed").await, expected);
    assert_eq!(mirror_log.log_end().await, 6);
}

/// A message of v0, or with a timestamp of v1 (`org.apache.kafka.common.record.LegacyRecord`).
fn old_message(offset: i64, timestamp: Option<i64>, key: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
    let mut covered = vec![u8::from(timestamp.is_some()), 0];
    if let Some(timestamp) = timestamp {
        covered.put_i64(timestamp);
    }
    for field in [key, value] {
        covered.put_i32(field.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap()));
        covered.put_slice(field.unwrap_or_default());
    }
    let mut message = Vec::new();
    message.put_i64(offset);
    message.put_i32(i32::try_from(covered.len()).unwrap() + 4);
    message.put_u32(crc32(&covered));
    message.put_slice(&covered);
    message
}

/// The CRC of zip files, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, fold)
}

async fn produce_one(cluster: &KafkaCluster, topic: &str) {
    let mut config = cluster.client_config();
    let topic = topic.to_owned();
    config.set("linger.ms", "0");
    spawn_blocking(move || {
        let producer: ThreadedProducer<_> = config.create().unwrap();
        producer.send(BaseRecord::to(&topic).key("again").payload("last")).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    })
    .await
    .unwrap();
}

/// Waits until the cleaner leaves the log alone; what it holds then.
async fn freeze(cluster: &KafkaCluster, held: &Partition<'_>) -> Vec<Batch> {
    cluster.alter_topic(&held.topic, &[("min.compaction.lag.ms", "9223372036854775807")]).await;
    let mut before = Vec::new();
    until("the cleaner rests", Duration::from_secs(30), async || {
        let now = fetch(held).await;
        let same = now == before;
        before = now;
        if same { Ok(()) } else { Err("it works") }
    })
    .await;
    before
}
