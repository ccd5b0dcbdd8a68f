//! Under which producer ids a link's empty transactions were written: what carries one of them in a mirror is the link's
//! own. A coordinator allots them, so they cannot be told otherwise.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use tombolo_proto::id::LinkName;

use super::record::RecordError;

/// Version of [`SkipperRecord`] that this build writes.
const VERSION: u32 = 1;
const PREFIX: &str = "skips/";
/// A link has one for about 30 000 starts of its gateways.
const MAX_IDS: usize = 10_000;

#[derive(Clone, PartialEq, Eq, Message)]
struct SkipperRecord {
    /// Version of the record. Field numbers are never used twice.
    #[prost(uint32, tag = "1")]
    version: u32,
    /// As in the key.
    #[prost(string, tag = "2")]
    link: String,
    #[prost(int64, repeated, tag = "3")]
    producer_ids: Vec<i64>,
}

pub(super) fn key(link: &LinkName) -> Bytes {
    Bytes::from(format!("{PREFIX}{link}"))
}

pub(super) fn value(link: &LinkName, ids: &BTreeSet<i64>) -> Bytes {
    let producer_ids = ids.iter().copied().collect();
    SkipperRecord { version: VERSION, link: link.as_str().to_owned(), producer_ids }.encode_to_vec().into()
}

/// What a key and its value say: `None` for a record of another kind.
pub(super) fn read(key: &[u8], value: &Bytes) -> Option<Result<(LinkName, BTreeSet<i64>), RecordError>> {
    let link = LinkName::new(std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?).ok()?;
    let read = || {
        let record = SkipperRecord::decode(value.clone())?;
        if record.link != link.as_str() {
            return Err(RecordError::Key { found: record.link });
        }
        Ok((link.clone(), record.producer_ids.into_iter().take(MAX_IDS).collect()))
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_others_are_passed_over() {
        let link = LinkName::new("ship-17").unwrap();
        let ids = BTreeSet::from([4, 2_000]);
        let golden = [&[0x08, 1, 0x12, 7][..], b"ship-17", &[0x1a, 3, 4, 0xd0, 0x0f]].concat();
        assert_eq!(value(&link, &ids), golden);
        assert_eq!(read(b"skips/ship-17", &value(&link, &ids)), Some(Ok((link.clone(), ids.clone()))));
        assert_eq!(read(b"link/ship-17", &value(&link, &ids)), None);
        assert!(matches!(read(b"skips/other", &value(&link, &ids)), Some(Err(RecordError::Key { .. }))));
    }
}
