//! The one error of settings: which file, which key, what is wrong, what is allowed.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why settings are refused. Its text is meant for the person who wrote the file.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file could not be read at all.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}line {line}, column {column}: not TOML: {problem}", prefix(path.as_deref()))]
    Syntax { path: Option<PathBuf>, line: usize, column: usize, problem: String },
    /// One key is unknown, missing or holds a value that is refused.
    #[error("{}{key}: {problem}; allowed: {allowed}", prefix(path.as_deref()))]
    Value { path: Option<PathBuf>, key: String, problem: String, allowed: String },
}

impl SettingsError {
    /// `key` is the full path of the key (`link.gateway[0]`), `problem` says what is wrong with the value, `allowed`
    /// what would be right. Never put a secret in either.
    pub fn new(key: impl Into<String>, problem: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self::Value { path: None, key: key.into(), problem: problem.into(), allowed: allowed.into() }
    }

    /// Adds the file the key was read from, where none is named yet.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        match &mut self {
            Self::Syntax { path, .. } | Self::Value { path, .. } => {
                path.get_or_insert_with(|| file.to_owned());
            }
            Self::Unreadable { .. } => {}
        }
        self
    }

    /// Puts `outer` before the key: a module that checks its own part does not know where that part stands.
    #[must_use]
    pub fn under(mut self, outer: &str) -> Self {
        if let Self::Value { key, .. } = &mut self {
            *key = join(outer, key);
        }
        self
    }

    /// The path of the key at fault, where one is.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Value { key, .. } => Some(key),
            Self::Unreadable { .. } | Self::Syntax { .. } => None,
        }
    }

    pub(super) fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), source }
    }

    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        Self::Syntax { path: None, line, column, problem: error.message().replace('\n', ", ") }
    }

    /// Splits serde's message into what is wrong and what is allowed.
    pub(super) fn refused(text: &str, path: &str, error: &toml::de::Error) -> Self {
        let message = error.message();
        let at_root = path.is_empty() || path == ".";
        let here = if at_root { String::new() } else { path.to_owned() };
        if let Some(field) = message.strip_prefix("missing field ") {
            let field = field.trim_matches('`');
            return Self::new(join(&here, field), "missing", "the key must be set");
        }
        let (problem, allowed) = message
            .split_once(", expected ")
            .or_else(|| message.split_once("; allowed: "))
            .unwrap_or((message, "see the example settings"));
        let line = error.span().map(|span| position(text, span.start).0);
        let problem = match line {
            Some(line) => format!("{problem} (line {line})"),
            None => problem.to_owned(),
        };
        let key = unknown_field(message).map_or_else(
            || here.clone(),
            |field| {
                if last_part(&here) == field { here.clone() } else { join(&here, field) }
            },
        );
        Self::new(key, problem, allowed)
    }
}

fn prefix(path: Option<&Path>) -> String {
    path.map(|path| format!("{}: ", path.display())).unwrap_or_default()
}

fn join(outer: &str, inner: &str) -> String {
    match (outer.is_empty(), inner.is_empty()) {
        (true, _) => inner.to_owned(),
        (_, true) => outer.to_owned(),
        (false, false) if inner.starts_with('[') => format!("{outer}{inner}"),
        (false, false) => format!("{outer}.{inner}"),
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// Line and column (both from 1) of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    (line, column)
}
