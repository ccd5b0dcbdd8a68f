//! Signals and log lines of a whole process: this program starts itself as a small daemon and signals it.
//!
//! Not under the test harness, because a second signal ends the process it reaches.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_service::logging::{self, LogFormat, LogSettings};
use tombolo_service::shutdown;

const DEADLINE: Duration = Duration::from_secs(20);
const DAEMON: &str = "as-daemon";

fn main() {
    if std::env::args().nth(1).as_deref() == Some(DAEMON) {
        daemon();
        return;
    }
    for signal in ["TERM", "INT"] {
        first_signal_stops_in_order(signal);
        second_signal_ends_at_once(signal);
    }
    hangup_asks_for_a_reload();
}

/// Logs JSON lines: `up`, `reload` per SIGHUP, `draining` after the stop, and then hangs.
fn daemon() {
    logging::init(&LogSettings { format: LogFormat::Json, level: "info".to_owned() }).expect("the first subscriber");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stop = shutdown::listen().expect("signal handlers");
        let mut reloads = shutdown::reloads().expect("signal handlers");
        tracing::info!("up");
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = reloads.next() => tracing::info!("reload"),
            }
        }
        tracing::info!("draining");
        // Longer than any test waits: only a second signal or a kill ends it.
        tokio::time::sleep(10 * DEADLINE).await;
    });
}

fn first_signal_stops_in_order(signal: &str) {
    let mut daemon = Daemon::start();
    daemon.signal(signal);
    let line = daemon.await_line("stopping");
    assert_eq!(text(&line, "signal"), format!("SIG{signal}"), "{line}");
    assert_eq!(text(&line, "level"), "INFO", "{line}");
    daemon.await_line("draining");
    assert!(daemon.process.try_wait().expect("a child").is_none(), "ended at the first signal");
}

fn second_signal_ends_at_once(signal: &str) {
    let mut daemon = Daemon::start();
    daemon.signal(signal);
    daemon.await_line("stopping");
    daemon.await_line("draining");
    daemon.signal(signal);
    let line = daemon.await_line("second signal, ending at once");
    assert_eq!(text(&line, "level"), "WARN", "{line}");
    assert_eq!(daemon.await_end().code(), Some(130));
}

fn hangup_asks_for_a_reload() {
    let mut daemon = Daemon::start();
    daemon.signal("HUP");
    daemon.await_line("reload");
    daemon.signal("HUP");
    daemon.await_line("reload");
    assert!(daemon.process.try_wait().expect("a child").is_none(), "ended by SIGHUP");
}

fn text<'l>(line: &'l Value, field: &str) -> &'l str {
    line.get(field).and_then(Value::as_str).unwrap_or("no such field")
}

struct Daemon {
    process: Child,
    log: BufReader<ChildStderr>,
}

impl Daemon {
    fn start() -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut process = Command::new(program).arg(DAEMON).stderr(Stdio::piped()).spawn().expect("a second instance");
        let log = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut daemon = Self { process, log };
        daemon.await_line("up");
        daemon
    }

    fn signal(&self, name: &str) {
        // The shell has kill built in; the program of that name is not on every machine.
        let command = format!("kill -s {name} {}", self.process.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(status.success(), "{command}: {status}");
    }

    /// The next log line; it must be JSON with this message.
    fn await_line(&mut self, message: &str) -> Value {
        let mut line = String::new();
        self.log.read_line(&mut line).expect("a log line");
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert_eq!(text(&value, "message"), message, "{value}");
        value
    }

    fn await_end(&mut self) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("still running after {DEADLINE:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails where the process has ended, which is what is wanted.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
