//! What becomes of a batch between the leader's log and its followers'. Every test breaks brokers, so
//! each has three of its own; they take turns, for the machine's memory.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;
use tombolo_kafka::ErrorCode;
use tombolo_kafka::admin::OffsetSpec;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster};
use tombolo_tests::wait::until;

use crate::batch::HandMade;
use crate::partition::{PRODUCER, Partition};

const SOON: Duration = Duration::from_secs(40);

/// Three brokers of a test's own.
struct Brokers {
    cluster: KafkaCluster,
    _turn: MutexGuard<'static, ()>,
}

impl Brokers {
    async fn new() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        Self { cluster: KafkaCluster::start(ClusterSpec::three()).await, _turn: turn }
    }

    fn others(&self, broker: i32) -> Vec<i32> {
        self.cluster.broker_ids().filter(|id| *id != broker).collect()
    }

    /// Waits until another broker than this one leads.
    async fn wait_for_another_leader(&self, partition: &Partition<'_>) -> Partition<'_> {
        until("another broker leads", SOON, async || {
            let leader = self.cluster.leader_of(&partition.topic, 0).await;
            if leader == partition.leader { Err("the dead one leads") } else { Ok(()) }
        })
        .await;
        Partition::open(&self.cluster, &partition.topic).await
    }
}

#[tokio::test]
async fn broker_holds_the_high_watermark_until_followers_have_the_batch() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[]).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    for id in brokers.others(partition.leader) {
        brokers.cluster.pause_broker(id);
    }
    // Appended, and yet no answer in time: the error is ambiguous. The same goes for a repeat.
    for _ in 0..2 {
        let answer = partition.send(HandMade::new(PRODUCER, 1).bytes(), Duration::from_secs(1)).await.unwrap();
        assert_eq!(answer, Err(ErrorCode::REQUEST_TIMED_OUT));
        assert_eq!((partition.high_watermark().await, partition.log_end().await), (1, 2));
        assert_eq!(partition.state(PRODUCER).await.unwrap().last_sequence, 1);
    }
    brokers.cluster.heal().await;
    let partition = Partition::open(&brokers.cluster, &partition.topic).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 1)).await, Ok(1), "the repeat of what was appended");
    // The answer says that the high watermark has passed the batch.
    assert_eq!((partition.high_watermark().await, partition.log_end().await), (2, 2));
}

#[tokio::test]
async fn broker_loses_an_unreplicated_tail_with_its_leader() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[]).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    let others = brokers.others(partition.leader);
    for id in &others {
        brokers.cluster.pause_broker(*id);
    }
    // Fetches that waited at the leader still carry the next batch into the followers' sockets, but none after it.
    for (sequence, value) in [(1, "maybe"), (2, "lost")] {
        let batch = HandMade::new(PRODUCER, sequence).value(value);
        let answer = partition.send(batch.bytes(), Duration::from_millis(500)).await.unwrap();
        assert_eq!(answer, Err(ErrorCode::REQUEST_TIMED_OUT));
    }
    assert_eq!((partition.high_watermark().await, partition.log_end().await), (1, 3));
    brokers.cluster.kill_broker(partition.leader);
    for id in &others {
        brokers.cluster.continue_broker(*id);
    }
    let next = brokers.wait_for_another_leader(&partition).await;
    let end = next.log_end().await;
    assert!((1..3).contains(&end), "the log end falls back, not below the high watermark: {end}");
    let last_sequence = next.state(PRODUCER).await.unwrap().last_sequence;
    assert_eq!(i64::from(last_sequence), end - 1, "and the producer's state with it");
    assert_eq!(next.append(&HandMade::new(PRODUCER, last_sequence + 1).value("again")).await, Ok(end));

    brokers.cluster.restart_broker(partition.leader).await;
    until("the old leader has dropped its tail", SOON, async || {
        let log = brokers.cluster.stored_log(partition.leader, &partition.topic, 0);
        let holds = |value: &[u8]| log.windows(value.len()).any(|bytes| bytes == value);
        if holds(b"again") && !holds(b"lost") { Ok(()) } else { Err(log.len()) }
    })
    .await;
}

#[tokio::test]
async fn broker_knows_repeats_after_a_leader_change() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[]).await;
    for i in 0..7 {
        assert_eq!(partition.append(&HandMade::new(PRODUCER, i)).await, Ok(i64::from(i)));
    }
    brokers.cluster.kill_broker(partition.leader);
    let next = brokers.wait_for_another_leader(&partition).await;
    assert_eq!(next.log_end().await, 7);
    for i in 2..7 {
        assert_eq!(next.append(&HandMade::new(PRODUCER, i)).await, Ok(i64::from(i)));
    }
    assert_eq!(next.append(&HandMade::new(PRODUCER, 1)).await, Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER));
    assert_eq!(next.append(&HandMade::new(PRODUCER, 7)).await, Ok(7));
}

#[tokio::test]
async fn broker_appends_nothing_with_too_few_replicas_in_sync() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[("min.insync.replicas", "3")]).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    brokers.cluster.kill_broker(brokers.others(partition.leader)[0]);
    until("one replica is out of sync", SOON, async || {
        let in_sync = brokers.cluster.in_sync_replicas(&partition.topic, 0).await;
        if in_sync.len() == 2 { Ok(()) } else { Err(in_sync) }
    })
    .await;
    let partition = Partition::open(&brokers.cluster, &partition.topic).await;
    assert_eq!(partition.append(&HandMade::new(PRODUCER, 1)).await, Err(ErrorCode::NOT_ENOUGH_REPLICAS));
    assert_eq!(partition.log_end().await, 1);
    assert_eq!(partition.state(PRODUCER).await.unwrap().last_sequence, 0);
}

#[tokio::test]
async fn broker_appends_a_request_whose_connection_died() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[]).await;
    let topic = partition.topic.to_string();
    brokers.cluster.pause_broker(partition.leader);
    let leader = partition.leader;
    drop(partition.send(HandMade::new(PRODUCER, 0).bytes(), Duration::from_secs(5)));
    // The kernel of the broker's machine has the request, the broker has not read it.
    sleep(Duration::from_millis(300)).await;
    drop(partition);
    brokers.cluster.continue_broker(leader);
    until("the late request is in the log", SOON, async || {
        let end = Partition::open(&brokers.cluster, &topic).await.log_end().await;
        if end == 1 { Ok(()) } else { Err(end) }
    })
    .await;
}

#[tokio::test]
async fn broker_refuses_writes_where_it_follows() {
    let brokers = Brokers::new().await;
    let leader = Partition::new(&brokers.cluster, &[]).await;
    let follower = Partition::at(&brokers.cluster, &leader.topic, Some(brokers.others(leader.leader)[0])).await;
    assert_eq!(leader.append(&HandMade::new(PRODUCER, 0)).await, Ok(0));
    assert_eq!(follower.append(&HandMade::new(PRODUCER, 1)).await, Err(ErrorCode::NOT_LEADER_OR_FOLLOWER));
    assert_eq!(leader.log_end().await, 1);

    // A follower tells its own log end to replica id -2, whether it is given the leader epoch or not: the question has to
    // go to the broker that leads in that epoch, and the epoch makes sure that it still does.
    for id in brokers.others(leader.leader) {
        let follower = Partition::at(&brokers.cluster, &leader.topic, Some(id)).await;
        until("the follower has the record", SOON, async || {
            let own_end = follower.offset(OffsetSpec::LogEnd, leader.leader_epoch).await;
            if own_end == Ok(1) { Ok(()) } else { Err(own_end) }
        })
        .await;
        assert_eq!(follower.offset(OffsetSpec::LogEnd, -1).await, Ok(1));
        let newer = follower.offset(OffsetSpec::LogEnd, leader.leader_epoch + 1).await;
        assert_eq!(newer, Err(ErrorCode::UNKNOWN_LEADER_EPOCH));
        let consumer = follower.offset(OffsetSpec::HighWatermark, leader.leader_epoch).await;
        assert_eq!(consumer, Err(ErrorCode::NOT_LEADER_OR_FOLLOWER));
    }
}

#[tokio::test]
async fn broker_refuses_a_log_end_of_an_older_leader_epoch() {
    let brokers = Brokers::new().await;
    let partition = Partition::new(&brokers.cluster, &[]).await;
    brokers.cluster.kill_broker(partition.leader);
    let next = brokers.wait_for_another_leader(&partition).await;
    assert!(next.leader_epoch > partition.leader_epoch);
    assert_eq!(next.offset(OffsetSpec::LogEnd, partition.leader_epoch).await, Err(ErrorCode::FENCED_LEADER_EPOCH));
    assert_eq!(next.log_end().await, 0);
}
