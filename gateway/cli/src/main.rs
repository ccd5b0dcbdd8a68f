//! `tombolo`: what an operator asks of both clusters at once.

mod verify;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Questions about mirrors.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read mirrors and their sources and compare them. Exit code 0: nothing differs, but that a mirror may be behind or
    /// begin elsewhere; 1: something differs; 2: they cannot be compared; 64: the settings are refused.
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    let Command::Verify(arguments) = Cli::parse().command;
    // One thread compares; those of the second reading are made where they are asked for.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(verify::run(arguments));
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn say(error: &dyn Display) {
    // Where stderr is gone there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "tombolo: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        let verify = |words: &str| Cli::try_parse_from(format!("tombolo verify --config c {words}").split_whitespace());
        assert!(verify("--link ship-17 --topic orders --topic a.* --from 3 --to 9 --records --strict").is_ok());
        assert!(verify("--digest d --sample 5 --output json").is_ok());
        for bad in ["--digest d --records", "--sample 5 --records", "--sample 5 --from 3", "--sample 0", "--sample 100"]
        {
            assert!(verify(bad).is_err(), "{bad}");
        }
    }
}
