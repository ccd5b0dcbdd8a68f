//! Which topics are mirrored, and what their source topics are.

use super::{Breach, EdgeLink, EdgeMirror, Key, Open, Phase, Session};
use crate::edge::partition::{EdgePartition, Fetching, Placement};
use crate::edge::{EdgeEvent, EdgeOutput, SourceTopic};
use crate::failure::{Failure, FailureCode, cut};
use crate::id::{MirrorId, Partition, TopicName};
use crate::limits::{MAX_CONFIGS, MAX_ENTRIES, MAX_FILTERS, MAX_MIRRORS, MAX_PARTITIONS};
use crate::pattern::TopicPattern;
use crate::wire::{EdgeBody, Failed, Filters, Mirror, Source, Topics};

impl EdgeLink {
    /// A mirror is told, anew or again.
    pub(super) fn mirror(&mut self, topic: TopicName, told: &Mirror) -> Result<(), Breach> {
        self.lists_changed |= !self.mirrors.contains_key(&topic);
        let mirror = self.mirrors.entry(topic.clone()).or_insert_with(|| EdgeMirror::new(Phase::Discovering));
        if mirror.id.is_some_and(|id| id.0 != told.mirror) {
            return Err(format!("topic {topic} as mirror {} too", told.mirror));
        }
        mirror.id = Some(MirrorId(told.mirror));
        let was_paused = matches!(mirror.phase, Phase::Paused);
        if told.paused {
            mirror.phase = Phase::Paused;
            mirror.undecided.clear();
            self.release_owed(&topic);
            self.stop_partitions(&topic, |partition| {
                partition.pause();
            });
            self.outputs.push_back(EdgeOutput::Forget { topic: topic.clone() });
        } else {
            // What is known of the topic is told at once; the look-up that follows tells only what changed since.
            if let Phase::Ready(source) = &mirror.phase {
                let source = source.clone();
                self.tell_source(&topic, &Ok(source));
            } else {
                mirror.phase = Phase::Discovering;
            }
            self.outputs.push_back(EdgeOutput::Discover { topic: topic.clone() });
        }
        if was_paused != told.paused {
            self.lists_changed = true;
            self.outputs.push_back(EdgeOutput::Event(EdgeEvent::MirrorPaused { topic, paused: told.paused }));
        }
        Ok(())
    }

    /// All mirrors of the session are told: those of an earlier one that are not among them are the link's no more, unless
    /// they match a filter. Those are offered.
    pub(super) fn filters(&mut self, filters: &Filters) -> Result<(), Breach> {
        if filters.patterns.len() > MAX_FILTERS {
            return Err(format!("{} filters", filters.patterns.len()));
        }
        let patterns: Result<Vec<_>, _> = filters.patterns.iter().map(|text| TopicPattern::new(text)).collect();
        let patterns = patterns.map_err(|error| error.to_string())?;
        if patterns != self.filters {
            self.filters = patterns;
            self.lists_changed = true;
            self.outputs.push_back(EdgeOutput::Watch { filters: self.filters.clone() });
        }
        if let Session::Open(open) = &mut self.session {
            open.listed = true;
        }
        let untold: Vec<_> =
            self.mirrors.iter().filter(|(_, mirror)| mirror.id.is_none()).map(|(topic, _)| topic.clone()).collect();
        let (wanted, gone): (Vec<_>, Vec<_>) = untold.into_iter().partition(|topic| self.is_wanted(topic));
        for topic in gone {
            self.discard(&topic);
            self.mirrors.remove(&topic);
            self.lists_changed = true;
            self.outputs.push_back(EdgeOutput::Forget { topic });
        }
        self.offer(&wanted);
        Ok(())
    }

    fn is_wanted(&self, topic: &TopicName) -> bool {
        self.filters.iter().any(|filter| filter.matches(topic))
    }

    fn offer(&mut self, topics: &[TopicName]) {
        for names in topics.chunks(MAX_ENTRIES) {
            let names = names.iter().map(|topic| topic.as_str().to_owned()).collect();
            self.send(EdgeBody::Discovered(Topics { names }));
        }
    }

    /// Topics at the source that the filters mean. A new one is a mirror to be, in the dark too.
    pub(super) fn discovered(&mut self, topics: Vec<TopicName>) {
        let new: Vec<_> = topics
            .into_iter()
            .filter(|topic| self.is_wanted(topic) && !self.mirrors.contains_key(topic))
            .take(MAX_MIRRORS.saturating_sub(self.mirrors.len()))
            .collect();
        for topic in &new {
            self.lists_changed = true;
            self.mirrors.insert(topic.clone(), EdgeMirror { settled: true, ..EdgeMirror::new(Phase::Discovering) });
            self.outputs.push_back(EdgeOutput::Discover { topic: topic.clone() });
        }
        if matches!(&self.session, Session::Open(open) if open.listed) {
            self.offer(&new);
        }
    }

    pub(super) fn source(&mut self, topic: &TopicName, source: &Result<SourceTopic, String>) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if matches!(mirror.phase, Phase::Paused | Phase::Failed(_)) {
            return;
        }
        let mut source = source.clone();
        if let Ok(found) = &mut source {
            if let (Some(old), Some(new)) = (mirror.topic_id, found.topic_id)
                && old != new
            {
                return self.source_replaced(topic, new, found.clone());
            }
            let shape = (found.partitions, found.configs.clone());
            self.lists_changed |= mirror.topic_id != found.topic_id || mirror.shape != shape;
            mirror.topic_id = found.topic_id;
            mirror.shape = shape;
            mirror.retention = found.retention;
            mirror.grow(found.partitions);
        }
        self.take_source(topic, &source);
        self.fetch_in_the_dark(topic);
    }

    fn take_source(&mut self, topic: &TopicName, source: &Result<SourceTopic, String>) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let changed = match (&mirror.phase, source) {
            (Phase::Ready(old), Ok(new)) => old != new,
            (Phase::Unavailable(old), Err(new)) => old != new,
            _ => true,
        };
        if changed {
            mirror.phase = match source.clone() {
                Ok(found) => Phase::Ready(found),
                Err(problem) => Phase::Unavailable(problem),
            };
            self.tell_source(topic, source);
        }
    }

    /// Another topic has the source topic's name. What was read of the old one goes to the cloud first; whether the mirror
    /// is still the old one's shows when its positions are told.
    fn source_replaced(&mut self, topic: &TopicName, new: [u8; 16], mut found: SourceTopic) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let unshipped = mirror.partitions.iter().any(EdgePartition::is_unshipped);
        let placed = mirror.partitions.iter().any(|at| matches!(at.placement, Placement::Placed { .. }));
        if !unshipped && placed && mirror.replaced.is_none() {
            return self.fail(topic, replaced(), false);
        }
        mirror.replaced = Some(new);
        let held = Partition::try_from(mirror.partitions.len()).unwrap_or(MAX_PARTITIONS);
        found.partitions = found.partitions.max(held);
        mirror.grow(found.partitions);
        if unshipped {
            self.end(topic, replaced());
        }
        self.take_source(topic, &Ok(found));
    }

    /// The mirror was made anew, for the topic that has the old one's name now: what is left of the old one is of no use.
    pub(super) fn adopt_replacement(&mut self, topic: &TopicName) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let Some(id) = mirror.replaced.take() else { return };
        mirror.topic_id = Some(id);
        mirror.ending = None;
        self.lists_changed = true;
        self.outputs.push_back(EdgeOutput::Discover { topic: topic.clone() });
        for key in self.keys_of(topic) {
            self.with(&key, |partition| {
                let placement = partition.placement;
                partition.begin_anew();
                partition.placement = placement;
            });
        }
        self.forget_journal(topic);
    }

    fn tell_source(&mut self, topic: &TopicName, source: &Result<SourceTopic, String>) {
        let Some(MirrorId(mirror)) = self.mirrors.get(topic).and_then(|mirror| mirror.id) else { return };
        let message = match source {
            Ok(found) => Source {
                mirror,
                partitions: found.partitions,
                topic_id: found.topic_id.map_or_else(Vec::new, |id| id.to_vec()),
                configs: found.configs.iter().take(MAX_CONFIGS).cloned().collect(),
                problem: String::new(),
            },
            Err(problem) => Source { mirror, problem: cut(problem.clone()), ..Source::default() },
        };
        self.send(EdgeBody::Source(message));
    }

    /// The gateway has let go of a failed mirror's frames.
    fn release_owed(&mut self, topic: &TopicName) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        let owed = std::mem::take(&mut mirror.owed_credit);
        if let Session::Open(open) = &mut self.session {
            open.credit.release(owed);
        }
    }

    /// A failure of the source: what was read before it is good, and goes to the cloud before the mirror fails.
    pub(super) fn end(&mut self, topic: &TopicName, failure: Failure) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if matches!(mirror.phase, Phase::Paused | Phase::Failed(_)) || mirror.ending.is_some() {
            return;
        }
        if !mirror.partitions.iter().any(EdgePartition::is_unshipped) {
            return self.fail(topic, failure, false);
        }
        mirror.ending = Some(failure.clone());
        for partition in &mut mirror.partitions {
            if partition.fetching != Fetching::Off {
                partition.fetching = Fetching::Off;
                let (topic, partition) = (topic.clone(), partition.partition());
                self.outputs.push_back(EdgeOutput::StopFetch { topic, partition });
            }
        }
        self.throttled.retain(|key| key.0 != *topic);
        self.outputs.push_back(EdgeOutput::Event(EdgeEvent::MirrorEnding { topic: topic.clone(), failure }));
    }

    /// Fails a mirror whose end has come, once the cloud has all of it.
    pub(super) fn end_if_shipped(&mut self, topic: &TopicName) {
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if mirror.ending.is_some()
            && !mirror.partitions.iter().any(EdgePartition::is_unshipped)
            && let Some(failure) = mirror.ending.take()
        {
            self.fail(topic, failure, false);
        }
    }

    pub(super) fn fail(&mut self, topic: &TopicName, failure: Failure, told_by_gateway: bool) {
        if told_by_gateway {
            // Also the gateway's answer to our own word.
            self.release_owed(topic);
        }
        let Some(mirror) = self.mirrors.get_mut(topic) else { return };
        if matches!(mirror.phase, Phase::Failed(_) | Phase::Paused) {
            return;
        }
        mirror.phase = Phase::Failed(failure.clone());
        self.lists_changed = true;
        mirror.undecided.clear();
        mirror.ending = None;
        let id = mirror.id;
        let in_flight = mirror.partitions.iter().map(EdgePartition::in_flight_bytes).sum();
        self.discard(topic);
        if let (Session::Open(open), Some(mirror), false) =
            (&mut self.session, self.mirrors.get_mut(topic), told_by_gateway)
        {
            mirror.owed_credit = in_flight;
            open.credit.reserve(in_flight);
        }
        if let (Some(id), false) = (id, told_by_gateway) {
            self.send(EdgeBody::Failed(Failed::new(id, &failure)));
        }
        let event = EdgeEvent::MirrorFailed { topic: topic.clone(), failure, told_by_gateway };
        self.outputs.push_back(EdgeOutput::Event(event));
    }

    /// Stops a mirror's partitions and forgets what is held of them, in the journal too; what was shipped stays remembered.
    fn discard(&mut self, topic: &TopicName) {
        self.stop_partitions(topic, |partition| {
            partition.clear();
        });
        self.forget_journal(topic);
    }

    fn forget_journal(&mut self, topic: &TopicName) {
        let partitions = self.keys_of(topic);
        if self.journal.is_open() && !partitions.is_empty() {
            self.outputs.push_back(EdgeOutput::Discard { partitions });
        }
    }

    pub(super) fn keys_of(&self, topic: &TopicName) -> Vec<Key> {
        let partitions = self.mirrors.get(topic).map_or(&[][..], |mirror| &mirror.partitions);
        partitions.iter().map(|partition| (topic.clone(), partition.partition())).collect()
    }

    fn stop_partitions(&mut self, topic: &TopicName, stop: impl Fn(&mut EdgePartition)) {
        for key in self.keys_of(topic) {
            let fetching = self.with(&key, |partition| {
                let fetching = partition.fetching;
                partition.unsend();
                stop(partition);
                fetching
            });
            if fetching.is_some_and(|fetching| fetching != Fetching::Off) {
                let (topic, partition) = key;
                self.outputs.push_back(EdgeOutput::StopFetch { topic, partition });
            }
        }
        self.throttled.retain(|key| key.0 != *topic);
        self.unthrottle();
    }
}

impl EdgeMirror {
    fn grow(&mut self, partitions: Partition) {
        for at in self.partitions.len()..usize::try_from(partitions.min(MAX_PARTITIONS)).unwrap_or(0) {
            self.partitions.push(EdgePartition::new(Partition::try_from(at).unwrap_or(Partition::MAX)));
        }
    }

    /// Makes sure that a partition is there; `None` where its number cannot be.
    pub(super) fn ensure(&mut self, partition: Partition) -> Option<&mut EdgePartition> {
        self.grow(partition.saturating_add(1));
        self.partition(partition)
    }
}

/// The failure of a source topic that is another one now.
pub(super) fn replaced() -> Failure {
    let detail = "the source topic was deleted and created again: its offsets mean other records. Delete the mirror topic \
                  to mirror the new one from its start";
    Failure::of_topic(FailureCode::SourceTopicIdChanged, detail)
}

pub(super) fn tell(open: &mut Open, mirror: &Mirror) -> Result<TopicName, Breach> {
    let topic = TopicName::new(&mirror.topic).map_err(|error| error.to_string())?;
    let next = open.topics.len();
    match open.topics.get(mirror.mirror as usize) {
        Some(known) if *known == topic => {}
        Some(known) => return Err(format!("mirror {} is {known} and {topic}", mirror.mirror)),
        None if mirror.mirror as usize == next && next < MAX_MIRRORS => open.topics.push(topic.clone()),
        None => return Err(format!("mirror {} after {next} mirrors", mirror.mirror)),
    }
    Ok(topic)
}

pub(super) fn topic_of(open: &Open, mirror: u32) -> Result<TopicName, Breach> {
    open.topics.get(mirror as usize).cloned().ok_or_else(|| format!("mirror {mirror} was never told"))
}
