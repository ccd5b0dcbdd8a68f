//! When the configs of a mirror topic change: its clean-up policy once the first pass is done, its retention while the
//! mirror keeps up and while it does not. Pure: the session tells how far the mirror is, and does what comes out.

use std::time::Duration;

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

/// One mirror topic in a session, which begins with its retention held.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) wanted: Wanted,
    pace: Pace,
    policy: Policy,
    released: bool,
    /// What is being done.
    busy: Option<Upkeep>,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Of a mirror that was made: its source's follows.
    OfFirstPass,
    AsSource,
}

/// How far behind a mirror is, in time.
#[derive(Debug, Default)]
struct Pace {
    /// Where the source ended at some time.
    target: Option<(Instant, Vec<Offset>)>,
    /// The last such time at which the source had nothing that the mirror lacks by now.
    caught_up: Option<Instant>,
    /// Since when it keeps up.
    steady: Option<Instant>,
}

impl Kept {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            pace: Pace::default(),
            policy: Policy::OfFirstPass,
            released: false,
            busy: None,
            not_before: None,
        }
    }

    /// The source topic was described anew, and the mirror topic made ready, its retention held.
    pub(crate) fn prepared_anew(&mut self, wanted: Wanted) {
        if configs::policy(&wanted.configs) != configs::policy(&self.wanted.configs) {
            self.policy = Policy::OfFirstPass;
        }
        self.wanted = wanted;
        self.released = false;
    }

    /// Takes the offset confirmed and the source's end of each partition; says what is to be done now.
    pub(crate) fn observe(
        &mut self,
        places: &[(Offset, Offset)],
        retention: RetentionSettings,
        now: Instant,
    ) -> Option<Upkeep> {
        self.pace.observe(places, now);
        if self.busy.is_some() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let caught_up = self.pace.caught_up?;
        let kept_up = self.pace.steady.is_some_and(|since| now - since >= retention.grace);
        self.busy = if self.policy == Policy::OfFirstPass {
            Some(Upkeep::Policy)
        } else if retention.hold && !self.released && kept_up {
            Some(Upkeep::Release)
        } else if retention.hold && self.released && now - caught_up > retention.grace.max(FRESH) {
            Some(Upkeep::Hold)
        } else {
            None
        };
        self.busy
    }

    /// What was to be done is done, or could not be.
    pub(crate) fn done(&mut self, upkeep: Upkeep, good: bool, now: Instant) {
        self.busy = None;
        if !good {
            self.not_before = Some(now + RETRY);
            return;
        }
        match upkeep {
            Upkeep::Policy => self.policy = Policy::AsSource,
            Upkeep::Release => self.released = true,
            Upkeep::Hold => self.released = false,
        }
    }
}

impl Pace {
    fn observe(&mut self, places: &[(Offset, Offset)], now: Instant) {
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
        if self.caught_up.is_none_or(|at| now - at > FRESH) {
            self.steady = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use tombolo_proto::id::TopicName;

    use super::*;

    const RETENTION: RetentionSettings = RetentionSettings { hold: true, grace: Duration::from_mins(10) };

    fn kept() -> Kept {
        Kept::new(Wanted { topic: TopicName::new("t").unwrap(), partitions: 1, configs: Vec::new() })
    }

    /// A mirror under observation, a second after the other.
    struct Course {
        kept: Kept,
        now: Instant,
    }

    impl Course {
        fn new() -> Self {
            Self { kept: kept(), now: Instant::now() }
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
        let mut other = course.kept.wanted.clone();
        other
            .configs
            .push(tombolo_proto::wire::TopicConfig { name: "cleanup.policy".to_owned(), value: "compact".to_owned() });
        course.kept.prepared_anew(other);
        assert_eq!(course.run(2, 20, 20), [Upkeep::Policy], "it has another");
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
        let wanted = course.kept.wanted.clone();
        course.kept.prepared_anew(wanted);
        assert_eq!(course.run(1, 20, 20), [Upkeep::Release], "it was held anew though it kept up");
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
