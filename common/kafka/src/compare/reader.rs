//! One partition read from front to back by its leader, whoever that is at the moment.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tombolo_proto::batch::{BatchError, Split, split};

use super::entry::Entry;
use super::{CompareOptions, Reads};
use crate::admin::{OffsetQuery, OffsetSpec, list_offsets};
use crate::cluster::Cluster;
use crate::connection::Connection;
use crate::error::{AnswerError, Api, ErrorCode, KafkaError};
use crate::fetch::{FetchOptions, FetchPosition, FetchSession};

const RETRY_PAUSE: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_millis(500);

pub(super) struct Reader<'a> {
    cluster: &'a Cluster,
    topic: Arc<str>,
    partition: i32,
    options: CompareOptions,
    /// Offset of the next batch wanted, and the first that is not.
    range: Range<i64>,
    connection: Option<Connection>,
    answer: Option<Split>,
    head: Option<Result<Entry, BatchError>>,
    reads: Reads,
}

impl<'a> Reader<'a> {
    pub(super) fn new(cluster: &'a Cluster, topic: &Arc<str>, partition: i32, options: CompareOptions) -> Self {
        let topic = Arc::clone(topic);
        let (range, reads) = (0..0, Reads::default());
        Self { cluster, topic, partition, options, range, connection: None, answer: None, head: None, reads }
    }

    pub(super) fn seek(&mut self, range: Range<i64>) {
        self.range = range;
        self.answer = None;
        self.head = None;
    }

    pub(super) fn reads(&self) -> Reads {
        self.reads
    }

    /// Offset of the next batch wanted.
    pub(super) fn position(&self) -> i64 {
        self.range.start
    }

    /// Log start and high watermark.
    pub(super) async fn extent(&mut self) -> Result<Range<i64>, KafkaError> {
        let start = self.offset(OffsetSpec::LogStart).await?;
        let end = self.offset(OffsetSpec::HighWatermark).await?;
        Ok(start..end)
    }

    /// The next batch of the range, or why there is none that can be read. `None` at the end.
    pub(super) async fn peek(&mut self) -> Result<Option<Result<&Entry, BatchError>>, KafkaError> {
        let mut since = Instant::now();
        while self.head.is_none() && self.range.start < self.range.end {
            match self.answer.as_mut().and_then(Iterator::next) {
                Some(Ok(batch)) if batch.next_offset() <= self.range.start => {}
                Some(Ok(batch)) if batch.base_offset() >= self.range.end => self.range.start = self.range.end,
                Some(item) => self.head = Some(item.map(|batch| Entry::of(&batch))),
                None => {
                    let waiting = since.elapsed();
                    match self.fetch().await {
                        Ok(true) => since = Instant::now(),
                        Ok(false) if waiting < self.options.patience => {}
                        Ok(false) => return Err(self.failed(KafkaError::answer(Api::Fetch, AnswerError::Missing))),
                        Err(error) => self.recover(error, waiting).await?,
                    }
                }
            }
        }
        Ok(self.head.as_ref().map(|head| head.as_ref().map_err(|error| *error)))
    }

    /// What a thousand offsets take, of one answer at the range's start; 0 for an empty range.
    pub(super) async fn density(&mut self) -> Result<u64, KafkaError> {
        let Some(Ok(first)) = self.peek().await? else { return Ok(0) };
        let (start, mut next, mut bytes) = (first.base_offset, first.next_offset(), u64::from(first.bytes));
        for batch in self.answer.take().into_iter().flatten().flatten() {
            next = batch.next_offset();
            bytes += batch.len() as u64;
        }
        let offsets = u64::try_from(next - start).unwrap_or(1).max(1);
        Ok(bytes.saturating_mul(1_000) / offsets)
    }

    /// Goes on behind the batch that [`Reader::peek`] gave.
    pub(super) fn pass(&mut self) {
        if let Some(Ok(batch)) = self.head.take() {
            self.range.start = self.range.start.max(batch.next_offset());
        }
    }

    /// Whether anything came.
    async fn fetch(&mut self) -> Result<bool, KafkaError> {
        let (connection, leader_epoch) = self.leader().await?;
        let options = FetchOptions {
            max_wait: MAX_WAIT,
            min_bytes: 1,
            max_bytes: self.options.fetch_bytes,
            partition_max_bytes: self.options.fetch_bytes,
            read_committed: false,
            sessions: false,
        };
        let mut session = FetchSession::new(connection, options);
        let position =
            FetchPosition { offset: self.range.start, current_leader_epoch: leader_epoch, last_fetched_epoch: None };
        session.add(&self.topic, None, self.partition, position);
        let asked = Instant::now();
        let fetched = session.fetch().await?.pop();
        let fetched = fetched.ok_or_else(|| KafkaError::answer(Api::Fetch, AnswerError::Missing))?;
        if let Some(code) = fetched.error {
            return Err(KafkaError::code(Api::Fetch, code));
        }
        self.reads.bytes += fetched.records.len() as u64;
        self.reads.waited += asked.elapsed();
        let came = !fetched.records.is_empty();
        self.answer = Some(split(fetched.records));
        Ok(came)
    }

    async fn offset(&mut self, spec: OffsetSpec) -> Result<i64, KafkaError> {
        let since = Instant::now();
        loop {
            match self.ask_offset(spec).await {
                Ok(offset) => return Ok(offset),
                Err(error) => self.recover(error, since.elapsed()).await?,
            }
        }
    }

    async fn ask_offset(&mut self, spec: OffsetSpec) -> Result<i64, KafkaError> {
        let (connection, leader_epoch) = self.leader().await?;
        let query = OffsetQuery { topic: Arc::clone(&self.topic), partition: self.partition, leader_epoch };
        let answer = list_offsets(&connection, spec, &[query]).await?.pop();
        match answer.map(|answer| answer.result) {
            Some(Ok(found)) => Ok(found.offset),
            Some(Err(code)) => Err(KafkaError::code(Api::ListOffsets, code)),
            None => Err(KafkaError::answer(Api::ListOffsets, AnswerError::Missing)),
        }
    }

    async fn leader(&mut self) -> Result<(Connection, i32), KafkaError> {
        let leader = self.cluster.leader(&self.topic, self.partition).await?;
        let usable = |held: &Connection| held.broker_id() == leader.broker && !held.is_poisoned();
        let connection = match self.connection.take().filter(usable) {
            Some(connection) => connection,
            None => self.cluster.connect(leader.broker).await?,
        };
        self.connection = Some(connection.clone());
        Ok((connection, leader.epoch))
    }

    /// Waits before the next try, or gives up.
    async fn recover(&mut self, error: KafkaError, waiting: Duration) -> Result<(), KafkaError> {
        let hopeless = error.error_code() == Some(ErrorCode::OFFSET_OUT_OF_RANGE);
        if hopeless || !(error.retriable() || error.refresh_metadata()) || waiting >= self.options.patience {
            return Err(self.failed(error));
        }
        self.cluster.forget_leader(&self.topic, self.partition);
        tokio::time::sleep(RETRY_PAUSE).await;
        Ok(())
    }

    fn failed(&self, error: KafkaError) -> KafkaError {
        error.at(&self.topic, self.partition).at_offset(self.range.start)
    }
}
