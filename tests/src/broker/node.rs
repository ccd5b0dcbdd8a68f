//! One broker: its settings file, its process, its log.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::distribution::Distribution;
use crate::child::Program;

/// Ports of one broker on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// What clients dial.
    pub(super) client: u16,
    /// Replication between brokers, always plain.
    pub(super) internal: u16,
    pub(super) controller: u16,
}

/// What to do with the archive of parsed classes.
#[derive(Clone, Debug)]
pub(super) enum ClassArchive {
    Use(PathBuf),
    /// Write one when the broker ends by itself.
    Make(PathBuf),
}

/// What a broker's JVM is to be good at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Jvm {
    /// A quick start.
    Brisk,
    /// Long work, with the options of `bin/kafka-run-class.sh`.
    Steady,
}

impl Jvm {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Brisk => &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"],
            Self::Steady => {
                &["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"]
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: i32,
    pub(super) ports: Ports,
    pub(super) folder: PathBuf,
    distribution: Distribution,
    archive: ClassArchive,
    jvm: Jvm,
    heap_mib: u32,
    program: Option<Program>,
}

impl Node {
    pub(super) fn new(
        id: i32,
        ports: Ports,
        folder: PathBuf,
        distribution: &Distribution,
        archive: ClassArchive,
        (jvm, heap_mib): (Jvm, u32),
    ) -> Self {
        fs::create_dir_all(folder.join("tmp")).expect("the temp folder can be written");
        Self { id, ports, folder, distribution: distribution.clone(), archive, jvm, heap_mib, program: None }
    }

    /// Writes the settings and formats the data folder, with the SCRAM users given as `StorageTool` wants them.
    pub(super) fn format(&self, cluster_id: &str, settings: &[(String, String)], scram: &[String]) -> Program {
        self.configure(settings);
        let mut arguments = self.java(&[]);
        for word in ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c"] {
            arguments.push(word.to_owned());
        }
        arguments.push(self.settings().display().to_string());
        for user in scram {
            arguments.extend(["--add-scram".to_owned(), user.clone()]);
        }
        Program::start(Path::new("java"), &arguments, &self.folder, &self.log())
    }

    /// Writes the settings.
    pub(super) fn configure(&self, settings: &[(String, String)]) {
        let mut text = String::new();
        for (key, value) in settings {
            writeln!(text, "{key}={value}").expect("a string takes all");
        }
        writeln!(text, "log.dirs={}", self.folder.join("data").display()).expect("a string takes all");
        fs::write(self.settings(), text).expect("the temp folder can be written");
    }

    /// Starts another program of the broker's release; what it says goes to a file of that name in the broker's folder.
    pub(super) fn start_beside(&self, name: &str, class: &str, arguments: &[String]) -> (Program, PathBuf) {
        // ZooKeeper's web page has a port of its own.
        let mut words = self.java(&["-Dzookeeper.admin.enableServer=false".to_owned()]);
        words.push(class.to_owned());
        words.extend_from_slice(arguments);
        let log = self.folder.join(name);
        (Program::start(Path::new("java"), &words, &self.folder, &log), log)
    }

    /// Starts the broker; it must not be running.
    pub(super) fn start(&mut self) {
        assert!(!self.running(), "broker {} runs already", self.id);
        let extra = match &self.archive {
            ClassArchive::Use(_) => Vec::new(),
            ClassArchive::Make(path) => vec![format!("-XX:ArchiveClassesAtExit={}", path.display())],
        };
        let mut arguments = self.java(&extra);
        arguments.push("kafka.Kafka".to_owned());
        arguments.push(self.settings().display().to_string());
        self.program = Some(Program::start(Path::new("java"), &arguments, &self.folder, &self.log()));
    }

    pub(super) fn running(&mut self) -> bool {
        self.program.as_mut().is_some_and(|program| program.ended().is_none())
    }

    /// Whether it was started and neither killed nor stopped since: if it is not running, it ended by itself.
    pub(super) fn should_run(&self) -> bool {
        self.program.is_some()
    }

    /// SIGKILL, and waits for the end.
    pub(super) fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.kill();
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        self.program.as_mut().expect("a broker that was started").signal(signal);
    }

    /// Whether the log says that a port was taken by somebody else.
    pub(super) fn port_taken(&self) -> bool {
        fs::read_to_string(self.log()).is_ok_and(|log| log.contains("Address already in use"))
    }

    /// The end of the log, for a failure's message.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
        format!("--- broker {}, end of {}\n{tail}\n", self.id, self.log().display())
    }

    pub(super) fn stored_bytes(&self, topic: &str, partition: i32) -> u64 {
        let size = |path: &PathBuf| fs::metadata(path).expect("a segment has a size").len();
        self.segments(topic, partition).iter().map(size).sum()
    }

    pub(super) fn stored_log(&self, topic: &str, partition: i32) -> Vec<u8> {
        self.segments(topic, partition).iter().flat_map(|path| fs::read(path).expect("a segment can be read")).collect()
    }

    pub(super) fn damage_log(&mut self, topic: &str, partition: i32, at: usize) {
        assert!(!self.running(), "broker {} may still write", self.id);
        let segments = self.segments(topic, partition);
        let segment = segments.first().expect("a partition has a segment");
        let mut bytes = fs::read(segment).expect("a segment can be read");
        *bytes.get_mut(at).expect("the first segment holds that byte") ^= 1;
        fs::write(segment, bytes).expect("a segment can be written");
    }

    pub(super) fn place_log(&mut self, topic: &str, partition: i32, start: i64) {
        assert!(!self.running(), "broker {} may still write", self.id);
        let segments = self.segments(topic, partition);
        assert!(self.stored_log(topic, partition).is_empty(), "the log of {topic}/{partition} is not empty");
        let first = segments.first().expect("a partition has a segment");
        let folder = first.parent().expect("a segment lies in a folder").to_owned();
        for entry in fs::read_dir(&folder).expect("a log's folder can be read").flatten() {
            // Indexes and snapshots of producers are named for offsets too, and made anew where they are missing.
            if entry.file_name().to_str().is_some_and(|name| name.starts_with('0')) {
                fs::remove_file(entry.path()).expect("a log's file can be removed");
            }
        }
        fs::write(folder.join(format!("{start:020}.log")), []).expect("a log's folder can be written");
    }

    /// The partition's segment files, in order.
    pub(super) fn segments(&self, topic: &str, partition: i32) -> Vec<PathBuf> {
        let folder = self.folder.join("data").join(format!("{topic}-{partition}"));
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
        let mut segments: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        // Their names are their first offsets, with leading zeros.
        segments.sort();
        segments
    }

    fn settings(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn java(&self, extra: &[String]) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "-XX:+ExitOnOutOfMemoryError",
            "-Xlog:disable",
            "-Xlog:all=error:stderr",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            // Each prints every setting at every start.
            "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config.AbstractConfig=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
        ]
        .iter()
        .chain(self.jvm.options())
        .map(|&option| option.to_owned())
        .collect();
        arguments.push(format!("-Xmx{}m", self.heap_mib));
        // Native parts of the codecs are unpacked there; a killed broker leaves them behind.
        arguments.push(format!("-Djava.io.tmpdir={}", self.folder.join("tmp").display()));
        if let ClassArchive::Use(path) = &self.archive {
            arguments.push(format!("-XX:SharedArchiveFile={}", path.display()));
        }
        arguments.extend_from_slice(extra);
        arguments.extend(["-cp".to_owned(), self.distribution.class_path()]);
        arguments
    }
}
