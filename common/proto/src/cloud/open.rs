//! A session that holds its link: the mirrors and what goes on in them.

mod follow;
mod partition;
mod show;
mod start;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{CloudConfig, CloudEvent, CloudInput, CloudOutput, LinkSettings, MirrorSettings};
use crate::failure::{Failure, FailureCode, cut};
use crate::frame::Frame;
use crate::id::{MirrorId, Offset, Partition, Term, Time, TopicName};
use crate::limits::{MAX_CONFIGS, MAX_ENTRIES, MAX_PARTITIONS};
use crate::mirror::{Decision, Mirror as PartitionMirror};
use crate::wire::{
    CloudBody, CloudMessage, EdgeBody, Failed, Hello, PartitionOffset, Placed, Positions, Source, TopicConfig,
    VERSIONS, Welcome,
};

use follow::Follow;

/// What the agent did that the protocol does not allow.
type Breach = String;
type Key = (MirrorId, Partition);

#[derive(Debug)]
enum Phase {
    /// The agent was told; its Source is awaited.
    AwaitSource,
    /// The mirror topic is being made ready.
    Preparing {
        reason: String,
    },
    Active,
    Paused,
    SourceUnavailable {
        reason: String,
    },
    Failed(Failure),
}

#[derive(Debug)]
struct OpenPartition {
    mirror: PartitionMirror,
    source_high_watermark: Option<Offset>,
    follow: Follow,
}

#[derive(Debug)]
struct OpenMirror {
    settings: MirrorSettings,
    phase: Phase,
    source: Option<(i32, Vec<TopicConfig>)>,
    partitions: Vec<OpenPartition>,
    /// Sum over the partitions: [`PartitionMirror::gap_offsets`].
    gap_offsets: i64,
}

impl OpenMirror {
    fn partition(&mut self, partition: Partition) -> Option<&mut OpenPartition> {
        usize::try_from(partition).ok().and_then(|at| self.partitions.get_mut(at))
    }
}

/// Confirms are told at most so often: each message costs both sides a packet, and what it frees is not waited for.
const CONFIRM_EVERY: Time = Time::from_millis(2);

/// The open session.
#[derive(Debug)]
pub(super) struct Open {
    term: Term,
    write_after: Time,
    producer_id: i64,
    credit_bytes: usize,
    max_frame_bytes: usize,
    agent_software: String,
    source_cluster_id: String,
    link: LinkSettings,
    mirrors: Vec<OpenMirror>,
    /// Discovered topics that are no mirrors and were told as an event; at most [`MAX_ENTRIES`].
    passed_over: BTreeSet<TopicName>,
    held_bytes: usize,
    unconfirmed: BTreeSet<Key>,
    /// Before which no confirm is told.
    confirm_due: Time,
    /// Of the last input.
    now: Time,
    timeouts: BTreeMap<Key, Time>,
    /// When log starts are to be moved up next.
    trims: BTreeMap<Key, Time>,
}

impl Open {
    pub(super) fn new(
        config: &CloudConfig,
        hello: &Hello,
        term: Term,
        write_after: Time,
        out: &mut VecDeque<CloudOutput>,
    ) -> Self {
        let max_frame_bytes = usize::try_from(hello.max_frame_bytes).unwrap_or(usize::MAX).min(config.max_frame_bytes);
        send(
            out,
            CloudBody::Welcome(Welcome {
                version: hello.last_version.min(*VERSIONS.end()),
                term: term.0,
                credit_bytes: config.credit_bytes as u64,
                max_frame_bytes: max_frame_bytes as u64,
                software: config.software.clone(),
                mirrors: u32::try_from(config.link.mirrors.len()).unwrap_or(u32::MAX),
            }),
        );
        let mut open = Self {
            term,
            write_after,
            producer_id: config.producer_id,
            credit_bytes: config.credit_bytes,
            max_frame_bytes,
            agent_software: cut(hello.software.clone()),
            source_cluster_id: cut(hello.cluster_id.clone()),
            link: LinkSettings::default(),
            mirrors: Vec::new(),
            passed_over: BTreeSet::new(),
            held_bytes: 0,
            unconfirmed: BTreeSet::new(),
            confirm_due: Time::ZERO,
            now: Time::ZERO,
            timeouts: BTreeMap::new(),
            trims: BTreeMap::new(),
        };
        open.apply_settings(config.link.clone(), out);
        // The end of the list, so also where there are none.
        open.tell_filters(out);
        open
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    pub(super) fn next_timeout(&self) -> Option<(Time, &'static str)> {
        let due = |timeouts: &BTreeMap<Key, Time>, what| timeouts.values().min().map(|&at| (at, what));
        let (log_end, log_start) = (due(&self.timeouts, "read a log end"), due(&self.trims, "move a log start up"));
        let confirm = (!self.unconfirmed.is_empty()).then_some((self.confirm_due, "confirm"));
        log_end.into_iter().chain(log_start).chain(confirm).min()
    }

    pub(super) fn handle(
        &mut self,
        input: CloudInput,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) -> Result<(), Breach> {
        self.now = now;
        match input {
            CloudInput::Message(message) => return self.message(message.body, now, out),
            CloudInput::Frame(frame) => return self.frame(frame, now, out),
            CloudInput::TopicReady { mirror, partitions } => self.topic_ready(mirror, partitions, now, out),
            CloudInput::TopicUnavailable { mirror, reason } => {
                if let Some(Phase::Preparing { reason: shown }) = self.mirror(mirror).map(|mirror| &mut mirror.phase) {
                    *shown = reason;
                }
            }
            CloudInput::TopicFailed { mirror, failure } => self.fail(mirror, failure, false, out),
            CloudInput::Recovered { mirror, partition, attempt, result } => {
                self.with_partition((mirror, partition), now, out, |open| match result {
                    Ok(recovery) => open.mirror.recovered(attempt, &recovery),
                    Err(reason) => open.mirror.recovery_failed(attempt, reason, now),
                });
            }
            CloudInput::Produced { mirror, partition, ticket, outcome } => {
                self.with_partition((mirror, partition), now, out, |open| open.mirror.produced(ticket, outcome));
            }
            CloudInput::Skipped { mirror, partition, ticket, outcome } => {
                self.with_partition((mirror, partition), now, out, |open| open.mirror.skipped(ticket, outcome, now));
            }
            CloudInput::FastForwarded { mirror, partition, ticket, result } => {
                self.fast_forwarded((mirror, partition), ticket, result, now, out);
            }
            CloudInput::LossRecorded { mirror, partition, ticket, result } => {
                self.loss_recorded((mirror, partition), ticket, result, now, out);
            }
            CloudInput::Deleted { mirror, partition, ticket, result } => {
                self.deleted((mirror, partition), ticket, result, now, out);
            }
            CloudInput::LeaderMoved { mirror, partition } => {
                self.with_partition((mirror, partition), now, out, |open| open.mirror.look_again());
            }
            CloudInput::Mirrors(link) => {
                let changed = link.filters != self.link.filters;
                self.apply_settings(link, out);
                if changed {
                    self.tell_filters(out);
                }
                self.follow_all(now, out);
            }
            CloudInput::Timeout => self.timeout(now, out),
            CloudInput::Claimed { .. }
            | CloudInput::ClaimFailed { .. }
            | CloudInput::Refused { .. }
            | CloudInput::Superseded { .. }
            | CloudInput::Breach { .. }
            | CloudInput::Shutdown => {}
        }
        Ok(())
    }

    /// Tells the agent what was confirmed since it was told last, unless that was just now.
    pub(super) fn flush_confirms(&mut self, out: &mut VecDeque<CloudOutput>) {
        if self.unconfirmed.is_empty() || self.now < self.confirm_due {
            return;
        }
        let mut entries = Vec::with_capacity(self.unconfirmed.len());
        for (id, partition) in std::mem::take(&mut self.unconfirmed) {
            let Some(open) = self.mirror(id).and_then(|mirror| mirror.partition(partition)) else {
                continue;
            };
            // Where it has none, a position follows that tells more.
            if open.mirror.is_told() {
                let (offset, run) = (open.mirror.progress().confirmed, open.mirror.run());
                entries.push(PartitionOffset { mirror: id.0, partition, offset, run, log_start: None });
            }
        }
        if !entries.is_empty() {
            self.confirm_due = self.now + CONFIRM_EVERY;
        }
        for entries in entries.chunks(MAX_ENTRIES) {
            send(out, CloudBody::Confirm(Positions { entries: entries.to_vec() }));
        }
    }

    fn message(&mut self, body: Option<EdgeBody>, now: Time, out: &mut VecDeque<CloudOutput>) -> Result<(), Breach> {
        match body {
            Some(EdgeBody::Hello(_)) => Err("a second Hello".to_owned()),
            Some(EdgeBody::Source(source)) => self.source(source, now, out),
            Some(EdgeBody::Placed(placed)) => self.placed(&placed, out),
            Some(EdgeBody::Failed(failed)) => {
                let id = self.known(failed.mirror)?;
                self.fail(id, failed.failure(), true, out);
                Ok(())
            }
            Some(EdgeBody::Discovered(topics)) => self.discovered(&topics, out),
            Some(EdgeBody::SourceStart(start)) => self.source_start(&start, now, out),
            Some(EdgeBody::SourcePositions(positions)) => self.source_positions(&positions, now, out),
            // Close is handled before; a message that this version does not know is passed over.
            Some(EdgeBody::Close(_)) | None => Ok(()),
        }
    }

    fn source(&mut self, mut source: Source, now: Time, out: &mut VecDeque<CloudOutput>) -> Result<(), Breach> {
        let id = self.known(source.mirror)?;
        if source.configs.len() > MAX_CONFIGS || !(0..=MAX_PARTITIONS).contains(&source.partitions) {
            return Err(format!(
                "source topic of mirror {id} with {} partitions and {} configs",
                source.partitions,
                source.configs.len()
            ));
        }
        let Some(mirror) = self.mirror(id) else { return Ok(()) };
        if matches!(mirror.phase, Phase::Paused | Phase::Failed(_)) {
            return Ok(());
        }
        if source.partitions == 0 {
            let problem = cut(source.problem);
            let topic = mirror.settings.source.clone();
            mirror.phase = Phase::SourceUnavailable { reason: problem.clone() };
            self.stop_partitions(id);
            out.push_back(CloudOutput::Event(CloudEvent::SourceUnavailable { topic, problem }));
            return Ok(());
        }
        let held = i32::try_from(mirror.partitions.len()).unwrap_or(i32::MAX);
        if source.partitions < held {
            let detail = format!("the source topic has {} partitions, the mirror {held}", source.partitions);
            self.fail(id, Failure::of_topic(FailureCode::SourcePartitionsDecreased, detail), false, out);
            return Ok(());
        }
        source.configs.sort_by(|one, other| one.name.cmp(&other.name));
        let configs_before = mirror.source.replace((source.partitions, source.configs)).map(|(_, configs)| configs);
        let configs_now = mirror.source.as_ref().map(|(_, configs)| configs);
        let same = source.partitions == held && configs_before.as_ref() == configs_now;
        // Where it is Active, what its partitions do goes on meanwhile.
        if !same || !matches!(mirror.phase, Phase::Active) {
            mirror.phase = Phase::Preparing { reason: "the mirror topic is being made ready".to_owned() };
            self.prepare(id, now, out);
        }
        Ok(())
    }

    /// Asks for the mirror topic, once writing is allowed.
    fn prepare(&mut self, id: MirrorId, now: Time, out: &mut VecDeque<CloudOutput>) {
        if now < self.write_after {
            self.timeouts.insert((id, -1), self.write_after);
            return;
        }
        let Some(mirror) = self.mirror(id) else { return };
        let (Phase::Preparing { .. }, Some((partitions, configs))) = (&mirror.phase, &mirror.source) else {
            return;
        };
        out.push_back(CloudOutput::PrepareTopic {
            mirror: id,
            topic: mirror.settings.topic.clone(),
            partitions: *partitions,
            configs: configs.clone(),
        });
    }

    fn topic_ready(&mut self, id: MirrorId, partitions: i32, now: Time, out: &mut VecDeque<CloudOutput>) {
        let producer_id = self.producer_id;
        let Some(mirror) = self.mirror(id) else { return };
        let (Phase::Preparing { .. }, Some((wanted, _))) = (&mirror.phase, &mirror.source) else {
            return;
        };
        let wanted = *wanted;
        if partitions > wanted {
            let detail = format!("the source topic has {wanted} partitions, the mirror topic {partitions}");
            return self.fail(id, Failure::of_topic(FailureCode::SourcePartitionsDecreased, detail), false, out);
        }
        mirror.phase = Phase::Active;
        for partition in mirror.partitions.len()..usize::try_from(wanted).unwrap_or(0) {
            let partition = Partition::try_from(partition).unwrap_or(Partition::MAX);
            let mirror_partition = PartitionMirror::new(partition, producer_id);
            let follow = Follow::default();
            mirror.partitions.push(OpenPartition { mirror: mirror_partition, source_high_watermark: None, follow });
        }
        let topic = mirror.settings.topic.clone();
        for partition in 0..wanted {
            self.with_partition((id, partition), now, out, |open| open.mirror.recover());
        }
        out.push_back(CloudOutput::Event(CloudEvent::MirrorActive { topic }));
    }

    fn placed(&mut self, placed: &Placed, out: &mut VecDeque<CloudOutput>) -> Result<(), Breach> {
        let id = self.known(placed.mirror)?;
        if let Some(open) = self.mirror(id).and_then(|mirror| mirror.partition(placed.partition)) {
            open.follow.placed(placed.run);
        }
        if placed.unverified
            && let Some(mirror) = self.mirror(id)
        {
            let topic = mirror.settings.topic.clone();
            out.push_back(CloudOutput::Event(CloudEvent::Unverified { topic, partition: placed.partition }));
        }
        Ok(())
    }

    fn source_positions(
        &mut self,
        positions: &Positions,
        now: Time,
        out: &mut VecDeque<CloudOutput>,
    ) -> Result<(), Breach> {
        if positions.entries.len() > MAX_ENTRIES {
            return Err(format!("{} source positions in one message", positions.entries.len()));
        }
        for entry in &positions.entries {
            let id = self.known(entry.mirror)?;
            if let Some(open) = self.mirror(id).and_then(|mirror| mirror.partition(entry.partition)) {
                open.source_high_watermark = Some(entry.offset);
                open.follow.source_starts(entry.log_start.filter(|start| (0..=entry.offset).contains(start)));
                self.follow((id, entry.partition), now, out);
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, now: Time, out: &mut VecDeque<CloudOutput>) -> Result<(), Breach> {
        let id = self.known(frame.mirror.0)?;
        let bytes = frame.bytes();
        if bytes > self.max_frame_bytes {
            return Err(format!("a frame of {bytes} bytes, allowed are {}", self.max_frame_bytes));
        }
        let Some(open) = self.mirror(id).and_then(|mirror| mirror.partition(frame.partition)) else {
            return Ok(());
        };
        let run = open.mirror.run();
        if frame.run > run {
            return Err(format!("a frame of run {}, which was never told", frame.run));
        }
        // Frames of an older run, of a paused or of a failed mirror were on their way: dropped.
        if frame.run < run {
            return Ok(());
        }
        if self.held_bytes + bytes > self.credit_bytes {
            return Err(format!("{} unconfirmed bytes, credit is {}", self.held_bytes + bytes, self.credit_bytes));
        }
        let mut breach = None;
        let partition = frame.partition;
        self.with_partition((id, partition), now, out, |open| {
            for entry in frame.entries {
                let offset = entry.offset();
                if open.mirror.receive(entry) == Decision::Wait {
                    breach =
                        Some(format!("mirror {id} partition {partition}: offset {offset} came before its predecessor"));
                    break;
                }
            }
        });
        breach.map_or(Ok(()), Err)
    }

    fn timeout(&mut self, now: Time, out: &mut VecDeque<CloudOutput>) {
        let due: Vec<Key> = self.timeouts.iter().filter(|&(_, &at)| at <= now).map(|(&key, _)| key).collect();
        for key in due {
            self.timeouts.remove(&key);
            if key.1 < 0 {
                self.prepare(key.0, now, out);
            } else {
                self.with_partition(key, now, out, |open| open.mirror.handle_timeout(now));
            }
        }
        self.trim_due(now, out);
    }

    fn fail(&mut self, id: MirrorId, failure: Failure, told_by_agent: bool, out: &mut VecDeque<CloudOutput>) {
        let Some(mirror) = self.mirror(id) else { return };
        if matches!(mirror.phase, Phase::Failed(_) | Phase::Paused) {
            return;
        }
        mirror.phase = Phase::Failed(failure.clone());
        let topic = mirror.settings.topic.clone();
        self.stop_partitions(id);
        // Told also to an agent that told us: it takes back the credit of what we held.
        send(out, CloudBody::Failed(Failed::new(id, &failure)));
        out.push_back(CloudOutput::Event(CloudEvent::MirrorFailed { topic, failure, told_by_agent }));
    }

    fn mirror(&mut self, id: MirrorId) -> Option<&mut OpenMirror> {
        self.mirrors.get_mut(id.0 as usize)
    }

    fn known(&self, mirror: u32) -> Result<MirrorId, Breach> {
        if (mirror as usize) < self.mirrors.len() {
            Ok(MirrorId(mirror))
        } else {
            Err(format!("mirror {mirror} does not exist"))
        }
    }
}

fn send(out: &mut VecDeque<CloudOutput>, body: CloudBody) {
    out.push_back(CloudOutput::Send(CloudMessage { body: Some(body) }));
}
