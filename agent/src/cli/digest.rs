//! `digest`: what `tombolo verify` needs of the source's logs, in a file that is carried to where the mirror is.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use tombolo_kafka::compare::digest::{DigestError, DigestTopic, DigestWriter, Header, Totals, write_log};
use tombolo_kafka::compare::{CompareOptions, Survey, extent};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::id::TopicName;
use tombolo_proto::pattern::{ALLOWED, TopicPattern};
use tombolo_service::progress::Progress;
use tombolo_service::settings::SettingsError;
use tombolo_service::status_client::{Output, print};

use super::{fail, number, refuse, text};
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct Digest {
    /// Settings file of the agent, which may run.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A topic, or the beginning of names and *; may be given several times. Without it: all that may leave the site.
    #[arg(long = "topic", value_name = "PATTERN")]
    topics: Vec<String>,
    /// table or json. The JSON is a stable schema.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
    /// File to write; must not exist.
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum DigestFailed {
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {source}", path.display())]
    Digest {
        path: PathBuf,
        #[source]
        source: DigestError,
    },
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("no topic of the source that may leave the site matches")]
    NoTopic,
}

pub(super) async fn execute(arguments: Digest) -> ExitCode {
    let settings = match Settings::load(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let patterns = match patterns(&arguments.topics) {
        Ok(patterns) => patterns,
        Err(error) => return refuse(&error),
    };
    let (header, totals) = match write(&settings, &patterns, &arguments.out).await {
        Ok(written) => written,
        Err(error) => return fail(&error),
    };
    let document = json!({
        "file": arguments.out.display().to_string(), "cluster_id": header.cluster_id, "topics": header.topics.len(),
        "partitions": totals.partitions, "batches": totals.batches, "bytes": totals.bytes,
    });
    let shown = print(&document, arguments.output, |document| {
        format!(
            "DIGEST of cluster {} in {}: {} topics, {} partitions, {} batches, {} bytes",
            text(document, "/cluster_id"),
            text(document, "/file"),
            number(document, "/topics"),
            number(document, "/partitions"),
            number(document, "/batches"),
            number(document, "/bytes"),
        )
    });
    shown.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn patterns(texts: &[String]) -> Result<Vec<TopicPattern>, SettingsError> {
    let pattern = |text: &String| {
        TopicPattern::new(text).map_err(|error| SettingsError::new("--topic", error.to_string(), ALLOWED))
    };
    texts.iter().map(pattern).collect()
}

async fn write(settings: &Settings, patterns: &[TopicPattern], path: &Path) -> Result<(Header, Totals), DigestFailed> {
    let source = Cluster::new(settings.source.clone());
    let header = header(&source, settings, patterns).await?;
    let failed = |source| DigestFailed::File { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    let written = write_logs(&source, &header, BufWriter::new(file)).await;
    let synced = written.map_err(|source| DigestFailed::Digest { path: path.to_owned(), source });
    match synced.and_then(|(file, totals)| file.sync_all().map(|()| totals).map_err(failed)) {
        Ok(totals) => Ok((header, totals)),
        Err(error) => {
            // It would be taken for one that was cut. The error that is reported says more than one of this.
            drop(std::fs::remove_file(path));
            Err(error)
        }
    }
}

/// The topics that may leave the site and match a pattern, or all where there is none.
async fn header(source: &Cluster, settings: &Settings, patterns: &[TopicPattern]) -> Result<Header, DigestFailed> {
    let metadata = source.metadata(None).await?;
    let wanted = |name: &str| {
        TopicName::new(name).is_ok_and(|name| {
            let named = patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&name));
            named && settings.topics.admits(&name)
        })
    };
    let mut topics: Vec<_> = metadata
        .topics
        .iter()
        .filter(|topic| !topic.internal && topic.error.is_none() && wanted(&topic.name))
        .map(|topic| DigestTopic {
            name: Arc::clone(&topic.name),
            id: topic.topic_id.unwrap_or_default(),
            partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
        })
        .collect();
    if topics.is_empty() {
        return Err(DigestFailed::NoTopic);
    }
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Header {
        created_unix_seconds: now.as_secs(),
        cluster_id: metadata.cluster_id.unwrap_or_default(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        topics,
    })
}

async fn write_logs(source: &Cluster, header: &Header, out: BufWriter<File>) -> Result<(File, Totals), DigestError> {
    let options = CompareOptions::default();
    let logs: Vec<(Arc<str>, i32)> = header
        .topics
        .iter()
        .flat_map(|topic| (0..).take(topic.partitions as usize).map(|partition| (Arc::clone(&topic.name), partition)))
        .collect();
    let meter = Mutex::new(meter(source, &logs, options).await?);
    let passed = |offsets| meter.lock().unwrap_or_else(PoisonError::into_inner).passed(offsets);
    let mut digest = DigestWriter::create(out, header)?;
    for (topic, partition) in &logs {
        write_log(&mut digest, source, topic, *partition, options, &passed).await?;
    }
    let (mut out, totals) = digest.finish()?;
    out.flush()?;
    meter.lock().unwrap_or_else(PoisonError::into_inner).progress.finish();
    Ok((out.into_inner().map_err(std::io::IntoInnerError::into_error)?, totals))
}

/// Tells in bytes how many offsets are done.
struct Meter {
    progress: Progress,
    survey: Survey,
    offsets: u64,
}

impl Meter {
    fn passed(&mut self, offsets: u64) {
        let before = self.survey.bytes(self.offsets);
        self.offsets += offsets;
        self.progress.add(self.survey.bytes(self.offsets) - before);
    }
}

async fn meter(source: &Cluster, logs: &[(Arc<str>, i32)], options: CompareOptions) -> Result<Meter, KafkaError> {
    let mut ranges = Vec::new();
    for (topic, partition) in logs {
        ranges.push((Arc::clone(topic), *partition, extent(source, topic, *partition, options).await?));
    }
    let survey = Survey::of(source, &ranges, options).await?;
    Ok(Meter { progress: Progress::new("digesting", survey.total_bytes()), survey, offsets: 0 })
}
