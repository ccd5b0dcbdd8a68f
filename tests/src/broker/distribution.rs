//! Kafka's jars, brought from Maven once and kept in a cache folder.
//!
//! `TOMBOLO_CACHE` names the cache (else `~/.cache/tombolo`), `TOMBOLO_KAFKA_VERSION` another Kafka than the one that
//! `tests/kafka/pom.xml` pins; it pins an old one too. Test processes that run at once take turns at a file lock, and a
//! folder appears under its name only when it is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::LazyLock;
use std::{env, io};

const POM: &str = include_str!("../../kafka/pom.xml");

/// Where one version of Kafka lies.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    folder: PathBuf,
    artifact: &'static str,
    version: String,
}

/// The lock of the cache, held until dropped.
#[derive(Debug)]
pub(super) struct CacheLock {
    _file: File,
}

impl Distribution {
    /// The Kafka under test. Blocks the first time: seconds when it is in the cache, a minute when it is not. Where it cannot
    /// be had, the first test says why and the others fail at once.
    pub(crate) fn current() -> &'static Self {
        static CURRENT: LazyLock<Distribution> =
            LazyLock::new(|| Distribution::find("kafka", "kafka_2.13", current_version()));
        &CURRENT
    }

    /// A release that keeps messages of formats v0 and v1. Blocks as [`Distribution::current`] does.
    pub(super) fn old() -> &'static Self {
        static OLD: LazyLock<Distribution> =
            LazyLock::new(|| Distribution::find("kafka", "kafka_2.13", pinned("old.kafka.version").to_owned()));
        &OLD
    }

    /// `MirrorMaker` 2 of the current version. Blocks as [`Distribution::current`] does.
    pub(crate) fn mirror_maker() -> &'static Self {
        static MIRROR_MAKER: LazyLock<Distribution> =
            LazyLock::new(|| Distribution::find("mirror-maker", "connect-mirror", current_version()));
        &MIRROR_MAKER
    }

    /// The Kafka version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Panics where `java` cannot run a source file.
    pub(crate) fn require_compiler() {
        require("javac", "-version");
    }

    /// Finds the jars of an artifact in the cache or brings them.
    fn find(name: &str, artifact: &'static str, version: String) -> Self {
        let cache = cache_folder();
        fs::create_dir_all(&cache)
            .unwrap_or_else(|error| panic!("cannot make the cache folder {}: {error}", cache.display()));
        let found = Self { folder: cache.join(format!("{name}-{version}")), artifact, version };
        if !found.folder.exists() {
            let _lock = found.lock();
            if !found.folder.exists() {
                found.bring(&cache);
            }
        }
        require("java", "-version");
        found
    }

    /// The class path: every jar, in one order for all processes (a class data archive is only good for the order
    /// that it was made with).
    pub(crate) fn class_path(&self) -> String {
        let folder = self.folder.join("libs");
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
        let mut jars: Vec<String> = entries.flatten().map(|entry| entry.path().display().to_string()).collect();
        jars.sort();
        jars.join(":")
    }

    /// The archive of parsed classes, which halves the start of a broker. Made by the first start, see `cluster`.
    pub(super) fn class_archive(&self) -> PathBuf {
        self.folder.join("classes.jsa")
    }

    /// Waits until no other process works on this version.
    pub(super) fn lock(&self) -> CacheLock {
        let path = self.folder.with_added_extension("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        file.lock().unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
        CacheLock { _file: file }
    }

    fn bring(&self, cache: &Path) {
        require("java", "-version");
        require("mvn", "--version");
        let partial = cache.join(format!("{}-{}.partial-{}", self.artifact, self.version, process::id()));
        fs::create_dir_all(&partial).expect("the cache folder can be written");
        let pom = partial.join("pom.xml");
        fs::write(&pom, POM).expect("the cache folder can be written");
        let run = Command::new("mvn")
            .args(["-q", "-B", "-f"])
            .arg(&pom)
            .arg("dependency:copy-dependencies")
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", partial.join("libs").display()))
            .arg(format!("-Dkafka.version={}", self.version))
            .arg(format!("-Dkafka.artifact={}", self.artifact))
            .output()
            .expect("mvn was just seen to start");
        if !run.status.success() {
            fs::remove_dir_all(&partial).expect("the cache folder can be written");
        }
        assert!(
            run.status.success(),
            "mvn cannot bring {} {}:\n{}{}",
            self.artifact,
            self.version,
            String::from_utf8_lossy(&run.stdout),
            String::from_utf8_lossy(&run.stderr)
        );
        fs::rename(&partial, &self.folder).expect("the cache folder can be written");
    }
}

fn current_version() -> String {
    env::var("TOMBOLO_KAFKA_VERSION").unwrap_or_else(|_| pinned("kafka.version").to_owned())
}

/// A version that the pom pins: written there, once.
fn pinned(property: &str) -> &'static str {
    let (_, rest) = POM.split_once(&format!("<{property}>")).expect("the pom pins a version");
    rest.split_once("</").expect("the pom closes its elements").0
}

fn cache_folder() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("HOME or TOMBOLO_CACHE is set")).join(".cache/tombolo");
    env::var_os("TOMBOLO_CACHE").map_or_else(home, PathBuf::from)
}

fn require(program: &str, version_argument: &str) {
    let seen: io::Result<_> = Command::new(program)
        .arg(version_argument)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        seen.is_ok_and(|status| status.success()),
        "these tests run real Kafka brokers and a Java consumer, and `{program}` does not start here. \
         Install it (apt-get install default-jdk-headless maven) and run again."
    );
}
