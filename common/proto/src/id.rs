//! Names and numbers of the link, checked once where they enter.
//!
//! Must never: hold a value that its constructor would refuse.

use std::fmt;
use std::sync::Arc;

/// Monotone time since an arbitrary start, given by the caller. The pure core never reads a clock.
pub type Time = std::time::Duration;

/// Offset of a record in a partition's log.
pub type Offset = i64;

/// Number of a partition within its topic, from 0.
pub type Partition = i32;

/// Producer ids at or above this bit are never allotted by a broker: brokers hand out small integers.
const DERIVED_PRODUCER_ID: i64 = 1 << 62;
const LINK_ID_BITS: u32 = 40;
const LINK_ID_MASK: u64 = (1 << LINK_ID_BITS) - 1;

/// Producer id of the writers of the registry topic: link id 0, which no link has.
pub const REGISTRY_PRODUCER_ID: i64 = DERIVED_PRODUCER_ID;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A link's name is also a path segment of its certificate's URI.
    #[error("link name {0:?}: allowed are 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or digit")]
    Link(String),
    /// `org.apache.kafka.common.internals.Topic.validate`.
    #[error("topic name {0:?}: allowed are 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', and neither \".\" nor \"..\"")]
    Topic(String),
}

fn all_legal(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Name of a link: one site joined to one cloud cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(Arc<str>);

impl LinkName {
    /// Checks `name`: 1 to 63 characters that a URI path segment takes unescaped.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let first_ok = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if name.len() <= 63 && first_ok && all_legal(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Link(name.chars().take(80).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The producer id under which every gateway writes this link's mirrors: `1 << 62 | link id`,
    /// the link id being the 64-bit FNV-1a hash of the name folded to 40 bits. Two links that share an id by
    /// chance never share a partition, so nothing follows from it.
    pub fn producer_id(&self) -> i64 {
        let hash = self
            .0
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let folded = (hash >> LINK_ID_BITS) ^ (hash & LINK_ID_MASK);
        DERIVED_PRODUCER_ID | i64::try_from(folded.max(1)).expect("40 bits fit an i64")
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a Kafka topic. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks `name` by Kafka's rule (1 to 249 legal characters, not "." or "..").
    pub fn new(name: &str) -> Result<Self, NameError> {
        if (1..=249).contains(&name.len()) && name != "." && name != ".." && all_legal(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Topic(name.chars().take(80).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as shared text.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a mirror on its link, given by the gateway in the Welcome; valid for that session only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub u32);

impl fmt::Display for MirrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a session of a link: every session has a higher one than all before it (design: one writer per link).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_checked() {
        for good in ["a", "ship-17", "Plant_3.line-2", &"x".repeat(63)] {
            assert!(LinkName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "\u{e9}", &"x".repeat(64)] {
            assert!(LinkName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn topic_names_follow_kafka() {
        assert!(TopicName::new(&"t".repeat(249)).is_ok());
        for bad in ["", ".", "..", "a/b", &"t".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn producer_ids_are_stable_and_out_of_reach_of_brokers() {
        let id = LinkName::new("ship-17").expect("legal").producer_id();
        assert_eq!(id, LinkName::new("ship-17").expect("legal").producer_id());
        assert_eq!(id >> 40, 1 << 22);
        assert_ne!(id, REGISTRY_PRODUCER_ID);
        assert_ne!(id, LinkName::new("ship-18").expect("legal").producer_id());
    }
}
