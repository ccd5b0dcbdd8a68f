//! What the journal owes: whatever it said is durable, until the cloud has it.

use std::collections::BTreeMap;

use tombolo_proto::edge::EdgeOutput;
use tombolo_proto::failure::FailureCode;
use tombolo_proto::id::Offset;

use crate::properties::Rule;
use crate::world::{Place, World, source_topic, topic_number};

/// What is known of each partition.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    places: BTreeMap<Place, Owed>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Owed {
    /// Said to be durable, and not discarded since.
    range: Option<(Offset, Offset)>,
    /// Highest offset that a gateway ever told as the mirror's end, or confirmed.
    told: Offset,
    /// Where the mirror ended when the agent was last told.
    position: Option<Offset>,
}

impl Owed {
    /// Of the range, what the cloud was never told to have.
    fn left(&self) -> Option<(Offset, Offset)> {
        self.range.map(|(first, next)| (first.max(self.told), next)).filter(|(first, next)| first < next)
    }
}

impl Kept {
    pub(crate) fn told(&mut self, place: Place, offset: Offset) {
        let owed = self.places.entry(place).or_default();
        owed.told = owed.told.max(offset);
    }

    pub(crate) fn position(&mut self, place: Place, offset: Offset) {
        self.places.entry(place).or_default().position = Some(offset);
    }

    /// The journal was told to forget what it has.
    pub(crate) fn discarded(&mut self, place: Place) {
        if let Some(owed) = self.places.get_mut(&place) {
            owed.range = None;
        }
    }

    /// The mirror is another: what it is owed begins anew.
    pub(crate) fn forget(&mut self, place: Place) {
        self.places.remove(&place);
    }

    /// Whether the journal owes any of a range.
    pub(crate) fn owes(&self, place: Place, (from, to): (Offset, Offset)) -> bool {
        let left = self.places.get(&place).and_then(Owed::left);
        left.is_some_and(|(first, next)| first < to && from < next)
    }

    /// End of what the cloud or the journal has, from `confirmed` on.
    pub(crate) fn safe(&self, place: Place, confirmed: Offset) -> Offset {
        let range = self.places.get(&place).and_then(|owed| owed.range);
        range.filter(|&(first, _)| first <= confirmed).map_or(confirmed, |(_, next)| next.max(confirmed))
    }
}

impl World {
    /// The journal said that frames are durable.
    pub(crate) fn is_kept(&mut self, place: Place, (first, next): (Offset, Offset)) {
        // Of a topic that is no more, whose mirror is no more either, nothing is owed.
        if self.ghost.mirror_is_remade(place.0) && !self.is_of_newest_topic(place, first) {
            return;
        }
        let owed = self.ghost.kept.places.entry(place).or_default();
        if let Some((_, end)) = owed.range.as_mut().filter(|(_, end)| *end == first) {
            *end = next;
            return;
        }
        let there = self.disk.as_ref().and_then(|disk| disk.range(place));
        let left = owed.left();
        let covered = left.is_none_or(|(from, to)| there.is_some_and(|(first, next)| first <= from && to <= next));
        if covered {
            owed.range = Some((left.map_or(first, |(first, _)| first), next));
        } else {
            let text = format!("{place:?}: {left:?} is dropped for a frame at {first}");
            self.ghost.violated(Rule::Kept, text);
        }
    }

    fn is_of_newest_topic(&self, place: Place, first: Offset) -> bool {
        let newest = self.source.get(&place).and_then(|source| source.histories().last());
        newest.is_some_and(|history| history.begins_at(first))
    }

    /// Everything owed must be there.
    pub(crate) fn check_kept(&mut self) {
        let Some(disk) = &self.disk else { return };
        let ranges = disk.ranges_by_place();
        let missing = self.ghost.kept.places.iter().find_map(|(&place, owed)| {
            let (first, next) = owed.left()?;
            let range = ranges.get(&place).copied();
            let there = range.is_some_and(|(from, to)| from <= first && next <= to);
            (!there).then(|| format!("{place:?}: {first}..{next} is not in the journal, which has {range:?}; {owed:?}"))
        });
        if let Some(text) = missing {
            self.ghost.violated(Rule::Kept, text);
        }
    }

    /// The disk is not what it was, by no fault of the journal's: what it has now is what it owes, and what neither it nor
    /// the source has any more is lost.
    pub(crate) fn owe_what_is_there(&mut self) {
        let Some(disk) = &self.disk else { return };
        let ranges = disk.ranges_by_place();
        for (&place, owed) in &mut self.ghost.kept.places {
            let there = ranges.get(&place).copied();
            let overlap = owed.range.zip(there).map(|(owed, there)| (owed.0.max(there.0), owed.1.min(there.1)));
            owed.range = overlap.filter(|(first, next)| first < next);
        }
        self.excuse_what_is_lost();
    }

    fn excuse_what_is_lost(&mut self) {
        let places: Vec<_> = self.source.keys().copied().collect();
        for place in places {
            let confirmed = self.ghost.confirmed(place);
            let safe = self.ghost.kept.safe(place, confirmed);
            if self.source.get(&place).is_some_and(|source| source.log_start() > safe) {
                self.ghost.count("lost with the disk");
                self.ghost.excuse(place.0, &[FailureCode::SourceDataLost]);
            }
        }
    }

    /// Looks at what the agent is about to do.
    pub(crate) fn judge_outputs(&mut self, outputs: &[EdgeOutput]) {
        for output in outputs {
            let EdgeOutput::Discard { partitions } = output else { continue };
            let Some((topic, _)) = partitions.first() else { continue };
            let topic = topic_number(topic);
            let failure = outputs.iter().find_map(|output| match output {
                EdgeOutput::Event(tombolo_proto::edge::EdgeEvent::MirrorFailed { topic: of, failure, .. })
                    if *of == source_topic(topic) =>
                {
                    Some(failure.code)
                }
                _ => None,
            });
            for (_, partition) in partitions {
                self.judge_discard((topic, *partition), failure);
            }
        }
    }

    /// The journal may forget a partition whose mirror is FAILED, but of a topic made anew only when the old one's frames
    /// are in the old mirror; and one whose mirror ends outside of what it has.
    fn judge_discard(&mut self, place: Place, failure: Option<FailureCode>) {
        let remade = self.ghost.mirror_is_remade(place.0);
        let Some(owed) = self.ghost.kept.places.get_mut(&place) else { return };
        let (before, left) = (*owed, owed.left());
        owed.range = None;
        let fits = before.position.zip(left).is_some_and(|(position, (first, _))| position >= first);
        let wrong = match failure {
            Some(FailureCode::SourceTopicIdChanged) => left.is_some() && !remade,
            Some(_) => false,
            None => left.zip(before.position).is_some_and(|((_, next), position)| fits && position < next) && !remade,
        };
        if wrong {
            let text = format!("{place:?} is discarded with {failure:?}: {before:?}");
            self.ghost.violated(Rule::Kept, text);
        }
    }
}
