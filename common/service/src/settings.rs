//! Settings files: strict TOML in, typed values or an error that names the key out.
//!
//! A daemon has two types: `RawConfig` (serde, `deny_unknown_fields`, what was written) and `Settings` (checked, what the
//! process uses). [`load`] yields the first; the checks that make the second report through [`SettingsError::new`].
//! All of it happens before a port is bound, and a failure is answered with [`EXIT_CONFIG`].

mod error;
mod example;
mod properties;
mod units;

use std::path::Path;

use serde::de::DeserializeOwned;

pub use error::SettingsError;
pub use example::{undocumented_keys, untrue_defaults};
pub use properties::Properties;
pub use units::{ByteSize, Span, UnitError};

/// Exit code of a process whose settings are refused (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// The largest settings file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads the TOML file at `path` into `T`. Unknown keys are errors where `T` says `deny_unknown_fields`.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, SettingsError> {
    let path = path.as_ref();
    let text = read_bounded(path, MAX_FILE_BYTES).map_err(|source| SettingsError::unreadable(path, source))?;
    parse(&text).map_err(|error| error.in_file(path))
}

/// As [`load`], from text already in memory.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, SettingsError> {
    let document = toml::Deserializer::parse(text).map_err(|error| SettingsError::syntax(text, &error))?;
    serde_path_to_error::deserialize(document)
        .map_err(|error| SettingsError::refused(text, &error.path().to_string(), error.inner()))
}

/// Reads a text file, refusing one longer than `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> std::io::Result<String> {
    use std::io::Read;

    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if read as u64 > limit {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
#[path = "settings/settings_test.rs"]
mod settings_test;
