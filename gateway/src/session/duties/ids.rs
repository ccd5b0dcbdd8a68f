//! Which topics a session writes to: the ids that its first looks found. A topic of the same name with another id holds
//! nothing of the mirror, and nothing goes there.

use std::collections::HashMap;

use tombolo_kafka::TopicId;
use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::id::{MirrorId, TopicName};

#[derive(Debug, Default)]
pub(super) struct TopicIds(HashMap<MirrorId, TopicId>);

impl TopicIds {
    /// Takes what a look at the mirror topic found; a failure where it is not the topic that was there before. Brokers
    /// before 2.8 tell no id.
    pub(super) fn check(&mut self, mirror: MirrorId, topic: &TopicName, found: Option<TopicId>) -> Result<(), Failure> {
        let Some(found) = found else { return Ok(()) };
        if *self.0.entry(mirror).or_insert(found) == found {
            return Ok(());
        }
        let detail = format!(
            "mirror topic {topic} was deleted and made again by somebody else; nothing was written to the new one. Delete it, \
             then resume the mirror"
        );
        Err(Failure::of_topic(FailureCode::ForeignWrite, detail))
    }

    /// The mirror begins anew, with whatever topic is there.
    pub(super) fn forget(&mut self, mirror: MirrorId) {
        self.0.remove(&mirror);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_made_again_is_another_until_the_mirror_begins_anew() {
        let (mut ids, topic) = (TopicIds::default(), TopicName::new("t").unwrap());
        let (mirror, other) = (MirrorId(0), MirrorId(1));
        assert_eq!(ids.check(mirror, &topic, None), Ok(()), "nobody tells yet");
        for (mirror, id) in [(mirror, 1), (other, 2), (mirror, 1)] {
            assert_eq!(ids.check(mirror, &topic, Some([id; 16])), Ok(()));
        }
        let failure = ids.check(mirror, &topic, Some([2; 16])).unwrap_err();
        assert_eq!(failure.code, FailureCode::ForeignWrite);
        assert!(ids.check(mirror, &topic, Some([2; 16])).is_err(), "it stays another");
        assert_eq!(ids.check(mirror, &topic, Some([1; 16])), Ok(()));
        ids.forget(mirror);
        assert_eq!(ids.check(mirror, &topic, Some([2; 16])), Ok(()));
    }
}
