//! Kafka client properties in librdkafka's names, as a settings file writes them.
//!
//! Values may be text, whole numbers or booleans. Names may be quoted (`"ssl.ca.location"`) or not: TOML reads the second
//! as nested tables, which are joined again. A name that ends in `.file` (`sasl.password.file = "/run/..."`, or
//! `sasl.password = { file = "/run/..." }`, which TOML makes the same) takes its value from that file, so that a secret
//! need not stand in the settings. No librdkafka property ends in `.file`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{SettingsError, read_bounded};

const FROM_FILE: &str = ".file";
const MAX_SECRET_BYTES: u64 = 64 << 10;
const VALUE_ALLOWED: &str = "text, a whole number, true, false, or { file = \"PATH\" }";

/// Property names and values as written. Which names exist is the Kafka client's to say.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one property, replacing what it had.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// All pairs in the order of their names, `.file` names replaced by the content of the file (one trailing line end
    /// removed). `key` is where the table stands in the settings, for errors. The values may be secrets: do not print.
    pub fn resolve(&self, key: &str) -> Result<Vec<(String, String)>, SettingsError> {
        self.0
            .iter()
            .map(|(name, value)| match name.strip_suffix(FROM_FILE) {
                Some(target) => self.read_file(key, target, Path::new(value)),
                None => Ok((name.clone(), value.clone())),
            })
            .collect()
    }

    fn read_file(&self, key: &str, target: &str, path: &Path) -> Result<(String, String), SettingsError> {
        let refuse = |problem: String, allowed: &str| {
            Err(SettingsError::new(format!("{key}.{target}{FROM_FILE}"), problem, allowed))
        };
        if self.0.contains_key(target) {
            return refuse(format!("{target} is set as well"), "one of the two");
        }
        match read_bounded(path, MAX_SECRET_BYTES) {
            Ok(text) => {
                let value = text.strip_suffix('\n').unwrap_or(&text);
                let value = value.strip_suffix('\r').unwrap_or(value);
                if value.is_empty() {
                    return refuse(format!("{} is empty", path.display()), "a file that holds the value");
                }
                Ok((target.to_owned(), value.to_owned()))
            }
            Err(error) => refuse(
                format!("{} cannot be read: {error}", path.display()),
                "the path of a readable text file of at most 64 KiB",
            ),
        }
    }
}

impl fmt::Debug for Properties {
    /// Names only with the values that can be no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(name, value)| {
                let shown = if is_secret(name) { "[hidden]" } else { value.as_str() };
                (name, shown)
            }))
            .finish()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn is_secret(name: &str) -> bool {
    !name.ends_with(FROM_FILE)
        && (name.contains("password")
            || name.contains("secret")
            || name == "ssl.key.pem"
            || name == "sasl.oauthbearer.config")
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Node::Table(table) = deserializer.deserialize_map(NodeVisitor)? else {
            return Err(de::Error::custom("not a table; allowed: a table of property names"));
        };
        let mut flat = BTreeMap::new();
        flatten(None, table, &mut flat)
            .map_err(|name| de::Error::custom(format!("{name} is set twice; allowed: each property once")))?;
        Ok(Self(flat))
    }
}

/// One value of the TOML document: a leaf or the nested table that an unquoted dotted name makes.
enum Node {
    Leaf(String),
    Table(Vec<(String, Node)>),
}

fn flatten(
    prefix: Option<&str>,
    table: Vec<(String, Node)>,
    flat: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, node) in table {
        let name = match prefix {
            Some(prefix) => format!("{prefix}.{name}"),
            None => name,
        };
        match node {
            Node::Leaf(value) => {
                if flat.insert(name.clone(), value).is_some() {
                    return Err(name);
                }
            }
            Node::Table(inner) => flatten(Some(&name), inner, flat)?,
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VALUE_ALLOWED)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut table = Vec::new();
        while let Some(entry) = map.next_entry()? {
            table.push(entry);
        }
        Ok(Node::Table(table))
    }
}
