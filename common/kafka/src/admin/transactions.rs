//! Transactions without data: the way to an invisible offset for who may not write markers. Not exact: the coordinator
//! repeats a marker after a disconnect or failover (`TransactionMarkerRequestCompletionHandler`, KAFKA-19999), so the log
//! end tells what happened.
//!
//! In order: [`find_coordinator`] at any broker, the rest at the coordinator: [`init_producer_id`] once, then for each offset
//! [`add_partitions_to_txn`] and [`end_txn`]. `COORDINATOR_LOAD_IN_PROGRESS`, `COORDINATOR_NOT_AVAILABLE` and
//! `CONCURRENT_TRANSACTIONS` (the markers of the last transaction are not all written) mean: wait and ask again;
//! `NOT_COORDINATOR`: look it up again; `PRODUCER_FENCED` or `INVALID_PRODUCER_EPOCH`: another initialised the id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use super::{by_topic, nothing_left, refused};
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError, KafkaErrorKind};
use crate::wire::{millis, text};

/// `FindCoordinatorRequest.CoordinatorType.TRANSACTION`
const TRANSACTION: i8 = 1;

/// A producer as its coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionalProducer {
    /// Transactional id.
    pub transactional_id: Arc<str>,
    /// Producer id allotted to it.
    pub producer_id: i64,
    /// Epoch; earlier ones are fenced.
    pub epoch: i16,
}

/// Answer for one partition.
#[derive(Debug, Clone)]
pub struct TransactionAnswer {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// `OPERATION_NOT_ATTEMPTED` where another partition's error kept this one out.
    pub result: Result<(), ErrorCode>,
}

/// The broker that coordinates a transactional id; asking creates `__transaction_state`. Needs DESCRIBE on the id.
pub async fn find_coordinator(connection: &Connection, transactional_id: &str) -> Result<i32, KafkaError> {
    let version = connection.version::<FindCoordinatorRequest>(i16::MAX)?;
    let request = FindCoordinatorRequest::default().with_key(text(transactional_id)).with_key_type(TRANSACTION);
    let answer = connection.call(&request, version, connection.deadline(Duration::ZERO)).await?;
    whole(Api::FindCoordinator, answer.error_code, answer.error_message.as_ref())?;
    Ok(answer.node_id.0)
}

/// Makes this the one producer of the transactional id: its open transaction is aborted, earlier producers are fenced. The
/// coordinator aborts transactions that stay open for `timeout`. Needs WRITE on the id.
pub async fn init_producer_id(
    connection: &Connection,
    transactional_id: &Arc<str>,
    timeout: Duration,
) -> Result<TransactionalProducer, KafkaError> {
    let version = connection.version::<InitProducerIdRequest>(i16::MAX)?;
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text(transactional_id))))
        .with_transaction_timeout_ms(millis(timeout))
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let answer = connection.call(&request, version, connection.deadline(Duration::ZERO)).await?;
    whole(Api::InitProducerId, answer.error_code, None)?;
    let transactional_id = Arc::clone(transactional_id);
    Ok(TransactionalProducer { transactional_id, producer_id: answer.producer_id.0, epoch: answer.producer_epoch })
}

/// Opens a transaction, or adds partitions to the open one, as a write that the guard is asked about (v3 at most: later
/// versions are for brokers). Needs WRITE on the topics. Answers come in the order asked.
pub async fn add_partitions_to_txn(
    connection: &Connection,
    producer: &TransactionalProducer,
    partitions: &[(Arc<str>, i32)],
) -> Result<Vec<TransactionAnswer>, KafkaError> {
    const API: Api = Api::AddPartitionsToTxn;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let version = connection.version::<AddPartitionsToTxnRequest>(i16::MAX)?;
    let topics = by_topic(partitions.iter().map(|(topic, partition)| (topic, *partition)))
        .into_iter()
        .map(|(name, partitions)| AddPartitionsToTxnTopic::default().with_name(name).with_partitions(partitions));
    let request = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(text(&producer.transactional_id)))
        .with_v3_and_below_producer_id(producer.producer_id.into())
        .with_v3_and_below_producer_epoch(producer.epoch)
        .with_v3_and_below_topics(topics.collect());
    let answer = connection.submit(&request, version, connection.deadline(Duration::ZERO), true).await?;
    let mut found = HashMap::new();
    for topic in &answer.results_by_topic_v3_and_below {
        for partition in &topic.results_by_partition {
            found.insert((topic.name.as_str(), partition.partition_index), partition.partition_error_code);
        }
    }
    let answers = partitions
        .iter()
        .map(|(topic, partition)| {
            let missing = || KafkaError::answer(API, AnswerError::Missing).at(topic, *partition);
            let code = found.remove(&(&**topic, *partition)).ok_or_else(missing)?;
            let result = ErrorCode::from_wire(code).map_or(Ok(()), Err);
            Ok(TransactionAnswer { topic: Arc::clone(topic), partition: *partition, result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

/// Commits the open transaction, as a write that the guard is asked about: its coordinator writes a marker to each of its
/// partitions. That happens after the answer.
pub async fn end_txn(connection: &Connection, producer: &TransactionalProducer) -> Result<(), KafkaError> {
    let version = connection.version::<EndTxnRequest>(i16::MAX)?;
    let request = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(text(&producer.transactional_id)))
        .with_producer_id(producer.producer_id.into())
        .with_producer_epoch(producer.epoch)
        .with_committed(true);
    let answer = connection.submit(&request, version, connection.deadline(Duration::ZERO), true).await?;
    whole(Api::EndTxn, answer.error_code, None)
}

/// The error of a whole answer.
fn whole(api: Api, code: i16, message: Option<&StrBytes>) -> Result<(), KafkaError> {
    refused(code, message).map_err(|refusal| {
        KafkaError::new(api, KafkaErrorKind::Broker { code: refusal.code, message: refusal.message })
    })
}
