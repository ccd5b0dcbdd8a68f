//! What the command was told, checked before anything is contacted.

use std::fmt;

use serde::Deserialize;
use tombolo_kafka::ClientSettings;
use tombolo_proto::id::LinkName;
use tombolo_proto::pattern::{ALLOWED, TopicPattern};
use tombolo_service::settings::{Properties, SettingsError, load};

use super::Verify;

/// Name under which the brokers' logs and quotas know this program, where `client.id` is not set.
const CLIENT_ID: &str = "tombolo-verify";

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    source: Properties,
    cloud: Properties,
}

/// Checked settings.
pub(super) struct Settings {
    /// Not with a digest.
    pub(super) source: Option<ClientSettings>,
    pub(super) cloud: ClientSettings,
    /// The same for librdkafka, secrets included.
    pub(super) source_properties: Vec<(String, String)>,
    pub(super) cloud_properties: Vec<(String, String)>,
    pub(super) link: Option<LinkName>,
    pub(super) topics: Vec<TopicPattern>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("link", &self.link).field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl Settings {
    pub(super) fn load(arguments: &Verify) -> Result<Self, SettingsError> {
        let raw: RawConfig = load(&arguments.config)?;
        Self::check(&raw, arguments).map_err(|error| match error.key() {
            Some(key) if key.starts_with("--") => error,
            Some(_) | None => error.in_file(&arguments.config),
        })
    }

    fn check(raw: &RawConfig, arguments: &Verify) -> Result<Self, SettingsError> {
        let link = arguments.link.as_deref().map(LinkName::new).transpose();
        let link = link.map_err(|error| SettingsError::new("--link", error.to_string(), "the name of a link"))?;
        let pattern = |text: &String| {
            TopicPattern::new(text).map_err(|error| SettingsError::new("--topic", error.to_string(), ALLOWED))
        };
        let topics = arguments.topics.iter().map(pattern).collect::<Result<_, _>>()?;
        if let (Some(from), Some(to)) = (arguments.from, arguments.to)
            && from >= to
        {
            return Err(SettingsError::new("--to", format!("{to} is not above --from"), "an offset above --from"));
        }
        let (cloud, cloud_properties) = client("cloud", &raw.cloud)?;
        let (source, source_properties) = if arguments.digest.is_some() {
            (None, Vec::new())
        } else if raw.source.is_empty() {
            return Err(SettingsError::new("source", "missing", "how to reach the source, or --digest FILE"));
        } else {
            let (source, properties) = client("source", &raw.source)?;
            (Some(source), properties)
        };
        Ok(Self { source, cloud, source_properties, cloud_properties, link, topics })
    }
}

/// A cluster's settings for the raw client and for librdkafka.
fn client(table: &str, properties: &Properties) -> Result<(ClientSettings, Vec<(String, String)>), SettingsError> {
    let mut properties = properties.resolve(table)?;
    if !properties.iter().any(|(name, _)| name == "client.id") {
        properties.push(("client.id".to_owned(), CLIENT_ID.to_owned()));
    }
    let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let settings = ClientSettings::from_properties(pairs)
        .map_err(|error| SettingsError::new(format!("{table}.{}", error.property), error.problem, error.allowed))?;
    Ok((settings, properties))
}
