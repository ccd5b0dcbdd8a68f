//! Benchmarks: tombolo, `MirrorMaker` 2 and a plain copier on the same data, between real brokers, in one run.
//!
//!     cargo run --release -p tombolo-tests --bin bench -- SUITE
//!
//! Every suite prints a table of medians, what was asked of tombolo and what was seen; it ends with exit code 1 where a part
//! of it could not be run, and with 0 otherwise, met or not: figures depend on the machine. `--report FILE` puts the
//! suite's section into a Markdown file, `tests/bench/RESULTS.md`.

mod contender;
mod copier;
mod load;
mod markdown;
mod report;
mod site;
mod suites;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tikv_jemallocator::Jemalloc;
use tombolo_tests::rig::RigSpec;
use toml::Value;

use crate::contender::Contender;
use crate::report::Report;

/// The daemons' own: what runs in this process, copier and journal by itself, shall not differ in that.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// 1 kB records, zstd, 6 partitions: history as fast as it goes.
    Bulk(Run),
    /// The same from producers that do not compress: what the link saves.
    Raw(Run),
    /// One record a batch: what a batch costs.
    Tiny(Run),
    /// 500 topics of 4 partitions with little traffic, and with none.
    Many(Run),
    /// 1 000 records a second: from the producer's call to the consumer of the mirror.
    Latency(Run),
    /// A journal that filled up in the dark.
    Drain(Run),
    /// 1 000 simulated sites on one gateway.
    Links(Run),
    /// A catch-up of committed transactions.
    Transactions(Run),
    /// The copier, as a process of its own.
    #[command(hide = true)]
    Copy(copier::Copy),
}

/// How a suite is run.
#[derive(Debug, Clone, Args)]
struct Run {
    /// Runs of each contender; the table has medians.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Share of the suite's records, for a quick look.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Of a run's figures, with all runs; the table goes to standard error then.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The same as `--output json`.
    #[arg(long)]
    json: bool,
    /// Only this contender, for a profile: a part is left out then, and the exit code says so.
    #[arg(long, value_enum)]
    only: Option<Contender>,
    /// A setting of the agent other than its default, such as `memory.window=32 MiB`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    agent: Vec<(String, Value)>,
    /// A setting of the gateway.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    gateway: Vec<(String, Value)>,
    /// Markdown file whose section of this suite is written anew.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Run {
    /// Who runs.
    fn contenders(&self) -> impl Iterator<Item = Contender> {
        Contender::ALL.into_iter().filter(|contender| self.takes(*contender))
    }

    /// Whether this contender runs.
    fn takes(&self, contender: Contender) -> bool {
        self.only.is_none_or(|only| only == contender)
    }

    /// The spec with the settings of the command line.
    fn tuned(&self, spec: RigSpec) -> RigSpec {
        let spec = self.agent.iter().fold(spec, |spec, (key, value)| spec.agent(key, value.clone()));
        self.gateway.iter().fold(spec, |spec, (key, value)| spec.gateway(key, value.clone()))
    }

    /// So many records, times the scale.
    fn scaled(&self, records: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of some millions"
        )]
        let scaled = (records as f64 * self.scale) as u64;
        scaled.max(1)
    }
}

/// Numbers and the like as TOML has them; what is none of them is a text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("a setting is KEY=VALUE")?;
    Ok((key.to_owned(), value.parse().unwrap_or_else(|_| Value::String(value.to_owned()))))
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be had");
    runtime.block_on(async {
        let (run, report) = match &options.command {
            Command::Copy(copy) => return copier::run(copy).await,
            Command::Bulk(run) => (run, suites::bulk::run(run).await),
            Command::Raw(run) => (run, suites::raw::run(run).await),
            Command::Tiny(run) => (run, suites::tiny::run(run).await),
            Command::Many(run) => (run, suites::many::run(run).await),
            Command::Latency(run) => (run, suites::latency::run(run).await),
            Command::Drain(run) | Command::Links(run) if run.only.is_some() => panic!("tombolo runs alone here anyway"),
            Command::Links(run) if !(run.agent.is_empty() && run.gateway.is_empty()) => {
                panic!("this suite has settings of its own: tests/bench/suites/links.rs")
            }
            Command::Drain(run) => (run, suites::drain::run(run).await),
            Command::Links(run) => (run, suites::links::run(run).await),
            Command::Transactions(run) => (run, suites::transactions::run(run).await),
        };
        show(run, &report)
    })
}

/// A part that cannot be run panics with its reason: the exit code is not 0 then.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what a command line program is for")]
fn show(run: &Run, report: &Report) -> ExitCode {
    if run.json || run.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(report).expect("figures are numbers"));
        eprintln!("{}", report.text());
    } else {
        println!("{}", report.text());
    }
    if run.only.is_some() {
        eprintln!("bench: only one contender ran, so nothing is reported");
        return ExitCode::FAILURE;
    }
    match run.report.as_deref().map_or(Ok(()), |path| markdown::put(path, report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
