//! How a link behaves.

use std::time::Duration;

/// Both directions and the seed of all chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// From the agent to the gateway.
    pub up: Way,
    /// From the gateway to the agent.
    pub down: Way,
    pub seed: u64,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// What every packet takes, after it left the queue.
    pub delay: Duration,
    /// Up to this much more, by chance. It does not change the order.
    pub jitter: Duration,
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Mean number of packets that are lost one after another; 1 is loss without memory.
    pub loss_burst: f64,
    /// Share of packets that others overtake.
    pub reorder: f64,
    /// How much longer such a packet takes.
    pub reorder_by: Duration,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Bits per second; `None` is without limit.
    pub rate: Option<u64>,
    /// What waits for the rate, at most; more is dropped. At least the product of rate and round trip, or it is this
    /// queue that a test measures.
    pub queue_bytes: u64,
}

impl Way {
    /// Nothing happens to a packet.
    pub const CLEAN: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        loss_burst: 1.0,
        reorder: 0.0,
        reorder_by: Duration::from_millis(5),
        duplicate: 0.0,
        rate: None,
        queue_bytes: 1 << 20,
    };
}

impl Profile {
    /// Nothing happens to a packet.
    pub const CLEAN: Self = Self { up: Way::CLEAN, down: Way::CLEAN, seed: 1 };

    /// A geostationary satellite: 600 ms round trip, `rate` bits per second up and half a megabit down, queues of
    /// 600 ms, `loss` in bursts of two packets.
    pub fn satellite(rate: u64, loss: f64) -> Self {
        let way = |rate: u64| Way {
            delay: Duration::from_millis(300),
            jitter: Duration::from_millis(10),
            loss,
            loss_burst: 2.0,
            rate: Some(rate),
            queue_bytes: rate * 6 / 10 / 8,
            ..Way::CLEAN
        };
        Self { up: way(rate), down: way(500_000), seed: 1 }
    }
}
