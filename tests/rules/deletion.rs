//! How a log gets to start above 0.

use std::sync::Arc;
use std::time::Duration;

use tombolo_kafka::ErrorCode;
use tombolo_kafka::admin::{ConfigChange, ConfigResource, OffsetSpec, incremental_alter_configs};
use tombolo_tests::broker::shared_pair;
use tombolo_tests::wait::until;

use crate::batch::HandMade;
use crate::consumer::visible_offsets;
use crate::partition::{PRODUCER, Partition};

async fn partition(policy: &str) -> Partition<'static> {
    Partition::new(&shared_pair().await.cloud, &[("cleanup.policy", policy)]).await
}

async fn log_start(partition: &Partition<'_>) -> Result<i64, ErrorCode> {
    partition.offset(OffsetSpec::LogStart, partition.leader_epoch).await
}

#[tokio::test]
async fn broker_fast_forwards_an_empty_log() {
    const FILLER: i32 = 20_000;
    let partition = partition("delete").await;
    let mut end = 0;
    for batch in 0..3 {
        let filler = HandMade::new(PRODUCER, batch * FILLER).records(FILLER);
        assert_eq!(partition.append(&filler).await, Ok(end));
        end += i64::from(FILLER);
    }
    // Half way, as one that was killed would find it; then to the end.
    assert_eq!(partition.delete_before(25_000).await, Ok(25_000));
    assert_eq!(log_start(&partition).await, Ok(25_000));
    assert_eq!(partition.delete_before(end).await, Ok(end));
    assert_eq!((log_start(&partition).await, partition.log_end().await), (Ok(end), end));
    assert_eq!(visible_offsets(&partition).await, Vec::<i64>::new());
    // The log goes on there, and so does the sequence.
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 3 * FILLER)).await, Ok(end));
    assert_eq!(visible_offsets(&partition).await, [end]);
    assert_eq!(partition.delete_before(10).await, Ok(end), "a log start does not fall back");
}

#[tokio::test]
async fn broker_deletes_nothing_above_the_high_watermark() {
    let partition = partition("delete").await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0).records(5)).await, Ok(0));
    assert_eq!(partition.delete_before(6).await, Err(ErrorCode::OFFSET_OUT_OF_RANGE));
    assert_eq!(log_start(&partition).await, Ok(0));
    assert_eq!(partition.delete_before(5).await, Ok(5));
}

#[tokio::test]
async fn broker_deletes_no_records_of_a_topic_that_is_only_compacted() {
    let partition = partition("compact").await;
    let filler = partition.append(&HandMade::new(PRODUCER, 0)).await;
    assert_eq!(filler, Err(ErrorCode::INVALID_RECORD), "nor does it take records without a key");
    assert_eq!(partition.mark(0, 6, 4).await, Ok(()), "but markers");
    assert_eq!(partition.delete_before(4).await, Err(ErrorCode::POLICY_VIOLATION));
    assert_eq!(log_start(&partition).await, Ok(0));

    // With `delete` in its policy it does.
    let resource = ConfigResource::Topic(Arc::clone(&partition.topic));
    let change = ConfigChange::Set { name: "cleanup.policy".to_owned(), value: "compact,delete".to_owned() };
    let changes = [(resource, vec![change])];
    let answer = incremental_alter_configs(&partition.connection, &changes, false).await.unwrap().remove(0);
    assert_eq!(answer.result, Ok(()));
    let start =
        until("records can be deleted", Duration::from_secs(20), async || partition.delete_before(4).await).await;
    assert_eq!(start, 4);
    assert_eq!((log_start(&partition).await, partition.log_end().await), (Ok(4), 4));
}

#[tokio::test]
async fn broker_changes_single_settings() {
    let partition = partition("delete").await;
    let kafka = partition.kafka;
    let change = async |changes: Vec<ConfigChange>, validate_only| {
        let changes = [(ConfigResource::Topic(Arc::clone(&partition.topic)), changes)];
        let answers = incremental_alter_configs(&partition.connection, &changes, validate_only).await;
        answers.unwrap().remove(0).result.map_err(|refusal| refusal.code)
    };
    let set = |name: &str, value: &str| ConfigChange::Set { name: name.to_owned(), value: value.to_owned() };
    let reset = ConfigChange::Reset { name: "cleanup.policy".to_owned() };
    assert_eq!(
        change(vec![set("retention.ms", "70000"), set("no.such.config", "1")], false).await,
        Err(ErrorCode::INVALID_CONFIG)
    );
    assert_eq!(change(vec![set("retention.ms", "70000")], true).await, Ok(()));
    assert_eq!(change(vec![set("max.message.bytes", "5000"), reset], false).await, Ok(()));
    until("the change is seen", Duration::from_secs(20), async || {
        let seen: Vec<_> = kafka.topic_configs(&partition.topic).await.into_iter().collect();
        // Neither what was only validated nor what was refused together with another is there.
        if seen == [("max.message.bytes".to_owned(), "5000".to_owned())] { Ok(()) } else { Err(seen) }
    })
    .await;
}
