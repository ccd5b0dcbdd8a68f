//! Checksums of single records, for logs whose batches are not cut alike.

use std::hash::{DefaultHasher, Hasher};

use tombolo_proto::batch::{Batch, HEADER_BYTES};

use super::ReencodeError;
use super::codec::{Section, read_varint};
use super::reencode::Source;

/// What a consumer sees of a record, but for its offset, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSum {
    /// Offset.
    pub offset: i64,
    /// CRC-32C of timestamp, key, value and headers.
    pub crc: u32,
    /// A hash of the key: equal keys have equal ones. `None` for a null key.
    pub key: Option<u64>,
    /// Whether the value is null: what deletes a key from a compacted topic.
    pub tombstone: bool,
}

/// The records of a batch, of any codec. Whether its times are of creation or of append makes no difference. `limit` is
/// the largest size of the decompressed records, in bytes; none for control batches.
pub fn record_sums(batch: &Batch, limit: usize) -> Result<Vec<RecordSum>, ReencodeError> {
    let (offset, codec) = (batch.base_offset(), batch.codec());
    if !batch.crc_is_valid() {
        return Err(ReencodeError::Crc { offset });
    }
    if batch.is_control() || batch.record_count() == 0 {
        return Ok(Vec::new());
    }
    let section = Section::new(codec, batch.bytes().slice(HEADER_BYTES..), limit)
        .map_err(|source| ReencodeError::Unpack { offset, codec, source })?
        .ok_or(ReencodeError::Codec { offset, codec })?;
    let mut source = Source::new(batch, section, limit);
    let mut sums = Vec::new();
    while let Some(record) = source.next(batch)? {
        let crc = crc32c::crc32c(&record.timestamp.to_be_bytes());
        let crc = crc32c::crc32c_append(crc, record.tail);
        let malformed = ReencodeError::Malformed { offset: record.offset, reason: "a key is longer than its record" };
        let (key, tombstone) = key(record.tail).ok_or(malformed)?;
        sums.push(RecordSum { offset: record.offset, crc, key, tombstone });
    }
    Ok(sums)
}

/// The key's hash, and whether the value is null.
fn key(mut tail: &[u8]) -> Option<(Option<u64>, bool)> {
    let key = match usize::try_from(read_varint(&mut tail).ok()?) {
        Err(_) => None,
        Ok(size) => {
            let (key, rest) = tail.split_at_checked(size)?;
            tail = rest;
            // The same in each process: it begins with fixed keys.
            let mut hasher = DefaultHasher::new();
            hasher.write(key);
            Some(hasher.finish())
        }
    };
    Some((key, read_varint(&mut tail).ok()? < 0))
}

#[cfg(test)]
mod tests {
    use super::super::{Piece, Unfit};
    use super::*;
    use crate::records::{Record, Writer, encode_batch};

    const LIMIT: usize = 1 << 20;
    const WRITER: Writer = Writer { producer_id: 1 << 62, epoch: 0, sequence: 41 };

    fn batch(values: &[&'static str]) -> Batch {
        let record = |value: &&'static str| Record {
            offset: 0,
            timestamp: 1_700_000_000_000,
            key: Some("key".into()),
            value: Some((*value).into()),
            headers: Vec::new(),
        };
        let records: Vec<_> = values.iter().map(record).collect();
        Batch::parse(encode_batch(&records, WRITER).unwrap()).unwrap()
    }

    #[test]
    fn records_are_told_apart_and_known_again_in_other_batches() {
        let whole = record_sums(&batch(&["one", "two", "three"]), LIMIT).unwrap();
        assert_eq!(whole.iter().map(|sum| sum.offset).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(whole[0].crc != whole[1].crc && whole[1].crc != whole[2].crc);
        assert!(whole.iter().all(|sum| sum.key.is_some() && sum.key == whole[0].key && !sum.tombstone));
        let cut = Unfit::begun(batch(&["one", "two", "three"]), 1).unwrap();
        let pieces: Vec<_> = cut.runs(1, LIMIT).unwrap().map(Result::unwrap).collect();
        let [Piece::Run(run)] = &pieces[..] else { panic!("{pieces:?}") };
        assert_eq!(record_sums(run, LIMIT).unwrap(), whole[1..]);
    }

    #[test]
    fn what_is_torn_or_too_long_has_none() {
        let good = batch(&["one"]);
        let mut torn = good.bytes().to_vec();
        *torn.last_mut().unwrap() ^= 1;
        let torn = record_sums(&Batch::parse(torn.into()).unwrap(), LIMIT);
        assert!(matches!(torn, Err(ReencodeError::Crc { offset: 0 })));
        assert!(matches!(record_sums(&good, 4), Err(ReencodeError::TooLong { limit: 4, .. })));
    }
}
