//! Log output: one subscriber for the process, lines on stderr.
//!
//! Levels mean: ERROR a person is needed, WARN works but look, INFO a state changed, DEBUG and TRACE per batch.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::settings::SettingsError;

/// The `[log]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// `text` for people, `json` (one object a line) for collectors. Default `text`.
    pub format: LogFormat,
    /// A level, or per-target levels as `tracing-subscriber` reads them: `info,tombolo_agent=debug`. Default `info`.
    /// `trace` logs per batch: expect it to cost more than the copying.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("a subscriber is installed already")]
    Installed(#[source] TryInitError),
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

impl LogSettings {
    /// Whether `level` can be read; the error names `log.level`.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<EnvFilter, SettingsError> {
        EnvFilter::builder().parse(&self.level).map_err(|error| {
            SettingsError::new(
                "log.level",
                format!("{:?}: {error}", self.level),
                "error, warn, info, debug, trace, off, or a list of target=level",
            )
        })
    }
}

/// Installs the subscriber of the process. Only `main` calls this, once.
pub fn init(settings: &LogSettings) -> Result<(), LoggingError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(settings.filter()?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(LoggingError::Installed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_levels_per_target() {
        for level in ["info", "warn,tombolo_agent=debug", "off", ""] {
            let settings = LogSettings { level: level.to_owned(), ..LogSettings::default() };
            assert!(settings.check().is_ok(), "{level}");
        }
    }

    #[test]
    fn names_the_key_of_a_bad_level() {
        let settings = LogSettings { level: "tombolo=loud".to_owned(), ..LogSettings::default() };
        let error = settings.check().unwrap_err();
        assert_eq!(error.key(), Some("log.level"));
        assert!(error.to_string().contains("tombolo=loud"), "{error}");
    }

    #[test]
    fn defaults_fill_what_is_not_set() {
        let settings: LogSettings = crate::settings::parse("format = \"json\"").unwrap();
        assert_eq!(settings.format, LogFormat::Json);
        assert_eq!(settings.level, "info");
        assert_eq!(crate::settings::parse::<LogSettings>("").unwrap(), LogSettings::default());
    }
}
