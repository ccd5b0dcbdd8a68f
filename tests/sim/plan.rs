//! What one seed runs: the size of the world and the faults it is given. Every seed gets its own few faults at its own
//! rates, so that each is also met alone ("swarm testing").

use std::collections::BTreeMap;

use tombolo_proto::cloud::{DEFAULT_MAX_GAP, OnLoss};
use tombolo_proto::failure::FailureCode;
use tombolo_proto::id::{Offset, Time};

use crate::bugs::Bug;
use crate::dice::Dice;
use crate::world::Place;

/// What can go wrong. Each comes again and again, at a mean interval of the seed's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The connection between agent and gateway dies; each end learns it at its own time.
    CutLink,
    /// Nothing gets through the link for a while.
    DarkLink,
    KillAgent,
    KillGateway,
    /// A gateway stands still (SIGSTOP); what it sent goes on.
    PauseGateway,
    /// A gateway's connection to a broker dies; requests already at the broker may be applied later.
    CutBroker,
    /// A broker dies and others lead its partitions; what was confirmed stays.
    KillBroker,
    /// A partition moves to another leader; the old one lives, and refuses what it gets.
    MoveLeader,
    /// The same, and confirmed records are lost.
    LoseTail,
    /// Too few replicas in sync: appends are refused.
    ShortOfReplicas,
    /// The followers of a partition stand still: the high watermark does.
    StalledReplicas,
    /// Looks at the registry and writes to it take seconds.
    SlowRegistry,
    /// Reads of a log's end, producers and tail fail.
    FailedReads,
    /// Producer state is swept away by record time.
    ForgetProducers,
    SourceLeader,
    SourceGone,
    Retention,
    /// The source's cleaner works.
    Compact,
    PauseMirror,
    AddMirror,
    GrowTopic,
    /// Somebody else writes into a mirror.
    ForeignWrite,
    /// The source loses its tail and writes another.
    TruncateSource,
    /// Retention at the source overtakes the mirror.
    Overrun,
    /// The source topic is deleted and made again, with another id.
    RecreateTopic,
    /// Nothing gets through the link for hours or days, in which brokers forget their producers.
    LongDark,
    /// A topic that the gateway's filters mean appears at the source.
    NewTopic,
    /// The agent's box loses its power.
    PowerCut,
    /// The agent's disk takes nothing for a while.
    FullDisk,
    /// A write to the agent's disk fails.
    BreakDisk,
    /// Frames on the agent's disk cannot be read any more.
    DamageDisk,
    /// The agent comes back with an empty disk.
    LoseDisk,
    /// The agent comes back with an old backup of its disk.
    OldBackup,
}

/// Every fault that a mirror must get over.
const SURVIVABLE: [Fault; 21] = [
    Fault::CutLink,
    Fault::DarkLink,
    Fault::KillAgent,
    Fault::KillGateway,
    Fault::PauseGateway,
    Fault::CutBroker,
    Fault::KillBroker,
    Fault::MoveLeader,
    Fault::LoseTail,
    Fault::ShortOfReplicas,
    Fault::StalledReplicas,
    Fault::SlowRegistry,
    Fault::FailedReads,
    Fault::ForgetProducers,
    Fault::SourceLeader,
    Fault::SourceGone,
    Fault::Retention,
    Fault::Compact,
    Fault::PauseMirror,
    Fault::AddMirror,
    Fault::GrowTopic,
];

/// Faults of an agent that has a journal. The last three may cost what the source has deleted, and nothing else.
const WITH_JOURNAL: [Fault; 8] = [
    Fault::LongDark,
    Fault::NewTopic,
    Fault::PowerCut,
    Fault::FullDisk,
    Fault::BreakDisk,
    Fault::DamageDisk,
    Fault::LoseDisk,
    Fault::OldBackup,
];

/// Faults that stop the mirrors they meet; an overrun only where losses are not skipped.
const FATAL: [Fault; 4] = [Fault::ForeignWrite, Fault::TruncateSource, Fault::Overrun, Fault::RecreateTopic];

/// A batch the source should not hold, or the cloud not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OddBatch {
    Corrupt,
    TooLargeForFrame,
    TooLargeForCloud,
}

impl OddBatch {
    const ALL: [Self; 3] = [Self::Corrupt, Self::TooLargeForFrame, Self::TooLargeForCloud];

    /// What the mirror stops with.
    pub(crate) fn code(self) -> FailureCode {
        match self {
            Self::Corrupt => FailureCode::CorruptSourceBatch,
            Self::TooLargeForFrame => FailureCode::BatchTooLarge,
            Self::TooLargeForCloud => FailureCode::CloudRefused,
        }
    }
}

/// What a topic is made of.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own, not a state")]
pub(crate) struct TopicPlan {
    pub(crate) partitions: i32,
    /// Where both logs begin: the source's retention has removed what is below, the mirror holds it up to some batches
    /// above. 0 is an empty mirror.
    pub(crate) begin: Offset,
    /// The mirror is empty all the same, and has to be made to start there.
    pub(crate) late: bool,
    /// Of a thousand batches, those of transactions.
    pub(crate) transactional: usize,
    /// The source's cleaner takes records away.
    pub(crate) compacted: bool,
    /// Age of the records, in milliseconds.
    pub(crate) age_ms: i64,
    /// Mean time between two batches of a partition.
    pub(crate) pace: Time,
    /// Largest record section, in bytes.
    pub(crate) payload: usize,
    pub(crate) odd: Option<OddBatch>,
    /// Takes [`FATAL`] faults.
    pub(crate) victim: bool,
    /// In the gateways' settings from the start.
    pub(crate) known: bool,
}

/// The agent's disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskPlan {
    /// The journal's cap.
    pub(crate) max_bytes: u64,
    /// Most milliseconds that a sync takes.
    pub(crate) sync: usize,
    /// Of a thousand syncs, those that take seconds.
    pub(crate) slow_per_mille: usize,
}

/// Everything about a seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// By number; see [`crate::world::source_topic`].
    pub(crate) topics: BTreeMap<usize, TopicPlan>,
    pub(crate) faults: BTreeMap<Fault, Time>,
    /// `None`: the agent has no journal.
    pub(crate) disk: Option<DiskPlan>,
    pub(crate) spill_delay: Time,
    pub(crate) window_bytes: usize,
    pub(crate) max_frame_bytes: usize,
    /// Largest frame the gateway takes; not above the agent's.
    pub(crate) gateway_frame_bytes: usize,
    pub(crate) credit_bytes: usize,
    /// Largest answer to a fetch, in bytes. It comes on top of a partition's share of the window, so that one that stalls
    /// can hold half of the window and this.
    pub(crate) fetch_bytes: usize,
    /// One way, least and most, in milliseconds.
    pub(crate) link_delay: (usize, usize),
    pub(crate) link_bytes_per_second: usize,
    /// Most milliseconds from a gateway to a broker.
    pub(crate) broker_delay: usize,
    /// `timeout_ms` of a Produce.
    pub(crate) produce_timeout: Time,
    pub(crate) lease: Time,
    /// After this, whatever was sent on a connection that died is applied or will never be.
    pub(crate) settle: Time,
    /// `producer.id.expiration.ms`.
    pub(crate) expiration_ms: i64,
    /// A gateway reads a log end only when nothing it sent can still be applied: the settle time after a connection died
    /// with requests unanswered. Where it does not wait, late requests meet resent ones, which is harmless as long as the
    /// broker remembers the producer; so records are young there.
    pub(crate) careful: bool,
    /// Offsets without records that a session may skip.
    pub(crate) max_gap: i64,
    pub(crate) on_loss: OnLoss,
    /// A partition of the cloud whose followers stand still until all others are equal.
    pub(crate) stalled: Option<Place>,
    /// How long faults are injected.
    pub(crate) trouble: Time,
    pub(crate) bug: Option<Bug>,
}

/// Requests on the way on one connection to a broker; it works them off one by one, each up to the produce timeout.
pub(crate) const CONNECTION_DEPTH: usize = 5;
/// Longest that a broker leaves a request lying before it looks at it, in milliseconds.
pub(crate) const LATE_MS: usize = 400;
/// A day, the default of `producer.id.expiration.ms`.
const EXPIRATION_MS: i64 = 86_400_000;

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(dice: &mut Dice) -> Self {
        let topics = (0..dice.between(1, 4)).map(|number| (number, topic(dice, number))).collect();
        let mut faults = BTreeMap::new();
        for fault in SURVIVABLE.into_iter().chain(FATAL) {
            if dice.chance(350) {
                faults.insert(fault, dice.millis(1_500, 15_000));
            }
        }
        for fault in WITH_JOURNAL {
            if dice.chance(250) {
                faults.insert(fault, dice.millis(3_000, 20_000));
            }
        }
        let mut plan = Self { topics, faults, ..Self::calm(dice) };
        if dice.chance(60) {
            plan.faults.clear();
        }
        if dice.chance(250) {
            plan.disk = None;
        }
        if dice.chance(500) {
            plan.careful = false;
            plan.faults.remove(&Fault::ForgetProducers);
            plan.faults.remove(&Fault::LongDark);
            plan.topics.values_mut().for_each(|topic| topic.age_ms = 0);
            if dice.chance(500) {
                plan.faults.insert(Fault::CutBroker, dice.millis(500, 4_000));
            }
        }
        if dice.chance(100) {
            plan.stalled = Some((0, 0));
        }
        if dice.chance(400) {
            plan.on_loss = OnLoss::Skip;
        }
        if dice.chance(30) {
            plan.max_gap = i64::try_from(dice.between(1, 300)).expect("small");
        }
        match dice.below(18) {
            0 => plan.takeovers(dice),
            1 => plan.rewrites(dice),
            2 => plan.recreations(dice),
            3 => plan.outages(dice),
            4 => plan.holes(dice),
            5 => plan.losses(dice),
            _ => {}
        }
        plan.keep_apart();
        plan
    }

    /// Gateways that stand still while another takes the link, over a cluster that has forgotten the producer: where the
    /// lease is all there is.
    fn takeovers(&mut self, dice: &mut Dice) {
        self.careful = true;
        self.trouble = Time::from_mins(1);
        self.faults.retain(|&fault, _| matches!(fault, Fault::PauseMirror | Fault::StalledReplicas | Fault::CutLink));
        self.faults.insert(Fault::PauseGateway, dice.millis(4_000, 8_000));
        self.faults.insert(Fault::ForgetProducers, dice.millis(200, 1_000));
        for topic in self.topics.values_mut() {
            topic.age_ms = 7 * EXPIRATION_MS;
            topic.pace = dice.millis(20, 150);
        }
    }

    /// Sources that lose their tail and write another while the mirror is paused or the agent is down: where the tail
    /// comparison is all there is.
    fn rewrites(&mut self, dice: &mut Dice) {
        let kept = [
            Fault::PauseMirror,
            Fault::KillAgent,
            Fault::CutLink,
            Fault::DarkLink,
            Fault::SourceLeader,
            Fault::CutBroker,
        ];
        self.faults.retain(|fault, _| kept.contains(fault));
        self.faults.insert(Fault::TruncateSource, dice.millis(500, 3_000));
        let down = if dice.chance(500) { Fault::PauseMirror } else { Fault::KillAgent };
        self.faults.insert(down, dice.millis(500, 3_000));
        for topic in self.topics.values_mut() {
            topic.victim = true;
        }
    }

    /// Topics that are made anew while the link is dark and the journal full of the old ones.
    fn recreations(&mut self, dice: &mut Dice) {
        let kept =
            [Fault::KillAgent, Fault::PowerCut, Fault::CutLink, Fault::OldBackup, Fault::KillGateway, Fault::LongDark];
        self.faults.retain(|fault, _| kept.contains(fault));
        self.faults.insert(Fault::RecreateTopic, dice.millis(3_000, 10_000));
        self.faults.insert(Fault::DarkLink, dice.millis(2_000, 6_000));
        self.disk.get_or_insert_with(|| disk(dice));
        self.spill_delay = dice.millis(200, 1_000);
        for topic in self.topics.values_mut() {
            topic.victim = true;
        }
    }

    /// A dark link, a source that deletes what the journal has, and boxes that die: the journal is all there is.
    fn outages(&mut self, dice: &mut Dice) {
        let kept = [
            Fault::LongDark,
            Fault::FullDisk,
            Fault::BreakDisk,
            Fault::PauseMirror,
            Fault::LoseTail,
            Fault::NewTopic,
            Fault::GrowTopic,
        ];
        self.faults.retain(|fault, _| kept.contains(fault));
        self.faults.insert(Fault::DarkLink, dice.millis(2_000, 6_000));
        self.faults.insert(Fault::Retention, dice.millis(500, 3_000));
        self.faults.insert(Fault::PowerCut, dice.millis(3_000, 10_000));
        self.disk.get_or_insert_with(|| disk(dice));
        self.spill_delay = dice.millis(200, 1_000);
    }

    /// Logs with more gaps than records, over a cluster whose connections die: markers are in doubt all the time.
    fn holes(&mut self, dice: &mut Dice) {
        let kept = [
            Fault::CutLink,
            Fault::KillGateway,
            Fault::KillBroker,
            Fault::MoveLeader,
            Fault::LoseTail,
            Fault::ShortOfReplicas,
            Fault::StalledReplicas,
            Fault::ForgetProducers,
            Fault::SourceLeader,
        ];
        self.faults.retain(|fault, _| kept.contains(fault));
        self.faults.insert(Fault::CutBroker, dice.millis(300, 2_000));
        self.faults.insert(Fault::Compact, dice.millis(300, 1_500));
        for topic in self.topics.values_mut() {
            topic.transactional = 700;
            topic.compacted = dice.chance(700);
            topic.pace = dice.millis(30, 200);
        }
    }

    /// Sources that delete what is not mirrored yet, and mirrors that go on all the same.
    fn losses(&mut self, dice: &mut Dice) {
        self.on_loss = OnLoss::Skip;
        let kept = [
            Fault::CutLink,
            Fault::DarkLink,
            Fault::KillGateway,
            Fault::KillAgent,
            Fault::CutBroker,
            Fault::KillBroker,
            Fault::SlowRegistry,
            Fault::FailedReads,
            Fault::PauseMirror,
            Fault::Compact,
        ];
        self.faults.retain(|fault, _| kept.contains(fault));
        self.faults.insert(Fault::Overrun, dice.millis(500, 4_000));
        for topic in self.topics.values_mut() {
            topic.victim = true;
            topic.late = true;
        }
    }

    /// An hour in which nothing goes wrong, on a link that carries what the source writes: every batch can be confirmed
    /// within the spill delay.
    pub(crate) fn healthy_hour(dice: &mut Dice) -> Self {
        let mut plan = Self::calm(dice);
        let begin = if dice.chance(500) { 1_000 } else { 0 };
        let plain =
            TopicPlan { partitions: 3, begin, pace: Time::from_millis(400), odd: None, known: true, ..topic(dice, 0) };
        // A gap of a transaction that is open for long would be waited for.
        let plain = TopicPlan { late: false, transactional: 0, ..plain };
        plan.topics = BTreeMap::from([(0, plain)]);
        plan.spill_delay = Time::from_secs(2);
        // Memory enough that no partition waits for room: what does is spilled earlier.
        plan.window_bytes = 2 << 20;
        plan.credit_bytes = 1 << 20;
        plan.link_bytes_per_second = 500_000;
        plan.trouble = Time::from_hours(1);
        plan
    }

    /// One topic and nothing that goes wrong.
    pub(crate) fn calm(dice: &mut Dice) -> Self {
        let max_frame_bytes = dice.between(2_000, 16_000);
        let window_bytes = dice.between(4 * max_frame_bytes, 20 * max_frame_bytes);
        let broker_delay = dice.between(1, 60);
        let produce_timeout = dice.millis(150, 350);
        let depth = u32::try_from(CONNECTION_DEPTH).expect("small");
        let network = Time::from_millis(u64::try_from(2 * broker_delay + LATE_MS + 50).expect("small"));
        Self {
            topics: BTreeMap::from([(0, topic(dice, 0))]),
            faults: BTreeMap::new(),
            disk: Some(disk(dice)),
            spill_delay: dice.millis(200, 3_000),
            window_bytes,
            max_frame_bytes,
            gateway_frame_bytes: if dice.chance(700) { max_frame_bytes } else { dice.between(2_000, max_frame_bytes) },
            credit_bytes: dice.between(2 * max_frame_bytes, 12 * max_frame_bytes),
            fetch_bytes: dice.between(500, window_bytes / 4),
            link_delay: (dice.between(1, 150), dice.between(150, 400)),
            link_bytes_per_second: dice.between(20_000, 2_000_000),
            broker_delay,
            produce_timeout,
            lease: dice.millis(1_000, 3_000),
            settle: network + produce_timeout * depth,
            expiration_ms: EXPIRATION_MS,
            careful: true,
            max_gap: DEFAULT_MAX_GAP,
            on_loss: OnLoss::Halt,
            stalled: None,
            trouble: dice.millis(20_000, 60_000),
            bug: None,
        }
    }

    /// Faults that would excuse one another are not given to one seed, so that each failure has one possible cause.
    fn keep_apart(&mut self) {
        if self.disk.is_none() {
            self.faults.retain(|fault, _| !WITH_JOURNAL.contains(fault));
        }
        if self.faults.contains_key(&Fault::RecreateTopic) {
            self.faults.retain(|fault, _| !FATAL.contains(fault) || *fault == Fault::RecreateTopic);
        }
        if self.faults.contains_key(&Fault::ForeignWrite) {
            self.faults.remove(&Fault::TruncateSource);
            self.faults.remove(&Fault::Overrun);
        }
        if self.faults.contains_key(&Fault::TruncateSource) {
            // With its records gone from the source, nothing is left to show that the mirror differs.
            self.faults.remove(&Fault::Retention);
            self.faults.remove(&Fault::Overrun);
        }
        let fatal = FATAL.iter().any(|fault| self.faults.contains_key(fault));
        if fatal {
            self.faults.remove(&Fault::LoseTail);
            for topic in self.topics.values_mut().filter(|topic| topic.victim) {
                topic.odd = None;
            }
        }
    }
}

fn disk(dice: &mut Dice) -> DiskPlan {
    let small = dice.chance(200);
    let kib = if small { dice.between(40, 400) } else { 1 << 20 };
    DiskPlan {
        max_bytes: u64::try_from(kib << 10).expect("small"),
        sync: dice.between(1, 50),
        slow_per_mille: dice.pick(&[0, 5, 100]).unwrap_or(0),
    }
}

/// A topic that appears while the world runs.
pub(crate) fn new_topic(dice: &mut Dice, number: usize) -> TopicPlan {
    TopicPlan { begin: 0, late: false, odd: None, victim: false, ..topic(dice, number) }
}

fn topic(dice: &mut Dice, number: usize) -> TopicPlan {
    let near_wrap = (1 << 31) - i64::try_from(dice.between(1, 60)).expect("small");
    let begin = match dice.below(5) {
        0 => near_wrap,
        1 => i64::try_from(dice.between(1, 5_000)).expect("small"),
        _ => 0,
    };
    let old = dice.chance(350);
    TopicPlan {
        partitions: i32::try_from(dice.between(1, 4)).expect("small"),
        begin,
        late: dice.chance(400),
        transactional: dice.pick(&[0, 0, 100, 600]).unwrap_or(0),
        compacted: dice.chance(300),
        age_ms: if old { 7 * EXPIRATION_MS } else { 0 },
        pace: dice.millis(30, 900),
        payload: dice.between(30, 1_800),
        odd: dice.chance(60).then(|| dice.pick(&OddBatch::ALL)).flatten(),
        victim: dice.chance(500),
        known: number == 0 || dice.chance(800),
    }
}
