//! Every refusal names the key, what is wrong and what is allowed.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    link: Link,
    #[serde(default)]
    #[expect(dead_code, reason = "only its errors are tested")]
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    gateway: Vec<std::net::SocketAddr>,
    window: Option<ByteSize>,
    spill: Option<Span>,
    mode: Option<Mode>,
    #[serde(default)]
    kafka: Properties,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[expect(dead_code, reason = "only its type is tested")]
    topic: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Auto,
    Quic,
}

fn link(lines: &str) -> Result<Link, SettingsError> {
    parse::<Raw>(&format!("[link]\ngateway = []\n{lines}\n")).map(|raw| raw.link)
}

/// Key, problem and allowed of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, SettingsError>) -> (String, String, String) {
    match result.unwrap_err() {
        SettingsError::Value { key, problem, allowed, .. } => (key, problem, allowed),
        other @ (SettingsError::Unreadable { .. } | SettingsError::Syntax { .. }) => {
            panic!("not a refused value: {other}")
        }
    }
}

#[test]
fn reads_units_lists_and_names() {
    let link = link("window = \"16 MiB\"\nspill = \"500 ms\"\nmode = \"quic\"").unwrap();
    assert_eq!(link.window, Some(ByteSize::mib(16)));
    assert_eq!(link.spill.map(Span::duration), Some(Duration::from_millis(500)));
    assert_eq!(link.mode, Some(Mode::Quic));
    assert!(link.gateway.is_empty());
}

#[test]
fn names_an_unknown_key_with_the_known_ones() {
    let (key, problem, allowed) = refusal(link("windwo = \"1 MiB\""));
    assert_eq!(key, "link.windwo");
    assert_eq!(problem, "unknown field `windwo` (line 3)");
    assert!(allowed.contains("`window`"), "{allowed}");
}

#[test]
fn names_an_unknown_key_inside_a_list() {
    let (key, problem, _) = refusal(parse::<Raw>(
        "[link]\ngateway = []\n[[mirrors]]\ntopic = \"a\"\n[[mirrors]]\ntopic = \"b\"\ntopics = 1\n",
    ));
    assert_eq!(key, "mirrors[1].topics");
    assert_eq!(problem, "unknown field `topics` (line 7)");
}

#[test]
fn names_a_missing_key() {
    let (key, problem, _) = refusal(parse::<Raw>("[link]\n"));
    assert_eq!((key.as_str(), problem.as_str()), ("link.gateway", "missing"));
    let (key, _, _) = refusal(parse::<Raw>(""));
    assert_eq!(key, "link");
}

#[test]
fn names_the_element_of_a_list() {
    let (key, problem, allowed) = refusal(parse::<Raw>("[link]\ngateway = [\"127.0.0.1:1\", \"host\"]\n"));
    assert_eq!(key, "link.gateway[1]");
    assert!(problem.contains("invalid socket address"), "{problem}");
    assert!(!allowed.is_empty());
}

#[test]
fn names_a_value_of_the_wrong_type() {
    let (key, problem, allowed) = refusal(parse::<Raw>("[link]\ngateway = 5\n"));
    assert_eq!(key, "link.gateway");
    assert_eq!(problem, "invalid type: integer `5` (line 2)");
    assert_eq!(allowed, "a sequence");
}

#[test]
fn names_the_variants_of_a_choice() {
    let (key, problem, allowed) = refusal(link("mode = \"tcp\""));
    assert_eq!(key, "link.mode");
    assert_eq!(problem, "unknown variant `tcp` (line 3)");
    assert_eq!(allowed, "`auto` or `quic`");
}

#[test]
fn refuses_a_bare_number_as_size_or_time() {
    for (line, key) in [("window = 16777216", "link.window"), ("spill = 2", "link.spill")] {
        let (at, problem, allowed) = refusal(link(line));
        assert_eq!(at, key);
        assert!(problem.starts_with("invalid type: integer"), "{problem}");
        assert!(allowed.contains("with a unit"), "{allowed}");
    }
}

#[test]
fn refuses_a_size_without_a_known_unit() {
    for text in ["16", "16 mib", "MiB", "-1 MiB", "1.5 MiB", "99999999999 GiB", ""] {
        let (key, problem, allowed) = refusal(link(&format!("window = \"{text}\"")));
        assert_eq!(key, "link.window", "{text}");
        assert_eq!(problem, format!("invalid value: string {text:?} (line 3)"));
        assert!(allowed.contains("\"16 MiB\""), "{allowed}");
    }
}

#[test]
fn sizes_and_times_print_as_they_are_read() {
    for text in ["16 MiB", "512 KiB", "100 B", "1 GiB", "1025 B", "0 B"] {
        assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
    }
    assert_eq!("5 MB".parse::<ByteSize>(), Ok(ByteSize::bytes(5_000_000)));
    assert_eq!("512KiB".parse::<ByteSize>(), Ok(ByteSize::kib(512)));
    for text in ["2s", "500ms", "1m 30s"] {
        assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
    }
    assert_eq!("2 s".parse::<Span>(), Ok(Span::from_secs(2)));
    assert_eq!("1 min".parse::<Span>(), Ok(Span::from_secs(60)));
    assert_eq!("soon".parse::<Span>(), Err(UnitError::Span));
}

#[test]
fn says_where_the_text_is_no_toml() {
    let error = parse::<Raw>("[link]\ngateway = [\n").unwrap_err().in_file(Path::new("/etc/a.toml"));
    let text = error.to_string();
    assert!(text.starts_with("/etc/a.toml: line "), "{text}");
    assert!(text.contains("not TOML"), "{text}");
    assert_eq!(error.key(), None);
}

#[test]
fn names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let text = load::<Raw>(&path).unwrap_err().to_string();
    assert!(text.contains("agent.toml: cannot be read: No such file"), "{text}");

    std::fs::write(&path, "[link]\ngateway = []\nmode = \"x\"\n").unwrap();
    let text = load::<Raw>(&path).unwrap_err().to_string();
    assert!(text.contains("agent.toml: link.mode: unknown variant"), "{text}");

    std::fs::write(&path, "[link]\ngateway = [\"127.0.0.1:1\"]\n").unwrap();
    assert_eq!(load::<Raw>(&path).unwrap().link.gateway.len(), 1);
}

#[test]
fn refuses_an_endless_file() {
    let text = load::<Raw>("/dev/zero").unwrap_err().to_string();
    assert!(text.contains("longer than 4194304 bytes"), "{text}");
}

#[test]
fn checked_phase_names_the_key_from_the_outside_in() {
    let error = SettingsError::new("window", "0 B", "at least 1 MiB").under("link");
    assert_eq!(error.key(), Some("link.window"));
    assert_eq!(error.to_string(), "link.window: 0 B; allowed: at least 1 MiB");
    let error = SettingsError::new("[0]", "twice", "once").under("mirrors");
    assert_eq!(error.key(), Some("mirrors[0]"));
}

#[test]
fn properties_take_text_numbers_and_booleans_quoted_or_not() {
    let link = link(
        "[link.kafka]\n\"bootstrap.servers\" = \"a:1,b:2\"\nssl.ca.location = \"/ca\"\nssl.key.location = \"/key\"\n\
         \"socket.timeout.ms\" = 5000\n\"enable.ssl.certificate.verification\" = true\n",
    )
    .unwrap();
    let expected = [
        ("bootstrap.servers", "a:1,b:2"),
        ("enable.ssl.certificate.verification", "true"),
        ("socket.timeout.ms", "5000"),
        ("ssl.ca.location", "/ca"),
        ("ssl.key.location", "/key"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(link.kafka.resolve("link.kafka").unwrap(), expected);
}

#[test]
fn properties_refuse_lists_and_repeated_names() {
    let (key, problem, allowed) = refusal(link("[link.kafka]\nacks = [1]\n"));
    assert!(key.starts_with("link.kafka"), "{key}");
    assert!(problem.contains("sequence"), "{problem}");
    assert!(allowed.contains("a whole number"), "{allowed}");

    let (key, problem, allowed) = refusal(link("[link.kafka]\n\"a.b\" = 1\na.b = 2\n"));
    assert_eq!(key, "link.kafka");
    assert!(problem.starts_with("a.b is set twice"), "{problem}");
    assert_eq!(allowed, "each property once");
}

#[test]
fn properties_read_secrets_from_files_in_each_spelling() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "s3cret\n").unwrap();
    for spelling in
        ["sasl.password.file = PATH", "\"sasl.password.file\" = PATH", "\"sasl.password\" = { file = PATH }"]
    {
        let line = spelling.replace("PATH", &format!("{path:?}"));
        let kafka = link(&format!("[link.kafka]\n{line}\n")).unwrap().kafka;
        assert!(!format!("{kafka:?}").contains("s3cret"));
        let pairs = kafka.resolve("link.kafka").unwrap();
        assert_eq!(pairs, [("sasl.password".to_owned(), "s3cret".to_owned())], "{spelling}");
    }
}

#[test]
fn properties_name_the_key_of_a_secret_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let name = path.display().to_string();
    let kafka: Properties = [("sasl.password.file", name.as_str())].into_iter().collect();
    let (key, problem, _) = refusal(kafka.resolve("source"));
    assert_eq!(key, "source.sasl.password.file");
    assert!(problem.contains("No such file"), "{problem}");

    std::fs::write(&path, "\n").unwrap();
    let (_, problem, _) = refusal(kafka.resolve("source"));
    assert!(problem.ends_with("is empty"), "{problem}");

    let kafka: Properties = [("sasl.password.file", name.as_str()), ("sasl.password", "x")].into_iter().collect();
    let (_, problem, _) = refusal(kafka.resolve("source"));
    assert_eq!(problem, "sasl.password is set as well");
}

#[test]
fn properties_never_print_secrets() {
    let kafka: Properties = [
        ("sasl.password", "hush1"),
        ("ssl.key.password", "hush2"),
        ("ssl.key.pem", "hush3"),
        ("sasl.username", "anna"),
    ]
    .into_iter()
    .collect();
    let text = format!("{kafka:?}");
    assert!(!text.contains("hush"), "{text}");
    assert!(text.contains("anna"), "{text}");
}
