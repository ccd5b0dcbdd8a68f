//! How much of a redb file is written, seen from below.
//!
//! redb doubles a file as it grows, and does not fill it from the front. What was never written is a hole that takes no
//! room on the disk; what was once written is used again as it becomes free, so the pages written are the most that were
//! ever in use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

const PAGE_BYTES: u64 = 4096;

/// Passes everything on to a file and notes which pages are written.
#[derive(Debug)]
pub(super) struct Gauge<F> {
    file: F,
    extent: Arc<Extent>,
}

/// What is known of the file.
#[derive(Debug)]
pub(super) struct Extent {
    length: AtomicU64,
    pages: Mutex<Pages>,
    retired: AtomicBool,
}

/// A set of page numbers: 8 KiB for a file of 256 MiB.
#[derive(Debug, Default)]
struct Pages {
    bits: Vec<u64>,
    count: u64,
}

impl Pages {
    fn insert(&mut self, page: u64) {
        let at = usize::try_from(page / 64).unwrap_or(usize::MAX);
        if at >= self.bits.len() {
            self.bits.resize(at + 1, 0);
        }
        if let Some(bits) = self.bits.get_mut(at) {
            let bit = 1 << (page % 64);
            self.count += u64::from(*bits & bit == 0);
            *bits |= bit;
        }
    }
}

impl Extent {
    /// Bytes of the pages that were written, and of those that were there at the beginning.
    pub(super) fn written(&self) -> u64 {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).count * PAGE_BYTES
    }

    /// Length of the file.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// Lets every change fail from here on: the file is about to be removed, and redb would write to it as it is closed.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    fn touch(&self, begin: u64, end: u64) {
        self.length.fetch_max(end, Ordering::Relaxed);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for page in begin / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            pages.insert(page);
        }
    }
}

impl<F: StorageBackend> Gauge<F> {
    pub(super) fn new(file: F) -> io::Result<(Self, Arc<Extent>)> {
        let extent = Arc::new(Extent {
            length: AtomicU64::new(0),
            pages: Mutex::new(Pages::default()),
            retired: AtomicBool::new(false),
        });
        extent.touch(0, file.len()?);
        Ok((Self { file, extent: Arc::clone(&extent) }, extent))
    }

    fn check(&self) -> io::Result<()> {
        if self.extent.retired.load(Ordering::Relaxed) { Err(io::Error::other("about to be removed")) } else { Ok(()) }
    }
}

impl<F: StorageBackend> StorageBackend for Gauge<F> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)?;
        self.extent.length.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)?;
        self.extent.touch(offset, offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
