//! `journal ls`, `verify`, `export`: what is on disk, for an agent that does not run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tombolo_proto::frame::FrameLimits;
use tombolo_proto::limits::MAX_FRAME_BYTES;
use tombolo_service::progress::Progress;
use tombolo_service::status_client::{Output, print, table};

use super::{fail, list, number, refuse, text};
use crate::export;
use crate::journal::{Journal, JournalError, JournalRange, LostRange};
use crate::keeper::open_journal;
use crate::settings::Settings;

/// Bytes of frames read at a time.
const READ_BYTES: usize = 4 << 20;
const LIMITS: FrameLimits = FrameLimits { max_bytes: MAX_FRAME_BYTES };

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what the journal holds of each partition.
    Ls(Common),
    /// Read every frame and check it. Exit code 1 where something is damaged.
    Verify(Common),
    /// Write all of it into a folder that is carried to the cloud: `tombolo-gateway import` appends it there. The journal
    /// stays as it is.
    Export(Export),
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Settings file of the agent, which must not run: `tombolo-agent status` shows a running one's journal.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// table or json. The JSON is a stable schema.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Folder for the export: made, or empty.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(super) fn execute(command: Command) -> ExitCode {
    let common = match &command {
        Command::Ls(common) | Command::Verify(common) => common,
        Command::Export(export) => &export.common,
    };
    let output = common.output;
    let settings = match Settings::load(&common.config) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let done = match command {
        Command::Ls(_) => ls(&settings),
        Command::Verify(_) => verify(&settings),
        Command::Export(Export { folder, .. }) => return carry(&settings, &folder, output),
    };
    match done {
        Ok(document) => {
            let damaged = !list(&document, "/lost").is_empty();
            match print(&document, output, show) {
                Ok(()) if damaged => ExitCode::FAILURE,
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Err(error) => fail(&*error),
    }
}

type Failed = Box<dyn std::error::Error>;

fn ls(settings: &Settings) -> Result<Value, Failed> {
    let (journal, lost) = open_journal(&settings.journal)?;
    Ok(document(&journal, &lost))
}

fn verify(settings: &Settings) -> Result<Value, Failed> {
    let (mut journal, mut lost) = open_journal(&settings.journal)?;
    let ranges = journal.ranges();
    let mut progress = Progress::new("verifying", ranges.iter().map(|range| range.bytes).sum());
    for range in &ranges {
        lost.extend(verify_range(&mut journal, range, &mut progress)?);
    }
    progress.finish();
    Ok(document(&journal, &lost))
}

/// Reads a partition's frames; what cannot be read.
fn verify_range(
    journal: &mut impl Journal,
    range: &JournalRange,
    progress: &mut Progress,
) -> Result<Vec<LostRange>, JournalError> {
    let mut offset = range.first;
    let lost = |first| {
        let JournalRange { topic, partition, next, .. } = range.clone();
        vec![LostRange { topic, partition, first, next: Some(next) }]
    };
    while offset < range.next {
        let frames = match journal.read(&range.topic, range.partition, offset, READ_BYTES) {
            Ok(frames) if frames.is_empty() => return Ok(lost(offset)),
            Ok(frames) => frames,
            Err(JournalError::Damaged { .. }) => return Ok(lost(offset)),
            Err(error) => return Err(error),
        };
        for packed in frames {
            if packed.unpack(LIMITS).is_err() {
                return Ok(lost(packed.first_offset));
            }
            progress.add(packed.body_bytes() as u64);
            offset = packed.next_offset;
        }
    }
    Ok(Vec::new())
}

fn document(journal: &impl Journal, lost: &[LostRange]) -> Value {
    let usage = journal.usage();
    let partitions: Vec<_> = journal
        .ranges()
        .iter()
        .map(|range| {
            json!({"topic": range.topic.as_str(), "partition": range.partition, "first": range.first,
                "next": range.next, "bytes": range.bytes})
        })
        .collect();
    let lost: Vec<_> = lost
        .iter()
        .map(|lost| {
            json!({"topic": lost.topic.as_str(), "partition": lost.partition, "first": lost.first, "next": lost.next})
        })
        .collect();
    json!({"file_bytes": usage.file_bytes, "max_bytes": usage.max_bytes, "segments": usage.segments,
        "damaged_segments": usage.damaged_segments, "partitions": partitions, "lost": lost})
}

fn show(document: &Value) -> String {
    let mut lines = vec![format!(
        "JOURNAL {} of {} bytes in {} files, {} damaged",
        number(document, "/file_bytes"),
        number(document, "/max_bytes"),
        number(document, "/segments"),
        number(document, "/damaged_segments"),
    )];
    for lost in list(document, "/lost") {
        lines.push(format!(
            "LOST {} partition {} from offset {} to {}: read from the source again when the agent runs",
            text(lost, "/topic"),
            number(lost, "/partition"),
            number(lost, "/first"),
            number(lost, "/next"),
        ));
    }
    let rows = list(document, "/partitions").iter().map(|partition| {
        let column = |path| number(partition, path);
        vec![
            text(partition, "/topic").to_owned(),
            column("/partition"),
            column("/first"),
            column("/next"),
            column("/bytes"),
        ]
    });
    format!("{}\n{}", lines.join("\n"), table(&["TOPIC", "PARTITION", "FIRST", "NEXT", "BYTES"], rows))
}

fn carry(settings: &Settings, folder: &std::path::Path, output: Output) -> ExitCode {
    let manifest = match export::export(settings, folder) {
        Ok(manifest) => manifest,
        Err(error) => return fail(&error),
    };
    let ranges: Vec<_> = manifest
        .topics
        .iter()
        .flat_map(|topic| topic.ranges.iter().map(move |range| (topic, range)))
        .map(|(topic, range)| {
            json!({"topic": topic.name, "partition": range.partition, "first": range.first_offset,
                "next": range.next_offset, "bytes": range.raw_bytes})
        })
        .collect();
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let document = json!({"folder": folder.display().to_string(), "link": manifest.link, "files": manifest.files.len(),
        "file_bytes": bytes, "partitions": ranges});
    let shown = print(&document, output, |document| {
        let rows = list(document, "/partitions").iter().map(|partition| {
            let column = |path| number(partition, path);
            vec![
                text(partition, "/topic").to_owned(),
                column("/partition"),
                column("/first"),
                column("/next"),
                column("/bytes"),
            ]
        });
        format!(
            "EXPORT of link {} in {}: {} bytes in {} files\n{}",
            text(document, "/link"),
            text(document, "/folder"),
            number(document, "/file_bytes"),
            number(document, "/files"),
            table(&["TOPIC", "PARTITION", "FIRST", "NEXT", "RAW BYTES"], rows)
        )
    });
    shown.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}
