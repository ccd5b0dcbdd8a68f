//! What the settings promise: defaults that are documented, errors that name the key.

use super::*;

const LEAST: &str = r#"
listen = "127.0.0.1:4433"
[tls]
certificate = "gateway.pem"
key = "/etc/tombolo/gateway.key"
client_ca = "ca.pem"
domain = "example.net"
[cloud]
"bootstrap.servers" = "127.0.0.1:9092"
"#;

fn parse(more: &str) -> Result<Settings, SettingsError> {
    Settings::parse(&format!("{LEAST}{more}"), Path::new("/srv"))
}

fn refused(more: &str) -> (String, String) {
    let error = parse(more).expect_err("refused");
    (error.key().unwrap_or_default().to_owned(), error.to_string())
}

#[test]
fn defaults_fill_what_is_not_set() {
    let settings = parse("").unwrap();
    assert_eq!(settings.registry.topic.as_str(), "_tombolo");
    assert_eq!(settings.registry.lease, Duration::from_secs(3));
    assert_eq!(settings.registry.replication_factor, None);
    assert_eq!(settings.memory.credit_per_link, 8 << 20);
    assert_eq!(settings.http.listen.port(), 8082);
    assert!(settings.links.is_empty());
    assert_eq!(settings.tls.certificate, Path::new("/srv/gateway.pem"));
    assert_eq!(settings.tls.key, Path::new("/etc/tombolo/gateway.key"));
}

#[test]
fn the_example_file_is_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway.toml");
    let example = Settings::load(&file).unwrap();
    let defaults = parse("").unwrap();
    assert_eq!(example.registry, defaults.registry);
    assert_eq!(example.memory, defaults.memory);
    assert_eq!(example.quic, defaults.quic);
    assert_eq!(example.produce, defaults.produce);
    assert_eq!(example.retention, defaults.retention);
    assert_eq!(example.http, defaults.http);
    assert_eq!(example.log, defaults.log);
    let link = &example.links[&LinkName::new("ship-17").unwrap()];
    assert_eq!(link.mirrors[0].topic, link.mirrors[0].source);
    assert_eq!(link.filters, []);
    assert_eq!((link.max_gap, link.on_loss), (10_000_000, OnLoss::Halt));
    assert_eq!((link.mirrors[0].max_gap, link.mirrors[0].on_loss), (link.max_gap, link.on_loss));
    assert_eq!((link.log_start, link.mirrors[0].log_start), (LogStart::Keep, LogStart::Keep));
}

#[test]
fn a_mirror_has_what_its_link_has_unless_it_says_otherwise() {
    let link = "[[link]]\nname = \"a\"\nmax_gap_offsets = 5\non_loss = \"skip\"\n[[link.mirror]]\ntopic = \"t\"\n";
    let settings = parse(&format!("{link}[[link.mirror]]\ntopic = \"u\"\nmax_gap_offsets = 0\non_loss = \"halt\"\n"));
    let settings = settings.unwrap();
    let mirrors = &settings.links[&LinkName::new("a").unwrap()].mirrors;
    assert_eq!((mirrors[0].max_gap, mirrors[0].on_loss), (5, OnLoss::Skip));
    assert_eq!((mirrors[1].max_gap, mirrors[1].on_loss), (0, OnLoss::Halt));
    assert_eq!(refused(&format!("{link}max_gap_offsets = -2\n")).0, "link[0].mirror[0].max_gap_offsets");
    assert_eq!(refused(&format!("{link}on_loss = \"drop\"\n")).0, "link[0].mirror[0].on_loss");
    let link = "[[link]]\nname = \"a\"\nlog_start = \"follow\"\n[[link.mirror]]\ntopic = \"t\"\n";
    let settings = parse(&format!("{link}[[link.mirror]]\ntopic = \"u\"\nlog_start = \"keep\"\n")).unwrap();
    let mirrors = &settings.links[&LinkName::new("a").unwrap()].mirrors;
    assert_eq!((mirrors[0].log_start, mirrors[1].log_start), (LogStart::Follow, LogStart::Keep));
    assert_eq!(refused(&format!("{link}log_start = \"drop\"\n")).0, "link[0].mirror[0].log_start");
}

#[test]
fn unknown_keys_are_named() {
    assert_eq!(refused("[memory]\ncredit = \"1 MiB\"\n").0, "memory.credit");
    assert_eq!(refused("[[link]]\nname = \"a\"\n[[link.mirror]]\ntopics = \"x\"\n").0, "link[0].mirror[0].topics");
    assert_eq!(refused("[cloud2]\n").0, "cloud2");
}

#[test]
fn values_out_of_range_are_named() {
    for (more, key) in [
        ("[registry]\nlease = \"0 s\"\n", "registry.lease"),
        ("[registry]\nreplication_factor = 0\n", "registry.replication_factor"),
        ("[memory]\nmax_frame = \"1 KiB\"\n", "memory.max_frame"),
        ("[memory]\ncredit_per_link = \"3 MiB\"\n", "memory.credit_per_link"),
        ("[memory]\ncredit_total = \"4 MiB\"\n", "memory.credit_total"),
        ("[memory]\nlimit = \"183 MiB\"\n", "memory.limit"),
        ("[quic]\nreceive_buffer = \"1 KiB\"\n", "quic.receive_buffer"),
        ("[quic]\nmax_connections = 300\n", "memory.limit"),
        ("[quic]\nkeep_alive = \"20 s\"\n", "quic.keep_alive"),
        ("[quic]\nmax_connections = 0\n", "quic.max_connections"),
        ("[quic]\ncongestion = \"reno\"\n", "quic.congestion"),
        ("[produce]\nconnections_per_broker = 0\n", "produce.connections_per_broker"),
        ("[produce]\nrequest_bytes = \"1 B\"\n", "produce.request_bytes"),
        ("[retention]\ngrace = \"0 s\"\n", "retention.grace"),
        ("[[link]]\nname = \"a\"\nmax_gap_offsets = -1\n", "link[0].max_gap_offsets"),
        ("[http]\nlisten = \"0.0.0.0:80\"\n", "http.listen"),
        ("[log]\nlevel = \"a=loud\"\n", "log.level"),
        ("[[link]]\nname = \"a/b\"\n", "link[0].name"),
    ] {
        let (found, text) = refused(more);
        assert_eq!(found, key, "{text}");
        assert!(text.contains("allowed: "), "{text}");
    }
}

#[test]
fn cluster_properties_are_named() {
    let (key, text) = refused("\"ssl.ca.loction\" = \"ca.pem\"\n");
    assert_eq!(key, "cloud.ssl.ca.loction", "{text}");
}

#[test]
fn no_topic_is_written_twice() {
    let two = "[[link]]\nname = \"a\"\n[[link.mirror]]\ntopic = \"t\"\n\
               [[link]]\nname = \"b\"\n[[link.mirror]]\ntopic = \"t\"\n";
    assert_eq!(refused(two).0, "link[1].mirror[0].mirror_topic");
    let registry = "[[link]]\nname = \"a\"\n[[link.mirror]]\ntopic = \"_tombolo\"\n";
    assert_eq!(refused(registry).0, "link[0].mirror[0].mirror_topic");
    let twice = "[[link]]\nname = \"a\"\n[[link]]\nname = \"a\"\n";
    assert_eq!(refused(twice).0, "link[1].name");
    let renamed =
        two.replacen("name = \"b\"\n[[link.mirror]]\n", "name = \"b\"\n[[link.mirror]]\nmirror_topic = \"u\"\n", 1);
    assert_eq!(parse(&renamed).unwrap().links.len(), 2);
}

#[test]
fn filters_are_patterns_of_one_link() {
    let two = |one: &str, other: &str| {
        format!("[[link]]\nname = \"a\"\ntopics = [{one}]\n[[link]]\nname = \"b\"\ntopics = [{other}]\n")
    };
    let settings = parse(&two(r#""orders.*", "alarms""#, r#""orders""#)).unwrap();
    let link = &settings.links[&LinkName::new("a").unwrap()];
    assert_eq!(link.filters.iter().map(ToString::to_string).collect::<Vec<_>>(), ["orders.*", "alarms"]);
    assert!(link.reserved.contains(&TopicName::new("_tombolo").unwrap()));
    for (one, other) in
        [(r#""a""#, r#""a""#), (r#""ab*""#, r#""x", "a*""#), (r#""a*""#, r#""x", "ab""#), (r#""ab""#, r#""x", "*""#)]
    {
        let at = usize::from(other.contains(','));
        assert_eq!(refused(&two(one, other)).0, format!("link[1].topics[{at}]"), "{one} {other}");
    }
    let (key, text) = refused("[[link]]\nname = \"a\"\ntopics = [\"a*b\"]\n");
    assert!(key == "link[0].topics[0]" && text.contains("followed by *"), "{text}");
    let many = vec!["\"t\""; MAX_FILTERS + 1].join(",");
    assert_eq!(refused(&format!("[[link]]\nname = \"a\"\ntopics = [{many}]\n")).0, "link[0].topics[1000]");
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let old = parse("[[link]]\nname = \"a\"\n[[link.mirror]]\ntopic = \"t\"\n").unwrap();
    let paused = parse("[[link]]\nname = \"a\"\n[[link.mirror]]\ntopic = \"t\"\npaused = true\n").unwrap();
    assert_eq!(paused.need_restart(&old), Vec::<String>::new());
    let moved = parse(
        "[quic]\nmax_connections = 9\n[[link]]\nname = \"a\"\n[[link.mirror]]\ntopic = \"t\"\nmirror_topic = \"u\"\n",
    );
    assert_eq!(moved.unwrap().need_restart(&old), ["quic", "link a mirror t mirror_topic"]);
    let skips = parse("[[link]]\nname = \"a\"\nskip = \"transactions\"\n[[link.mirror]]\ntopic = \"t\"\n").unwrap();
    assert_eq!(skips.need_restart(&old), ["link a skip"]);
    assert!(skips.by_transactions.contains(&LinkName::new("a").unwrap()) && old.by_transactions.is_empty());
}
