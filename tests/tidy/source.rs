//! Rules about source text: heads, names, banned words, where foreign types may stand, ASCII.

use crate::tree::{Finding, Tree, has_extension, lines};

/// Words that may not stand in a Rust file, and what to write.
const WORDS: [(&str, &str); 9] = [
    ("FIXME", "TODO(#n) with an open issue, or fix it"),
    ("XXX", "what is meant"),
    ("dbg!", "a tracing event, or nothing"),
    ("unbounded_channel", "tokio::sync::mpsc::channel with a limit"),
    ("mpsc::channel()", "std::sync::mpsc::sync_channel with a limit"),
    ("todo!(", "what it should do"),
    ("unimplemented!(", "what it should do, or an error that says what is not supported"),
    ("#[allow(", "#[expect(.., reason = \"..\")]"),
    ("#![allow(", "#![expect(.., reason = \"..\")]"),
];

/// Attributes that need a reason.
const NEEDS_REASON: [(&str, &str); 2] =
    [("#[ignore]", "#[ignore = \"why, and who runs it\"]"), ("#[should_panic]", "#[should_panic(expected = \"..\")]")];

/// File names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "helper", "helpers", "manager", "misc"];

/// Crates whose types stay in a few files: a change of such a crate must not reach further.
const BOUNDARIES: [(&str, &[&str]); 5] = [
    ("kafka_protocol", &["common/kafka/", "tests/"]),
    ("quinn", QUIC),
    ("quinn_proto", QUIC),
    ("redb", &["agent/src/journal", "agent/src/state"]),
    ("rdkafka", &["deploy/demo/", "gateway/cli/", "tests/"]),
];

/// Prefixes of the files that may speak QUIC.
const QUIC: &[&str] = &[
    "agent/src/carrier",
    "agent/src/dial",
    "gateway/src/carrier",
    "gateway/src/listener",
    "gateway/src/session",
    "tests/bench/site.rs",
    "tests/bench/suites/links.rs",
    "tests/e2e/stranger.rs",
];

/// These files hold what is banned as data.
const RULES: &str = "tests/tidy/";

/// Every Rust file opens with what it is for.
pub(crate) fn heads(tree: &Tree) -> Vec<Finding> {
    tree.rust_files()
        .filter(|(_, text)| !opens_with_head(text))
        .map(|(path, _)| Finding::new(path, 1, "opens without //!: say what the file is for"))
        .collect()
}

fn opens_with_head(text: &str) -> bool {
    let head = text.lines().next().and_then(|line| line.strip_prefix("//!"));
    head.is_some_and(|words| !words.trim().is_empty())
}

/// No `mod.rs`, no file named for nothing.
pub(crate) fn names(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, _) in tree.rust_files() {
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = file.trim_end_matches(".rs");
        if file == "mod.rs" {
            findings.push(Finding::new(path, 0, "mod.rs: write foo.rs beside foo/"));
        }
        if stem.split('_').any(|part| EMPTY_NAMES.contains(&part)) {
            findings.push(Finding::new(path, 0, format!("{stem} says nothing: name it for what it does")));
        }
    }
    findings
}

/// None of [`WORDS`]; no task left without an issue; attributes with their reason.
pub(crate) fn words(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.rust_files().filter(|(path, _)| !path.starts_with(RULES)) {
        for (number, line) in lines(text) {
            let banned = WORDS.iter().chain(&NEEDS_REASON).filter(|(word, _)| line.contains(word));
            findings
                .extend(banned.map(|(word, instead)| Finding::new(path, number, format!("{word}: write {instead}"))));
            if has_task_without_issue(line) {
                findings.push(Finding::new(path, number, "a task without an issue: write TODO(#n)"));
            }
        }
    }
    findings
}

/// Types of some crates stay where [`BOUNDARIES`] says.
pub(crate) fn boundaries(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.rust_files().filter(|(path, _)| !path.starts_with(RULES)) {
        for (number, line) in lines(text) {
            let code = line.split("//").next().unwrap_or_default();
            for (krate, allowed) in &BOUNDARIES {
                if names_crate(code, krate) && !allowed.iter().any(|prefix| path.starts_with(prefix)) {
                    let text = format!("{krate} belongs in {}", allowed.join(", "));
                    findings.push(Finding::new(path, number, text));
                }
            }
        }
    }
    findings
}

/// All that people write is ASCII.
pub(crate) fn ascii(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.files().filter(|(path, _)| is_written_text(path)) {
        for (number, line) in lines(text) {
            if let Some(odd) = line.chars().find(|character| !character.is_ascii()) {
                findings.push(Finding::new(path, number, format!("{} is not ASCII", odd.escape_unicode())));
            }
        }
    }
    findings
}

fn is_written_text(path: &str) -> bool {
    let by_extension = ["rs", "toml", "md", "yml", "yaml", "sh", "xml", "service", "proto", "json", "properties"];
    let by_name = ["LICENSE", ".ci/run", ".gitignore", "Containerfile"];
    by_extension.iter().any(|extension| has_extension(path, extension)) || by_name.contains(&path)
}

/// `TODO` as a word, not followed by `(#n)`.
fn has_task_without_issue(line: &str) -> bool {
    const WORD: &str = "TODO";
    line.match_indices(WORD).any(|(at, _)| {
        let rest = line.get(at + WORD.len()..).unwrap_or_default();
        let number = rest.strip_prefix("(#").or_else(|| rest.strip_prefix(" #"));
        let is_word =
            !continues(line.get(..at).and_then(|before| before.chars().next_back())) && !continues(rest.chars().next());
        is_word && !number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// Whether `code` names a path of the crate: `krate::..`, at the beginning of a word, or `use krate;`.
fn names_crate(code: &str, krate: &str) -> bool {
    code.match_indices(krate).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let after = code.get(at + krate.len()..).unwrap_or_default();
        let begins_word = !continues(before.chars().next_back()) && !before.ends_with('"');
        let is_used = before.trim_end().ends_with("use") || before.trim_end().ends_with("extern crate");
        begins_word && (after.starts_with("::") || (is_used && !continues(after.chars().next())))
    })
}

/// Whether the character would belong to the same identifier.
fn continues(character: Option<char>) -> bool {
    character.is_some_and(|character| character.is_alphanumeric() || character == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Finding>, path: &str, text: &str) -> Vec<String> {
        rule(&Tree::of(&[(path, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn finds_a_file_without_a_head() {
        for text in ["", "use std::fs;\n", "// one slash short\n", "//!\n", "\n//! Late.\n"] {
            assert_eq!(found(heads, "agent/src/lib.rs", text).len(), 1, "{text:?}");
        }
        assert!(found(heads, "agent/src/lib.rs", "//! What it is.\n").is_empty());
        assert!(found(heads, "agent/Cargo.toml", "[package]\n").is_empty());
    }

    #[test]
    fn finds_names_that_say_nothing() {
        for path in
            ["a/src/x/mod.rs", "a/src/util.rs", "a/src/kafka_utils.rs", "a/src/session_manager.rs", "tests/helper.rs"]
        {
            assert_eq!(found(names, path, "//! a\n").len(), 1, "{path}");
        }
        for path in ["a/src/model.rs", "a/src/utility_bill.rs", "a/src/x.rs"] {
            assert!(found(names, path, "//! a\n").is_empty(), "{path}");
        }
    }

    #[test]
    fn finds_each_banned_word() {
        for (word, _) in WORDS.iter().chain(&NEEDS_REASON) {
            let hits = found(words, "agent/src/a.rs", &format!("//! a\nfn a() {{ {word} }}\n"));
            assert!(
                hits.iter().any(|hit| hit.starts_with(&format!("agent/src/a.rs:2: {word}: write "))),
                "{word}: {hits:?}"
            );
        }
        assert!(found(words, "agent/src/a.rs", "//! a\n#[ignore = \"why\"]\nfn a() {}\n").is_empty());
    }

    #[test]
    fn finds_a_task_without_an_issue() {
        for line in ["// TODO later", "// TODO: x", "// TODO(anna) x", "// TODO(#x)", "TODO"] {
            assert_eq!(found(words, "a.rs", line).len(), 1, "{line}");
        }
        for line in ["// TODO(#12) later", "// TODO #3: x", "let MASTODON = 1; // TODOS"] {
            assert!(found(words, "a.rs", line).is_empty(), "{line}");
        }
    }

    #[test]
    fn finds_a_foreign_type_out_of_its_place() {
        let cases = [
            ("agent/src/site.rs", "use kafka_protocol::messages::FetchRequest;"),
            ("agent/src/site.rs", "fn a(c: &quinn::Connection) {}"),
            ("gateway/src/registry.rs", "use quinn_proto as q;"),
            ("agent/src/settings.rs", "use redb::Database;"),
            ("common/kafka/src/fetch.rs", "use rdkafka::ClientConfig;"),
        ];
        for (path, line) in cases {
            assert_eq!(found(boundaries, path, line).len(), 1, "{path}: {line}");
        }
    }

    #[test]
    fn lets_foreign_types_stand_in_their_place() {
        let cases = [
            ("common/kafka/src/fetch.rs", "use kafka_protocol::messages::FetchRequest;"),
            ("agent/src/carrier/quic.rs", "use quinn::Connection;"),
            ("gateway/src/listener.rs", "use quinn::Endpoint;"),
            ("tests/e2e/witness.rs", "use rdkafka::ClientConfig;"),
            ("agent/src/site.rs", "let note = \"rdkafka::x\"; // quinn::Connection is elsewhere"),
            ("agent/src/site.rs", "use crate::harlequinn::x;"),
        ];
        for (path, line) in cases {
            assert!(found(boundaries, path, line).is_empty(), "{path}: {line}");
        }
    }

    #[test]
    fn finds_what_is_not_ascii() {
        let hits = found(ascii, "README.md", "plain\nna\u{ef}ve\n");
        assert_eq!(hits, ["README.md:2: \\u{ef} is not ASCII"]);
        assert!(found(ascii, "tests/data/batch.bin", "\u{ef}").is_empty());
    }
}
