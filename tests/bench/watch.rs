//! Looks at how far a mirror is, often and cheaply: one request for all partitions of a broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tombolo_kafka::Cluster;
use tombolo_kafka::admin::{OffsetQuery, OffsetSpec, list_offsets};
use tombolo_tests::broker::KafkaCluster;

/// How often it looks, unless told otherwise.
const EVERY: Duration = Duration::from_millis(20);

/// Partitions of one cluster.
#[derive(Debug)]
pub(crate) struct Watch {
    cluster: Cluster,
    partitions: Vec<(Arc<str>, i32)>,
    every: Duration,
}

/// How a mirror came to hold all that its source holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaughtUp {
    /// When it was first seen to hold something.
    pub(crate) first: Instant,
    /// When it was first seen to hold all.
    pub(crate) last: Instant,
    /// Offsets between the two.
    pub(crate) offsets: u64,
}

impl CaughtUp {
    /// Offsets a second, from the first sign of life on.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(crate) fn rate(&self) -> f64 {
        self.offsets as f64 / self.seconds()
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.last.duration_since(self.first).as_secs_f64()
    }
}

impl Watch {
    pub(crate) fn new(cluster: &KafkaCluster, topics: &[(String, i32)]) -> Self {
        let of_topic = |(topic, count): &(String, i32)| {
            let topic: Arc<str> = topic.as_str().into();
            (0..*count).map(move |partition| (Arc::clone(&topic), partition)).collect::<Vec<_>>()
        };
        Self { cluster: cluster.raw_client(), partitions: topics.iter().flat_map(of_topic).collect(), every: EVERY }
    }

    /// Looks at this pace: thousands of partitions are work for a broker.
    #[must_use]
    pub(crate) fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// The sum of all high watermarks. What does not exist yet holds nothing.
    pub(crate) async fn held(&self) -> u64 {
        let mut queries: BTreeMap<i32, Vec<OffsetQuery>> = BTreeMap::new();
        for (topic, partition) in &self.partitions {
            if let Ok(leader) = self.cluster.leader(topic, *partition).await {
                let query = OffsetQuery { topic: Arc::clone(topic), partition: *partition, leader_epoch: leader.epoch };
                queries.entry(leader.broker).or_default().push(query);
            } else {
                self.cluster.forget_leader(topic, *partition);
                return 0;
            }
        }
        let mut held = 0;
        for (broker, queries) in queries {
            let Ok(connection) = self.cluster.shared(broker).await else { return 0 };
            let answers = list_offsets(&connection, OffsetSpec::HighWatermark, &queries).await.unwrap_or_default();
            let offsets = answers.iter().filter_map(|answer| answer.result.ok());
            held += offsets.filter_map(|found| u64::try_from(found.offset).ok()).sum::<u64>();
        }
        held
    }

    /// Waits until they hold so many offsets in all; `alive` is asked each time and may panic.
    pub(crate) async fn until(&self, wanted: u64, deadline: Duration, mut alive: impl FnMut()) -> CaughtUp {
        let start = Instant::now();
        let mut first = None;
        loop {
            let held = self.held().await;
            let now = Instant::now();
            if held > 0 && first.is_none() {
                first = Some((now, held));
            }
            if let Some((first, at_first)) = first.filter(|_| held >= wanted) {
                return CaughtUp { first, last: now, offsets: held - at_first };
            }
            assert!(start.elapsed() < deadline, "the mirror holds {held} of {wanted} after {deadline:?}");
            alive();
            tokio::time::sleep(self.every).await;
        }
    }
}
