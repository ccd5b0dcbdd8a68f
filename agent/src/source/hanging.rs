//! Transactions that hold partitions back: whose they are.
//!
//! Reading ends at the last stable offset. Where that stays below the high watermark, the leader is asked who has a
//! transaction open; whoever runs the producer can end it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;
use tombolo_kafka::admin::{ProducerState, describe_producers};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::id::Offset;

use super::Key;

/// A transaction that takes longer is worth a look.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at all partitions.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For one broker's answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a partition waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hanging {
    /// Whose transaction it is; `None` where the broker does not tell.
    pub(crate) producer_id: Option<i64>,
    /// Offset of its first record.
    pub(crate) first_offset: Offset,
}

/// Asks the leaders of partitions whose last stable offset stays where it is. One that has moved on meanwhile is left out.
pub(super) async fn find(cluster: &Cluster, stalled: BTreeMap<Key, Offset>) -> BTreeMap<Key, Hanging> {
    let mut by_broker: BTreeMap<i32, Vec<(Key, Offset)>> = BTreeMap::new();
    for (key, offset) in stalled {
        // A leader that is not known is another trouble, which is told elsewhere.
        if let Ok(leader) = cluster.leader(key.0.as_str(), key.1).await {
            by_broker.entry(leader.broker).or_default().push((key, offset));
        }
    }
    let mut found = BTreeMap::new();
    for (broker, partitions) in by_broker {
        match timeout(DEADLINE, ask(cluster, broker, &partitions)).await {
            Ok(Ok(hanging)) => found.extend(hanging),
            Ok(Err(error)) => {
                tracing::debug!(broker, %error, "the broker does not tell who has transactions open");
                found.extend(partitions.into_iter().map(nobody_knows));
            }
            Err(_) => found.extend(partitions.into_iter().map(nobody_knows)),
        }
    }
    found
}

fn nobody_knows((key, first_offset): (Key, Offset)) -> (Key, Hanging) {
    (key, Hanging { producer_id: None, first_offset })
}

async fn ask(cluster: &Cluster, broker: i32, partitions: &[(Key, Offset)]) -> Result<Vec<(Key, Hanging)>, KafkaError> {
    let connection = cluster.shared(broker).await?;
    let asked: Vec<_> = partitions.iter().map(|(key, _)| (key.0.shared(), key.1)).collect();
    let answers = describe_producers(&connection, &asked).await?;
    let hanging = partitions.iter().zip(answers).filter_map(|((key, offset), answer)| match answer.result {
        Ok(producers) => Some((key.clone(), first(&producers, *offset)?)),
        Err(_) => Some(nobody_knows((key.clone(), *offset))),
    });
    Ok(hanging.collect())
}

/// The transaction that the last stable offset stays for; `None` where there is none any more.
fn first(producers: &[ProducerState], last_stable: Offset) -> Option<Hanging> {
    let open = producers.iter().filter_map(|producer| {
        let first_offset = producer.current_txn_start_offset?;
        Some(Hanging { producer_id: Some(producer.producer_id), first_offset })
    });
    open.filter(|hanging| hanging.first_offset <= last_stable).min_by_key(|hanging| hanging.first_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer(producer_id: i64, current_txn_start_offset: Option<i64>) -> ProducerState {
        let (epoch, last_sequence, last_timestamp, coordinator_epoch) = (0, 0, 0, 0);
        ProducerState { producer_id, epoch, last_sequence, last_timestamp, coordinator_epoch, current_txn_start_offset }
    }

    #[test]
    fn the_oldest_open_transaction_holds_the_partition_back() {
        let producers = [producer(1, None), producer(2, Some(40)), producer(3, Some(30)), producer(4, Some(90))];
        let hanging = Hanging { producer_id: Some(3), first_offset: 30 };
        assert_eq!(first(&producers, 30), Some(hanging));
        assert_eq!(first(&producers, 20), None, "that one has ended");
        assert_eq!(first(&[], 20), None);
    }
}
