//! `verify`: reads mirrors and their sources, or a digest of those, and says what differs and why.

mod plan;
mod records;
mod report;
mod settings;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use tombolo_kafka::compare::digest::{DigestError, DigestReader, Summary};
use tombolo_kafka::compare::{CompareError, CompareOptions, Comparison, Passed, Survey, compare_digest, compare_pair};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_service::progress::Progress;
use tombolo_service::settings::EXIT_CONFIG;
use tombolo_service::status_client::{Output, print};

use plan::{Plan, Planned};
use records::RecordsError;
use report::Report;
use settings::Settings;

use crate::say;

/// Exit code where nothing can be said.
const EXIT_NOT_COMPARED: u8 = 2;
/// Partitions that are read at a time: each holds at most two answers of [`CompareOptions::fetch_bytes`].
const AT_ONCE: usize = 4;
/// Differences that are listed.
const LISTED: usize = 100;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Settings file (TOML): how to reach both clusters, tables `source` and `cloud` in librdkafka's names.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Name of the link that writes the mirrors: explains gaps, and names what others wrote.
    #[arg(long, value_name = "NAME")]
    link: Option<String>,
    /// A topic, or the beginning of names and *; may be given several times. Without it: all topics on both sides.
    #[arg(long = "topic", value_name = "PATTERN")]
    topics: Vec<String>,
    /// First offset to compare, in each partition.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    from: Option<i64>,
    /// Offset to end before, in each partition.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    to: Option<i64>,
    /// Read only this share of each partition, from its beginning, its end and places by chance between them.
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["from", "to"], value_parser = clap::value_parser!(u8).range(1..100))]
    sample: Option<u8>,
    /// In place of the source: what `tombolo-agent digest` wrote there.
    #[arg(long, value_name = "FILE")]
    digest: Option<PathBuf>,
    /// Read all once more, record by record, with librdkafka, which shares no code with this program.
    #[arg(long, conflicts_with_all = ["digest", "sample"])]
    records: bool,
    /// A mirror that is behind or begins elsewhere counts as different.
    #[arg(long)]
    strict: bool,
    /// table or json. The JSON is a stable schema.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("the source cannot be read: {0}")]
    Source(#[source] KafkaError),
    #[error("the cloud cannot be read: {0}")]
    Cloud(#[source] KafkaError),
    #[error("cannot compare: {0}")]
    Compare(#[source] Box<CompareError>),
    #[error("{}: {source}", path.display())]
    Digest {
        path: PathBuf,
        #[source]
        source: Box<DigestError>,
    },
    #[error("no topic to compare: {0}")]
    Nothing(&'static str),
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error("the second reading ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

impl From<CompareError> for VerifyError {
    fn from(error: CompareError) -> Self {
        Self::Compare(Box::new(error))
    }
}

/// Runs the command to its exit code.
pub(crate) async fn run(arguments: Verify) -> ExitCode {
    let settings = match Settings::load(&arguments) {
        Ok(settings) => settings,
        Err(error) => {
            say(&error);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match Box::pin(verify(&arguments, &settings)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&error);
            ExitCode::from(EXIT_NOT_COMPARED)
        }
    }
}

/// Whether the mirrors pass.
async fn verify(arguments: &Verify, settings: &Settings) -> Result<bool, VerifyError> {
    let cloud = Cluster::new(settings.cloud.clone());
    let options = CompareOptions {
        max_differences: LISTED,
        writer: settings.link.as_ref().map(tombolo_proto::id::LinkName::producer_id),
        ..CompareOptions::default()
    };
    let began = Instant::now();
    let mut report = if let Some(path) = &arguments.digest {
        let summary = open(path, Summary::read)?;
        let plan = Plan::of_digest(&summary, &cloud, arguments, settings, options).await?;
        let mut report = Report::new(arguments, &plan, Some(&summary.header));
        digested(path, &cloud, &plan, options, &mut report).await?;
        report
    } else {
        let source = settings.source.clone().ok_or(VerifyError::Nothing("neither a source nor a digest"))?;
        let source = Cluster::new(source);
        let plan = Plan::of_clusters(&source, &cloud, arguments, settings, options).await?;
        let mut report = Report::new(arguments, &plan, None);
        live(&source, &cloud, &plan, options, &mut report).await?;
        if arguments.records {
            report.records(records::compare(settings, &plan, LISTED).await?);
        }
        report
    };
    report.took(began.elapsed());
    print(&report.document(), arguments.output, |_| report.text())?;
    Ok(report.passes())
}

fn open<T>(path: &Path, read: impl FnOnce(File) -> Result<T, DigestError>) -> Result<T, VerifyError> {
    let opened = File::open(path).map_err(DigestError::File).and_then(read);
    opened.map_err(|source: DigestError| VerifyError::Digest { path: path.to_owned(), source: Box::new(source) })
}

/// Several partitions at a time, so that neither cluster is waited for by all.
async fn live(
    source: &Cluster,
    cloud: &Cluster,
    plan: &Plan,
    options: CompareOptions,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let compacted = &plan.compacted(source).await?;
    let meter = Meter::start(cloud, plan, options).await?;
    let passed: Passed<'_> = &|offsets| meter.passed(offsets);
    let compared = stream::iter(&plan.partitions).map(|planned| async move {
        let options = CompareOptions { compacted: compacted.contains(&planned.pair.source), ..options };
        let found = compare_pair(source, cloud, &planned.pair, options, passed).await;
        found.map(|found| (planned, found)).map_err(CompareError::from)
    });
    let mut compared = compared.buffer_unordered(AT_ONCE);
    while let Some((planned, found)) = compared.try_next().await? {
        report.add(planned, found);
    }
    meter.finish();
    Ok(())
}

/// In the order of the digest.
async fn digested(
    path: &Path,
    cloud: &Cluster,
    plan: &Plan,
    options: CompareOptions,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let meter = Meter::start(cloud, plan, options).await?;
    let passed: Passed<'_> = &|offsets| meter.passed(offsets);
    let failed = |source: DigestError| VerifyError::Digest { path: path.to_owned(), source: Box::new(source) };
    let mut digest = open(path, DigestReader::open)?;
    while let Some(section) = digest.next_section().map_err(failed)? {
        let is_section =
            |planned: &&Planned| planned.pair.source == section.topic && planned.pair.partition == section.partition;
        if let Some(planned) = plan.partitions.iter().find(is_section) {
            let found: Comparison =
                compare_digest(&mut digest, &section, cloud, &planned.pair, options, passed).await?;
            report.add(planned, found);
        }
    }
    meter.finish();
    Ok(())
}

/// Tells in bytes how many offsets are done.
struct Meter {
    survey: Survey,
    state: Mutex<(Progress, u64)>,
}

impl Meter {
    async fn start(cloud: &Cluster, plan: &Plan, options: CompareOptions) -> Result<Self, VerifyError> {
        let logs = plan.logs();
        let survey = Survey::of(cloud, &logs, options).await.map_err(VerifyError::Cloud)?;
        Ok(Self { survey, state: Mutex::new((Progress::new("verifying", survey.total_bytes()), 0)) })
    }

    fn passed(&self, offsets: u64) {
        let (progress, done) = &mut *self.state();
        let before = self.survey.bytes(*done);
        *done += offsets;
        progress.add(self.survey.bytes(*done) - before);
    }

    fn finish(&self) {
        self.state().0.finish();
    }

    fn state(&self) -> MutexGuard<'_, (Progress, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
