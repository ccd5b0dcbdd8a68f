//! The house rules as tests: what a reviewer would otherwise have to remember.
//!
//! Each rule is a function from the [`tree::Tree`] of the repository to its findings, and each has a test of its own
//! that plants a violation and sees the rule find it. The lists to edit when the code moves stand at the head of each
//! rule's file.

mod documents;
mod manifests;
mod settings;
mod source;
mod tree;

use tree::{Finding, Tree};

/// Fails with all findings of one rule, one a line.
fn assert_none(findings: &[Finding]) {
    let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), text.join("\n"));
}

#[test]
fn crates_depend_in_one_direction() {
    assert_none(&manifests::arrows(&Tree::of_repository()));
}

#[test]
fn versions_and_lints_stand_in_the_root_manifest() {
    assert_none(&manifests::inherits(&Tree::of_repository()));
}

#[test]
fn every_suite_is_run() {
    assert_none(&manifests::suites(&Tree::of_repository()));
}

#[test]
fn every_file_says_what_it_is_for() {
    assert_none(&source::heads(&Tree::of_repository()));
}

#[test]
fn files_have_names_that_say_something() {
    assert_none(&source::names(&Tree::of_repository()));
}

#[test]
fn banned_words_do_not_occur() {
    assert_none(&source::words(&Tree::of_repository()));
}

#[test]
fn foreign_types_stay_where_they_belong() {
    assert_none(&source::boundaries(&Tree::of_repository()));
}

#[test]
fn text_is_ascii() {
    assert_none(&source::ascii(&Tree::of_repository()));
}

#[test]
fn paths_named_in_the_readme_exist() {
    assert_none(&documents::paths(&Tree::of_repository()));
}

#[test]
fn metrics_are_documented_and_exist() {
    assert_none(&documents::metrics(&Tree::of_repository()));
}

#[test]
fn example_settings_are_whole_and_true() {
    assert_none(&settings::examples(&Tree::of_repository()));
}
