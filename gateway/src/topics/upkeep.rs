//! When the configs of a mirror topic change: its clean-up policy once the first pass is done, its retention while the
//! mirror keeps up and while it does not. Pure: the session tells how far the mirror is, and does what comes out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tombolo_proto::id::Offset;

use super::{Wanted, configs};
use crate::settings::RetentionSettings;

/// A mirror that was behind for less is said to keep up: it is looked at once a second, and agents tell where the source
/// ends from time to time.
const FRESH: Duration = Duration::from_mins(1);
/// After a change that could not be made.
const RETRY: Duration = Duration::from_secs(30);

/// What is to be done to a mirror topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upkeep {
    /// The source's clean-up policy.
    Policy,
    /// The source's retention.
    Release,
    /// No limit to what it keeps.
    Hold,
}

/// What is known of a mirror topic, as long as the process lives: sessions come and go.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) wanted: Wanted,
    /// One at a time changes its configs.
    pub(crate) turn: Arc<Mutex<()>>,
    pace: Pace,
    policy: Policy,
    retention: Retention,
    /// Since when the policy is that of the first pass.
    began: Instant,
    /// Partitions that are being made to start.
    starting: usize,
    /// What is being done, and since when.
    busy: Option<(Upkeep, Instant)>,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Of a mirror that was made: its source's follows.
    OfFirstPass,
    AsSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retention {
    Held,
    /// It was the source's when it was last looked at: others may have changed it, or are about to.
    Unsure,
    AsSource,
}

/// How far behind a mirror is, in time.
#[derive(Debug, Default)]
struct Pace {
    /// Where the source ended at some time.
    target: Option<(Instant, Vec<Offset>)>,
    /// The last such time at which the source had nothing that the mirror lacks by now.
    caught_up: Option<Instant>,
    /// Since when it was never behind by more than is allowed.
    steady: Option<Instant>,
}

impl Kept {
    pub(crate) fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            turn: Arc::default(),
            pace: Pace::default(),
            policy: Policy::OfFirstPass,
            retention: Retention::Held,
            began: now,
            starting: 0,
            busy: None,
            not_before: None,
        }
    }

    /// The source topic was described anew, perhaps in another session, and the mirror topic is about to be made ready.
    /// Returns whether its retention is to be held for that: unless it is known to be behind by so little that nothing is
    /// old on arrival. How long it has kept up is another matter, and goes on.
    pub(crate) fn prepared_anew(&mut self, wanted: Wanted, retention: RetentionSettings, now: Instant) -> bool {
        // The topic may still have the retention of before.
        let harmless = harmless(&self.wanted, retention).min(harmless(&wanted, retention));
        let near = harmless > FRESH && self.pace.caught_up.is_some_and(|at| now - at < harmless);
        let hold = retention.hold && (self.retention == Retention::Held || !near);
        self.retention = if hold { Retention::Held } else { Retention::Unsure };
        self.wanted = wanted;
        self.pass_begins(now);
        hold
    }

    /// The mirror topic was missing, and was made: it keeps everything, and nothing that was known is of this one.
    pub(crate) fn made(&mut self, now: Instant) {
        self.pace = Pace::default();
        self.retention = Retention::Held;
        self.pass_begins(now);
    }

    /// The session ends: what it was doing may be done, or not.
    pub(crate) fn left(&mut self) {
        if self.busy.take().is_some() {
            self.retention = Retention::Held;
        }
        self.starting = 0;
        self.not_before = None;
    }

    /// A partition is to be filled, for which the topic gets the policy of the first pass.
    pub(crate) fn starts(&mut self, now: Instant) {
        self.starting += 1;
        self.pass_begins(now);
    }

    /// It was filled, or could not be.
    pub(crate) fn started(&mut self, now: Instant) {
        self.starting = self.starting.saturating_sub(1);
        self.pass_begins(now);
    }

    fn pass_begins(&mut self, now: Instant) {
        self.policy = Policy::OfFirstPass;
        if self.retention == Retention::AsSource {
            self.retention = Retention::Unsure;
        }
        self.began = now;
    }

    /// Takes the offset confirmed and the source's end of each partition; says what is to be done now.
    pub(crate) fn observe(
        &mut self,
        places: &[(Offset, Offset)],
        retention: RetentionSettings,
        now: Instant,
    ) -> Option<Upkeep> {
        self.pace.observe(places, allowed(retention), now);
        if self.starting > 0 || self.busy.is_some() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let caught_up = self.pace.caught_up?;
        let kept_up = now - caught_up <= FRESH && self.pace.steady.is_some_and(|since| now - since >= retention.grace);
        let upkeep = if self.policy == Policy::OfFirstPass {
            (caught_up >= self.began).then_some(Upkeep::Policy)
        } else if retention.hold && self.retention != Retention::AsSource && kept_up {
            Some(Upkeep::Release)
        } else {
            None
        };
        let behind = now - caught_up > harmless(&self.wanted, retention).max(FRESH);
        let behind = retention.hold && self.retention != Retention::Held && behind;
        self.busy = upkeep.or_else(|| behind.then_some(Upkeep::Hold)).map(|upkeep| (upkeep, now));
        self.busy.map(|(upkeep, _)| upkeep)
    }

    /// What was to be done is done, or could not be.
    pub(crate) fn done(&mut self, upkeep: Upkeep, good: bool, now: Instant) {
        let Some((_, since)) = self.busy.take() else { return };
        if !good {
            self.not_before = Some(now + RETRY);
            return;
        }
        match upkeep {
            // The topic was made ready again meanwhile.
            Upkeep::Policy | Upkeep::Release if since < self.began => {}
            Upkeep::Policy => self.policy = Policy::AsSource,
            Upkeep::Release => self.retention = Retention::AsSource,
            Upkeep::Hold => self.retention = Retention::Held,
        }
    }
}

/// By how much a mirror may be behind and keeps up all the same.
fn allowed(retention: RetentionSettings) -> Duration {
    retention.grace.max(FRESH)
}

/// By how much a mirror may be behind before its retention takes what no consumer could read: half of it is left to them
/// then. One that counts bytes may take all of a backlog at once.
fn harmless(wanted: &Wanted, retention: RetentionSettings) -> Duration {
    let of_time = configs::time_retention(&wanted.configs).unwrap_or_default();
    (of_time / 2).min(retention.grace)
}

impl Pace {
    fn observe(&mut self, places: &[(Offset, Offset)], allowed: Duration, now: Instant) {
        if self.caught_up.is_some_and(|at| now - at > allowed) {
            self.steady = None;
        }
        if let Some((at, ends)) = &self.target {
            let reached = ends.len() == places.len() && ends.iter().zip(places).all(|(end, place)| place.0 >= *end);
            if reached {
                self.caught_up = Some(*at);
                self.steady.get_or_insert(*at);
            }
            if reached || ends.len() != places.len() {
                self.target = None;
            }
        }
        if self.target.is_none() && !places.is_empty() {
            self.target = Some((now, places.iter().map(|place| place.1).collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tombolo_proto::id::TopicName;
    use tombolo_proto::wire::TopicConfig;

    use super::*;

    const RETENTION: RetentionSettings = RetentionSettings { hold: true, grace: Duration::from_mins(10) };
    const HOUR: (&str, &str) = ("retention.ms", "3600000");

    fn wanted(configs: &[(&str, &str)]) -> Wanted {
        let config = |&(name, value): &(&str, &str)| TopicConfig { name: name.to_owned(), value: value.to_owned() };
        Wanted { topic: TopicName::new("t").unwrap(), partitions: 1, configs: configs.iter().map(config).collect() }
    }

    /// A mirror under observation, a second after the other.
    struct Course {
        kept: Kept,
        now: Instant,
    }

    impl Course {
        /// Of a source that keeps an hour.
        fn new() -> Self {
            Self::of(&[HOUR])
        }

        fn of(configs: &[(&str, &str)]) -> Self {
            let now = Instant::now();
            Self { kept: Kept::new(wanted(configs), now), now }
        }

        /// Another session takes the mirror on, after so many seconds without any; returns whether it holds the retention.
        fn session(&mut self, seconds: u64) -> bool {
            self.kept.left();
            self.now += Duration::from_secs(seconds);
            self.kept.prepared_anew(self.kept.wanted.clone(), RETENTION, self.now)
        }

        /// What is done, after so many seconds at these offsets.
        fn run(&mut self, seconds: u64, confirmed: Offset, end: Offset) -> Vec<Upkeep> {
            let mut done = Vec::new();
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                if let Some(upkeep) = self.kept.observe(&[(confirmed, end)], RETENTION, self.now) {
                    self.kept.done(upkeep, true, self.now);
                    done.push(upkeep);
                }
            }
            done
        }
    }

    #[test]
    fn the_policy_follows_when_the_first_pass_is_done() {
        let mut course = Course::new();
        assert_eq!(course.run(100, 5, 10), []);
        // The source goes on, but what it had is there.
        assert_eq!(course.run(1, 10, 20), [Upkeep::Policy]);
        assert_eq!(course.run(100, 20, 20), []);
        assert!(course.session(1));
        assert_eq!(course.run(10, 20, 30), [], "it may have another");
        assert_eq!(course.run(2, 30, 30), [Upkeep::Policy]);
    }

    #[test]
    fn retention_is_the_sources_once_the_mirror_keeps_up_and_held_when_it_does_not() {
        let mut course = Course::new();
        assert_eq!(course.run(599, 10, 10), [Upkeep::Policy]);
        assert_eq!(course.run(10, 10, 10), [Upkeep::Release]);
        assert_eq!(course.run(500, 10, 20), [], "a backlog of minutes");
        assert_eq!(course.run(200, 15, 20), [Upkeep::Hold]);
        assert_eq!(course.run(500, 20, 20), [], "it has to keep up anew");
        assert_eq!(course.run(200, 20, 20), [Upkeep::Release]);
    }

    #[test]
    fn retention_is_given_back_on_a_link_that_breaks_more_often_than_the_grace() {
        let mut course = Course::new();
        assert!(course.session(0), "nothing is known of it");
        assert_eq!(course.run(60, 10, 10), [Upkeep::Policy]);
        let (mut done, mut held) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            held.push(course.session(240));
            // What came meanwhile takes a while.
            done.extend(course.run(30, 10, 20));
            done.extend(course.run(30, 20, 20));
        }
        assert_eq!(held, [true, true, false, false, false]);
        let (policy, release) = (Upkeep::Policy, Upkeep::Release);
        // What others may have done to the topic is seen to in every session.
        let later = [policy, release].repeat(4);
        assert_eq!(done, [&[policy], &later[..]].concat());
        assert!(course.session(601), "it is behind by more than the grace");
        assert_eq!(course.run(500, 20, 20), [policy], "it has to keep up anew");
        assert!(course.session(60));
        assert_eq!(course.run(100, 20, 20), [policy, release]);
    }

    #[test]
    fn a_session_that_falls_behind_holds_what_an_earlier_one_gave_back() {
        let mut course = Course::new();
        assert_eq!(course.run(700, 10, 10), [Upkeep::Policy, Upkeep::Release]);
        assert!(!course.session(300));
        assert_eq!(course.run(299, 10, 20), [], "a backlog of minutes");
        assert_eq!(course.run(10, 10, 20), [Upkeep::Hold]);
    }

    #[test]
    fn a_break_that_retention_would_notice_is_held_against_and_does_not_restart_the_grace() {
        let (policy, release) = (Upkeep::Policy, Upkeep::Release);
        for (configs, seconds, held) in [
            (&[("retention.ms", "600000")][..], 298, false),
            (&[("retention.ms", "600000")], 300, true),
            (&[("retention.ms", "120000")], 1, true),
            (&[("retention.ms", "-1")], 1, true),
            (&[("retention.bytes", "1000000"), HOUR], 1, true),
            (&[("retention.bytes", "-1"), HOUR], 1, false),
            (&[], 1, true),
        ] {
            let mut course = Course::of(configs);
            assert_eq!(course.run(700, 10, 10), [policy, release]);
            assert_eq!(course.session(seconds), held, "{configs:?} after {seconds} s");
            assert_eq!(course.run(2, 20, 20), [policy], "{configs:?}");
            assert_eq!(course.run(1, 20, 20), [release], "it kept up all the time: {configs:?}");
        }
    }

    #[test]
    fn a_backlog_half_as_old_as_its_retention_is_held() {
        let mut course = Course::of(&[("retention.ms", "600000")]);
        assert_eq!(course.run(700, 10, 10), [Upkeep::Policy, Upkeep::Release]);
        assert_eq!(course.run(300, 10, 20), []);
        assert_eq!(course.run(2, 10, 20), [Upkeep::Hold]);
        // A source that keeps more from now on has a mirror that still keeps less.
        let mut course = Course::of(&[("retention.ms", "300000")]);
        assert_eq!(course.run(700, 10, 10), [Upkeep::Policy, Upkeep::Release]);
        course.now += Duration::from_secs(200);
        assert!(course.kept.prepared_anew(wanted(&[HOUR]), RETENTION, course.now));
    }

    #[test]
    fn nothing_is_known_of_a_mirror_topic_that_was_made_again() {
        let mut course = Course::new();
        assert_eq!(course.run(700, 10, 10), [Upkeep::Policy, Upkeep::Release]);
        assert!(!course.session(1));
        course.kept.made(course.now);
        assert_eq!(course.run(700, 0, 10), []);
        assert_eq!(course.run(10, 10, 10), [Upkeep::Policy]);
        assert_eq!(course.run(580, 10, 10), [], "it has to keep up anew");
        assert_eq!(course.run(30, 10, 10), [Upkeep::Release]);
    }

    #[test]
    fn the_policy_of_the_first_pass_stays_while_a_partition_is_filled() {
        let mut course = Course::new();
        assert_eq!(course.run(700, 10, 10), [Upkeep::Policy, Upkeep::Release]);
        course.kept.starts(course.now);
        assert_eq!(course.run(50, 10, 10), []);
        course.now += Duration::from_secs(1);
        course.kept.started(course.now);
        assert_eq!(course.run(9, 10, 20), [], "it holds nothing of its source yet");
        assert_eq!(course.run(10, 20, 20), [Upkeep::Policy, Upkeep::Release]);
    }

    #[test]
    fn what_a_session_left_half_done_is_done_anew() {
        let mut course = Course::new();
        assert_eq!(course.run(600, 10, 10), [Upkeep::Policy]);
        course.now += Duration::from_secs(5);
        assert_eq!(course.kept.observe(&[(10, 10)], RETENTION, course.now), Some(Upkeep::Release));
        assert!(course.session(1), "it may have been given back, or not");
        assert_eq!(course.run(3, 10, 10), [Upkeep::Policy, Upkeep::Release]);
    }

    #[test]
    fn a_mirror_that_nobody_knows_the_lag_of_is_left_alone() {
        let mut course = Course::new();
        for _ in 0..1_000 {
            course.now += Duration::from_secs(1);
            assert_eq!(course.kept.observe(&[], RETENTION, course.now), None);
        }
    }

    #[test]
    fn what_could_not_be_done_is_tried_again_later() {
        let mut course = Course::new();
        course.kept.observe(&[(1, 1)], RETENTION, course.now);
        course.now += Duration::from_secs(1);
        assert_eq!(course.kept.observe(&[(1, 1)], RETENTION, course.now), Some(Upkeep::Policy));
        assert_eq!(course.kept.observe(&[(1, 1)], RETENTION, course.now), None, "it is being done");
        course.kept.done(Upkeep::Policy, false, course.now);
        course.now += Duration::from_secs(1);
        assert_eq!(course.kept.observe(&[(1, 1)], RETENTION, course.now), None);
        course.now += RETRY;
        assert_eq!(course.kept.observe(&[(1, 1)], RETENTION, course.now), Some(Upkeep::Policy));
    }
}
