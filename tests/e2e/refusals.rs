//! Whom and what the daemons refuse at the door: bad settings, wrong certificates, bytes that are no protocol. A link that
//! works meanwhile goes on.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::time::timeout;
use tombolo_proto::wire::{CloseCode, EdgeBody, EdgeMessage, Hello, encode};
use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::free_port;
use tombolo_tests::process::{Binary, Daemon};
use tombolo_tests::producer::Workload;
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::scratch::Scratch;
use tombolo_tests::wait::until;
use toml::{Table, Value};

use crate::course::{DEADLINE, Turn, assert_equal, wait_until_active};
use crate::stranger::{Files, Garbage, Stranger};

const RECORDS: u64 = 200;

/// A link at work, with the settings of its agent.
struct Working {
    rig: Rig,
    topic: String,
    agent: Table,
}

impl Working {
    async fn start() -> Self {
        let pair = shared_pair().await;
        let topic = unique_name("undisturbed");
        pair.source.create_topic(&topic, 2, 1, &[]).await;
        let rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
        wait_until_active(&rig, &[&topic]).await;
        let agent = fs::read_to_string(rig.agent.folder().join("settings.toml")).unwrap().parse().unwrap();
        Self { rig, topic, agent }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.agent["link"][key].as_str().unwrap().into()
    }

    /// What the link's own certificate needs.
    fn files(&self) -> Files {
        Files { ca: self.file("ca"), certificate: self.file("certificate"), key: self.file("key") }
    }

    /// Settings of another agent at the same gateway, with these files of `[link]` instead of the right ones.
    fn other_agent(&self, files: &[(&str, PathBuf)]) -> String {
        let mut settings = self.agent.clone();
        settings["http"]["listen"] = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())).to_string().into();
        for (key, path) in files {
            settings["link"][*key] = path.display().to_string().into();
        }
        settings.to_string()
    }

    /// The gateway logs the reason.
    async fn gateway_says(&self, reason: &str) {
        says(&self.rig.gateway, reason).await;
    }

    /// The right link was not disturbed.
    async fn assert_goes_on(mut self) {
        assert!(self.rig.gateway.running());
        let pair = shared_pair().await;
        Workload::new().topic(&self.topic, 2).produce(&pair.source.client_config(), RECORDS).await;
        assert_equal(&pair.source, &pair.cloud, &[&self.topic], RECORDS).await;
        let handshakes = self.rig.agent.metric("tombolo_handshakes_total").await;
        assert!(handshakes < 2.0, "the link was dialled anew: {handshakes} handshakes");
    }
}

async fn says(daemon: &Daemon, reason: &str) {
    until(&format!("{reason:?} is logged"), DEADLINE, async || {
        if daemon.log().contains(reason) { Ok(()) } else { Err(daemon.log()) }
    })
    .await;
}

/// Makes a certificate for a link, by the CA of that folder; a new one where it has none.
async fn certify(folder: &Path, link: &str) {
    let folder = folder.display().to_string();
    let made = Binary::Gateway.run(&["dev-certs", &folder, "--link", link]).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Starts an agent that is refused, and reads why on both sides.
async fn assert_refused(working: &Working, settings: &str, agent_says: &str, gateway_says: &str) {
    let mut rogue = Daemon::agent(settings).await;
    rogue.allow("no link: refused");
    says(&rogue, agent_says).await;
    working.gateway_says(gateway_says).await;
    assert!(rogue.running(), "a refused agent goes on trying");
    until("status tells why there is no link", DEADLINE, async || {
        let status = rogue.status().await;
        let error = status["link"]["last_error"].as_str().unwrap_or_default().to_owned();
        if error.contains(agent_says) { Ok(()) } else { Err(error) }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_certificate_or_link_is_refused_with_the_reason_in_both_logs() {
    let _turn = Turn::shared().await;
    let mut working = Working::start().await;
    working.rig.gateway.allow("connection refused");
    working.rig.gateway.allow("connection ended before its session began");

    let untrusted = "invalid peer certificate";
    let foreign = Scratch::new("foreign-ca");
    certify(foreign.path(), &working.rig.name).await;
    let (certificate, key) = (format!("{}.pem", working.rig.name), format!("{}.key", working.rig.name));
    let files = [("certificate", foreign.path().join(certificate)), ("key", foreign.path().join(key))];
    assert_refused(&working, &working.other_agent(&files), untrusted, untrusted).await;

    let files = [("ca", foreign.path().join("ca.pem"))];
    assert_refused(&working, &working.other_agent(&files), untrusted, "aborted by peer").await;

    let folder = working.file("ca").parent().unwrap().to_owned();
    certify(&folder, "nobody").await;
    let files = [("certificate", folder.join("nobody.pem")), ("key", folder.join("nobody.key"))];
    let reason = "the gateway has no link nobody";
    assert_refused(&working, &working.other_agent(&files), reason, reason).await;

    working.assert_goes_on().await;
}

#[tokio::test]
async fn bytes_that_are_no_protocol_close_the_connection_with_a_reason() {
    let _turn = Turn::shared().await;
    let mut working = Working::start().await;
    working.rig.gateway.allow("connection ended before its session began");
    let hello = |first, last| {
        let hello = Hello { first_version: first, last_version: last, ..Hello::default() };
        encode(&EdgeMessage { body: Some(EdgeBody::Hello(hello)) }).to_vec()
    };
    let mut malformed = 8_u32.to_be_bytes().to_vec();
    malformed.extend([0xff; 8]);
    let table = [
        (Garbage::Control(vec![0xff; 64]), CloseCode::Protocol, "control message of 4294967295 bytes"),
        (Garbage::Control(malformed), CloseCode::Protocol, "control message is malformed"),
        (Garbage::Control(encode(&EdgeMessage { body: None }).to_vec()), CloseCode::Protocol, ""),
        (Garbage::FinishedControl, CloseCode::Protocol, "control stream was finished"),
        (Garbage::Frame(vec![0xff; 4_096]), CloseCode::Protocol, "frame"),
        (
            Garbage::Frame(b"GET / HTTP/1.1\r\nHost: gateway\r\nAccept: text/html\r\n\r\n".to_vec()),
            CloseCode::Protocol,
            "frame",
        ),
        (Garbage::Control(hello(99, 100)), CloseCode::Version, "99"),
    ];
    for (garbage, code, reason) in table {
        let stranger = Stranger::dial(working.rig.gateway_address, &working.files()).await;
        let (closed_with, told) = timeout(DEADLINE, stranger.send(garbage)).await.unwrap();
        assert_eq!(CloseCode::from_number(closed_with), Some(code), "{told}");
        assert!(!told.is_empty() && told.contains(reason), "no {reason:?} in {told:?}");
        working.gateway_says(&told).await;
    }
    working.assert_goes_on().await;
}

#[tokio::test]
async fn a_settings_error_ends_with_64_and_names_the_key() {
    let scratch = Scratch::new("settings");
    certify(scratch.path(), "site").await;
    let table = [
        (Binary::Agent, "memory.windw", Value::from("1 MiB"), "memory.windw"),
        (Binary::Agent, "memory.window", "many".into(), "memory.window"),
        (Binary::Agent, "link.keep_alive", "40 s".into(), "link.keep_alive"),
        (Binary::Agent, "link.ca", "/nowhere.pem".into(), "link.ca"),
        (Binary::Agent, "source.sasl.mechanisn", "PLAIN".into(), "sasl.mechanisn"),
        (Binary::Agent, "http.listen", "0.0.0.0:8081".into(), "http.listen"),
        (Binary::Agent, "journal.max_bytes", "100 MiB".into(), "journal.max_bytes"),
        (Binary::Gateway, "memory.credit_per_link", "1 KiB".into(), "memory.credit_per_link"),
        (Binary::Gateway, "registry.lease", 3.into(), "registry.lease"),
        (Binary::Gateway, "tls.key", "/nowhere.key".into(), "tls.key"),
        (Binary::Gateway, "cloud.security.protocol", "TELNET".into(), "security.protocol"),
        (Binary::Gateway, "listne", "0.0.0.0:4433".into(), "listne"),
    ];
    for (binary, path, value, key) in table {
        let file = scratch.write("settings.toml", &settings_with(binary, path, value));
        let ended = binary.run(&["run", "--config", &file.display().to_string()]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(64), "{path}: {said}");
        assert!(said.contains(key), "{path}: no {key:?} in {said:?}");
    }
}

/// Good settings, but for one.
fn settings_with(binary: Binary, path: &str, value: Value) -> String {
    let text = match binary {
        Binary::Agent => {
            "[http]\nlisten = \"127.0.0.1:1\"\n[source]\n\"bootstrap.servers\" = \"127.0.0.1:1\"\n[memory]\n\
             [journal]\npath = \"journal\"\n[link]\ngateway = [\"127.0.0.1:1\"]\nca = \"ca.pem\"\ncertificate = \"site.pem\"\nkey = \"site.key\"\n"
        }
        Binary::Gateway => {
            "listen = \"127.0.0.1:1\"\n[http]\nlisten = \"127.0.0.1:1\"\n[cloud]\n\"bootstrap.servers\" = \
             \"127.0.0.1:1\"\n[memory]\n[registry]\n[tls]\ncertificate = \"gateway.pem\"\nkey = \"gateway.key\"\n\
             client_ca = \"ca.pem\"\ndomain = \"example.net\"\n[[link]]\nname = \"site\"\n"
        }
    };
    let mut settings: Table = text.parse().unwrap();
    match path.split_once('.') {
        Some((table, key)) => {
            settings[table].as_table_mut().unwrap().insert(key.to_owned(), value);
        }
        None => {
            settings.insert(path.to_owned(), value);
        }
    }
    settings.to_string()
}
