//! `MirrorMaker` 2 of the Kafka version under test, as a process of its own: what benchmarks compare tombolo with.
//!
//! It runs as its users run it, as a dedicated cluster of one node, with the settings of `tests/bench/mirror-maker.properties`.

use std::fmt::Write as _;
use std::path::Path;

use tokio::task::spawn_blocking;

use crate::broker::{Distribution, KafkaCluster};
use crate::child::{Program, Usage};
use crate::scratch::Scratch;

/// Its settings, but for what a run has of its own.
pub const SETTINGS: &str = include_str!("../bench/mirror-maker.properties");

/// The JVM's options: those of Kafka's own start script, and the heap it gives to Connect workers.
pub const JVM: [&str; 6] = [
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-Xms256m",
    "-Xmx2g",
];

/// Kafka's version, of which `MirrorMaker` is too. Blocks as long as it takes to bring it.
pub fn version() -> String {
    Distribution::mirror_maker().version().to_owned()
}

/// A running `MirrorMaker`; killed when dropped.
#[derive(Debug)]
pub struct MirrorMaker {
    program: Program,
    scratch: Scratch,
}

impl MirrorMaker {
    /// Starts it on topics, a list or a pattern as its `topics` takes them; `extra` settings win over [`SETTINGS`].
    pub async fn start(source: &KafkaCluster, cloud: &KafkaCluster, topics: &str, extra: &[(&str, &str)]) -> Self {
        let found = spawn_blocking(Distribution::mirror_maker).await;
        let distribution = found.unwrap_or_else(|failure| std::panic::resume_unwind(failure.into_panic()));
        let scratch = Scratch::new("mirror-maker");
        let mut settings = SETTINGS.to_owned();
        let own = [
            ("source.bootstrap.servers", source.bootstrap()),
            ("cloud.bootstrap.servers", cloud.bootstrap()),
            ("source->cloud.topics", topics),
        ];
        for (key, value) in own.iter().chain(extra) {
            writeln!(settings, "{key} = {value}").expect("a string takes all");
        }
        let file = scratch.write("mirror-maker.properties", &settings);
        let mut arguments: Vec<String> = JVM.map(str::to_owned).to_vec();
        arguments.push("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned());
        arguments.push(format!("-Djava.io.tmpdir={}", scratch.path().display()));
        arguments.extend(["-cp".to_owned(), distribution.class_path()]);
        arguments.push("org.apache.kafka.connect.mirror.MirrorMaker".to_owned());
        arguments.push(file.display().to_string());
        let program = Program::start(Path::new("java"), &arguments, scratch.path(), &scratch.path().join("log"));
        Self { program, scratch }
    }

    /// What the process has taken of the machine since it started.
    pub fn usage(&self) -> Usage {
        self.program.usage()
    }

    /// Panics with its last words if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.program.ended() {
            let log = std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
            panic!("MirrorMaker ended by itself, {status}\n{tail}");
        }
    }
}
