//! Which configs a mirror topic gets, and what those of a topic that is there already must be. Pure.

use std::time::Duration;

use tombolo_kafka::admin::ConfigChange;
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
const DELETE: &str = "delete";
const COMPACT: &str = "compact";
/// Without limit.
const UNLIMITED: &str = "-1";
/// What makes records go: of time and of size.
pub(super) const RETENTION: [&str; 2] = ["retention.bytes", "retention.ms"];

/// Which configs the brokers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Two bounds for timestamps (KIP-937, brokers since 3.6).
    Current,
    /// One bound for both directions.
    Before36,
}

/// The source topic's clean-up policy, Kafka's default where it sets none.
pub(super) fn policy(source: &[TopicConfig]) -> &str {
    value(source, "cleanup.policy").unwrap_or(DELETE)
}

/// Whether a clean-up policy takes records from the middle of a log, and leaves gaps.
pub(super) fn is_compacted(policy: &str) -> bool {
    policies(policy).any(|policy| policy == COMPACT)
}

fn policies(policy: &str) -> impl Iterator<Item = &str> {
    policy.split(',').map(str::trim).filter(|policy| !policy.is_empty())
}

fn same_policy(one: &str, other: &str) -> bool {
    is_compacted(one) == is_compacted(other) && {
        let deletes = |policy| policies(policy).any(|policy| policy == DELETE);
        deletes(one) == deletes(other)
    }
}

/// How long the source keeps records, where time alone decides.
pub(super) fn time_retention(source: &[TopicConfig]) -> Option<Duration> {
    let counts_bytes = value(source, "retention.bytes").is_some_and(|bytes| bytes != UNLIMITED);
    let millis = value(source, "retention.ms").filter(|_| !counts_bytes)?;
    millis.parse().ok().map(Duration::from_millis)
}

fn value<'a>(configs: &'a [TopicConfig], name: &str) -> Option<&'a str> {
    configs.iter().find(|config| config.name == name).map(|config| config.value.as_str())
}

/// Configs of a mirror topic. `max_batch` is the largest batch that a link may carry.
pub(super) fn of_mirror(source: &[TopicConfig], max_batch: usize, dialect: Dialect) -> Vec<(String, String)> {
    let number = |name: &str| {
        source.iter().find(|config| config.name == name).and_then(|config| config.value.parse::<u64>().ok())
    };
    let max_message = number("max.message.bytes").unwrap_or(0).max(max_batch as u64);
    let mut configs = vec![
        // Markers and filler have no keys, and filler is deleted. The source's policy follows when the first pass is done.
        ("cleanup.policy", DELETE.to_owned()),
        ("compression.type", "producer".to_owned()),
        ("max.message.bytes", max_message.to_string()),
        ("message.timestamp.type", "CreateTime".to_owned()),
        // A backlog older than the source's retention would be deleted on arrival.
        ("retention.bytes", UNLIMITED.to_owned()),
        ("retention.ms", UNLIMITED.to_owned()),
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
const NEEDED: [(&str, &str); 2] = [("compression.type", "producer"), ("message.timestamp.type", "CreateTime")];

/// What is looked up of a topic that is there already.
pub(super) const LOOKED_UP: [&str; 6] = [
    "cleanup.policy",
    "compression.type",
    "max.message.bytes",
    "message.timestamp.type",
    "retention.bytes",
    "retention.ms",
];

/// Configs of a topic, as they were looked up.
pub(super) type Found = Vec<(String, Option<String>)>;

/// Why a topic with these configs cannot be a mirror; the command says how it can become one.
pub(super) fn check_existing(topic: &str, source: &[TopicConfig], found: &Found) -> Result<(), Failure> {
    let wanted = policy(source);
    for (name, value) in found {
        let Some(value) = value else { continue };
        let needed = if name == "cleanup.policy" {
            // Before or after the first pass.
            if same_policy(value, DELETE) || same_policy(value, wanted) { None } else { Some(wanted) }
        } else {
            NEEDED.iter().find(|(needed, _)| needed == name).map(|(_, needed)| *needed).filter(|needed| needed != value)
        };
        if let Some(needed) = needed {
            return Err(Failure::of_topic(
                FailureCode::CloudRefused,
                format!(
                    "mirror topic {topic} has {name}={value}, needed is {needed}: kafka-configs.sh --alter \
                     --entity-type topics --entity-name {topic} --add-config {name}=[{needed}]"
                ),
            ));
        }
    }
    Ok(())
}

fn set(name: &str, value: impl Into<String>) -> ConfigChange {
    ConfigChange::Set { name: name.to_owned(), value: value.into() }
}

fn found<'a>(configs: &'a Found, name: &str) -> Option<&'a str> {
    configs.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.as_deref())
}

/// What a topic whose clean-up policy is neither for the first pass nor the source's is to change: its source's changed, or
/// who made it did not know better.
pub(super) fn misfit_policy(source: &[TopicConfig], configs: &Found) -> Option<ConfigChange> {
    let there = found(configs, "cleanup.policy")?;
    let fits = same_policy(there, DELETE) || same_policy(there, policy(source));
    (!fits).then(|| set("cleanup.policy", DELETE))
}

/// What a topic that is there already gets before anything is appended: room for the source's batches, and where `hold` no
/// limit to what it keeps.
pub(super) fn before_appending(source: &[TopicConfig], configs: &Found, hold: bool) -> Vec<ConfigChange> {
    let mut changes = Vec::new();
    let bytes = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    if let (Some(wanted), Some(there)) =
        (bytes(value(source, "max.message.bytes")), bytes(found(configs, "max.message.bytes")))
        && wanted > there
    {
        changes.push(set("max.message.bytes", wanted.to_string()));
    }
    if hold {
        changes.extend(held(configs));
    }
    changes
}

/// What a topic changes, all at once, to take filler, which has no keys and is deleted. `None` where it would have to keep
/// to a retention that is not the gateway's to hold: records that were compacted only would go.
pub(super) fn before_filler(configs: &Found, hold: bool) -> Option<Vec<ConfigChange>> {
    if !found(configs, "cleanup.policy").is_some_and(is_compacted) {
        return Some(Vec::new());
    }
    hold.then(|| [set("cleanup.policy", DELETE)].into_iter().chain(held(configs)).collect())
}

/// No limit to what the topic keeps.
pub(super) fn held(configs: &Found) -> Vec<ConfigChange> {
    let limited = |name: &&&str| found(configs, name).is_some_and(|value| value != UNLIMITED);
    RETENTION.iter().filter(limited).map(|name| set(name, UNLIMITED)).collect()
}

/// The source's limits to what is kept; what it does not set stays without.
pub(super) fn released(source: &[TopicConfig], configs: &Found) -> Vec<ConfigChange> {
    let wanted = RETENTION.iter().filter_map(|name| Some((*name, value(source, name)?)));
    wanted.filter(|(name, value)| found(configs, name) != Some(value)).map(|(name, value)| set(name, value)).collect()
}

/// The source's clean-up policy.
pub(super) fn with_policy(source: &[TopicConfig], configs: &Found) -> Vec<ConfigChange> {
    let wanted = policy(source);
    let differs = found(configs, "cleanup.policy").is_some_and(|there| !same_policy(there, wanted));
    differs.then(|| set("cleanup.policy", wanted)).into_iter().collect()
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

    fn there(pairs: &[(&str, &str)]) -> Found {
        pairs.iter().map(|&(name, value)| (name.to_owned(), Some(value.to_owned()))).collect()
    }

    #[test]
    fn compacted_sources_are_known_by_their_policy() {
        assert_eq!(policy(&source(&[])), "delete");
        for (text, compacted) in [("delete", false), ("compact", true), ("delete, compact", true), ("", false)] {
            assert_eq!(is_compacted(policy(&source(&[("cleanup.policy", text)]))), compacted, "{text}");
        }
    }

    #[test]
    fn an_existing_topic_must_keep_bytes() {
        let check = |source: &[TopicConfig], found: &[(&str, &str)]| check_existing("t", source, &there(found));
        let failure = check(&[], &[("compression.type", "gzip")]).unwrap_err();
        assert_eq!(failure.code, FailureCode::CloudRefused);
        assert!(failure.detail.contains("--add-config compression.type=[producer]"), "{failure}");
        let good = [("compression.type", "producer"), ("message.timestamp.type", "CreateTime"), ("retention.ms", "1")];
        assert_eq!(check(&[], &good), Ok(()));
    }

    #[test]
    fn an_existing_topic_has_the_sources_policy_or_deletes() {
        let compacted = source(&[("cleanup.policy", "compact,delete")]);
        for (source, policy, good) in [
            (&compacted, "delete", true),
            (&compacted, "delete,compact", true),
            (&compacted, "compact", false),
            (&Vec::new(), "delete", true),
            (&Vec::new(), "compact", false),
        ] {
            let checked = check_existing("t", source, &there(&[("cleanup.policy", policy)]));
            assert_eq!(checked.is_ok(), good, "{policy} {checked:?}");
        }
        assert_eq!(
            with_policy(&compacted, &there(&[("cleanup.policy", "delete")])),
            [set("cleanup.policy", "compact,delete")]
        );
        assert_eq!(with_policy(&compacted, &there(&[("cleanup.policy", "delete,compact")])), []);
        assert_eq!(with_policy(&[], &Vec::new()), [], "nobody tells");
        let compact = there(&[("cleanup.policy", "compact")]);
        assert_eq!(misfit_policy(&[], &compact), Some(set("cleanup.policy", "delete")), "the source's was changed");
        assert_eq!(misfit_policy(&source(&[("cleanup.policy", "compact")]), &compact), None);
    }

    #[test]
    fn a_compacted_topic_takes_filler_with_its_retention_held() {
        for policy in ["compact", "compact,delete"] {
            let compacted = there(&[("cleanup.policy", policy), ("retention.ms", "1000"), ("retention.bytes", "-1")]);
            let changes = [set("cleanup.policy", "delete"), set("retention.ms", "-1")];
            assert_eq!(before_filler(&compacted, true), Some(changes.to_vec()));
            assert_eq!(before_filler(&compacted, false), None, "all of it might be deleted");
        }
        let plain = there(&[("cleanup.policy", "delete"), ("retention.ms", "1000")]);
        assert_eq!(before_filler(&plain, false), Some(Vec::new()));
        assert_eq!(before_filler(&Vec::new(), true), Some(Vec::new()), "nobody tells");
    }

    #[test]
    fn retention_is_held_while_behind_and_the_sources_afterwards() {
        let of_source = source(&[("retention.ms", "1000"), ("max.message.bytes", "500")]);
        let mirror = there(&[("retention.ms", "1000"), ("retention.bytes", "-1"), ("max.message.bytes", "400")]);
        let held = before_appending(&of_source, &mirror, true);
        assert_eq!(held, [set("max.message.bytes", "500"), set("retention.ms", "-1")]);
        assert_eq!(before_appending(&of_source, &mirror, false), held[..1]);
        let mirror = there(&[("retention.ms", "-1"), ("retention.bytes", "-1"), ("max.message.bytes", "900")]);
        assert_eq!(before_appending(&of_source, &mirror, true), []);
        assert_eq!(released(&of_source, &mirror), [set("retention.ms", "1000")]);
        assert_eq!(released(&source(&[]), &mirror), []);
    }
}
