//! What settings are refused, by which key, and that the example file shows them all.

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/agent.toml");

/// Settings whose `[link]` files exist.
fn text(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "[link]\ngateway = [\"127.0.0.1:4433\"]\nca = \"{folder}/ca.pem\"\ncertificate = \"{folder}/link.pem\"\n\
         key = \"{folder}/link.key\"\n[source]\n\"bootstrap.servers\" = \"127.0.0.1:9092\"\n[journal]\npath = \"journal\"\n{more}"
    )
}

fn certificates() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["gw.example.net".to_owned()]).unwrap();
    for name in ["ca.pem", "link.pem"] {
        std::fs::write(folder.path().join(name), made.cert.pem()).unwrap();
    }
    std::fs::write(folder.path().join("link.key"), made.signing_key.serialize_pem()).unwrap();
    folder
}

fn refused_key(text: &str) -> String {
    let error = Settings::parse(text).unwrap_err();
    error.key().unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn the_example_shows_every_setting() {
    let missing = tombolo_service::settings::undocumented_keys::<RawConfig>(EXAMPLE).unwrap();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_example_shows_the_defaults() {
    let set: String =
        EXAMPLE.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).fold(String::new(), |all, line| {
            let is_setting = line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
            if is_setting { all + line + "\n" } else { all }
        });
    let (all, plain): (RawConfig, RawConfig) = (parse(&set).unwrap(), parse(EXAMPLE).unwrap());
    // The one setting whose default is not a value.
    let shown = format!("{all:?}").replace("server_name: Some(\"gw.example.net\")", "server_name: None");
    assert_eq!(shown, format!("{plain:?}"));
    assert!(format!("{all:?}").contains("server_name: Some"));
}

#[test]
fn a_whole_file_is_taken() {
    let folder = certificates();
    let path = folder.path().join("agent.toml");
    let relative = text(folder.path(), "").replace(&format!("{}/", folder.path().display()), "");
    std::fs::write(&path, relative).unwrap();
    let settings = Settings::load(&path).unwrap();
    assert_eq!(settings.memory.window, 16 << 20);
    assert_eq!(settings.journal.path, folder.path().join("journal"));
    assert_eq!((settings.journal.max_bytes, settings.journal.segment_bytes), (8 << 30, 256 << 20));
    assert_eq!(settings.discovery_interval, Duration::from_secs(10));
    assert_eq!(settings.link.gateways().collect::<Vec<_>>(), ["127.0.0.1:4433"]);
    assert_eq!(http_of(&path).unwrap().listen.port(), 8081);
}

#[test]
fn each_bad_value_is_named_by_its_key() {
    let folder = certificates();
    let table = [
        ("[memory]\nwindow = \"1 MiB\"", "memory.window"),
        ("[memory]\nwindow = \"64 MiB\"", "memory.limit"),
        ("[memory]\nlimit = \"32 MiB\"", "memory.limit"),
        ("[memory]\nmax_frame = \"1 KiB\"", "memory.max_frame"),
        ("[memory]\nmax_frame = \"1 GiB\"", "memory.max_frame"),
        ("[memory]\nfetch = \"1 KiB\"", "memory.fetch"),
        ("[memory]\nfetch = \"64 KiB\"\nfetch_partition = \"65 KiB\"", "memory.fetch_partition"),
        ("[memory]\nwindow = 5", "memory.window"),
        ("[discovery]\ninterval = \"1 ms\"", "discovery.interval"),
        ("[topics]\ndeny = [\"a*b\"]", "topics.deny[0]"),
        ("[http]\nlisten = \"0.0.0.0:80\"", "http.listen"),
        ("[log]\nlevel = \"tombolo=loud\"", "log.level"),
        ("segment = \"1 MiB\"", "journal.segment"),
        ("max_bytes = \"300 MiB\"", "journal.max_bytes"),
        ("spill_delay = \"1 ms\"", "journal.spill_delay"),
        ("size = 1", "journal.size"),
        ("[disk]\nsize = 1", "disk"),
    ];
    for (more, key) in table {
        assert_eq!(refused_key(&text(folder.path(), more)), key, "{more}");
    }
}

#[test]
fn many_source_brokers_share_what_the_limit_leaves() {
    let folder = certificates();
    let memory = Settings::parse(&text(folder.path(), "[memory]\nlimit = \"54 MiB\"")).unwrap().memory;
    // 54 - 16 (window) - 4 (frames) - 2 (send window) - 24 (the rest) MiB.
    assert_eq!((memory.limit, memory.fetches), (54 << 20, 8 << 20));
    assert_eq!(
        [1, 4, 8, 64, 100_000].map(|brokers| memory.fetch_of(brokers)),
        [1 << 20, 1 << 20, 512 << 10, 64 << 10, 16 << 10]
    );
}

#[test]
fn the_source_is_the_clients_to_check() {
    let folder = certificates();
    let with = |more: &str| text(folder.path(), "").replace("[journal]", &format!("{more}\n[journal]"));
    assert_eq!(refused_key(&with("\"group.id\" = \"x\"")), "source.group.id");
    assert_eq!(refused_key(&with("\"security.protocol\" = \"tls\"")), "source.security.protocol");
    let without = text(folder.path(), "").replace("\"bootstrap.servers\" = \"127.0.0.1:9092\"\n", "");
    assert_eq!(refused_key(&without), "source.bootstrap.servers");
}
