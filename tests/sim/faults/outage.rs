//! Days in the dark, trouble with the agent's disk, and topics that come and go meanwhile.

use tombolo_proto::failure::FailureCode;
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Time};

use crate::cluster::ClusterEvent;
use crate::plan::{Fault, new_topic};
use crate::properties::Rule;
use crate::world::{Event, FILTERED, Place, World};

/// `producer.id.expiration.ms` looks at producers that have written nothing for a day.
const DAY: Time = Time::from_hours(24);
/// Topics that appear while the world runs.
pub(crate) const MAX_NEW_TOPICS: usize = 2;
/// Phases of hours or days in the dark.
const MAX_LONG_DARKS: u32 = 2;
/// Times that the operator looks whether a mirror has stopped.
const MAX_LOOKS: u32 = 12;
/// Of a long darkness the last part in which nothing else goes wrong: the journal must be up to date then.
const QUIET_PART: u32 = 3;

impl World {
    pub(super) fn trouble_disk(&mut self, fault: Fault) {
        match fault {
            Fault::PowerCut => self.kill_agent(true),
            Fault::LoseDisk => {
                self.kill_agent(true);
                self.other_disk(false);
            }
            Fault::OldBackup => self.go_back_to_backup(),
            Fault::FullDisk => {
                let full = self.dice.millis(500, 10_000);
                let until = self.now + full;
                if let Some(disk) = &mut self.disk {
                    disk.full_until = until;
                }
            }
            Fault::BreakDisk => {
                if let Some(disk) = &mut self.disk {
                    disk.fails_next = true;
                }
            }
            Fault::DamageDisk => self.damage_disk(),
            _ => {}
        }
    }

    fn go_back_to_backup(&mut self) {
        if self.dice.chance(500) {
            self.kill_agent(true);
            self.other_disk(true);
        }
        if let Some(disk) = &mut self.disk {
            disk.back_up();
        }
    }

    fn damage_disk(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        let Some(place) = self.dice.pick(&disk.places()) else { return };
        let at = self.dice.below(1_000);
        let pick = |frames: &[Packed]| {
            let at = at * frames.len() / 1_000;
            frames.get(at).map(|packed| packed.first_offset)
        };
        disk.damage(pick, place);
    }

    pub(super) fn long_dark(&mut self) {
        if self.now < self.long_dark_until || self.long_darks == MAX_LONG_DARKS {
            return;
        }
        self.long_darks += 1;
        let longest = self.dice.pick(&[6, 30, 96]).unwrap_or(6);
        let dark = self.dice.millis(3_600_000, longest * 3_600_000);
        self.darken_until(self.now + dark);
        self.darken_for_long(dark);
    }

    /// Whether nothing else is to go wrong now.
    pub(super) fn is_quiet(&self) -> bool {
        let left = self.long_dark_until.saturating_sub(self.now);
        left > Time::ZERO && left < self.long_dark_length() / QUIET_PART
    }

    pub(crate) fn long_dark_is_over(&mut self) {
        self.trace(|| "the long dark is over".to_owned());
        self.check_dark();
        if self.long_dark_length() >= DAY {
            let places: Vec<_> = self.cluster.partitions.keys().copied().collect();
            for place in places {
                if self.forget_producers_of(place) {
                    self.ghost.count("producer forgotten in the dark");
                }
            }
        }
        self.agent_dials();
    }

    /// With nothing wrong for a while but the link, the journal has all but the newest records of the source.
    fn check_dark(&mut self) {
        let status = self.agent.status();
        if self.disk.is_none() || !self.agent.up || status.journal_trouble.is_some() {
            return;
        }
        let recent_ms = i64::try_from((self.long_dark_length() / (4 * QUIET_PART)).as_millis()).expect("small");
        let old = self.wall_ms() - recent_ms;
        for mirror in &status.mirrors {
            let topic = crate::world::topic_number(&mirror.topic);
            let age_ms = self.plan.topics.get(&topic).map_or(0, |plan| plan.age_ms);
            if mirror.state.name() != "ACTIVE" && mirror.state.name() != "PENDING_MIRROR"
                || self.ghost.is_excused(topic)
            {
                continue;
            }
            for partition in mirror.partitions.iter().filter(|partition| !partition.stuck) {
                let place = (topic, partition.partition);
                let (Some(fetched), Some(source)) = (partition.fetched, self.source.get(&place)) else { continue };
                let old_enough = |batch: &&tombolo_proto::batch::Batch| batch.max_timestamp() + age_ms < old;
                let due = source.batches().rev().find(old_enough);
                let due = due.map_or(0, tombolo_proto::batch::Batch::next_offset);
                let due = due.min(source.last_stable_before(old - age_ms));
                let kept = partition.journal.map_or(0, |(_, next)| next).max(partition.confirmed.unwrap_or(0));
                if kept < due {
                    let text = format!("{place:?}: up to {due} is old, {fetched} fetched, {kept} kept: {status:?}");
                    return self.ghost.violated(Rule::Dark, text);
                }
                self.ghost.count("kept up in the long dark");
            }
        }
    }

    /// A topic appears at the source that the filters mean.
    pub(super) fn make_topic(&mut self) {
        let made = self.plan.topics.range(FILTERED..).count();
        if made == MAX_NEW_TOPICS {
            return;
        }
        let topic = FILTERED + made;
        let plan = new_topic(&mut self.dice, topic);
        for partition in 0..plan.partitions {
            self.add_empty_partition((topic, partition), 0, false);
        }
        self.plan.topics.insert(topic, plan);
        if self.now < self.carrier.dark_until {
            self.ghost.count("new topic in the dark");
        }
        self.source_changed(topic);
    }

    /// A topic is deleted and made anew.
    pub(super) fn remake_topic(&mut self, topic: usize) {
        *self.remade.entry(topic).or_default() += 1;
        self.ghost.count("topic made anew");
        if self.now < self.carrier.dark_until {
            self.ghost.count("topic made anew in the dark");
        }
        let codes = [
            FailureCode::SourceTopicIdChanged,
            FailureCode::Diverged,
            FailureCode::UnexpectedTruncation,
            FailureCode::SourceDataLost,
        ];
        self.ghost.excuse(topic, &codes);
        for place in self.places_of(topic) {
            if let Some(source) = self.source.get_mut(&place) {
                *source = source.remade();
            }
            self.judge_anew(place);
            for _ in 0..self.dice.between(0, 20) {
                self.append_at_source(place, None);
            }
            self.after(Time::from_millis(100), Event::SourceReplicated(place));
        }
        self.source_changed(topic);
        if self.dice.chance(600) {
            let wait = self.dice.millis(1_000, 8_000);
            self.after(wait, Event::DeleteMirror { topic, tries: 0 });
        }
    }

    fn places_of(&self, topic: usize) -> Vec<Place> {
        self.source.keys().filter(|place| place.0 == topic).copied().collect()
    }

    /// As the failure tells the operator to.
    pub(crate) fn delete_mirror(&mut self, topic: usize, tries: u32) {
        let places = self.places_of(topic);
        let in_use = places.iter().any(|&place| {
            let in_flight = self.gateways.iter().any(|gateway| gateway.has_in_flight(place));
            in_flight || self.cluster.has_requests(place) || self.is_on_its_way(place)
        });
        if in_use || !self.mirror_is_failed(topic) || self.now < self.long_dark_until {
            if tries < MAX_LOOKS {
                let wait = self.slowly(Time::from_secs(2));
                self.after(wait, Event::DeleteMirror { topic, tries: tries + 1 });
            }
            return;
        }
        self.trace(|| format!("the operator deletes the mirror of topic {topic}"));
        for place in places {
            let log = self.new_log(place, 0);
            if let Some(hosted) = self.cluster.partitions.get_mut(&place) {
                (hosted.log, hosted.epoch) = (log, hosted.epoch + 1);
            }
            self.ghost.mirror_remade(place);
            self.judge_anew(place);
            self.at(self.now, Event::Cluster(ClusterEvent::ReplicasMove { place }));
        }
        self.cut_link();
    }

    /// Everything at the source below this offset is with the cloud or in the journal.
    pub(super) fn deletable(&mut self, place: Place) -> Offset {
        let confirmed = self.ghost.confirmed(place);
        if self.remade.contains_key(&place.0) { confirmed } else { self.ghost.kept.safe(place, confirmed) }
    }
}
