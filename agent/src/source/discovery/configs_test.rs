//! What of a topic's configs is told.

use tombolo_kafka::cluster::Partition;

use super::*;

fn config(name: &str, value: &str, source: ConfigSource) -> ConfigEntry {
    let (name, value) = (name.to_owned(), Some(value.to_owned()));
    ConfigEntry { name, value, source, read_only: false, sensitive: false }
}

#[test]
fn compaction_is_told_whoever_set_it() {
    for source in [ConfigSource::Topic, ConfigSource::StaticBroker, ConfigSource::Default] {
        for policy in ["compact", "delete,compact", "compact, delete"] {
            let found = Told::of(&[config("cleanup.policy", policy, source)]);
            let told: Vec<_> = found.configs.iter().map(|told| (told.name.as_str(), told.value.as_str())).collect();
            assert_eq!(told, [("cleanup.policy", policy)]);
            let retention = config("retention.ms", "5", ConfigSource::Default);
            let found = Told::of(&[config("cleanup.policy", policy, source), retention]);
            assert_eq!(found.compacted, Some(true));
            assert_eq!(found.retention.ms, (policy != "compact").then_some(5), "{policy}");
        }
    }
    let found = Told::of(&[config("cleanup.policy", "delete", ConfigSource::Default)]);
    assert_eq!((found.configs, found.compacted), (vec![], Some(false)));
    assert_eq!(Told::of(&[]).compacted, None);
}

#[test]
fn tells_what_was_set_and_the_largest_batch() {
    let configs = [
        config("retention.ms", "5", ConfigSource::Topic),
        config("segment.bytes", "6", ConfigSource::StaticBroker),
        config("max.message.bytes", "7", ConfigSource::StaticBroker),
        ConfigEntry { sensitive: true, value: None, ..config("secret", "", ConfigSource::Topic) },
    ];
    let found = Told::of(&configs);
    let told: Vec<_> = found.configs.iter().map(|config| (config.name.as_str(), config.value.as_str())).collect();
    assert_eq!(told, [("retention.ms", "5"), ("max.message.bytes", "7")]);
    let default = [config("max.message.bytes", "1048588", ConfigSource::Default)];
    let found = Told::of(&default);
    assert_eq!(found.configs, []);
}

#[test]
fn a_source_topic_has_the_partitions_of_the_topic_and_the_configs_of_the_look() {
    let partition = |id| Partition { id, leader: Some(1), leader_epoch: 0, error: None };
    let partitions = (0..3).map(partition).collect();
    let topic = Topic { name: "orders".into(), topic_id: Some([3; 16]), internal: false, partitions, error: None };
    let told = Told::of(&[config("retention.ms", "5", ConfigSource::Topic)]);
    let found = told.source_topic(&topic);
    assert_eq!((found.partitions, found.topic_id, found.retention.ms), (3, Some([3; 16]), Some(5)));
    assert_eq!(found.configs.len(), 1);
}
