//! What can go wrong with a redb file, and what that says about the file.
//!
//! Must never: let a panic out that a malformed file has caused.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

/// Why a redb file did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file system said no: no room, no right, or another process has the file open.
    #[error("{0}")]
    Io(String),
    /// The medium failed: EIO.
    #[error("{0}")]
    Medium(String),
    /// What stands in the file is not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// A newer release wrote it, in this format.
    #[error("format {0}")]
    Version(u64),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let error = error.into();
        let text = error.to_string();
        if let redb::Error::Io(cause) = &error {
            // Of these kinds is what redb says of a file that does not begin as its own do, or is too short.
            if matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) {
                Self::Corrupt(text)
            } else if cause.raw_os_error() == Some(Errno::IO.raw_os_error()) {
                Self::Medium(text)
            } else {
                Self::Io(text)
            }
        } else if matches!(
            error,
            redb::Error::PreviousIo | redb::Error::DatabaseClosed | redb::Error::DatabaseAlreadyOpen
        ) {
            Self::Io(text)
        } else {
            Self::Corrupt(text)
        }
    }
}

/// What is in the file cannot be.
pub(crate) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

/// redb trusts the pages of a file that was closed in order, and may panic where they were changed since.
pub(crate) fn contained<T>(act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| Err(corrupt("malformed pages")))
}
