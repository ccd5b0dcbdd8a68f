//! The folder that a journal lives in, as few operations as it needs: the real one, and in tests one that loses what
//! was not synced.
//!
//! Must never: answer a sync that did not happen.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use rustix::fs::{Advice, fadvise};

use super::JournalError;

/// Bytes that the system begins to write before it is asked to sync: a few times in a commit.
const BEGIN_BYTES: u64 = 512 << 10;
/// Pages that count for it. Small ones lie anywhere, and are few.
const LARGE_BYTES: u64 = 16 << 10;
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
        options.open(self.path.join(name)).map(FolderFile::new)
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
pub struct FolderFile {
    file: File,
    waiting: Mutex<Waiting>,
}

/// Large pages written that the disk may not have begun with: how many bytes, and where they are.
#[derive(Debug, Default)]
struct Waiting {
    bytes: u64,
    range: Range<u64>,
}

impl Waiting {
    /// Takes a write along; the range to begin with once it is worth it.
    fn add(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        if length < LARGE_BYTES {
            return None;
        }
        let end = offset + length;
        let known = if self.bytes == 0 { offset..end } else { self.range.clone() };
        self.range = known.start.min(offset)..known.end.max(end);
        self.bytes += length;
        (self.bytes >= BEGIN_BYTES).then(|| std::mem::take(self).range)
    }
}

impl FolderFile {
    fn new(file: File) -> Self {
        Self { file, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the disk work while the other pages of a commit are copied. A wish: the sync is what counts.
    fn begin(&self, range: &Range<u64>) {
        // Linux begins to write the dirty pages there and does not wait for the disk; pages that are clean leave its cache.
        // It does wait for each processor to hand over pages on their way to its lists (mm/fadvise.c), so not for each page.
        fadvise(&self.file, range.start, NonZeroU64::new(range.end - range.start), Advice::DontNeed).ok();
    }
}

impl StorageBackend for FolderFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        *self.waiting() = Waiting::default();
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        let worth = self.waiting().add(offset, data.len() as u64);
        if let Some(range) = worth {
            self.begin(&range);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_are_begun_with_in_pieces() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.add(0, 4 << 10), None);
        for page in [7_u64, 9, 8] {
            assert_eq!(waiting.add(page << 17, 128 << 10), None);
        }
        assert_eq!(waiting.add(64 << 10, 4 << 10), None, "small ones do not widen the range");
        assert_eq!(waiting.add(11 << 17, 128 << 10), Some(7 << 17..12 << 17));
        assert_eq!(waiting.add(1 << 20, 512 << 10), Some(1 << 20..3 << 19), "from the beginning again");
    }

    #[test]
    fn a_file_holds_what_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let disk = Folder::open(folder.path()).expect("an empty folder");
        let file = disk.open("pages").expect("an empty file");
        for number in [1_u64, 0, 2] {
            let page: Vec<u8> = (number..number + (512 << 10)).map(|place| (place % 251).to_le_bytes()[0]).collect();
            file.write(number << 19, &page).expect("room");
            let mut read = vec![0; page.len()];
            file.read(number << 19, &mut read).expect("it is there");
            assert!(read == page, "page {number} before the sync");
        }
        file.sync_data().expect("a disk that works");
        assert_eq!(file.len().expect("a file"), 3 << 19);
    }
}
