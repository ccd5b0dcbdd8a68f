//! One run of the demo: clusters, daemons, producer, outage, and what both clusters hold in the end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tombolo_service::status_client::StatusError;

use crate::clusters::{ClusterError, Clusters};
use crate::options::{Options, Schedule};
use crate::screen::{Frame, Screen};
use crate::status::Look;
use crate::system::{System, SystemError};
use crate::verdict::{self, Verdict, VerdictError};
use crate::witness::{self, Ranges, WitnessError};
use crate::workload::{self, ProduceError, Tally};

/// How often the run looks what is to be done.
const STEP: Duration = Duration::from_millis(50);
/// How long the mirrors may lag once the producer has stopped and the link is back.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the daemons' status may be missing.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// Why a run has no verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    System(#[from] SystemError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
    #[error(transparent)]
    Witness(#[from] WitnessError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    #[error("a daemon does not tell its status: {0}")]
    Status(#[from] StatusError),
    #[error("mirror {topic} FAILED: {reason}")]
    Failed { topic: String, reason: String },
    #[error(
        "{CATCH_UP_DEADLINE:?} after the producer stopped, {} partitions lag, the first is {topic}/{partition}: \
         {confirmed} of {end} confirmed",
        partitions
    )]
    Lagging { partitions: usize, topic: String, partition: i32, confirmed: i64, end: i64 },
    #[error("cannot use a temporary folder: {0}")]
    Folder(#[source] io::Error),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("a thread of the demo failed: {0}")]
    Thread(#[from] JoinError),
    #[error("interrupted")]
    Interrupted,
}

/// Runs the demo to its verdict, or until `stop`. Topics on real clusters are removed, unless there is something to look
/// at: a difference or a failure.
pub(crate) async fn run(options: &Options, screen: &mut Screen, stop: &CancellationToken) -> Result<Verdict, RunError> {
    let clusters = Clusters::start(options).await?;
    let outcome = mirror_and_read(&clusters, options.schedule(), screen, stop).await;
    match &outcome {
        Ok(verdict) if verdict.identical() => clusters.clean_up().await?,
        Err(RunError::Interrupted) => clusters.clean_up().await?,
        Ok(_) | Err(_) if clusters.are_mocks() => {}
        Ok(_) | Err(_) => screen.say(&format!("topics {}* are kept for a look", clusters.prefix))?,
    }
    outcome
}

async fn mirror_and_read(
    clusters: &Clusters,
    schedule: Schedule,
    screen: &mut Screen,
    stop: &CancellationToken,
) -> Result<Verdict, RunError> {
    screen.say(&introduction(clusters))?;
    let folder = tempfile::tempdir().map_err(RunError::Folder)?;
    let system = System::start(folder.path(), clusters).await?;
    screen.say("")?;
    let outcome = Run { clusters, system: &system, schedule, stop }.mirror(screen).await;
    // Nobody writes to the cloud while it is read, and a daemon that fails at its end is seen, too.
    let stopped = system.shutdown().await;
    outcome?;
    stopped?;
    screen.say("producer done, no lag, both daemons stopped; reading both clusters ...")?;
    tokio::select! {
        verdict = verdict::read(clusters, schedule.dark()) => Ok(verdict?),
        () = stop.cancelled() => Err(RunError::Interrupted),
    }
}

fn introduction(clusters: &Clusters) -> String {
    let kind = if clusters.are_mocks() { "mock clusters in this process" } else { "real clusters" };
    format!(
        "two {kind}: source {}, cloud {}\nagent and gateway over QUIC through a forwarder: 40 ms round trip, 0.1 % loss\n\
         certificates, made by `tombolo-gateway dev-certs`:",
        clusters.source, clusters.cloud
    )
}

/// What a run works with.
struct Run<'a> {
    clusters: &'a Clusters,
    system: &'a System,
    schedule: Schedule,
    stop: &'a CancellationToken,
}

impl Run<'_> {
    /// Produces, cuts the link meanwhile, and waits until the cloud has confirmed everything.
    async fn mirror(&self, screen: &mut Screen) -> Result<(), RunError> {
        let tally = Arc::new(Tally::default());
        // It ends with the run, whatever the outcome: a producer at work would make its topics anew.
        let stop = self.stop.child_token();
        let mut producer = Some(self.start_producer(&tally, &stop));
        let outcome = self.watch(screen, &tally, &mut producer).await;
        stop.cancel();
        match producer {
            // The run's own error comes first.
            Some(producer) => outcome.and(producer.await?.map_err(RunError::from)),
            None => outcome,
        }
    }

    async fn watch(
        &self,
        screen: &mut Screen,
        tally: &Tally,
        producer: &mut Option<JoinHandle<Result<(), ProduceError>>>,
    ) -> Result<(), RunError> {
        let start = Instant::now();
        let mut ends: Option<(Instant, Ranges)> = None;
        let mut look = (Instant::now(), Look::default());
        let mut drawn: Option<Instant> = None;
        loop {
            if self.stop.is_cancelled() {
                return Err(RunError::Interrupted);
            }
            self.system.check()?;
            let elapsed = start.elapsed();
            self.system.link.dark(self.schedule.is_dark(elapsed));
            if let Some(done) = producer.take_if(|producer| producer.is_finished()) {
                done.await??;
                ends = Some((Instant::now(), self.ends().await?));
            }
            match Look::ask(self.system.agent, self.system.gateway).await {
                Ok(asked) => look = (Instant::now(), asked),
                Err(error) if look.0.elapsed() > STATUS_DEADLINE => return Err(error.into()),
                Err(_) => {}
            }
            if let Some((topic, reason)) = look.1.failed() {
                return Err(RunError::Failed { topic: topic.to_owned(), reason: reason.to_owned() });
            }
            let lagging = ends.as_ref().map(|(_, ends)| lagging(ends, &look.1));
            let done = lagging.as_ref().is_some_and(Option::is_none);
            if done || drawn.is_none_or(|drawn| drawn.elapsed() >= screen.interval()) {
                screen.draw(&self.frame(elapsed, ends.is_some(), tally, &look.1))?;
                drawn = Some(Instant::now());
            }
            match (lagging.flatten(), &ends) {
                (None, Some(_)) => return Ok(()),
                (Some(lag), Some((since, _))) if since.elapsed() > CATCH_UP_DEADLINE => return Err(lag),
                (_, _) => tokio::time::sleep(STEP).await,
            }
        }
    }

    fn start_producer(&self, tally: &Arc<Tally>, stop: &CancellationToken) -> JoinHandle<Result<(), ProduceError>> {
        let (source, prefix) = (self.clusters.source.clone(), self.clusters.prefix.clone());
        let (length, tally, stop) = (self.schedule.produce_until, Arc::clone(tally), stop.clone());
        spawn_blocking(move || workload::produce(&source, &prefix, length, &tally, &stop))
    }

    /// Where the source's logs end.
    async fn ends(&self) -> Result<Ranges, RunError> {
        let (source, topics) = (self.clusters.source.clone(), self.clusters.topics());
        Ok(spawn_blocking(move || witness::ranges(&source, &topics)).await??)
    }

    fn frame(&self, elapsed: Duration, produced: bool, tally: &Tally, look: &Look) -> Frame {
        Frame {
            elapsed,
            phase: if produced { "catching up" } else { "producing" },
            link: look.link.clone(),
            dark: self.schedule.is_dark(elapsed).then(|| elapsed.saturating_sub(self.schedule.dark_from)),
            produced: tally.acknowledged(),
            topics: look.rows(&self.clusters.topics(), &self.clusters.prefix),
        }
    }
}

/// The error to end with, if it stays so: what the cloud has not confirmed of the source's logs.
fn lagging(ends: &Ranges, look: &Look) -> Option<RunError> {
    let mut behind = ends.iter().filter(|(place, (_, end))| look.in_cloud(place) < *end);
    let (place, (_, end)) = behind.next()?;
    let ((topic, partition), partitions) = (place.clone(), 1 + behind.count());
    Some(RunError::Lagging { partitions, topic, partition, confirmed: look.in_cloud(place), end: *end })
}
