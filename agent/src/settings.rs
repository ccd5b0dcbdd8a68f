//! Settings of the agent: `RawConfig` is what was written, [`Settings`] what the process uses. Each module owns its part.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tombolo_kafka::ClientSettings;
use tombolo_proto::limits::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use tombolo_service::admin_http::HttpSettings;
use tombolo_service::logging::LogSettings;
use tombolo_service::settings::{ByteSize, Properties, SettingsError, Span, load, parse};

use crate::dial::{LinkSettings, RawLink};
use crate::filter::TopicFilter;

/// Name under which the brokers' logs and quotas know the agent, where `client.id` is not set.
const CLIENT_ID: &str = "tombolo-agent";

/// Settings of an agent, checked: files were read, names and sizes are in range. `Debug` hides secrets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the gateway.
    pub link: LinkSettings,
    /// How to reach the source cluster.
    pub source: ClientSettings,
    /// What may leave the site.
    pub topics: TopicFilter,
    /// Byte budgets.
    pub memory: MemorySettings,
    /// What the site keeps on disk.
    pub journal: JournalSettings,
    /// How often the source topics are looked at.
    pub discovery_interval: Duration,
    /// Local HTTP.
    pub http: HttpSettings,
    /// Logs; set up by `main`.
    pub log: LogSettings,
}

/// What the process takes beside its budgets: code, threads, TLS, the tables of thousands of partitions, the journal's
/// caches.
const BASE_MEMORY: usize = 24 << 20;

/// Answers of one source broker in memory: one that is being read, one that is being taken in.
const ANSWERS: usize = 2;
/// Least bytes that a source broker is asked for.
const LEAST_FETCH: usize = 16 << 10;

/// Byte budgets. What the process needs is about `window` + leaders x 2 x `fetch` + 2 x `max_frame` + `link.send_window` +
/// 24 MiB, and for that `memory.limit` has room: with many leaders each is asked for less than `fetch`. The first batch of
/// an answer comes whole all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    /// What all of it may take.
    pub limit: usize,
    /// What the limit leaves for answers of all source brokers together.
    pub fetches: usize,
    /// Batches in memory, fetched and not confirmed.
    pub window: usize,
    /// Records in one answer of one source broker.
    pub fetch: i32,
    /// Records of one partition in one answer.
    pub fetch_partition: i32,
    /// Largest frame, and so the largest batch that can be mirrored.
    pub max_frame: usize,
}

/// What the site keeps on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// Folder of journal and checkpoint, of this agent alone.
    pub path: PathBuf,
    /// Most bytes that the journal's files may take.
    pub max_bytes: u64,
    /// Most bytes of one of its files: space comes back by whole files.
    pub segment_bytes: u64,
    /// How long a batch may wait for its confirm in memory alone.
    pub spill_delay: Duration,
}

/// The file as it is written: names and defaults, nothing checked but types.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    link: RawLink,
    source: Properties,
    #[serde(default)]
    topics: RawTopics,
    #[serde(default)]
    memory: RawMemory,
    journal: RawJournal,
    #[serde(default)]
    discovery: RawDiscovery,
    #[serde(default = "default_http")]
    http: HttpSettings,
    #[serde(default)]
    log: LogSettings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTopics {
    allow: Vec<String>,
    deny: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMemory {
    limit: ByteSize,
    window: ByteSize,
    fetch: ByteSize,
    fetch_partition: ByteSize,
    max_frame: ByteSize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJournal {
    path: PathBuf,
    #[serde(default = "default_max_bytes")]
    max_bytes: ByteSize,
    #[serde(default = "default_segment")]
    segment: ByteSize,
    #[serde(default = "default_spill_delay")]
    spill_delay: Span,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDiscovery {
    interval: Span,
}

impl Default for RawTopics {
    fn default() -> Self {
        Self { allow: vec!["*".to_owned()], deny: Vec::new() }
    }
}

impl Default for RawMemory {
    fn default() -> Self {
        Self {
            limit: ByteSize::mib(64),
            window: ByteSize::mib(16),
            fetch: ByteSize::mib(1),
            fetch_partition: ByteSize::kib(256),
            max_frame: ByteSize::mib(2),
        }
    }
}

impl Default for RawDiscovery {
    fn default() -> Self {
        Self { interval: Span::from_secs(10) }
    }
}

fn default_max_bytes() -> ByteSize {
    ByteSize::mib(8 << 10)
}

fn default_segment() -> ByteSize {
    ByteSize::mib(256)
}

fn default_spill_delay() -> Span {
    Span::from_secs(2)
}

fn default_http() -> HttpSettings {
    HttpSettings { listen: ([127, 0, 0, 1], 8081).into() }
}

impl Settings {
    /// Reads and checks a settings file. Relative paths of `[link]` count from its folder.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        load::<RawConfig>(path)?.check(folder).map_err(|error| error.in_file(path))
    }

    /// As [`Settings::load`], from text already in memory. Relative paths count from the working directory.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        parse::<RawConfig>(text)?.check(Path::new(""))
    }
}

/// Where the local HTTP of the agent with this settings file listens. Nothing else of the file is checked, and no key
/// file is read: whoever asks for the status need not be allowed to.
pub fn http_of(path: &Path) -> Result<HttpSettings, SettingsError> {
    let http = load::<RawConfig>(path)?.http;
    http.check().map_err(|error| error.in_file(path))?;
    Ok(http)
}

impl RawConfig {
    fn check(self, folder: &Path) -> Result<Settings, SettingsError> {
        self.http.check()?;
        self.log.check()?;
        let send_window = self.link.send_window();
        Ok(Settings {
            link: self.link.check(folder).map_err(|error| error.under("link"))?,
            topics: TopicFilter::new(&self.topics.allow, &self.topics.deny)?,
            journal: self.journal.check(folder, &self.memory)?,
            memory: self.memory.check(send_window)?,
            discovery_interval: self.discovery.check()?,
            source: source(&self.source)?,
            http: self.http,
            log: self.log,
        })
    }
}

impl MemorySettings {
    /// Records in one answer of each of so many source brokers: less than `fetch` where they are many.
    pub(crate) fn fetch_of(&self, brokers: usize) -> i32 {
        let share = (self.fetches / (ANSWERS * brokers.max(1))).max(LEAST_FETCH);
        self.fetch.min(i32::try_from(share).unwrap_or(i32::MAX))
    }
}

impl RawMemory {
    fn check(&self, send_window: usize) -> Result<MemorySettings, SettingsError> {
        let size = |key: &str, size: ByteSize, least: usize, most: usize| {
            let bytes = size.as_usize();
            if (least..=most).contains(&bytes) {
                return Ok(bytes);
            }
            let allowed = format!("{} to {}", show(least), show(most));
            Err(SettingsError::new(format!("memory.{key}"), format!("{size} is out of range"), allowed))
        };
        let int = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
        let max_frame = size("max_frame", self.max_frame, MIN_FRAME_BYTES, MAX_FRAME_BYTES)?;
        let fetch = size("fetch", self.fetch, LEAST_FETCH, 1 << 30)?;
        let window = size("window", self.window, max_frame, 1 << 40)?;
        let limit = self.limit.as_usize();
        let others = window + 2 * max_frame + send_window + BASE_MEMORY;
        let least = others + ANSWERS * fetch;
        if limit < least {
            let problem = format!(
                "{} is less than window + 2 x fetch + 2 x max_frame + link.send_window + {}",
                self.limit,
                show(BASE_MEMORY)
            );
            return Err(SettingsError::new("memory.limit", problem, format!("at least {}", show(least))));
        }
        Ok(MemorySettings {
            limit,
            fetches: limit - others,
            window,
            fetch: int(fetch),
            fetch_partition: int(size("fetch_partition", self.fetch_partition, 4 << 10, fetch)?),
            max_frame,
        })
    }
}

impl RawJournal {
    fn check(self, folder: &Path, memory: &RawMemory) -> Result<JournalSettings, SettingsError> {
        let segment_bytes = self.segment.as_usize() as u64;
        if !(4 << 20..=1 << 30).contains(&segment_bytes) {
            let problem = format!("{} is out of range", self.segment);
            return Err(SettingsError::new("journal.segment", problem, "4 MiB to 1 GiB"));
        }
        let max_bytes = self.max_bytes.as_usize() as u64;
        if max_bytes < 2 * segment_bytes {
            let problem = format!("{} is less than two segments of {}", self.max_bytes, self.segment);
            return Err(SettingsError::new("journal.max_bytes", problem, "at least twice journal.segment"));
        }
        let frame = memory.max_frame.as_usize() as u64;
        if max_bytes < segment_bytes + 2 * frame {
            let problem =
                format!("{} leaves no room for frames of memory.max_frame {}", self.max_bytes, memory.max_frame);
            return Err(SettingsError::new(
                "journal.max_bytes",
                problem,
                "at least journal.segment + 2 x memory.max_frame",
            ));
        }
        let spill_delay = self.spill_delay.duration();
        if !(Duration::from_millis(100)..=Duration::from_hours(1)).contains(&spill_delay) {
            let problem = format!("{} is out of range", self.spill_delay);
            return Err(SettingsError::new("journal.spill_delay", problem, "100 ms to 1 h"));
        }
        Ok(JournalSettings { path: folder.join(self.path), max_bytes, segment_bytes, spill_delay })
    }
}

fn show(bytes: usize) -> ByteSize {
    ByteSize::bytes(bytes as u64)
}

impl RawDiscovery {
    fn check(&self) -> Result<Duration, SettingsError> {
        let interval = self.interval.duration();
        if (Duration::from_millis(100)..=Duration::from_hours(1)).contains(&interval) {
            return Ok(interval);
        }
        let problem = format!("{} is out of range", self.interval);
        Err(SettingsError::new("discovery.interval", problem, "100 ms to 1 h"))
    }
}

fn source(properties: &Properties) -> Result<ClientSettings, SettingsError> {
    let mut properties = properties.resolve("source")?;
    if !properties.iter().any(|(name, _)| name == "client.id") {
        properties.push(("client.id".to_owned(), CLIENT_ID.to_owned()));
    }
    let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    ClientSettings::from_properties(pairs)
        .map_err(|error| SettingsError::new(format!("source.{}", error.property), error.problem, error.allowed))
}

#[cfg(test)]
#[path = "settings/settings_test.rs"]
mod tests;
