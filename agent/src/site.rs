//! The single owner of the site: waits for an event, applies it to the state machine, does what that says.
//!
//! Must never: wait for the link or the source with an event unread. What the link does not take at once stays queued
//! here; reading stops before the queue grows.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_proto::edge::{EdgeConfig, EdgeEvent, EdgeInput, EdgeLink, EdgeOutput, EdgeStatus};
use tombolo_proto::id::Time;
use tombolo_service::tasks::Tasks;

use crate::carrier::{Control, LinkEvent, LinkSender, LinkStats};
use crate::dial::{self, LinkSettings};
use crate::settings::Settings;
use crate::source::{SourceCommand, SourceEvent, SourceHandle};
use crate::status::{self, LinkView};

/// Status and metrics are at most this old.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// For the gateway to hear that the agent stops.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Events of the link on their way.
const LINK_EVENTS: usize = 8;
/// Control messages that wait for the link; beyond that its events wait. Each input adds a few.
const CONTROL_QUEUE: usize = 4_096;

/// Everything that can happen.
enum Event {
    Link(LinkEvent),
    Source(SourceEvent),
    /// The control stream takes a message.
    ControlFree,
    /// The state machine asked to be woken.
    Timeout,
    Publish,
    Stop,
}

/// One connection, as the owner sees it.
struct Session {
    link: LinkSender,
    waiting: VecDeque<Control>,
    writer_free: bool,
    stats: Option<LinkStats>,
    closing: bool,
}

pub(crate) struct Site {
    edge: EdgeLink,
    start: Instant,
    tasks: Tasks,
    /// Taken when the source was tried: the gateway is told the cluster's id first thing.
    dial: Option<(LinkSettings, mpsc::Sender<LinkEvent>)>,
    link_events: mpsc::Receiver<LinkEvent>,
    source_events: mpsc::Receiver<SourceEvent>,
    source: SourceHandle,
    session: Option<Session>,
    published: watch::Sender<Value>,
    last_status: Option<(EdgeStatus, LinkView)>,
    window_limit: usize,
    view: LinkView,
    was_open: bool,
    sessions: u64,
}

impl Site {
    pub(crate) fn new(
        settings: &Settings,
        tasks: Tasks,
        source: SourceHandle,
        source_events: mpsc::Receiver<SourceEvent>,
        published: watch::Sender<Value>,
    ) -> Self {
        let (dial, link_events) = mpsc::channel(LINK_EVENTS);
        let config = EdgeConfig {
            software: concat!("tombolo-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            incarnation: rand::random_range(1..=u64::MAX),
            window_bytes: settings.memory.window,
            max_frame_bytes: settings.memory.max_frame,
        };
        Self {
            edge: EdgeLink::new(config),
            start: Instant::now(),
            tasks,
            dial: Some((settings.link.clone(), dial)),
            link_events,
            source_events,
            source,
            session: None,
            published,
            last_status: None,
            window_limit: settings.memory.window,
            view: LinkView {
                gateway: settings.link.gateways().next().unwrap_or_default(),
                since: SystemTime::now(),
                reconnects: 0,
                last_error: None,
                stats: None,
                source_cluster: String::new(),
                source_problem: None,
            },
            was_open: false,
            sessions: 0,
        }
    }

    /// Runs until told to stop, and then until the gateway was told so.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut publish = tokio::time::interval(PUBLISH_EVERY);
        publish.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = self.select(&mut publish, &stop).await;
            if let Event::Stop = event {
                break;
            }
            self.apply(event).await;
        }
        self.close(&mut publish).await;
    }

    async fn close(&mut self, publish: &mut tokio::time::Interval) {
        self.feed(EdgeInput::Shutdown).await;
        let never = CancellationToken::new();
        let closed = async {
            while self.session.is_some() {
                let event = self.select(publish, &never).await;
                self.apply(event).await;
            }
        };
        if timeout(CLOSE_DEADLINE, closed).await.is_err() {
            tracing::warn!("the gateway could not be told that the agent stops");
        }
    }

    fn now(&self) -> Time {
        self.start.elapsed()
    }

    async fn select(&mut self, publish: &mut tokio::time::Interval, stop: &CancellationToken) -> Event {
        let waiting = self.session.as_ref().map_or(0, |session| session.waiting.len());
        let control = self.session.as_ref().map(|session| session.link.control.clone());
        // What the state machine has to tell regularly is told anew once the link takes it.
        let wake = self.edge.next_timeout().filter(|_| waiting == 0).map(|(at, _)| self.start + at);
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            _ = publish.tick() => Event::Publish,
            () = takes_more(control), if waiting > 0 => Event::ControlFree,
            Some(event) = self.link_events.recv(), if waiting < CONTROL_QUEUE => Event::Link(event),
            Some(event) = self.source_events.recv() => Event::Source(event),
            () = wake_at(wake) => Event::Timeout,
        }
    }

    async fn apply(&mut self, event: Event) {
        match event {
            Event::Link(event) => self.link_event(event).await,
            Event::Source(SourceEvent::Inputs(inputs)) => {
                for input in inputs {
                    self.feed(input).await;
                }
            }
            Event::Source(SourceEvent::Contact { cluster_id }) => {
                self.view.source_cluster = cluster_id;
                if let Some((settings, events)) = self.dial.take() {
                    let stop = self.tasks.stop_token().clone();
                    self.tasks.spawn("dial", dial::run(settings, events, stop));
                }
            }
            Event::Source(SourceEvent::Trouble(problem)) => self.view.source_problem = problem,
            Event::Timeout => self.feed(EdgeInput::Timeout).await,
            Event::Publish => self.publish(),
            // Both are done below and by the caller.
            Event::ControlFree | Event::Stop => {}
        }
        self.serve_link();
        let has_room = !self.edge.window_is_full();
        self.source.room.send_if_modified(|room| std::mem::replace(room, has_room) != has_room);
    }

    async fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(link) => {
                self.view.gateway.clone_from(&link.gateway);
                let waiting = VecDeque::new();
                self.session = Some(Session { link, waiting, writer_free: false, stats: None, closing: false });
                let cluster_id = self.view.source_cluster.clone();
                self.feed(EdgeInput::Connected { cluster_id }).await;
            }
            LinkEvent::WriterFree => {
                if let Some(session) = &mut self.session {
                    session.writer_free = true;
                }
            }
            LinkEvent::Message(message) => self.feed(EdgeInput::Message(message)).await,
            LinkEvent::Breach { reason } => self.feed(EdgeInput::Breach { reason }).await,
            LinkEvent::Stats(stats) => self.stats(stats),
            LinkEvent::Down { reason } => {
                self.view.last_error = Some(reason);
                self.view.stats = None;
                if self.session.take().is_some() {
                    self.feed(EdgeInput::Disconnected).await;
                    self.command(SourceCommand::SessionEnded).await;
                }
            }
        }
        self.note_state();
    }

    fn note_state(&mut self) {
        let is_open = self.edge.is_open();
        if is_open == self.was_open {
            return;
        }
        self.was_open = is_open;
        self.view.since = SystemTime::now();
        if is_open {
            self.view.last_error = None;
            self.view.reconnects = self.sessions;
            metrics::counter!("tombolo_link_reconnects_total").absolute(self.sessions);
            self.sessions += 1;
        }
        self.publish();
    }

    fn stats(&mut self, stats: LinkStats) {
        let Some(session) = &mut self.session else { return };
        // Of this connection: what came since the last time is added.
        let before = session.stats.replace(stats).unwrap_or_default();
        let added = |now: u64, before: u64| now.saturating_sub(before);
        metrics::counter!("tombolo_link_lost_packets_total").increment(added(stats.lost_packets, before.lost_packets));
        metrics::counter!("tombolo_sent_wire_bytes_total").increment(added(stats.wire_bytes, before.wire_bytes));
        self.view.stats = Some(stats);
    }

    /// Gives the state machine an input and does what it says, in order.
    async fn feed(&mut self, input: EdgeInput) {
        let now = self.now();
        self.edge.handle(input, now);
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::Send(message) => self.send(Control::Message(message)),
                EdgeOutput::Close { code, reason } => self.send(Control::Close { code, reason }),
                EdgeOutput::Event(event) => log(event),
                output @ (EdgeOutput::Discover { .. }
                | EdgeOutput::Forget { .. }
                | EdgeOutput::CompareTail { .. }
                | EdgeOutput::Fetch { .. }
                | EdgeOutput::PauseFetch { .. }
                | EdgeOutput::ResumeFetch { .. }
                | EdgeOutput::StopFetch { .. }) => self.command(SourceCommand::Do(output)).await,
            }
        }
    }

    /// The source's task takes commands at once, whatever else it waits for.
    async fn command(&self, command: SourceCommand) {
        // It is gone only when the process ends.
        drop(self.source.commands.send(command).await);
    }

    fn send(&mut self, control: Control) {
        if let Some(session) = self.session.as_mut().filter(|session| !session.closing) {
            session.closing = matches!(control, Control::Close { .. });
            session.waiting.push_back(control);
        }
    }

    /// Gives the link as much as it takes: control messages first, then one frame, chosen now.
    fn serve_link(&mut self) {
        let Some(session) = &mut self.session else { return };
        while let Ok(permit) = session.link.control.try_reserve() {
            let Some(control) = session.waiting.pop_front() else { break };
            permit.send(control);
        }
        if !session.writer_free {
            return;
        }
        let Ok(permit) = session.link.frames.try_reserve() else { return };
        if let Some(frame) = self.edge.poll_frame() {
            permit.send(frame);
            session.writer_free = false;
        }
    }

    fn publish(&mut self) {
        let status = self.edge.status();
        status::record(&status, &self.view);
        let acked = self.last_status.as_ref().map_or(0, |(last, _)| last.confirmed_bytes);
        metrics::counter!("tombolo_acked_bytes_total").increment(status.confirmed_bytes - acked);
        let current = (status, self.view.clone());
        if self.last_status.as_ref() == Some(&current) {
            return;
        }
        let document = status::document(&current.0, &current.1, self.window_limit);
        self.last_status = Some(current);
        // Held by the HTTP server, which ends after this.
        drop(self.published.send(document));
    }
}

async fn takes_more(control: Option<mpsc::Sender<Control>>) {
    match control {
        // A closed channel is a connection about to be reported down.
        Some(control) => match control.reserve().await {
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn wake_at(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn log(event: EdgeEvent) {
    match event {
        EdgeEvent::Welcomed { term, software, mirrors } => {
            tracing::info!(%term, gateway = software, mirrors, "session began");
        }
        EdgeEvent::ClosedByGateway { code, reason } => tracing::info!(?code, reason, "session ended by the gateway"),
        EdgeEvent::MirrorFailed { topic, failure, told_by_gateway } => {
            tracing::error!(%topic, code = failure.code.name(), %failure, told_by_gateway, "mirror FAILED");
        }
        EdgeEvent::MirrorPaused { topic, paused: true } => tracing::info!(%topic, "mirror paused"),
        EdgeEvent::MirrorPaused { topic, paused: false } => tracing::info!(%topic, "mirror goes on"),
        EdgeEvent::Rewound { topic, partition, next_offset } => {
            tracing::warn!(%topic, partition, next_offset, "the cloud lost the mirror's end, sending it again");
        }
        EdgeEvent::Unverified { topic, partition } => {
            tracing::warn!(%topic, partition, "nothing left at the source to compare the mirror's end with");
        }
    }
}
