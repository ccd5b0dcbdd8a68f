//! What to compare with what, and what has no counterpart.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use tombolo_kafka::Cluster;
use tombolo_kafka::admin::{ConfigResource, describe_configs};
use tombolo_kafka::cluster::ClusterMetadata;
use tombolo_kafka::compare::digest::Summary;
use tombolo_kafka::compare::{CompareOptions, Extent, LogPair, extent};
use tombolo_proto::id::TopicName;
use tombolo_proto::pattern::TopicPattern;

use super::settings::Settings;
use super::{Verify, VerifyError};

/// Places of a partition that a sample is taken from.
const PLACES: i64 = 10;

/// Partition counts by topic.
type Shape = BTreeMap<Arc<str>, i32>;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) partitions: Vec<Planned>,
    pub(super) lacking: Vec<Lacking>,
}

/// A partition that both sides have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) pair: LogPair,
    /// What is read of the mirror as it is now.
    pub(super) windows: Vec<Range<i64>>,
}

/// A partition or a whole topic that only one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) topic: Arc<str>,
    /// `None` for all of them.
    pub(super) partition: Option<i32>,
    pub(super) what: &'static str,
}

impl Plan {
    pub(super) async fn of_clusters(
        source: &Cluster,
        cloud: &Cluster,
        arguments: &Verify,
        settings: &Settings,
        options: CompareOptions,
    ) -> Result<Self, VerifyError> {
        let ours = shape(&source.metadata(None).await.map_err(VerifyError::Source)?);
        let theirs = shape(&cloud.metadata(None).await.map_err(VerifyError::Cloud)?);
        // Without patterns nobody said that all of the source's topics are mirrored.
        let joined = if settings.topics.is_empty() {
            let both = ours.into_iter().filter(|(topic, _)| theirs.contains_key(topic)).collect();
            join(&both, &theirs)
        } else {
            join(&matching(ours, &settings.topics), &theirs)
        };
        Self::new(joined, cloud, arguments, options).await
    }

    pub(super) async fn of_digest(
        summary: &Summary,
        cloud: &Cluster,
        arguments: &Verify,
        settings: &Settings,
        options: CompareOptions,
    ) -> Result<Self, VerifyError> {
        let topics = summary.header.topics.iter();
        let ours = topics.map(|topic| (Arc::clone(&topic.name), i32::try_from(topic.partitions).unwrap_or(i32::MAX)));
        let ours = if settings.topics.is_empty() { ours.collect() } else { matching(ours, &settings.topics) };
        let theirs = shape(&cloud.metadata(None).await.map_err(VerifyError::Cloud)?);
        let (mut pairs, lacking) = join(&ours, &theirs);
        let digested = |topic: &Arc<str>, partition: i32| {
            summary.sections.iter().any(|section| section.topic == *topic && section.partition == partition)
        };
        pairs.retain(|(topic, partition)| digested(topic, *partition));
        Self::new((pairs, lacking), cloud, arguments, options).await
    }

    async fn new(
        (pairs, lacking): (Vec<(Arc<str>, i32)>, Vec<Lacking>),
        cloud: &Cluster,
        arguments: &Verify,
        options: CompareOptions,
    ) -> Result<Self, VerifyError> {
        if pairs.is_empty() && lacking.is_empty() {
            return Err(VerifyError::Nothing("none of the source's is wanted, or none of those is in the cloud"));
        }
        let mut partitions = Vec::new();
        for (topic, partition) in pairs {
            let range = extent(cloud, &topic, partition, options).await.map_err(VerifyError::Cloud)?;
            let (extent, windows) = extent_of(arguments, range);
            let pair = LogPair { source: Arc::clone(&topic), mirror: topic, partition, extent };
            partitions.push(Planned { pair, windows });
        }
        Ok(Self { partitions, lacking })
    }

    /// The topics whose policy at the source is to compact. None that the source does not tell of: the mirror must hold all
    /// of those.
    pub(super) async fn compacted(&self, source: &Cluster) -> Result<BTreeSet<Arc<str>>, VerifyError> {
        let topics: BTreeSet<_> = self.partitions.iter().map(|planned| Arc::clone(&planned.pair.source)).collect();
        let topics: Vec<_> = topics.into_iter().map(ConfigResource::Topic).collect();
        let connection = source.controller().await.map_err(VerifyError::Source)?;
        let answers = describe_configs(&connection, &topics, Some(&["cleanup.policy"])).await;
        let answers = answers.map_err(VerifyError::Source)?.into_iter();
        let compacted = answers.filter_map(|answer| match (answer.resource, answer.result) {
            (ConfigResource::Topic(topic), Ok(configs)) => {
                let compacts = |value: &String| value.split(',').any(|part| part.trim() == "compact");
                configs.iter().filter_map(|config| config.value.as_ref()).any(compacts).then_some(topic)
            }
            (ConfigResource::Topic(_) | ConfigResource::Broker(_), _) => None,
        });
        Ok(compacted.collect())
    }

    /// What is read of the mirrors, as a survey takes it.
    pub(super) fn logs(&self) -> Vec<(Arc<str>, i32, Range<i64>)> {
        let log = |planned: &Planned, window: &Range<i64>| {
            (Arc::clone(&planned.pair.mirror), planned.pair.partition, window.clone())
        };
        self.partitions
            .iter()
            .flat_map(|planned| planned.windows.iter().map(move |window| log(planned, window)))
            .collect()
    }
}

fn shape(metadata: &ClusterMetadata) -> Shape {
    let topics = metadata.topics.iter().filter(|topic| !topic.internal && topic.error.is_none());
    topics.map(|topic| (Arc::clone(&topic.name), i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))).collect()
}

fn matching(topics: impl IntoIterator<Item = (Arc<str>, i32)>, patterns: &[TopicPattern]) -> Shape {
    let wanted =
        |topic: &str| TopicName::new(topic).is_ok_and(|topic| patterns.iter().any(|pattern| pattern.matches(&topic)));
    topics.into_iter().filter(|(topic, _)| wanted(topic)).collect()
}

/// The partitions of these topics that both sides have, and what one of them lacks.
fn join(ours: &Shape, theirs: &Shape) -> (Vec<(Arc<str>, i32)>, Vec<Lacking>) {
    let (mut pairs, mut lacking) = (Vec::new(), Vec::new());
    for (topic, &count) in ours {
        let lacks = |partition, what| Lacking { topic: Arc::clone(topic), partition, what };
        let Some(&mirrored) = theirs.get(topic) else {
            lacking.push(lacks(None, "the topic is missing in the cloud"));
            continue;
        };
        pairs.extend((0..count.min(mirrored)).map(|partition| (Arc::clone(topic), partition)));
        let missing =
            (mirrored..count).map(|partition| lacks(Some(partition), "the partition is missing in the cloud"));
        lacking.extend(missing);
        let extra = (count..mirrored).map(|partition| lacks(Some(partition), "the partition is in the cloud only"));
        lacking.extend(extra);
    }
    (pairs, lacking)
}

/// What to compare of a partition, and what of a mirror with these offsets is read for it.
fn extent_of(arguments: &Verify, range: Range<i64>) -> (Extent, Vec<Range<i64>>) {
    if let Some(percent) = arguments.sample {
        let windows = sample(&range, percent, |slack| if slack > 0 { rand::random_range(0..=slack) } else { 0 });
        return (Extent::Windows(windows.clone()), windows);
    }
    if arguments.from.is_none() && arguments.to.is_none() {
        return (Extent::Whole, vec![range]);
    }
    let wanted = arguments.from.unwrap_or(0)..arguments.to.unwrap_or(i64::MAX);
    let read = range.start.clamp(wanted.start, wanted.end)..range.end.clamp(wanted.start, wanted.end);
    (Extent::Offsets(wanted), vec![read])
}

/// This share of the offsets in [`PLACES`] windows: one at the beginning, one at the end, the others each somewhere in
/// their part of the log. `chance` gives a number from 0 to its argument.
fn sample(range: &Range<i64>, percent: u8, mut chance: impl FnMut(i64) -> i64) -> Vec<Range<i64>> {
    let length = range.end - range.start;
    let part = length / PLACES;
    // Round up: a sample of a short log is more of it, never nothing.
    let width = (part / 100 * i64::from(percent) + part % 100 * i64::from(percent) / 100 + 1).min(part.max(1));
    if part == 0 {
        return vec![range.clone()];
    }
    let windows = (0..PLACES).map(|place| {
        let first = range.start + place * part;
        let start = match place {
            0 => first,
            _ if place == PLACES - 1 => range.end - width,
            _ => first + chance(part - width),
        };
        start..start + width
    });
    windows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(topics: &[(&str, i32)]) -> Shape {
        topics.iter().map(|(topic, count)| ((*topic).into(), *count)).collect()
    }

    #[test]
    fn what_one_side_lacks_is_told() {
        let (pairs, lacking) = join(&shape(&[("a", 2), ("b", 2), ("c", 1)]), &shape(&[("a", 1), ("b", 3), ("d", 1)]));
        let pairs: Vec<_> = pairs.iter().map(|(topic, partition)| (&**topic, *partition)).collect();
        assert_eq!(pairs, [("a", 0), ("b", 0), ("b", 1)]);
        let lacking: Vec<_> =
            lacking.iter().map(|lacking| (&*lacking.topic, lacking.partition, lacking.what)).collect();
        assert_eq!(
            lacking,
            [
                ("a", Some(1), "the partition is missing in the cloud"),
                ("b", Some(2), "the partition is in the cloud only"),
                ("c", None, "the topic is missing in the cloud"),
            ]
        );
    }

    #[test]
    fn patterns_choose() {
        let patterns = [TopicPattern::new("a.*").unwrap(), TopicPattern::new("b").unwrap()];
        let chosen = matching(shape(&[("a.x", 1), ("a", 1), ("b", 1), ("b.x", 1)]), &patterns);
        assert_eq!(chosen, shape(&[("a.x", 1), ("b", 1)]));
    }

    #[test]
    fn a_sample_has_beginning_end_and_the_share_asked_for() {
        for percent in [1, 5, 50, 99] {
            for chosen in [0, 1] {
                let windows = sample(&(1_000..101_000), percent, |slack| chosen * slack);
                assert_eq!((windows.len(), windows[0].start, windows[9].end), (10, 1_000, 101_000));
                assert!(windows.windows(2).all(|pair| pair[0].end <= pair[1].start), "{windows:?}");
                let read: i64 = windows.iter().map(|window| window.end - window.start).sum();
                let asked = 1_000 * i64::from(percent);
                assert!((asked..=asked + 10).contains(&read), "{percent}: {read}");
            }
        }
        assert_eq!(sample(&(5..9), 1, |_| 0), std::slice::from_ref(&(5..9)), "a short log is read whole");
        assert_eq!(sample(&(i64::MAX - 100..i64::MAX), 99, |_| 0).len(), 10);
    }
}
