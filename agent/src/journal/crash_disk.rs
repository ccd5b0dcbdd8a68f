//! A disk of the tests: keeps what was written and what is durable apart, and can lose power or fail at any operation.
//!
//! After a power cut, of all that was not synced any part may be there: each sector of a write, each change of a file's
//! length, and the changes of names up to any one of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use rustix::io::Errno;

use super::Disk;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

/// How likely a part of what was not synced is there.
const KEPT: [f64; 4] = [0.0, 0.2, 0.8, 1.0];

#[derive(Debug, Clone)]
enum FileChange {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct FileState {
    live: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<FileChange>,
}

/// What is to go wrong, once so many operations were done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The operation is the last that is begun.
    PowerCut(usize),
    /// From here on nothing works.
    Errors(usize),
    /// From here on nothing more is written, as the disk is full; `free_bytes` knows nothing of it.
    NoRoom(usize),
}

#[derive(Debug, Clone)]
struct World {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<NameChange>,
    files: Vec<FileState>,
    operations: usize,
    fault: Fault,
    free_bytes: u64,
    /// A file that has a bad sector everywhere.
    unreadable: Option<usize>,
}

/// The disk; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct CrashDisk(Arc<Mutex<World>>);

/// What an operation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Remove,
    Sync,
}

impl World {
    /// Whether the operation is done. An operation that a power cut meets is begun and not answered.
    fn admit(&mut self, kind: Kind) -> io::Result<bool> {
        self.operations += usize::from(kind != Kind::Read);
        let reached = |at: usize| self.operations > at;
        match self.fault {
            Fault::PowerCut(at) if self.operations == at + 1 && kind == Kind::Write => Ok(false),
            Fault::PowerCut(at) if reached(at) => Err(io::Error::other("power is off")),
            Fault::Errors(at) if reached(at) => Err(Errno::IO.into()),
            Fault::NoRoom(at) if reached(at) && kind == Kind::Write => Err(Errno::NOSPC.into()),
            Fault::None | Fault::PowerCut(_) | Fault::Errors(_) | Fault::NoRoom(_) => Ok(true),
        }
    }

    fn name(&mut self, change: NameChange) {
        apply_name(&mut self.names, &change);
        self.changes.push(change);
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Create(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("files of the tests are small")
}

/// Whether the operation that a power cut met is answered: it is not.
fn answer(done: bool) -> io::Result<()> {
    if done { Ok(()) } else { Err(io::Error::other("power is off")) }
}

impl CrashDisk {
    pub(super) fn new() -> Self {
        Self::of(World {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            files: Vec::new(),
            operations: 0,
            fault: Fault::None,
            free_bytes: u64::MAX,
            unreadable: None,
        })
    }

    fn of(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics with the lock")
    }

    /// Counts operations from here on, and lets one of them fail.
    pub(super) fn fault(&self, fault: Fault) {
        let mut world = self.world();
        world.operations = 0;
        world.fault = fault;
    }

    /// Operations since the last [`CrashDisk::fault`], reads not counted.
    pub(super) fn operations(&self) -> usize {
        self.world().operations
    }

    pub(super) fn set_free_bytes(&self, free_bytes: u64) {
        self.world().free_bytes = free_bytes;
    }

    /// Lets every read of this file fail, and of no other.
    pub(super) fn set_unreadable(&self, name: Option<&str>) {
        let mut world = self.world();
        world.unreadable = name.map(|name| world.names[name]);
    }

    /// Changes bytes of a file behind everybody's back.
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let file = world.names[name];
        change(&mut world.files[file].live);
    }

    /// Another disk, with what this one shows.
    pub(super) fn healthy_copy(&self) -> Self {
        let mut world = self.world().clone();
        world.fault = Fault::None;
        Self::of(world)
    }

    /// Another disk, with what is left of this one after a power cut.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let kept = KEPT[usize::try_from(seed).expect("small") % KEPT.len()];
        let mut world = self.world().clone();
        let begun = (0..world.changes.len()).take_while(|_| random.random_bool(kept)).count();
        for change in world.changes.drain(..).take(begun) {
            apply_name(&mut world.durable_names, &change);
        }
        world.names = world.durable_names.clone();
        for (number, file) in world.files.iter_mut().enumerate() {
            if !world.names.values().any(|named| *named == number) {
                *file = FileState::default();
                continue;
            }
            let mut image = std::mem::take(&mut file.durable);
            for change in file.changes.drain(..) {
                match change {
                    FileChange::Length(length) => {
                        if random.random_bool(kept) {
                            image.resize(length, 0);
                        }
                    }
                    FileChange::Write(offset, data) => {
                        for (number, sector) in data.chunks(SECTOR).enumerate() {
                            let at = offset + number * SECTOR;
                            if random.random_bool(kept) && at + sector.len() <= image.len() {
                                image[at..at + sector.len()].copy_from_slice(sector);
                            }
                        }
                    }
                }
            }
            (file.live, file.durable) = (image.clone(), image);
        }
        world.fault = Fault::None;
        Self::of(world)
    }
}

impl Disk for CrashDisk {
    type File = CrashFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut world = self.world();
        world.admit(Kind::Read)?;
        Ok(world.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<CrashFile> {
        let mut world = self.world();
        if let Some(file) = world.names.get(name).copied() {
            world.admit(Kind::Read)?;
            return Ok(CrashFile { disk: self.clone(), file });
        }
        let done = world.admit(Kind::Write)?;
        let file = world.files.len();
        world.files.push(FileState::default());
        world.name(NameChange::Create(name.to_owned(), file));
        answer(done)?;
        Ok(CrashFile { disk: self.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        let done = world.admit(Kind::Write)?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(NameChange::Rename(from.to_owned(), to.to_owned()));
        answer(done)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        let done = world.admit(Kind::Remove)?;
        if !world.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(NameChange::Remove(name.to_owned()));
        answer(done)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world();
        world.admit(Kind::Sync)?;
        world.durable_names = world.names.clone();
        world.changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.world().free_bytes)
    }
}

/// An open file of a [`CrashDisk`]; removed or renamed, it stays what it is.
#[derive(Debug)]
pub(super) struct CrashFile {
    disk: CrashDisk,
    file: usize,
}

impl StorageBackend for CrashFile {
    fn len(&self) -> io::Result<u64> {
        let mut world = self.disk.world();
        world.admit(Kind::Read)?;
        Ok(world.files[self.file].live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        world.admit(Kind::Read)?;
        if world.unreadable == Some(self.file) {
            return Err(Errno::IO.into());
        }
        let begin = place(offset);
        let bytes = world.files[self.file].live.get(begin..begin + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        let done = world.admit(Kind::Write)?;
        let length = place(len);
        let file = &mut world.files[self.file];
        file.live.resize(length, 0);
        file.changes.push(FileChange::Length(length));
        answer(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        world.admit(Kind::Sync)?;
        let file = &mut world.files[self.file];
        // Only what has changed: files are copied thousands of times.
        for change in file.changes.drain(..) {
            match change {
                FileChange::Length(length) => file.durable.resize(length, 0),
                FileChange::Write(offset, data) => file.durable[offset..offset + data.len()].copy_from_slice(&data),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        let done = world.admit(Kind::Write)?;
        let begin = place(offset);
        let file = &mut world.files[self.file];
        let end = begin + data.len();
        if end > file.live.len() {
            file.live.resize(end, 0);
            file.changes.push(FileChange::Length(end));
        }
        file.live[begin..end].copy_from_slice(data);
        file.changes.push(FileChange::Write(begin, data.to_vec()));
        answer(done)
    }
}
