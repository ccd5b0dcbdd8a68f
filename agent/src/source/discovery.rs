//! Looks at the watched topics: at once when asked, and again and again. One metadata request for all of them.
//!
//! Tells everything it sees every time: what did not change costs the owner of the site nothing.

mod configs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tombolo_kafka::cluster::Topic;
use tombolo_kafka::{Cluster, ErrorCode, KafkaError, TopicId};
use tombolo_proto::edge::{EdgeInput, SourceTopic};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{Partition, TopicName};
use tombolo_proto::limits::MAX_PARTITIONS;
use tombolo_proto::pattern::TopicPattern;
use tombolo_service::readiness::Latch;

use self::configs::Configs;
use super::SourceEvent;
use crate::filter::TopicFilter;

/// The first try must not hold up readiness and the link for as long as a dead broker takes.
const FIRST_CONTACT: Duration = Duration::from_secs(10);
/// A look and its answers.
const LOOK_DEADLINE: Duration = Duration::from_mins(1);
/// Looks that were asked for keep this distance; it doubles while they follow upon each other.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Topics whose configs are asked for in one request: an answer takes about 4 KiB for each.
const CONFIG_TOPICS: usize = 50;
/// Looks in a row that must fail, or miss a topic, before one that was there counts as gone: a broker that just
/// started knows little.
const LOOKS_TO_BE_SURE: u32 = 2;

/// What is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) topics: BTreeSet<TopicName>,
    /// Topics that are to be told of as they appear.
    pub(super) filters: Vec<TopicPattern>,
    /// Topics that metadata shows but that cannot be read, and why.
    pub(super) problems: BTreeMap<TopicName, String>,
    /// Raised to ask for a look soon.
    pub(super) looks: u64,
}

/// Leaders, for whoever hands out partitions.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) topics: Vec<FoundTopic>,
    /// Topics whose policy is known, and whether they are compacted.
    pub(super) compacted: Vec<(TopicName, bool)>,
}

#[derive(Debug)]
pub(super) struct FoundTopic {
    pub(super) name: TopicName,
    pub(super) topic_id: Option<TopicId>,
    /// Leader and epoch by partition.
    pub(super) leaders: Vec<Option<(i32, i32)>>,
}

pub(super) struct Discovery {
    pub(super) cluster: Cluster,
    pub(super) filter: TopicFilter,
    pub(super) interval: Duration,
    pub(super) watched: watch::Receiver<Watched>,
    pub(super) found: mpsc::Sender<Found>,
    pub(super) events: mpsc::Sender<SourceEvent>,
}

/// What is remembered from look to look.
#[derive(Default)]
struct Memory {
    cluster_id: String,
    failed_looks: u32,
    /// Looks in a row that missed a topic that was there.
    missed: BTreeMap<TopicName, u32>,
    /// Topics that were there, so that a miss may be a broker's ignorance.
    seen: BTreeSet<TopicName>,
    configs: Configs,
    trouble: Option<String>,
}

/// One look's result for one topic.
enum Outcome {
    Found(SourceTopic),
    Problem(String),
    /// Not sure yet: nothing is told.
    Doubtful,
}

impl Discovery {
    pub(super) async fn run(mut self, contacted: Latch) {
        let mut memory = Memory::default();
        self.first_contact(&mut memory).await;
        drop(contacted);
        let mut pause = SHORTEST_PAUSE;
        loop {
            let started = Instant::now();
            self.watched.mark_unchanged();
            self.search(&mut memory).await;
            if !self.watched.borrow().topics.is_empty() {
                self.look(&mut memory).await;
            }
            // The end of the other side is the end of the process.
            let asked = timeout_at(started + self.interval, self.watched.changed()).await;
            pause = match asked {
                Ok(Ok(())) => {
                    let resting = started + pause;
                    let rested = Instant::now() > resting + LONGEST_PAUSE;
                    tokio::time::sleep_until(resting).await;
                    if rested { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) }
                }
                Ok(Err(_)) => return,
                Err(_) => SHORTEST_PAUSE,
            };
        }
    }

    async fn first_contact(&self, memory: &mut Memory) {
        match timeout(FIRST_CONTACT, self.cluster.metadata(Some(&[]))).await {
            Ok(Ok(metadata)) => memory.cluster_id = metadata.cluster_id.unwrap_or_default(),
            Ok(Err(error)) => self.trouble(memory, Some(error.to_string())).await,
            Err(_) => self.trouble(memory, Some("no answer from the source cluster".to_owned())).await,
        }
        self.tell(SourceEvent::Contact { cluster_id: memory.cluster_id.clone() }).await;
    }

    async fn tell(&self, event: SourceEvent) {
        // Nobody listens when the process ends.
        drop(self.events.send(event).await);
    }

    /// Tells and logs a change of how the cluster does.
    async fn trouble(&self, memory: &mut Memory, trouble: Option<String>) {
        if memory.trouble == trouble {
            return;
        }
        if let Some(reason) = &trouble {
            tracing::warn!(%reason, "source cluster cannot be read");
        } else {
            tracing::info!("source cluster answers again");
        }
        memory.trouble.clone_from(&trouble);
        self.tell(SourceEvent::Trouble(trouble)).await;
    }

    /// Tells of all topics that the filters mean and the site lets out.
    async fn search(&self, memory: &mut Memory) {
        let filters = self.watched.borrow().filters.clone();
        if filters.is_empty() {
            return;
        }
        let metadata = match timeout(LOOK_DEADLINE, self.cluster.metadata(None)).await {
            Ok(Ok(metadata)) => metadata,
            Ok(Err(error)) => return self.trouble(memory, Some(error.to_string())).await,
            Err(_) => return self.trouble(memory, Some("no answer from the source cluster".to_owned())).await,
        };
        let is_meant = |topic: &TopicName| {
            filters.iter().any(|filter| filter.matches(topic)) && self.filter.admits(topic) && !is_internal(topic)
        };
        let found = metadata.topics.into_iter().filter(|topic| topic.error.is_none());
        let topics: Vec<_> = found.filter_map(|topic| TopicName::new(&topic.name).ok()).filter(is_meant).collect();
        if !topics.is_empty() {
            self.tell(SourceEvent::Inputs(vec![EdgeInput::Discovered { topics }])).await;
        }
    }

    async fn look(&self, memory: &mut Memory) {
        let (watched, problems) = {
            let watched = self.watched.borrow();
            (watched.topics.clone(), watched.problems.clone())
        };
        let (admitted, denied): (Vec<_>, Vec<_>) = watched.into_iter().partition(|topic| self.filter.admits(topic));
        let mut inputs: Vec<_> = denied.into_iter().map(denied_by_site).collect();
        if !admitted.is_empty() {
            match timeout(LOOK_DEADLINE, self.ask(memory, &admitted)).await {
                Ok(Ok(outcomes)) => {
                    memory.failed_looks = 0;
                    self.trouble(memory, None).await;
                    inputs.extend(outcomes.into_iter().filter_map(|(topic, outcome)| {
                        let problem = problems.get(&topic).cloned();
                        input(topic, outcome, problem)
                    }));
                }
                Ok(Err(error)) => self.failed(memory, admitted, error.to_string(), &mut inputs).await,
                Err(_) => {
                    let reason = "no answer from the source cluster".to_owned();
                    self.failed(memory, admitted, reason, &mut inputs).await;
                }
            }
        }
        if !inputs.is_empty() {
            self.tell(SourceEvent::Inputs(inputs)).await;
        }
    }

    async fn failed(&self, memory: &mut Memory, topics: Vec<TopicName>, reason: String, inputs: &mut Vec<EdgeInput>) {
        memory.failed_looks = memory.failed_looks.saturating_add(1);
        if memory.failed_looks < LOOKS_TO_BE_SURE && !memory.seen.is_empty() {
            tracing::debug!(%reason, "look at the source failed");
            return;
        }
        self.trouble(memory, Some(reason.clone())).await;
        inputs.extend(topics.into_iter().map(|topic| EdgeInput::Source { topic, source: Err(reason.clone()) }));
    }

    /// Metadata of all topics, then configs of those that are there.
    async fn ask(&self, memory: &mut Memory, topics: &[TopicName]) -> Result<Vec<(TopicName, Outcome)>, KafkaError> {
        let names: Vec<_> = topics.iter().map(|topic| topic.as_str().to_owned()).collect();
        let metadata = self.cluster.metadata(Some(&names)).await?;
        if let Some(id) = metadata.cluster_id.filter(|id| *id != memory.cluster_id) {
            memory.cluster_id = id;
            self.tell(SourceEvent::Contact { cluster_id: memory.cluster_id.clone() }).await;
        }
        let mut by_name: BTreeMap<_, _> =
            metadata.topics.into_iter().map(|topic| (Arc::clone(&topic.name), topic)).collect();
        let mut outcomes = Vec::with_capacity(topics.len());
        let mut there = Vec::new();
        let mut leaders = Vec::new();
        for name in topics {
            match shape(by_name.remove(name.as_str())) {
                Ok(topic) => {
                    memory.missed.remove(name);
                    memory.seen.insert(name.clone());
                    leaders.push(FoundTopic {
                        name: name.clone(),
                        topic_id: topic.topic_id,
                        leaders: topic.partitions.iter().map(|at| Some((at.leader?, at.leader_epoch))).collect(),
                    });
                    there.push((name.clone(), topic));
                }
                Err(problem) => outcomes.push((name.clone(), memory.doubt(name, problem))),
            }
        }
        // Leaders before the site hears of the topic: its fetches come right after.
        drop(self.found.send(Found { topics: leaders, compacted: Vec::new() }).await);
        if there.is_empty() {
            return Ok(outcomes);
        }
        let connection = self.cluster.controller().await?;
        for (number, chunk) in there.chunks(CONFIG_TOPICS).enumerate() {
            let told = memory.configs.look(&connection, number, chunk).await?;
            let policies =
                chunk.iter().zip(&told).filter_map(|((name, _), told)| Some((name.clone(), told.compacted()?)));
            drop(self.found.send(Found { topics: Vec::new(), compacted: policies.collect() }).await);
            let found = chunk.iter().zip(told);
            outcomes
                .extend(found.map(|((name, topic), told)| (name.clone(), Outcome::Found(told.source_topic(topic)))));
        }
        Ok(outcomes)
    }
}

impl Memory {
    /// A topic that was there a moment ago is not gone because one broker says so.
    fn doubt(&mut self, topic: &TopicName, problem: String) -> Outcome {
        let missed = self.missed.entry(topic.clone()).or_default();
        *missed = missed.saturating_add(1);
        if *missed < LOOKS_TO_BE_SURE && self.seen.contains(topic) {
            Outcome::Doubtful
        } else {
            Outcome::Problem(problem)
        }
    }
}

/// Topics of Kafka itself: `__consumer_offsets`, `__transaction_state` and the like.
fn is_internal(topic: &TopicName) -> bool {
    topic.as_str().starts_with("__")
}

fn denied_by_site(topic: TopicName) -> EdgeInput {
    let detail = "the agent's topics.allow and topics.deny keep this topic on site";
    EdgeInput::SourceFailed { topic, failure: Failure::of_topic(FailureCode::DeniedBySite, detail) }
}

fn input(topic: TopicName, outcome: Outcome, problem: Option<String>) -> Option<EdgeInput> {
    match (outcome, problem) {
        (Outcome::Found(_), Some(problem)) | (Outcome::Problem(problem), _) => {
            Some(EdgeInput::Source { topic, source: Err(problem) })
        }
        (Outcome::Found(source), None) => Some(EdgeInput::Source { topic, source: Ok(source) }),
        (Outcome::Doubtful, _) => None,
    }
}

/// The topic, if all its partitions are known.
fn shape(topic: Option<Topic>) -> Result<Topic, String> {
    let Some(topic) = topic else {
        return Err("the source cluster does not tell about it".to_owned());
    };
    match topic.error {
        Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION | ErrorCode::UNKNOWN_TOPIC_ID) => {
            return Err(missing(&topic.name));
        }
        Some(code @ ErrorCode::TOPIC_AUTHORIZATION_FAILED) => {
            return Err(format!("the source hides topic {}: {code}; grant READ and DESCRIBE on it", topic.name));
        }
        Some(code) => return Err(format!("topic {} cannot be read: {code}", topic.name)),
        None => {}
    }
    let whole = topic.partitions.iter().zip(0..).all(|(partition, at): (_, Partition)| partition.id == at);
    match Partition::try_from(topic.partitions.len()) {
        Ok(1..=MAX_PARTITIONS) if whole => Ok(topic),
        Ok(0) => Err(format!("topic {} has no partitions yet", topic.name)),
        Ok(1..=MAX_PARTITIONS) => Err(format!("topic {} is being made or deleted", topic.name)),
        Ok(_) | Err(_) => Err(format!("topic {} has more than {MAX_PARTITIONS} partitions", topic.name)),
    }
}

/// A topic that was never made, or is no more. It comes back by itself if somebody only hid it.
fn missing(topic: &str) -> String {
    format!(
        "SOURCE_TOPIC_MAY_BE_DELETED: topic {topic} does not exist at the source. The mirror keeps what it holds; take it out \
         of the link's mirrors, or make the topic again"
    )
}

#[cfg(test)]
#[path = "discovery/discovery_test.rs"]
mod tests;
