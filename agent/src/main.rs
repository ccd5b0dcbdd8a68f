//! The agent's process: command line, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;
use tombolo_agent::cli::Cli;

/// Batches of thousands of partitions come and go on several threads. The C library's allocator keeps an arena for each
/// thread and gives little of them back: more memory than the settings promise. `.cargo/config.toml` has one arena for all.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Enough for the copying, and few: the allocator keeps some memory for each thread.
const WORKERS: usize = 2;

#[expect(clippy::print_stderr, reason = "there is no log without a runtime")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = if cli.is_daemon() {
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    match runtime {
        Ok(runtime) => runtime.block_on(cli.execute()),
        Err(error) => {
            eprintln!("tombolo-agent: cannot start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
