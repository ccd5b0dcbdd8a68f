//! Properties that are taken, and what the others are told.

use std::fs;
use std::path::Path;

use super::*;

const SERVERS: (&str, &str) = ("bootstrap.servers", "a:1, b");

fn set(more: &[(&str, &str)]) -> Result<ClientSettings, SettingsError> {
    ClientSettings::from_properties([SERVERS].iter().chain(more).copied())
}

fn refused(more: &[(&str, &str)]) -> SettingsError {
    set(more).expect_err("these properties should be refused")
}

#[test]
fn defaults_are_those_of_librdkafka() {
    let settings = set(&[]).unwrap();
    assert_eq!(settings.bootstrap[..], [("a".to_owned(), 1), ("b".to_owned(), 9092)]);
    assert_eq!((settings.socket_timeout, settings.setup_timeout), (Duration::from_mins(1), Duration::from_secs(30)));
    assert_eq!((settings.metadata_max_age, settings.max_answer_bytes), (Duration::from_mins(15), 100_000_000));
    assert!(settings.tls.is_none() && settings.sasl.is_none() && settings.tcp_user_timeout.is_none());
    let settings = settings.with_tcp_user_timeout(Duration::from_secs(2));
    assert_eq!(settings.tcp_user_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn addresses_are_read() {
    let good = [
        ("h:9", ("h", 9)),
        ("h", ("h", 9092)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:99", ("::1", 99)),
        ("[::1]", ("::1", 9092)),
    ];
    for (text, (host, port)) in good {
        assert_eq!(address(text), Some((host.to_owned(), port)), "{text}");
    }
    for text in ["", ":9", "h:", "h:0", "h:65536", "h:x", "[::1", "[::1]9", "PLAINTEXT://h:9", "a b:9"] {
        assert_eq!(address(text), None, "{text}");
    }
}

#[test]
fn every_supported_property_is_taken() {
    let settings = set(&[
        ("client.id", "ship"),
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanisms", "scram-sha-512"),
        ("sasl.username", "u"),
        ("sasl.password", "p"),
        ("socket.timeout.ms", "5000"),
        ("socket.connection.setup.timeout.ms", "4000"),
        ("socket.keepalive.enable", "false"),
        ("metadata.max.age.ms", "3000"),
        ("receive.message.max.bytes", "2000"),
    ])
    .unwrap();
    let sasl = settings.sasl.unwrap();
    assert_eq!((&*settings.client_id, sasl.mechanism, &*sasl.username), ("ship", Mechanism::ScramSha512, "u"));
    assert_eq!(sasl.password.expose(), "p");
    assert_eq!((settings.socket_timeout.as_secs(), settings.setup_timeout.as_secs()), (5, 4));
    assert_eq!((settings.metadata_max_age.as_secs(), settings.max_answer_bytes, settings.keepalive), (3, 2000, false));
}

#[test]
fn bad_properties_are_named_with_what_is_allowed() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let login: &[(&str, &str)] = &[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN")];
    let cases: &[Case<'_>] = &[
        (&[("bootstap.servers", "x")], "bootstap.servers", "unknown property"),
        (&[("linger.ms", "5")], "linger.ms", "not supported here"),
        (&[("sasl.oauthbearer.config", "x")], "sasl.oauthbearer.config", "not supported here"),
        (&[("ssl.key.password", "x")], "ssl.key.password", "not supported here"),
        (&[("security.protocol", "tls")], "security.protocol", "no protocol"),
        (&[("sasl.username", "u")], "sasl.username", "has no login"),
        (&[("ssl.ca.location", "/x")], "ssl.ca.location", "has no TLS"),
        (&[("security.protocol", "sasl_plaintext")], "sasl.mechanism", "is missing"),
        (login, "sasl.username", "is missing"),
        (&[login[0], ("sasl.mechanism", "GSSAPI")], "sasl.mechanism", "is not supported"),
        (&[login[0], login[1], ("sasl.mechanisms", "SCRAM-SHA-256")], "sasl.mechanism", "something else"),
        (&[login[0], login[1], ("sasl.username", "u"), ("sasl.password", "")], "sasl.password", "is empty"),
        (&[("socket.timeout.ms", "1")], "socket.timeout.ms", "out of range"),
        (&[("socket.timeout.ms", "1s")], "socket.timeout.ms", "no whole number"),
        (&[("socket.keepalive.enable", "yes")], "socket.keepalive.enable", "neither"),
        (&[SERVERS], "bootstrap.servers", "twice"),
        (&[("security.protocol", "ssl"), ("ssl.ca.location", "/none")], "ssl.ca.location", "cannot be read"),
        (
            &[("security.protocol", "ssl"), ("ssl.endpoint.identification.algorithm", "dns")],
            "ssl.endpoint.identification.algorithm",
            "not supported",
        ),
    ];
    for (properties, property, problem) in cases {
        let error = refused(properties);
        assert_eq!(error.property, *property, "{error}");
        assert!(error.problem.contains(problem), "{error}");
        assert!(!error.allowed.is_empty());
    }
    let missing = ClientSettings::from_properties([]).unwrap_err();
    assert_eq!((missing.property.as_str(), missing.problem.as_str()), ("bootstrap.servers", "is missing"));
    assert!(librdkafka::UNSUPPORTED.is_sorted(), "it is searched by halves");
}

#[test]
fn secrets_are_not_printed() {
    let login = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "u"),
        ("sasl.password", "hunter2"),
    ];
    let shown = format!("{:?}", set(&login).unwrap());
    assert!(!shown.contains("hunter2") && shown.contains("[hidden]"), "{shown}");
}

fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn tls_files_are_read_and_checked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let one = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
    let certificate = &*write(folder.path(), "one.pem", &one.cert.pem());
    let key = &*write(folder.path(), "one.key", &one.signing_key.serialize_pem());
    let other_key = &*write(folder.path(), "other.key", &other.signing_key.serialize_pem());
    let empty = &*write(folder.path(), "empty.pem", "");
    let ssl = ("security.protocol", "ssl");
    let ca = ("ssl.ca.location", certificate);
    let good = set(&[ssl, ca, ("ssl.certificate.location", certificate), ("ssl.key.location", key)]).unwrap();
    assert!(good.tls.unwrap().config().client_auth_cert_resolver.has_certs());
    assert!(set(&[ssl, ca, ("ssl.endpoint.identification.algorithm", "none")]).is_ok());
    assert!(set(&[ssl, ("enable.ssl.certificate.verification", "false")]).is_ok());

    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[ca, ("ssl.certificate.location", certificate)], "ssl.key.location"),
        (&[ca, ("ssl.key.location", key)], "ssl.certificate.location"),
        (&[ca, ("ssl.certificate.location", certificate), ("ssl.key.location", other_key)], "ssl.key.location"),
        (&[ca, ("ssl.certificate.location", certificate), ("ssl.key.location", certificate)], "ssl.key.location"),
        (&[("ssl.ca.location", empty)], "ssl.ca.location"),
        (&[ca, ("enable.ssl.certificate.verification", "false")], "ssl.ca.location"),
    ];
    for (properties, property) in cases {
        let mut all = vec![ssl];
        all.extend_from_slice(properties);
        assert_eq!(refused(&all).property, *property);
    }
}
