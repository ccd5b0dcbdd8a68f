//! Offsets at which the source holds nothing, of each partition: counted once, however often they are read.
//!
//! Compaction leaves holes. In a log that never was compacted one is a loss that no consumer notices: somebody took a
//! segment away.

use std::collections::BTreeMap;
use std::ops::Range;

use tombolo_proto::id::{Offset, TopicName};

use super::Key;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// Offset after the highest hole that was told.
    told: BTreeMap<Key, Offset>,
}

/// Holes that were not told before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The first of them.
    pub(super) hole: Range<Offset>,
    /// How many offsets all of them have.
    pub(super) offsets: u64,
    /// Whether no others were told of the partition.
    pub(super) is_first: bool,
}

impl Holes {
    /// What is to be told of these holes, which are in order. `compacted` is whether the topic is or was compacted; where
    /// that is not known nothing is told.
    pub(super) fn found(&mut self, key: &Key, holes: &[Range<Offset>], compacted: Option<bool>) -> Option<Found> {
        if compacted != Some(false) {
            return None;
        }
        let told = self.told.get(key).copied();
        let from = told.unwrap_or(Offset::MIN);
        let above = holes.iter().map(|hole| hole.start.max(from)..hole.end).filter(|hole| !hole.is_empty());
        let above: Vec<_> = above.collect();
        let (hole, last) = (above.first()?.clone(), above.last()?.end);
        self.told.insert(key.clone(), last);
        let offsets = above.iter().map(|hole| u64::try_from(hole.end - hole.start).unwrap_or(0)).sum();
        Some(Found { hole, offsets, is_first: told.is_none() })
    }

    /// The topic is mirrored no more.
    pub(super) fn forget(&mut self, topic: &TopicName) {
        self.told.retain(|key, _| key.0 != *topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(topic: &str, partition: i32) -> Key {
        (TopicName::new(topic).unwrap(), partition)
    }

    #[test]
    fn a_hole_is_counted_once_however_often_it_is_read() {
        let (mut holes, place) = (Holes::default(), key("t", 0));
        let one = std::slice::from_ref(&(4..6));
        let mut found = |place: &Key, read: &[Range<Offset>]| holes.found(place, read, Some(false));
        let told = |hole, offsets, is_first| Some(Found { hole, offsets, is_first });
        assert_eq!(found(&place, &[4..6, 9..10]), told(4..6, 3, true));
        assert_eq!(found(&place, &[4..6, 9..10]), None);
        assert_eq!(found(&place, one), None);
        assert_eq!(
            found(&place, &[9..12, 20..21]),
            told(10..12, 3, false),
            "the rest of a hole, and no second warning"
        );
        assert_eq!(found(&key("t", 1), one), told(4..6, 2, true));
        assert_eq!(found(&key("t", 1), &[]), None);
        holes.forget(&place.0);
        assert_eq!(holes.found(&place, one, Some(false)), told(4..6, 2, true));
    }

    #[test]
    fn nothing_is_told_of_a_topic_that_is_compacted_or_may_be() {
        let (mut holes, place) = (Holes::default(), key("t", 0));
        let one = std::slice::from_ref(&(4..6));
        for compacted in [Some(true), None] {
            assert_eq!(holes.found(&place, one, compacted), None);
        }
        let found = holes.found(&place, one, Some(false));
        assert!(found.is_some_and(|found| found.is_first && found.offsets == 2));
    }
}
