//! What one direction of a link does to each packet: pure, given the time and the seed.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::profile::Way;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    /// The queue before the rate limit is full.
    Overflowed,
    Arrives {
        due: Instant,
        /// Others overtake it.
        held_back: bool,
        /// When its twin arrives.
        copy: Option<Instant>,
    },
}

#[derive(Debug)]
pub(super) struct Line {
    random: StdRng,
    /// When the last queued packet has left the queue.
    busy_until: Option<Instant>,
    /// When the last packet in order arrives: jitter must not change the order.
    last_arrival: Option<Instant>,
    in_burst: bool,
}

impl Line {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), busy_until: None, last_arrival: None, in_burst: false }
    }

    pub(super) fn fate(&mut self, now: Instant, length: usize, way: &Way) -> Fate {
        let Some(departure) = self.depart(now, length, way) else {
            return Fate::Overflowed;
        };
        if self.loses(way) {
            return Fate::Lost;
        }
        let arrival = departure + way.delay + way.jitter.mul_f64(self.random.random::<f64>());
        let held_back = self.hits(way.reorder);
        let due = if held_back {
            arrival + way.reorder_by
        } else {
            let due = self.last_arrival.map_or(arrival, |last| last.max(arrival));
            self.last_arrival = Some(due);
            due
        };
        let copy = self.hits(way.duplicate).then(|| due + Duration::from_micros(100));
        Fate::Arrives { due, held_back, copy }
    }

    /// When the packet has passed the rate limit; `None` where the queue has no room for it.
    fn depart(&mut self, now: Instant, length: usize, way: &Way) -> Option<Instant> {
        let Some(rate) = way.rate else {
            self.busy_until = None;
            return Some(now);
        };
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let waiting = start.duration_since(now).as_secs_f64() * precise(rate) / 8.0;
        if waiting + precise(length) > precise(way.queue_bytes) {
            return None;
        }
        let departure = start + Duration::from_secs_f64(precise(length) * 8.0 / precise(rate));
        self.busy_until = Some(departure);
        Some(departure)
    }

    /// Two states (Gilbert): in a burst every packet is lost, outside none; the chances of going from one to the other
    /// give the profile's share and mean length.
    fn loses(&mut self, way: &Way) -> bool {
        if way.loss <= 0.0 {
            self.in_burst = false;
            return false;
        }
        let length = way.loss_burst.max(1.0);
        let chance = if self.in_burst { 1.0 - 1.0 / length } else { way.loss / (length * (1.0 - way.loss)) };
        // A burst of mean length 1 ends with its packet, and the next may begin at once with the plain chance.
        let chance = if length <= 1.0 { way.loss } else { chance };
        self.in_burst = self.hits(chance);
        self.in_burst
    }

    fn hits(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.random::<f64>() < chance
    }
}

/// Rates and lengths are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn precise(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(way: &Way, packets: usize, every: Duration) -> Vec<Fate> {
        let mut line = Line::new(7);
        let start = Instant::now();
        (0..packets).map(|i| line.fate(start + every * u32::try_from(i).unwrap(), 1_200, way)).collect()
    }

    fn dues(fates: &[Fate]) -> Vec<Instant> {
        let due = |fate: &Fate| {
            if let Fate::Arrives { due, .. } = fate { Some(*due) } else { None }
        };
        fates.iter().filter_map(due).collect()
    }

    #[test]
    fn loses_the_share_in_bursts_of_the_mean_length() {
        for (loss, loss_burst) in [(0.01, 2.0), (0.02, 3.0), (0.1, 1.0)] {
            let fates = fates(&Way { loss, loss_burst, ..Way::CLEAN }, 200_000, Duration::ZERO);
            let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
            let bursts = fates.windows(2).filter(|pair| pair[0] != Fate::Lost && pair[1] == Fate::Lost).count();
            let share = precise(lost as u64) / 200_000.0;
            let length = precise(lost as u64) / precise(bursts as u64);
            assert!((share / loss - 1.0).abs() < 0.1, "{share} of {loss}");
            assert!((length / loss_burst - 1.0).abs() < 0.15, "{length} of {loss_burst}");
        }
    }

    #[test]
    fn keeps_the_rate_and_drops_what_the_queue_cannot_hold() {
        // 1.2 kB a millisecond offered, a tenth of it carried: 960 kbit/s.
        let way = Way { rate: Some(960_000), queue_bytes: 12_000, ..Way::CLEAN };
        let fates = fates(&way, 10_000, Duration::from_millis(1));
        let arrived = dues(&fates);
        let seconds = arrived.last().unwrap().duration_since(arrived[0]).as_secs_f64();
        let rate = precise(arrived.len() as u64 - 1) * 1_200.0 * 8.0 / seconds;
        assert!((rate / 960_000.0 - 1.0).abs() < 0.02, "{rate}");
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Overflowed).count(), 10_000 - arrived.len());
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_breaks_it() {
        let way = Way { delay: Duration::from_millis(30), jitter: Duration::from_millis(20), ..Way::CLEAN };
        let calm = dues(&fates(&way, 1_000, Duration::from_millis(1)));
        assert!(calm.is_sorted());
        let wild =
            fates(&Way { reorder: 0.1, reorder_by: Duration::from_millis(50), ..way }, 1_000, Duration::from_millis(1));
        assert!(!dues(&wild).is_sorted());
        let held_back = wild.iter().filter(|fate| matches!(fate, Fate::Arrives { held_back: true, .. })).count();
        assert!((50..200).contains(&held_back), "{held_back}");
    }

    #[test]
    fn duplicates_the_share() {
        let twice = fates(&Way { duplicate: 0.05, ..Way::CLEAN }, 10_000, Duration::ZERO);
        let copies = twice.iter().filter(|fate| matches!(fate, Fate::Arrives { copy: Some(_), .. })).count();
        assert!((400..600).contains(&copies), "{copies}");
    }

    #[test]
    fn same_seed_gives_the_same_fates() {
        let way = Way { loss: 0.1, loss_burst: 2.0, duplicate: 0.1, reorder: 0.1, ..Way::CLEAN };
        let (start, mut one, mut two) = (Instant::now(), Line::new(3), Line::new(3));
        for _ in 0..1_000 {
            assert_eq!(one.fate(start, 100, &way), two.fate(start, 100, &way));
        }
    }
}
