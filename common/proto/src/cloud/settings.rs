//! What a link mirrors, as the operator wants it: named topics, and names that become mirrors as they appear.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::id::TopicName;
use crate::limits::MAX_MIRRORS;
use crate::mirror::OnLoss;
use crate::pattern::TopicPattern;

/// Beginning of names that Kafka and its tools keep to themselves (`__consumer_offsets`).
const INTERNAL: &str = "__";

/// Default of [`MirrorSettings::max_gap`].
pub const DEFAULT_MAX_GAP: i64 = 10_000_000;

/// What becomes of records that the source deleted after they were mirrored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogStart {
    /// The mirror keeps them, for as long as its own retention does.
    #[default]
    Keep,
    /// The mirror deletes them too: its log starts where the source's does.
    Follow,
}

/// A mirror as the operator wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSettings {
    /// Topic at the source.
    pub source: TopicName,
    /// Topic in the cloud.
    pub topic: TopicName,
    /// Nothing is fetched, sent or appended.
    pub paused: bool,
    /// Offsets without records that one session may skip, each at the cost of a marker of about 78 bytes.
    pub max_gap: i64,
    /// What becomes of offsets that are lost at the source.
    pub on_loss: OnLoss,
    /// What becomes of records that the source deleted later.
    pub log_start: LogStart,
}

impl MirrorSettings {
    /// A mirror with every setting at its default.
    pub fn new(source: TopicName, topic: TopicName) -> Self {
        let (max_gap, on_loss, log_start) = (DEFAULT_MAX_GAP, OnLoss::default(), LogStart::default());
        Self { source, topic, paused: false, max_gap, on_loss, log_start }
    }
}

/// A link as the operator wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSettings {
    /// Mirrors by name.
    pub mirrors: Vec<MirrorSettings>,
    /// Source topics that become mirrors of the same name as they appear. A topic that a mirror names is that mirror's.
    pub filters: Vec<TopicPattern>,
    /// Topics in the cloud that no filter makes a mirror of: the registry, and what mirrors of any link are named to write.
    pub reserved: Arc<BTreeSet<TopicName>>,
    /// [`MirrorSettings::max_gap`] of mirrors that a filter makes.
    pub max_gap: i64,
    /// [`MirrorSettings::on_loss`] of mirrors that a filter makes.
    pub on_loss: OnLoss,
    /// [`MirrorSettings::log_start`] of mirrors that a filter makes.
    pub log_start: LogStart,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            filters: Vec::new(),
            reserved: Arc::default(),
            max_gap: DEFAULT_MAX_GAP,
            on_loss: OnLoss::default(),
            log_start: LogStart::default(),
        }
    }
}

/// Why a source topic that a filter matches becomes no mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOver {
    /// Kafka's own.
    Internal,
    /// The cloud's topic of that name is the registry, or another mirror writes it.
    Reserved,
    /// The link has as many mirrors as it may.
    Limit,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => f.write_str("its name begins with __: such topics are mirrored only by name"),
            Self::Reserved => f.write_str(
                "the cloud's topic of that name is the registry or another mirror's: mirror it by name, with mirror_topic",
            ),
            Self::Limit => write!(f, "the link has {MAX_MIRRORS} mirrors, which is the most"),
        }
    }
}

impl LinkSettings {
    /// Whether a filter makes a source topic of this name a mirror: `None` where no filter matches.
    pub fn filtered(&self, topic: &TopicName) -> Option<Result<(), PassedOver>> {
        if !self.filters.iter().any(|filter| filter.matches(topic)) {
            return None;
        }
        Some(if topic.as_str().starts_with(INTERNAL) {
            Err(PassedOver::Internal)
        } else if self.reserved.contains(topic) {
            Err(PassedOver::Reserved)
        } else {
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_neither_internal_nor_reserved_topics() {
        let name = |text: &str| TopicName::new(text).expect("legal");
        let link = LinkSettings {
            mirrors: Vec::new(),
            filters: vec![TopicPattern::new("sensor.*").expect("valid"), TopicPattern::new("_*").expect("valid")],
            reserved: Arc::new(BTreeSet::from([name("_tombolo"), name("sensor.9")])),
            ..LinkSettings::default()
        };
        let table = [
            ("orders", None),
            ("sensor.1", Some(Ok(()))),
            ("sensor.9", Some(Err(PassedOver::Reserved))),
            ("_tombolo", Some(Err(PassedOver::Reserved))),
            ("__consumer_offsets", Some(Err(PassedOver::Internal))),
        ];
        for (topic, expected) in table {
            assert_eq!(link.filtered(&name(topic)), expected, "{topic}");
        }
    }
}
