//! `tests/bench/RESULTS.md`: a section for each suite, each written anew by its own run.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::report::{Report, number};

const HEAD: &str = "\
# Results

Written by `cargo run --release -p tombolo-tests --bin bench -- SUITE --report tests/bench/RESULTS.md`: medians of as many
runs as the command says, all contenders in one run on the same data, brokers included on the same machine. What is not met
is told below with its reason.
";

/// Puts the report's section into the file, in place of an older one of the same suite.
pub(crate) fn put(path: &Path, report: &Report) -> Result<(), String> {
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    fs::write(path, replaced(&old, report.suite, &section(report)))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// A section goes from its heading to its end mark; what people write below the mark stays.
fn replaced(text: &str, suite: &str, section: &str) -> String {
    let (begin, end) = (format!("## {suite}\n"), end_mark(suite));
    match (text.find(&begin), text.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            let (before, rest) = text.split_at(from);
            let after = rest.split_once(&end).map(|(_, after)| after).unwrap_or_default();
            format!("{before}{section}{after}")
        }
        _ => format!("{}\n\n{section}\n", text.trim_end()),
    }
}

fn end_mark(suite: &str) -> String {
    format!("<!-- end of {suite} -->")
}

fn section(report: &Report) -> String {
    let mut text = format!("## {}\n\n{}\n\n", report.suite, report.data);
    write(&mut text, format_args!("    {}\n\n{}\n\n", report.command, report.machine.text()));
    let (contenders, medians) = (report.contenders(), report.medians());
    write(&mut text, format_args!("| median | {} |\n", contenders.join(" | ")));
    write(&mut text, format_args!("|---|{}\n", "---:|".repeat(contenders.len())));
    for figure in report.figures() {
        let cells: Vec<String> = contenders
            .iter()
            .map(|contender| {
                let all = medians.get(contender).into_iter().flatten();
                let found = all.into_iter().find(|(name, _)| *name == figure);
                found.map_or_else(|| "-".to_owned(), |(_, value)| number(*value))
            })
            .collect();
        write(&mut text, format_args!("| {figure} | {} |\n", cells.join(" | ")));
    }
    text.push_str("\n| asked of tombolo | | seen | |\n|---|---|---:|---|\n");
    for finding in &report.findings {
        let verdict = if finding.met { "met" } else { "**not met**" };
        write(&mut text, format_args!("| {} | {} | {} | {verdict} |\n", finding.what, finding.asked, finding.seen));
    }
    text.push('\n');
    for (name, content) in &report.settings {
        write(&mut text, format_args!("- {name}: {content}\n"));
    }
    text.push_str(&end_mark(report.suite));
    text
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_an_older_one_and_leaves_the_rest() {
        let first = replaced(HEAD, "bulk", "## bulk\nformer\n<!-- end of bulk -->");
        let with_words = first.replace("<!-- end of bulk -->", "<!-- end of bulk -->\nwhy it is so");
        let other = replaced(&with_words, "raw", "## raw\nother\n<!-- end of raw -->");
        let text = replaced(&other, "bulk", "## bulk\nnew\n<!-- end of bulk -->");
        assert!(text.starts_with(HEAD.trim_end()));
        assert!(text.contains("## bulk\nnew\n<!-- end of bulk -->\nwhy it is so"), "{text}");
        assert!(text.contains("## raw\nother"), "{text}");
        assert!(!text.contains("former"), "{text}");
    }
}
