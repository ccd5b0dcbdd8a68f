//! The way to skip for who may not write markers: empty transactions, whose coordinator writes them. Slower, and not
//! exact: the coordinator may write a marker twice after a failure, and then the mirror is FAILED. So it is the operator's
//! choice.
//!
//! One task of a session: a transaction takes in all partitions that have a stretch to skip, and skips one offset of each.
//!
//! Must never: write under a producer id that the registry does not have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tombolo_kafka::admin::{self, TransactionAnswer, TransactionalProducer};
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};
use tombolo_kafka::{Connection, KafkaError};
use tombolo_proto::id::{LinkName, Offset};
use tombolo_proto::mirror::SkipOutcome;
use tombolo_service::tasks::Tasks;

use super::{LOOK_EVERY, Lane, Stretch, look};
use crate::leased::LeasedCluster;
use crate::metrics;
use crate::registry::{Lapse, NoteError, Registry};
use crate::session::Event;

/// For the coordinator to be ready for the next transaction, or to be found.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// A transaction that is left open is aborted after this, which takes an offset too.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// For the markers to be written, and replicated.
const MARKER_DEADLINE: Duration = Duration::from_secs(10);
/// Transactions before the stretches' progress is told.
const ROUNDS: i64 = 50;
/// What gives the right to write, for the operator.
const ACL_COMMAND: &str = "kafka-acls.sh --add --allow-principal User:NAME-OF-THE-GATEWAY --operation Write";

/// What it works with.
#[derive(Debug, Clone)]
pub(crate) struct Transactions {
    pub(crate) link: LinkName,
    pub(crate) cloud: LeasedCluster,
    pub(crate) registry: Registry,
    pub(crate) events: mpsc::Sender<Event>,
}

/// The queue of a session.
#[derive(Debug)]
pub(crate) struct Queue(Arc<Lane>);

struct Coordinator {
    connection: Connection,
    producer: TransactionalProducer,
}

/// Why a transaction did not come about.
#[derive(Debug, thiserror::Error)]
enum TransactionError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("the session may not write: {0}")]
    Lease(#[from] tombolo_proto::lease::LeaseError),
    #[error("{0}")]
    Coordinator(ErrorCode),
    /// No transaction was begun, for these partitions alone.
    #[error("not for {} partitions", .0.len())]
    Partitions(Vec<Faulty>),
}

/// A partition that no transaction may take in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Faulty {
    topic: Arc<str>,
    partition: i32,
    code: ErrorCode,
}

impl Queue {
    pub(crate) fn start(context: Transactions, tasks: &Tasks) -> Self {
        let lane = Arc::<Lane>::default();
        let (run, stop) = (run(Arc::clone(&lane), context), tasks.stop_token().clone());
        tasks.spawn("empty transactions", async move {
            tokio::select! {
                () = run => {}
                () = stop.cancelled() => {}
            }
        });
        Self(lane)
    }

    /// Queues a stretch; [`Event::Skipped`] follows.
    pub(crate) fn skip(&self, stretch: Stretch) {
        self.0.queue().push_back(stretch);
        self.0.ready.notify_one();
    }
}

async fn run(lane: Arc<Lane>, context: Transactions) {
    let mut coordinator = None;
    loop {
        let stretches = lane.gather();
        if stretches.is_empty() {
            lane.ready.notified().await;
            continue;
        }
        for (stretch, outcome) in context.skip(&mut coordinator, stretches).await {
            if let SkipOutcome::Appended { log_end } = outcome {
                metrics::markers_appended((log_end - stretch.offset).clamp(0, stretch.count));
            }
            let Stretch { mirror, partition, ticket, .. } = stretch;
            if context.events.send(Event::Skipped { mirror, partition, ticket, outcome }).await.is_err() {
                return;
            }
        }
    }
}

impl Transactions {
    async fn skip(
        &self,
        coordinator: &mut Option<Coordinator>,
        mut stretches: Vec<Stretch>,
    ) -> Vec<(Stretch, SkipOutcome)> {
        stretches.retain(|stretch| stretch.wish.is_sent());
        let mut outcomes = Vec::with_capacity(stretches.len());
        if coordinator.is_none() {
            match self.coordinator().await {
                Ok(found) => *coordinator = Some(found),
                Err(error) => {
                    let outcome = of_error(&error, &self.link);
                    return stretches.into_iter().map(|stretch| (stretch, outcome.clone())).collect();
                }
            }
        }
        let mut open = Vec::with_capacity(stretches.len());
        for stretch in stretches {
            match self.at_its_end(&stretch).await {
                None => open.push(stretch),
                Some(outcome) => outcomes.push((stretch, outcome)),
            }
        }
        let rounds = open.iter().map(|stretch| stretch.count).max().unwrap_or(0).min(ROUNDS);
        let mut round = 0;
        while round < rounds {
            let wanting: Vec<_> = open
                .iter()
                .filter(|stretch| stretch.count > round && stretch.wish.is_sent())
                .map(|stretch| (stretch.topic.shared(), stretch.partition))
                .collect();
            if wanting.is_empty() {
                break;
            }
            match self.transaction(coordinator.as_ref(), &wanting).await {
                Ok(()) => round += 1,
                // The others go on without them.
                Err(TransactionError::Partitions(faulty)) => outcomes.extend(set_apart(&mut open, &faulty)),
                Err(error) => {
                    // Aborts what is open, before anybody looks at the logs again.
                    *coordinator = self.coordinator().await.ok();
                    let outcome = of_error(&error, &self.link);
                    outcomes.extend(open.into_iter().map(|stretch| (stretch, outcome.clone())));
                    return outcomes;
                }
            }
        }
        for stretch in open {
            let expected = stretch.offset + stretch.count.min(rounds);
            let outcome = match self.reached(&stretch, expected).await {
                Ok(log_end) => SkipOutcome::Appended { log_end },
                Err(reason) => SkipOutcome::Doubt { reason },
            };
            outcomes.push((stretch, outcome));
        }
        outcomes
    }

    /// `None` where the log ends where the stretch begins. The abort of a transaction that was left open takes an offset of
    /// each of its partitions, whenever somebody becomes the producer: a log end that was read before may be an old one.
    async fn at_its_end(&self, stretch: &Stretch) -> Option<SkipOutcome> {
        match self.reached(stretch, stretch.offset).await {
            Ok(end) if end == stretch.offset => None,
            Ok(log_end) => Some(SkipOutcome::Appended { log_end }),
            Err(reason) => Some(SkipOutcome::Doubt { reason }),
        }
    }

    /// One offset of each partition.
    async fn transaction(
        &self,
        coordinator: Option<&Coordinator>,
        partitions: &[(Arc<str>, i32)],
    ) -> Result<(), TransactionError> {
        let Some(Coordinator { connection, producer }) = coordinator else {
            return Err(TransactionError::Coordinator(ErrorCode::COORDINATOR_NOT_AVAILABLE));
        };
        let patience = Patience::begin();
        loop {
            self.cloud.lease.soon().await?;
            let opened = admin::add_partitions_to_txn(connection, producer, partitions).await;
            let opened = opened.map_err(TransactionError::Kafka).and_then(all_open);
            if let Some(opened) = patience.settled_on(connection, opened).await {
                break opened?;
            }
        }
        loop {
            self.cloud.lease.soon().await?;
            let ended = admin::end_txn(connection, producer).await.map_err(TransactionError::Kafka);
            if let Some(ended) = patience.settled_on(connection, ended).await {
                return ended;
            }
        }
    }

    /// The coordinator, which this makes the one producer of the link's transactional id.
    async fn coordinator(&self) -> Result<Coordinator, TransactionError> {
        let patience = Patience::begin();
        let found = loop {
            let found = match self.find().await {
                // It has not heard of it yet.
                Err(error) if code_of(&error) == Some(ErrorCode::NOT_COORDINATOR) => {
                    Err(TransactionError::Coordinator(ErrorCode::COORDINATOR_NOT_AVAILABLE))
                }
                found => found,
            };
            if let Some(found) = patience.settled(found).await {
                break found?;
            }
        };
        self.registry.note_skipper(&self.cloud.lease, &self.link, found.producer.producer_id).await?;
        Ok(found)
    }

    async fn find(&self) -> Result<Coordinator, TransactionError> {
        let id: Arc<str> = format!("tombolo-{}", self.link).into();
        let broker = admin::find_coordinator(&self.cloud.cluster.controller().await?, &id).await?;
        let connection = self.cloud.cluster.connect(broker).await?;
        let producer = admin::init_producer_id(&connection, &id, TRANSACTION_TIMEOUT).await?;
        Ok(Coordinator { connection, producer })
    }

    /// The log end, once the markers are there and replicated: they are written after the transaction was answered.
    async fn reached(&self, stretch: &Stretch, expected: Offset) -> Result<Offset, String> {
        let connection = self.cloud.cluster.shared(stretch.leader.broker).await.map_err(|error| error.to_string())?;
        let deadline = Instant::now() + MARKER_DEADLINE;
        loop {
            let (ends, marks) = look(&connection, &[super::query(stretch)]).await.map_err(|error| error.to_string())?;
            let of_one =
                |offsets: super::Offsets| offsets.into_iter().next().unwrap_or(Err(ErrorCode::OFFSET_NOT_AVAILABLE));
            let end = of_one(ends).map_err(|code| code.to_string())?;
            let mark = of_one(marks).map_err(|code| code.to_string())?;
            if end >= expected && mark >= end {
                return Ok(end);
            }
            if Instant::now() > deadline {
                return Err(format!("the log ends at {end}, the high watermark is {mark}, expected was {expected}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Time that the coordinator is given to be ready.
struct Patience {
    until: Instant,
}

impl Patience {
    fn begin() -> Self {
        Self { until: Instant::now() + PATIENCE }
    }

    /// As [`Self::settled`], for who asks again over this connection: one that has failed says the same for ever.
    async fn settled_on<T>(
        &self,
        connection: &Connection,
        answer: Result<T, TransactionError>,
    ) -> Option<Result<T, TransactionError>> {
        if connection.is_poisoned() { Some(answer) } else { self.settled(answer).await }
    }

    /// The answer, unless it is to be asked again, now that a moment has passed.
    async fn settled<T>(&self, answer: Result<T, TransactionError>) -> Option<Result<T, TransactionError>> {
        match answer {
            Err(error) if is_not_yet(&error) && Instant::now() < self.until => {
                tokio::time::sleep(PAUSE).await;
                None
            }
            settled => Some(settled),
        }
    }
}

/// Whether a transaction is open in all partitions. That one was not attempted is another's fault.
fn all_open(answers: Vec<TransactionAnswer>) -> Result<(), TransactionError> {
    // Codes of one partition (`KafkaApis.handleAddPartitionsToTxnRequest`); all others are the coordinator's.
    let own = [ErrorCode::TOPIC_AUTHORIZATION_FAILED, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION];
    let (mut faulty, mut codes) = (Vec::new(), Vec::new());
    for TransactionAnswer { topic, partition, result } in answers {
        match result {
            Ok(()) => {}
            Err(code) if own.contains(&code) => faulty.push(Faulty { topic, partition, code }),
            Err(code) => codes.push(code),
        }
    }
    if !faulty.is_empty() {
        return Err(TransactionError::Partitions(faulty));
    }
    let fault = codes.iter().find(|code| **code != ErrorCode::OPERATION_NOT_ATTEMPTED);
    fault.or_else(|| codes.first()).map_or(Ok(()), |code| Err(TransactionError::Coordinator(*code)))
}

/// Takes the stretches of these partitions out, each with what it means for its mirror.
fn set_apart(open: &mut Vec<Stretch>, faulty: &[Faulty]) -> Vec<(Stretch, SkipOutcome)> {
    let mut apart = Vec::new();
    for Faulty { topic, partition, code } in faulty {
        let reason = format!("an empty transaction: {topic}[{partition}]: {code}");
        let outcome = if *code == ErrorCode::TOPIC_AUTHORIZATION_FAILED {
            SkipOutcome::Refused { reason: format!("{reason}: {ACL_COMMAND} --topic {topic}") }
        } else {
            SkipOutcome::Doubt { reason }
        };
        let of_it = |stretch: &mut Stretch| stretch.topic.as_str() == &**topic && stretch.partition == *partition;
        apart.extend(open.extract_if(.., of_it).map(|stretch| (stretch, outcome.clone())));
    }
    apart
}

fn code_of(error: &TransactionError) -> Option<ErrorCode> {
    match error {
        TransactionError::Kafka(error) => error.error_code(),
        TransactionError::Coordinator(code) => Some(*code),
        TransactionError::Note(_) | TransactionError::Lease(_) | TransactionError::Partitions(_) => None,
    }
}

/// What the lease kept from being sent is waited for too. `NOT_COORDINATOR` is not among them: it has to be looked up again.
fn is_not_yet(error: &TransactionError) -> bool {
    let waits = [
        ErrorCode::COORDINATOR_LOAD_IN_PROGRESS,
        ErrorCode::COORDINATOR_NOT_AVAILABLE,
        ErrorCode::CONCURRENT_TRANSACTIONS,
    ];
    let lapsed = matches!(error, TransactionError::Kafka(error) if error.is_lapse());
    lapsed || code_of(error).is_some_and(|code| waits.contains(&code))
}

fn of_error(error: &TransactionError, link: &LinkName) -> SkipOutcome {
    let mut reason = format!("an empty transaction: {error}");
    if code_of(error) == Some(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED) {
        reason = format!("{reason}: {ACL_COMMAND} --transactional-id tombolo-{link}");
    }
    let unsupported =
        matches!(error, TransactionError::Kafka(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }));
    if unsupported || code_of(error) == Some(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED) {
        SkipOutcome::Refused { reason }
    } else {
        SkipOutcome::Doubt { reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_is_waited_for_and_the_rest_is_doubted_or_final() {
        let (error, link) = (TransactionError::Coordinator, LinkName::new("ship-17").unwrap());
        assert!(is_not_yet(&error(ErrorCode::CONCURRENT_TRANSACTIONS)));
        for code in [ErrorCode::NOT_COORDINATOR, ErrorCode::PRODUCER_FENCED, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION] {
            assert!(!is_not_yet(&error(code)), "{code}");
            assert!(matches!(of_error(&error(code), &link), SkipOutcome::Doubt { .. }), "{code}");
        }
        let refused = of_error(&error(ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED), &link);
        let SkipOutcome::Refused { reason } = refused else { panic!("{refused:?}") };
        assert!(reason.ends_with("--operation Write --transactional-id tombolo-ship-17"), "{reason}");
    }

    #[test]
    fn a_partition_that_may_not_be_written_to_is_no_fault_of_the_others() {
        let answer =
            |topic: &str, partition, code| TransactionAnswer { topic: topic.into(), partition, result: Err(code) };
        let (denied, gone) = (ErrorCode::TOPIC_AUTHORIZATION_FAILED, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        let answers = vec![
            answer("a", 0, ErrorCode::OPERATION_NOT_ATTEMPTED),
            answer("b", 1, denied),
            answer("c", 0, gone),
            answer("a", 1, ErrorCode::OPERATION_NOT_ATTEMPTED),
        ];
        let Err(TransactionError::Partitions(faulty)) = all_open(answers) else { panic!("it was refused") };
        let stretch = |topic: &str, partition| Stretch {
            mirror: tombolo_proto::id::MirrorId(0),
            partition,
            ticket: 0,
            topic: tombolo_proto::id::TopicName::new(topic).unwrap(),
            leader: tombolo_kafka::cluster::Leader { broker: 1, epoch: 3 },
            offset: 7,
            count: 1,
            wish: super::super::Wish::default(),
        };
        let mut open = vec![stretch("a", 0), stretch("b", 1), stretch("c", 0), stretch("a", 1)];
        let apart = set_apart(&mut open, &faulty);
        let left: Vec<_> = open.iter().map(|one| (one.topic.as_str(), one.partition)).collect();
        assert_eq!(left, [("a", 0), ("a", 1)]);
        let [(of_b, SkipOutcome::Refused { reason }), (of_c, SkipOutcome::Doubt { .. })] = &apart[..] else {
            panic!("{apart:?}")
        };
        assert_eq!((of_b.topic.as_str(), of_c.topic.as_str()), ("b", "c"));
        assert!(reason.ends_with("--operation Write --topic b"), "{reason}");
        // The coordinator says the same of all.
        let busy = vec![answer("a", 0, ErrorCode::CONCURRENT_TRANSACTIONS)];
        assert!(is_not_yet(&all_open(busy).unwrap_err()));
    }
}
