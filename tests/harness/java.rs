//! Kafka's own consumer sees every kind of difference between two logs, and none where a mirror is as it should be.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::task::spawn_blocking;
use tombolo_kafka::admin::{MarkerRange, MarkerWriter, send_txn_markers};
use tombolo_tests::broker::{KafkaCluster, shared_pair, unique_name};
use tombolo_tests::compare::{Seen, java_consumers_equal};

const PATIENCE: Duration = Duration::from_secs(30);

type Field = Option<&'static str>;

/// What a log can hold.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Record {
        key: Field,
        value: Field,
        /// Of the one header; the record has none where there is no name.
        header: (Field, Field),
        timestamp: i64,
    },
    /// The record of a transaction, and its end.
    InTransaction(&'static Self, End),
    /// Markers that belong to no transaction, as gateways write them.
    Gap(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    Abort,
}

const PLAIN: Entry =
    Entry::Record { key: Some("key"), value: Some("value"), header: (Some("name"), None), timestamp: 7 };
const OTHER: Entry = Entry::Record { key: None, value: Some("other"), header: (None, None), timestamp: 8 };

/// Writes the log of a topic's one partition.
async fn write(cluster: &KafkaCluster, topic: &str, entries: &[Entry]) {
    cluster.create_topic(topic, 1, 1, &[]).await;
    for entry in entries {
        if let Entry::Gap(count) = entry {
            let connection = cluster.raw_client().connect(1).await.unwrap();
            let writer = MarkerWriter { producer_id: 1 << 62, producer_epoch: 0, coordinator_epoch: 0 };
            let range = MarkerRange { topic: topic.into(), partition: 0, count: *count };
            let mut written = send_txn_markers(&connection, writer, vec![range], PATIENCE).await.unwrap();
            assert_eq!(written.remove(0).result, Ok(()));
        } else {
            let (config, topic, entry) = (cluster.client_config(), topic.to_owned(), *entry);
            spawn_blocking(move || write_record(config, &topic, entry)).await.unwrap();
        }
    }
}

fn write_record(mut config: ClientConfig, topic: &str, entry: Entry) {
    match entry {
        Entry::InTransaction(record, end) => {
            let producer: BaseProducer = config.set("transactional.id", unique_name("planted")).create().unwrap();
            producer.init_transactions(PATIENCE).unwrap();
            producer.begin_transaction().unwrap();
            send(&producer, topic, *record);
            if end == End::Abort {
                producer.abort_transaction(PATIENCE).unwrap();
            } else {
                producer.commit_transaction(PATIENCE).unwrap();
            }
        }
        Entry::Record { .. } | Entry::Gap(_) => send(&config.create().unwrap(), topic, entry),
    }
}

fn send(producer: &BaseProducer, topic: &str, entry: Entry) {
    let Entry::Record { key, value, header, timestamp } = entry else { panic!("{entry:?} is no record") };
    let mut record = BaseRecord::to(topic).partition(0).timestamp(timestamp);
    record.key = key;
    record.payload = value;
    if let (Some(key), value) = header {
        record = record.headers(OwnedHeaders::new().insert(Header { key, value }));
    }
    producer.send(record).unwrap();
    producer.flush(PATIENCE).unwrap();
}

/// What the consumers in Java say of two logs.
async fn compared(source: &[Entry], mirror: &[Entry]) -> Result<Seen, String> {
    let (pair, topic) = (shared_pair().await, unique_name("planted"));
    write(&pair.source, &topic, source).await;
    write(&pair.cloud, &topic, mirror).await;
    java_consumers_equal(&pair.source, &pair.cloud, &[&topic]).await
}

async fn assert_different(source: &[Entry], mirror: &[Entry], told: &str) {
    let seen = compared(source, mirror).await;
    assert!(seen.as_ref().is_err_and(|difference| difference.contains(told)), "{mirror:?}, not {told:?}: {seen:?}");
}

#[tokio::test]
async fn java_consumers_see_every_difference_of_a_record() {
    let source = [PLAIN, PLAIN];
    assert_eq!(compared(&source, &[PLAIN, PLAIN]).await, Ok(Seen { records: 2, aborted: 0 }));
    let (key, value, header, timestamp) = (Some("key"), Some("value"), (Some("name"), None), 7);
    for (other, told) in [
        (Entry::Record { key: Some("kex"), value, header, timestamp }, "another key at offset 1"),
        (Entry::Record { key, value: Some("valuf"), header, timestamp }, "another value at offset 1"),
        (Entry::Record { key, value: None, header, timestamp }, "another value at offset 1"),
        (Entry::Record { key, value, header: (Some("nane"), None), timestamp }, "other headers at offset 1"),
        (Entry::Record { key, value, header: (Some("name"), Some("")), timestamp }, "other headers at offset 1"),
        (Entry::Record { key, value, header: (None, None), timestamp }, "other headers at offset 1"),
        (Entry::Record { key, value, header, timestamp: 8 }, "another timestamp at offset 1"),
    ] {
        assert_different(&source, &[PLAIN, other], told).await;
    }
    // Null and empty are not the same.
    let null = Entry::Record { key: None, value: None, header, timestamp };
    assert_different(&[null], &[Entry::Record { key: Some(""), value: None, header, timestamp }], "another key").await;
    assert_different(&[null], &[Entry::Record { key: None, value: Some(""), header, timestamp }], "another value")
        .await;
    assert_different(&source, &[PLAIN], "ends at 1, the source at 2").await;
    assert_different(&source, &[PLAIN, PLAIN, PLAIN], "ends at 3, the source at 2").await;
}

#[tokio::test]
async fn java_consumers_want_gaps_where_transactions_were_aborted_and_nowhere_else() {
    const SOURCE: [Entry; 4] =
        [PLAIN, Entry::InTransaction(&PLAIN, End::Abort), Entry::InTransaction(&OTHER, End::Commit), PLAIN];
    let gap = Entry::Gap;
    let mirror = [PLAIN, gap(2), OTHER, gap(1), PLAIN];
    assert_eq!(compared(&SOURCE, &mirror).await, Ok(Seen { records: 3, aborted: 1 }));
    for (mirror, told) in [
        // Shows what was aborted, to all or to readers of uncommitted records.
        (vec![PLAIN, PLAIN, gap(1), OTHER, gap(1), PLAIN], "has offset 1 where the source has offset 3"),
        (SOURCE.to_vec(), "(mirror, read_uncommitted) has offset 1 where the source has offset 3"),
        // Lacks what was committed, to all or to readers of committed records.
        (vec![PLAIN, gap(4), PLAIN], "has offset 5 where the source has offset 3"),
        (
            vec![PLAIN, gap(2), Entry::InTransaction(&OTHER, End::Abort), PLAIN],
            "(mirror, read_committed) has offset 5 where the source has offset 3",
        ),
        (vec![PLAIN, gap(1), OTHER, gap(2), PLAIN], "has offset 2 where the source has offset 3"),
        (vec![PLAIN, gap(2), PLAIN, gap(1), PLAIN], "another timestamp at offset 3"),
        (vec![PLAIN, gap(2), OTHER, gap(2)], "has no further record where the source has offset 5"),
        (vec![PLAIN, gap(2), OTHER, PLAIN], "ends at 5, the source at 6"),
    ] {
        assert_different(&SOURCE, &mirror, told).await;
    }
}
