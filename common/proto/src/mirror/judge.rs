//! Whether what the cluster holds can be what this session put there.

use super::{Mirror, Place, Recovery};
use crate::batch::Batch;
use crate::failure::{Failure, FailureCode};
use crate::frame::Entry;
use crate::id::Offset;

impl Mirror {
    /// Nobody else wrote, and where a run goes on, the log ends between two entries or in a gap, and what it holds beyond
    /// what was confirmed is what was sent.
    pub(super) fn judge(&self, recovery: &Recovery) -> Result<(), Failure> {
        self.judge_writer(recovery)?;
        let log_end = recovery.log_end;
        if self.place == Place::Nowhere {
            return self.strays.ceiling.map_or(Ok(()), |ceiling| self.judge_extent(recovery, ceiling));
        }
        if log_end <= self.progress.confirmed {
            return Ok(());
        }
        let received = self.progress.received;
        if log_end > received {
            let detail = format!("the mirror's log ends at {log_end}, but only offsets below {received} were sent");
            return Err(Failure::at(FailureCode::ForeignWrite, self.partition, received, detail).until(log_end));
        }
        let on_border = match self.held.containing(log_end) {
            Some(Entry::Batch(batch)) => batch.base_offset() == log_end,
            Some(Entry::Gap { .. }) => true,
            None => log_end == received,
        };
        if !on_border {
            let detail = format!("the mirror's log ends at {log_end}, inside a batch that was sent");
            return Err(Failure::at(FailureCode::Diverged, self.partition, log_end, detail));
        }
        recovery.tail.iter().try_for_each(|batch| self.judge_batch(batch))?;
        self.judge_extent(recovery, self.sent_up_to())
    }

    /// Where markers may have come late, a border that the log ends at is no evidence for what lies before it. Batches
    /// cannot come out of order: those of a session before may be there before they are sent again.
    fn judge_extent(&self, recovery: &Recovery, sent: Offset) -> Result<(), Failure> {
        let log_end = recovery.log_end;
        let seen = recovery.tail.first().is_some_and(|batch| batch.base_offset() <= sent);
        if self.strays.late == 0 || log_end <= sent || seen {
            return Ok(());
        }
        let detail = format!(
            "the mirror's log ends at {log_end}, but nothing was sent for offsets from {sent} on: a marker came twice, or \
             somebody else wrote into the mirror. Delete the mirror topic and let it be mirrored anew"
        );
        Err(Failure::at(FailureCode::ForeignWrite, self.partition, sent, detail).until(log_end))
    }

    /// Offset up to which something of this run may have been appended: what the broker was handed, and late markers in
    /// the gap that follows.
    pub(super) fn sent_up_to(&self) -> Offset {
        match self.held.containing(self.handed) {
            Some(gap @ Entry::Gap { .. }) => gap.next_offset(),
            Some(Entry::Batch(_)) | None => self.handed,
        }
    }

    fn judge_writer(&self, recovery: &Recovery) -> Result<(), Failure> {
        let foreign = |batch: &&Batch| batch.producer_id() != self.producer_id;
        let Some(first) = recovery.tail.iter().find(foreign) else {
            return Ok(());
        };
        let last = recovery.tail.iter().rfind(foreign).unwrap_or(first);
        let detail = format!(
            "producer id {} wrote into the mirror, which only the link may (producer id {}); the mirror's log ends at \
             {}. Delete the mirror topic, take WRITE from everybody else, and let it be mirrored anew",
            first.producer_id(),
            self.producer_id,
            recovery.log_end,
        );
        Err(Failure::at(FailureCode::ForeignWrite, self.partition, first.base_offset(), detail)
            .until(last.next_offset()))
    }

    /// A batch beyond what was confirmed is the one that was sent, and a marker lies in a gap: one that came late in the
    /// place of a batch has shifted what follows.
    fn judge_batch(&self, batch: &Batch) -> Result<(), Failure> {
        let offset = batch.base_offset();
        if offset < self.progress.confirmed {
            return Ok(());
        }
        let (same, what) = match self.held.containing(offset) {
            Some(gap @ Entry::Gap { .. }) => {
                (batch.is_control() && batch.next_offset() <= gap.next_offset(), "offsets without records")
            }
            Some(Entry::Batch(sent)) => {
                let same = !batch.is_control()
                    && (batch.base_offset(), batch.next_offset()) == (sent.base_offset(), sent.next_offset())
                    && (batch.canonical_crc() == sent.canonical_crc() || batch.may_be_cleaned());
                (same, "a batch")
            }
            None => (false, "nothing"),
        };
        if same {
            return Ok(());
        }
        let found = if batch.is_control() { "a marker" } else { "another batch" };
        let detail = format!(
            "the mirror holds {found} where {what} was sent. Delete the mirror topic and let it be mirrored anew"
        );
        Err(Failure::at(FailureCode::Diverged, self.partition, offset, detail).until(batch.next_offset()))
    }
}
