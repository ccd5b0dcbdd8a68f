//! The folder that a journal lives in, as few operations as it needs: the real one, and in tests one that loses what
//! was not synced.
//!
//! Must never: answer a sync that did not happen.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use redb::StorageBackend;

use super::JournalError;

/// Name of the file whose lock says that the folder is in use.
const LOCK: &str = "lock";

/// Files of one folder. A creation, renaming or removal is durable after [`Disk::sync`], not before.
pub trait Disk: Debug + Send + 'static {
    /// An open file.
    type File: StorageBackend;

    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that exists, or makes an empty one.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Renames a file; one that has the new name goes.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that the file system still takes.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A folder of the file system, locked against a second process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    handle: File,
    /// Held for its lock.
    _lock: File,
}

impl Folder {
    /// Makes the folder where it does not exist, and takes its lock.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let path = path.into();
        let unusable = |error: io::Error| JournalError::Unusable { cause: format!("{}: {error}", path.display()) };
        fs::create_dir_all(&path).map_err(unusable)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { lock: lock_path }),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let handle = File::open(&path).map_err(unusable)?;
        Ok(Self { path, handle, _lock: lock })
    }
}

impl Disk for Folder {
    type File = FolderFile;

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str) -> io::Result<FolderFile> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        options.open(self.path.join(name)).map(FolderFile)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// A file of a [`Folder`]. The folder's lock stands for the locks that redb would take.
#[derive(Debug)]
pub struct FolderFile(File);

impl StorageBackend for FolderFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}
