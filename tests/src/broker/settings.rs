//! Settings of the brokers, and of clients that want to reach them.

use rdkafka::ClientConfig;

use super::certificates::Certificates;
use super::cluster::{ClusterSpec, Listener, Mechanism, PASSWORD, USER};
use super::node::Ports;

/// An id of the form that `StorageTool random-uuid` gives: no two clusters share one.
pub(super) fn cluster_id() -> String {
    // 22 characters of base 64 hold 16 bytes and four spare bits, which must be zero: "A" as the last one.
    let letters = (0..21).map(|_| char::from(rand::random_range(b'A'..=b'Z')));
    letters.chain(['A']).collect()
}

/// Users for `StorageTool format --add-scram`.
pub(super) fn scram_users(listener: Listener) -> Vec<String> {
    match listener {
        Listener::Plaintext | Listener::Ssl => Vec::new(),
        Listener::SaslSsl => [Mechanism::ScramSha256, Mechanism::ScramSha512]
            .map(|mechanism| format!("{}=[name={USER},password={PASSWORD}]", mechanism.name()))
            .to_vec(),
    }
}

/// The settings of the broker with this id. A later line wins over an earlier one: the spec's come last.
pub(super) fn broker(
    spec: &ClusterSpec,
    id: i32,
    ports: &[Ports],
    certificates: Option<&Certificates>,
) -> Vec<(String, String)> {
    let own = (1..).zip(ports).find(|(other, _)| *other == id).map(|(_, ports)| *ports).expect("ids count from 1");
    let voters: Vec<String> =
        (1..).zip(ports).map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controller)).collect();
    let protocol = protocol(spec.listener);
    let replicas = spec.brokers.to_string();
    let in_sync = if spec.brokers == 1 { "1" } else { "2" };
    let client = format!("CLIENT://127.0.0.1:{},INTERNAL://127.0.0.1:{}", own.client, own.internal);

    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| settings.push((key.to_owned(), value.to_owned()));
    set("process.roles", "broker,controller");
    set("node.id", &id.to_string());
    set("controller.quorum.voters", &voters.join(","));
    set("listeners", &format!("{client},CONTROLLER://127.0.0.1:{}", own.controller));
    set("advertised.listeners", &client);
    set("listener.security.protocol.map", &format!("CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"));
    set("inter.broker.listener.name", "INTERNAL");
    set("controller.listener.names", "CONTROLLER");

    set("default.replication.factor", &replicas);
    set("min.insync.replicas", in_sync);
    for topic in ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"] {
        set(&format!("{topic}.replication.factor"), &replicas);
        set(&format!("{topic}.num.partitions"), "1");
    }
    for topic in ["transaction.state.log", "share.coordinator.state.topic"] {
        set(&format!("{topic}.min.isr"), in_sync);
    }

    // A dead broker is noticed soon, a starved one is not taken for dead.
    set("broker.session.timeout.ms", "6000");
    set("broker.heartbeat.interval.ms", "500");
    for (key, value) in common() {
        set(key, value);
    }

    if let Some(certificates) = certificates {
        for (key, value) in security(spec.listener, certificates) {
            set(&key, &value);
        }
    }
    settings.extend(spec.settings.iter().cloned());
    settings
}

/// Of brokers of every release.
pub(super) fn common() -> [(&'static str, &'static str); 7] {
    [
        // Tests create what they need, and write records with old timestamps that must not be deleted by their age.
        ("auto.create.topics.enable", "false"),
        ("log.retention.ms", "-1"),
        ("group.initial.rebalance.delay.ms", "0"),
        // Small machine, many brokers.
        ("num.network.threads", "2"),
        ("num.io.threads", "4"),
        ("background.threads", "2"),
        ("log.cleaner.dedupe.buffer.size", "8388608"),
    ]
}

fn security(listener: Listener, certificates: &Certificates) -> Vec<(String, String)> {
    let mut settings = vec![
        ("ssl.keystore.type".to_owned(), "PEM".to_owned()),
        ("ssl.keystore.location".to_owned(), certificates.broker_key_store.display().to_string()),
        ("ssl.truststore.type".to_owned(), "PEM".to_owned()),
        ("ssl.truststore.location".to_owned(), certificates.ca.display().to_string()),
    ];
    match listener {
        Listener::Plaintext => {}
        Listener::Ssl => settings.push(("ssl.client.auth".to_owned(), "required".to_owned())),
        Listener::SaslSsl => {
            let mechanisms = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512].map(Mechanism::name);
            settings.push(("sasl.enabled.mechanisms".to_owned(), mechanisms.join(",")));
            let package = "org.apache.kafka.common.security";
            for mechanism in mechanisms {
                let module = match mechanism {
                    "PLAIN" => format!("{package}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"),
                    _ => format!("{package}.scram.ScramLoginModule required;"),
                };
                let key = format!("listener.name.client.{}.sasl.jaas.config", mechanism.to_lowercase());
                settings.push((key, module));
            }
        }
    }
    settings
}

/// What a client needs, under librdkafka's property names.
pub(super) fn properties(
    bootstrap: &str,
    listener: Listener,
    certificates: Option<&Certificates>,
    mechanism: Mechanism,
) -> Vec<(String, String)> {
    let mut properties = vec![
        ("bootstrap.servers".to_owned(), bootstrap.to_owned()),
        ("security.protocol".to_owned(), protocol(listener).to_lowercase()),
    ];
    let mut set = |key: &str, value: String| properties.push((key.to_owned(), value));
    if let Some(certificates) = certificates {
        set("ssl.ca.location", certificates.ca.display().to_string());
        match listener {
            Listener::Plaintext => {}
            Listener::Ssl => {
                set("ssl.certificate.location", certificates.client_certificate.display().to_string());
                set("ssl.key.location", certificates.client_key.display().to_string());
            }
            Listener::SaslSsl => {
                set("sasl.mechanism", mechanism.name().to_owned());
                set("sasl.username", USER.to_owned());
                set("sasl.password", PASSWORD.to_owned());
            }
        }
    }
    properties
}

/// The same for rdkafka, with quick reconnects: brokers come and go here.
pub(super) fn client_config(
    bootstrap: &str,
    listener: Listener,
    certificates: Option<&Certificates>,
    mechanism: Mechanism,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.extend(properties(bootstrap, listener, certificates, mechanism));
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
    config
}

fn protocol(listener: Listener) -> &'static str {
    match listener {
        Listener::Plaintext => "PLAINTEXT",
        Listener::Ssl => "SSL",
        Listener::SaslSsl => "SASL_SSL",
    }
}
