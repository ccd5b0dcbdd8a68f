//! The pair of clusters that most tests of one binary share: two JVMs for all of them.
//!
//! Tests that share keep to topics of their own, see [`unique_name`], and never break a shared broker.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::cluster::{ClusterSpec, KafkaCluster};

/// A source and a cloud of one broker each.
#[derive(Debug)]
pub struct Pair {
    pub source: KafkaCluster,
    pub cloud: KafkaCluster,
}

/// The pair of this process, started by the first test that asks. It lives until the process ends.
pub async fn shared_pair() -> &'static Pair {
    static PAIR: OnceCell<Pair> = OnceCell::const_new();
    PAIR.get_or_init(async || {
        let (source, cloud) =
            tokio::join!(KafkaCluster::start(ClusterSpec::single()), KafkaCluster::start(ClusterSpec::single()));
        Pair { source, cloud }
    })
    .await
}

/// A name that no other test of this process uses.
pub fn unique_name(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
