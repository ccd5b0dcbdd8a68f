//! Rules about Cargo.toml files: who may depend on whom, what is said once, which suites run.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::tree::{Finding, Tree};

/// The crates of the workspace and which others they may use. Tests and the demo may use all.
const ARROWS: [(&str, &[&str]); 6] = [
    ("tombolo-proto", &[]),
    ("tombolo-service", &[]),
    ("tombolo-kafka", &["tombolo-proto"]),
    ("tombolo-agent", &["tombolo-kafka", "tombolo-proto", "tombolo-service"]),
    ("tombolo-gateway", &["tombolo-kafka", "tombolo-proto", "tombolo-service"]),
    ("tombolo-cli", &["tombolo-kafka", "tombolo-proto", "tombolo-service"]),
];

/// Crates that may use every other one.
const UNBOUND: [&str; 2] = ["tombolo-tests", "tombolo-demo"];

/// All that the pure core may use. Nothing here touches a clock, a socket, a file or a random number.
const PROTO_MAY_USE: [&str; 5] = ["bytes", "crc32c", "prost", "thiserror", "zstd"];

/// Dependencies between our crates follow [`ARROWS`]; the pure core has no others than [`PROTO_MAY_USE`].
pub(crate) fn arrows(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, manifest) in members(tree, &mut findings) {
        let name = package_name(&manifest);
        if UNBOUND.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(Finding::new(path, 0, format!("{name} has no line in ARROWS of tests/tidy")));
            continue;
        };
        for (section, dependency, _) in dependencies(&manifest) {
            let ours = dependency.starts_with("tombolo-");
            if ours && !allowed.contains(&dependency) {
                findings.push(Finding::new(path, 0, format!("{name} may not use {dependency}")));
            }
            let pure = name != "tombolo-proto" || section == "dev-dependencies";
            if !ours && !pure && !PROTO_MAY_USE.contains(&dependency) {
                let text = format!("{name} is pure and may not use {dependency}: only {}", PROTO_MAY_USE.join(", "));
                findings.push(Finding::new(path, 0, text));
            }
        }
    }
    findings
}

/// Members take versions and lints from the root.
pub(crate) fn inherits(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, manifest) in members(tree, &mut findings) {
        if !is_true(manifest.get("lints").and_then(|lints| lints.get("workspace"))) {
            findings.push(Finding::new(path, 0, "lints stand in the root: [lints] workspace = true"));
        }
        for (_, dependency, value) in dependencies(&manifest) {
            if !is_true(value.get("workspace")) {
                let text = format!("the version of {dependency} stands in the root: {dependency}.workspace = true");
                findings.push(Finding::new(path, 0, text));
            }
        }
    }
    findings
}

/// Every folder of `tests/` with a `main.rs` is a suite, or a program, that Cargo knows.
pub(crate) fn suites(tree: &Tree) -> Vec<Finding> {
    let path = "tests/Cargo.toml";
    let Some(manifest) = tree.text(path).and_then(|text| text.parse::<Table>().ok()) else {
        return vec![Finding::new(path, 0, "is missing or no TOML")];
    };
    let targets = ["test", "bin", "bench"].into_iter().filter_map(|kind| manifest.get(kind).and_then(Value::as_array));
    let listed: BTreeSet<&str> =
        targets.flatten().filter_map(|test| test.get("path").and_then(Value::as_str)).collect();
    tree.files()
        .filter_map(|(file, _)| file.strip_prefix("tests/"))
        .filter(|file| file.ends_with("/main.rs") && file.matches('/').count() == 1)
        .filter(|file| !listed.contains(file))
        .map(|file| Finding::new(path, 0, format!("{file} never runs: add a [[test]] with this path")))
        .collect()
}

/// The manifests of all crates; one that cannot be read is a finding.
fn members<'t>(tree: &'t Tree, findings: &mut Vec<Finding>) -> Vec<(&'t str, Table)> {
    let mut members = Vec::new();
    for (path, text) in tree.files().filter(|(path, _)| path.ends_with("/Cargo.toml")) {
        match text.parse::<Table>() {
            Ok(manifest) => members.push((path, manifest)),
            Err(error) => findings.push(Finding::new(path, 0, error.to_string())),
        }
    }
    members
}

fn package_name(manifest: &Table) -> &str {
    let name = manifest.get("package").and_then(|package| package.get("name"));
    name.and_then(Value::as_str).unwrap_or("a package without a name")
}

/// Section, name and value of each dependency.
fn dependencies(manifest: &Table) -> Vec<(&'static str, &str, &Value)> {
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let table = manifest.get(section).and_then(Value::as_table);
        found.extend(table.into_iter().flatten().map(|(name, value)| (section, name.as_str(), value)));
    }
    found
}

fn is_true(value: Option<&Value>) -> bool {
    value.and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    fn manifest(name: &str, dependencies: &str) -> String {
        format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n[dependencies]\n{dependencies}\n")
    }

    #[test]
    fn finds_an_arrow_that_points_the_wrong_way() {
        let agent = manifest("tombolo-agent", "tombolo-gateway.workspace = true\ntombolo-kafka.workspace = true");
        let found = arrows(&Tree::of(&[("agent/Cargo.toml", &agent)]));
        assert_eq!(texts(&found), ["agent/Cargo.toml: tombolo-agent may not use tombolo-gateway"]);
    }

    #[test]
    fn finds_an_impure_core() {
        let proto = manifest("tombolo-proto", "bytes.workspace = true\ntokio.workspace = true");
        let proto = format!("{proto}[dev-dependencies]\nproptest.workspace = true\n");
        let found = texts(&arrows(&Tree::of(&[("common/proto/Cargo.toml", &proto)])));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("may not use tokio"), "{found:?}");
    }

    #[test]
    fn finds_a_crate_without_a_place() {
        let found = texts(&arrows(&Tree::of(&[("x/Cargo.toml", &manifest("tombolo-x", ""))])));
        assert_eq!(found, ["x/Cargo.toml: tombolo-x has no line in ARROWS of tests/tidy"]);
    }

    #[test]
    fn lets_tests_and_demo_use_all() {
        let all = "tombolo-agent.workspace = true\ntombolo-gateway.workspace = true";
        let (tests, demo) = (manifest("tombolo-tests", all), manifest("tombolo-demo", all));
        let tree = Tree::of(&[("tests/Cargo.toml", &tests), ("deploy/demo/Cargo.toml", &demo)]);
        assert_eq!(arrows(&tree), []);
    }

    #[test]
    fn finds_a_version_or_lints_outside_the_root() {
        let own = "[package]\nname = \"tombolo-agent\"\n[dependencies]\nbytes = \"1\"\n[dev-dependencies]\nrand = { version = \"1\" }\n";
        let found = texts(&inherits(&Tree::of(&[("agent/Cargo.toml", own)])));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("[lints] workspace = true"), "{found:?}");
        assert!(found[1].contains("bytes.workspace = true"), "{found:?}");
        assert!(found[2].contains("rand.workspace = true"), "{found:?}");
    }

    #[test]
    fn finds_a_suite_that_never_runs() {
        let manifest = "[[test]]\nname = \"sim\"\npath = \"sim/main.rs\"\n";
        let tree = Tree::of(&[
            ("tests/Cargo.toml", manifest),
            ("tests/sim/main.rs", "//! a"),
            ("tests/e2e/main.rs", "//! b"),
            ("tests/sim/world/main.rs", "//! c"),
        ]);
        let found = texts(&suites(&tree));
        assert_eq!(found, ["tests/Cargo.toml: e2e/main.rs never runs: add a [[test]] with this path"]);
    }

    #[test]
    fn finds_a_manifest_that_is_no_toml() {
        assert_eq!(arrows(&Tree::of(&[("agent/Cargo.toml", "[package\n")])).len(), 1);
    }
}
