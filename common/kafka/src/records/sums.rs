//! Checksums of single records, for logs whose batches are not cut alike.

use std::hash::{DefaultHasher, Hasher};

use tombolo_proto::batch::Batch;

use super::ReencodeError;
use super::codec::read_varint;
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

/// Iterator over the records of a batch, of any codec. Whether its times are of creation or of append makes no difference.
/// After an error it ends.
/// Memory: the record at hand, so that a batch may unpack to as much as is mirrored of one.
pub struct RecordSums {
    batch: Batch,
    /// `None` at the end.
    source: Option<Source>,
}

impl RecordSums {
    /// None for control batches. `limit` is as for [`Unfit::runs`](super::Unfit::runs): a batch that is made anew can be
    /// compared.
    pub fn new(batch: &Batch, limit: usize) -> Result<Self, ReencodeError> {
        if !batch.crc_is_valid() {
            return Err(ReencodeError::Crc { offset: batch.base_offset() });
        }
        let source = if batch.is_control() { None } else { Some(Source::new(batch, limit)?) };
        Ok(Self { batch: batch.clone(), source })
    }

    fn read(&mut self) -> Result<Option<RecordSum>, ReencodeError> {
        let Some(source) = &mut self.source else { return Ok(None) };
        let Some(record) = source.next(&self.batch)? else { return Ok(None) };
        let crc = crc32c::crc32c(&record.timestamp.to_be_bytes());
        let crc = crc32c::crc32c_append(crc, record.tail);
        let malformed = ReencodeError::Malformed { offset: record.offset, reason: "a key is longer than its record" };
        let (key, tombstone) = key(record.tail).ok_or(malformed)?;
        Ok(Some(RecordSum { offset: record.offset, crc, key, tombstone }))
    }
}

impl Iterator for RecordSums {
    type Item = Result<RecordSum, ReencodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if !matches!(read, Some(Ok(_))) {
            self.source = None;
        }
        read
    }
}

impl std::fmt::Debug for RecordSums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordSums").field("batch", &self.batch).finish_non_exhaustive()
    }
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
    use std::io::Write as _;

    use tombolo_proto::batch::{Codec, HEADER_BYTES};

    use super::super::{Piece, Unfit};
    use super::*;
    use crate::records::codec::{Packer, put_varint};
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

    fn record_sums(batch: &Batch, limit: usize) -> Result<Vec<RecordSum>, ReencodeError> {
        RecordSums::new(batch, limit)?.collect()
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
    /// A thinned batch of zstd, whose records have a key and a value of so many bytes.
    fn thinned(records: i32, value: usize) -> Batch {
        let mut packer = Packer::new(Codec::Zstd, vec![0; HEADER_BYTES]).unwrap().unwrap();
        for delta in 0..records {
            let mut record = vec![0, 0];
            put_varint(&mut record, i64::from(delta));
            put_varint(&mut record, 1);
            record.push(b'k');
            put_varint(&mut record, i64::try_from(value).unwrap());
            record.resize(record.len() + value, 7);
            record.push(0);
            let mut length = Vec::new();
            put_varint(&mut length, i64::try_from(record.len()).unwrap());
            packer.write_all(&[length, record].concat()).unwrap();
        }
        let mut bytes = packer.finish().unwrap();
        let length = i32::try_from(bytes.len() - 12).unwrap();
        // Zstd, and an offset more than there are records.
        let fields = [(8, length), (23, records), (57, records)];
        for (at, field) in fields {
            bytes[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
        bytes[16] = 2;
        bytes[22] = 4;
        let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
        bytes[17..21].copy_from_slice(&crc);
        Batch::parse(bytes.into()).unwrap()
    }

    #[test]
    fn what_is_made_anew_can_be_compared_however_much_it_unpacks_to() {
        // Within the limit of a record, beyond it all together.
        let batch = thinned(10, LIMIT / 2);
        let pieces: Vec<_> = Unfit::new(batch.clone()).unwrap().runs(0, LIMIT).unwrap().map(Result::unwrap).collect();
        let [Piece::Run(run), Piece::Gap { first: 10, next: 11 }] = &pieces[..] else { panic!("{pieces:?}") };
        let sums = record_sums(&batch, LIMIT).unwrap();
        assert_eq!((sums.len(), &record_sums(run, LIMIT).unwrap()), (10, &sums));
        // And what is not made anew can not.
        let bomb = thinned(40, LIMIT / 2);
        let mirrored = Unfit::new(bomb.clone()).unwrap().runs(0, LIMIT).unwrap().find_map(Result::err);
        assert!(matches!(mirrored, Some(ReencodeError::TooLong { .. })), "{mirrored:?}");
        let mut compared = RecordSums::new(&bomb, LIMIT).unwrap();
        assert!(matches!(compared.find_map(Result::err), Some(ReencodeError::TooLong { .. })));
        assert!(compared.next().is_none());
    }
}
