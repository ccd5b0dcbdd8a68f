//! The whole of tombolo in one process: two clusters, both daemons, a link that goes dark while records are produced, and
//! the proof that both clusters hold the same. Exit code 0 means identical, 1 anything else, 130 Ctrl-C.
//!
//! The daemons run as they are: their own `run()`, on settings as an operator would write them. Nothing in them knows
//! that a cluster may be a mock.

mod clusters;
mod options;
mod run;
mod screen;
mod status;
mod system;
mod verdict;
mod witness;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tombolo_service::logging::{self, LogSettings};
use tombolo_service::shutdown;

use crate::options::Options;
use crate::run::RunError;
use crate::screen::Screen;

/// What still runs after the verdict or Ctrl-C (a blocking read of a cluster) is not waited for.
const LEAVE_AFTER: Duration = Duration::from_millis(500);
/// 128 + SIGINT, as shells report it.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    let log = LogSettings { level: options.log.clone(), ..LogSettings::default() };
    if let Err(error) = logging::init(&log) {
        return fail(&error.to_string());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let code = runtime.block_on(demo(&options));
    runtime.shutdown_timeout(LEAVE_AFTER);
    code
}

async fn demo(options: &Options) -> ExitCode {
    let stop = match shutdown::listen() {
        Ok(stop) => stop,
        Err(error) => return fail(&error.to_string()),
    };
    let mut screen = Screen::new(matches!(options.log.as_str(), "error" | "off"));
    let verdict = match run::run(options, &mut screen, &stop).await {
        Ok(verdict) => verdict,
        Err(error @ RunError::Interrupted) => {
            fail(&error.to_string());
            return ExitCode::from(EXIT_INTERRUPTED);
        }
        Err(error) => return fail(&error.to_string()),
    };
    match screen.say(&verdict.to_string()) {
        Ok(()) if verdict.identical() => ExitCode::SUCCESS,
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed")]
fn fail(reason: &str) -> ExitCode {
    eprintln!("tombolo-demo: {reason}");
    ExitCode::FAILURE
}
