//! One connection of a link: drives [`CloudLink`]. The loop selects an event, hands it over, and does what comes out.
//!
//! Everything slow runs in tasks whose answers come back as [`Event`]s. The loop never waits for a peer: what goes to the
//! agent or to brokers is queued, within the credit of the link and [`MAX_OUTBOX_BYTES`].

mod duties;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tombolo_kafka::cluster::ClusterMetadata;
use tombolo_proto::cloud::{CloudConfig, CloudEvent, CloudInput, CloudLink, CloudOutput, LinkSettings};
use tombolo_proto::id::{LinkName, MirrorId, Partition};
use tombolo_proto::mirror::{Outcome, SkipOutcome};
use tombolo_proto::wire::{CloseCode, encode};
use tombolo_service::tasks::Tasks;

use crate::carrier::{Carrier, CarrierError, CarrierLimits, Streams};
use crate::metrics;
use crate::recover::{Found, RecoverError};
use crate::registry::Claim;
use crate::shared::{Presence, Shared};
use crate::status::Agent;
use crate::topics::Upkeep;
use duties::Duties;

/// Answers of tasks waiting for the loop.
const EVENT_QUEUE: usize = 256;
/// Answers taken in at once, so that their confirms share a message.
const EVENTS_AT_ONCE: usize = 64;
/// Messages that the agent has not taken: positions of thousands of partitions fit. More means that it does not read.
const MAX_OUTBOX_BYTES: usize = 4 << 20;
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// For the rest of a frame to come, beyond the time in which a dead connection is found out.
const FRAME_PATIENCE: Duration = Duration::from_mins(1);
/// For the tasks of a session that is over.
const END_GRACE: Duration = Duration::from_secs(2);

/// Answer of a task to the session that started it.
#[derive(Debug)]
pub(crate) enum Event {
    /// For the half-protocol as it is.
    Input(CloudInput),
    /// The link is ours.
    Claimed { claim: Claim, credit: OwnedSemaphorePermit },
    /// A partition was looked at.
    Found { mirror: MirrorId, partition: Partition, attempt: u32, result: Result<Found, RecoverError> },
    /// What became of a batch.
    Produced { mirror: MirrorId, partition: Partition, ticket: u64, outcome: Outcome },
    /// What became of markers.
    Skipped { mirror: MirrorId, partition: Partition, ticket: u64, outcome: SkipOutcome },
    /// The cluster has no such mirror topic: it is made.
    Missing { mirror: MirrorId },
    /// Whether a mirror topic's configs are as they are to be.
    Kept { mirror: MirrorId, upkeep: Upkeep, result: Result<(), String> },
    /// Who leads which partition now.
    Leaders(Option<ClusterMetadata>),
}

/// One connection and its session.
pub(crate) struct Session {
    shared: Arc<Shared>,
    link: LinkName,
    carrier: Carrier,
    machine: CloudLink,
    duties: Duties,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    events: mpsc::Receiver<Event>,
    tasks: Tasks,
    /// Why the session ends, once it does.
    ended: Option<String>,
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        link: LinkName,
        carrier: Carrier,
        presence: Presence,
        stop: &CancellationToken,
    ) -> Self {
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        // Not a child of the stop: the session tells the agent first, then stops its tasks.
        let tasks = Tasks::new(&CancellationToken::new());
        let memory = shared.settings.memory;
        let machine = CloudLink::new(CloudConfig {
            producer_id: link.producer_id(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            credit_bytes: memory.credit_per_link,
            max_frame_bytes: memory.max_frame,
            link: settings_of(&shared, &link),
        });
        let duties = Duties::new(Arc::clone(&shared), link.clone(), presence, sender, tasks.clone(), stop.clone());
        Self {
            shared,
            link,
            carrier,
            machine,
            duties,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            events,
            tasks,
            ended: None,
        }
    }

    /// Runs to the end of the connection.
    pub(crate) async fn run(mut self) {
        let quic = self.shared.settings.quic;
        let limits = CarrierLimits {
            max_frame: self.shared.settings.memory.max_frame,
            open_deadline: quic.handshake_timeout,
            frame_deadline: quic.idle_timeout + FRAME_PATIENCE,
        };
        match self.carrier.open(limits, &self.tasks).await {
            Ok(streams) => self.serve(streams).await,
            Err(error) => {
                let reason = error.to_string();
                self.carrier.close(CloseCode::Protocol, &reason);
                self.ended = Some(reason);
            }
        }
        self.end().await;
    }

    async fn serve(&mut self, mut streams: Streams) {
        let mut links = self.shared.links.subscribe();
        let mut publish = tokio::time::interval(PUBLISH_EVERY);
        publish.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let carrier = self.carrier.clone();
        let closed = carrier.closed();
        tokio::pin!(closed);
        let stop = self.duties.stop.clone();
        // Its tasks are only told to stop when one of them failed, or at the end.
        let broken = self.tasks.stop_token().clone();
        while self.ended.is_none() {
            let wake = self.machine.next_timeout().map(|(at, _)| self.shared.clock.at(at));
            let lease = self.duties.lease();
            tokio::select! {
                Some(event) = self.events.recv() => self.take_events(event),
                Some(message) = streams.messages.recv() => match message {
                    Ok(message) => self.handle(CloudInput::Message(message)),
                    Err(error) => self.stream_ended(&error),
                },
                Some(frame) = streams.frames.recv() => match frame {
                    Ok(frame) => self.handle(CloudInput::Frame(frame)),
                    Err(error) => self.stream_ended(&error),
                },
                Ok(permit) = streams.control.reserve(), if !self.outbox.is_empty() => {
                    if let Some(bytes) = self.outbox.pop_front() {
                        self.outbox_bytes -= bytes.len();
                        permit.send(bytes);
                    }
                }
                () = sleep_until(wake) => self.handle(CloudInput::Timeout),
                newer = superseded(lease) => self.handle(CloudInput::Superseded { newer }),
                Ok(()) = links.changed() => {
                    let link = settings_of(&self.shared, &self.link);
                    self.handle(CloudInput::Mirrors(link));
                }
                () = stop.cancelled() => self.handle(CloudInput::Shutdown),
                _ = publish.tick() => {
                    self.publish();
                    self.duties.watch_leaders();
                }
                () = broken.cancelled() => {
                    let failure = self.tasks.failure().map_or_else(String::new, |failure| failure.to_string());
                    tracing::error!(link = %self.link, failure, "session broken");
                    self.carrier.close(CloseCode::Unavailable, "internal error");
                    self.ended = Some(failure);
                }
                reason = &mut closed => self.ended = Some(reason),
            }
        }
    }

    /// A stream that ends with its connection says nothing; the end of the connection follows.
    fn stream_ended(&mut self, error: &CarrierError) {
        if error.is_breach() {
            metrics::refused("protocol");
            self.handle(CloudInput::Breach { reason: error.to_string() });
        }
    }

    fn take_events(&mut self, first: Event) {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(event) = next {
            for input in self.duties.settle(event) {
                self.machine.handle(input, self.shared.clock.now());
            }
            taken += 1;
            next = if taken < EVENTS_AT_ONCE { self.events.try_recv().ok() } else { None };
        }
        self.run_outputs();
    }

    fn handle(&mut self, input: CloudInput) {
        self.machine.handle(input, self.shared.clock.now());
        self.run_outputs();
    }

    fn run_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                CloudOutput::Send(message) => {
                    let bytes = encode(&message);
                    self.outbox_bytes += bytes.len();
                    self.outbox.push_back(bytes);
                }
                CloudOutput::Claim { incarnation } => self.duties.claim(incarnation, self.carrier.remote().ip()),
                CloudOutput::PrepareTopic { mirror, topic, partitions, configs } => {
                    self.duties.prepare(mirror, crate::topics::Wanted { topic, partitions, configs });
                }
                CloudOutput::Recover { mirror, topic, partition, attempt } => {
                    self.duties.recover(mirror, topic, partition, attempt);
                }
                CloudOutput::Produce { mirror, topic, partition, ticket, offset, batch } => {
                    self.duties.produce(mirror, topic, partition, ticket, offset, batch);
                }
                CloudOutput::Skip { mirror, topic, partition, ticket, offset, count } => {
                    if let Some(answer) = self.duties.skip(mirror, topic, partition, ticket, offset, count) {
                        self.machine.handle(answer, self.shared.clock.now());
                    }
                }
                CloudOutput::FastForward { mirror, topic, partition, ticket, from, to } => {
                    self.duties.fast_forward(mirror, topic, partition, ticket, from..to);
                }
                CloudOutput::RecordLoss { mirror, topic, partition, ticket, from, to } => {
                    self.duties.record_loss(mirror, &topic, partition, ticket, from..to);
                }
                CloudOutput::DeleteBefore { mirror, topic, partition, ticket, offset } => {
                    self.duties.delete_before(mirror, topic, partition, ticket, offset);
                }
                CloudOutput::Event(event) => log(&self.link, event),
                CloudOutput::Close { code, reason } => {
                    self.carrier.close(code, &reason);
                    self.ended = Some(reason);
                }
            }
        }
        if self.outbox_bytes > MAX_OUTBOX_BYTES && self.ended.is_none() {
            let reason = format!("the agent left {} bytes of control messages unread", self.outbox_bytes);
            self.carrier.close(CloseCode::Protocol, &reason);
            self.ended = Some(reason);
        }
    }

    fn publish(&mut self) {
        if let Some(term) = self.machine.term() {
            let agent = Agent { address: self.carrier.remote(), since: self.duties.agent_since() };
            let status = self.machine.status();
            self.duties.tend(&status);
            self.shared.board.publish(&self.link, term, agent, self.carrier.rtt(), status);
        }
    }

    async fn end(mut self) {
        let reason = self.ended.take().unwrap_or_default();
        // An overrun is told by `Tasks` itself.
        drop(self.tasks.shutdown(END_GRACE).await);
        self.duties.leave();
        if let Some(lease) = self.duties.lease() {
            self.shared.board.ended(&self.link, lease.term(), &reason);
            tracing::info!(link = %self.link, term = lease.term().0, reason, "session ended");
        } else {
            self.shared.board.turned_away(&self.link, &reason);
            tracing::warn!(link = %self.link, reason, "connection ended before its session began");
        }
    }
}

fn settings_of(shared: &Shared, link: &LinkName) -> LinkSettings {
    shared.links.borrow().get(link).cloned().unwrap_or_default()
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn superseded(lease: Option<Arc<crate::registry::SessionLease>>) -> tombolo_proto::id::Term {
    match lease {
        Some(lease) => lease.superseded().await,
        None => std::future::pending().await,
    }
}

fn log(link: &LinkName, event: CloudEvent) {
    match event {
        CloudEvent::MirrorFailed { topic, failure, told_by_agent } => {
            tracing::error!(%link, %topic, code = failure.code.name(), %failure, told_by_agent, "mirror FAILED");
        }
        CloudEvent::SourceUnavailable { topic, problem } => {
            tracing::warn!(%link, %topic, problem, "source topic cannot be mirrored for now");
        }
        CloudEvent::MirrorDiscovered { topic } => {
            tracing::info!(%link, %topic, "source topic matches a filter and becomes a mirror");
        }
        CloudEvent::MirrorPassedOver { topic, reason } => {
            tracing::warn!(%link, %topic, %reason, "source topic matches a filter and is not mirrored");
        }
        CloudEvent::MirrorActive { topic } => tracing::info!(%link, %topic, "mirror active"),
        CloudEvent::Rewound { topic, partition, next_offset } => {
            tracing::warn!(%link, %topic, partition, next_offset, "the cloud lost the mirror's tail; it is sent again");
        }
        CloudEvent::Started { topic, partition, offset } => {
            tracing::info!(%link, %topic, partition, offset, "mirror starts where the source's log does");
        }
        CloudEvent::LossSkipped { topic, partition, from, to } => {
            tracing::error!(
                %link, %topic, partition, from, to,
                "the source deleted offsets before they were mirrored; the loss ledger has them, and the mirror goes on"
            );
        }
        CloudEvent::NotDeleted { topic, partition, offset, reason } => {
            tracing::warn!(
                %link, %topic, partition, offset, reason,
                "records that the source has deleted cannot be deleted from the mirror yet"
            );
        }
        CloudEvent::Unverified { topic, partition } => {
            tracing::warn!(%link, %topic, partition, "the agent had nothing to compare the mirror's tail with");
        }
    }
}
