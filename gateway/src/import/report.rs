//! What became of an import. Field names are a stable schema.

use std::fmt;

use serde::Serialize;
use tombolo_proto::failure::Failure;
use tombolo_proto::id::{Offset, Partition};

/// What became of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The mirror reached the export's end.
    Complete,
    /// It had been there before.
    AlreadyThere,
    /// The mirror ends before the export begins.
    Missing { from: Offset, until: Offset },
    /// The mirror is FAILED, or this partition cannot go on.
    Failed(Failure),
    /// The export cannot be read.
    Damaged(String),
    /// The import ended before; the report says why.
    Unfinished,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Complete | Self::AlreadyThere)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::AlreadyThere => "already_there",
            Self::Missing { .. } => "missing",
            Self::Failed(_) => "failed",
            Self::Damaged(_) => "damaged",
            Self::Unfinished => "unfinished",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::AlreadyThere => f.write_str("already there"),
            Self::Missing { from, until } => {
                write!(f, "offsets {from} to {} are missing: the export starts at {until}", until - 1)
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Damaged(reason) => f.write_str(reason),
            Self::Unfinished => f.write_str("unfinished"),
        }
    }
}

/// A whole import.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    link: String,
    /// When the export was made, by the site's clock, RFC 3339.
    created: String,
    /// The certificate that signed it has expired since.
    certificate_expired: bool,
    /// Every partition reached the export's end.
    complete: bool,
    /// Why it ended before it was complete, unless its partitions say it all.
    ended: Option<String>,
    partitions: Vec<Row>,
    /// Topics that were left out.
    refused: Vec<RefusedTopic>,
}

/// A partition of the export.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) topic: String,
    pub(super) partition: Partition,
    pub(super) first_offset: Offset,
    pub(super) next_offset: Offset,
    /// The mirror's log end, where it was told.
    pub(super) before: Option<Offset>,
    pub(super) after: Option<Offset>,
    /// Whether the mirror's end was compared with the export; none where nothing had to be.
    pub(super) verified: Option<bool>,
    result: &'static str,
    detail: String,
}

/// A topic that was left out.
#[derive(Debug, Serialize)]
pub(super) struct RefusedTopic {
    pub(super) topic: String,
    pub(super) reason: String,
}

/// Where a partition's mirror stood.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stood {
    pub(super) before: Option<Offset>,
    pub(super) after: Option<Offset>,
    pub(super) verified: Option<bool>,
}

impl Row {
    pub(super) fn new(
        topic: &str,
        range: &tombolo_proto::export::ExportRange,
        stood: Stood,
        outcome: &Outcome,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            partition: range.partition,
            first_offset: range.first_offset,
            next_offset: range.next_offset,
            before: stood.before,
            after: stood.after,
            verified: stood.verified,
            result: outcome.name(),
            detail: outcome.to_string(),
        }
    }
}

impl Report {
    pub(super) fn new(
        export: &super::Export,
        partitions: Vec<Row>,
        refused: Vec<RefusedTopic>,
        complete: bool,
        ended: Option<String>,
    ) -> Self {
        Self {
            link: export.link().to_string(),
            created: humantime::format_rfc3339_seconds(export.created()).to_string(),
            certificate_expired: export.has_expired(),
            complete: complete && refused.is_empty(),
            ended,
            partitions,
            refused,
        }
    }

    /// Whether every partition reached the export's end.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// For people: head and one row for each partition and for each topic left out.
    pub(crate) fn rows(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let offset = |offset: Option<Offset>| offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        let partition = |row: &Row| {
            let note = if row.verified == Some(false) { ", unverified" } else { "" };
            vec![
                row.topic.clone(),
                row.partition.to_string(),
                format!("{} to {}", row.first_offset, row.next_offset - 1),
                offset(row.before),
                offset(row.after),
                format!("{}{note}", row.detail),
            ]
        };
        let none = || "-".to_owned();
        let refused = |refused: &RefusedTopic| {
            vec![refused.topic.clone(), none(), none(), none(), none(), refused.reason.clone()]
        };
        let rows = self.partitions.iter().map(partition).chain(self.refused.iter().map(refused)).collect();
        (vec!["TOPIC", "PARTITION", "EXPORTED", "BEFORE", "AFTER", "RESULT"], rows)
    }

    /// What the export is, and why the import ended early.
    pub(crate) fn title(&self) -> String {
        let expired = if self.certificate_expired {
            "; its certificate has expired since, it was valid when the export was made"
        } else {
            ""
        };
        let ended = self.ended.as_deref().map_or_else(String::new, |reason| format!("\nunfinished: {reason}"));
        format!("export of link {}, made {}{expired}{ended}", self.link, self.created)
    }
}
