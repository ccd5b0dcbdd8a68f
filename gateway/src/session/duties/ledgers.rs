//! Where mirrors start, and what the registry must know before it is done: a start above 0, a loss.

use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Partition, TopicName};

use super::{Duties, Event, Writing};
use crate::fast_forward;
use crate::recover::{self, Place};
use crate::registry::{LedgerEntry, LedgerKey, LedgerKind};
use crate::topics::TopicError;

/// Reasons, for people.
const SOURCE_STARTS: &str = "the source's log starts here";
const DELETED_AT_SOURCE: &str = "the source deleted them before they were mirrored";

impl Duties {
    /// Makes a mirror start, once the registry says that it does.
    pub(in crate::session) fn fast_forward(
        &mut self,
        mirror: MirrorId,
        topic: TopicName,
        partition: Partition,
        ticket: u64,
        stretch: Range<Offset>,
    ) {
        let (Some(writing), Some(kept)) = (&self.writing, self.kept.get_mut(&mirror)) else { return };
        kept.starts(Instant::now());
        let (wanted, turn) = (kept.wanted.clone(), Arc::clone(&kept.turn));
        let (topics, events) = (self.shared.topics.clone(), self.events.clone());
        let (cloud, slots) = (writing.cloud.clone(), Arc::clone(&self.starts));
        let note = self.note(writing, &topic, partition, LedgerKind::Start, 0..stretch.end, SOURCE_STARTS);
        let topic_id = self.partitions.get(&(mirror, partition)).and_then(|looked_at| looked_at.topic_id);
        let place = Place { topic_id, ..self.place(topic, partition) };
        let timeout = self.shared.settings.produce.timeout;
        self.spawn("fast-forward", async move {
            let _slot = slots.acquire_owned().await;
            let work = async {
                note.await?;
                let alone = turn.lock().await;
                let ready = topics.take_filler(&wanted).await;
                drop(alone);
                if let Err(error) = ready {
                    let reason = error.to_string();
                    if let TopicError::Failed(failure) = error {
                        // Nobody to hear it means that the session is over.
                        drop(events.send(Event::Input(CloudInput::TopicFailed { mirror, failure })).await);
                    }
                    return Err(reason);
                }
                let Range { start, end } = stretch;
                let done = fast_forward::fast_forward(&cloud, &place, timeout, start, end).await;
                done.map_err(|error| error.to_string())
            };
            Event::Input(CloudInput::FastForwarded { mirror, partition, ticket, result: work.await })
        });
    }

    /// Writes a loss to the registry.
    pub(in crate::session) fn record_loss(
        &self,
        mirror: MirrorId,
        topic: &TopicName,
        partition: Partition,
        ticket: u64,
        lost: Range<Offset>,
    ) {
        let Some(writing) = &self.writing else { return };
        let note = self.note(writing, topic, partition, LedgerKind::Loss, lost, DELETED_AT_SOURCE);
        self.spawn("loss", async move {
            Event::Input(CloudInput::LossRecorded { mirror, partition, ticket, result: note.await })
        });
    }

    /// Moves the log start of a mirror up, at the leader that told its log end: another knows more or less of it.
    pub(in crate::session) fn delete_before(
        &self,
        mirror: MirrorId,
        topic: TopicName,
        partition: Partition,
        ticket: u64,
        offset: Offset,
    ) {
        let (Some(writing), Some(looked_at)) = (&self.writing, self.partitions.get(&(mirror, partition))) else {
            return;
        };
        let (cloud, slots, broker) = (writing.cloud.clone(), Arc::clone(&self.deletions), looked_at.leader.broker);
        let place = self.place(topic, partition);
        self.spawn("delete", async move {
            let _slot = slots.acquire_owned().await;
            let deleted = fast_forward::delete_before(&cloud, broker, &place, offset).await;
            let result = deleted.map_err(|error| error.to_string());
            Event::Input(CloudInput::Deleted { mirror, partition, ticket, result })
        });
    }

    /// Adds to the ledger of a partition.
    fn note(
        &self,
        writing: &Writing,
        topic: &TopicName,
        partition: Partition,
        kind: LedgerKind,
        stretch: Range<Offset>,
        reason: &'static str,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let cloud = writing.cloud.clone();
        let (registry, key) = (self.shared.registry.clone(), self.ledger_key(topic, partition));
        async move {
            let topic_id = recover::topic_id(&cloud.cluster, &key.topic, &registry.ledger(&key)).await;
            let topic_id = topic_id.map_err(|error| error.to_string())?;
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (from, to, reason) = (stretch.start, stretch.end, reason.to_owned());
            let entry = LedgerEntry { kind, from, to, at, reason, topic_id };
            registry
                .note(&cloud.lease, &key, &entry)
                .await
                .map_err(|error| format!("the ledger is not written: {error}"))
        }
    }

    pub(super) fn place(&self, topic: TopicName, partition: Partition) -> Place {
        let skippers = self.shared.registry.skippers(&self.link);
        Place { topic, partition, topic_id: None, producer_id: self.link.producer_id(), skippers }
    }

    pub(super) fn ledger_key(&self, topic: &TopicName, partition: Partition) -> LedgerKey {
        LedgerKey { link: self.link.clone(), topic: topic.clone(), partition }
    }
}
