//! What the two daemons say of themselves in `/status`, as any operator may ask.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tombolo_service::status_client::{self, StatusError};

use crate::screen::TopicRow;
use crate::witness::Place;

const DEADLINE: Duration = Duration::from_secs(2);

/// Both daemons' words at one moment.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// State of the link as the agent sees it, and the number of its session.
    pub(crate) link: String,
    /// Mirrors by source topic.
    pub(crate) mirrors: BTreeMap<String, MirrorLook>,
}

/// One mirror.
#[derive(Debug, Default)]
pub(crate) struct MirrorLook {
    /// Its state in the cloud.
    state: String,
    /// Why it is not ACTIVE.
    detail: Option<String>,
    /// By partition.
    partitions: BTreeMap<i32, PartitionLook>,
}

/// One partition.
#[derive(Debug, Default, Clone, Copy)]
struct PartitionLook {
    /// Offset after the last record at the source, as the agent saw it.
    source_end: i64,
    /// Offset after the last record that the agent was told is in the cloud for good: seen with `source_end`.
    confirmed: i64,
    /// The same by the gateway's word.
    in_cloud: i64,
}

impl Look {
    /// Asks both daemons.
    pub(crate) async fn ask(agent: SocketAddr, gateway: SocketAddr) -> Result<Self, StatusError> {
        let (agent, gateway) =
            tokio::try_join!(status_client::fetch(agent, DEADLINE), status_client::fetch(gateway, DEADLINE))?;
        Ok(Self::of(&agent, &gateway))
    }

    fn of(agent: &Value, gateway: &Value) -> Self {
        let mut look = Self { link: agent.get("link").map_or_else(String::new, link), ..Self::default() };
        for mirror in items(gateway, "links").flat_map(|link| items(link, "mirrors")) {
            let entry = look.mirrors.entry(text(mirror, "source_topic")).or_default();
            entry.state = text(mirror, "mirror_status");
            entry.detail = mirror.get("detail").and_then(Value::as_str).map(str::to_owned);
            for partition in items(mirror, "partitions") {
                entry.partition(partition).in_cloud = number(partition, "confirmed");
            }
        }
        for mirror in items(agent, "mirrors") {
            let entry = look.mirrors.entry(text(mirror, "topic")).or_default();
            for partition in items(mirror, "partitions") {
                let shown = entry.partition(partition);
                shown.source_end = number(partition, "source_high_watermark");
                shown.confirmed = number(partition, "confirmed");
            }
        }
        look
    }

    /// A mirror that stopped for good, and why.
    pub(crate) fn failed(&self) -> Option<(&str, &str)> {
        let (topic, mirror) = self.mirrors.iter().find(|(_, mirror)| mirror.state == "FAILED")?;
        Some((topic, mirror.detail.as_deref().unwrap_or("no reason told")))
    }

    /// How far the cloud has a partition for good.
    pub(crate) fn in_cloud(&self, (topic, partition): &Place) -> i64 {
        let partition = self.mirrors.get(topic).and_then(|mirror| mirror.partitions.get(partition));
        partition.map_or(0, |partition| partition.in_cloud)
    }

    /// The rows of the table, for topics in this order.
    pub(crate) fn rows(&self, topics: &[(String, i32)], prefix: &str) -> Vec<TopicRow> {
        let row = |(topic, _): &(String, i32)| {
            let mirror = self.mirrors.get(topic)?;
            Some(TopicRow {
                name: topic.strip_prefix(prefix).unwrap_or(topic).to_owned(),
                partitions: mirror.partitions.len(),
                state: mirror.state.clone(),
                source_end: mirror.partitions.values().map(|partition| partition.source_end).sum(),
                confirmed: mirror.partitions.values().map(|partition| partition.confirmed).sum(),
            })
        };
        topics.iter().filter_map(row).collect()
    }
}

impl MirrorLook {
    fn partition(&mut self, shown: &Value) -> &mut PartitionLook {
        let number = i32::try_from(number(shown, "partition")).unwrap_or(-1);
        self.partitions.entry(number).or_default()
    }
}

fn link(link: &Value) -> String {
    match link.get("term").and_then(Value::as_u64) {
        Some(term) => format!("{}, session {term}", text(link, "state")),
        None => text(link, "state"),
    }
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// 0 for what is not known yet.
fn number(value: &Value, key: &str) -> i64 {
    value.get(key).and_then(Value::as_i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(state: &str) -> Look {
        let agent = json!({"link": {"state": "ACTIVE", "term": 2}, "mirrors": [{"topic": "p-orders", "partitions": [
            {"partition": 0, "source_high_watermark": 70, "confirmed": 49},
            {"partition": 1, "source_high_watermark": null, "confirmed": 3},
        ]}]});
        let gateway = json!({"links": [{"mirrors": [{
            "source_topic": "p-orders", "mirror_status": state, "detail": "why",
            "partitions": [{"partition": 0, "confirmed": 50}, {"partition": 1, "confirmed": 3}],
        }]}]});
        Look::of(&agent, &gateway)
    }

    #[test]
    fn rows_join_what_both_daemons_say() {
        let look = look("ACTIVE");
        assert_eq!((look.link.as_str(), look.failed()), ("ACTIVE, session 2", None));
        let expected = TopicRow {
            name: "orders".to_owned(),
            partitions: 2,
            state: "ACTIVE".to_owned(),
            source_end: 70,
            confirmed: 52,
        };
        let topics = [("p-orders".to_owned(), 2), ("p-unseen".to_owned(), 1)];
        assert_eq!(look.rows(&topics, "p-"), [expected]);
        assert_eq!(look.in_cloud(&("p-orders".to_owned(), 0)), 50);
        assert_eq!(look.in_cloud(&("p-unseen".to_owned(), 0)), 0);
    }

    #[test]
    fn a_failed_mirror_is_told_with_its_reason() {
        assert_eq!(look("FAILED").failed(), Some(("p-orders", "why")));
    }
}
