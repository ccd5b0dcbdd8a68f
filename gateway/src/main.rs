//! The gateway's process: command line, settings, logs, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;
use tombolo_gateway::cli::{self, Cli};

/// Batches of a megabyte come and go by the hundred a second. The C library's allocator returns each to the system and has
/// it back page by page, a third of the gateway's time; `.cargo/config.toml` keeps half a second's worth of them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run(cli));
            runtime.shutdown_background();
            code
        }
        Err(error) => cli::failed(&error),
    }
}
