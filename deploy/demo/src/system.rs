//! The site and the cloud of a run: both daemons as an operator would configure them, and the link between them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use tombolo_gateway::cli::{self, Cli};
use tombolo_service::settings::SettingsError;
use tombolo_service::tasks::{Overrun, TaskFailure, Tasks};
use tombolo_tests::lossy_link::{LossyLink, Profile, Way};

use crate::clusters::Clusters;

/// The one link of the demo.
const LINK: &str = "demo-site";
const DOMAIN: &str = "demo.example";
/// The gateway's certificate names it so.
const SERVER_NAME: &str = "localhost";
/// How long the daemons may take to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Why the daemons do not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemError {
    #[error("cannot make certificates")]
    Certificates,
    #[error("the {daemon} refuses its settings: {source}")]
    Settings {
        daemon: &'static str,
        #[source]
        source: SettingsError,
    },
    #[error("cannot start the forwarder: {0}")]
    Forwarder(#[source] io::Error),
    #[error("a daemon ended: {0}")]
    Ended(#[from] TaskFailure),
    #[error("the daemons do not stop: {0}")]
    Stuck(#[from] Overrun),
}

/// Both daemons at work.
pub(crate) struct System {
    /// Where the agent tells its status.
    pub(crate) agent: SocketAddr,
    /// Where the gateway tells its status.
    pub(crate) gateway: SocketAddr,
    /// What every packet between them goes through.
    pub(crate) link: LossyLink,
    tasks: Tasks,
}

impl System {
    /// Makes certificates in `folder` and starts both daemons. They do not stop with `stop` but in
    /// [`System::shutdown`]: what is lost on the way is seen there.
    pub(crate) async fn start(folder: &Path, clusters: &Clusters) -> Result<Self, SystemError> {
        make_certificates(folder).await?;
        let listen = loopback();
        let link = LossyLink::start(listen, profile()).await.map_err(SystemError::Forwarder)?;
        let (agent_http, gateway_http) = (loopback(), loopback());
        let text = gateway_settings(clusters, listen, gateway_http);
        let gateway = tombolo_gateway::Settings::parse(&text, folder)
            .map_err(|source| SystemError::Settings { daemon: "gateway", source })?;
        let text = agent_settings(folder, &clusters.source, link.address(), agent_http);
        let agent = tombolo_agent::Settings::parse(&text)
            .map_err(|source| SystemError::Settings { daemon: "agent", source })?;
        let tasks = Tasks::new(&CancellationToken::new());
        let stop = tasks.stop_token().clone();
        tasks.spawn("gateway", async move { tombolo_gateway::run(gateway, stop).await.map(drop) });
        let stop = tasks.stop_token().clone();
        tasks.spawn("agent", async move { tombolo_agent::run(agent, stop).await.map(drop) });
        Ok(Self { agent: agent_http, gateway: gateway_http, link, tasks })
    }

    /// A daemon that ended by itself.
    pub(crate) fn check(&self) -> Result<(), SystemError> {
        self.tasks.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Stops both daemons.
    pub(crate) async fn shutdown(self) -> Result<(), SystemError> {
        self.tasks.shutdown(GRACE).await?;
        self.check()
    }
}

/// By the operator's own command, which prints the files it made.
async fn make_certificates(folder: &Path) -> Result<(), SystemError> {
    let folder = folder.as_os_str();
    let words = ["tombolo-gateway", "dev-certs", "--link", LINK, "--domain", DOMAIN].map(AsRef::as_ref);
    let cli = Cli::try_parse_from(words.into_iter().chain([folder])).map_err(|_| SystemError::Certificates)?;
    match Box::pin(cli::run(cli)).await {
        ExitCode::SUCCESS => Ok(()),
        _ => Err(SystemError::Certificates),
    }
}

/// A free loopback address: who listens there tells nobody else which it was given.
fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, tombolo_tests::free_port()).into()
}

/// A link as it might be by radio: 40 ms there and back, one packet in a thousand lost.
fn profile() -> Profile {
    let way = Way { delay: Duration::from_millis(20), jitter: Duration::from_millis(2), loss: 0.001, ..Way::CLEAN };
    Profile { up: way, down: way, seed: 1 }
}

/// A short idle time-out, so that the outage is one to both ends and not a long pause.
fn gateway_settings(clusters: &Clusters, listen: SocketAddr, http: SocketAddr) -> String {
    let mirrors: Vec<_> =
        clusters.topics().into_iter().map(|(topic, _)| format!("[[link.mirror]]\ntopic = \"{topic}\"\n")).collect();
    format!(
        r#"
listen = "{listen}"
http.listen = "{http}"
cloud."bootstrap.servers" = "{cloud}"
registry.topic = "{registry}"
quic.idle_timeout = "2 s"
quic.keep_alive = "500 ms"

[tls]
certificate = "gateway.pem"
key = "gateway.key"
client_ca = "ca.pem"
domain = "{DOMAIN}"

[[link]]
name = "{LINK}"
{mirrors}"#,
        cloud = clusters.cloud,
        registry = clusters.registry(),
        mirrors = mirrors.concat(),
    )
}

fn agent_settings(folder: &Path, source: &str, gateway: SocketAddr, http: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        r#"
http.listen = "{http}"
journal.path = "{folder}/journal"
source."bootstrap.servers" = "{source}"
discovery.interval = "1 s"

[link]
gateway = ["{gateway}"]
server_name = "{SERVER_NAME}"
ca = "{folder}/ca.pem"
certificate = "{folder}/{LINK}.pem"
key = "{folder}/{LINK}.key"
idle_timeout = "2 s"
keep_alive = "500 ms"
initial_rtt = "50 ms"
backoff_min = "100 ms"
backoff_max = "1 s"
"#
    )
}
