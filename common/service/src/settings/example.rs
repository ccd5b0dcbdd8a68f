//! Whether an example settings file shows every key there is.
//!
//! In an example a line `# key = value` or `# [table]` is a setting that is not set (the key is a bare TOML key); all
//! other `#` lines are comments.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{SettingsError, parse};

/// No settings type has a key of this name.
const PROBE: &str = "no_such_key";

/// The keys of `T` that the example `text` does not show, neither set nor as `# key = value`. An error where the example
/// is refused as settings, as it stands or with all those lines set: so it shows no key that does not exist.
///
/// Works by asking: `T` and its parts say `deny_unknown_fields`, so an unknown key in a table is answered with the known
/// ones. A table that takes the unknown key has keys of the user's own choice and is left alone.
pub fn undocumented_keys<T: DeserializeOwned>(text: &str) -> Result<Vec<String>, SettingsError> {
    parse::<T>(text)?;
    let text = uncommented(text);
    parse::<T>(&text)?;
    let document: Table = parse(&text)?;
    let mut missing = Vec::new();
    let mut steps = Vec::new();
    visit::<T>(&document, &mut steps, &Value::Table(document.clone()), &mut missing);
    Ok(missing)
}

/// The commented-out settings of the example `text` whose value is not what holds without them, as `key = value`.
/// What holds is compared by `Debug`, so secrets that it hides are not seen.
pub fn untrue_defaults<T: DeserializeOwned + Debug>(text: &str) -> Result<Vec<String>, SettingsError> {
    let without = format!("{:?}", parse::<T>(text)?);
    let lines: Vec<&str> = text.lines().collect();
    let mut untrue = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(setting) = commented_setting(line).filter(|setting| !setting.starts_with('[')) else {
            continue;
        };
        let with = lines.iter().enumerate().map(|(other, line)| if other == at { setting } else { line });
        let with = with.collect::<Vec<_>>().join("\n");
        if format!("{:?}", parse::<T>(&with)?) != without {
            untrue.push(setting.to_owned());
        }
    }
    Ok(untrue)
}

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

/// Looks at the table or list that `steps` lead to, and at all below it.
fn visit<T: DeserializeOwned>(document: &Table, steps: &mut Vec<Step>, value: &Value, missing: &mut Vec<String>) {
    let inner: Vec<(Step, &Value)> = match value {
        Value::Table(table) => {
            let known = known_keys::<T>(document, steps);
            let absent = known.iter().filter(|key| !table.contains_key(*key));
            missing.extend(absent.map(|key| path(steps, key)));
            table.iter().map(|(key, value)| (Step::Key(key.clone()), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(at, value)| (Step::Index(at), value)).collect(),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => return,
    };
    for (step, value) in inner {
        steps.push(step);
        visit::<T>(document, steps, value, missing);
        steps.pop();
    }
}

/// What `T` says is allowed where an unknown key stands; nothing where it takes any key.
fn known_keys<T: DeserializeOwned>(document: &Table, steps: &[Step]) -> Vec<String> {
    let mut probe = Value::Table(document.clone());
    let place = steps.iter().try_fold(&mut probe, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(at) => value.get_mut(*at),
    });
    if let Some(table) = place.and_then(Value::as_table_mut) {
        table.insert(PROBE.to_owned(), Value::Boolean(true));
    }
    let message = match T::deserialize(probe) {
        Ok(_) => return Vec::new(),
        Err(error) => error.message().to_owned(),
    };
    let unknown = format!("unknown field `{PROBE}`");
    let Some((_, known)) = message.split_once(&unknown) else {
        return Vec::new();
    };
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn path(steps: &[Step], key: &str) -> String {
    let mut path = String::new();
    for step in steps {
        path = match step {
            Step::Key(key) => format!("{path}{key}."),
            Step::Index(at) => format!("{}[{at}].", path.trim_end_matches('.')),
        };
    }
    path + key
}

/// The text with its commented-out settings and tables set.
fn uncommented(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| commented_setting(line).unwrap_or(line)).collect();
    lines.join("\n")
}

/// `key = value` of `# key = value`, or `[table]` of `# [table]`; nothing for words about them.
fn commented_setting(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('#')?.trim();
    let is_bare = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let is_key = rest.split_once(" = ").is_some_and(|(key, value)| is_bare(key) && !value.is_empty());
    let table = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_table = table.is_some_and(|name| is_bare(name.trim_matches(['[', ']'])));
    (is_key || is_table).then_some(rest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::settings::{ByteSize, Properties, Span};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys are tested")]
    struct Raw {
        link: Link,
        #[serde(default)]
        mirrors: Vec<Mirror>,
        #[serde(default)]
        kafka: Properties,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys are tested")]
    struct Link {
        gateway: String,
        window: Option<ByteSize>,
        spill: Option<Span>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys are tested")]
    struct Mirror {
        topic: String,
        paused: Option<bool>,
    }

    const WHOLE: &str = "# A comment = no setting.\n[link]\ngateway = \"a\"\n# window = \"1 MiB\"\n#spill = \"2 s\"\n\n\
                         # [[mirrors]]\n# topic = \"a\"\n#paused = true\n[kafka]\n\"bootstrap.servers\" = \"a\"\n[labels]\nx = \"y\"\n";

    #[test]
    fn finds_nothing_missing_in_a_whole_example() {
        assert_eq!(undocumented_keys::<Raw>(WHOLE).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn finds_each_key_that_is_not_shown() {
        for (line, key) in [
            ("#spill = \"2 s\"\n", "link.spill"),
            ("# window = \"1 MiB\"\n", "link.window"),
            ("#paused = true\n", "mirrors[0].paused"),
            ("[labels]\nx = \"y\"\n", "labels"),
            ("[kafka]\n\"bootstrap.servers\" = \"a\"\n", "kafka"),
        ] {
            let text = WHOLE.replace(line, "");
            assert_eq!(undocumented_keys::<Raw>(&text).unwrap(), [key], "{line}");
        }
    }

    #[test]
    fn finds_a_default_that_does_not_hold() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Memory {
            window: ByteSize,
            spill: Span,
        }
        impl Default for Memory {
            fn default() -> Self {
                Self { window: ByteSize::mib(16), spill: Span::from_secs(2) }
            }
        }
        let text = "# window = \"16 MiB\"\n# spill = \"3 s\"\n";
        assert_eq!(untrue_defaults::<Memory>(text).unwrap(), ["spill = \"3 s\""]);
        assert_eq!(untrue_defaults::<Memory>("spill = \"3 s\"\n").unwrap(), Vec::<String>::new());
        assert_eq!(untrue_defaults::<Memory>("# spil = \"3 s\"\n").unwrap_err().key(), Some("spil"));
    }

    #[test]
    fn takes_words_about_settings_for_words() {
        for line in
            ["# The window = what is sent.", "# \"a.b\" = 1 is quoted", "# key =", "# [see below] for more", "#"]
        {
            assert_eq!(commented_setting(line), None, "{line}");
        }
        assert_eq!(commented_setting("# [[link.mirror]]"), Some("[[link.mirror]]"));
        assert_eq!(commented_setting("#retry.most = \"1 min\""), Some("retry.most = \"1 min\""));
    }

    #[test]
    fn refuses_an_example_that_shows_a_key_that_does_not_exist() {
        let error = undocumented_keys::<Raw>(&WHOLE.replace("#spill", "#spil")).unwrap_err();
        assert_eq!(error.key(), Some("link.spil"));
        let error = undocumented_keys::<Raw>(&WHOLE.replace("gateway", "gatway")).unwrap_err();
        assert_eq!(error.key(), Some("link.gatway"));
    }
}
