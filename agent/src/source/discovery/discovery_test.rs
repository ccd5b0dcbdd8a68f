//! Which topics can be mirrored, and what of their configs is told.

use tombolo_kafka::cluster::Partition as KafkaPartition;

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

fn config(name: &str, value: &str, source: ConfigSource) -> ConfigEntry {
    let (name, value) = (name.to_owned(), Some(value.to_owned()));
    ConfigEntry { name, value, source, read_only: false, sensitive: false }
}

#[test]
fn compaction_is_told_whoever_set_it() {
    for source in [ConfigSource::Topic, ConfigSource::StaticBroker, ConfigSource::Default] {
        for policy in ["compact", "delete,compact", "compact, delete"] {
            let found = describe(&topic(0..2, None), &[config("cleanup.policy", policy, source)]);
            let told: Vec<_> = found.configs.iter().map(|told| (told.name.as_str(), told.value.as_str())).collect();
            assert_eq!(told, [("cleanup.policy", policy)]);
            let retention = config("retention.ms", "5", ConfigSource::Default);
            let found = describe(&topic(0..2, None), &[config("cleanup.policy", policy, source), retention]);
            assert_eq!(found.retention.ms, (policy != "compact").then_some(5), "{policy}");
        }
    }
    let found = describe(&topic(0..2, None), &[config("cleanup.policy", "delete", ConfigSource::Default)]);
    assert_eq!(found.configs, []);
}

#[test]
fn tells_what_was_set_and_the_largest_batch() {
    let configs = [
        config("retention.ms", "5", ConfigSource::Topic),
        config("segment.bytes", "6", ConfigSource::StaticBroker),
        config("max.message.bytes", "7", ConfigSource::StaticBroker),
        ConfigEntry { sensitive: true, value: None, ..config("secret", "", ConfigSource::Topic) },
    ];
    let found = describe(&topic(0..3, None), &configs);
    let told: Vec<_> = found.configs.iter().map(|config| (config.name.as_str(), config.value.as_str())).collect();
    assert_eq!(told, [("retention.ms", "5"), ("max.message.bytes", "7")]);
    assert_eq!((found.partitions, found.topic_id), (3, Some([3; 16])));
    let default = [config("max.message.bytes", "1048588", ConfigSource::Default)];
    let found = describe(&topic(0..1, None), &default);
    assert_eq!(found.configs, []);
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
