//! Which topics can be mirrored.

use tombolo_kafka::cluster::Partition as KafkaPartition;
use tombolo_proto::edge::Retention;

use super::*;

fn topic(partitions: impl IntoIterator<Item = i32>, error: Option<ErrorCode>) -> Topic {
    let partitions = partitions.into_iter();
    Topic {
        name: "orders".into(),
        topic_id: Some([3; 16]),
        internal: false,
        partitions: partitions.map(|id| KafkaPartition { id, leader: Some(1), leader_epoch: 0, error: None }).collect(),
        error,
    }
}

#[test]
fn a_topic_that_cannot_be_seen_whole_says_why() {
    assert!(shape(Some(topic(0..4, None))).is_ok());
    let problem = |topic| shape(topic).err().unwrap();
    let missing = problem(Some(topic([], Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION))));
    assert!(missing.starts_with("SOURCE_TOPIC_MAY_BE_DELETED: topic orders does not exist"), "{missing}");
    let hidden = problem(Some(topic([], Some(ErrorCode::TOPIC_AUTHORIZATION_FAILED))));
    assert!(hidden.contains("grant READ"), "{hidden}");
    assert!(problem(Some(topic([0, 2], None))).contains("being made"));
    assert!(problem(Some(topic([], None))).contains("no partitions"));
    assert!(!problem(None).is_empty());
}

#[test]
fn a_topic_that_was_there_is_missed_twice_before_it_is_gone() {
    let name = TopicName::new("orders").unwrap();
    let mut memory = Memory::default();
    assert!(matches!(memory.doubt(&name, "gone".to_owned()), Outcome::Problem(_)));
    let mut memory = Memory::default();
    memory.seen.insert(name.clone());
    assert!(matches!(memory.doubt(&name, "gone".to_owned()), Outcome::Doubtful));
    assert!(matches!(memory.doubt(&name, "gone".to_owned()), Outcome::Problem(_)));
}

#[test]
fn what_cannot_be_read_is_told_in_place_of_its_shape() {
    let name = TopicName::new("orders").unwrap();
    let found = || {
        Outcome::Found(SourceTopic {
            partitions: 1,
            topic_id: None,
            configs: Vec::new(),
            retention: Retention::default(),
        })
    };
    let source = |input| match input {
        Some(EdgeInput::Source { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(source(input(name.clone(), found(), None)).is_ok());
    assert_eq!(source(input(name.clone(), found(), Some("denied".to_owned()))), Err("denied".to_owned()));
    assert!(input(name, Outcome::Doubtful, Some("denied".to_owned())).is_none());
}
