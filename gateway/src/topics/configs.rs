//! Which configs a mirror topic gets, and what those of a topic that is there already must be. Pure.

use tombolo_proto::failure::{Failure, FailureCode};
use tombolo_proto::wire::TopicConfig;

/// Taken from the source as they are: they shape files, not what is kept or acknowledged. `min.insync.replicas` and
/// `unclean.leader.election.enable` never are: they are the cloud's.
const TAKEN: [&str; 8] = [
    "delete.retention.ms",
    "index.interval.bytes",
    "max.compaction.lag.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "segment.index.bytes",
    "segment.jitter.ms",
    "segment.ms",
];
/// Kafka refuses topics whose segments are smaller than this (since 4.0).
const LEAST_SEGMENT_BYTES: u64 = 1 << 20;
const FOREVER_MS: &str = "9223372036854775807";

/// Which configs the brokers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Two bounds for timestamps (KIP-937, brokers since 3.6).
    Current,
    /// One bound for both directions.
    Before36,
}

/// Whether a source topic with these configs can be mirrored at all.
pub(super) fn check_source(configs: &[TopicConfig]) -> Result<(), Failure> {
    let value = |name: &str| configs.iter().find(|config| config.name == name).map(|config| config.value.as_str());
    if let Some(policy) = value("cleanup.policy")
        && policy.split(',').any(|part| part.trim() == "compact")
    {
        return Err(Failure::of_topic(
            FailureCode::UnsupportedCleanupPolicy,
            format!("the source topic has cleanup.policy={policy}; compacted topics are not mirrored yet"),
        ));
    }
    if value("message.timestamp.type") == Some("LogAppendTime") {
        return Err(Failure::of_topic(
            FailureCode::UnsupportedLogAppendTime,
            "the source topic has message.timestamp.type=LogAppendTime; its records cannot be kept as they are",
        ));
    }
    Ok(())
}

/// Configs of a mirror topic. `max_batch` is the largest batch that a link may carry.
pub(super) fn of_mirror(source: &[TopicConfig], max_batch: usize, dialect: Dialect) -> Vec<(String, String)> {
    let number = |name: &str| {
        source.iter().find(|config| config.name == name).and_then(|config| config.value.parse::<u64>().ok())
    };
    let max_message = number("max.message.bytes").unwrap_or(0).max(max_batch as u64);
    let mut configs = vec![
        ("cleanup.policy", "delete".to_owned()),
        ("compression.type", "producer".to_owned()),
        ("max.message.bytes", max_message.to_string()),
        ("message.timestamp.type", "CreateTime".to_owned()),
        // A backlog older than the source's retention would be deleted on arrival.
        ("retention.bytes", "-1".to_owned()),
        ("retention.ms", "-1".to_owned()),
    ];
    match dialect {
        Dialect::Current => {
            configs.push(("message.timestamp.after.max.ms", FOREVER_MS.to_owned()));
            configs.push(("message.timestamp.before.max.ms", FOREVER_MS.to_owned()));
        }
        Dialect::Before36 => configs.push(("message.timestamp.difference.max.ms", FOREVER_MS.to_owned())),
    }
    if let Some(segment) = number("segment.bytes") {
        let segment = segment.max(max_message).max(LEAST_SEGMENT_BYTES);
        configs.push(("segment.bytes", segment.to_string()));
    }
    let taken = source.iter().filter(|config| TAKEN.contains(&config.name.as_str()));
    let mut configs: Vec<(String, String)> = configs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(taken.map(|config| (config.name.clone(), config.value.clone())))
        .collect();
    configs.sort();
    configs.dedup_by(|a, b| a.0 == b.0);
    configs
}

/// Configs that a topic which is there already must have, or a batch would not be kept byte for byte.
pub(super) const NEEDED: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("compression.type", "producer"), ("message.timestamp.type", "CreateTime")];

/// Why a topic with these configs cannot be a mirror; the command says how it can become one.
pub(super) fn check_existing<'a>(
    topic: &str,
    found: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Result<(), Failure> {
    for (name, value) in found {
        let needed = NEEDED.iter().find(|(needed, _)| *needed == name);
        if let (Some((_, needed)), Some(value)) = (needed, value)
            && *needed != value
        {
            return Err(Failure::of_topic(
                FailureCode::CloudRefused,
                format!(
                    "mirror topic {topic} has {name}={value}, needed is {needed}: kafka-configs.sh --alter \
                     --entity-type topics --entity-name {topic} --add-config {name}={needed}"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pairs: &[(&str, &str)]) -> Vec<TopicConfig> {
        pairs.iter().map(|&(name, value)| TopicConfig { name: name.to_owned(), value: value.to_owned() }).collect()
    }

    fn value<'a>(configs: &'a [(String, String)], name: &str) -> Option<&'a str> {
        configs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn takes_what_shapes_files_and_nothing_that_is_the_clouds() {
        let configs = source(&[
            ("retention.ms", "1000"),
            ("segment.ms", "60000"),
            ("segment.bytes", "1048576"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
            ("compression.type", "zstd"),
            ("cleanup.policy", "delete"),
        ]);
        let mirror = of_mirror(&configs, 2 << 20, Dialect::Current);
        assert_eq!(value(&mirror, "retention.ms"), Some("-1"));
        assert_eq!(value(&mirror, "segment.ms"), Some("60000"));
        assert_eq!(value(&mirror, "compression.type"), Some("producer"));
        assert_eq!(value(&mirror, "min.insync.replicas"), None);
        assert_eq!(value(&mirror, "unclean.leader.election.enable"), None);
        assert_eq!(value(&mirror, "message.timestamp.after.max.ms"), Some(FOREVER_MS));
        assert_eq!(value(&mirror, "message.timestamp.difference.max.ms"), None);
        let names: Vec<_> = mirror.iter().map(|(name, _)| name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }

    #[test]
    fn every_batch_of_the_link_and_the_source_fits() {
        let small = of_mirror(&source(&[("max.message.bytes", "1000")]), 2 << 20, Dialect::Current);
        assert_eq!(value(&small, "max.message.bytes"), Some("2097152"));
        let large = source(&[("max.message.bytes", "9000000"), ("segment.bytes", "1048576")]);
        let large = of_mirror(&large, 2 << 20, Dialect::Before36);
        assert_eq!(value(&large, "max.message.bytes"), Some("9000000"));
        assert_eq!(value(&large, "segment.bytes"), Some("9000000"));
        assert_eq!(value(&large, "message.timestamp.difference.max.ms"), Some(FOREVER_MS));
        assert_eq!(value(&large, "message.timestamp.before.max.ms"), None);
    }

    #[test]
    fn what_cannot_be_mirrored_is_named() {
        for (name, text, code) in [
            ("cleanup.policy", "compact", FailureCode::UnsupportedCleanupPolicy),
            ("cleanup.policy", "delete,compact", FailureCode::UnsupportedCleanupPolicy),
            ("message.timestamp.type", "LogAppendTime", FailureCode::UnsupportedLogAppendTime),
        ] {
            assert_eq!(check_source(&source(&[(name, text)])).unwrap_err().code, code);
        }
        assert_eq!(check_source(&source(&[("cleanup.policy", "delete")])), Ok(()));
    }

    #[test]
    fn an_existing_topic_must_keep_bytes() {
        let failure = check_existing("t", [("compression.type", Some("gzip"))].into_iter()).unwrap_err();
        assert_eq!(failure.code, FailureCode::CloudRefused);
        assert!(failure.detail.contains("--add-config compression.type=producer"), "{failure}");
        let good = NEEDED.map(|(name, value)| (name, Some(value)));
        assert_eq!(check_existing("t", good.into_iter()), Ok(()));
        assert_eq!(check_existing("t", [("retention.ms", Some("1"))].into_iter()), Ok(()));
    }
}
