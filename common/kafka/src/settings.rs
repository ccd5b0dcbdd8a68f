//! Client settings in librdkafka's property names, checked once at start.

use std::sync::Arc;
use std::time::Duration;

/// A property that cannot be used: its name, what is wrong, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{property}: {problem}; allowed: {allowed}")]
pub struct SettingsError {
    /// Name of the property.
    pub property: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub allowed: String,
}

/// How to reach one cluster. `Debug` hides secrets.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    pub(crate) bootstrap: Arc<[String]>,
}

impl ClientSettings {
    /// Checks properties in librdkafka's names. TLS files are read here.
    pub fn from_properties<'a>(
        _properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, SettingsError> {
        todo!()
    }

    /// Largest time that sent bytes may stay unacknowledged before the kernel drops the connection
    /// (`TCP_USER_TIMEOUT`); without it, the system's default.
    #[must_use]
    pub fn with_tcp_user_timeout(self, _timeout: Duration) -> Self {
        todo!()
    }
}
