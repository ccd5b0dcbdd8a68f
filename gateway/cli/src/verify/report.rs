//! What was found, for people and for programs, and whether it passes.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tombolo_kafka::compare::digest::Header;
use tombolo_kafka::compare::{Comparison, Difference, DifferenceKind};

use super::plan::{Lacking, Plan, Planned};
use super::records::Records;
use super::{LISTED, Verify};

/// The end of the year 9999 since 1970: beyond it no time can be shown.
const LATEST: Duration = Duration::from_hours(70_389_528);

/// Everything that one run found.
#[derive(Debug)]
pub(super) struct Report {
    strict: bool,
    sample: Option<u8>,
    /// Offsets that were asked for, where not all were.
    from: Option<i64>,
    to: Option<i64>,
    link: Option<String>,
    digest: Option<DigestOf>,
    lacking: Vec<Lacking>,
    partitions: Vec<PartitionReport>,
    found: Comparison,
    records: Option<Records>,
    took: Duration,
}

/// Whose logs the digest is of.
#[derive(Debug)]
struct DigestOf {
    cluster_id: String,
    created_unix_seconds: u64,
}

/// The figures of one partition.
#[derive(Debug)]
struct PartitionReport {
    topic: String,
    partition: i32,
    batches: u64,
    differences: u64,
    gaps: u64,
}

/// What a difference comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Explanation {
    Behind,
    LogStart,
    ForeignWrite,
    Undecided,
    None,
}

impl Explanation {
    fn of(difference: &Difference) -> Self {
        match difference.kind {
            DifferenceKind::Start { .. } => Self::LogStart,
            DifferenceKind::End { .. } if difference.is_extent() => Self::Behind,
            DifferenceKind::Foreign { .. } => Self::ForeignWrite,
            DifferenceKind::Undecided { .. } => Self::Undecided,
            DifferenceKind::End { .. }
            | DifferenceKind::Missing
            | DifferenceKind::Extra
            | DifferenceKind::Covered { .. }
            | DifferenceKind::Changed { .. }
            | DifferenceKind::Shifted { .. }
            | DifferenceKind::Corrupt { .. }
            | DifferenceKind::Unreadable { .. } => Self::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::LogStart => "log start",
            Self::ForeignWrite => "foreign write",
            Self::Undecided => "undecided",
            Self::None => "unexplained",
        }
    }
}

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Report {
    pub(super) fn new(arguments: &Verify, plan: &Plan, digest: Option<&Header>) -> Self {
        Self {
            strict: arguments.strict,
            sample: arguments.sample,
            from: arguments.from,
            to: arguments.to,
            link: arguments.link.clone(),
            digest: digest.map(|header| DigestOf {
                cluster_id: header.cluster_id.clone(),
                created_unix_seconds: header.created_unix_seconds,
            }),
            lacking: plan.lacking.clone(),
            partitions: Vec::new(),
            found: Comparison::default(),
            records: None,
            took: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, planned: &Planned, found: Comparison) {
        self.partitions.push(PartitionReport {
            topic: planned.pair.source.to_string(),
            partition: planned.pair.partition,
            batches: found.batches,
            differences: found.difference_count,
            gaps: found.gaps,
        });
        self.found.add(found, LISTED);
    }

    pub(super) fn records(&mut self, records: Records) {
        self.records = Some(records);
    }

    pub(super) fn took(&mut self, took: Duration) {
        self.took = took;
        self.partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        self.found
            .differences
            .sort_by(|a, b| (&a.source, a.partition, a.offset).cmp(&(&b.source, b.partition, b.offset)));
    }

    /// Differences that no explanation covers, but for those that somebody else wrote.
    fn unexplained(&self) -> u64 {
        let batches = self.found.difference_count - self.found.extent_count - self.found.foreign_count;
        let records = self.records.as_ref().map_or(0, |records| records.difference_count);
        batches + records + self.lacking.len() as u64
    }

    /// Whether the mirrors hold what they should.
    pub(super) fn passes(&self) -> bool {
        let extent = if self.strict { self.found.extent_count } else { 0 };
        self.unexplained() + self.found.foreign_count + extent == 0
    }

    fn verdict(&self) -> &'static str {
        match (self.passes(), self.sample) {
            (false, _) => "different",
            (true, Some(_)) => "sampled",
            (true, None) => "identical",
        }
    }

    fn bytes_per_second(&self) -> u64 {
        let read = self.found.reads.iter().map(|reads| reads.bytes).max().unwrap_or(0);
        let millis = self.took.as_millis().max(1);
        u64::try_from(u128::from(read) * 1_000 / millis).unwrap_or(u64::MAX)
    }

    fn slower(&self) -> &'static str {
        let [source, mirror] = self.found.reads;
        if source.waited > mirror.waited { "source" } else { "mirror" }
    }

    /// A stable schema.
    pub(super) fn document(&self) -> Value {
        let partitions: Vec<_> = self
            .partitions
            .iter()
            .map(|partition| {
                json!({"topic": partition.topic, "partition": partition.partition, "batches": partition.batches,
                    "differences": partition.differences, "gaps": partition.gaps})
            })
            .collect();
        let digest = self.digest.as_ref().map(
            |digest| json!({"cluster_id": digest.cluster_id, "created_unix_seconds": digest.created_unix_seconds}),
        );
        let records = self.records.as_ref();
        let records = records.map(|records| json!({"equal": records.equal, "differences": records.difference_count}));
        let [source, mirror] = self.found.reads;
        json!({
            "verdict": self.verdict(), "sample_percent": self.sample, "from": self.from, "to": self.to,
            "link": self.link, "digest": digest, "strict": self.strict,
            "batches": self.found.batches, "records": self.found.records, "bytes": self.found.bytes,
            "gaps": self.found.gaps, "compared_by_record": self.found.remade,
            "compacted_at_source": self.found.cleaned[0], "compacted_in_mirror": self.found.cleaned[1],
            "undecided": self.found.undecided,
            "unexplained": self.unexplained(), "foreign_writes": self.found.foreign_count,
            "extents": self.found.extent_count, "second_reading": records, "differences": self.listed(),
            "partitions": partitions, "seconds": self.took.as_secs_f64(),
            "bytes_per_second": self.bytes_per_second(), "slower": self.slower(),
            "source_read_bytes": source.bytes, "mirror_read_bytes": mirror.bytes,
        })
    }

    /// What is listed, in the order of the document.
    fn listed(&self) -> Vec<Listed> {
        let lacking = self.lacking.iter().map(|lacking| Listed {
            topic: lacking.topic.to_string(),
            partition: lacking.partition,
            offset: None,
            explanation: Explanation::None,
            text: lacking.what.to_owned(),
        });
        let batches = self.found.differences.iter().map(|difference| Listed {
            topic: difference.source.to_string(),
            partition: Some(difference.partition),
            offset: Some(difference.offset),
            explanation: Explanation::of(difference),
            text: difference.what().to_string(),
        });
        let records = self.records.iter().flat_map(|records| &records.differences).map(|difference| Listed {
            topic: difference.topic.clone(),
            partition: Some(difference.partition),
            offset: Some(difference.offset),
            explanation: Explanation::None,
            text: difference.what.to_owned(),
        });
        lacking.chain(batches).chain(records).collect()
    }

    /// The same for people: differences, how it was read, and the verdict as the last line.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<String> = self.listed().iter().map(ToString::to_string).collect();
        let more = self.found.difference_count - self.found.differences.len() as u64;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines.push(self.reading());
        lines.push(self.verdict_line());
        lines.join("\n")
    }

    fn reading(&self) -> String {
        let rate = self.bytes_per_second();
        let millis = Duration::from_millis(u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX));
        let took = humantime::format_duration(millis);
        let rate = format!("{}.{:02} MB/s", rate / 1_000_000, rate % 1_000_000 / 10_000);
        let of_what = match &self.digest {
            Some(digest) => {
                let at = UNIX_EPOCH.checked_add(Duration::from_secs(digest.created_unix_seconds));
                let at = at.filter(|at| *at < UNIX_EPOCH + LATEST);
                let at = at.map_or_else(|| "?".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string());
                format!("the mirror, and a digest of cluster {} from {at}", digest.cluster_id)
            }
            None => format!("the {} was the slower to read", self.slower()),
        };
        let second = self.records.as_ref().map_or_else(String::new, |records| {
            format!("; second reading: {} records equal, {} differ", records.equal, records.difference_count)
        });
        format!("read in {took}, {rate}: {of_what}{second}")
    }

    fn verdict_line(&self) -> String {
        let extent = match (self.from, self.to) {
            (None, None) => String::new(),
            (from, None) => format!(" from offset {}", from.unwrap_or(0)),
            (from, Some(to)) => format!(" from offset {} to {}", from.unwrap_or(0), to.saturating_sub(1)),
        };
        let word = match (self.passes(), self.sample) {
            (false, Some(percent)) => format!("DIFFERENT (SAMPLED, {percent} % of the offsets)"),
            (false, None) => format!("DIFFERENT{extent}"),
            (true, Some(percent)) => {
                format!("SAMPLED: no difference in {percent} % of the offsets, the others were not read")
            }
            (true, None) => format!("identical{extent}"),
        };
        let found = &self.found;
        let explained = [
            (found.gaps, "offsets are gaps"),
            (found.remade, "batches compared by record"),
            (found.cleaned[0], "records compacted away at the source"),
            (found.cleaned[1], "records compacted away in the mirror"),
            (found.undecided, "records undecided"),
            (found.extent_count, "log ends or starts differ"),
            (found.foreign_count, "foreign writes"),
            (self.unexplained(), "unexplained"),
        ];
        let explained =
            explained.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        format!(
            "{word}: {} partitions, {} batches, {} records, {} bytes{}",
            self.partitions.len(),
            found.batches,
            found.records,
            found.bytes,
            explained.collect::<String>()
        )
    }
}

/// One line of what differs.
#[derive(Debug, Serialize)]
struct Listed {
    topic: String,
    /// `None` for the whole topic.
    partition: Option<i32>,
    /// `None` for the whole partition.
    offset: Option<i64>,
    explanation: Explanation,
    text: String,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.explanation.name(), self.topic)?;
        if let Some(partition) = self.partition {
            write!(f, "[{partition}]")?;
        }
        if let Some(offset) = self.offset {
            write!(f, "@{offset}")?;
        }
        write!(f, ": {}", self.text)
    }
}

#[cfg(test)]
#[path = "report/report_test.rs"]
mod tests;
