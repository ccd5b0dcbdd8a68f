//! The third opinion, from the consumer that most applications have: Kafka's own, in Java.
//!
//! It runs in a JVM of its own (`tests/java/Consumers.java`), one for the whole test process: started by the first
//! comparison, asked over its standard input, and killed with this process. Tests that compare at once take turns.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::broker::{Distribution, KafkaCluster};
use crate::child::Program;
use crate::compare::Seen;
use crate::scratch::Scratch;

const SOURCE: &str = include_str!("../java/Consumers.java");
/// A comparison of thousands of partitions, or of a million records, on a busy machine.
const ANSWER_DEADLINE: Duration = Duration::from_mins(3);

/// What to compare.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    source: String,
    mirror: String,
    partitions: Vec<(String, i32)>,
    from: Option<i64>,
}

impl Request {
    /// These partitions of both clusters from first to last offset, or from this one on where they begin elsewhere.
    pub(crate) fn new(
        source: &KafkaCluster,
        mirror: &KafkaCluster,
        partitions: Vec<(String, i32)>,
        from: Option<i64>,
    ) -> Self {
        // How clients log in is no part of the comparison: the brokers' own listener asks for nothing.
        Self { source: source.internal_bootstrap(), mirror: mirror.internal_bootstrap(), partitions, from }
    }

    /// What consumers of both isolation levels see in the mirror is what one of committed records sees in the source.
    /// `Err` is the first difference.
    pub(crate) async fn compare(self) -> Result<Seen, String> {
        match spawn_blocking(move || self.run()).await {
            Ok(seen) => seen,
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        }
    }

    fn run(&self) -> Result<Seen, String> {
        static WITNESS: Mutex<Option<Witness>> = Mutex::new(None);
        let mut slot = WITNESS.lock().unwrap_or_else(PoisonError::into_inner);
        // Out of its place meanwhile: one that failed is not asked again.
        let mut witness = slot.take().unwrap_or_else(Witness::start);
        let from = self.from.map_or_else(|| "-".to_owned(), |from| from.to_string());
        let mut request = format!("{}\t{}\t{from}", self.source, self.mirror);
        for (topic, partition) in &self.partitions {
            request = format!("{request}\t{topic}\t{partition}");
        }
        let seen = witness.ask(&request);
        *slot = Some(witness);
        seen
    }
}

/// The JVM.
struct Witness {
    program: Program,
    requests: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
    _scratch: Scratch,
}

impl Witness {
    fn start() -> Self {
        Distribution::require_compiler();
        let distribution = Distribution::current();
        let scratch = Scratch::new("java");
        let file = scratch.write("Consumers.java", SOURCE);
        let log = scratch.path().join("log");
        let mut arguments: Vec<String> =
            ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xlog:disable"]
                .map(str::to_owned)
                .to_vec();
        // Four readers, each with two of the largest batches that the tests write; others need a tenth of it.
        arguments.extend(["-Xms16m".to_owned(), "-Xmx512m".to_owned()]);
        arguments.push("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned());
        arguments.push(format!("-Djava.io.tmpdir={}", scratch.path().display()));
        arguments.extend(["-cp".to_owned(), distribution.class_path(), file.display().to_string()]);
        let (program, requests, stdout) = Program::start_piped(Path::new("java"), &arguments, scratch.path(), &log);
        let (lines, answers) = sync_channel(1);
        let read = move || {
            let mut stdout = BufReader::new(stdout).lines().map_while(Result::ok);
            // Until nobody asks any more.
            while stdout.next().is_some_and(|line| lines.send(line).is_ok()) {}
        };
        thread::Builder::new().name("java-answers".to_owned()).spawn(read).expect("a thread can be started");
        Self { program, requests, answers, log, _scratch: scratch }
    }

    fn ask(&mut self, request: &str) -> Result<Seen, String> {
        let sent = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        let answer = sent.ok().and_then(|()| self.answers.recv_timeout(ANSWER_DEADLINE).ok());
        let fields: Vec<&str> = answer.as_deref().unwrap_or_default().split('\t').collect();
        match fields[..] {
            ["equal", records, aborted] => Ok(Seen { records: count(records), aborted: count(aborted) }),
            ["different", what] => Err(what.to_owned()),
            _ => panic!(
                "the Java consumers do not answer {request:?} but {answer:?} (ended: {:?})\n{}",
                self.program.ended(),
                fs::read_to_string(&self.log).unwrap_or_default()
            ),
        }
    }
}

fn count(field: &str) -> u64 {
    field.parse().expect("the Java consumers count")
}
