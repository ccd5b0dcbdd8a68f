//! Whether both clusters hold the same: read raw, batch for batch, and by the independent witness, record for record.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tombolo_kafka::compare::{self, CompareOptions, Comparison, Extent, LogPair};
use tombolo_kafka::settings::SettingsError;
use tombolo_kafka::{ClientSettings, Cluster, KafkaError};

use crate::clusters::Clusters;
use crate::witness::{self, Difference, Records, WitnessError};

/// Differences that are listed of each kind of reading.
const MOST_DIFFERENCES: usize = 10;
/// For the witness to read one cluster.
const READ_DEADLINE: Duration = Duration::from_mins(1);

/// Why the clusters could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerdictError {
    #[error("the raw client refuses its settings: {0}")]
    Settings(#[from] SettingsError),
    #[error("cannot compare raw: {0}")]
    Raw(#[from] KafkaError),
    #[error(transparent)]
    Witness(#[from] WitnessError),
    #[error("a thread of the demo failed: {0}")]
    Thread(#[from] JoinError),
}

/// What both readings found.
#[derive(Debug)]
pub(crate) struct Verdict {
    topics: usize,
    partitions: usize,
    dark: Duration,
    raw: Comparison,
    /// Records that the witness read at the source.
    records: u64,
    differences: Vec<Difference>,
}

/// Reads both clusters. Nobody may write meanwhile.
pub(crate) async fn read(clusters: &Clusters, dark: Duration) -> Result<Verdict, VerdictError> {
    let topics = clusters.topics();
    let raw = compare_raw(clusters, &topics).await?;
    let source = spawn_witness(&clusters.source, &topics);
    let cloud = spawn_witness(&clusters.cloud, &topics);
    let (source, cloud) = (source.await??, cloud.await??);
    Ok(Verdict {
        topics: topics.len(),
        partitions: source.len(),
        dark,
        raw,
        records: source.values().map(|records| records.len() as u64).sum(),
        differences: witness::differences(&source, &cloud, MOST_DIFFERENCES),
    })
}

async fn compare_raw(clusters: &Clusters, topics: &[(String, i32)]) -> Result<Comparison, VerdictError> {
    let connect =
        |bootstrap: &str| ClientSettings::from_properties([("bootstrap.servers", bootstrap)]).map(Cluster::new);
    let (source, cloud) = (connect(&clusters.source)?, connect(&clusters.cloud)?);
    let pairs: Vec<_> = topics
        .iter()
        .flat_map(|(topic, count)| {
            let topic: Arc<str> = topic.as_str().into();
            (0..*count).map(move |partition| LogPair {
                source: Arc::clone(&topic),
                mirror: Arc::clone(&topic),
                partition,
                extent: Extent::Whole,
            })
        })
        .collect();
    let options = CompareOptions { max_differences: MOST_DIFFERENCES, ..CompareOptions::default() };
    Ok(compare::compare(&source, &cloud, &pairs, options).await?)
}

fn spawn_witness(bootstrap: &str, topics: &[(String, i32)]) -> tokio::task::JoinHandle<Result<Records, WitnessError>> {
    let (bootstrap, topics) = (bootstrap.to_owned(), topics.to_vec());
    spawn_blocking(move || witness::read(&bootstrap, &topics, READ_DEADLINE))
}

impl Verdict {
    /// Whether something was mirrored, and neither reading found a difference, nor one more records than the other.
    pub(crate) fn identical(&self) -> bool {
        self.records > 0 && self.raw.is_identical() && self.differences.is_empty() && self.raw.records == self.records
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.raw.differences {
            writeln!(f, "raw: {difference}")?;
        }
        for Difference { topic, partition, offset, what } in &self.differences {
            writeln!(f, "witness: {topic}[{partition}]@{offset} {what}")?;
        }
        if self.raw.records != self.records {
            writeln!(f, "raw {} records, witness {}", self.raw.records, self.records)?;
        }
        let word = if self.identical() { "identical" } else { "DIFFERENT" };
        write!(
            f,
            "{word}: {} topics, {} partitions, {} batches, {} records, {}.{:02} MB, {} s dark",
            self.topics,
            self.partitions,
            self.raw.batches,
            self.records,
            self.raw.bytes / 1_000_000,
            self.raw.bytes % 1_000_000 / 10_000,
            self.dark.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use tombolo_kafka::compare::DifferenceKind;

    use super::*;

    fn verdict() -> Verdict {
        let raw = Comparison { batches: 12, records: 340, bytes: 5_678_901, ..Comparison::default() };
        Verdict { topics: 5, partitions: 16, dark: Duration::from_secs(6), raw, records: 340, differences: Vec::new() }
    }

    #[test]
    fn the_last_line_says_identical_with_counts() {
        assert!(verdict().identical());
        assert_eq!(
            verdict().to_string(),
            "identical: 5 topics, 16 partitions, 12 batches, 340 records, 5.67 MB, 6 s dark"
        );
    }

    #[test]
    fn any_difference_counts_and_is_listed() {
        let mut raw = verdict();
        raw.raw.difference_count = 1;
        raw.raw.differences.push(compare::Difference {
            source: "orders".into(),
            partition: 2,
            offset: 7,
            kind: DifferenceKind::Missing,
        });
        let mut witness = verdict();
        let (topic, what) = ("orders".to_owned(), "has another key");
        witness.differences.push(Difference { topic, partition: 2, offset: 7, what });
        let mut counts = verdict();
        counts.records = 339;
        let cases = [(raw, "raw: orders[2]@7: missing"), (witness, "witness: orders[2]@7 has"), (counts, "raw 340 re")];
        for (verdict, text) in cases {
            assert!(!verdict.identical());
            let shown = verdict.to_string();
            assert!(shown.starts_with(text) && shown.contains("\nDIFFERENT: "), "{shown}");
        }
    }

    #[test]
    fn two_empty_clusters_prove_nothing() {
        let empty = Verdict { raw: Comparison::default(), records: 0, ..verdict() };
        assert!(!empty.identical());
    }
}
