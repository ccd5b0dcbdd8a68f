//! The gateway's process: command line, settings, logs, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use tombolo_gateway::cli::{self, Cli};

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
