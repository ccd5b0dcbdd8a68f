//! Which mirrors a session has: the operator's, and topics that the agent discovered and a filter matches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Breach, Open, OpenMirror, Phase, send};
use crate::cloud::{CloudEvent, CloudOutput, LinkSettings, MirrorSettings, PassedOver};
use crate::id::{MirrorId, TopicName};
use crate::limits::{MAX_ENTRIES, MAX_MIRRORS};
use crate::wire::{CloudBody, Filters, Mirror, Topics};

impl Open {
    /// Makes mirrors of source topics that a filter matches. Names that match none are passed over: the agent may not
    /// have heard yet that the filters changed.
    pub(super) fn discovered(&mut self, topics: &Topics, out: &mut VecDeque<CloudOutput>) -> Result<(), Breach> {
        if topics.names.len() > MAX_ENTRIES {
            return Err(format!("{} discovered topics in one message", topics.names.len()));
        }
        let (mut sources, mut targets) = (BTreeSet::new(), BTreeSet::new());
        for mirror in &self.mirrors {
            sources.insert(mirror.settings.source.clone());
            targets.insert(mirror.settings.topic.clone());
        }
        for name in &topics.names {
            let topic = TopicName::new(name).map_err(|error| format!("a discovered topic: {error}"))?;
            if sources.contains(&topic) {
                continue;
            }
            let verdict = match self.link.filtered(&topic) {
                None => continue,
                Some(Ok(())) if targets.contains(&topic) => Err(PassedOver::Reserved),
                Some(Ok(())) if self.mirrors.len() >= MAX_MIRRORS => Err(PassedOver::Limit),
                Some(verdict) => verdict,
            };
            match verdict {
                Ok(()) => {
                    sources.insert(topic.clone());
                    targets.insert(topic.clone());
                    out.push_back(CloudOutput::Event(CloudEvent::MirrorDiscovered { topic: topic.clone() }));
                    let LinkSettings { max_gap, on_loss, log_start, .. } = self.link;
                    let source = topic.clone();
                    self.add(MirrorSettings { source, topic, paused: false, max_gap, on_loss, log_start }, out);
                }
                Err(reason) if self.passed_over.len() < MAX_ENTRIES && self.passed_over.insert(topic.clone()) => {
                    out.push_back(CloudOutput::Event(CloudEvent::MirrorPassedOver { topic, reason }));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Brings the session's mirrors in line with the operator's: by source topic; a mirror that is gone, and that no
    /// filter keeps, is paused.
    pub(super) fn apply_settings(&mut self, link: LinkSettings, out: &mut VecDeque<CloudOutput>) {
        let wanted: BTreeMap<&TopicName, &MirrorSettings> =
            link.mirrors.iter().map(|mirror| (&mirror.source, mirror)).collect();
        for at in 0..self.mirrors.len() {
            let id = MirrorId(u32::try_from(at).unwrap_or(u32::MAX));
            let Some(mirror) = self.mirror(id) else { continue };
            let settings = &mut mirror.settings;
            let named = wanted.get(&settings.source);
            (settings.max_gap, settings.on_loss, settings.log_start) = named
                .map_or((link.max_gap, link.on_loss, link.log_start), |new| (new.max_gap, new.on_loss, new.log_start));
            let paused = match named {
                Some(new) => new.paused,
                None => settings.topic != settings.source || link.filtered(&settings.source) != Some(Ok(())),
            };
            if paused != mirror.settings.paused {
                mirror.settings.paused = paused;
                mirror.phase = if paused { Phase::Paused } else { Phase::AwaitSource };
                self.stop_partitions(id);
                self.announce(id, out);
            }
        }
        let known: BTreeSet<TopicName> = self.mirrors.iter().map(|mirror| mirror.settings.source.clone()).collect();
        for settings in link.mirrors.iter().filter(|new| !known.contains(&new.source)) {
            self.add(settings.clone(), out);
        }
        self.link = link;
    }

    fn add(&mut self, settings: MirrorSettings, out: &mut VecDeque<CloudOutput>) {
        let id = MirrorId(u32::try_from(self.mirrors.len()).unwrap_or(u32::MAX));
        let phase = if settings.paused { Phase::Paused } else { Phase::AwaitSource };
        self.mirrors.push(OpenMirror { settings, phase, source: None, partitions: Vec::new(), gap_offsets: 0 });
        self.announce(id, out);
    }

    pub(super) fn tell_filters(&self, out: &mut VecDeque<CloudOutput>) {
        let patterns = self.link.filters.iter().map(ToString::to_string).collect();
        send(out, CloudBody::Filters(Filters { patterns }));
    }

    fn announce(&mut self, id: MirrorId, out: &mut VecDeque<CloudOutput>) {
        let Some(mirror) = self.mirror(id) else { return };
        let topic = mirror.settings.source.as_str().to_owned();
        send(out, CloudBody::Mirror(Mirror { mirror: id.0, topic, paused: mirror.settings.paused }));
    }
}
