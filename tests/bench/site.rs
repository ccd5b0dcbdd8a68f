//! A site without a Kafka cluster: the agent's own half of the protocol over QUIC, fed with a record now and then. A thousand
//! of them fit into one process, which a thousand agents do not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, IdleTimeout, TransportConfig};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until};
use tombolo_kafka::records::{Record, Writer, encode_batch};
use tombolo_proto::batch::Batch;
use tombolo_proto::edge::{EdgeConfig, EdgeInput, EdgeLink, EdgeOutput, Retention, SourceTopic, Verdict};
use tombolo_proto::frame::Entry;
use tombolo_proto::id::{Offset, Partition, Time, TopicName};
use tombolo_proto::wire::{ALPN, CloudBody, CloudMessage, ControlDecoder, Positions, encode};
use tombolo_service::tls;

/// Partitions of the site's one topic.
pub(crate) const PARTITIONS: i32 = 10;
/// A record to one of its partitions in turn.
const RECORD_EVERY: Duration = Duration::from_secs(1);
const RECORD_BYTES: usize = 200;
const FIRST_TIMESTAMP: i64 = 1_790_000_000_000;
const WINDOW_BYTES: usize = 256 << 10;
const FRAME_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;
/// As an agent's settings have it by default.
const IDLE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const REDIAL: Duration = Duration::from_millis(500);

/// What the sites are told: a higher number means to drop the connection and dial again.
pub(crate) type Order = watch::Receiver<u32>;

/// A record was confirmed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    pub(crate) site: usize,
    /// When it was there.
    pub(crate) at: Instant,
    /// How long it took.
    pub(crate) after: Duration,
}

/// Who dials whom.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) site: usize,
    pub(crate) topic: String,
    pub(crate) gateway: SocketAddr,
    pub(crate) client: ClientConfig,
    pub(crate) endpoint: Endpoint,
}

/// A link's certificate, as an agent shows it.
pub(crate) fn client(folder: &Path, link: &str) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let file = |name: &str| folder.join(name);
    let chain = tls::cert_chain(&file(&format!("{link}.pem"))).expect("dev-certs writes certificates");
    let key = tls::private_key(&file(&format!("{link}.key"))).expect("dev-certs writes keys");
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(tls::roots(&file("ca.pem")).expect("dev-certs writes a CA"))
        .with_client_auth_cert(chain, key)
        .expect("key and certificate go together");
    crypto.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(crypto).expect("the provider has the cipher suite of QUIC's first packets");
    let mut client = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE).expect("seconds");
    transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(KEEP_ALIVE));
    client.transport_config(Arc::new(transport));
    client
}

struct Log {
    /// Offset after the last record of the "source".
    end: Offset,
    /// Offset after the last one that was read.
    read: Offset,
    fetch: Option<u64>,
    paused: bool,
    /// Records that are not confirmed, and since when they are there.
    waiting: VecDeque<(Offset, Instant)>,
}

struct Site {
    edge: EdgeLink,
    start: Instant,
    topic: TopicName,
    logs: Vec<Log>,
    records: usize,
    number: usize,
    confirmed: mpsc::Sender<Confirmed>,
}

/// Works until its order's sender is gone.
pub(crate) async fn run(place: Place, mut order: Order, confirmed: mpsc::Sender<Confirmed>) {
    let config = EdgeConfig {
        software: "simulated site".to_owned(),
        incarnation: rand::random_range(1..=u64::MAX),
        window_bytes: WINDOW_BYTES,
        spill_delay: Time::from_secs(2),
        max_frame_bytes: FRAME_BYTES,
    };
    let log = || Log { end: 0, read: 0, fetch: None, paused: false, waiting: VecDeque::new() };
    let mut site = Site {
        edge: EdgeLink::new(config),
        start: Instant::now(),
        topic: TopicName::new(&place.topic).expect("a name that Kafka takes"),
        logs: (0..PARTITIONS).map(|_| log()).collect(),
        records: 0,
        number: place.site,
        confirmed,
    };
    // Sites are not in step.
    let phase = RECORD_EVERY.mul_f64(rand::random_range(0.0..1.0));
    let mut ticks = interval_at(tokio::time::Instant::now() + phase, RECORD_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let connecting = place.endpoint.connect_with(place.client.clone(), place.gateway, "localhost");
        if let Ok(connection) = connecting.expect("an address and a name are there").await {
            let ended = site.session(&connection, &mut ticks, &mut order).await;
            connection.close(0_u32.into(), b"");
            site.handle(EdgeInput::Disconnected);
            while site.edge.poll_output().is_some() {}
            if ended == Ended::Order {
                continue;
            }
        }
        if order.has_changed().is_err() {
            return;
        }
        sleep(REDIAL).await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Order,
    Connection,
}

impl Site {
    fn handle(&mut self, input: EdgeInput) {
        self.edge.handle(input, self.start.elapsed());
    }

    async fn session(
        &mut self,
        connection: &Connection,
        ticks: &mut tokio::time::Interval,
        order: &mut Order,
    ) -> Ended {
        let Ok((mut control, mut answers)) = connection.open_bi().await else { return Ended::Connection };
        let Ok(mut data) = connection.open_uni().await else { return Ended::Connection };
        let mut decoder = ControlDecoder::default();
        self.handle(EdgeInput::Connected { cluster_id: "simulated".to_owned() });
        loop {
            for message in self.outputs() {
                if control.write_chunk(message).await.is_err() {
                    return Ended::Connection;
                }
            }
            while let Some(frame) = self.edge.poll_frame() {
                if data.write_all_chunks(&mut frame.encode()).await.is_err() {
                    return Ended::Connection;
                }
            }
            let wake = self.edge.next_timeout().map(|(at, _)| tokio::time::Instant::from_std(self.start + at));
            tokio::select! {
                chunk = answers.read_chunk(READ_BYTES, true) => {
                    let Ok(Some(chunk)) = chunk else { return Ended::Connection };
                    decoder.push(&chunk.bytes);
                    while let Ok(Some(message)) = decoder.next_message::<CloudMessage>() {
                        if let Some(CloudBody::Confirm(positions)) = &message.body {
                            self.confirmed(positions);
                        }
                        self.handle(EdgeInput::Message(message));
                    }
                }
                _ = ticks.tick() => self.record(),
                () = until(wake) => self.handle(EdgeInput::Timeout),
                changed = order.changed() => return if changed.is_ok() { Ended::Order } else { Ended::Connection },
            }
        }
    }

    /// Does what the half-protocol says; what is to be sent.
    fn outputs(&mut self) -> Vec<Bytes> {
        let mut messages = Vec::new();
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::Send(message) => messages.push(encode(&message)),
                EdgeOutput::Discover { topic } => {
                    let source = SourceTopic {
                        partitions: PARTITIONS,
                        topic_id: None,
                        configs: Vec::new(),
                        retention: Retention::default(),
                    };
                    self.handle(EdgeInput::Source { topic, source: Ok(source) });
                }
                EdgeOutput::CompareTail { topic, partition, ticket, .. } => {
                    let verdict = Verdict::Agrees;
                    self.handle(EdgeInput::TailCompared { topic, partition, ticket, verdict });
                }
                EdgeOutput::Fetch { partition, fetch, offset, .. } => {
                    let log = self.log(partition);
                    (log.fetch, log.read, log.paused) = (Some(fetch), offset, false);
                    log.end = log.end.max(offset);
                    self.read(partition);
                }
                EdgeOutput::PauseFetch { partition, .. } => self.log(partition).paused = true,
                EdgeOutput::ResumeFetch { partition, .. } => {
                    self.log(partition).paused = false;
                    self.read(partition);
                }
                EdgeOutput::StopFetch { partition, .. } => self.log(partition).fetch = None,
                EdgeOutput::Close { code, reason } => panic!("site {} closes: {code:?} {reason}", self.number),
                EdgeOutput::Watch { .. }
                | EdgeOutput::Forget { .. }
                | EdgeOutput::Spill { .. }
                | EdgeOutput::Load { .. }
                | EdgeOutput::Trim { .. }
                | EdgeOutput::Discard { .. }
                | EdgeOutput::Event(_) => {}
            }
        }
        messages
    }

    fn log(&mut self, partition: Partition) -> &mut Log {
        let place = usize::try_from(partition).expect("partitions count from 0");
        self.logs.get_mut(place).expect("the topic has so many partitions")
    }

    /// One more record.
    fn record(&mut self) {
        let partition = i32::try_from(self.records % self.logs.len()).expect("a small count");
        self.records += 1;
        let log = self.log(partition);
        log.end += 1;
        let end = log.end;
        log.waiting.push_back((end, Instant::now()));
        self.read(partition);
    }

    fn read(&mut self, partition: Partition) {
        let topic = self.topic.clone();
        let log = self.log(partition);
        let Some(fetch) = log.fetch.filter(|_| !log.paused) else { return };
        let entries: Vec<Entry> = (log.read..log.end).map(|offset| Entry::Batch(batch(offset))).collect();
        log.read = log.end;
        let high_watermark = log.end;
        let input =
            EdgeInput::Fetched { topic, partition, fetch, entries, epoch: Some(0), high_watermark, log_start: 0 };
        self.handle(input);
    }

    fn confirmed(&mut self, positions: &Positions) {
        let now = Instant::now();
        for entry in &positions.entries {
            let log = self.log(entry.partition);
            let mut done = Vec::new();
            while log.waiting.front().is_some_and(|(end, _)| *end <= entry.offset) {
                done.extend(log.waiting.pop_front());
            }
            for (_, since) in done {
                let confirmed = Confirmed { site: self.number, at: since, after: now.duration_since(since) };
                // Closed: nobody counts any more.
                let full = matches!(self.confirmed.try_send(confirmed), Err(TrySendError::Full(_)));
                assert!(!full, "confirms are not counted as fast as they come");
            }
        }
    }
}

async fn until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The same for the same offset: what is sent again is what was sent before.
fn batch(offset: Offset) -> Batch {
    let value = Bytes::from(format!("{offset:0>RECORD_BYTES$}"));
    let timestamp = FIRST_TIMESTAMP + offset;
    let record = Record { offset: 0, timestamp, key: None, value: Some(value), headers: Vec::new() };
    let encoded = encode_batch(&[record], Writer { producer_id: -1, epoch: -1, sequence: -1 });
    let mut bytes = BytesMut::from(&encoded.expect("a record is there")[..]);
    bytes.get_mut(..8).expect("a batch begins with its offset").copy_from_slice(&offset.to_be_bytes());
    Batch::parse(bytes.freeze()).expect("the encoder writes whole batches")
}
