//! Records of a compacted topic that only the source has, until the mirror shows why: a later record of the same key, for
//! which its cleaner took them. Without one they were never mirrored.
//!
//! Keys are known by a hash of 64 bits. Memory: about 60 bytes of each record in doubt, of at most [`MAX`].

use std::collections::BTreeMap;

/// Records in doubt that are remembered.
const MAX: usize = 50_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// By hash of the key and offset; the producer, while it is not known whether its transaction was committed.
    held: BTreeMap<(u64, i64), Option<i64>>,
    /// Of these, how many belong to such a transaction.
    open: usize,
    /// Offset of the first record that there was no room for, and how many there were.
    beyond: Option<(i64, u64)>,
}

impl Doubts {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A record that the mirror does not have at its offset.
    pub(super) fn add(&mut self, key: u64, offset: i64, transaction: Option<i64>) {
        if self.held.len() < MAX {
            self.held.insert((key, offset), transaction);
            self.open += usize::from(transaction.is_some());
        } else {
            let (_, count) = self.beyond.get_or_insert((offset, 0));
            *count += 1;
        }
    }

    /// The mirror has a record of this key there: how many earlier ones that explains.
    pub(super) fn see(&mut self, key: u64, offset: i64) -> u64 {
        let earlier: Vec<_> = self.held.range((key, i64::MIN)..(key, offset)).map(|(place, _)| *place).collect();
        for place in &earlier {
            let transaction = self.held.remove(place).flatten();
            self.open -= usize::from(transaction.is_some());
        }
        earlier.len() as u64
    }

    /// A transaction of the source ended: what was aborted is nobody's loss.
    pub(super) fn settle(&mut self, producer_id: i64, aborted: bool) {
        if self.open == 0 {
            return;
        }
        let before = self.open;
        self.held.retain(|_, transaction| {
            if *transaction != Some(producer_id) {
                return true;
            }
            *transaction = None;
            !aborted
        });
        self.open = self.held.values().filter(|transaction| transaction.is_some()).count().min(before);
    }

    /// Takes what nothing explained: offsets in order, and what there was no room for. What belongs to a transaction that
    /// is still open is not read by anybody yet.
    pub(super) fn take(&mut self) -> (Vec<i64>, Option<(i64, u64)>) {
        let rest = std::mem::take(self);
        let settled = rest.held.into_iter().filter(|(_, transaction)| transaction.is_none());
        let mut offsets: Vec<_> = settled.map(|((_, offset), _)| offset).collect();
        offsets.sort_unstable();
        (offsets, rest.beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_record_of_the_key_explains_earlier_ones_and_no_others() {
        let mut doubts = Doubts::default();
        for (key, offset) in [(7, 1), (7, 5), (7, 9), (8, 2)] {
            doubts.add(key, offset, None);
        }
        assert_eq!((doubts.see(7, 1), doubts.see(7, 6), doubts.see(9, 90)), (0, 2, 0));
        assert_eq!(doubts.take(), (vec![2, 9], None));
        assert!(doubts.is_empty());
    }

    #[test]
    fn what_was_aborted_or_is_open_is_no_loss() {
        let mut doubts = Doubts::default();
        for (offset, producer) in [(1, 70), (2, 71), (3, 72)] {
            doubts.add(7, offset, Some(producer));
        }
        doubts.settle(70, true);
        doubts.settle(71, false);
        assert_eq!(doubts.take(), (vec![2], None));
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut doubts = Doubts::default();
        for offset in 0..i64::try_from(MAX).unwrap() + 3 {
            doubts.add(1, offset, None);
        }
        assert_eq!(doubts.see(1, i64::MAX), MAX as u64);
        assert_eq!(doubts.take(), (vec![], Some((i64::try_from(MAX).unwrap(), 3))));
    }
}
