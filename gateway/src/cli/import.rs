//! `import`: appends an export and says what became of it.

use std::process::ExitCode;

use serde_json::Value;
use tombolo_service::status_client::{self, Output};
use tombolo_service::{logging, shutdown};

use super::{Import, failed, refused};
use crate::import::{self, Report};
use crate::settings::Settings;

pub(super) async fn run(args: Import) -> ExitCode {
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
    match Box::pin(import::run(settings, args.folder, &stop)).await {
        Ok(report) => print(&report, args.output),
        Err(error) => failed(&error),
    }
}

fn print(report: &Report, output: Output) -> ExitCode {
    let document = serde_json::to_value(report).unwrap_or(Value::Null);
    let table = |_: &Value| {
        let (head, rows) = report.rows();
        format!("{}\n{}", report.title(), status_client::table(&head, rows))
    };
    match status_client::print(&document, output, table) {
        Ok(()) if report.is_complete() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}
