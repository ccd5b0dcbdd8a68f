//! The site's own word on what may leave it: `topics.allow` and `topics.deny`.
//!
//! Must never: let a topic pass that `deny` names, whatever the gateway asks for.

use tombolo_proto::id::TopicName;
use tombolo_service::settings::SettingsError;

/// What a pattern may look like.
const ALLOWED: &str = "a topic name, the beginning of one followed by *, or * for all";
/// Longest topic name, and so the longest pattern less its star.
const MAX_NAME: usize = 249;

/// A checked pair of pattern lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter {
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Name(String),
    Prefix(String),
}

impl TopicFilter {
    /// Checks both lists. Errors name the entry (`topics.deny[2]`).
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, SettingsError> {
        Ok(Self { allow: patterns("topics.allow", allow)?, deny: patterns("topics.deny", deny)? })
    }

    /// Whether the topic may leave the site: some pattern of `allow` matches and none of `deny`.
    pub fn admits(&self, topic: &TopicName) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(topic.as_str()));
        any(&self.allow) && !any(&self.deny)
    }
}

impl Pattern {
    fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => topic == name,
            Self::Prefix(prefix) => topic.starts_with(prefix.as_str()),
        }
    }
}

fn patterns(key: &str, texts: &[String]) -> Result<Vec<Pattern>, SettingsError> {
    texts.iter().enumerate().map(|(at, text)| pattern(&format!("{key}[{at}]"), text)).collect()
}

fn pattern(key: &str, text: &str) -> Result<Pattern, SettingsError> {
    let (name, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.bytes().all(legal) || name.len() > MAX_NAME || (name.is_empty() && !is_prefix) {
        return Err(SettingsError::new(key, format!("{text:?} is no pattern"), ALLOWED));
    }
    let name = name.to_owned();
    Ok(if is_prefix { Pattern::Prefix(name) } else { Pattern::Name(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(allow: &[&str], deny: &[&str]) -> Result<TopicFilter, SettingsError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        TopicFilter::new(&owned(allow), &owned(deny))
    }

    #[test]
    fn deny_wins_over_allow() {
        let table = [
            (&["*"][..], &[][..], "orders", true),
            (&["*"], &["orders"], "orders", false),
            (&["*"], &["orders"], "orders.eu", true),
            (&["*"], &["orders*"], "orders.eu", false),
            (&["orders"], &[], "orders.eu", false),
            (&["orders.*"], &[], "orders.eu", true),
            (&["orders.*"], &[], "orders", false),
            (&["a", "b"], &[], "b", true),
            (&["orders.eu"], &["*"], "orders.eu", false),
            (&[], &[], "orders", false),
        ];
        for (allow, deny, topic, admitted) in table {
            let filter = filter(allow, deny).unwrap();
            assert_eq!(filter.admits(&TopicName::new(topic).unwrap()), admitted, "{allow:?} {deny:?} {topic}");
        }
    }

    #[test]
    fn bad_patterns_are_named() {
        for bad in ["", "a*b", "*a", "**", "a b", "a/b", "^a.*"] {
            let error = filter(&["*"], &["fine", bad]).unwrap_err();
            assert_eq!(error.key(), Some("topics.deny[1]"), "{bad}");
        }
    }
}
