//! What the broker makes of the bytes of a batch.

use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tombolo_kafka::ErrorCode;
use tombolo_proto::batch::{Batch, Stamp, split};
use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::producer::{Codec, Shape, Workload};

use crate::batch::{ATTRIBUTES, CONTROL, HandMade, TRANSACTIONAL};
use crate::partition::{PRODUCER, Partition};

/// What is refused whatever is in the log, and appends nothing.
async fn assert_refused(batch: HandMade, code: ErrorCode) {
    let partition = Partition::new(&shared_pair().await.cloud, &[]).await;
    assert_eq!(partition.append(&batch).await, Err(code), "{batch:?}");
    assert_eq!(partition.log_end().await, 0);
    assert_eq!(partition.state(PRODUCER).await, None);
}

#[tokio::test]
async fn broker_refuses_a_base_offset_other_than_zero() {
    let batch = HandMade { base_offset: 1, ..HandMade::new(PRODUCER, 0) };
    assert_refused(batch, ErrorCode::INVALID_RECORD).await;
}

#[tokio::test]
async fn broker_refuses_a_bad_crc() {
    let batch = HandMade { bad_crc: true, ..HandMade::new(PRODUCER, 0) };
    assert_refused(batch, ErrorCode::CORRUPT_MESSAGE).await;
}

#[tokio::test]
async fn broker_refuses_a_batch_with_holes() {
    let batch = HandMade { last_offset_delta: Some(4), ..HandMade::new(PRODUCER, 0).records(3) };
    assert_refused(batch, ErrorCode::INVALID_RECORD).await;
}

#[tokio::test]
async fn broker_refuses_a_control_batch() {
    let batch = HandMade { attributes: CONTROL, ..HandMade::new(PRODUCER, 0) };
    assert_refused(batch, ErrorCode::INVALID_RECORD).await;
}

#[tokio::test]
async fn broker_refuses_a_transactional_batch_without_a_transaction() {
    let batch = HandMade { attributes: TRANSACTIONAL, ..HandMade::new(PRODUCER, 0) };
    assert_refused(batch, ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED).await;
}

#[tokio::test]
async fn broker_refuses_a_batch_above_the_topics_limit() {
    let partition = Partition::new(&shared_pair().await.cloud, &[("max.message.bytes", "1000")]).await;
    let large = HandMade::new(PRODUCER, 0).value(&"x".repeat(2_000));
    assert_eq!(partition.append(&large).await, Err(ErrorCode::MESSAGE_TOO_LARGE));
    assert_eq!(partition.log_end().await, 0);
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
}

#[tokio::test]
async fn broker_refuses_a_record_too_far_in_the_future_unless_told_otherwise() {
    let far = HandMade::new(PRODUCER, 0);
    let far = HandMade { timestamp: far.timestamp + 48 * 3_600_000, ..far };
    assert_refused(far.clone(), ErrorCode::INVALID_TIMESTAMP).await;
    let any = ("message.timestamp.after.max.ms", "9223372036854775807");
    let partition = Partition::new(&shared_pair().await.cloud, &[any]).await;
    assert_eq!(partition.append(&far).await, Ok(0));
}

#[tokio::test]
async fn broker_keeps_every_byte_from_attributes_on() {
    let pair = shared_pair().await;
    for codec in Codec::ALL {
        let topic = unique_name("rule");
        pair.source.create_topic(&topic, 1, 1, &[]).await;
        let workload = Workload::new().topic(&topic, 1).codec(codec).shape(Shape::Mixed).age(Duration::from_hours(24));
        let written = workload.produce(&pair.source.client_config(), 400).await.acknowledged();
        let batches = copy(pair.source.stored_log(1, &topic, 0).into()).await;
        assert!(batches > 1, "{codec:?}: one batch shows little");
        assert_eq!(written, 400);
    }
}

#[tokio::test]
async fn broker_takes_a_transactional_batch_whose_bit_is_cleared() {
    let pair = shared_pair().await;
    let topic = unique_name("rule");
    pair.source.create_topic(&topic, 1, 1, &[]).await;
    let mut config = pair.source.client_config();
    config.set("transactional.id", &topic);
    let name = topic.clone();
    tokio::task::spawn_blocking(move || {
        let deadline = Duration::from_secs(30);
        let producer: ThreadedProducer<_> = config.create().unwrap();
        producer.init_transactions(deadline).unwrap();
        producer.begin_transaction().unwrap();
        for value in ["one", "two", "three"] {
            producer.send(BaseRecord::<(), str>::to(&name).payload(value)).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(deadline).unwrap();
        producer.commit_transaction(deadline).unwrap();
    })
    .await
    .unwrap();
    let stored: Bytes = pair.source.stored_log(1, &topic, 0).into();
    let batches: Vec<Batch> = split(stored).map(Result::unwrap).collect();
    assert!(batches.iter().filter(|batch| !batch.is_control()).all(Batch::is_transactional));
    let data: Vec<u8> =
        batches.iter().filter(|batch| !batch.is_control()).flat_map(|batch| batch.bytes().to_vec()).collect();
    assert!(copy(data.into()).await > 0);
}

/// Appends the batches of one log to a new partition of the cloud, stamped as the gateway does, and looks at what was
/// stored: all of it as sent, and the record section as it was in the source. Returns how many batches were copied.
async fn copy(source: Bytes) -> usize {
    let partition = Partition::new(&shared_pair().await.cloud, &[("compression.type", "producer")]).await;
    let mut sent = Vec::new();
    let mut sequence = 0;
    for batch in split(source).map(Result::unwrap) {
        let stamped = batch.stamped(Stamp { producer_id: PRODUCER, sequence });
        assert_eq!(partition.append_bytes(stamped.clone()).await, Ok(i64::from(sequence)));
        sequence += batch.record_count();
        sent.push((batch, stamped));
    }
    let mut stored = split(partition.stored());
    let kept: Vec<Batch> = stored.by_ref().map(Result::unwrap).collect();
    assert_eq!(stored.remaining(), 0);
    assert_eq!(kept.len(), sent.len());
    for ((original, stamped), kept) in sent.iter().zip(&kept) {
        // Only base offset and leader epoch are the broker's, and both lie before the CRC.
        assert_eq!(stamped.slice(ATTRIBUTES..), kept.bytes().slice(ATTRIBUTES..));
        assert_eq!(stamped.slice(17..21).get_u32(), kept.crc());
        assert_eq!(original.record_section(), kept.record_section());
        assert_eq!(original.canonical_crc(), kept.canonical_crc());
    }
    kept.len()
}
