//! What a partition's owner is asked to do, and what it answers.

use bytes::Bytes;

use crate::batch::Batch;
use crate::failure::Failure;
use crate::id::Offset;
use crate::wire::TailBatch;

/// What the cluster holds, read when nothing of this partition is in flight: log end equal to high watermark, taken
/// before and after the producer state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The log's first offset.
    pub log_start: Offset,
    /// The log's end.
    pub log_end: Offset,
    /// Where the mirror was told to start, by the registry: the log below it is filler, or was.
    pub starting: Option<Offset>,
    /// Last sequence the broker remembers for the link's producer id: `None` where it remembers none, -1 where only a
    /// marker made the entry.
    pub last_sequence: Option<i32>,
    /// The last batches, control batches too, in offset order, joined, up to `log_end`; may be empty, and more or fewer
    /// than a tail takes. Markers tell little: better so many that a batch with records lies before them.
    pub tail: Vec<Batch>,
}

/// What became of a Produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Success with this base offset; a duplicate answers with the old one. With acks=all the high watermark has
    /// passed the batch.
    Appended {
        /// Base offset of the answer.
        base_offset: Offset,
    },
    /// It may or may not have been appended, or could not be now: read the log end, then go on.
    Doubt {
        /// What happened, for people.
        reason: String,
    },
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`: not appended; the log end is not where we thought.
    Sequence,
    /// Refused for good: not appended, and asking again would change nothing.
    Refused {
        /// The broker's error, for people.
        reason: String,
    },
}

/// What became of markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipOutcome {
    /// The broker answered, so none of them is still to come. An answer may hide that some were not appended: what
    /// counts is the log's end.
    Appended {
        /// The log's end, read after the answer, which the high watermark has reached. For a single marker that was
        /// answered without error, the offset after it.
        log_end: Offset,
    },
    /// Some or all may have been appended, or may be yet: wait, read the log end, then go on.
    Doubt {
        /// What happened, for people.
        reason: String,
    },
    /// Refused for good: none was appended, and asking again would change nothing.
    Refused {
        /// The broker's error, for people.
        reason: String,
    },
}

/// What the owner is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorOutput {
    /// Read log end, producer state and tail, and answer with [`Mirror::recovered`](super::Mirror::recovered) or
    /// [`Mirror::recovery_failed`](super::Mirror::recovery_failed).
    Recover {
        /// To be given back with the answer.
        attempt: u32,
    },
    /// Tell the agent where the partition goes on.
    Position {
        /// The new run.
        run: u32,
        /// The log end.
        next_offset: Offset,
        /// End of the mirror.
        tail: Vec<TailBatch>,
        /// The cloud lost what it had confirmed or accepted before.
        rewind: bool,
    },
    /// Send a batch to the partition's leader, acks=all, and answer with [`Mirror::produced`](super::Mirror::produced).
    Produce {
        /// To be given back with the answer.
        ticket: u64,
        /// Offset at which it must end up.
        offset: Offset,
        /// The stamped batch.
        batch: Bytes,
    },
    /// Append markers, which hold no record, and answer with [`Mirror::skipped`](super::Mirror::skipped), always.
    Skip {
        /// To be given back with the answer.
        ticket: u64,
        /// Offset at which the first must end up.
        offset: Offset,
        /// Number of markers, 1 to [`MAX_MARKERS`](crate::limits::MAX_MARKERS).
        count: i64,
    },
    /// Bring the log, which holds nothing, to end at `to`, and answer with
    /// [`Mirror::fast_forwarded`](super::Mirror::fast_forwarded), always.
    FastForward {
        /// To be given back with the answer.
        ticket: u64,
        /// Where the log ends.
        from: Offset,
        /// Where it is to end.
        to: Offset,
    },
    /// Write a range that is lost at the source to the registry, and answer with
    /// [`Mirror::loss_recorded`](super::Mirror::loss_recorded), always.
    RecordLoss {
        /// To be given back with the answer.
        ticket: u64,
        /// First lost offset.
        from: Offset,
        /// Offset after the last.
        to: Offset,
    },
    /// The mirror cannot go on.
    Failed(Failure),
}
