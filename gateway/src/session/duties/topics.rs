//! Mirror topics: made ready, and kept as they are to be.

use std::sync::Arc;

use tokio::time::Instant;
use tombolo_proto::cloud::{CloudInput, CloudStatus, MirrorState};
use tombolo_proto::id::{MirrorId, Offset};

use super::{Duties, Event, FIRST_BACKOFF, LAST_BACKOFF, until_stopped};
use crate::topics::{Kept, TopicError, Wanted};

impl Duties {
    /// Makes a mirror topic ready, for as long as it takes.
    pub(in crate::session) fn prepare(&mut self, mirror: MirrorId, wanted: Wanted) {
        let Some(writing) = &self.writing else { return };
        let (topics, rights) = (self.shared.topics.clone(), writing.rights.clone());
        let (events, now) = (self.events.clone(), Instant::now());
        let kept = self.kept.entry(mirror).or_insert_with(|| {
            let known = self.shared.take_kept(&self.link, &wanted.topic);
            known.unwrap_or_else(|| Kept::new(wanted.clone(), now))
        });
        let retention = self.shared.settings.retention;
        let (mut hold, may_hold) = (kept.prepared_anew(wanted.clone(), retention, now), retention.hold);
        let turn = Arc::clone(&kept.turn);
        let work = async move {
            let mut backoff = FIRST_BACKOFF;
            loop {
                let mut missing = false;
                let alone = turn.lock().await;
                let prepared = topics.prepare(&wanted, hold, rights.as_deref(), &mut missing).await;
                drop(alone);
                if missing && events.send(Event::Missing { mirror }).await.is_err() {
                    return;
                }
                let (input, done) = match prepared {
                    Ok(partitions) => (CloudInput::TopicReady { mirror, partitions }, true),
                    Err(TopicError::Failed(failure)) => (CloudInput::TopicFailed { mirror, failure }, true),
                    Err(TopicError::Unavailable(reason)) => (CloudInput::TopicUnavailable { mirror, reason }, false),
                };
                if events.send(Event::Input(input)).await.is_err() || done {
                    return;
                }
                // By then it may be behind by more, or somebody else's topic.
                hold = may_hold;
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(LAST_BACKOFF);
            }
        };
        let task = self.tasks.spawn_child("topic", until_stopped(self.tasks.stop_token().clone(), work));
        if let Some(earlier) = self.preparing.insert(mirror, task.abort_handle()) {
            earlier.abort();
        }
    }

    /// Sees to the configs of mirror topics, now that the mirrors are where `status` says.
    pub(in crate::session) fn tend(&mut self, status: &CloudStatus) {
        let (now, retention) = (Instant::now(), self.shared.settings.retention);
        let mut due = Vec::new();
        for (id, mirror) in status.mirrors.iter().enumerate() {
            let Some(id) = u32::try_from(id).ok().map(MirrorId) else { return };
            if matches!(mirror.state, MirrorState::Failed(_) | MirrorState::Paused) {
                self.ids.forget(id);
            }
            let Some(kept) = self.kept.get_mut(&id).filter(|_| mirror.state == MirrorState::Active) else { continue };
            let places: Option<Vec<(Offset, Offset)>> = mirror
                .partitions
                .iter()
                .map(|partition| Some((partition.confirmed, partition.source_high_watermark?)))
                .collect();
            if let Some(upkeep) = kept.observe(&places.unwrap_or_default(), retention, now) {
                due.push((id, kept.wanted.clone(), Arc::clone(&kept.turn), upkeep));
            }
        }
        for (mirror, wanted, turn, upkeep) in due {
            let topics = self.shared.topics.clone();
            self.spawn("upkeep", async move {
                let _alone = turn.lock().await;
                let result = topics.keep(&wanted, upkeep).await;
                Event::Kept { mirror, upkeep, result }
            });
        }
    }
}
