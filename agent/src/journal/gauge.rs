//! How far a redb file is written, seen from below.
//!
//! redb doubles a file as it grows, so most of the way the length says little: what lies behind the last byte written
//! is a hole that takes no room on the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::StorageBackend;

/// Passes everything on to a file and notes how far it is written.
#[derive(Debug)]
pub(super) struct Gauge<F> {
    file: F,
    extent: Arc<Extent>,
}

/// What is known of the file.
#[derive(Debug)]
pub(super) struct Extent {
    /// Offset after the last byte written; at the beginning the length, as nothing better is known.
    written: AtomicU64,
    length: AtomicU64,
    retired: AtomicBool,
}

impl Extent {
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// Lets everything fail from here on: the file is about to be removed, and redb would write to it as it is closed.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl<F: StorageBackend> Gauge<F> {
    pub(super) fn new(file: F) -> io::Result<(Self, Arc<Extent>)> {
        let length = file.len()?;
        let extent = Arc::new(Extent {
            written: AtomicU64::new(length),
            length: AtomicU64::new(length),
            retired: AtomicBool::new(false),
        });
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
        self.extent.written.fetch_min(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)?;
        let end = offset + data.len() as u64;
        self.extent.written.fetch_max(end, Ordering::Relaxed);
        self.extent.length.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
