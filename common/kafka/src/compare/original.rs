//! The source's side of a compare: its log, or a digest of that.

use std::ops::Range;

use tombolo_proto::batch::BatchError;

use super::CompareError;
use super::digest::DigestReader;
use super::entry::Entry;
use super::reader::Reader;

/// Where the source's batches come from.
pub(super) enum Original<'a> {
    Log(Reader<'a>),
    Digest { digest: &'a mut DigestReader, head: Option<Entry>, range: Range<i64>, ended: bool },
}

impl<'a> Original<'a> {
    pub(super) fn digest(digest: &'a mut DigestReader) -> Self {
        Self::Digest { digest, head: None, range: 0..0, ended: false }
    }

    pub(super) fn seek(&mut self, wanted: Range<i64>) {
        match self {
            Self::Log(reader) => reader.seek(wanted),
            Self::Digest { range, .. } => *range = wanted,
        }
    }

    pub(super) fn position(&self) -> i64 {
        match self {
            Self::Log(reader) => reader.position(),
            Self::Digest { range, .. } => range.start,
        }
    }

    pub(super) async fn peek(&mut self) -> Result<Option<Result<&Entry, BatchError>>, CompareError> {
        match self {
            Self::Log(reader) => Ok(reader.peek().await?),
            Self::Digest { digest, head, range, ended } => {
                // What was passed is dropped by its offset: a window may begin in a batch that the last one ended in.
                while !*ended && head.as_ref().is_none_or(|head| head.next_offset() <= range.start) {
                    *head = digest.next_batch()?;
                    *ended = head.is_none();
                }
                let inside = |head: &&Entry| head.base_offset < range.end && head.next_offset() > range.start;
                Ok(head.as_ref().filter(inside).map(Ok))
            }
        }
    }

    pub(super) fn pass(&mut self) {
        match self {
            Self::Log(reader) => reader.pass(),
            Self::Digest { head, range, .. } => {
                if let Some(head) = head {
                    range.start = range.start.max(head.next_offset());
                }
            }
        }
    }
}
