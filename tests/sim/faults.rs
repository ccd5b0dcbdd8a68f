//! What goes wrong, when it does, and the end of all trouble.

mod outage;

pub(crate) use outage::MAX_NEW_TOPICS;

use tombolo_proto::failure::FailureCode;
use tombolo_proto::id::{Offset, Time};
use tombolo_proto::testing::BatchBuilder;

use crate::broker::PartitionLog;
use crate::cluster::{BROKERS, ClusterEvent};
use crate::plan::{Fault, OddBatch};
use crate::world::{Event, GatewayEvent, Place, World};

/// QUIC's idle time-out: what is dark for longer is dead.
const IDLE: Time = Time::from_secs(5);

impl World {
    pub(crate) fn on_fault(&mut self, fault: Fault) {
        if self.healed.is_some() {
            return;
        }
        let Some(mean) = self.plan.faults.get(&fault).copied() else {
            return;
        };
        let wait = self.dice.millis(0, 2 * usize::try_from(mean.as_millis()).expect("small"));
        let wait = self.slowly(wait);
        self.after(wait, Event::Fault(fault));
        if self.is_quiet() {
            return;
        }
        self.trace(|| format!("fault: {fault:?}"));
        match fault {
            Fault::CutLink => self.cut_link(),
            Fault::DarkLink => self.darken(),
            Fault::KillAgent => self.kill_agent(false),
            Fault::KillGateway => {
                let at = self.dice.below(2);
                self.kill_gateway(at);
            }
            Fault::PauseGateway => self.pause_gateway(),
            Fault::CutBroker => {
                let live = self.cluster.live_connections();
                if let Some((id, _, _)) = self.dice.pick(&live) {
                    self.cut_broker(id, true);
                }
            }
            Fault::KillBroker => {
                let broker = self.dice.below(BROKERS);
                self.kill_broker(broker, None);
            }
            Fault::MoveLeader => {
                if let Some(place) = self.any_place() {
                    self.move_leader(place, false);
                }
            }
            Fault::LoseTail => {
                let place = self.any_place();
                let leader = place.and_then(|place| self.cluster.partitions.get(&place)?.leader);
                if let Some(leader) = leader {
                    self.kill_broker(leader, place);
                }
            }
            Fault::ShortOfReplicas | Fault::StalledReplicas => self.hold_partition(fault),
            Fault::SlowRegistry => self.registry_slow_until = self.now + self.dice.millis(1_000, 15_000),
            Fault::FailedReads => self.reads_fail_until = self.now + self.dice.millis(500, 10_000),
            Fault::ForgetProducers => {
                let places: Vec<_> = self.cluster.partitions.keys().copied().collect();
                for place in places {
                    if !self.may_refuse_in_flight(place) {
                        self.forget_producers_of(place);
                    }
                }
            }
            Fault::SourceLeader
            | Fault::SourceGone
            | Fault::Retention
            | Fault::Compact
            | Fault::TruncateSource
            | Fault::Overrun => self.trouble_source(fault),
            Fault::PauseMirror | Fault::AddMirror | Fault::GrowTopic => self.operate(fault),
            Fault::ForeignWrite => self.write_foreign(),
            Fault::RecreateTopic => {
                if let Some((topic, _)) = self.victim() {
                    self.remake_topic(topic);
                }
            }
            Fault::LongDark => self.long_dark(),
            Fault::NewTopic => self.make_topic(),
            Fault::PowerCut
            | Fault::FullDisk
            | Fault::BreakDisk
            | Fault::DamageDisk
            | Fault::LoseDisk
            | Fault::OldBackup => self.trouble_disk(fault),
        }
    }

    /// Whether a batch could be refused with others in flight behind it. A sweep of producer state just then lets the next
    /// one in, in the refused one's place: the known gap of compare-and-append, which a broker's ten minutes between two
    /// sweeps make rare, and which only one batch in flight would close. The sweeps here, a thousand times as frequent,
    /// pass such partitions by.
    fn may_refuse_in_flight(&self, place: Place) -> bool {
        let odd = self.plan.topics.get(&place.0).and_then(|topic| topic.odd);
        let refuses = self.plan.faults.contains_key(&Fault::ShortOfReplicas) || odd == Some(OddBatch::TooLargeForCloud);
        refuses && self.gateways.iter().any(|gateway| gateway.pipelines(place))
    }

    fn any_place(&mut self) -> Option<Place> {
        let places: Vec<_> = self.source.keys().copied().collect();
        self.dice.pick(&places)
    }

    /// A partition that may take a fault it does not get over.
    fn victim(&mut self) -> Option<Place> {
        let place = self.any_place()?;
        let victim = self.plan.topics.get(&place.0).is_some_and(|topic| topic.victim);
        (victim && !self.ghost.is_excused(place.0)).then_some(place)
    }

    fn cut_link(&mut self) {
        let Some(id) = self.agent.connection else { return };
        let Some(link) = self.carrier.connection(id) else { return };
        link.broken = true;
        let (mut first, mut second) = (self.dice.millis(0, 200), self.dice.millis(0, 8_000));
        if self.dice.chance(500) {
            std::mem::swap(&mut first, &mut second);
        }
        self.agent_loses(id, first);
        self.gateway_loses(id, second);
    }

    fn darken(&mut self) {
        let dark = if self.dice.chance(300) { self.dice.millis(5_000, 20_000) } else { self.dice.millis(50, 4_500) };
        self.darken_until(self.now + dark);
    }

    fn darken_until(&mut self, until: Time) {
        self.carrier.dark_until = self.carrier.dark_until.max(until);
        if until < self.now + IDLE {
            return;
        }
        for id in self.carrier.ids() {
            let (agent, gateway) = (IDLE + self.dice.millis(0, 400), IDLE + self.dice.millis(0, 400));
            self.agent_loses(id, agent);
            self.gateway_loses(id, gateway);
        }
    }

    fn pause_gateway(&mut self) {
        let at = self.dice.below(2);
        let longest = self.dice.pick(&[2_000, 8_000, 25_000]).unwrap_or(8_000);
        let still = self.dice.millis(100, longest);
        let Some(gateway) = self.gateways.get_mut(at) else { return };
        if gateway.process == 0 || std::mem::replace(&mut gateway.paused, true) {
            return;
        }
        self.after(still, Event::GatewayContinue(at));
        if still < IDLE {
            return;
        }
        for id in self.carrier.ids() {
            let idle = IDLE + self.dice.millis(0, 400);
            if self.carrier.connection(id).is_some_and(|link| link.gateway == at) {
                self.agent_loses(id, idle);
                self.gateway_loses(id, idle);
            }
        }
    }

    fn hold_partition(&mut self, fault: Fault) {
        let Some(place) = self.any_place().filter(|&place| self.plan.stalled != Some(place)) else { return };
        let held = self.dice.millis(20, 8_000);
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else {
            return;
        };
        let event = if fault == Fault::StalledReplicas {
            hosted.stalled = true;
            ClusterEvent::ReplicasMove { place }
        } else {
            hosted.log.short_of_replicas = true;
            ClusterEvent::EnoughReplicas { place }
        };
        self.after(held, Event::Cluster(event));
    }

    fn trouble_source(&mut self, fault: Fault) {
        let place =
            if matches!(fault, Fault::TruncateSource | Fault::Overrun) { self.victim() } else { self.any_place() };
        let Some(place) = place else { return };
        let (confirmed, deletable) = (self.ghost.confirmed(place), self.deletable(place));
        let Some(source) = self.source.get_mut(&place) else { return };
        match fault {
            Fault::SourceLeader => {
                source.change_leader(&mut self.dice);
                let unknown = self.dice.millis(50, 1_500);
                self.after(unknown, Event::SourceReplicated(place));
            }
            Fault::SourceGone => {
                self.source_gone.insert(place.0, true);
                self.source_changed(place.0);
                let gone = self.dice.millis(500, 5_000);
                self.after(gone, Event::SourceBack(place.0));
            }
            Fault::Retention => {
                let from = source.border_between(&mut self.dice, source.log_start(), deletable);
                let within = self.dice.chance(200);
                let less = if within { i64::try_from(self.dice.below(3)).expect("small") } else { 0 };
                source.retain_from(from.min(deletable) - less, within);
                if source.log_start() > confirmed {
                    self.ghost.count("deleted at the source what only the journal had");
                }
            }
            Fault::Overrun => {
                let from = source.border_between(&mut self.dice, confirmed, source.last_stable());
                let within = self.dice.chance(200);
                source.retain_from(from - i64::from(within), within);
                self.ghost.excuse(place.0, &[FailureCode::SourceDataLost]);
            }
            Fault::Compact => {
                let compacted = self.plan.topics.get(&place.0).is_some_and(|topic| topic.compacted);
                if compacted && source.compact(&mut self.dice) {
                    self.ghost.count("compacted at the source");
                    self.trace(|| format!("the source compacts {place:?}"));
                }
            }
            Fault::TruncateSource if source.lose_tail(&mut self.dice) => {
                let codes = [FailureCode::UnexpectedTruncation, FailureCode::Diverged];
                self.ghost.excuse(place.0, &codes);
                self.judge_anew(place);
                let written_anew = self.dice.between(0, 6);
                for _ in 0..written_anew {
                    self.append_at_source(place, None);
                }
                self.after(Time::from_millis(100), Event::SourceReplicated(place));
            }
            _ => {}
        }
    }

    /// The operator changes the settings of both gateways.
    fn operate(&mut self, fault: Fault) {
        let topic = self.dice.below(self.wanted.len());
        let Some(wanted) = self.wanted.get_mut(topic) else { return };
        match fault {
            Fault::PauseMirror => wanted.paused = !wanted.paused,
            Fault::AddMirror => wanted.known = true,
            _ => {
                let partitions = self.source.keys().filter(|place| place.0 == topic).count();
                if partitions < 6 {
                    let next = i32::try_from(partitions).expect("small");
                    self.add_partition((topic, next), 0, false);
                    self.source_changed(topic);
                }
            }
        }
        self.settings_changed();
    }

    fn settings_changed(&mut self) {
        for at in 0..self.gateways.len() {
            let wait = self.dice.millis(0, 2_000);
            if let Some(process) = self.gateways.get(at).map(|gateway| gateway.process) {
                self.after(wait, Event::Gateway(at, process, GatewayEvent::Settings));
            }
        }
    }

    fn write_foreign(&mut self) {
        let Some(place) = self.victim() else { return };
        let batches = self.dice.between(1, 3);
        let Some(hosted) = self.cluster.partitions.get_mut(&place) else {
            return;
        };
        if hosted.leader.is_none() || hosted.log.short_of_replicas {
            return;
        }
        for _ in 0..batches {
            let records = i32::try_from(self.dice.between(1, 5)).expect("small");
            let foreign = BatchBuilder::new(0).records(records).fill(255).bytes();
            let Some(hosted) = self.cluster.partitions.get_mut(&place) else {
                return;
            };
            if hosted.log.append(&foreign, None).is_ok() {
                self.appended(place, false);
            }
        }
        self.ghost.excuse(place.0, &[FailureCode::ForeignWrite]);
        self.replicate(place);
    }

    /// The log of a mirror's partition, before anything is in it.
    pub(crate) fn new_log(&self, place: Place, begin: Offset) -> PartitionLog {
        PartitionLog::new(begin, self.plan.cloud_batch_bytes(place.0))
    }

    /// Puts the first `count` batches of the source into the mirror.
    pub(crate) fn mirror_beforehand(&mut self, place: Place, count: usize) {
        let (Some(source), Some(hosted)) = (self.source.get_mut(&place), self.cluster.partitions.get_mut(&place))
        else {
            return;
        };
        source.replicated();
        for entry in source.first_entries(count) {
            Self::mirror_entry(&mut hosted.log, &entry);
        }
        let end = hosted.log.log_end();
        hosted.log.replicated(end);
        self.forget_producers_of(place);
        self.judge_anew(place);
        self.watermark_moved(place);
    }

    /// The end of all trouble: everything works from here on, and nothing more is written after one last batch each.
    pub(crate) fn heal(&mut self) {
        self.trace(|| "healed".to_owned());
        self.healed = Some(self.now);
        self.carrier.dark_until = self.now;
        self.registry_slow_until = self.now;
        self.reads_fail_until = self.now;
        if let Some(disk) = &mut self.disk {
            disk.full_until = self.now;
        }
        for at in 0..self.gateways.len() {
            self.continue_gateway(at);
            self.start_gateway(at);
        }
        self.start_agent();
        for wanted in &mut self.wanted {
            wanted.known = true;
            wanted.paused = false;
        }
        self.settings_changed();
        let topics: Vec<_> = std::mem::take(&mut self.source_gone).into_keys().collect();
        for topic in topics {
            self.source_changed(topic);
        }
        let places: Vec<_> = self.source.keys().copied().collect();
        let now_ms = self.wall_ms();
        for place in places {
            if let Some(source) = self.source.get_mut(&place) {
                source.end_all(&mut self.dice, now_ms);
            }
            self.append_at_source(place, None);
            if let Some(source) = self.source.get_mut(&place) {
                source.end_all(&mut self.dice, now_ms);
            }
            self.at(self.now, Event::SourceReplicated(place));
            self.at(self.now, Event::Cluster(ClusterEvent::EnoughReplicas { place }));
            if self.plan.stalled != Some(place) {
                self.at(self.now, Event::Cluster(ClusterEvent::ReplicasMove { place }));
            }
        }
    }

    /// The partition that stood still all the time goes on. True where none did.
    pub(crate) fn release_stalled(&mut self) -> bool {
        let stalled = self.plan.stalled.take();
        if let Some(place) = stalled {
            self.at(self.now, Event::Cluster(ClusterEvent::ReplicasMove { place }));
        }
        stalled.is_none()
    }
}
