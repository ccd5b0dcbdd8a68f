//! How much there is to read, before it is read.

use std::ops::Range;
use std::sync::Arc;

use super::{CompareOptions, reader::Reader};
use crate::cluster::Cluster;
use crate::error::KafkaError;

/// Offsets of some logs and about what they take. No request tells the bytes of a part of a log, so one answer from the
/// middle of the longest counts for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    offsets: u64,
    bytes_per_thousand: u64,
}

impl Survey {
    /// Reads one answer.
    pub async fn of(
        cluster: &Cluster,
        logs: &[(Arc<str>, i32, Range<i64>)],
        options: CompareOptions,
    ) -> Result<Self, KafkaError> {
        let length = |range: &Range<i64>| u64::try_from(range.end - range.start).unwrap_or(0);
        let offsets = logs.iter().map(|(.., range)| length(range)).sum();
        let Some((topic, partition, range)) = logs.iter().max_by_key(|(.., range)| length(range)) else {
            return Ok(Self { offsets: 0, bytes_per_thousand: 0 });
        };
        let mut reader = Reader::new(cluster, topic, *partition, options);
        reader.seek(range.start + (range.end - range.start) / 2..range.end);
        Ok(Self { offsets, bytes_per_thousand: reader.density().await? })
    }

    /// About what all of it takes.
    pub fn total_bytes(&self) -> u64 {
        self.bytes(self.offsets)
    }

    /// About what so many of its offsets take.
    pub fn bytes(&self, offsets: u64) -> u64 {
        offsets.saturating_mul(self.bytes_per_thousand) / 1_000
    }
}
