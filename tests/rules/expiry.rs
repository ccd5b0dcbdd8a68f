//! How long the broker remembers a producer.

use std::time::Duration;

use tombolo_tests::broker::{ClusterSpec, KafkaCluster};
use tombolo_tests::wait::until;

use crate::batch::HandMade;
use crate::partition::{PRODUCER, Partition};

#[tokio::test]
async fn broker_forgets_a_producer_by_the_time_of_its_records() {
    let hour = Duration::from_hours(1);
    let spec = ClusterSpec::single()
        .set("producer.id.expiration.ms", &hour.as_millis().to_string())
        .set("producer.id.expiration.check.interval.ms", "100");
    let cluster = KafkaCluster::start(spec).await;
    let partition = Partition::new(&cluster, &[]).await;

    let (old, fresh) = (HandMade::new(PRODUCER, 100).age(hour * 24 * 7), HandMade::new(PRODUCER + 1, 100));
    assert_eq!(partition.append(&fresh).await, Ok(0));
    assert_eq!(partition.append(&old).await, Ok(1));
    until("the producer of week-old records is forgotten", Duration::from_secs(20), async || {
        partition.state(PRODUCER).await.map_or(Ok(()), Err)
    })
    .await;
    assert!(partition.state(PRODUCER + 1).await.is_some(), "records of now are remembered");

    // So a repeat is no repeat any more, and what is not the next in sequence is taken.
    assert_eq!(partition.append(&old).await, Ok(2));
    until("forgotten again", Duration::from_secs(20), async || partition.state(PRODUCER).await.map_or(Ok(()), Err))
        .await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 7)).await, Ok(3));
    assert_eq!(partition.append(&fresh).await, Ok(0), "the other's repeat is known");
    assert_eq!(partition.log_end().await, 4);
}
