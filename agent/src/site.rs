//! The single owner of the site: waits for an event, applies it to the state machine, does what that says.
//!
//! Must never: wait for the link or the source with an event unread. What the link does not take at once stays queued
//! here; reading stops before the queue grows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_proto::edge::{
    Checkpoint, CheckpointPartition, EdgeConfig, EdgeEvent, EdgeInput, EdgeLink, EdgeOutput, EdgeStatus,
};
use tombolo_proto::id::{Offset, Partition, Time, TopicName};
use tombolo_service::admin_http::StatusDocument;
use tombolo_service::tasks::Tasks;

use crate::carrier::{Control, LinkEvent, LinkSender, LinkStats};
use crate::dial::{self, LinkSettings};
use crate::keeper::{Answer, Command, DiskView, KeeperError, KeeperHandle};
use crate::loss::Loss;
use crate::settings::Settings;
use crate::source::{SourceCommand, SourceEvent, SourceHandle};
use crate::status::{self, LinkView};

/// Status and metrics are at most this old.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// For the gateway to hear that the agent stops.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is kept where the partitions stand: after a restart in the dark no more than that is read again.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// For journal and checkpoint to be written when the agent stops.
const KEEP_DEADLINE: Duration = Duration::from_secs(10);
/// Events of the link on their way.
const LINK_EVENTS: usize = 8;
/// Control messages that wait for the link; beyond that its events wait. Each input adds a few.
const CONTROL_QUEUE: usize = 4_096;

/// Everything that can happen.
enum Event {
    Link(LinkEvent),
    Source(SourceEvent),
    /// `None`: its thread has ended, which it never does by itself.
    Disk(Option<Answer>),
    /// The disk's thread takes a command.
    DiskFree,
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
    keeper: KeeperHandle,
    /// For the disk: one Spill, Trim and Save at most, and no more of the rest than there are partitions.
    for_disk: VecDeque<Command>,
    checkpoint_due: Instant,
    session: Option<Session>,
    published: watch::Sender<StatusDocument>,
    last_status: Option<(EdgeStatus, LinkView, DiskView)>,
    window_limit: usize,
    loss: Loss,
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
        keeper: KeeperHandle,
        published: watch::Sender<StatusDocument>,
    ) -> Self {
        let (dial, link_events) = mpsc::channel(LINK_EVENTS);
        let config = EdgeConfig {
            software: concat!("tombolo-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            incarnation: rand::random_range(1..=u64::MAX),
            window_bytes: settings.memory.window,
            spill_delay: settings.journal.spill_delay,
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
            keeper,
            for_disk: VecDeque::new(),
            checkpoint_due: Instant::now() + CHECKPOINT_EVERY,
            session: None,
            published,
            last_status: None,
            window_limit: settings.memory.window,
            loss: Loss::default(),
            view: LinkView {
                gateway: settings.link.gateways().next().unwrap_or_default(),
                since: SystemTime::now(),
                reconnects: 0,
                last_error: None,
                stats: None,
                source_cluster: String::new(),
                source_problem: None,
                hanging: BTreeMap::new(),
            },
            was_open: false,
            sessions: 0,
        }
    }

    /// Runs until told to stop, and then until the gateway was told so. Fails where the disk's thread has ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), KeeperError> {
        let mut publish = tokio::time::interval(PUBLISH_EVERY);
        publish.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let checkpoint = std::mem::take(&mut self.keeper.checkpoint);
        let ranges = std::mem::take(&mut self.keeper.ranges);
        self.feed(EdgeInput::Restored { checkpoint, ranges }).await;
        loop {
            let event = self.select(&mut publish, &stop).await;
            if let Event::Stop = event {
                break;
            }
            if let Event::Disk(None) = event {
                return Err(KeeperError::Died);
            }
            self.apply(event).await;
        }
        self.close(&mut publish).await;
        Ok(())
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
        self.keep().await;
    }

    /// Writes what a restart needs.
    async fn keep(&mut self) {
        self.checkpoint(true);
        let (done, kept) = oneshot::channel();
        let commands = std::mem::take(&mut self.for_disk).into_iter().chain([Command::Close(done)]);
        let KeeperHandle { commands: sender, answers, .. } = &mut self.keeper;
        let work = async {
            let told = async {
                for command in commands {
                    drop(sender.send(command).await);
                }
                // It says nothing where the thread is gone.
                drop(kept.await);
            };
            // Answers on their way must not keep the thread waiting.
            let listen = async {
                while answers.recv().await.is_some() {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = told => {}
                () = listen => {}
            }
        };
        if timeout(KEEP_DEADLINE, work).await.is_err() {
            tracing::warn!("the disk does not take the last checkpoint: a restart reads some records again");
        }
    }

    /// One Save waits at most: a disk that hangs must not fill the memory.
    fn for_disk_save(&mut self, checkpoint: Checkpoint) {
        let waiting = self
            .for_disk
            .iter_mut()
            .find_map(|command| if let Command::Save(save) = command { Some(save) } else { None });
        let Some(waiting) = waiting else { return self.for_disk.push_back(Command::Save(checkpoint)) };
        let before = std::mem::replace(waiting, checkpoint).partitions;
        let key = |at: &CheckpointPartition| (at.topic.clone(), at.partition);
        let newer: BTreeSet<_> = waiting.partitions.iter().map(key).collect();
        waiting.partitions.extend(before.into_iter().filter(|at| !newer.contains(&key(at))));
    }

    /// One Trim waits at most.
    fn for_disk_trim(&mut self, confirmed: Vec<(TopicName, Partition, Offset)>) {
        let waiting = self
            .for_disk
            .iter_mut()
            .find_map(|command| if let Command::Trim { confirmed } = command { Some(confirmed) } else { None });
        let Some(waiting) = waiting else { return self.for_disk.push_back(Command::Trim { confirmed }) };
        let all = std::mem::take(waiting).into_iter().chain(confirmed);
        let latest: BTreeMap<_, _> = all.map(|(topic, partition, offset)| ((topic, partition), offset)).collect();
        *waiting = latest.into_iter().map(|((topic, partition), offset)| (topic, partition, offset)).collect();
    }

    fn checkpoint(&mut self, all: bool) {
        if let Some(checkpoint) = self.edge.take_checkpoint(all) {
            self.for_disk_save(checkpoint);
        }
        if all {
            self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
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
            answer = self.keeper.answers.recv() => Event::Disk(answer),
            Ok(_) = self.keeper.commands.reserve(), if !self.for_disk.is_empty() => Event::DiskFree,
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
                if !cluster_id.is_empty() {
                    self.for_disk.push_back(Command::Cluster(cluster_id.clone()));
                }
                self.view.source_cluster = cluster_id;
                if let Some((settings, events)) = self.dial.take() {
                    let stop = self.tasks.stop_token().clone();
                    self.tasks.spawn("dial", dial::run(settings, events, stop));
                }
            }
            Event::Source(SourceEvent::Trouble(problem)) => self.view.source_problem = problem,
            Event::Source(SourceEvent::Hanging(hanging)) => self.view.hanging = hanging,
            Event::Timeout => self.feed(EdgeInput::Timeout).await,
            Event::Publish => {
                if Instant::now() >= self.checkpoint_due {
                    self.checkpoint(true);
                }
                self.publish();
            }
            Event::Disk(Some(Answer::Input(input))) => self.feed(input).await,
            Event::Disk(Some(Answer::NoEvidence(output))) => self.command(SourceCommand::Do(output)).await,
            // Done below and by the caller.
            Event::ControlFree | Event::DiskFree | Event::Disk(None) | Event::Stop => {}
        }
        self.serve_link();
        self.serve_disk();
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
                    self.checkpoint(true);
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
        // The names and ids of mirrors are on disk before frames of them are.
        self.checkpoint(false);
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::Send(message) => self.send(Control::Message(message)),
                EdgeOutput::Close { code, reason } => self.send(Control::Close { code, reason }),
                EdgeOutput::Event(event) => log(event),
                EdgeOutput::Spill { ticket, frames } => self.for_disk.push_back(Command::Spill { ticket, frames }),
                EdgeOutput::Load { topic, partition, ticket, offset, max_bytes } => {
                    self.for_disk.push_back(Command::Load { topic, partition, ticket, offset, max_bytes });
                }
                EdgeOutput::Trim { confirmed } => {
                    // What is let go of is known to be confirmed after a restart, too.
                    self.checkpoint(true);
                    self.for_disk_trim(confirmed);
                }
                EdgeOutput::Discard { partitions } => self.for_disk.push_back(Command::Discard { partitions }),
                output @ EdgeOutput::CompareTail { .. } => self.for_disk.push_back(Command::Compare(output)),
                output @ (EdgeOutput::Discover { .. }
                | EdgeOutput::Watch { .. }
                | EdgeOutput::Forget { .. }
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

    fn serve_disk(&mut self) {
        while let Ok(permit) = self.keeper.commands.try_reserve() {
            let Some(command) = self.for_disk.pop_front() else { break };
            permit.send(command);
        }
    }

    fn publish(&mut self) {
        let status = self.edge.status();
        let disk = *self.keeper.view.borrow();
        self.loss.observe(&status, disk.usage, SystemTime::now());
        status::record(&status, &self.view, disk, &self.loss);
        let acked = self.last_status.as_ref().map_or(0, |(last, ..)| last.confirmed_bytes);
        // Of the journal since it was opened: anew it begins at 0.
        let before = self.last_status.as_ref().map_or_else(Default::default, |(_, _, before)| before.usage);
        let added = |now: u64, before: u64| if now < before { now } else { now - before };
        let (written, damaged) = (disk.usage.written_bytes, disk.usage.damaged_segments);
        metrics::counter!("tombolo_journal_written_bytes_total").increment(added(written, before.written_bytes));
        metrics::counter!("tombolo_journal_corrupt_segments_total").increment(added(damaged, before.damaged_segments));
        metrics::counter!("tombolo_acked_bytes_total").increment(status.confirmed_bytes - acked);
        let current = (status, self.view.clone(), disk);
        if self.last_status.as_ref() == Some(&current) {
            return;
        }
        let document = status::document(&current.0, &current.1, disk, &self.loss, self.window_limit);
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
        EdgeEvent::MirrorEnding { topic, failure } => {
            tracing::error!(%topic, code = failure.code.name(), %failure, "mirror will be FAILED once what is held is sent");
        }
        EdgeEvent::Stuck { topic, failure } => {
            tracing::warn!(%topic, %failure, "cannot be read on in the dark; the gateway will say where to go on");
        }
        EdgeEvent::Journal { trouble: Some(reason) } => {
            tracing::error!(reason, "the journal takes nothing: fetching stops when memory is full");
        }
        EdgeEvent::Journal { trouble: None } => tracing::info!("the journal takes frames again"),
        EdgeEvent::Unverified { topic, partition } => {
            tracing::warn!(%topic, partition, "nothing left at the source to compare the mirror's end with");
        }
    }
}
