//! The site's own word on what may leave it: `topics.allow` and `topics.deny`.
//!
//! Must never: let a topic pass that `deny` names, whatever the gateway asks for.

use tombolo_proto::id::TopicName;
use tombolo_proto::pattern::{ALLOWED, TopicPattern};
use tombolo_service::settings::SettingsError;

/// A checked pair of pattern lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter {
    allow: Vec<TopicPattern>,
    deny: Vec<TopicPattern>,
}

impl TopicFilter {
    /// Checks both lists. Errors name the entry (`topics.deny[2]`).
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, SettingsError> {
        Ok(Self { allow: patterns("topics.allow", allow)?, deny: patterns("topics.deny", deny)? })
    }

    /// Whether the topic may leave the site: some pattern of `allow` matches and none of `deny`.
    pub fn admits(&self, topic: &TopicName) -> bool {
        let any = |patterns: &[TopicPattern]| patterns.iter().any(|pattern| pattern.matches(topic));
        any(&self.allow) && !any(&self.deny)
    }
}

fn patterns(key: &str, texts: &[String]) -> Result<Vec<TopicPattern>, SettingsError> {
    texts.iter().enumerate().map(|(at, text)| pattern(&format!("{key}[{at}]"), text)).collect()
}

fn pattern(key: &str, text: &str) -> Result<TopicPattern, SettingsError> {
    TopicPattern::new(text).map_err(|error| SettingsError::new(key, error.to_string(), ALLOWED))
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
