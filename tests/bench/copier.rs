//! The ceiling: a plain copier that fetches raw batches and produces them, over one connection each, and knows nothing of
//! links, journals, order after failures or being killed. Producer ids and sequences stay the source's.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tombolo_kafka::fetch::{FetchOptions, FetchPosition, FetchSession};
use tombolo_kafka::produce::{ProduceBatch, send_produce};
use tombolo_kafka::{ClientSettings, Cluster, KafkaError};
use tombolo_proto::batch::split;

/// Produce requests on their way: what keeps order with idempotent batches.
const IN_FLIGHT: usize = 5;
const ANSWERS_AHEAD: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes before a batch's length field: its base offset, which a produced batch has as 0.
const BASE_OFFSET_BYTES: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Copy {
    #[arg(long)]
    source: String,
    #[arg(long)]
    cloud: String,
    /// Topics with their partitions, `name:count`.
    #[arg(required = true)]
    topics: Vec<String>,
}

/// Copies until it is killed.
#[expect(clippy::print_stderr, reason = "a process of its own, whose errors go to a log")]
pub(crate) async fn run(copy: &Copy) -> ExitCode {
    match work(copy).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cluster(bootstrap: &str) -> Cluster {
    let settings = ClientSettings::from_properties([("bootstrap.servers", bootstrap)]);
    Cluster::new(settings.expect("an address is all it takes"))
}

type Answer = Vec<(Arc<str>, i32, Bytes)>;

/// Brokers are single here: every partition has the same leader.
async fn work(copy: &Copy) -> Result<(), KafkaError> {
    let (source, cloud) = (cluster(&copy.source), cluster(&copy.cloud));
    let mut partitions = Vec::new();
    for topic in &copy.topics {
        let (name, count) = topic.split_once(':').expect("topics are name:count");
        let (name, count): (Arc<str>, i32) = (name.into(), count.parse().expect("topics are name:count"));
        partitions.extend((0..count).map(|partition| (Arc::clone(&name), partition)));
    }
    let (first, _) = partitions.first().expect("a topic is required");
    let from = source.connect(source.leader(first, 0).await?.broker).await?;
    let to = cloud.connect(cloud.leader(first, 0).await?.broker).await?;
    let options = FetchOptions {
        max_wait: Duration::from_millis(500),
        min_bytes: 1,
        max_bytes: 16 << 20,
        partition_max_bytes: 4 << 20,
        read_committed: false,
        sessions: true,
    };
    let mut session = FetchSession::new(from, options);
    for (topic, partition) in &partitions {
        session.add(topic, None, *partition, start_at(0));
    }
    let (answers, fetched) = mpsc::channel::<Answer>(ANSWERS_AHEAD);
    tokio::try_join!(fetch(session, answers), produce(&to, fetched))?;
    Ok(())
}

fn start_at(offset: i64) -> FetchPosition {
    FetchPosition { offset, current_leader_epoch: -1, last_fetched_epoch: None }
}

async fn fetch(mut session: FetchSession, answers: mpsc::Sender<Answer>) -> Result<(), KafkaError> {
    loop {
        let mut answer = Vec::new();
        for fetched in session.fetch().await? {
            let mut next = None;
            for batch in split(fetched.records).map_while(Result::ok) {
                next = Some(batch.next_offset());
                answer.push((Arc::clone(&fetched.topic), fetched.partition, batch.bytes().clone()));
            }
            if let Some(next) = next {
                session.advance(&fetched.topic, fetched.partition, start_at(next));
            }
        }
        if answers.send(answer).await.is_err() {
            return Ok(());
        }
    }
}

async fn produce(to: &tombolo_kafka::Connection, mut fetched: mpsc::Receiver<Answer>) -> Result<(), KafkaError> {
    let mut sent = FuturesOrdered::new();
    while let Some(answer) = fetched.recv().await {
        let mut queues: BTreeMap<(Arc<str>, i32), VecDeque<Bytes>> = BTreeMap::new();
        for (topic, partition, batch) in answer {
            queues.entry((topic, partition)).or_default().push_back(batch);
        }
        // A request takes one batch of each partition.
        loop {
            let heads = queues.iter_mut().filter_map(|((topic, partition), queue)| {
                let batch = queue.pop_front()?;
                Some(ProduceBatch {
                    topic: Arc::clone(topic),
                    topic_id: None,
                    partition: *partition,
                    batch: at_zero(batch),
                })
            });
            let batches: Vec<ProduceBatch> = heads.collect();
            if batches.is_empty() {
                break;
            }
            if sent.len() == IN_FLIGHT {
                settle(sent.next().await)?;
            }
            sent.push_back(send_produce(to, batches, TIMEOUT));
        }
        // An answer that is waited for while nothing is fetched is an answer all the same.
        while fetched.is_empty() && !sent.is_empty() {
            settle(sent.next().await)?;
        }
    }
    Ok(())
}

fn settle(answers: Option<Result<Vec<tombolo_kafka::produce::ProduceAnswer>, KafkaError>>) -> Result<(), KafkaError> {
    for answer in answers.transpose()?.unwrap_or_default() {
        assert!(answer.result.is_ok(), "{}/{}: {:?}", answer.topic, answer.partition, answer.result);
    }
    Ok(())
}

/// The batch with base offset 0, as producers send it: outside its checksum.
fn at_zero(batch: Bytes) -> Bytes {
    let mut bytes = batch.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if let Some(base_offset) = bytes.get_mut(..BASE_OFFSET_BYTES) {
        base_offset.fill(0);
    }
    bytes.freeze()
}
