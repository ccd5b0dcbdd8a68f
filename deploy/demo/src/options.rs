//! The command line.

use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;

/// Mirrors topics from one Kafka cluster to another over a link that goes dark, and proves that both hold the same.
///
/// Without options both clusters are mock clusters inside this process: nothing to install, nothing left behind.
#[derive(Debug, Parser)]
#[command(name = "tombolo-demo", version)]
pub(crate) struct Options {
    /// A broker of a real source cluster. Topics with a name of this run are made there, and removed at the end unless
    /// there is something to look at.
    #[arg(long, value_name = "HOST:PORT", requires = "cloud")]
    pub(crate) source: Option<String>,

    /// A broker of a real cloud cluster. The mirrors are made there, and removed likewise.
    #[arg(long, value_name = "HOST:PORT", requires = "source")]
    pub(crate) cloud: Option<String>,

    /// For how long the producer writes, beside the time that the link is dark.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = RangedU64ValueParser::<u64>::new().range(2..=300))]
    seconds: u64,

    /// For how long the link is dark while the producer goes on; 0 for not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = RangedU64ValueParser::<u64>::new().range(0..=300))]
    dark: u64,

    /// What the daemons log to stderr: error, warn, info, debug, or levels per target. From warn on, the table is
    /// printed line by line.
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    pub(crate) log: String,
}

impl Options {
    /// The phases of the run.
    pub(crate) fn schedule(&self) -> Schedule {
        let dark = Duration::from_secs(self.dark);
        let dark_from = Duration::from_secs(self.seconds) / 2;
        Schedule { dark_from, dark_until: dark_from + dark, produce_until: Duration::from_secs(self.seconds) + dark }
    }
}

/// When what happens, counted from the first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The link goes dark.
    pub(crate) dark_from: Duration,
    /// It comes back; the same as `dark_from` where it never goes.
    pub(crate) dark_until: Duration,
    /// The producer stops.
    pub(crate) produce_until: Duration,
}

impl Schedule {
    /// Whether the link shall be dark now.
    pub(crate) fn is_dark(&self, elapsed: Duration) -> bool {
        (self.dark_from..self.dark_until).contains(&elapsed)
    }

    /// How long the link is dark in all.
    pub(crate) fn dark(&self) -> Duration {
        self.dark_until.saturating_sub(self.dark_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_producer_goes_on_while_the_link_is_dark() {
        let options = Options::try_parse_from(["demo", "--seconds", "8", "--dark", "3"]).unwrap();
        let schedule = options.schedule();
        assert_eq!(schedule.dark(), Duration::from_secs(3));
        assert_eq!(schedule.produce_until, Duration::from_secs(11));
        let dark: Vec<_> = (0..11).filter(|second| schedule.is_dark(Duration::from_secs(*second))).collect();
        assert_eq!(dark, [4, 5, 6]);
    }

    #[test]
    fn real_clusters_come_in_pairs() {
        assert!(Options::try_parse_from(["demo", "--source", "a:1"]).is_err());
        assert!(Options::try_parse_from(["demo", "--source", "a:1", "--cloud", "b:1"]).is_ok());
        assert!(Options::try_parse_from(["demo", "--seconds", "1"]).is_err());
    }
}
