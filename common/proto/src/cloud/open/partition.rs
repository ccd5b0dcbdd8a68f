//! What partitions ask for goes out, and the sums over them are kept.

use std::collections::VecDeque;

use super::{Key, Open, OpenPartition, send};
use crate::cloud::{CloudEvent, CloudOutput};
use crate::failure::{Failure, FailureCode};
use crate::id::{MirrorId, Partition, Time, TopicName};
use crate::mirror::MirrorOutput;
use crate::wire::{CloudBody, Position};

impl Open {
    /// Lets `act` change a partition, then passes on what follows from it and keeps the sums.
    pub(super) fn with_partition(
        &mut self,
        key: Key,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
        act: impl FnOnce(&mut OpenPartition),
    ) {
        let (id, partition) = key;
        let Some(mirror) = self.mirror(id) else { return };
        let (topic, max_gap, gaps_before) =
            (mirror.settings.topic.clone(), mirror.settings.max_gap, mirror.gap_offsets);
        let Some(open) = mirror.partition(partition) else {
            return;
        };
        let before = open.mirror.progress();
        let (held, gaps) = (open.mirror.held_bytes(), open.mirror.gap_offsets());
        act(open);
        debug_assert_eq!(open.mirror.validate(), Ok(()));
        let others = gaps_before - gaps;
        let total = others.saturating_add(open.mirror.gap_offsets());
        let mut failure = None;
        if total > max_gap && total > gaps_before {
            // What the gap asks for has not been seen by anybody yet.
            open.mirror.fail();
            let detail = format!(
                "{total} offsets without records came, more than records with them, and the limit is {max_gap}: each costs a \
                 marker of about 78 bytes in the cloud. Raise max_gap_offsets of the mirror, then pause and resume it; or delete the mirror \
                 topic and let it be mirrored from a later start"
            );
            failure = Some(Failure::at(FailureCode::GapLimit, partition, before.received, detail));
        }
        while let Some(output) = open.mirror.poll_output() {
            if let Some(found) = pass_on(output, id, &topic, partition, out) {
                failure = Some(found);
            }
        }
        let (held_now, confirmed_now) = (open.mirror.held_bytes(), open.mirror.progress().confirmed);
        let (timeout, gaps_now) = (open.mirror.next_timeout(), open.mirror.gap_offsets());
        mirror.gap_offsets = others.saturating_add(gaps_now);
        self.held_bytes = self.held_bytes + held_now - held;
        if confirmed_now > before.confirmed {
            self.unconfirmed.insert(key);
        }
        match timeout {
            Some(at) => self.timeouts.insert(key, at.max(now)),
            None => self.timeouts.remove(&key),
        };
        match failure {
            Some(failure) => self.fail(id, failure, false, out),
            None => self.follow(key, now, out),
        }
    }

    pub(super) fn stop_partitions(&mut self, id: MirrorId) {
        let Some(mirror) = self.mirror(id) else { return };
        let mut freed = 0;
        for open in &mut mirror.partitions {
            freed += open.mirror.held_bytes();
            open.mirror.stop();
        }
        mirror.gap_offsets =
            mirror.partitions.iter().map(|open| open.mirror.gap_offsets()).fold(0, i64::saturating_add);
        self.held_bytes -= freed;
        self.timeouts.retain(|key, _| key.0 != id);
        self.trims.retain(|key, _| key.0 != id);
        self.unconfirmed.retain(|key| key.0 != id);
    }
}

/// Passes an output on. A failure is the caller's.
fn pass_on(
    output: MirrorOutput,
    mirror: MirrorId,
    topic: &TopicName,
    partition: Partition,
    out: &mut VecDeque<CloudOutput>,
) -> Option<Failure> {
    let topic = topic.clone();
    let passed_on = match output {
        MirrorOutput::Recover { attempt } => CloudOutput::Recover { mirror, topic, partition, attempt },
        MirrorOutput::Produce { ticket, offset, batch } => {
            CloudOutput::Produce { mirror, topic, partition, ticket, offset, batch }
        }
        MirrorOutput::Skip { ticket, offset, count } => {
            CloudOutput::Skip { mirror, topic, partition, ticket, offset, count }
        }
        MirrorOutput::FastForward { ticket, from, to } => {
            CloudOutput::FastForward { mirror, topic, partition, ticket, from, to }
        }
        MirrorOutput::RecordLoss { ticket, from, to } => {
            CloudOutput::RecordLoss { mirror, topic, partition, ticket, from, to }
        }
        MirrorOutput::Position { run, next_offset, tail, rewind } => {
            let position = Position { mirror: mirror.0, partition, run, next_offset, tail, rewind };
            send(out, CloudBody::Position(position));
            if !rewind {
                return None;
            }
            CloudOutput::Event(CloudEvent::Rewound { topic, partition, next_offset })
        }
        MirrorOutput::Failed(failure) => return Some(failure),
    };
    out.push_back(passed_on);
    None
}
