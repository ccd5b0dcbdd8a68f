//! Patterns of topic names: what a site lets out, and what becomes a mirror as it appears.

use std::fmt;

use crate::id::TopicName;

/// What a pattern may look like, for error messages.
pub const ALLOWED: &str = "a topic name, the beginning of one followed by *, or * for all";
/// Longest topic name, and so the longest pattern less its star.
const MAX_NAME: usize = 249;

/// A topic's name, or the beginning of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicPattern {
    /// This topic.
    Name(String),
    /// Every topic whose name begins so; all topics where it is empty.
    Prefix(String),
}

/// The text is no pattern; see [`ALLOWED`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no pattern")]
pub struct PatternError {
    /// The text.
    pub text: String,
}

impl TopicPattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !name.bytes().all(legal) || name.len() > MAX_NAME || (name.is_empty() && !is_prefix) {
            return Err(PatternError { text: text.to_owned() });
        }
        let name = name.to_owned();
        Ok(if is_prefix { Self::Prefix(name) } else { Self::Name(name) })
    }

    /// Whether the topic is meant.
    pub fn matches(&self, topic: &TopicName) -> bool {
        match self {
            Self::Name(name) => topic.as_str() == name,
            Self::Prefix(prefix) => topic.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_beginnings_and_print_as_they_are_read() {
        let table = [
            ("orders", "orders", true),
            ("orders", "orders.eu", false),
            ("orders.*", "orders.eu", true),
            ("orders.*", "orders", false),
            ("*", "orders", true),
        ];
        for (text, topic, expected) in table {
            let pattern = TopicPattern::new(text).expect("valid");
            assert_eq!(pattern.matches(&TopicName::new(topic).expect("valid")), expected, "{text} {topic}");
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "a*b", "*a", "**", "a b", "a/b", "^a.*"] {
            assert_eq!(TopicPattern::new(bad), Err(PatternError { text: bad.to_owned() }));
        }
    }
}
