//! Whether a mirror's end is what the source holds there, and whether the source still holds an offset at all.
//!
//! Asks as long as it takes; a broker in trouble is no evidence. Whoever started it drops it when the answer is of no
//! more use.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tombolo_kafka::admin::{OffsetQuery, OffsetSpec, list_offsets};
use tombolo_kafka::cluster::Leader;
use tombolo_kafka::fetch::{FetchOnce, Isolation, fetch_once};
use tombolo_kafka::{Cluster, Connection, ErrorCode, KafkaError};
use tombolo_proto::edge::{EdgeInput, Verdict, contradicts, differs};
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{Offset, Partition, TopicName};
use tombolo_proto::wire::TailBatch;

use super::records::{Answer, Found, Origin, Stop, Walk};

/// A log that ends too early may be a new leader's that does not know its high watermark yet.
const SETTLE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
/// Fetches of one comparison: 16 batches of a mirror need a few.
const MAX_FETCHES: usize = 64;

/// Why the source did not answer. Asked again.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Client(#[from] KafkaError),
    #[error("broker answered {0}")]
    Broker(ErrorCode),
}

/// A comparison to be made.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) topic: TopicName,
    pub(super) partition: Partition,
    pub(super) ticket: u64,
    pub(super) tail: Vec<TailBatch>,
    pub(super) next_offset: Offset,
}

/// Why the log does not hold an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// It begins above it.
    Deleted { log_start: Offset },
    /// It ends below it.
    Truncated(Failure),
}

/// The part of the log that the source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    start: Offset,
    end: Offset,
}

/// Finds the answer, however long the brokers take.
pub(super) async fn compare_with_source(cluster: &Cluster, question: Question, limit: i32) -> EdgeInput {
    let patience = Patience::new(cluster, &question.topic, question.partition);
    let verdict = loop {
        match attempt(cluster, &question, limit, &patience).await {
            Ok(Some(verdict)) => break verdict,
            Ok(None) => patience.pause(None).await,
            Err(error) => patience.pause(Some(error)).await,
        }
    };
    let Question { topic, partition, ticket, .. } = question;
    EdgeInput::TailCompared { topic, partition, ticket, verdict }
}

/// After the broker refused to read at `offset`: `Ok` where the log holds it after all.
pub(super) async fn find_offset(
    cluster: &Cluster,
    topic: &TopicName,
    partition: Partition,
    offset: Offset,
) -> Result<(), Missing> {
    let patience = Patience::new(cluster, topic, partition);
    loop {
        let bounds = match bounds(cluster, topic, partition).await {
            Ok((_, bounds)) => bounds,
            Err(error) => {
                patience.pause(Some(error)).await;
                continue;
            }
        };
        match missing(partition, offset, bounds) {
            None => return Ok(()),
            Some(Missing::Truncated(_)) if !patience.is_over() => patience.pause(None).await,
            Some(missing) => return Err(missing),
        }
    }
}

/// What it means that the log does not hold `offset`, or `None` where it does.
fn missing(partition: Partition, offset: Offset, bounds: Bounds) -> Option<Missing> {
    let Bounds { start, end } = bounds;
    if offset < start {
        return Some(Missing::Deleted { log_start: start });
    }
    (offset > end).then(|| {
        let detail = format!(
            "the source's log ends at offset {end}, the mirror at {offset}: the source lost records that it had \
             acknowledged (an unclean leader election, or the topic was made anew)"
        );
        Missing::Truncated(Failure::at(FailureCode::UnexpectedTruncation, partition, end, detail).until(offset))
    })
}

/// How long a log may end too early, and the pauses between two looks.
struct Patience<'a> {
    cluster: &'a Cluster,
    topic: &'a TopicName,
    partition: Partition,
    until: Instant,
}

impl<'a> Patience<'a> {
    fn new(cluster: &'a Cluster, topic: &'a TopicName, partition: Partition) -> Self {
        Self { cluster, topic, partition, until: Instant::now() + SETTLE }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn pause(&self, error: Option<Trouble>) {
        if let Some(error) = error {
            tracing::debug!(topic = %self.topic, partition = self.partition, %error, "source asked again");
        }
        self.cluster.forget_leader(self.topic.as_str(), self.partition);
        sleep(PAUSE).await;
    }
}

/// One try: `None` to look again.
async fn attempt(
    cluster: &Cluster,
    question: &Question,
    limit: i32,
    patience: &Patience<'_>,
) -> Result<Option<Verdict>, Trouble> {
    let Question { topic, partition, tail, next_offset, .. } = question;
    let (source, bounds) = bounds(cluster, topic, *partition).await?;
    if bounds.end < *next_offset {
        let verdict = match missing(*partition, *next_offset, bounds) {
            Some(Missing::Truncated(failure)) if patience.is_over() => Some(Verdict::Failed(failure)),
            Some(Missing::Truncated(_) | Missing::Deleted { .. }) | None => None,
        };
        return Ok(verdict);
    }
    let known = tail.last().filter(|last| last.last_offset >= bounds.start);
    // A gap before the first records may be long, and is no evidence.
    let first = tail.iter().find(|first| !first.gap).or_else(|| tail.first());
    let (Some(first), Some(_)) = (first, known) else {
        return Ok(Some(Verdict::Unverified));
    };
    let mut comparison = Comparison::new(*partition, tail);
    let mut offset = first.base_offset.max(bounds.start);
    for _ in 0..MAX_FETCHES {
        let once = FetchOnce {
            topic: &topic.shared(),
            topic_id: None,
            partition: *partition,
            offset,
            leader_epoch: source.leader.epoch,
            max_bytes: limit,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadCommitted,
        };
        let fetched = fetch_once(&source.connection, once).await?;
        match fetched.error {
            None => {}
            // Retention moved on: the bounds are read anew.
            Some(ErrorCode::OFFSET_OUT_OF_RANGE) => return Ok(None),
            Some(code) => return Err(Trouble::Broker(code)),
        }
        let before = offset;
        let answer = Answer {
            partition: *partition,
            offset,
            log_start: fetched.log_start_offset,
            records: fetched.records,
            aborted: fetched.aborted,
            read_before: offset,
            max_batch: usize::MAX,
        };
        for found in Walk::new(answer) {
            match found {
                Ok(found) => {
                    offset = found.entry.next_offset();
                    if let Some(failure) = comparison.add(&found) {
                        return Ok(Some(Verdict::Failed(failure)));
                    }
                }
                Err(Stop::Failed(failure)) if failure.code == FailureCode::CorruptSourceBatch => {
                    return Ok(Some(Verdict::Failed(failure)));
                }
                // What the source holds here is no batch of ours; the fetcher tells what it is.
                Err(Stop::Failed(_)) => return Ok(Some(comparison.verdict())),
                Err(Stop::Overtaken) => return Ok(None),
            }
        }
        if offset >= *next_offset {
            return Ok(Some(comparison.verdict()));
        }
        if offset == before {
            // Below the log end and nothing to read: the last stable offset, or a high watermark on its way.
            return Ok(patience.is_over().then(|| comparison.verdict()));
        }
    }
    Ok(Some(comparison.verdict()))
}

/// Where a log is, and how to reach it.
struct Place {
    leader: Leader,
    connection: Connection,
}

async fn bounds(cluster: &Cluster, topic: &TopicName, partition: Partition) -> Result<(Place, Bounds), Trouble> {
    let leader = cluster.leader(topic.as_str(), partition).await?;
    let connection = cluster.shared(leader.broker).await?;
    let query = [OffsetQuery { topic: topic.shared(), partition, leader_epoch: leader.epoch }];
    let start = one_offset(&connection, OffsetSpec::LogStart, &query).await?;
    let end = one_offset(&connection, OffsetSpec::LogEnd, &query).await?;
    Ok((Place { leader, connection }, Bounds { start, end }))
}

async fn one_offset(connection: &Connection, spec: OffsetSpec, query: &[OffsetQuery]) -> Result<Offset, Trouble> {
    let answers = list_offsets(connection, spec, query).await?;
    match answers.first().map(|answer| answer.result) {
        Some(Ok(found)) => Ok(found.offset),
        Some(Err(code)) => Err(Trouble::Broker(code)),
        None => Err(Trouble::Broker(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)),
    }
}

/// Compares entry by entry and keeps none of them.
struct Comparison<'a> {
    partition: Partition,
    tail: &'a [TailBatch],
    /// What must agree: records, where the tail has some; gaps look alike.
    by_gaps: bool,
    agreed: bool,
}

impl<'a> Comparison<'a> {
    fn new(partition: Partition, tail: &'a [TailBatch]) -> Self {
        Self { partition, tail, by_gaps: tail.iter().all(|theirs| theirs.gap), agreed: false }
    }

    /// An entry of the source: evidence against, where it overlaps with one of the mirror that cannot be of it.
    fn add(&mut self, found: &Found) -> Option<Failure> {
        let ours = TailBatch::of_entry(&found.entry);
        for theirs in self.tail.iter().filter(|theirs| ours.overlaps(theirs)) {
            self.agreed |= ours.agrees(theirs) && ours.gap == self.by_gaps;
            let against = match found.origin {
                Origin::Whole | Origin::Hidden => contradicts(&ours, theirs, false),
                Origin::Remade | Origin::Absent => contradicts(&ours, theirs, true),
                Origin::Joined => theirs.gap,
            };
            if against {
                return Some(differs(self.partition, &ours, theirs));
            }
        }
        None
    }

    fn verdict(&self) -> Verdict {
        if self.agreed { Verdict::Agrees } else { Verdict::Unverified }
    }
}

#[cfg(test)]
#[path = "tail/tail_test.rs"]
mod tests;
