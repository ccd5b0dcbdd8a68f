//! The two daemons as processes, built, started, stopped, killed and asked as an operator would; and `tombolo`, run.
//!
//! A [`Daemon`] that is dropped is killed, and its whole log goes through the [`LogGuard`]: a warning or an error that
//! the test did not announce with [`Daemon::allow`] fails the test.

mod binaries;
mod http;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

use crate::child::{Program, Usage};
use crate::log_guard::LogGuard;
use crate::scratch::Scratch;

/// How long a local daemon may take to answer a question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Agent,
    Gateway,
}

impl Binary {
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "tombolo-agent",
            Self::Gateway => "tombolo-gateway",
        }
    }

    /// Runs the program with these arguments to its end: `check`, `status`, `dev-certs`.
    pub async fn run(self, arguments: &[&str]) -> Output {
        run(self.name(), arguments).await
    }
}

/// Runs the operator's program, `tombolo`, with these arguments to its end.
pub async fn tombolo(arguments: &[&str]) -> Output {
    run("tombolo", arguments).await
}

/// As [`tombolo`], for as long as it takes, with the most memory that the process was seen to hold, in bytes.
pub async fn tombolo_measured(arguments: &[&str]) -> (Output, u64) {
    let program = binaries::path("tombolo").await;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program was built");
    let id = child.id().expect("a child that was not waited for has an id");
    let output = child.wait_with_output();
    tokio::pin!(output);
    let mut peak = 0;
    loop {
        // The peak stays readable until the process ends.
        match tokio::time::timeout(Duration::from_millis(10), &mut output).await {
            Ok(output) => return (output.expect("a child's words can be read"), peak),
            Err(_) => peak = Usage::of(id).map_or(peak, |usage| usage.peak_bytes),
        }
    }
}

async fn run(name: &str, arguments: &[&str]) -> Output {
    let program = binaries::path(name).await;
    let run = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output();
    let done = tokio::time::timeout(Duration::from_mins(1), run).await;
    done.unwrap_or_else(|_| panic!("{name} {arguments:?} does not end")).expect("the program was built")
}

/// A daemon with a folder, a settings file and a log, running or not.
#[derive(Debug)]
pub struct Daemon {
    binary: Binary,
    program: Option<Program>,
    path: PathBuf,
    http: SocketAddr,
    settings: PathBuf,
    guard: LogGuard,
    scratch: Scratch,
}

impl Daemon {
    /// Starts an agent with these settings (TOML). `http.listen` must name a port: see [`free_port`](crate::free_port).
    pub async fn agent(settings: &str) -> Self {
        Self::start(Binary::Agent, settings, |_| ()).await
    }

    /// As [`Daemon::agent`]; `prepare` gets the folder that the daemon will run in.
    pub async fn agent_with(settings: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::start(Binary::Agent, settings, prepare).await
    }

    /// Starts a gateway with these settings (TOML). `http.listen` must name a port.
    pub async fn gateway(settings: &str) -> Self {
        Self::start(Binary::Gateway, settings, |_| ()).await
    }

    async fn start(binary: Binary, settings: &str, prepare: impl FnOnce(&Path)) -> Self {
        let scratch = Scratch::new(binary.name());
        let mut daemon = Self {
            binary,
            program: None,
            path: binaries::path(binary.name()).await,
            http: http_address(settings),
            settings: scratch.write("settings.toml", settings),
            guard: LogGuard::default(),
            scratch,
        };
        prepare(daemon.folder());
        daemon.spawn();
        daemon
    }

    /// Lines with this text in the log are expected by the test.
    pub fn allow(&mut self, text: &str) {
        self.guard.allow(text);
    }

    /// Other settings for the next start.
    pub fn reconfigure(&mut self, settings: &str) {
        self.http = http_address(settings);
        self.settings = self.scratch.write("settings.toml", settings);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.kill();
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.program().signal(Signal::TERM);
        self.wait_for_exit(deadline).await
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.program().signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.program().signal(Signal::CONT);
    }

    /// Starts it again on its folder and settings; kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Whether the process lives.
    pub fn running(&mut self) -> bool {
        self.program.as_mut().is_some_and(|program| program.ended().is_none())
    }

    /// Waits until the process ends by itself.
    pub async fn wait_for_exit(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.program().ended() {
                self.program = None;
                return status;
            }
            assert!(start.elapsed() < deadline, "{} does not end\n{}", self.binary.name(), self.log_tail());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `/readyz` says yes.
    pub async fn wait_ready(&mut self) {
        let (start, deadline) = (Instant::now(), Duration::from_secs(30));
        loop {
            assert!(self.running(), "{} ended by itself\n{}", self.binary.name(), self.log_tail());
            let seen = http::get(self.http, "/readyz", ANSWER_DEADLINE).await;
            if matches!(seen, Ok((200, _))) {
                return;
            }
            assert!(start.elapsed() < deadline, "{} is not ready: {seen:?}\n{}", self.binary.name(), self.log_tail());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The document at `/status`.
    pub async fn status(&self) -> Value {
        let body = self.ask("/status").await;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("/status is no JSON: {error}\n{body}"))
    }

    /// Every sample of `/metrics` under its name with labels, as printed: `name{label="value"}`.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let body = self.ask("/metrics").await;
        let samples = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples
            .map(|line| {
                let sample = line.rsplit_once(' ').and_then(|(name, value)| Some((name, value.parse().ok()?)));
                let (name, value) = sample.unwrap_or_else(|| panic!("no sample: {line}"));
                (name.to_owned(), value)
            })
            .collect()
    }

    /// The sum of a metric over all its labels; 0 where it has no sample yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let labelled = format!("{name}{{");
        let samples = self.metrics().await;
        samples.iter().filter(|(key, _)| *key == name || key.starts_with(&labelled)).map(|(_, value)| value).sum()
    }

    /// What the process has taken of the machine since it started.
    pub fn usage(&mut self) -> Usage {
        self.program().usage()
    }

    /// The most memory the process ever held (`VmHWM`).
    pub fn vm_hwm_bytes(&mut self) -> u64 {
        self.usage().peak_bytes
    }

    /// The whole log so far, of all starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Runs another command of the daemon's program with its settings file.
    pub async fn command(&self, words: &[&str]) -> Output {
        let settings = self.settings.display().to_string();
        let words: Vec<&str> = words.iter().copied().chain(["--config", &settings]).collect();
        self.binary.run(&words).await
    }

    /// Where the daemon runs and keeps its files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    async fn ask(&self, path: &str) -> String {
        match http::get(self.http, path, ANSWER_DEADLINE).await {
            Ok((200, body)) => body,
            seen => panic!("{}: {path} answers {seen:?}\n{}", self.binary.name(), self.log_tail()),
        }
    }

    fn spawn(&mut self) {
        let arguments = ["run".to_owned(), "--config".to_owned(), self.settings.display().to_string()];
        self.program = Some(Program::start(&self.path, &arguments, self.scratch.path(), &self.log_path()));
    }

    fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the daemon was started and not killed")
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        let unexpected = self.guard.unexpected(&log);
        if !unexpected.is_empty() {
            let report = format!("{} logged what nobody expects:\n{}", self.binary.name(), unexpected.join("\n"));
            if thread::panicking() {
                #[expect(clippy::print_stderr, reason = "the test fails already; its runner shows this beside")]
                {
                    eprintln!("{report}");
                }
            } else {
                panic!("{report}");
            }
        }
    }
}

fn http_address(settings: &str) -> SocketAddr {
    let table: toml::Table = settings.parse().unwrap_or_else(|error| panic!("settings are no TOML: {error}"));
    let listen = table.get("http").and_then(|http| http.get("listen")).and_then(toml::Value::as_str);
    let address: SocketAddr = listen.and_then(|listen| listen.parse().ok()).expect("settings name http.listen");
    assert_ne!(address.port(), 0, "a test must know http.listen: take free_port()");
    address
}
