//! Sealed segments that are open to be read: a few at a time, as each keeps a cache and a file handle.

use super::super::disk::Disk;
use super::super::segment::Reader;
use super::super::store::StoreError;
use super::segment_name;

/// Most segments open to be read.
const OPEN: usize = 4;

/// Open segments, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Readers(Vec<(u64, Reader)>);

impl Readers {
    /// The segment, opened where it is not; closes another one for it.
    pub(super) fn get<D: Disk>(&mut self, disk: &D, number: u64) -> Result<&Reader, StoreError> {
        let open = self.0.iter().position(|(open, _)| *open == number);
        let entry = match open {
            Some(at) => self.0.remove(at),
            None => (number, Reader::open(disk, &segment_name(number))?),
        };
        if self.0.len() >= OPEN {
            self.0.remove(0);
        }
        Ok(&self.0.push_mut(entry).1)
    }

    pub(super) fn close(&mut self, number: u64) {
        self.0.retain(|(open, _)| *open != number);
    }
}
