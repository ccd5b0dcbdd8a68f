//! Rules about `deploy/*.toml`: each is accepted by its daemon and shows every setting there is.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use tombolo_service::settings::{SettingsError, undocumented_keys, untrue_defaults};

use crate::tree::{Finding, Tree};

/// What is wrong with the example text.
type Check = fn(&str) -> Result<Vec<String>, SettingsError>;

const EXAMPLES: [(&str, Check); 2] = [
    ("deploy/agent.toml", problems::<tombolo_agent::settings::RawConfig>),
    ("deploy/gateway.toml", problems::<tombolo_gateway::settings::RawConfig>),
];

/// Commented-out settings that show how, because nothing or another setting holds without them.
const NO_DEFAULT: [&str; 2] = ["server_name = ", "mirror_topic = "];

fn problems<T: DeserializeOwned + Debug>(text: &str) -> Result<Vec<String>, SettingsError> {
    let hidden = undocumented_keys::<T>(text)?.into_iter().map(|key| format!("does not show {key}"));
    let untrue = untrue_defaults::<T>(text)?.into_iter();
    let untrue = untrue.filter(|setting| !NO_DEFAULT.iter().any(|key| setting.starts_with(key)));
    Ok(hidden.chain(untrue.map(|setting| format!("{setting} is not the default"))).collect())
}

/// Every setting is in its example and the other way round, and what is commented out is the default.
pub(crate) fn examples(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, check) in EXAMPLES {
        let Some(text) = tree.text(path) else {
            findings.push(Finding::new(path, 0, "is missing"));
            continue;
        };
        match check(text) {
            Ok(problems) => findings.extend(problems.into_iter().map(|problem| Finding::new(path, 0, problem))),
            Err(error) => findings.push(Finding::new(path, 0, error.to_string())),
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_gateway(change: impl Fn(&str) -> String) -> Vec<String> {
        let real = Tree::of_repository();
        let agent = real.text("deploy/agent.toml").expect("an example");
        let gateway = change(real.text("deploy/gateway.toml").expect("an example"));
        let tree = Tree::of(&[("deploy/agent.toml", agent), ("deploy/gateway.toml", &gateway)]);
        examples(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn finds_a_setting_that_is_not_shown() {
        let found = with_gateway(|text| text.replace("# lease = ", "# The lease: "));
        assert_eq!(found, ["deploy/gateway.toml: does not show registry.lease"]);
    }

    #[test]
    fn finds_a_setting_that_does_not_exist() {
        let found = with_gateway(|text| text.replace("# lease = ", "# leese = "));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("deploy/gateway.toml: registry.leese: unknown field"), "{found:?}");
    }

    #[test]
    fn finds_a_default_that_does_not_hold() {
        let found = with_gateway(|text| text.replace("# lease = \"3 s\"", "# lease = \"4 s\""));
        assert_eq!(found, ["deploy/gateway.toml: lease = \"4 s\" is not the default"]);
    }

    #[test]
    fn finds_a_missing_example() {
        let found: Vec<String> = examples(&Tree::of(&[])).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["deploy/agent.toml: is missing", "deploy/gateway.toml: is missing"]);
    }
}
