//! Fetch: raw record sets of several partitions of one leader, with incremental sessions (KIP-227) where granted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction as WireAborted, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{FetchRequest, TopicName};

use crate::TopicId;
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError};
use crate::wire::{known_id, millis, text, topic_id};

/// From the next version on, topics are named by id.
const NEWEST_BY_NAME: i16 = 12;
const OLDEST_WITH_SESSIONS: i16 = 7;
const OLDEST_WITH_DIVERGENCE: i16 = 12;
/// `FetchMetadata`: no session; asks for one; wants none.
const NO_SESSION: i32 = 0;
const FIRST_EPOCH: i32 = 0;
const NO_SESSION_EPOCH: i32 = -1;
/// Within one call; a broker that refuses fresh sessions too has another problem.
const MAX_RESTARTS: u32 = 2;

/// Limits and manners of a [`FetchSession`].
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// How long the broker may hold the answer back for `min_bytes`.
    pub max_wait: Duration,
    /// Bytes the broker waits for.
    pub min_bytes: i32,
    /// Bytes of records in one answer; one batch larger than that still comes whole.
    pub max_bytes: i32,
    /// Bytes of records of one partition in one answer, with the same exception.
    pub partition_max_bytes: i32,
    /// Only up to the last stable offset.
    pub read_committed: bool,
    /// Ask for an incremental session.
    pub sessions: bool,
}

/// Where to go on in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPosition {
    /// Offset to fetch from.
    pub offset: i64,
    /// Leader epoch from metadata, -1 where unknown.
    pub current_leader_epoch: i32,
    /// Leader epoch of the last batch fetched: with it the broker answers a diverging epoch.
    pub last_fetched_epoch: Option<i32>,
}

/// One partition of a Fetch answer.
#[derive(Debug, Clone)]
pub struct FetchedPartition {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// The broker's error for this partition.
    pub error: Option<ErrorCode>,
    /// High watermark, -1 where unknown.
    pub high_watermark: i64,
    /// Last stable offset, -1 where unknown.
    pub last_stable_offset: i64,
    /// Log start offset, -1 where unknown.
    pub log_start_offset: i64,
    /// Transactions aborted within `records`, with their producer id and first offset: in an answer to a
    /// [`FetchOptions::read_committed`] request, none else. Their batches come all the same.
    pub aborted: Vec<AbortedTransaction>,
    /// Largest epoch and its end offset where the broker's log parts from what was fetched (KIP-595).
    pub diverging_epoch: Option<(i32, i64)>,
    /// Whole batches, the last may be cut off; the first may begin below the offset asked for. A slice of the answer:
    /// it keeps the memory of the whole answer.
    pub records: Bytes,
}

/// A transaction that ended with an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbortedTransaction {
    /// Offset of its first record.
    pub first_offset: i64,
    /// Its producer.
    pub producer_id: i64,
}

/// How far a fetch may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// To the high watermark.
    ReadUncommitted,
    /// To the last stable offset.
    ReadCommitted,
}

/// The fetcher of one leader: which partitions, from where. One request at a time.
#[derive(Debug)]
pub struct FetchSession {
    connection: Connection,
    options: FetchOptions,
    wanted: BTreeMap<Place, Wanted>,
    /// Names of topics whose ids are known.
    names: HashMap<TopicId, Arc<str>>,
    /// What the broker's session holds, while one is open.
    held: BTreeMap<Place, Wanted>,
    /// Where the two may differ: of thousands of idle partitions only these are compared.
    changed: BTreeSet<Place>,
    session: Session,
    /// Where the next full request begins, so that no partition is always the last to be served.
    turn: usize,
}

type Place = (Arc<str>, i32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    topic_id: Option<TopicId>,
    position: FetchPosition,
}

/// Where this client and the broker stand (KIP-227, `org.apache.kafka.clients.FetchSessionHandler`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    /// Every request names all partitions and asks for a session, in the place of an older one if there was.
    Ask { replaces: i32 },
    /// Requests name changes only.
    Open { id: i32, epoch: i32, by_id: bool },
}

impl Session {
    const NONE: Self = Self::Ask { replaces: NO_SESSION };
}

/// A Fetch about to be sent.
struct Question {
    request: FetchRequest,
    version: i16,
    /// The session that it goes on with.
    goes_on: Option<(i32, i32)>,
}

impl FetchSession {
    /// The connection should be this session's own: a waiting fetch holds back every later answer.
    pub fn new(connection: Connection, options: FetchOptions) -> Self {
        Self {
            connection,
            options,
            wanted: BTreeMap::new(),
            names: HashMap::new(),
            held: BTreeMap::new(),
            changed: BTreeSet::new(),
            session: Session::NONE,
            turn: 0,
        }
    }

    /// The connection it fetches over.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Takes a partition in, or moves it to `position`.
    pub fn add(&mut self, topic: &Arc<str>, topic_id: Option<TopicId>, partition: i32, position: FetchPosition) {
        let place = (Arc::clone(topic), partition);
        let before = self.wanted.insert(place.clone(), Wanted { topic_id, position });
        if let Some(id) = topic_id {
            self.names.insert(id, Arc::clone(topic));
        }
        self.forget_id(before.filter(|before| before.topic_id != topic_id), &place);
        self.changed.insert(place);
    }

    /// Leaves a partition out from the next request on.
    pub fn remove(&mut self, topic: &str, partition: i32) {
        let place = (Arc::from(topic), partition);
        let before = self.wanted.remove(&place);
        self.forget_id(before, &place);
        self.changed.insert(place);
    }

    /// A partition of this topic was the last, perhaps, under its id.
    fn forget_id(&mut self, gone: Option<Wanted>, place: &Place) {
        let Some(id) = gone.and_then(|gone| gone.topic_id) else { return };
        let all = (Arc::clone(&place.0), i32::MIN)..=(Arc::clone(&place.0), i32::MAX);
        if self.wanted.range(all).all(|(_, wanted)| wanted.topic_id != Some(id)) {
            self.names.remove(&id);
        }
    }

    /// Moves a partition; false where it is not in.
    pub fn advance(&mut self, topic: &str, partition: i32, position: FetchPosition) -> bool {
        let place = (Arc::from(topic), partition);
        let Some(wanted) = self.wanted.get_mut(&place) else { return false };
        wanted.position = position;
        self.changed.insert(place);
        true
    }

    /// How long the broker may wait for records, from the next request on.
    pub fn set_max_wait(&mut self, max_wait: Duration) {
        self.options.max_wait = max_wait;
    }

    /// Bytes of records in one answer, from the next request on; the first batch comes whole all the same.
    pub fn set_max_bytes(&mut self, max_bytes: i32) {
        self.options.max_bytes = max_bytes;
    }

    /// Whether no partition is in.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Sends one Fetch and waits for its answer: partitions with records, an error or news of their offsets. With no
    /// partition in, answers nothing at once. May be dropped: the next call then starts a new session.
    pub async fn fetch(&mut self) -> Result<Vec<FetchedPartition>, KafkaError> {
        if self.wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut restarts = 0;
        loop {
            let question = self.question()?;
            // Should this future be dropped, nobody knows what the broker's session holds.
            let replaces = question.goes_on.map_or(NO_SESSION, |(id, _)| id);
            self.session = Session::Ask { replaces };
            let deadline = self.connection.deadline(self.options.max_wait);
            let answer = self.connection.call(&question.request, question.version, deadline).await?;
            match ErrorCode::from_wire(answer.error_code) {
                None => {
                    let fetched = self.read(&answer.responses)?;
                    self.session = next(&question, answer.session_id)?;
                    self.hold(question.goes_on.is_some());
                    return Ok(fetched);
                }
                Some(ErrorCode::FETCH_SESSION_ID_NOT_FOUND | ErrorCode::FETCH_SESSION_TOPIC_ID_ERROR)
                    if restarts < MAX_RESTARTS =>
                {
                    self.session = Session::NONE;
                    restarts += 1;
                }
                Some(ErrorCode::INVALID_FETCH_SESSION_EPOCH) if restarts < MAX_RESTARTS => restarts += 1,
                Some(code) => return Err(KafkaError::code(Api::Fetch, code)),
            }
        }
    }

    fn question(&mut self) -> Result<Question, KafkaError> {
        let all_by_id = self.wanted.values().all(|wanted| wanted.topic_id.is_some());
        let version = self.connection.version::<FetchRequest>(if all_by_id { i16::MAX } else { NEWEST_BY_NAME })?;
        let by_id = version > NEWEST_BY_NAME;
        let request = base(&self.options);
        let goes_on = match self.session {
            Session::Open { id, epoch, by_id: before } if by_id == before && !self.topic_changed() => Ok((id, epoch)),
            Session::Open { id, .. } => Err(id),
            Session::Ask { replaces } => Err(replaces),
        };
        let (request, goes_on) = match goes_on {
            Ok((id, epoch)) => {
                let changed = self.changed.iter().filter_map(|place| self.wanted.get_key_value(place));
                let changed = changed.filter(|(place, wanted)| self.held.get(*place) != Some(wanted));
                let gone = self.changed.iter().filter(|place| !self.wanted.contains_key(*place));
                let gone = gone.filter_map(|place| self.held.get_key_value(place));
                let request = request
                    .with_session_id(id)
                    .with_session_epoch(epoch)
                    .with_topics(self.topics(changed, version))
                    .with_forgotten_topics_data(forgotten(gone, by_id));
                (request, Some((id, epoch)))
            }
            Err(replaces) => {
                let first = self.turn % self.wanted.len().max(1);
                self.turn = self.turn.wrapping_add(1);
                let all = self.wanted.iter().cycle().skip(first).take(self.wanted.len());
                let request = request.with_topics(self.topics(all, version));
                let request = if self.options.sessions && version >= OLDEST_WITH_SESSIONS {
                    request.with_session_id(replaces).with_session_epoch(FIRST_EPOCH)
                } else {
                    request.with_session_id(NO_SESSION).with_session_epoch(NO_SESSION_EPOCH)
                };
                (request, None)
            }
        };
        Ok(Question { request, version, goes_on })
    }

    /// The broker took the question: its session, if it has one, holds what is wanted.
    fn hold(&mut self, went_on: bool) {
        let changed = std::mem::take(&mut self.changed);
        if self.session == Session::NONE {
            self.held.clear();
        } else if went_on {
            for place in changed {
                match self.wanted.get(&place) {
                    Some(wanted) => self.held.insert(place, *wanted),
                    None => self.held.remove(&place),
                };
            }
        } else {
            self.held.clone_from(&self.wanted);
        }
    }

    fn read(&self, answers: &[FetchableTopicResponse]) -> Result<Vec<FetchedPartition>, KafkaError> {
        let unasked = || KafkaError::answer(Api::Fetch, AnswerError::Unasked);
        let mut fetched = Vec::new();
        let mut seen = HashSet::new();
        for answer in answers {
            let id = known_id(answer.topic_id.into_bytes());
            let name = match id {
                Some(id) => Arc::clone(self.names.get(&id).ok_or_else(unasked)?),
                None => Arc::from(answer.topic.as_str()),
            };
            for partition in &answer.partitions {
                let place = (Arc::clone(&name), partition.partition_index);
                let (place, wanted) = self.wanted.get_key_value(&place).ok_or_else(unasked)?;
                if id.is_some_and(|id| wanted.topic_id != Some(id)) || !seen.insert(place) {
                    return Err(unasked());
                }
                fetched.push(read_partition(place, partition));
            }
        }
        Ok(fetched)
    }

    /// Whether a topic has been made anew: its old id's partitions cannot be left out one by one.
    fn topic_changed(&self) -> bool {
        self.changed.iter().any(|place| match (self.wanted.get(place), self.held.get(place)) {
            (Some(wanted), Some(held)) => wanted.topic_id != held.topic_id,
            (Some(_) | None, _) => false,
        })
    }

    fn topics<'a>(&self, places: impl Iterator<Item = (&'a Place, &'a Wanted)>, version: i16) -> Vec<FetchTopic> {
        let max_bytes = self.options.partition_max_bytes;
        grouped(places)
            .into_iter()
            .map(|(name, id, partitions)| {
                let partitions = partitions
                    .into_iter()
                    .map(|(partition, wanted)| fetch_partition(partition, wanted.position, max_bytes, version));
                fetch_topic(name, id, version > NEWEST_BY_NAME).with_partitions(partitions.collect())
            })
            .collect()
    }
}

/// What `fetch_once` asks for.
#[derive(Debug, Clone)]
pub struct FetchOnce<'a> {
    /// Topic.
    pub topic: &'a Arc<str>,
    /// Topic id, where known.
    pub topic_id: Option<TopicId>,
    /// Partition.
    pub partition: i32,
    /// Offset to fetch from.
    pub offset: i64,
    /// Leader epoch from metadata, -1 where unknown.
    pub leader_epoch: i32,
    /// Bytes of records; one batch larger than that still comes whole.
    pub max_bytes: i32,
    /// How long the broker may wait for the first record.
    pub max_wait: Duration,
    /// How far to read.
    pub isolation: Isolation,
}

/// One partition, one Fetch, no session.
pub async fn fetch_once(connection: &Connection, once: FetchOnce<'_>) -> Result<FetchedPartition, KafkaError> {
    let options = FetchOptions {
        max_wait: once.max_wait,
        min_bytes: 1,
        max_bytes: once.max_bytes,
        partition_max_bytes: once.max_bytes,
        read_committed: once.isolation == Isolation::ReadCommitted,
        sessions: false,
    };
    let mut session = FetchSession::new(connection.clone(), options);
    let position =
        FetchPosition { offset: once.offset, current_leader_epoch: once.leader_epoch, last_fetched_epoch: None };
    session.add(once.topic, once.topic_id, once.partition, position);
    let mut fetched = session.fetch().await?;
    fetched.pop().ok_or_else(|| KafkaError::answer(Api::Fetch, AnswerError::Missing).at(once.topic, once.partition))
}

/// The fields that are the same in every request of a fetcher. The rack id stays empty: a follower would answer only
/// up to what it knows of the high watermark.
fn base(options: &FetchOptions) -> FetchRequest {
    FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_wait_ms(millis(options.max_wait))
        .with_min_bytes(options.min_bytes)
        .with_max_bytes(options.max_bytes)
        .with_isolation_level(i8::from(options.read_committed))
}

fn fetch_partition(partition: i32, position: FetchPosition, max_bytes: i32, version: i16) -> FetchPartition {
    let asked = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(position.offset)
        .with_current_leader_epoch(position.current_leader_epoch)
        .with_partition_max_bytes(max_bytes);
    match position.last_fetched_epoch {
        Some(epoch) if version >= OLDEST_WITH_DIVERGENCE => asked.with_last_fetched_epoch(epoch),
        Some(_) | None => asked,
    }
}

fn fetch_topic(name: &str, id: Option<TopicId>, by_id: bool) -> FetchTopic {
    match id.filter(|_| by_id) {
        Some(id) => FetchTopic::default().with_topic_id(topic_id(id)),
        None => FetchTopic::default().with_topic(TopicName(text(name))),
    }
}

fn forgotten<'a>(gone: impl Iterator<Item = (&'a Place, &'a Wanted)>, by_id: bool) -> Vec<ForgottenTopic> {
    grouped(gone)
        .into_iter()
        .map(|(name, id, partitions)| {
            let topic = ForgottenTopic::default()
                .with_partitions(partitions.into_iter().map(|(partition, _)| partition).collect());
            match id.filter(|_| by_id) {
                Some(id) => topic.with_topic_id(topic_id(id)),
                None => topic.with_topic(TopicName(text(name))),
            }
        })
        .collect()
}

type Grouped<'a> = Vec<(&'a str, Option<TopicId>, Vec<(i32, &'a Wanted)>)>;

/// Partitions by topic, topics in the order in which they come first.
fn grouped<'a>(places: impl Iterator<Item = (&'a Place, &'a Wanted)>) -> Grouped<'a> {
    let mut topics: Grouped<'a> = Vec::new();
    let mut at: HashMap<&str, usize> = HashMap::new();
    for ((topic, partition), wanted) in places {
        let place = *at.entry(topic).or_insert(topics.len());
        match topics.get_mut(place) {
            Some((_, _, partitions)) => partitions.push((*partition, wanted)),
            None => topics.push((topic, wanted.topic_id, vec![(*partition, wanted)])),
        }
    }
    topics
}

fn next(question: &Question, granted: i32) -> Result<Session, KafkaError> {
    let by_id = question.version > NEWEST_BY_NAME;
    match (question.goes_on, granted) {
        (None, NO_SESSION) => Ok(Session::NONE),
        (None, id) => Ok(Session::Open { id, epoch: FIRST_EPOCH + 1, by_id }),
        (Some((id, epoch)), granted) if granted == id => {
            Ok(Session::Open { id, epoch: epoch.checked_add(1).unwrap_or(FIRST_EPOCH + 1), by_id })
        }
        (Some(_), _) => Err(KafkaError::answer(Api::Fetch, AnswerError::Range("the session id"))),
    }
}

fn read_partition(place: &Place, answer: &PartitionData) -> FetchedPartition {
    let diverging = &answer.diverging_epoch;
    FetchedPartition {
        topic: Arc::clone(&place.0),
        partition: place.1,
        error: ErrorCode::from_wire(answer.error_code),
        high_watermark: answer.high_watermark,
        last_stable_offset: answer.last_stable_offset,
        log_start_offset: answer.log_start_offset,
        aborted: answer.aborted_transactions.iter().flatten().map(aborted).collect(),
        diverging_epoch: (diverging.epoch >= 0).then_some((diverging.epoch, diverging.end_offset)),
        records: answer.records.clone().unwrap_or_default(),
    }
}

fn aborted(transaction: &WireAborted) -> AbortedTransaction {
    AbortedTransaction { first_offset: transaction.first_offset, producer_id: transaction.producer_id.0 }
}

#[cfg(test)]
#[path = "fetch/fetch_test.rs"]
mod tests;
