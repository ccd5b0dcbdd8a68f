//! An import: the frames of an export, carried by hand, go through a session like those of an agent: the same term, lease,
//! comparison of tails, partition writers. Only the far end of the connection is a task here that reads files ([`course`]).
//! So an overlap with what the link has brought, or brings later, is harmless.

mod course;
mod folder;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tombolo_kafka::cluster::Topic;
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::cloud::LinkSettings;
use tombolo_proto::export::Manifest;
use tombolo_proto::id::{LinkName, TopicName};
use tombolo_service::progress::Progress;
use tombolo_service::readiness::Readiness;
use tombolo_service::tasks::{TaskFailure, Tasks};

use crate::carrier::local;
use crate::session::Session;
use crate::settings::Settings;
use crate::shared::Shared;
use course::{Course, Held};
pub(crate) use folder::{Export, FolderError};
pub(crate) use report::Report;

/// For the cloud cluster to tell what topics it has.
const LOOK_DEADLINE: Duration = Duration::from_secs(30);
/// For the session to end after the import is done.
const GRACE: Duration = Duration::from_secs(10);

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the export is of link {0}, which the settings do not have")]
    UnknownLink(LinkName),
    #[error("link {0} has too many sessions in this process")]
    Crowd(LinkName),
    #[error("the cloud cluster cannot be asked for its topics: {0}")]
    Cluster(#[from] KafkaError),
    #[error("the cloud cluster did not tell its topics within {0:?}")]
    Deadline(Duration),
    #[error(transparent)]
    Task(#[from] TaskFailure),
}

/// Checks an export, then appends what it has and the mirrors do not, until `stop`.
pub(crate) async fn run(settings: Settings, folder: PathBuf, stop: &CancellationToken) -> Result<Report, ImportError> {
    let export = Arc::new(Export::open(folder, &settings.tls, SystemTime::now())?);
    let link = export.link().clone();
    let Some(wanted) = settings.links.get(&link).cloned() else { return Err(ImportError::UnknownLink(link)) };
    export.check_files(&mut Progress::new("checking", export.file_bytes()), stop).await?;
    let cluster = Cluster::new(settings.cloud.clone());
    let held = tokio::time::timeout(LOOK_DEADLINE, held(&cluster, export.manifest(), &wanted));
    let held = held.await.map_err(|_| ImportError::Deadline(LOOK_DEADLINE))??;
    let max_frame = settings.memory.max_frame;
    let tasks = Tasks::new(&CancellationToken::new());
    let shared = Shared::new(settings);
    let (_, latch) = Readiness::new();
    let follow = shared.registry.clone().follow(latch);
    let stopped = tasks.stop_token().clone();
    tasks.spawn("registry", async move {
        tokio::select! {
            () = follow => {}
            () = stopped.cancelled() => {}
        }
    });
    let presence = shared.enter(&link).ok_or_else(|| ImportError::Crowd(link.clone()))?;
    let (carrier, far) = local::pair();
    // Told to end by the far end, which is told by `stop`.
    let session = Session::new(Arc::clone(&shared), link, carrier, presence, &CancellationToken::new());
    let session = tasks.spawn_child("session", session.run());
    let report = Course::new(export, far, &wanted, max_frame, held).run(stop).await;
    if tokio::time::timeout(GRACE, session).await.is_err() {
        tracing::warn!("the import's session did not end within {GRACE:?}");
    }
    // An overrun is told by `Tasks` itself.
    drop(tasks.shutdown(GRACE).await);
    tasks.failure().map_or(Ok(report), |failure| Err(failure.into()))
}

/// How many partitions the mirror topics have that are there.
async fn held(cluster: &Cluster, manifest: &Manifest, link: &LinkSettings) -> Result<Held, KafkaError> {
    let mut sources = BTreeMap::new();
    for topic in manifest.topics.iter().filter_map(|topic| TopicName::new(&topic.name).ok()) {
        let named = link.mirrors.iter().find(|mirror| mirror.source == topic).map(|mirror| mirror.topic.clone());
        sources.insert(named.unwrap_or_else(|| topic.clone()).to_string(), topic);
    }
    let targets: Vec<String> = sources.keys().cloned().collect();
    let topics = cluster.metadata(Some(&targets)).await?.topics;
    let count = |topic: &Topic| i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    Ok(topics.iter().filter_map(|topic| Some((sources.get(topic.name.as_ref())?.clone(), count(topic)))).collect())
}

#[cfg(test)]
#[path = "import/import_test.rs"]
mod tests;
