//! Partitions whose source starts above what the mirror holds.

use std::collections::VecDeque;

use super::{Breach, Key, Open};
use crate::cloud::{CloudEvent, CloudOutput};
use crate::id::{MirrorId, Time, TopicName};
use crate::wire::SourceStart;

impl Open {
    pub(super) fn source_start(
        &mut self,
        start: &SourceStart,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) -> Result<(), Breach> {
        let id = self.known(start.mirror)?;
        let Some(mirror) = self.mirror(id) else { return Ok(()) };
        let on_loss = mirror.settings.on_loss;
        let Some(open) = mirror.partition(start.partition) else {
            return Ok(());
        };
        let run = open.mirror.run();
        if start.run > run {
            return Err(format!("a start of the source in run {}, which was never told", start.run));
        }
        // Of an older run, of a paused or of a failed mirror: it was on its way.
        if start.run < run {
            return Ok(());
        }
        let mut in_order = true;
        self.with_partition((id, start.partition), now, out, |open| {
            in_order = open.mirror.source_start(start.offset, start.seen, on_loss);
        });
        if in_order {
            Ok(())
        } else {
            Err(format!(
                "mirror {id} partition {}: the source is said to start at {}, which is not beyond what was sent",
                start.partition, start.offset
            ))
        }
    }

    pub(super) fn fast_forwarded(
        &mut self,
        key: Key,
        ticket: u64,
        result: Result<(), String>,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let mut started = None;
        self.with_partition(key, now, out, |open| started = open.mirror.fast_forwarded(ticket, result, now));
        if let (Some(offset), Some(topic)) = (started, self.topic(key.0)) {
            out.push_back(CloudOutput::Event(CloudEvent::Started { topic, partition: key.1, offset }));
        }
    }

    pub(super) fn loss_recorded(
        &mut self,
        key: Key,
        ticket: u64,
        result: Result<(), String>,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let mut lost = None;
        self.with_partition(key, now, out, |open| lost = open.mirror.loss_recorded(ticket, result, now));
        if let (Some((from, to)), Some(topic)) = (lost, self.topic(key.0)) {
            out.push_back(CloudOutput::Event(CloudEvent::LossSkipped { topic, partition: key.1, from, to }));
        }
    }

    fn topic(&mut self, id: MirrorId) -> Option<TopicName> {
        self.mirror(id).map(|mirror| mirror.settings.topic.clone())
    }
}
