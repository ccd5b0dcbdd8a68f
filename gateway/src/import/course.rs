//! The far end of an import's session: says what an agent would say, from the files of an export.
//!
//! ```text
//!   Unplaced --Position--> Positioned --its turn: tail compared--> Sending --all confirmed--> Done
//!                              ^                                     |
//!                              +------------- Position (rewind) -----+     anything wrong: Done
//! ```
//!
//! Memory: [`MAX_LANES`] partitions at a time hold a frame each; what was sent is within the session's credit.

mod lane;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_proto::cloud::LinkSettings;
use tombolo_proto::export::ExportTopic;
use tombolo_proto::frame::{Frame, FrameLimits};
use tombolo_proto::id::{MirrorId, Partition, TopicName};
use tombolo_proto::limits::{MAX_ENTRIES, MIN_FRAME_BYTES};
use tombolo_proto::wire::{
    Close, CloseCode, CloudBody, EdgeBody, EdgeMessage, Failed, Hello, Mirror, Placed, Position, Positions, Source,
    Topics, VERSIONS,
};

use super::folder::Export;
use super::report::{Outcome, RefusedTopic, Report, Row};
use crate::carrier::local::{FarEnd, Heard};
use lane::{Begun, Lane, Stage};
use tombolo_service::progress::Progress;

/// Partitions that send at a time.
const MAX_LANES: usize = 8;
/// Least bound of the export's frames: agents cut smaller ones, unless a single batch is larger.
const FRAME_BYTES: usize = 2 << 20;
/// For the session to take leave.
const GOODBYE: Duration = Duration::from_secs(2);
/// Longest time in which nothing is heard from the session.
const PATIENCE: Duration = Duration::from_mins(5);

type Key = (usize, Partition);
/// Partition counts by topic.
pub(super) type Held = BTreeMap<TopicName, i32>;

/// Drives one import to its report.
#[derive(Debug)]
pub(super) struct Course {
    export: Arc<Export>,
    far: FarEnd,
    limits: FrameLimits,
    /// Largest frame of the session.
    max_frame: usize,
    /// Partitions of mirror topics that are there, by the source topic's name.
    held: Held,
    lanes: BTreeMap<Key, Lane>,
    /// Topics that are left out, by index, and why.
    refused: BTreeMap<usize, String>,
    /// Topics by their number in the session.
    mirrors: BTreeMap<u32, usize>,
    /// Topics that a filter takes, to be told once the mirrors by name are known.
    filtered: Vec<usize>,
    /// Partitions that have a position and wait for their turn.
    waiting: VecDeque<Key>,
    /// Partitions that send, in turn.
    active: VecDeque<Key>,
    credit: usize,
    in_flight: usize,
    progress: Progress,
}

impl Course {
    /// An import of what `link` mirrors; its settings' largest frame is `max_frame`. The source may have grown since the
    /// export was made, so a mirror topic that is `held` counts where it has more partitions.
    pub(super) fn new(export: Arc<Export>, far: FarEnd, link: &LinkSettings, max_frame: usize, held: Held) -> Self {
        let (mut lanes, mut refused, mut filtered) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut total = 0;
        for (index, topic) in export.manifest().topics.iter().enumerate().filter(|(_, topic)| !topic.ranges.is_empty())
        {
            match takes(link, &topic.name) {
                Ok(by_filter) => {
                    filtered.extend(by_filter.then_some(index));
                    for range in &topic.ranges {
                        total += range.raw_bytes;
                        lanes.insert((index, range.partition), Lane::new(*range));
                    }
                }
                Err(reason) => {
                    refused.insert(index, reason);
                }
            }
        }
        Self {
            export,
            far,
            limits: FrameLimits { max_bytes: max_frame.max(FRAME_BYTES) },
            max_frame,
            held,
            lanes,
            refused,
            mirrors: BTreeMap::new(),
            filtered,
            waiting: VecDeque::new(),
            active: VecDeque::new(),
            credit: 0,
            in_flight: 0,
            progress: Progress::new("importing", total),
        }
    }

    /// Runs until every partition is done with, the session ends, or `stop`.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Report {
        let ended = if self.lanes.is_empty() { None } else { self.drive(stop).await };
        let close = Close { code: CloseCode::Shutdown.number(), reason: "the import is over".to_owned() };
        // The session says goodbye too, unless it is over already; what it still says means nothing.
        let goodbye = async {
            self.send(EdgeBody::Close(close)).await;
            while let Ok(Heard::Message(_)) = self.far.receive().await {}
        };
        drop(tokio::time::timeout(GOODBYE, goodbye).await);
        self.progress.finish();
        self.report(ended)
    }

    /// Gives the reason why something is left undone.
    async fn drive(&mut self, stop: &CancellationToken) -> Option<String> {
        self.hello().await;
        let frames = self.far.frames();
        let mut next: Option<Frame> = None;
        let mut heard_at = Instant::now();
        loop {
            self.begin_waiting().await;
            if next.is_none() {
                next = self.next_frame().await;
            }
            if self.lanes.values().all(Lane::is_done) {
                return None;
            }
            tokio::select! {
                heard = self.far.receive() => {
                    heard_at = Instant::now();
                    match heard {
                        Ok(Heard::Message(message)) => if let Err(reason) = self.hear(message.body).await {
                            return Some(reason);
                        },
                        Ok(Heard::Closed((code, reason))) => return Some(closed(Some(code), &reason)),
                        Err(error) => return Some(error.to_string()),
                    }
                }
                Ok(place) = frames.reserve(), if next.is_some() => {
                    if let Some(frame) = next.take() {
                        place.send(Ok(frame));
                    }
                }
                () = stop.cancelled() => return Some("stopped; import again to go on from here".to_owned()),
                () = tokio::time::sleep_until(heard_at + PATIENCE) => {
                    let lacks = "the log says what the cloud cluster lacks";
                    return Some(format!("nothing was heard from the session for {PATIENCE:?}: {lacks}"));
                }
            }
        }
    }

    async fn send(&self, body: EdgeBody) {
        self.far.send(EdgeMessage { body: Some(body) }).await;
    }

    async fn hello(&self) {
        let hello = Hello {
            first_version: *VERSIONS.start(),
            last_version: *VERSIONS.end(),
            software: format!("import {}", env!("CARGO_PKG_VERSION")),
            cluster_id: self.export.manifest().source_cluster_id.clone(),
            max_frame_bytes: self.max_frame as u64,
            // The site's agent keeps its place.
            incarnation: 0,
        };
        self.send(EdgeBody::Hello(hello)).await;
    }

    /// An error is the reason for the end.
    async fn hear(&mut self, body: Option<CloudBody>) -> Result<(), String> {
        match body {
            Some(CloudBody::Welcome(welcome)) => {
                self.credit = usize::try_from(welcome.credit_bytes).unwrap_or(usize::MAX);
                let told = usize::try_from(welcome.max_frame_bytes).unwrap_or(usize::MAX);
                self.max_frame = self.max_frame.min(told).max(MIN_FRAME_BYTES);
            }
            Some(CloudBody::Mirror(mirror)) => self.mirror(&mirror).await,
            Some(CloudBody::Filters(_)) => self.discover().await,
            Some(CloudBody::Position(position)) => self.position(position),
            Some(CloudBody::Confirm(positions)) => self.confirm(&positions),
            Some(CloudBody::Failed(failed)) => self.failed(&failed),
            Some(CloudBody::Close(close)) => {
                return Err(closed(CloseCode::from_number(close.code.into()), &close.reason));
            }
            None => {}
        }
        Ok(())
    }

    /// A mirror of the session: its source is described, if it is in the export.
    async fn mirror(&mut self, mirror: &Mirror) {
        let topics = &self.export.manifest().topics;
        let Some((index, topic)) = topics.iter().enumerate().find(|(_, topic)| topic.name == mirror.topic) else {
            return;
        };
        let taken = self.lanes.range((index, 0)..).next().is_some_and(|(key, _)| key.0 == index);
        if mirror.paused || !taken {
            return;
        }
        let held = self.held.iter().find(|(held, _)| held.as_str() == topic.name).map_or(0, |(_, &count)| count);
        let source = source(mirror.mirror, topic, held);
        self.mirrors.insert(mirror.mirror, index);
        self.send(EdgeBody::Source(source)).await;
    }

    /// The mirrors by name are told: those of filters are asked for.
    async fn discover(&mut self) {
        let filtered = std::mem::take(&mut self.filtered);
        for indexes in filtered.chunks(MAX_ENTRIES) {
            let topics = &self.export.manifest().topics;
            let names = indexes.iter().filter_map(|&index| topics.get(index)).map(|topic| topic.name.clone()).collect();
            self.send(EdgeBody::Discovered(Topics { names })).await;
        }
    }

    fn position(&mut self, position: Position) {
        let Some(key) = self.mirrors.get(&position.mirror).map(|&topic| (topic, position.partition)) else { return };
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        self.in_flight -= lane.in_flight_bytes();
        if lane.place(position) {
            self.active.retain(|active| *active != key);
            if !self.waiting.contains(&key) {
                self.waiting.push_back(key);
            }
        }
    }

    fn confirm(&mut self, positions: &Positions) {
        for entry in &positions.entries {
            let Some(key) = self.mirrors.get(&entry.mirror).map(|&topic| (topic, entry.partition)) else { continue };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            let freed = lane.confirm(entry.run, entry.offset);
            self.in_flight -= freed;
            self.progress.add(lane.take_progress());
            if lane.is_done() {
                self.active.retain(|active| *active != key);
            }
        }
    }

    /// A mirror is FAILED, so all its partitions are.
    fn failed(&mut self, failed: &Failed) {
        let Some(&topic) = self.mirrors.get(&failed.mirror) else { return };
        let keys: Vec<Key> = self.lanes.range((topic, 0)..=(topic, Partition::MAX)).map(|(&key, _)| key).collect();
        for key in keys {
            self.end(key, Outcome::Failed(failed.failure()));
        }
    }

    /// Ends a partition that is not done yet.
    fn end(&mut self, key: Key, outcome: Outcome) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if !lane.is_done() {
            self.in_flight -= lane.in_flight_bytes();
            lane.end(outcome);
            self.progress.add(lane.take_progress());
            self.active.retain(|active| *active != key);
        }
    }

    /// Compares the mirrors' ends, and places partitions, as far as there are turns.
    async fn begin_waiting(&mut self) {
        while self.active.len() < MAX_LANES
            && let Some(key) = self.waiting.pop_front()
        {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            let Stage::Positioned(position) = &lane.stage else { continue };
            let position = position.clone();
            let topic = u32::try_from(key.0).unwrap_or(u32::MAX);
            match lane.begin(&self.export, topic, &position, self.limits).await {
                Begun::Sending { verified } => {
                    let Position { mirror, partition, run, .. } = position;
                    let placed = Placed { mirror, partition, run, unverified: !verified };
                    self.active.push_back(key);
                    self.send(EdgeBody::Placed(placed)).await;
                }
                Begun::Done(outcome) => self.end(key, outcome),
            }
        }
    }

    /// The next frame within the credit, from the partition whose turn it is.
    async fn next_frame(&mut self) -> Option<Frame> {
        for _ in 0..self.active.len() {
            let key = self.active.pop_front()?;
            self.active.push_back(key);
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            match lane.next_entries(self.max_frame, self.in_flight, self.credit).await {
                Ok(Some((run, entries))) => {
                    let mirror = self.mirrors.iter().find(|(_, topic)| **topic == key.0).map(|(&mirror, _)| mirror)?;
                    let frame = Frame { mirror: MirrorId(mirror), run, partition: key.1, entries };
                    self.in_flight += frame.bytes();
                    return Some(frame);
                }
                Ok(None) => {}
                Err(outcome) => self.end(key, outcome),
            }
        }
        None
    }

    fn report(self, ended: Option<String>) -> Report {
        let topics = &self.export.manifest().topics;
        let name = |index: usize| topics.get(index).map_or("", |topic| topic.name.as_str());
        let mut complete = true;
        let mut rows = Vec::with_capacity(self.lanes.len());
        for (&(index, _), lane) in &self.lanes {
            let outcome = match &lane.stage {
                Stage::Done(outcome) => outcome.clone(),
                Stage::Unplaced | Stage::Positioned(_) | Stage::Sending(_) => Outcome::Unfinished,
            };
            complete &= outcome.is_good();
            rows.push(Row::new(name(index), &lane.range, lane.stood, &outcome));
        }
        let refused = self
            .refused
            .iter()
            .map(|(&index, reason)| RefusedTopic { topic: name(index).to_owned(), reason: reason.clone() })
            .collect();
        Report::new(&self.export, rows, refused, complete, ended)
    }
}

/// Whether the link mirrors a topic, and by a filter; else why not.
fn takes(link: &LinkSettings, name: &str) -> Result<bool, String> {
    let topic = TopicName::new(name).map_err(|error| error.to_string())?;
    if let Some(mirror) = link.mirrors.iter().find(|mirror| mirror.source == topic) {
        return if mirror.paused { Err("the mirror is paused in the settings".to_owned()) } else { Ok(false) };
    }
    match link.filtered(&topic) {
        Some(Ok(())) => Ok(true),
        Some(Err(reason)) => Err(reason.to_string()),
        None => Err("no mirror of the link: the settings neither name it nor have a filter that matches".to_owned()),
    }
}

fn source(mirror: u32, topic: &ExportTopic, held: i32) -> Source {
    Source {
        mirror,
        partitions: topic.partitions.max(held),
        topic_id: topic.topic_id.clone(),
        configs: topic.configs.clone(),
        problem: String::new(),
    }
}

fn closed(code: Option<CloseCode>, reason: &str) -> String {
    match code {
        Some(CloseCode::Superseded) => format!(
            "{reason}: the site's agent or another import took the link; import again when the link is dark, or let the \
             agent bring the rest"
        ),
        Some(_) | None => format!("the session ended: {reason}"),
    }
}
