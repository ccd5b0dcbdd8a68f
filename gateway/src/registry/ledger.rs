//! What a mirror lacks, for ever: where it was made to start, and what was lost at the source. One record for each
//! partition in the registry topic.
//!
//! Must never: forget a loss; hold a start against a mirror topic that was made anew.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use tombolo_kafka::TopicId;
use tombolo_proto::failure::cut;
use tombolo_proto::id::{LinkName, Offset, Partition, TopicName};

use super::record::RecordError;

/// Version of [`LedgerRecord`] that this build writes.
const VERSION: u32 = 1;
const PREFIX: &str = "ledger/";
/// Entries of one partition. Each is a stretch that somebody must have a look at; a log that loses something so often is
/// not mirrored.
const MAX_ENTRIES: usize = 2_000;

/// The partition that a ledger is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LedgerKey {
    pub(crate) link: LinkName,
    /// Topic in the cloud.
    pub(crate) topic: TopicName,
    pub(crate) partition: Partition,
}

/// Why offsets of a mirror never held what the source had there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedgerKind {
    /// The mirror began there, because the source's log did.
    Start,
    /// The source deleted them before the agent had read them.
    Loss,
}

/// One stretch of offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LedgerEntry {
    pub(crate) kind: LedgerKind,
    pub(crate) from: Offset,
    /// Offset after the last.
    pub(crate) to: Offset,
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) reason: String,
    /// The mirror topic, where brokers tell ids: one that is made anew has lost nothing yet.
    pub(crate) topic_id: Option<TopicId>,
}

/// All entries of a partition, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    entries: Vec<LedgerEntry>,
}

/// A partition has as many entries as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger of the partition holds {MAX_ENTRIES} entries, which is the most")]
pub(crate) struct LedgerFull;

#[derive(Clone, PartialEq, Eq, Message)]
struct LedgerRecord {
    /// Version of the record. Field numbers are never used twice.
    #[prost(uint32, tag = "1")]
    version: u32,
    /// As in the key.
    #[prost(string, tag = "2")]
    link: String,
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(int32, tag = "4")]
    partition: i32,
    #[prost(message, repeated, tag = "5")]
    entries: Vec<EntryRecord>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct EntryRecord {
    /// 1 start, 2 loss.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(int64, tag = "2")]
    from: i64,
    #[prost(int64, tag = "3")]
    to: i64,
    #[prost(uint64, tag = "4")]
    at: u64,
    #[prost(string, tag = "5")]
    reason: String,
    /// Empty where it is not known.
    #[prost(bytes = "vec", tag = "6")]
    topic_id: Vec<u8>,
}

impl LedgerEntry {
    /// When it was made, as RFC 3339 has it.
    pub(crate) fn when(&self) -> String {
        // Beyond the year 9999 there is no such text.
        let seconds = self.at.min(253_402_300_799);
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
    }

    /// Offsets in it.
    pub(crate) fn offsets(&self) -> u64 {
        u64::try_from(self.to.saturating_sub(self.from)).unwrap_or(0)
    }
}

impl Ledger {
    pub(crate) fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    #[cfg(test)]
    pub(crate) fn of(entries: &[LedgerEntry]) -> Self {
        entries.iter().fold(Self::default(), |ledger, entry| ledger.with(entry).unwrap().unwrap_or(ledger))
    }

    /// What was lost at the source, in any of the partition's topics.
    pub(crate) fn losses(&self) -> impl Iterator<Item = &LedgerEntry> {
        self.entries.iter().filter(|entry| entry.kind == LedgerKind::Loss)
    }

    /// Where the mirror topic of this id is made to start.
    pub(crate) fn start(&self, topic_id: Option<TopicId>) -> Option<Offset> {
        let starts = self.entries.iter().filter(|entry| entry.kind == LedgerKind::Start);
        starts.filter(|entry| entry.topic_id == topic_id).map(|entry| entry.to).max()
    }

    /// Whether any topic of the partition's was made to start above 0.
    pub(crate) fn has_start(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == LedgerKind::Start)
    }

    /// Whether brokers told the topic's id when some entry was made.
    pub(crate) fn has_id(&self) -> bool {
        self.entries.iter().any(|entry| entry.topic_id.is_some())
    }

    /// The ledger with one more entry; `None` where it says as much already.
    pub(super) fn with(&self, entry: &LedgerEntry) -> Result<Option<Self>, LedgerFull> {
        let said = |known: &LedgerEntry| {
            known.kind == entry.kind
                && known.topic_id == entry.topic_id
                && known.from <= entry.from
                && known.to >= entry.to
        };
        if self.entries.iter().any(said) {
            return Ok(None);
        }
        let mut next = self.clone();
        let mut entry = LedgerEntry { reason: cut(entry.reason.clone()), ..entry.clone() };
        // A start that moved up is still one start: nothing but filler was below it. A loss that grew is one loss.
        next.entries.retain(|known| {
            let same = known.kind == entry.kind && known.topic_id == entry.topic_id;
            let joins = match entry.kind {
                LedgerKind::Start => same,
                LedgerKind::Loss => same && known.from < entry.to && entry.from < known.to,
            };
            if joins {
                entry.from = entry.from.min(known.from);
                entry.to = entry.to.max(known.to);
            }
            !joins
        });
        if next.entries.len() >= MAX_ENTRIES {
            return Err(LedgerFull);
        }
        next.entries.push(entry);
        Ok(Some(next))
    }

    pub(super) fn value(&self, key: &LedgerKey) -> Bytes {
        let entries = self.entries.iter().map(|entry| EntryRecord {
            kind: match entry.kind {
                LedgerKind::Start => 1,
                LedgerKind::Loss => 2,
            },
            from: entry.from,
            to: entry.to,
            at: entry.at,
            reason: entry.reason.clone(),
            topic_id: entry.topic_id.map(Vec::from).unwrap_or_default(),
        });
        let record = LedgerRecord {
            version: VERSION,
            link: key.link.as_str().to_owned(),
            topic: key.topic.as_str().to_owned(),
            partition: key.partition,
            entries: entries.collect(),
        };
        record.encode_to_vec().into()
    }
}

impl LedgerKey {
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from(format!("{PREFIX}{}/{}/{}", self.link, self.topic, self.partition))
    }

    fn read(key: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?.split('/');
        let (link, topic, partition) = (parts.next()?, parts.next()?, parts.next()?);
        let key = Self {
            link: LinkName::new(link).ok()?,
            topic: TopicName::new(topic).ok()?,
            partition: partition.parse().ok().filter(|&partition| partition >= 0)?,
        };
        parts.next().is_none().then_some(key)
    }
}

/// What a key and its value say: `None` for a record of another kind.
pub(super) fn read(key: &[u8], value: &Bytes) -> Option<Result<(LedgerKey, Ledger), RecordError>> {
    let key = LedgerKey::read(key)?;
    let read = || {
        let record = LedgerRecord::decode(value.clone())?;
        if record.link != key.link.as_str() || record.topic != key.topic.as_str() || record.partition != key.partition {
            return Err(RecordError::Key { found: format!("{}/{}/{}", record.link, record.topic, record.partition) });
        }
        // A kind that this build does not know is a newer gateway's.
        let entries = record.entries.into_iter().filter_map(|entry| {
            let kind = match entry.kind {
                1 => LedgerKind::Start,
                2 => LedgerKind::Loss,
                _ => return None,
            };
            let topic_id = TopicId::try_from(entry.topic_id).ok();
            let (from, to) = (entry.from, entry.to);
            (from >= 0 && to > from).then_some(LedgerEntry {
                kind,
                from,
                to,
                at: entry.at,
                reason: entry.reason,
                topic_id,
            })
        });
        Ok((key.clone(), Ledger { entries: entries.take(MAX_ENTRIES).collect() }))
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LedgerKey {
        LedgerKey { link: LinkName::new("ship-17").unwrap(), topic: TopicName::new("orders").unwrap(), partition: 3 }
    }

    fn entry(kind: LedgerKind, from: Offset, to: Offset, topic: u8) -> LedgerEntry {
        LedgerEntry { kind, from, to, at: 1_790_164_800, reason: "retention".to_owned(), topic_id: Some([topic; 16]) }
    }

    fn ledger(entries: &[LedgerEntry]) -> Ledger {
        Ledger::of(entries)
    }

    #[test]
    fn a_record_comes_back() {
        let held = ledger(&[
            entry(LedgerKind::Start, 0, 40, 1),
            LedgerEntry { topic_id: None, ..entry(LedgerKind::Loss, 60, 70, 0) },
        ]);
        assert_eq!(&key().bytes()[..], b"ledger/ship-17/orders/3");
        let (found, read) = read(&key().bytes(), &held.value(&key())).unwrap().unwrap();
        assert_eq!((found, read), (key(), held.clone()));
        assert_eq!(held.losses().map(LedgerEntry::offsets).collect::<Vec<_>>(), [10]);
        assert_eq!(held.entries()[0].when(), "2026-09-23T12:00:00Z");
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let held = ledger(&[LedgerEntry { at: 5, ..entry(LedgerKind::Loss, 1, 300, 7) }]);
        let mut golden = vec![0x08, 1, 0x12, 7];
        golden.extend_from_slice(b"ship-17");
        golden.extend_from_slice(&[0x1a, 6]);
        golden.extend_from_slice(b"orders");
        golden.extend_from_slice(&[0x20, 3, 0x2a, 38, 0x08, 2, 0x10, 1, 0x18, 0xac, 0x02, 0x20, 5, 0x2a, 9]);
        golden.extend_from_slice(b"retention");
        golden.extend_from_slice(&[0x32, 16]);
        golden.extend_from_slice(&[7; 16]);
        assert_eq!(held.value(&key()), golden);
    }

    #[test]
    fn a_start_is_that_of_one_topic_and_moves_up() {
        let first = ledger(&[entry(LedgerKind::Start, 0, 40, 1)]);
        assert_eq!((first.start(Some([1; 16])), first.start(Some([2; 16])), first.start(None)), (Some(40), None, None));
        assert_eq!(first.with(&entry(LedgerKind::Start, 20, 40, 1)), Ok(None), "it goes on half way");
        let moved = first.with(&entry(LedgerKind::Start, 0, 50, 1)).unwrap().unwrap();
        assert_eq!((moved.start(Some([1; 16])), moved.entries().len()), (Some(50), 1));
        let anew = moved.with(&entry(LedgerKind::Start, 0, 9, 2)).unwrap().unwrap();
        assert_eq!((anew.start(Some([1; 16])), anew.start(Some([2; 16]))), (Some(50), Some(9)));
        assert!(anew.has_start() && !Ledger::default().has_start());
    }

    #[test]
    fn losses_stay_and_are_told_once() {
        let loss = entry(LedgerKind::Loss, 10, 20, 1);
        let held = ledger(std::slice::from_ref(&loss));
        assert_eq!(held.with(&LedgerEntry { at: 9, ..loss }), Ok(None));
        let grown = held.with(&entry(LedgerKind::Loss, 10, 30, 1)).unwrap().unwrap();
        assert_eq!(grown.losses().map(|loss| (loss.from, loss.to)).collect::<Vec<_>>(), [(10, 30)]);
        let more = held.with(&entry(LedgerKind::Loss, 20, 25, 1)).unwrap().unwrap();
        assert_eq!(more.losses().count(), 2);
        let more = held.with(&entry(LedgerKind::Start, 0, 5, 2)).unwrap().unwrap();
        assert_eq!(more.losses().count(), 1);
        let full = (0..i64::try_from(MAX_ENTRIES).unwrap()).map(|at| entry(LedgerKind::Loss, at * 2, at * 2 + 1, 1));
        let full = ledger(&full.collect::<Vec<_>>());
        assert_eq!(full.with(&entry(LedgerKind::Loss, 9_001, 9_002, 1)), Err(LedgerFull));
        assert!(full.value(&key()).len() < 200_000, "{} bytes", full.value(&key()).len());
    }

    #[test]
    fn other_kinds_are_passed_over_and_bad_ones_named() {
        let value = Ledger::default().value(&key());
        for other in ["link/ship-17", "ledger/ship-17/orders", "ledger/ship-17/orders/-1", "ledger/a/b/1/2"] {
            assert!(read(other.as_bytes(), &value).is_none(), "{other}");
        }
        assert!(matches!(read(b"ledger/ship-17/orders/4", &value), Some(Err(RecordError::Key { .. }))));
        let torn = Bytes::from_static(b"\x12\x7f");
        assert!(matches!(read(&key().bytes(), &torn), Some(Err(RecordError::Malformed(_)))));
    }
}
