//! The commands of `tombolo-gateway`.
//!
//! Exit codes: 0 done, 1 failed, 64 the settings are refused.

mod check;
mod dev_certs;
mod import;
mod status;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tombolo_service::settings::{EXIT_CONFIG, SettingsError};
use tombolo_service::status_client::Output;
use tombolo_service::{logging, shutdown};

use crate::gateway::RunError;
use crate::settings::Settings;

/// tombolo in the cloud: accepts links and appends to mirrors.
#[derive(Debug, Parser)]
#[command(name = "tombolo-gateway", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Run(Config),
    /// Check the settings, the certificates and the cloud cluster.
    Check(Config),
    /// Show links and mirrors of a running gateway.
    Status(Status),
    /// Append an export that was carried by hand: the folder that `tombolo-agent journal export` wrote. Takes the link for
    /// as long as it runs. Exit code 0 only if every partition reached the export's end; run it again to go on.
    Import(Import),
    /// Make certificates for tests: an issuer, one for the gateway, one for each link.
    DevCerts(DevCerts),
}

#[derive(Debug, Args)]
struct Config {
    /// Settings file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Status {
    /// Settings file that names the address.
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    config: Option<PathBuf>,
    /// Address of the gateway's local HTTP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8082")]
    address: SocketAddr,
    /// table or json.
    #[arg(long, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
struct Import {
    /// Folder of the export.
    folder: PathBuf,
    /// Settings file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// table or json.
    #[arg(long, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
struct DevCerts {
    /// Folder for the files; made where it is missing.
    folder: PathBuf,
    /// Name of a link; may be given several times.
    #[arg(long = "link", value_name = "NAME")]
    links: Vec<String>,
    /// Trust domain of the links.
    #[arg(long, value_name = "NAME", default_value = "example.net")]
    domain: String,
    /// Further host name or address of the gateway; may be given several times.
    #[arg(long = "gateway-name", value_name = "HOST")]
    gateway_names: Vec<String>,
}

/// Runs a command to its exit code.
pub async fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run(args) => serve(args).await,
        Command::Check(args) => match Settings::load(&args.config) {
            Ok(settings) => check::run(&settings).await,
            Err(error) => refused(&error),
        },
        Command::Status(args) => status::run(args).await,
        Command::Import(args) => import::run(args).await,
        Command::DevCerts(args) => dev_certs::run(&args),
    }
}

async fn serve(args: Config) -> ExitCode {
    let settings = match Settings::load(&args.config) {
        Ok(settings) => settings,
        Err(error) => return refused(&error),
    };
    if let Err(error) = logging::init(&settings.log) {
        return failed(&error);
    }
    let stop = match shutdown::listen() {
        Ok(stop) => stop,
        Err(error) => return failed(&error),
    };
    match Box::pin(crate::run(settings, stop)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Settings(error)) => {
            let error = error.in_file(&args.config);
            tracing::error!(%error, "gateway cannot start");
            refused(&error)
        }
        Err(error) => {
            tracing::error!(%error, "gateway ended");
            failed(&error)
        }
    }
}

/// Says why a command failed.
pub fn failed(error: &dyn Display) -> ExitCode {
    say(error);
    ExitCode::FAILURE
}

fn refused(error: &SettingsError) -> ExitCode {
    say(error);
    ExitCode::from(EXIT_CONFIG)
}

fn say(error: &dyn Display) {
    // Where stderr is gone there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "tombolo-gateway: {error}"));
}
