//! What the registry holds: key = object, value = versioned protobuf record.

use bytes::Bytes;
use prost::Message;
use tombolo_proto::id::{LinkName, Term};

/// Version of [`TermRecord`] that this build writes. Field numbers are never used twice, so that older gateways read
/// what they know of a newer record.
const VERSION: u32 = 1;
const LINK_PREFIX: &str = "link/";

/// Who holds a link.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct TermRecord {
    /// Version of the record.
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    /// Name of the link, as in the key.
    #[prost(string, tag = "2")]
    pub(super) link: String,
    /// The term.
    #[prost(uint64, tag = "3")]
    pub(super) term: u64,
    /// The gateway process that holds it: 16 random bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) instance: Vec<u8>,
    /// Its release, for people.
    #[prost(string, tag = "5")]
    pub(super) software: String,
    /// Its lease in milliseconds: a successor waits for the longer of both.
    #[prost(uint64, tag = "6")]
    pub(super) lease_ms: u64,
    /// When the term was taken, in seconds since 1970.
    #[prost(uint64, tag = "7")]
    pub(super) taken_at: u64,
    /// The agent's process that is served; none where it never told.
    #[prost(message, optional, tag = "8")]
    pub(super) incarnation: Option<IncarnationRecord>,
    /// Processes that were served before, the last one first.
    #[prost(message, repeated, tag = "9")]
    pub(super) replaced: Vec<IncarnationRecord>,
}

/// A process of the agent's.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct IncarnationRecord {
    /// Drawn by the agent, not 0.
    #[prost(fixed64, tag = "1")]
    pub(super) incarnation: u64,
    /// When it was first seen, in seconds since 1970.
    #[prost(uint64, tag = "2")]
    pub(super) since: u64,
    /// IP address it was last seen at.
    #[prost(string, tag = "3")]
    pub(super) address: String,
    /// When another took its place, in seconds since 1970; 0 while none has.
    #[prost(uint64, tag = "4")]
    pub(super) replaced_at: u64,
    /// Where the other came from.
    #[prost(string, tag = "5")]
    pub(super) replaced_from: String,
}

/// Why a record says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("its value is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("it is about link {found:?}")]
    Key { found: String },
    #[error("its term is 0")]
    Term,
}

impl TermRecord {
    pub(super) fn new(link: &LinkName, term: Term, instance: u128, lease_ms: u64) -> Self {
        Self {
            version: VERSION,
            link: link.as_str().to_owned(),
            term: term.0,
            instance: instance.to_be_bytes().to_vec(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            lease_ms,
            taken_at: 0,
            incarnation: None,
            replaced: Vec::new(),
        }
    }

    pub(super) fn is_of(&self, instance: u128) -> bool {
        self.instance == instance.to_be_bytes()
    }

    pub(super) fn key(link: &LinkName) -> Bytes {
        Bytes::from(format!("{LINK_PREFIX}{link}"))
    }

    pub(super) fn value(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// What a key and its value say: `None` for a record of another kind, which a newer gateway may have written.
pub(super) fn read(key: &[u8], value: &Bytes) -> Option<Result<(LinkName, TermRecord), RecordError>> {
    let name = std::str::from_utf8(key).ok()?.strip_prefix(LINK_PREFIX)?;
    let link = LinkName::new(name).ok()?;
    let read = || {
        let record = TermRecord::decode(value.clone())?;
        if record.link != link.as_str() {
            return Err(RecordError::Key { found: record.link });
        }
        if record.term == 0 {
            return Err(RecordError::Term);
        }
        Ok((link.clone(), record))
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> LinkName {
        LinkName::new("ship-17").unwrap()
    }

    #[test]
    fn a_record_comes_back() {
        let record = TermRecord::new(&link(), Term(7), 5, 3_000);
        let (found, read) = read(&TermRecord::key(&link()), &record.value()).unwrap().unwrap();
        assert_eq!((found, &read), (link(), &record));
        assert!(read.is_of(5) && !read.is_of(6));
        assert_eq!((read.term, read.lease_ms), (7, 3_000));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let mut record = TermRecord::new(&link(), Term(300), 1, 3_000);
        record.software = "x".to_owned();
        let mut golden = vec![0x08, 0x01, 0x12, 0x07];
        golden.extend_from_slice(b"ship-17");
        golden.extend_from_slice(&[0x18, 0xac, 0x02, 0x22, 0x10]);
        golden.extend_from_slice(&1_u128.to_be_bytes());
        golden.extend_from_slice(&[0x2a, 0x01, b'x', 0x30, 0xb8, 0x17]);
        assert_eq!(record.value(), golden, "as it was before incarnations");
        record.taken_at = 5;
        record.incarnation = Some(IncarnationRecord {
            incarnation: 1,
            since: 2,
            address: "a".to_owned(),
            ..IncarnationRecord::default()
        });
        record.replaced =
            vec![IncarnationRecord { replaced_at: 3, replaced_from: "b".to_owned(), ..IncarnationRecord::default() }];
        golden.extend_from_slice(&[0x38, 0x05]);
        golden.extend_from_slice(&[0x42, 14, 0x09, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 2, 0x1a, 1, b'a']);
        golden.extend_from_slice(&[0x4a, 5, 0x20, 3, 0x2a, 1, b'b']);
        assert_eq!(record.value(), golden);
    }

    #[test]
    fn other_kinds_are_passed_over_and_bad_ones_named() {
        let record = TermRecord::new(&link(), Term(1), 5, 1).value();
        assert_eq!(read(b"mirror/ship-17", &record), None);
        assert_eq!(read(b"\xff", &record), None);
        assert!(matches!(read(b"link/other", &record), Some(Err(RecordError::Key { .. }))));
        let empty = read(b"link/ship-17", &Bytes::new());
        assert!(matches!(empty, Some(Err(RecordError::Key { .. }))));
        let torn = read(b"link/ship-17", &Bytes::from_static(b"\x12\x7f"));
        assert!(matches!(torn, Some(Err(RecordError::Malformed(_)))));
    }
}
