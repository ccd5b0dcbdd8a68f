//! Which batches nobody is to read, from the aborted transactions that a broker names with an answer: the rule of
//! `org.apache.kafka.clients.consumer.internals.CompletedFetch`.

use std::collections::{BTreeSet, VecDeque};

use tombolo_kafka::fetch::AbortedTransaction;
use tombolo_kafka::records::is_abort_marker;
use tombolo_proto::batch::Batch;

/// The transactions of one answer. Each answer names all that reach into it, those that began before it too.
#[derive(Debug)]
pub(super) struct Transactions {
    /// Not begun yet, by first offset.
    ahead: VecDeque<AbortedTransaction>,
    /// Producers whose transaction was aborted, up to its marker.
    aborted: BTreeSet<i64>,
}

impl Transactions {
    pub(super) fn new(mut aborted: Vec<AbortedTransaction>) -> Self {
        aborted.sort_unstable();
        Self { ahead: aborted.into(), aborted: BTreeSet::new() }
    }

    /// Whether the batch is a marker or was aborted. To be asked of every batch, in order.
    pub(super) fn hides(&mut self, batch: &Batch) -> bool {
        let producer = batch.producer_id();
        while let Some(begun) = self.ahead.pop_front_if(|next| next.first_offset <= batch.last_offset()) {
            self.aborted.insert(begun.producer_id);
        }
        if is_abort_marker(batch) {
            self.aborted.remove(&producer);
        }
        batch.is_control() || (batch.is_transactional() && self.aborted.contains(&producer))
    }
}
