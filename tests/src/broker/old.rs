//! A broker of a release that still keeps messages of formats v0 and v1, and the ZooKeeper that it needs: one of each.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::cluster::{ClusterSpec, KafkaCluster, Listener};
use super::node::{Node, Ports};
use super::settings;
use crate::child::Program;
use crate::consumer::Kept;
use crate::wait::until;

const DUMP_DEADLINE: Duration = Duration::from_mins(1);

/// Writes the broker's settings and starts its ZooKeeper, which the broker waits for.
pub(super) fn prepare(spec: &ClusterSpec, nodes: &[Node], ports: &[Ports]) -> Program {
    let ([node], [ports]) = (nodes, ports) else { panic!("an old cluster has one broker") };
    assert_eq!(spec.listener, Listener::Plaintext, "an old broker has no certificates");
    node.configure(&broker(spec, node.id, *ports));
    let arguments = [ports.controller.to_string(), node.folder.join("zookeeper").display().to_string()];
    node.start_beside("zookeeper-log", "org.apache.zookeeper.server.ZooKeeperServerMain", &arguments).0
}

impl KafkaCluster {
    /// What the broker's own tool reads in the first partitions of these topics, by topic. librdkafka cannot be asked:
    /// version 2.12 takes keys of formats v0 and v1 for those of a newer protocol, and finds none. Headers are not told.
    pub async fn dumped_logs(&self, topics: &[&str]) -> BTreeMap<String, Vec<Kept>> {
        let (mut program, log) = self.with_node(1, |node| {
            let files = topics.iter().flat_map(|topic| node.segments(topic, 0));
            let files: Vec<String> = files.map(|file| file.display().to_string()).collect();
            let arguments = ["--print-data-log", "--files", &files.join(",")].map(str::to_owned);
            node.start_beside("dump", "kafka.tools.DumpLogSegments", &arguments)
        });
        let ended = until("the logs are dumped", DUMP_DEADLINE, async || program.ended().ok_or("it reads")).await;
        let text = fs::read_to_string(log).expect("the tool's words can be read");
        assert!(ended.success(), "{text}");
        let mut logs: BTreeMap<String, Vec<Kept>> = topics.iter().map(|topic| ((*topic).to_owned(), vec![])).collect();
        let mut current = None;
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("Dumping ") {
                let folder = path.rsplit('/').nth(1).and_then(|folder| folder.strip_suffix("-0"));
                current = folder.and_then(|topic| logs.get_mut(topic));
            } else if let Some(record) = line.strip_prefix("| offset: ") {
                current.as_mut().expect("records follow their file's name").push(record_of(record));
            }
        }
        logs
    }
}

/// A record as the tool prints it: `7 keySize: 5 valueSize: 3 CreateTime: 1700 ... key: key-0 payload: abc`.
fn record_of(line: &str) -> Kept {
    let field = |name: &str| line.split_once(name).map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok()).expect("the tool prints a number");
    let (head, value) = line.split_once(" payload: ").unwrap_or((line, ""));
    let key = head.split_once(" key: ").map_or("", |(_, key)| key);
    let bytes = |size: &str, text: &str| {
        let size = number(field(size));
        // It leaves out the key of a record without a value.
        (size >= 0).then(|| if text.is_empty() { vec![b'?'; usize::try_from(size).unwrap_or(0)] } else { text.into() })
    };
    let timestamp =
        number(field("CreateTime: ").or_else(|| field("LogAppendTime: ")).or_else(|| field("NoTimestampType: ")));
    Kept {
        offset: number(line.split(' ').next()),
        key: bytes(" keySize: ", key),
        value: bytes(" valueSize: ", value),
        headers: Vec::new(),
        timestamp: (timestamp >= 0).then_some(timestamp),
    }
}

fn broker(spec: &ClusterSpec, id: i32, ports: Ports) -> Vec<(String, String)> {
    let client = format!("CLIENT://127.0.0.1:{},INTERNAL://127.0.0.1:{}", ports.client, ports.internal);
    let own = [
        ("broker.id", id.to_string()),
        ("zookeeper.connect", format!("127.0.0.1:{}", ports.controller)),
        ("listeners", client.clone()),
        ("advertised.listeners", client),
        ("listener.security.protocol.map", "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT".to_owned()),
        ("inter.broker.listener.name", "INTERNAL".to_owned()),
        ("offsets.topic.replication.factor", "1".to_owned()),
        ("offsets.topic.num.partitions", "1".to_owned()),
        ("transaction.state.log.replication.factor", "1".to_owned()),
        ("transaction.state.log.num.partitions", "1".to_owned()),
        ("transaction.state.log.min.isr", "1".to_owned()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
    let common = settings::common().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(common).chain(spec.settings.iter().cloned()).collect()
}
