//! Time to loss: how long until the source deletes a record that is neither in the journal nor in the cloud.
//!
//! The first such record of a partition is `safe`, the offset after what journal and cloud have. The source deletes it by
//! age (`retention.ms` after its timestamp, or after that of the last batch read where it was not read yet) or by size (the log's start
//! follows its end at the rate at which it is written, `safe - log start` records ahead). While the journal takes what
//! is read, all of that begins only when it is full. Sources delete whole segments, so all of these are lower bounds.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tombolo_proto::edge::{EdgePartitionStatus, EdgeStatus, Retention};
use tombolo_proto::id::{Offset, Partition, TopicName};

use crate::journal::Usage;

/// Rates are means over about this time.
const MEAN: Duration = Duration::from_mins(1);
/// Records of this time that the site has not read yet are on their way, not left behind.
const ON_ITS_WAY: f64 = 10.0;

type Key = (TopicName, Partition);

/// Rates seen, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    since: Option<SystemTime>,
    journal: Slope,
    partitions: BTreeMap<Key, Slope>,
    full_in: Option<Duration>,
    left: BTreeMap<Key, Duration>,
}

/// How fast a number grows.
#[derive(Debug, Default)]
struct Slope {
    last: Option<f64>,
    per_second: f64,
}

impl Slope {
    fn observe(&mut self, value: f64, seconds: f64) {
        if let Some(last) = self.last.replace(value)
            && seconds > 0.0
        {
            let weight = 1.0 - (-seconds / MEAN.as_secs_f64()).exp();
            self.per_second += ((value - last) / seconds - self.per_second) * weight;
        }
    }
}

impl Loss {
    /// Takes in how things stand now.
    #[expect(clippy::cast_precision_loss, reason = "estimates")]
    pub(crate) fn observe(&mut self, status: &EdgeStatus, usage: Usage, now: SystemTime) {
        let seconds = self.since.replace(now).and_then(|before| now.duration_since(before).ok());
        let seconds = seconds.unwrap_or_default().as_secs_f64();
        self.journal.observe(usage.file_bytes as f64, seconds);
        let room = usage.max_bytes.saturating_sub(usage.file_bytes) as f64;
        self.full_in = duration(room, self.journal.per_second);
        let blocked = status.journal_trouble.is_some();
        let before = std::mem::take(&mut self.partitions);
        self.left.clear();
        for (key, mut slope) in before {
            let found = status.mirrors.binary_search_by(|mirror| mirror.topic.cmp(&key.0));
            let Some(mirror) = found.ok().and_then(|at| status.mirrors.get(at)) else { continue };
            let partition = usize::try_from(key.1).ok().and_then(|at| mirror.partitions.get(at));
            let Some(partition) = partition else { continue };
            if let Some(end) = partition.source_high_watermark {
                slope.observe(end as f64, seconds);
            }
            if let Some(left) = self.left_of(partition, mirror.retention, slope.per_second, blocked, now) {
                self.left.insert(key.clone(), left);
            }
            self.partitions.insert(key, slope);
        }
        for mirror in &status.mirrors {
            for partition in &mirror.partitions {
                self.partitions.entry((mirror.topic.clone(), partition.partition)).or_default();
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "estimates")]
    fn left_of(
        &self,
        partition: &EdgePartitionStatus,
        retention: Retention,
        per_second: f64,
        blocked: bool,
        now: SystemTime,
    ) -> Option<Duration> {
        let end = partition.source_high_watermark?;
        let safe = safe(partition)?;
        let behind = (end - safe).max(0) as f64;
        let by_age = retention.ms.map(|ms| {
            let retention = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
            if end <= safe {
                retention
            } else {
                deleted_at(partition, retention).duration_since(now).unwrap_or_default()
            }
        });
        let ahead = partition.source_log_start.map(|start| (safe - start).max(0) as f64);
        let by_size = retention.bytes.and(ahead).and_then(|ahead| duration(ahead, per_second));
        let left = by_age.into_iter().chain(by_size).min()?;
        if blocked || behind > (per_second * ON_ITS_WAY).max(1.0) {
            Some(left)
        } else {
            self.full_in.map(|full| full.saturating_add(left))
        }
    }

    /// Of the partition that is worst off.
    pub(crate) fn site(&self) -> Option<Duration> {
        self.left.values().min().copied()
    }

    /// Of one partition; `None` where no deletion is in sight.
    pub(crate) fn partition(&self, topic: &TopicName, partition: Partition) -> Option<Duration> {
        self.left.get(&(topic.clone(), partition)).copied()
    }

    /// Until the journal is full at the rate at which it grows; `None` while it does not grow.
    pub(crate) fn journal_full_in(&self) -> Option<Duration> {
        self.full_in
    }
}

/// Offset after what journal and cloud have.
fn safe(partition: &EdgePartitionStatus) -> Option<Offset> {
    let confirmed = partition.confirmed?;
    Some(partition.journal.map_or(confirmed, |(_, next)| next.max(confirmed)))
}

/// When the source deletes the record after the last that was read, at the earliest.
fn deleted_at(partition: &EdgePartitionStatus, retention: Duration) -> SystemTime {
    let written =
        partition.unsafe_timestamp.and_then(|ms| u64::try_from(ms).ok()).map_or(Duration::ZERO, Duration::from_millis);
    UNIX_EPOCH + written.saturating_add(retention)
}

/// `None` where it takes for ever, or longer than anybody waits.
fn duration(amount: f64, per_second: f64) -> Option<Duration> {
    let seconds = amount / per_second;
    (per_second > 0.0 && seconds < 1e10).then(|| Duration::from_secs_f64(seconds.max(0.0)))
}

#[cfg(test)]
mod tests {
    use tombolo_proto::edge::{EdgeMirrorState, EdgeMirrorStatus};

    use super::*;

    const START: Duration = Duration::from_hours(500_000);
    const DAY: i64 = 86_400_000;

    fn topic() -> TopicName {
        TopicName::new("orders").unwrap()
    }

    /// A source that is written at 100 records a second, `behind` of which nobody has yet.
    fn status(second: u64, retention: Retention, behind: i64, trouble: bool) -> EdgeStatus {
        let end = i64::try_from(second).unwrap() * 100 + 1_000_000;
        let written = i64::try_from(START.as_millis()).unwrap();
        let partition = EdgePartitionStatus {
            partition: 0,
            source_high_watermark: Some(end),
            fetched: Some(end - behind),
            sent: Some(900_000),
            confirmed: Some(900_000),
            window_bytes: 0,
            placed: false,
            unverified: false,
            rewinds: 0,
            journal: Some((900_000, end - behind)),
            source_log_start: Some(end - 360_000),
            unsafe_timestamp: Some(written),
            stuck: false,
        };
        EdgeStatus {
            journal_trouble: trouble.then(|| "full".to_owned()),
            mirrors: vec![EdgeMirrorStatus {
                topic: topic(),
                state: EdgeMirrorState::Pending,
                retention,
                partitions: vec![partition],
            }],
            ..EdgeStatus::default()
        }
    }

    fn usage(file_bytes: u64) -> Usage {
        Usage { file_bytes, max_bytes: 100_000_000, ..Usage::default() }
    }

    /// What is told after ten minutes in which the journal grew by `growth` bytes a second.
    fn after_ten_minutes(retention: Retention, growth: u64, behind: i64, trouble: bool) -> (Loss, Option<f64>) {
        let mut loss = Loss::default();
        for second in 0..600 {
            let now = UNIX_EPOCH + START + Duration::from_secs(second);
            loss.observe(&status(second, retention, behind, trouble), usage(growth * second), now);
        }
        let left = loss.partition(&topic(), 0).map(|left| left.as_secs_f64() / 3_600.0);
        (loss, left)
    }

    fn near(left: Option<f64>, hours: f64) -> bool {
        left.is_some_and(|left| (left - hours).abs() < 0.02 * hours + 0.01)
    }

    #[test]
    fn loss_begins_when_the_journal_is_full_and_the_retention_is_over() {
        let day = Retention { ms: Some(DAY), bytes: None };
        let (loss, left) = after_ten_minutes(day, 10_000, 0, false);
        let full = loss.journal_full_in().unwrap().as_secs_f64();
        assert!((full - (100_000_000.0 - 5_990_000.0) / 10_000.0).abs() < 60.0, "{full}");
        assert!(near(left, 24.0 + full / 3_600.0), "{left:?}");
        assert_eq!(loss.site(), loss.partition(&topic(), 0));
    }

    #[test]
    fn nothing_is_in_sight_while_the_journal_does_not_grow_or_nothing_is_deleted() {
        let day = Retention { ms: Some(DAY), bytes: None };
        assert_eq!(after_ten_minutes(day, 0, 0, false).1, None);
        assert_eq!(after_ten_minutes(Retention::default(), 10_000, 5_000_000, true).1, None);
    }

    #[test]
    fn a_blocked_journal_leaves_what_age_or_size_leaves() {
        let day = Retention { ms: Some(DAY), bytes: None };
        let (_, left) = after_ten_minutes(day, 0, 50_000, true);
        assert!(near(left, 24.0 - 10.0 / 60.0), "{left:?}");
        // 360 000 records of which the first 310 000 are safe, at 100 a second.
        let size = Retention { ms: None, bytes: Some(1 << 30) };
        let (_, left) = after_ten_minutes(size, 0, 50_000, true);
        assert!(near(left, 3_100.0 / 3_600.0), "{left:?}");
        let both = Retention { ms: Some(DAY), bytes: Some(1 << 30) };
        assert!(near(after_ten_minutes(both, 0, 50_000, true).1, 3_100.0 / 3_600.0));
    }
}
