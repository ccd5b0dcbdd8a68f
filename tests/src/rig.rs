//! One link at work: a gateway, an agent, and the bad link between them, with certificates and settings of their own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tombolo_proto::id::LinkName;
use toml::{Table, Value};

use crate::broker::{KafkaCluster, Mechanism, unique_name};
use crate::free_port;
use crate::lossy_link::{LossyLink, Profile};
use crate::process::{Binary, Daemon};
use crate::scratch::Scratch;

/// Folder of journal and checkpoint beside an agent's settings.
const JOURNAL: &str = "journal";

/// What to start.
#[derive(Clone, Debug)]
pub struct RigSpec {
    mirrors: Vec<String>,
    filters: Vec<String>,
    profile: Profile,
    mechanism: Mechanism,
    agent: Vec<(String, Value)>,
    gateway: Vec<(String, Value)>,
    mirror: Vec<(String, Value)>,
    link: Vec<(String, Value)>,
    direct: bool,
}

impl RigSpec {
    /// Mirrors of these topics, over a clean link.
    pub fn new(topics: &[&str]) -> Self {
        Self {
            mirrors: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            filters: Vec::new(),
            profile: Profile::CLEAN,
            mechanism: Mechanism::ScramSha512,
            agent: Vec::new(),
            gateway: Vec::new(),
            mirror: Vec::new(),
            link: Vec::new(),
            direct: false,
        }
    }

    /// The agent dials the gateway itself; [`Rig::link`] carries nothing.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Topics that match become mirrors as they appear.
    #[must_use]
    pub fn filter(mut self, pattern: &str) -> Self {
        self.filters.push(pattern.to_owned());
        self
    }

    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// How the daemons log in where the brokers ask for it.
    #[must_use]
    pub fn mechanism(mut self, mechanism: Mechanism) -> Self {
        self.mechanism = mechanism;
        self
    }

    /// For tests that kill gateways: a dead one is given up soon, and the next one waits for little.
    #[must_use]
    pub fn impatient(self) -> Self {
        self.agent("link.idle_timeout", "2 s")
            .agent("link.keep_alive", "500 ms")
            .gateway("registry.lease", "1 s")
            .gateway("registry.settle", "500 ms")
    }

    /// A setting of the agent by its path, such as `memory.window`.
    #[must_use]
    pub fn agent(mut self, path: &str, value: impl Into<Value>) -> Self {
        self.agent.push((path.to_owned(), value.into()));
        self
    }

    /// A setting of every mirror that is named, such as `on_loss`.
    #[must_use]
    pub fn mirror(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.mirror.push((key.to_owned(), value.into()));
        self
    }

    /// A setting of the link in the gateway's settings, such as `skip`.
    #[must_use]
    pub fn link(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.link.push((key.to_owned(), value.into()));
        self
    }

    /// A setting of the gateway by its path.
    #[must_use]
    pub fn gateway(mut self, path: &str, value: impl Into<Value>) -> Self {
        self.gateway.push((path.to_owned(), value.into()));
        self
    }
}

/// A running link. Its daemons may be killed, stopped and restarted one by one.
#[derive(Debug)]
pub struct Rig {
    pub agent: Daemon,
    pub gateway: Daemon,
    pub link: LossyLink,
    /// The link's name: no two rigs share one.
    pub name: String,
    /// Where the gateway listens, behind the link.
    pub gateway_address: SocketAddr,
    spec: RigSpec,
    source: Vec<(String, String)>,
    cloud: Vec<(String, String)>,
    registry: String,
    certificates: Certificates,
}

impl Rig {
    /// Starts gateway and agent and waits until both are ready.
    pub async fn start(source: &KafkaCluster, cloud: &KafkaCluster, spec: RigSpec) -> Self {
        let name = unique_name("site");
        let certificates = Certificates::make(&name).await;
        let cloud = cloud.properties(spec.mechanism);
        let registry = unique_name("_tombolo");
        let gateway_address = listen_address();
        let settings = gateway_settings(&spec, &cloud, &name, &registry, &certificates, gateway_address);
        let gateway = start_gateway(&settings).await;
        let link = LossyLink::start(gateway_address, spec.profile).await.expect("a loopback socket can be had");
        let source = source.properties(spec.mechanism);
        let dialled = if spec.direct { gateway_address } else { link.address() };
        let mut agent = Daemon::agent(&agent_settings(&spec, &source, &name, &certificates, dialled)).await;
        agent.wait_ready().await;
        Self { agent, gateway, link, name, gateway_address, spec, source, cloud, registry, certificates }
    }

    /// Another gateway for the same link and registry, started and ready. The link still leads to the first one: see
    /// [`LossyLink::redirect`].
    pub async fn another_gateway(&self) -> (Daemon, SocketAddr) {
        let address = listen_address();
        let settings =
            gateway_settings(&self.spec, &self.cloud, &self.name, &self.registry, &self.certificates, address);
        (start_gateway(&settings).await, address)
    }

    /// Another agent with the same certificate, which begins with a copy of the first one's disk as it is now.
    pub async fn cloned_agent(&self) -> Daemon {
        let link = self.link.address();
        let settings = agent_settings(&self.spec, &self.source, &self.name, &self.certificates, link);
        Daemon::agent_with(&settings, |folder| copy_folder(&self.journal(), &folder.join(JOURNAL))).await
    }

    /// The producer id under which the link's mirrors are written.
    pub fn producer_id(&self) -> i64 {
        LinkName::new(&self.name).expect("the rig names its links well").producer_id()
    }

    /// The registry's topic.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where the agent keeps journal and checkpoint.
    pub fn journal(&self) -> PathBuf {
        self.agent.folder().join(JOURNAL)
    }

    /// Settings of the first gateway with other mirrors or values, for [`Daemon::reconfigure`].
    pub fn gateway_settings(&self, spec: &RigSpec) -> String {
        let (cloud, certificates) = (&self.cloud, &self.certificates);
        let mut settings: Table =
            gateway_settings(spec, cloud, &self.name, &self.registry, certificates, self.gateway_address)
                .parse()
                .expect("the rig writes TOML");
        set(&mut settings, "http.listen", self.gateway.http_address().to_string().into());
        settings.to_string()
    }
}

/// Copies files, one folder deep and its subfolders.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder of the test can be made");
    for entry in fs::read_dir(from).expect("a folder of the test can be read") {
        let entry = entry.expect("an entry can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("an entry has a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

async fn start_gateway(settings: &str) -> Daemon {
    let mut gateway = Daemon::gateway(settings).await;
    // Said of every mirror in a cluster of one broker.
    gateway.allow("min.insync.replicas=1");
    gateway.wait_ready().await;
    gateway
}

/// What `tombolo-gateway dev-certs` makes.
#[derive(Debug)]
struct Certificates {
    scratch: Scratch,
}

impl Certificates {
    async fn make(link: &str) -> Self {
        let scratch = Scratch::new("certificates");
        let folder = scratch.path().display().to_string();
        let made = Binary::Gateway.run(&["dev-certs", &folder, "--link", link]).await;
        assert!(made.status.success(), "dev-certs fails: {}", String::from_utf8_lossy(&made.stderr));
        Self { scratch }
    }

    fn file(&self, name: &str) -> Value {
        let path: PathBuf = self.scratch.path().join(name);
        assert!(path.exists(), "dev-certs did not make {}", path.display());
        text(&path)
    }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

fn listen_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn gateway_settings(
    spec: &RigSpec,
    cloud: &[(String, String)],
    link: &str,
    registry: &str,
    certificates: &Certificates,
    address: SocketAddr,
) -> String {
    let mirrors: Vec<Value> = spec
        .mirrors
        .iter()
        .map(|topic| {
            let topic = ("topic".to_owned(), topic.as_str().into());
            Value::Table([topic].into_iter().chain(spec.mirror.iter().cloned()).collect())
        })
        .collect();
    let filters: Vec<Value> = spec.filters.iter().map(|pattern| pattern.as_str().into()).collect();
    let own = [
        ("name".to_owned(), link.into()),
        ("mirror".to_owned(), mirrors.into()),
        ("topics".to_owned(), filters.into()),
    ];
    let link: Table = own.into_iter().chain(spec.link.iter().cloned()).collect();
    let mut settings = Table::new();
    set(&mut settings, "listen", address.to_string().into());
    set(&mut settings, "http.listen", listen_address().to_string().into());
    set(&mut settings, "tls.certificate", certificates.file("gateway.pem"));
    set(&mut settings, "tls.key", certificates.file("gateway.key"));
    set(&mut settings, "tls.client_ca", certificates.file("ca.pem"));
    set(&mut settings, "tls.domain", "example.net".into());
    set(&mut settings, "registry.topic", registry.into());
    settings.insert("cloud".to_owned(), table(cloud));
    settings.insert("link".to_owned(), Value::Array(vec![Value::Table(link)]));
    for (path, value) in &spec.gateway {
        set(&mut settings, path, value.clone());
    }
    settings.to_string()
}

fn agent_settings(
    spec: &RigSpec,
    source: &[(String, String)],
    link: &str,
    certificates: &Certificates,
    gateway: SocketAddr,
) -> String {
    let mut settings = Table::new();
    set(&mut settings, "http.listen", listen_address().to_string().into());
    set(&mut settings, "link.gateway", Value::Array(vec![gateway.to_string().into()]));
    set(&mut settings, "link.ca", certificates.file("ca.pem"));
    set(&mut settings, "link.certificate", certificates.file(&format!("{link}.pem")));
    set(&mut settings, "link.key", certificates.file(&format!("{link}.key")));
    // Tests cut links often and do not want to wait for long.
    set(&mut settings, "link.backoff_min", "100 ms".into());
    set(&mut settings, "link.backoff_max", "1 s".into());
    set(&mut settings, "discovery.interval", "500 ms".into());
    set(&mut settings, "journal.path", JOURNAL.into());
    settings.insert("source".to_owned(), table(source));
    for (path, value) in &spec.agent {
        set(&mut settings, path, value.clone());
    }
    settings.to_string()
}

fn table(properties: &[(String, String)]) -> Value {
    Value::Table(properties.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect())
}

/// Sets a value by its path. Property names of `[source]` and `[cloud]` hold dots themselves: all after the first is
/// theirs.
fn set(settings: &mut Table, path: &str, value: Value) {
    let Some((head, rest)) = path.split_once('.') else {
        settings.insert(path.to_owned(), value);
        return;
    };
    let inner = settings.entry(head).or_insert_with(|| Value::Table(Table::new()));
    let inner = inner.as_table_mut().expect("a path leads through tables");
    if head == "source" || head == "cloud" {
        inner.insert(rest.to_owned(), value);
    } else {
        set(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_values_by_path_and_keeps_property_names_whole() {
        let mut settings = Table::new();
        set(&mut settings, "memory.window", "1 MiB".into());
        set(&mut settings, "cloud.sasl.username", "me".into());
        let expected: Table = "[memory]\nwindow = \"1 MiB\"\n[cloud]\n\"sasl.username\" = \"me\"\n".parse().unwrap();
        assert_eq!(settings, expected);
    }
}
