//! The command line: `run`, `check`, `digest`, `journal`, `status`.

mod digest;
mod journal;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use tombolo_service::settings::{EXIT_CONFIG, SettingsError, Span};
use tombolo_service::status_client::{Output, fetch, print, table};
use tombolo_service::{logging, shutdown};

use crate::check::{self, Finding};
use crate::settings::{Settings, http_of};

/// For the running agent's answer: its HTTP does nothing else.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// Exit codes of `status`, and 1 for every other failure.
const DEGRADED: u8 = 1;
const FAULTED: u8 = 2;

/// Copies topics of the local Kafka cluster to a tombolo gateway.
#[derive(Debug, Parser)]
#[command(name = "tombolo-agent", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT.
    Run(Config),
    /// Try settings, files, source cluster and gateways. Begins no session. Exit code 1 where something fails.
    Check(Config),
    /// Write what `tombolo verify` needs of the source's logs into a file, for a mirror that is compared elsewhere.
    Digest(digest::Digest),
    /// Look at the journal of an agent that does not run, check it, or take it away.
    #[command(subcommand)]
    Journal(journal::Command),
    /// Show what the running agent does. Exit code 0 healthy, 1 degraded, 2 faulted or not running.
    Status(Status),
}

#[derive(Debug, Args)]
struct Config {
    /// Settings file (TOML); deploy/agent.toml lists every setting.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Status {
    /// Settings file of the agent, for its http.listen.
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    config: Option<PathBuf>,
    /// Address of the agent's local HTTP.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    address: SocketAddr,
    /// table or json. The JSON is a stable schema.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

impl Cli {
    /// Whether the command is the daemon, which wants more than one thread.
    pub fn is_daemon(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }

    /// Does what the command says.
    pub async fn execute(self) -> ExitCode {
        match self.command {
            Command::Run(config) => run(config).await,
            Command::Check(config) => check(config).await,
            Command::Digest(arguments) => Box::pin(digest::execute(arguments)).await,
            Command::Journal(command) => {
                // Blocks, and there is nothing else to do meanwhile.
                tokio::task::spawn_blocking(move || journal::execute(command)).await.unwrap_or(ExitCode::FAILURE)
            }
            Command::Status(arguments) => status(arguments).await,
        }
    }
}

async fn run(config: Config) -> ExitCode {
    let settings = match Settings::load(&config.config) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging::init(&settings.log) {
        return fail(&error);
    }
    let stop = match shutdown::listen() {
        Ok(stop) => stop,
        Err(error) => return fail(&error),
    };
    match Box::pin(crate::run(settings, stop)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(crate::RunError::Settings(error)) => refuse(&error),
        Err(crate::RunError::Keeper(error)) => fail(&error),
        // Logged where it happened.
        Err(crate::RunError::Metrics(_) | crate::RunError::Task(_)) => ExitCode::FAILURE,
    }
}

async fn check(config: Config) -> ExitCode {
    let settings = match Settings::load(&config.config) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let path = config.config.display().to_string();
    let mut findings = vec![Finding { what: "settings and files".to_owned(), ok: true, detail: path }];
    findings.extend(check::check(&settings).await);
    let all_ok = findings.iter().all(|finding| finding.ok);
    let rows = findings
        .into_iter()
        .map(|Finding { what, ok, detail }| vec![what, if ok { "ok" } else { "FAILED" }.to_owned(), detail]);
    match print(&Value::Null, Output::Table, |_| table(&["CHECK", "RESULT", "DETAIL"], rows)) {
        Ok(()) if all_ok => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

async fn status(arguments: Status) -> ExitCode {
    let address = match &arguments.config {
        Some(path) => match http_of(path) {
            Ok(http) => http.listen,
            Err(error) => return refuse(&error),
        },
        None => arguments.address,
    };
    let document = match fetch(address, STATUS_DEADLINE).await {
        Ok(document) => document,
        Err(error) => {
            fail(&error);
            return ExitCode::from(FAULTED);
        }
    };
    match print(&document, arguments.output, show) {
        Ok(()) => ExitCode::from(health(&document)),
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "before there is a log, and in commands that have none")]
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("tombolo-agent: {error}");
    ExitCode::FAILURE
}

fn refuse(error: &SettingsError) -> ExitCode {
    fail(error);
    ExitCode::from(EXIT_CONFIG)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("-")
}

/// A number with its thousands apart, `-` where it is not known.
fn number(value: &Value, path: &str) -> String {
    let Some(number) = value.pointer(path).and_then(Value::as_i64) else { return "-".to_owned() };
    let digits = number.unsigned_abs().to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(' ');
        }
        shown.push(digit);
    }
    if number < 0 { format!("-{shown}") } else { shown }
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// 0 healthy, 1 degraded, 2 faulted.
fn health(document: &Value) -> u8 {
    let states = || list(document, "/mirrors").iter().map(|mirror| text(mirror, "/mirror_status"));
    if states().any(|state| state == "FAILED") {
        FAULTED
    } else if document.pointer("/journal/problem").is_some_and(Value::is_string)
        || text(document, "/link/state") != "ACTIVE"
        || states().any(|state| state != "ACTIVE" && state != "PAUSED")
    {
        DEGRADED
    } else {
        0
    }
}

fn show(document: &Value) -> String {
    let mut lines = vec![
        format!(
            "LINK {} to {} ({}), term {}, rtt {} ms, {} reconnects",
            text(document, "/link/state"),
            text(document, "/link/gateway"),
            text(document, "/link/transport"),
            number(document, "/link/term"),
            number(document, "/link/rtt_ms"),
            number(document, "/link/reconnects"),
        ),
        format!(
            "WINDOW {} of {} bytes, in flight {} of {}",
            number(document, "/memory/window_bytes"),
            number(document, "/memory/window_limit_bytes"),
            number(document, "/link/in_flight_bytes"),
            number(document, "/link/credit_bytes"),
        ),
    ];
    lines.push(format!(
        "JOURNAL {} bytes in {} of {} on disk, drains {} bytes/s, empty in {}, full in {}, time to loss {}",
        number(document, "/journal/frame_bytes"),
        number(document, "/journal/file_bytes"),
        number(document, "/journal/max_bytes"),
        number(document, "/journal/drain_bytes_per_second"),
        span(document, "/journal/drained_in_s"),
        span(document, "/journal/full_in_s"),
        span(document, "/time_to_loss_s"),
    ));
    for (title, path) in
        [("LAST ERROR", "/link/last_error"), ("SOURCE", "/source/problem"), ("JOURNAL BLOCKED", "/journal/problem")]
    {
        if let Some(problem) = document.pointer(path).and_then(Value::as_str) {
            lines.push(format!("{title} {problem}"));
        }
    }
    for mirror in list(document, "/mirrors") {
        if let Some(detail) = mirror.pointer("/detail").and_then(Value::as_str) {
            lines.push(format!("{} {}: {detail}", text(mirror, "/topic"), text(mirror, "/mirror_status")));
        }
    }
    lines.extend(list(document, "/mirrors").iter().flat_map(waiting));
    let rows = list(document, "/mirrors").iter().flat_map(|mirror| match list(mirror, "/partitions") {
        // Nothing is known of the source topic: still a mirror to be seen.
        [] => vec![row(mirror, &Value::Null)],
        partitions => partitions.iter().map(|partition| row(mirror, partition)).collect(),
    });
    let head = ["TOPIC", "PARTITION", "STATE", "SOURCE END", "FETCHED", "SENT", "CONFIRMED", "LAG"];
    format!("{}\n{}", lines.join("\n"), table(&head, rows))
}

/// Partitions of a mirror that a transaction at the source holds back.
fn waiting(mirror: &Value) -> impl Iterator<Item = String> {
    list(mirror, "/partitions").iter().filter_map(move |partition| {
        let transaction = partition.pointer("/waits_for_transaction").filter(|transaction| transaction.is_object())?;
        let producer = transaction.pointer("/producer_id").and_then(Value::as_i64);
        Some(format!(
            "{} partition {} waits for transaction: producer id {}, since offset {}",
            text(mirror, "/topic"),
            number(partition, "/partition"),
            producer.map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
            transaction.pointer("/since_offset").unwrap_or(&Value::Null),
        ))
    })
}

/// Seconds as people read them; a dash where there are none.
fn span(document: &Value, path: &str) -> String {
    let seconds = document.pointer(path).and_then(Value::as_u64);
    seconds.map_or_else(|| "-".to_owned(), |seconds| Span::from_secs(seconds).to_string())
}

fn row(mirror: &Value, partition: &Value) -> Vec<String> {
    vec![
        text(mirror, "/topic").to_owned(),
        number(partition, "/partition"),
        text(mirror, "/mirror_status").to_owned(),
        number(partition, "/source_high_watermark"),
        number(partition, "/fetched"),
        number(partition, "/sent"),
        number(partition, "/confirmed"),
        number(partition, "/lag"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn health_is_the_worst_of_link_and_mirrors() {
        let document = |link: &str, states: &[&str]| {
            let mirrors: Vec<_> = states.iter().map(|state| json!({"mirror_status": state})).collect();
            json!({"link": {"state": link}, "mirrors": mirrors})
        };
        let table = [
            ("ACTIVE", &[][..], 0),
            ("ACTIVE", &["ACTIVE", "PAUSED"], 0),
            ("ACTIVE", &["ACTIVE", "PENDING_MIRROR"], DEGRADED),
            ("UNAVAILABLE", &["ACTIVE"], DEGRADED),
            ("ACTIVE", &["SOURCE_UNAVAILABLE"], DEGRADED),
            ("UNAVAILABLE", &["ACTIVE", "FAILED"], FAULTED),
        ];
        for (link, states, code) in table {
            assert_eq!(health(&document(link, states)), code, "{link} {states:?}");
        }
        assert_eq!(health(&Value::Null), DEGRADED);
    }

    #[test]
    fn the_table_has_a_row_for_each_partition_and_the_reasons_above() {
        let partition = |number: i32, lag: Value| json!({"partition": number, "source_high_watermark": 9_102_774, "confirmed": 8_771_020, "lag": lag});
        let mut waiting = partition(1, Value::Null);
        waiting["waits_for_transaction"] = json!({"producer_id": 12_345, "since_offset": 8_771_020});
        let document = json!({
            "link": {"state": "ACTIVE", "gateway": "gw:4433", "transport": "quic", "term": 4, "last_error": null},
            "mirrors": [
                {"topic": "a", "mirror_status": "ACTIVE", "detail": null,
                    "partitions": [partition(0, json!(331_754)), waiting]},
                {"topic": "b", "mirror_status": "FAILED", "detail": "DIVERGED offset 3: two logs", "partitions": []},
            ],
        });
        let text = show(&document);
        assert!(text.starts_with("LINK ACTIVE to gw:4433 (quic), term 4, rtt - ms"), "{text}");
        assert!(text.contains("\nb FAILED: DIVERGED offset 3: two logs\n"), "{text}");
        let waits = "\na partition 1 waits for transaction: producer id 12345, since offset 8771020\n";
        assert!(text.contains(waits), "{text}");
        assert!(text.contains("9 102 774"), "{text}");
        assert!(text.contains("331 754"), "{text}");
        assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("a  ")).count(), 2, "{text}");
        assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("b  ")).count(), 1, "{text}");
    }
}
