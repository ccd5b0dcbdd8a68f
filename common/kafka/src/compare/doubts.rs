//! Records of a compacted topic that only the source has, until it is seen why: a later record of the same key, for which
//! the mirror's cleaner took them. Without one they were never mirrored.
//!
//! Keys are known by a hash of 64 bits. Memory: about 100 bytes of each key in doubt, however many records it has, of at
//! most [`MAX_KEYS`]; a key counts again for each open transaction that wrote it.

use std::collections::{BTreeMap, BTreeSet};

/// Keys in doubt that are remembered.
pub(super) const MAX_KEYS: usize = 200_000;

/// By hash of the key; the producer, while it is not known whether its transaction was committed.
type Place = (u64, Option<i64>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    held: BTreeMap<Place, Run>,
    /// Of these, those in open transactions, by producer and key.
    open: BTreeSet<(i64, u64)>,
    /// Offset of the first record that there was no room for, and how many there were.
    beyond: Option<(i64, u64)>,
}

/// Records of one key. Up to two are known one by one, by the first and the last offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Run {
    first: i64,
    last: i64,
    count: u64,
    /// Offset of a deletion of the key that the mirror lacks too: once it is committed, it explains earlier records.
    deleted: Option<i64>,
}

impl Run {
    fn join(&mut self, other: Self) {
        if self.count == 0 {
            (self.first, self.last) = (other.first, other.last);
        } else if other.count > 0 {
            (self.first, self.last) = (self.first.min(other.first), self.last.max(other.last));
        }
        self.count += other.count;
        self.deleted = self.deleted.max(other.deleted);
    }

    /// Takes out what a record at this offset explains: how many. Of more than two, all or none.
    fn explain(&mut self, offset: i64) -> u64 {
        let explained = match self.count {
            2 if self.first < offset && offset <= self.last => {
                self.first = self.last;
                1
            }
            count if self.last < offset => count,
            _ => 0,
        };
        self.count -= explained;
        explained
    }
}

/// What nothing explained.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// Offsets in order: of each key all, or the first and the last.
    pub(super) offsets: Vec<i64>,
    /// How many more there are between those.
    pub(super) between: u64,
    /// Offset of the first record that there was no room for, and how many there were.
    pub(super) beyond: Option<(i64, u64)>,
}

impl Doubts {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A record that the mirror does not have at its offset.
    pub(super) fn add(&mut self, key: u64, offset: i64, transaction: Option<i64>) {
        self.join((key, transaction), Run { first: offset, last: offset, count: 1, deleted: None }, offset);
    }

    /// A deletion of the key that the mirror does not have at its offset: how many earlier records it explains. The cleaner
    /// took them for it, and it after a while.
    pub(super) fn delete(&mut self, key: u64, offset: i64, transaction: Option<i64>) -> u64 {
        if transaction.is_none() {
            return self.see(key, offset);
        }
        if self.places(key).next().is_some() {
            self.join((key, transaction), Run { deleted: Some(offset), ..Run::default() }, offset);
        }
        0
    }

    /// There is a record of this key at this offset: how many earlier ones that explains.
    pub(super) fn see(&mut self, key: u64, offset: i64) -> u64 {
        let places: Vec<Place> = self.places(key).collect();
        places.into_iter().map(|place| self.explain(place, offset)).sum()
    }

    /// A transaction of the source ended: what was aborted is nobody's loss. How many records its deletions explain.
    pub(super) fn settle(&mut self, producer_id: i64, aborted: bool) -> u64 {
        let written = self.open.range((producer_id, u64::MIN)..=(producer_id, u64::MAX));
        let keys: Vec<u64> = written.map(|(_, key)| *key).collect();
        let mut explained = 0;
        for key in keys {
            self.open.remove(&(producer_id, key));
            let run = self.held.remove(&(key, Some(producer_id)));
            if let Some(mut run) = run.filter(|_| !aborted) {
                let deleted = run.deleted.take();
                if run.count > 0 {
                    self.held.entry((key, None)).or_default().join(run);
                }
                explained += deleted.map_or(0, |offset| self.see(key, offset));
            }
        }
        explained
    }

    /// Takes what nothing explained. What belongs to a transaction that is still open is not read by anybody yet.
    pub(super) fn take(&mut self) -> Rest {
        let Self { held, beyond, .. } = std::mem::take(self);
        let mut rest = Rest { beyond, ..Rest::default() };
        for run in held.iter().filter(|((_, transaction), _)| transaction.is_none()).map(|(_, run)| run) {
            rest.offsets.push(run.first);
            rest.offsets.extend(Some(run.last).filter(|_| run.count > 1));
            rest.between += run.count.saturating_sub(2);
        }
        rest.offsets.sort_unstable();
        rest
    }

    fn places(&self, key: u64) -> impl Iterator<Item = Place> {
        self.held.range((key, None)..=(key, Some(i64::MAX))).map(|(place, _)| *place)
    }

    fn join(&mut self, place: Place, run: Run, offset: i64) {
        let is_full = self.held.len() >= MAX_KEYS;
        match self.held.get_mut(&place) {
            Some(held) => held.join(run),
            None if is_full => self.beyond.get_or_insert((offset, 0)).1 += 1,
            None => {
                self.held.insert(place, run);
                self.open.extend(place.1.map(|producer_id| (producer_id, place.0)));
            }
        }
    }

    fn explain(&mut self, place: Place, offset: i64) -> u64 {
        let Some(run) = self.held.get_mut(&place) else { return 0 };
        let explained = run.explain(offset);
        if run.count == 0 && run.deleted.is_none_or(|deleted| deleted < offset) {
            self.held.remove(&place);
            if let (key, Some(producer_id)) = place {
                self.open.remove(&(producer_id, key));
            }
        }
        explained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(offsets: &[i64]) -> Rest {
        Rest { offsets: offsets.to_vec(), ..Rest::default() }
    }

    #[test]
    fn a_later_record_of_the_key_explains_earlier_ones_and_no_others() {
        let mut doubts = Doubts::default();
        for (key, offset) in [(7, 1), (7, 5), (8, 2)] {
            doubts.add(key, offset, None);
        }
        assert_eq!((doubts.see(7, 1), doubts.see(7, 3), doubts.see(9, 90)), (0, 1, 0));
        doubts.add(7, 9, None);
        assert_eq!(doubts.see(7, 9), 1);
        assert_eq!(doubts.take(), rest(&[2, 9]));
        assert!(doubts.is_empty());
    }

    #[test]
    fn records_of_a_key_take_the_room_of_one() {
        let mut doubts = Doubts::default();
        let keys = u64::try_from(MAX_KEYS).unwrap();
        for offset in 0..2 * i64::try_from(MAX_KEYS).unwrap() {
            doubts.add(1, offset, None);
        }
        assert_eq!((doubts.held.len(), doubts.see(1, 5)), (1, 0), "which of so many is not known");
        assert_eq!(doubts.see(1, i64::MAX), 2 * keys);
        for offset in [3, 5, 8, 9] {
            doubts.add(1, offset, None);
        }
        assert_eq!(doubts.take(), Rest { between: 2, ..rest(&[3, 9]) });
    }

    #[test]
    fn what_was_aborted_or_is_open_is_no_loss() {
        let mut doubts = Doubts::default();
        for (offset, producer) in [(1, 70), (2, 71), (3, 72), (4, 71)] {
            doubts.add(7, offset, Some(producer));
        }
        assert_eq!((doubts.settle(70, true), doubts.settle(71, false), doubts.settle(71, false)), (0, 0, 0));
        assert_eq!(doubts.take(), rest(&[2, 4]));
    }

    #[test]
    fn a_deletion_explains_earlier_records_once_it_is_committed() {
        let mut doubts = Doubts::default();
        doubts.add(7, 5, None);
        assert_eq!((doubts.delete(7, 8, None), doubts.delete(8, 9, Some(70))), (1, 0));
        assert!(doubts.is_empty());
        doubts.add(7, 15, None);
        assert_eq!((doubts.delete(7, 18, Some(70)), doubts.settle(70, true)), (0, 0));
        assert_eq!((doubts.delete(7, 28, Some(71)), doubts.settle(72, false), doubts.settle(71, false)), (0, 0, 1));
        doubts.add(7, 31, None);
        doubts.delete(7, 32, Some(71));
        doubts.add(7, 33, None);
        assert_eq!(doubts.settle(71, false), 1);
        assert_eq!(doubts.take(), rest(&[33]));
        assert!(doubts.open.is_empty());
    }

    #[test]
    fn what_a_record_explains_is_no_more_of_an_open_transaction() {
        let mut doubts = Doubts::default();
        doubts.add(7, 1, Some(70));
        doubts.add(8, 2, Some(70));
        assert_eq!((doubts.see(7, 5), doubts.open.len()), (1, 1));
        doubts.add(7, 6, Some(70));
        assert_eq!(doubts.settle(70, false), 0);
        assert_eq!(doubts.take(), rest(&[2, 6]));
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut doubts = Doubts::default();
        let most = u64::try_from(MAX_KEYS).unwrap();
        for (key, offset) in (0..most + 3).zip(0..) {
            doubts.add(key, offset, None);
        }
        doubts.add(0, 1 << 40, None);
        assert_eq!((0..most).map(|key| doubts.see(key, i64::MAX)).sum::<u64>(), most + 1);
        let beyond = Some((i64::try_from(MAX_KEYS).unwrap(), 3));
        assert_eq!(doubts.take(), Rest { beyond, ..Rest::default() });
    }
}
