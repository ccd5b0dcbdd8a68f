//! Log starts that follow the source's: what the source deleted after it was mirrored is deleted from the mirror too, where
//! the operator wants it.
//!
//! Must never: delete what is not confirmed, or by what an agent said before the tail of the present run was compared.

use std::collections::VecDeque;

use super::{Key, Open, Phase};
use crate::cloud::{CloudEvent, CloudOutput, LogStart};
use crate::failure::cut;
use crate::id::{MirrorId, Offset, Partition, Time};
use crate::mirror::Mirror;

/// Between two deletions of a partition. A source deletes by segments, so it moves its log start seldom.
const DELETE_EVERY: Time = Time::from_secs(10);

/// What is known of a source's log start, and done about it.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// Run that the agent placed: the mirror's tail is the source's.
    placed: Option<u32>,
    /// First offset of the source, as told in that run.
    source: Option<Offset>,
    /// The deletion without an answer.
    asked: Option<Asked>,
    tickets: u64,
    not_before: Time,
    doubt: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    ticket: u64,
    run: u32,
    offset: Offset,
}

impl Follow {
    /// The agent found the tail of this run to be the source's. What it said of the source before is forgotten: that may
    /// have been of another topic.
    pub(super) fn placed(&mut self, run: u32) {
        self.placed = Some(run);
        self.source = None;
    }

    /// The source's log starts here; an agent may not know.
    pub(super) fn source_starts(&mut self, offset: Option<Offset>) {
        self.source = offset;
    }

    /// What kept the log start from moving up, since it last did.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// For people.
    pub(super) fn doing(&self) -> Option<String> {
        self.asked.map(|Asked { offset, .. }| format!("deletes offsets below {offset}, as the source has"))
    }

    /// Where the mirror's log is to start, if not where it does.
    fn wanted(&self, mirror: &Mirror) -> Option<Offset> {
        let start = self.source?;
        let placed = mirror.is_live() && self.placed == Some(mirror.run());
        let (begins, confirmed) = (mirror.log_start(), mirror.progress().confirmed);
        (placed && self.asked.is_none() && begins < start && start <= confirmed).then_some(start)
    }

    fn ask(&mut self, run: u32, offset: Offset) -> u64 {
        let ticket = self.tickets;
        self.tickets += 1;
        self.asked = Some(Asked { ticket, run, offset });
        ticket
    }
}

impl Open {
    /// Has the log start of a partition moved up, if it is to be: now, or when it is time.
    pub(super) fn follow(&mut self, key: Key, now: Time, out: &mut VecDeque<CloudOutput>) {
        self.trims.remove(&key);
        let (mirror, partition) = key;
        let Some(of) = self.mirror(mirror) else { return };
        if of.settings.log_start == LogStart::Keep || !matches!(of.phase, Phase::Active) {
            return;
        }
        let Some(open) = of.partition(partition) else { return };
        let Some(offset) = open.follow.wanted(&open.mirror) else { return };
        if now < open.follow.not_before {
            let due = open.follow.not_before;
            self.trims.insert(key, due);
            return;
        }
        let ticket = open.follow.ask(open.mirror.run(), offset);
        let topic = of.settings.topic.clone();
        out.push_back(CloudOutput::DeleteBefore { mirror, topic, partition, ticket, offset });
    }

    /// The same for all partitions: the operator may have changed his mind.
    pub(super) fn follow_all(&mut self, now: Time, out: &mut VecDeque<CloudOutput>) {
        for id in 0..self.mirrors.len() {
            let id = MirrorId(u32::try_from(id).unwrap_or(u32::MAX));
            let partitions = self.mirror(id).map_or(0, |mirror| mirror.partitions.len());
            for partition in 0..Partition::try_from(partitions).unwrap_or(Partition::MAX) {
                self.follow((id, partition), now, out);
            }
        }
    }

    pub(super) fn trim_due(&mut self, now: Time, out: &mut VecDeque<CloudOutput>) {
        let due: Vec<Key> = self.trims.iter().filter(|&(_, &at)| at <= now).map(|(&key, _)| key).collect();
        for key in due {
            self.follow(key, now, out);
        }
    }

    pub(super) fn deleted(
        &mut self,
        key: Key,
        ticket: u64,
        result: Result<Offset, String>,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let (id, partition) = key;
        let Some(mirror) = self.mirror(id) else { return };
        let topic = mirror.settings.topic.clone();
        let Some(open) = mirror.partition(partition) else { return };
        let Some(Asked { run, offset, .. }) = open.follow.asked.take_if(|asked| asked.ticket == ticket) else { return };
        open.follow.not_before = now + DELETE_EVERY;
        match result {
            Ok(log_start) => {
                // Of an older run, it may have been another log.
                if run == open.mirror.run() {
                    open.mirror.trimmed(log_start);
                }
                open.follow.doubt = None;
            }
            Err(reason) => {
                let reason = cut(reason);
                if open.follow.doubt.as_ref() != Some(&reason) {
                    let reason = reason.clone();
                    out.push_back(CloudOutput::Event(CloudEvent::NotDeleted { topic, partition, offset, reason }));
                }
                open.follow.doubt = Some(reason);
            }
        }
        self.follow(key, now, out);
    }
}
