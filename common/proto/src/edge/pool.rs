//! The two byte budgets of a site, and what the link lately carried.
//!
//! Both budgets are shared by dynamic thresholds: of n partitions that hold some, each may hold 1/(n+1) of what is free.
//! One alone gets half of what it leaves free; n that stall one after another leave 2/(n+2) of the budget.

use std::collections::VecDeque;

use crate::id::Time;
use crate::limits::MIN_FRAME_BYTES;

/// Largest frame while small ones would do: what stalls behind it waits no longer than this takes to send.
const LARGEST_TARGET: usize = 1 << 20;
/// Frame size before anything was measured.
const FIRST_TARGET: usize = 64 << 10;
const BUCKET: Time = Time::from_secs(1);
const BUCKETS: usize = 10;

/// Bytes of one budget, and how many hold some.
#[derive(Debug)]
pub(super) struct Pool {
    limit: usize,
    used: usize,
    holders: usize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, holders: 0 }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// A holder that had `before` bytes has `after`.
    pub(super) fn change(&mut self, before: usize, after: usize) {
        debug_assert!(before <= self.used, "{before} of {} given back", self.used);
        self.used = (self.used + after).saturating_sub(before);
        self.holders = (self.holders + usize::from(after > 0)).saturating_sub(usize::from(before > 0));
    }

    /// Bytes that belong to no holder.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Gives back what was reserved.
    pub(super) fn release(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used, "{bytes} of {} released", self.used);
        self.used = self.used.saturating_sub(bytes);
    }

    /// Whether one that holds `own` bytes may take more, by how much it likes.
    pub(super) fn admits(&self, own: usize) -> bool {
        let holders = self.holders + usize::from(own == 0);
        self.free() > 0 && own < (self.free() / (1 + holders)).max(1)
    }
}

/// What the link carried in the last seconds, from confirms.
#[derive(Debug, Default)]
pub(super) struct Rate {
    buckets: VecDeque<usize>,
    current: usize,
    since: Option<Time>,
}

impl Rate {
    pub(super) fn confirmed(&mut self, bytes: usize, now: Time) {
        let since = *self.since.get_or_insert(now);
        let passed = (now.saturating_sub(since).as_millis() / BUCKET.as_millis()).min(BUCKETS as u128);
        for _ in 0..passed {
            self.buckets.push_back(std::mem::take(&mut self.current));
            if self.buckets.len() > BUCKETS {
                self.buckets.pop_front();
            }
        }
        if passed > 0 {
            self.since = Some(now);
        }
        self.current += bytes;
    }

    /// Bytes confirmed in one second, over the last ten.
    pub(super) fn bytes_per_second(&self) -> u64 {
        let sum: usize = self.buckets.iter().sum();
        (sum / self.buckets.len().max(1)) as u64
    }

    /// Bytes a frame should have: what the link carried in its best second of the last ten.
    pub(super) fn frame_target(&self) -> usize {
        let best = self.buckets.iter().copied().chain([self.current]).max().unwrap_or(0);
        if best == 0 { FIRST_TARGET } else { best.clamp(MIN_FRAME_BYTES, LARGEST_TARGET) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_partitions_leave_room_for_the_others() {
        let mut pool = Pool::new(16 << 20);
        for _ in 0..100 {
            let mut own = 0;
            while pool.admits(own) {
                pool.change(own, own + 1_000);
                own += 1_000;
            }
            assert!(own > 0);
        }
        assert!(pool.free() > 100_000, "{} left", pool.free());
    }

    #[test]
    fn the_frame_follows_what_the_link_carries() {
        let mut rate = Rate::default();
        assert_eq!(rate.frame_target(), FIRST_TARGET);
        for second in 0..5 {
            rate.confirmed(250_000, Time::from_secs(second));
        }
        assert_eq!(rate.frame_target(), 250_000);
        for second in 5..40 {
            rate.confirmed(10, Time::from_secs(second));
        }
        assert_eq!(rate.frame_target(), MIN_FRAME_BYTES);
        rate.confirmed(1 << 30, Time::from_secs(41));
        assert_eq!(rate.frame_target(), LARGEST_TARGET);
    }
}
