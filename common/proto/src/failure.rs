//! Why a mirror stopped. A failure is a state with an operator's action, told to both ends of the link.
//!
//! Codes that Cluster Linking has keep its names; the others are tombolo's own.

use std::fmt;

use crate::id::{Offset, Partition};
use crate::limits::MAX_TEXT;

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// Kind of failure; [`FailureCode::name`] is what status, logs and metrics show.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum FailureCode { $($(#[$doc])* $variant,)* }

        impl FailureCode {
            /// Number on the wire.
            pub fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The code of a number; one that a newer peer knows and we do not is [`FailureCode::IllegalState`].
            pub fn from_number(number: u32) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::IllegalState }
            }

            /// Name shown to people.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

failure_codes! {
    /// Something that should not happen; the detail says what.
    IllegalState = 1, "ILLEGAL_STATE";
    /// The source serves a batch whose CRC is wrong.
    CorruptSourceBatch = 2, "CORRUPT_SOURCE_BATCH";
    /// Message format v0 or v1, or bytes that are no batch.
    UnsupportedMessageFormat = 3, "UNSUPPORTED_MESSAGE_FORMAT";
    /// Offsets without records: a compacted or transactional log.
    UnsupportedGap = 4, "UNSUPPORTED_GAP";
    /// Transactional batches or markers.
    UnsupportedTransaction = 5, "UNSUPPORTED_TRANSACTION";
    /// The topic is, or was, `LogAppendTime`.
    UnsupportedLogAppendTime = 6, "UNSUPPORTED_LOG_APPEND_TIME";
    /// The topic is compacted.
    UnsupportedCleanupPolicy = 7, "UNSUPPORTED_CLEANUP_POLICY";
    /// The source's log starts above the offset at which the mirror would have to start.
    LogStartAboveZero = 8, "LOG_START_ABOVE_ZERO";
    /// Retention at the source overtook the agent.
    SourceDataLost = 9, "SOURCE_DATA_LOST";
    /// A batch is larger than the largest frame.
    BatchTooLarge = 10, "BATCH_TOO_LARGE";
    /// The source's log ends below what the mirror already holds.
    UnexpectedTruncation = 11, "UNEXPECTED_TRUNCATION";
    /// Source and mirror hold different bytes at the same offset.
    Diverged = 12, "DIVERGED";
    /// Somebody else wrote into the mirror, or deleted its topic and made it again.
    ForeignWrite = 13, "FOREIGN_WRITE";
    /// The cloud cluster refuses a batch or a topic for good.
    CloudRefused = 14, "CLOUD_REFUSED";
    /// The source topic has fewer partitions than the mirror.
    SourcePartitionsDecreased = 15, "SOURCE_PARTITIONS_DECREASED";
    /// The source topic was deleted and created again.
    SourceTopicIdChanged = 16, "SOURCE_TOPIC_ID_CHANGED";
    /// The source cluster refuses the agent.
    SourceRefused = 17, "SOURCE_REFUSED";
    /// The agent's own `topics.allow` or `topics.deny` keeps the topic on site.
    DeniedBySite = 18, "DENIED_BY_SITE";
    /// More offsets without records than the mirror is to be filled up with.
    GapLimit = 19, "GAP_LIMIT";
}

/// Why a mirror is FAILED, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Kind of failure.
    pub code: FailureCode,
    /// Partition it was seen in, where it concerns one.
    pub partition: Option<Partition>,
    /// First offset it concerns.
    pub offset: Option<Offset>,
    /// Offset after the last it concerns, where the extent is known.
    pub end_offset: Option<Offset>,
    /// What was seen and what to do, for people.
    pub detail: String,
}

impl Failure {
    /// A failure of the whole topic.
    pub fn of_topic(code: FailureCode, detail: impl Into<String>) -> Self {
        Self { code, partition: None, offset: None, end_offset: None, detail: cut(detail.into()) }
    }

    /// A failure at an offset.
    pub fn at(code: FailureCode, partition: Partition, offset: Offset, detail: impl Into<String>) -> Self {
        Self { code, partition: Some(partition), offset: Some(offset), end_offset: None, detail: cut(detail.into()) }
    }

    /// Adds the offset after the last one concerned.
    #[must_use]
    pub fn until(mut self, end_offset: Offset) -> Self {
        self.end_offset = Some(end_offset);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.name())?;
        if let Some(partition) = self.partition {
            write!(f, " partition {partition}")?;
        }
        match (self.offset, self.end_offset) {
            (Some(offset), Some(end)) => write!(f, " offsets {offset} to {}", end - 1)?,
            (Some(offset), None) => write!(f, " offset {offset}")?,
            (None, _) => {}
        }
        write!(f, ": {}", self.detail)
    }
}

/// Cuts a text to [`MAX_TEXT`] bytes at a character border.
pub fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_stable() {
        for (at, code) in FailureCode::ALL.iter().enumerate() {
            assert_eq!(FailureCode::from_number(code.number()), *code);
            assert_eq!(usize::try_from(code.number()).expect("small"), at + 1);
        }
        assert_eq!(FailureCode::from_number(9_999), FailureCode::IllegalState);
    }

    #[test]
    fn says_where_and_how_far() {
        let failure = Failure::at(FailureCode::ForeignWrite, 3, 120, "3 records by another producer").until(123);
        assert_eq!(failure.to_string(), "FOREIGN_WRITE partition 3 offsets 120 to 122: 3 records by another producer");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(cut("\u{e9}".repeat(MAX_TEXT)).len(), MAX_TEXT);
    }
}
