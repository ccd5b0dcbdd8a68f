//! Rules about what is written for people: what the README and `deploy/` name exists, and what exists is named.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{Finding, Tree, has_extension, lines};

const README: &str = "README.md";
const METRIC: &str = "tombolo_";

/// What Prometheus adds to the name of a histogram.
const SERIES: [&str; 3] = ["_bucket", "_count", "_sum"];

/// Folders whose code records metrics.
const RECORDS: [&str; 3] = ["agent/", "common/", "gateway/"];

/// Paths named in the README, in backticks or in a code block, exist. A path begins with a file or folder of the root;
/// `{a,b}` and `*` are understood.
pub(crate) fn paths(tree: &Tree) -> Vec<Finding> {
    let Some(readme) = tree.text(README) else {
        return vec![Finding::new(README, 0, "is missing")];
    };
    let top_level = tree.top_level();
    let mut findings = Vec::new();
    for (number, code) in code_spans(readme) {
        for word in code.split_whitespace().map(trimmed) {
            for path in braces(word) {
                let first = path.split('/').next().unwrap_or_default();
                let is_path = (path.contains('/') && top_level.contains(first)) || is_root_file(&path);
                if is_path && !matches_any(tree, &path) {
                    findings.push(Finding::new(README, number, format!("{path} does not exist")));
                }
            }
        }
    }
    findings
}

/// Metrics named in the README or in `deploy/` are recorded somewhere, and every recorded one is named.
pub(crate) fn metrics(tree: &Tree) -> Vec<Finding> {
    let crates = crate_names(tree);
    let recorded = recorded_metrics(tree, &crates);
    let mut named = BTreeSet::new();
    let mut findings = Vec::new();
    let documents =
        tree.files().filter(|(path, _)| *path == README || (path.starts_with("deploy/") && !has_extension(path, "rs")));
    for (path, text) in documents {
        for (number, line) in lines(text) {
            for word in words_with(line, METRIC).filter(|word| !crates.contains(*word)) {
                let series = SERIES.iter().find_map(|suffix| word.strip_suffix(suffix));
                let metric = series.filter(|base| recorded.contains_key(*base)).unwrap_or(word);
                named.insert(metric.to_owned());
                if !recorded.contains_key(metric) {
                    findings.push(Finding::new(path, number, format!("{metric} is recorded nowhere")));
                }
            }
        }
    }
    let unnamed = recorded.iter().filter(|(metric, _)| !named.contains(**metric));
    findings.extend(unnamed.map(|(metric, (path, number))| {
        Finding::new(path, *number, format!("{metric} is named neither in {README} nor in deploy/"))
    }));
    findings
}

/// Quoted metric names in the code that ships, with the place of the first.
fn recorded_metrics<'t>(tree: &'t Tree, crates: &BTreeSet<String>) -> BTreeMap<&'t str, (&'t str, usize)> {
    let mut recorded = BTreeMap::new();
    for (path, text) in tree.rust_files() {
        let ships = RECORDS.iter().any(|folder| path.starts_with(folder)) && path.contains("/src/");
        if !ships || path.ends_with("_test.rs") || path.ends_with("/testing.rs") {
            continue;
        }
        for (number, line) in lines(without_tests(text)) {
            for part in line.split('"').skip(1).step_by(2) {
                let is_name =
                    part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
                if part.starts_with(METRIC) && part.len() > METRIC.len() && is_name && !crates.contains(part) {
                    recorded.entry(part).or_insert((path, number));
                }
            }
        }
    }
    recorded
}

/// The text up to the test module, which stands last.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Our crates as Rust writes them: they share the prefix of the metrics.
fn crate_names(tree: &Tree) -> BTreeSet<String> {
    tree.files()
        .filter(|(path, _)| path.ends_with("/Cargo.toml"))
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.strip_prefix("name = \"")?.split('"').next())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The words of the line that begin with `prefix` and have more to them.
fn words_with<'l>(line: &'l str, prefix: &'l str) -> impl Iterator<Item = &'l str> {
    line.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(move |word| word.starts_with(prefix) && word.len() > prefix.len())
}

/// The parts of a Markdown text in backticks, and the lines of its code blocks, with their line numbers.
fn code_spans(text: &str) -> Vec<(usize, &str)> {
    let mut spans = Vec::new();
    let mut fenced = false;
    for (number, line) in lines(text) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            spans.push((number, line));
        } else {
            spans.extend(line.split('`').skip(1).step_by(2).map(|span| (number, span)));
        }
    }
    spans
}

/// Without the punctuation around a path, a trailing `/` and a trailing `:line`.
fn trimmed(word: &str) -> &str {
    let word = word.trim_matches(|character: char| "()[]<>,;'\"".contains(character));
    let word = word.trim_end_matches(['/', '.', ':']);
    match word.rsplit_once(':') {
        Some((path, line)) if line.bytes().all(|byte| byte.is_ascii_digit()) => path,
        _ => word.strip_prefix("./").unwrap_or(word),
    }
}

/// A name without a folder that can only be a file of the root.
fn is_root_file(path: &str) -> bool {
    ["Cargo.toml", "Cargo.lock", "LICENSE", "rust-toolchain.toml"].contains(&path)
        || [".clippy.toml", ".rustfmt.toml", ".deny.toml", ".gitignore"].contains(&path)
}

/// `a/{b,c}/d` as `a/b/d` and `a/c/d`.
fn braces(word: &str) -> Vec<String> {
    let parts = word.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    let Some((head, (inner, tail))) = parts else {
        return vec![word.to_owned()];
    };
    let choices = inner.split(',').map(|choice| format!("{head}{choice}{tail}"));
    choices.flat_map(|choice| braces(&choice)).collect()
}

/// Whether a file or folder has this path, where `*` stands for any characters of one name.
fn matches_any(tree: &Tree, path: &str) -> bool {
    if !path.contains('*') {
        return tree.exists(path);
    }
    let wanted: Vec<&str> = path.split('/').collect();
    tree.files().any(|(file, _)| {
        let parts: Vec<&str> = file.split('/').collect();
        parts.len() >= wanted.len() && wanted.iter().zip(&parts).all(|(pattern, name)| matches_name(pattern, name))
    })
}

fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let starts = (0..=rest.len()).filter_map(|at| rest.get(at..));
            starts.into_iter().any(|rest| matches_name(tail, rest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = ("agent/Cargo.toml", "[package]\nname = \"tombolo-agent\"\n");

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    fn readme_paths(readme: &str) -> Vec<String> {
        let tree = Tree::of(&[
            (README, readme),
            ("agent/src/lib.rs", ""),
            ("agent/src/site.rs", ""),
            ("deploy/agent.toml", ""),
            ("Cargo.toml", ""),
        ]);
        texts(&paths(&tree))
    }

    #[test]
    fn finds_a_path_that_does_not_exist() {
        assert_eq!(readme_paths("a\nsee `agent/src/main.rs`\n"), ["README.md:2: agent/src/main.rs does not exist"]);
        assert_eq!(
            readme_paths("```sh\ncat deploy/site.toml\n```\n"),
            ["README.md:2: deploy/site.toml does not exist"]
        );
        assert_eq!(readme_paths("`agent/src/{lib,main}.rs`"), ["README.md:1: agent/src/main.rs does not exist"]);
        assert_eq!(readme_paths("`deploy/*.yml`"), ["README.md:1: deploy/*.yml does not exist"]);
        assert_eq!(readme_paths("`LICENSE`"), ["README.md:1: LICENSE does not exist"]);
        assert_eq!(texts(&paths(&Tree::of(&[]))), ["README.md: is missing"]);
    }

    #[test]
    fn lets_existing_paths_and_other_words_stand() {
        for readme in [
            "`agent/`, `agent/src/{lib,site}.rs`, `./agent/src/lib.rs:12`, `deploy/*.toml`, `Cargo.toml`",
            "`/etc/tombolo/agent.toml` `tombolo/1` `http://127.0.0.1/status` `agent`",
            "agent/gateway without backticks",
            "```\ncargo run -- --config deploy/agent.toml\n```",
        ] {
            assert!(readme_paths(readme).is_empty(), "{readme}: {:?}", readme_paths(readme));
        }
    }

    fn metric_findings(readme: &str, source: &str) -> Vec<String> {
        texts(&metrics(&Tree::of(&[(README, readme), MANIFEST, ("agent/src/site.rs", source)])))
    }

    #[test]
    fn finds_a_metric_that_nobody_records() {
        let found = metric_findings("\n`tombolo_lag_bytes`", "//! a\n");
        assert_eq!(found, ["README.md:2: tombolo_lag_bytes is recorded nowhere"]);
    }

    #[test]
    fn finds_a_metric_that_nobody_documents() {
        let found = metric_findings("", "//! a\ngauge!(\"tombolo_lag_bytes\");\n");
        assert_eq!(found, ["agent/src/site.rs:2: tombolo_lag_bytes is named neither in README.md nor in deploy/"]);
    }

    #[test]
    fn lets_documented_metrics_and_crate_names_stand() {
        let readme = "`tombolo_lag_bytes` `tombolo_rtt_seconds_bucket` `tombolo_agent=debug` `_tombolo`";
        let source = "gauge!(\"tombolo_lag_bytes\"); histogram!(\"tombolo_rtt_seconds\"); filter(\"tombolo_agent\");\n\
                      #[cfg(test)]\nmod tests { gauge!(\"tombolo_only_test\"); }\n";
        assert!(metric_findings(readme, source).is_empty(), "{:?}", metric_findings(readme, source));
    }

    #[test]
    fn reads_metrics_from_deploy_too() {
        let tree = Tree::of(&[
            (README, ""),
            MANIFEST,
            ("agent/src/site.rs", "gauge!(\"tombolo_lag_bytes\");\n"),
            ("deploy/alerts.yaml", "expr: tombolo_lag_bytes > 5 and tombolo_gone == 1\n"),
        ]);
        assert_eq!(texts(&metrics(&tree)), ["deploy/alerts.yaml:1: tombolo_gone is recorded nowhere"]);
    }
}
