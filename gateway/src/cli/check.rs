//! `check`: would this gateway run? Reads the certificates, asks the cloud cluster what it offers and holds, changes
//! nothing.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use tombolo_kafka::admin::{self, ConfigResource};
use tombolo_kafka::cluster::{ClusterMetadata, Topic};
use tombolo_kafka::error::{Api, ErrorCode};
use tombolo_kafka::{Cluster, KafkaError};
use tombolo_proto::id::{REGISTRY_PRODUCER_ID, Term, TopicName};
use tombolo_service::status_client;

use super::failed;
use crate::listener;
use crate::settings::Settings;
use crate::skip::{self, MarkerRight, MarkerRights};

const DEADLINE: Duration = Duration::from_mins(1);

/// What the gateway asks brokers for, and what becomes of it without.
const NEEDED: [Api; 4] = [Api::Produce, Api::Fetch, Api::ListOffsets, Api::Metadata];
const USEFUL: [(Api, &str); 7] = [
    (Api::CreateTopics, "mirror topics and the registry must be made by hand"),
    (Api::CreatePartitions, "mirror topics must be grown by hand"),
    (Api::DescribeConfigs, "configs of mirror topics are not checked"),
    (Api::DescribeProducers, "sequences are read from the last batches"),
    (Api::WriteTxnMarkers, "mirrors are FAILED at the first gap of their sources"),
    (Api::DeleteRecords, "mirrors cannot start above offset 0"),
    (Api::IncrementalAlterConfigs, "mirror topics keep everything, with cleanup.policy=delete"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

#[derive(Debug, Default)]
struct Report {
    rows: Vec<(String, Verdict, String)>,
}

pub(super) async fn run(settings: &Settings) -> ExitCode {
    let mut report = Report::default();
    report.add("settings", Verdict::Good, format!("{} links", settings.links.len()));
    match listener::tls_config(&settings.tls) {
        Ok(_) => report.add("certificates", Verdict::Good, "readable, key and certificate fit"),
        Err(error) => report.add("certificates", Verdict::Bad, error),
    }
    let cluster = Cluster::new(settings.cloud.clone());
    if tokio::time::timeout(DEADLINE, report.cluster(&cluster, settings)).await.is_err() {
        report.add("cloud cluster", Verdict::Bad, format!("no answers within {DEADLINE:?}"));
    }
    report.print()
}

impl Report {
    fn add(&mut self, what: impl Into<String>, verdict: Verdict, detail: impl Display) {
        self.rows.push((what.into(), verdict, detail.to_string()));
    }

    async fn cluster(&mut self, cluster: &Cluster, settings: &Settings) {
        let mirrors = settings.links.values().flat_map(|link| &link.mirrors).map(|mirror| mirror.topic.to_string());
        let topics: Vec<String> = mirrors.chain([settings.registry.topic.to_string()]).collect();
        let metadata = match cluster.metadata(Some(&topics)).await {
            Ok(metadata) => metadata,
            Err(error) => return self.add("cloud cluster", Verdict::Bad, error),
        };
        let id = metadata.cluster_id.as_deref().unwrap_or("without an id");
        self.add("cloud cluster", Verdict::Good, format!("{id}, {} brokers", metadata.brokers.len()));
        for broker in &metadata.brokers {
            self.broker(cluster, broker.id).await;
        }
        self.markers(cluster).await;
        self.registry(cluster, &settings.registry.topic, &metadata).await;
        for mirror in settings.links.values().flat_map(|link| &link.mirrors) {
            self.mirror(&mirror.topic, &metadata);
        }
    }

    async fn broker(&mut self, cluster: &Cluster, broker: i32) {
        let what = format!("broker {broker}");
        let connection = match cluster.shared(broker).await {
            Ok(connection) => connection,
            Err(error) => return self.add(what, Verdict::Bad, error),
        };
        let lacks: Vec<String> =
            NEEDED.iter().filter(|&&api| connection.offers(api).is_none()).map(ToString::to_string).collect();
        if !lacks.is_empty() {
            return self.add(what, Verdict::Bad, format!("does not offer {}", lacks.join(", ")));
        }
        self.add(what.clone(), Verdict::Good, format!("{}, offers what is needed", connection.address()));
        for (api, without) in USEFUL {
            if connection.offers(api).is_none() {
                self.add(what.clone(), Verdict::Warning, format!("does not offer {api}: {without}"));
            }
        }
    }

    async fn markers(&mut self, cluster: &Cluster) {
        let what = "right to skip gaps";
        let rights = MarkerRights::new(cluster.clone(), skip::writer(REGISTRY_PRODUCER_ID, Term(0)));
        match rights.ask().await {
            Ok(MarkerRight::Granted) => self.add(what, Verdict::Good, "granted"),
            Ok(MarkerRight::Missing(reason)) => self.add(what, Verdict::Warning, reason),
            Err(error) => self.add(what, Verdict::Warning, error),
        }
    }

    async fn registry(&mut self, cluster: &Cluster, name: &TopicName, metadata: &ClusterMetadata) {
        let what = format!("registry {name}");
        let Some(topic) = find(metadata, name) else {
            return self.add(what, Verdict::Good, "missing, will be made");
        };
        if let Some(code) = topic.error {
            return self.add(what, Verdict::Bad, code);
        }
        match policy_of(cluster, name).await {
            Ok(Some(policy)) if policy != "compact" => {
                let detail = format!("cleanup.policy={policy}: terms would be forgotten; set it to compact");
                self.add(what, Verdict::Bad, detail);
            }
            Ok(_) => self.add(what, Verdict::Good, "there"),
            Err(error) => self.add(what, Verdict::Warning, error),
        }
    }

    fn mirror(&mut self, name: &TopicName, metadata: &ClusterMetadata) {
        let what = format!("mirror {name}");
        match find(metadata, name).map(|topic| (topic.error, topic.partitions.len())) {
            None => self.add(what, Verdict::Good, "missing, will be made"),
            Some((None, partitions)) => self.add(what, Verdict::Good, format!("{partitions} partitions")),
            Some((Some(code), _)) => self.add(what, Verdict::Bad, code),
        }
    }

    fn print(self) -> ExitCode {
        let bad = self.rows.iter().any(|(_, verdict, _)| *verdict == Verdict::Bad);
        let rows = self.rows.into_iter().map(|(what, verdict, detail)| {
            let verdict = match verdict {
                Verdict::Good => "ok",
                Verdict::Warning => "warning",
                Verdict::Bad => "FAILED",
            };
            vec![what, verdict.to_owned(), detail]
        });
        let table = status_client::table(&["WHAT", "VERDICT", "DETAIL"], rows);
        match std::io::Write::write_all(&mut std::io::stdout().lock(), format!("{table}\n").as_bytes()) {
            Ok(()) if bad => ExitCode::FAILURE,
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        }
    }
}

/// The topic, unless the cluster has none of that name.
fn find<'a>(metadata: &'a ClusterMetadata, name: &TopicName) -> Option<&'a Topic> {
    metadata
        .topics
        .iter()
        .find(|topic| *topic.name == *name.as_str() && topic.error != Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION))
}

/// The topic's clean-up policy; `None` where the cluster does not tell.
async fn policy_of(cluster: &Cluster, name: &TopicName) -> Result<Option<String>, KafkaError> {
    let controller = cluster.controller().await?;
    if controller.offers(Api::DescribeConfigs).is_none() {
        return Ok(None);
    }
    let resource = ConfigResource::Topic(name.shared());
    let answers = admin::describe_configs(&controller, &[resource], Some(&["cleanup.policy"])).await?;
    let entries = answers.into_iter().next().and_then(|answer| answer.result.ok()).unwrap_or_default();
    Ok(entries.into_iter().find(|entry| entry.name == "cleanup.policy").and_then(|entry| entry.value))
}
