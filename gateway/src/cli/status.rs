//! `status`: asks a running gateway and prints what it says.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tombolo_service::status_client;

use super::{Status, failed, refused};
use crate::settings::Settings;

const DEADLINE: Duration = Duration::from_secs(5);
const HEAD: [&str; 8] = ["LINK", "STATE", "TERM", "TOPIC", "MIRROR", "LAG", "HELD", "DETAIL"];

pub(super) async fn run(args: Status) -> ExitCode {
    let address = match args.config.as_deref().map(Settings::load) {
        Some(Ok(settings)) => settings.http.listen,
        Some(Err(error)) => return refused(&error),
        None => args.address,
    };
    let document = match status_client::fetch(address, DEADLINE).await {
        Ok(document) => document,
        Err(error) => return failed(&error),
    };
    match status_client::print(&document, args.output, table) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// One line per mirror; a link without mirrors has one of its own. Losses follow, for they are not to be forgotten.
fn table(document: &Value) -> String {
    let mut rows = Vec::new();
    let mut losses = Vec::new();
    for link in document.get("links").and_then(Value::as_array).into_iter().flatten() {
        let mirrors = link.get("mirrors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for mirror in mirrors {
            let detail = text(mirror, "detail");
            rows.push(vec![
                text(link, "name"),
                text(link, "state"),
                text(link, "term"),
                text(mirror, "topic"),
                text(mirror, "mirror_status"),
                text(mirror, "lag"),
                text(link, "held_bytes"),
                if detail == "-" { text(link, "reason") } else { detail },
            ]);
        }
        losses.extend(link.get("losses").and_then(Value::as_array).into_iter().flatten().map(|loss| lost(link, loss)));
        if mirrors.is_empty() {
            let none = || "-".to_owned();
            let (name, state, term) = (text(link, "name"), text(link, "state"), text(link, "term"));
            rows.push(vec![name, state, term, none(), none(), none(), text(link, "held_bytes"), text(link, "reason")]);
        }
    }
    let table = status_client::table(&HEAD, rows);
    std::iter::once(table).chain(losses).collect::<Vec<_>>().join("\n")
}

fn lost(link: &Value, loss: &Value) -> String {
    let last = loss.get("to").and_then(Value::as_i64).unwrap_or_default() - 1;
    format!(
        "LOST {} {}[{}] offsets {} to {last}, noted {}: {}",
        text(link, "name"),
        text(loss, "topic"),
        text(loss, "partition"),
        text(loss, "from"),
        text(loss, "at"),
        text(loss, "reason"),
    )
}

fn text(object: &Value, key: &str) -> String {
    match object.get(key) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_per_mirror_says_what_is_wrong() {
        let document = json!({"links": [
            {"name": "ship-17", "state": "ACTIVE", "term": 3, "held_bytes": 0, "mirrors": [
                {"topic": "orders", "mirror_status": "FAILED", "lag": 4, "detail": "FOREIGN_WRITE partition 0"},
                {"topic": "alarms", "mirror_status": "ACTIVE", "lag": 0, "detail": null},
            ]},
            {"name": "ship-18", "state": "UNAVAILABLE", "reason": "no session yet", "held_bytes": 0, "mirrors": [],
             "losses": [{"topic": "old", "partition": 1, "from": 5, "to": 9, "at": "T", "reason": "gone"}]},
        ]});
        let text = table(&document);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[4], "LOST ship-18 old[1] offsets 5 to 8, noted T: gone");
        assert!(lines[1].starts_with("ship-17") && lines[1].ends_with("FOREIGN_WRITE partition 0"), "{text}");
        assert!(lines[3].ends_with("no session yet"), "{text}");
    }
}
