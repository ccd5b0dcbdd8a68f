//! One file of the journal: a redb database that is written by one, then sealed and only read.
//!
//! Must never: write to a sealed file; let redb's errors or panics out as anything but a
//! [`StoreError`].

use std::fmt;
use std::sync::Arc;

use prost::Message;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend, TableError, WriteTransaction,
};
use tombolo_proto::frame::Packed;
use tombolo_proto::id::{Offset, Partition, TopicName};

use super::disk::Disk;
use super::gauge::{Extent, Gauge};
use super::schema::{
    DATA, FORMAT, FORMAT_KEY, FORMAT_WITHOUT_GAPS, FRAMES, FrameRow, META, RANGES, RangeRow, RunKey, largest_row,
    row_bytes,
};
use super::store::{StoreError, contained, corrupt};

/// redb's cache of the file that is written. Pages of one commit beyond a half of it are written before the commit, and
/// read again for their checksums: it takes a commit of 2 MiB.
const WRITER_CACHE: usize = 6 << 20;
/// redb's cache of a file that is read: a few inner pages and what is being read.
const READER_CACHE: usize = 256 << 10;
/// Length of a file with nothing in it.
pub(super) const EMPTY_BYTES: u64 = 72 << 10;
/// What of it is no page that redb gives out.
const HEADER_BYTES: u64 = 4 << 10;
/// What a commit takes beyond its rows: inner pages of five trees, and the list of pages it frees.
const COMMIT_BYTES: u64 = 64 << 10;
/// What a frame takes in the index, twice over as leaves split, and again while their old pages are not yet free.
const FRAME_BYTES: u64 = 600;

/// A frame to be written, and the run it belongs to.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) topic: &'a TopicName,
    pub(super) partition: Partition,
    pub(super) run: u64,
    pub(super) packed: &'a Packed,
}

/// What may be written to a file that will hold these frames; never less than it takes.
pub(super) fn needed_bytes<'a>(frames: impl Iterator<Item = (&'a TopicName, &'a Packed)>) -> u64 {
    frames.fold(COMMIT_BYTES, |bytes, (topic, packed)| {
        let body = packed.body_bytes() as u64;
        bytes + body + body / 64 + FRAME_BYTES + 4 * topic.as_str().len() as u64
    })
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Writer {
    db: Database,
    extent: Arc<Extent>,
    /// Where the stream of bodies goes on.
    position: u64,
}

impl Writer {
    /// Makes a segment in an empty file. Durable, but for the file's name.
    pub(super) fn create<F: StorageBackend>(file: F) -> Result<Self, StoreError> {
        contained(|| {
            let (db, extent) = open_database(file)?;
            let transaction = begin(&db)?;
            transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT_WITHOUT_GAPS)?;
            drop((transaction.open_table(DATA)?, transaction.open_table(FRAMES)?, transaction.open_table(RANGES)?));
            transaction.commit()?;
            Ok(Self { db, extent, position: 0 })
        })
    }

    /// Goes on with a segment; repairs it where it was not closed.
    pub(super) fn resume<F: StorageBackend>(file: F) -> Result<Self, StoreError> {
        contained(|| {
            let (db, extent) = open_database(file)?;
            let data = db.begin_read()?.open_table(DATA)?;
            let position = data.last()?.map_or(0, |(position, row)| position.value() + row.value().len() as u64);
            Ok(Self { db, extent, position })
        })
    }

    /// Bytes of the file that take room on the disk.
    pub(super) fn written(&self) -> u64 {
        self.extent.written()
    }

    /// Whether so many bytes more leave the file within `segment_bytes` and its length within a sixteenth more.
    pub(super) fn fits(&self, needed: u64, segment_bytes: u64) -> bool {
        fits(self.extent.length(), self.extent.written(), needed, segment_bytes)
    }

    /// Writes frames and what the segment then holds of their partitions, in one commit; durable when it returns. After
    /// an error the writer is of no use.
    pub(super) fn append<'a>(
        &mut self,
        entries: &[Entry<'_>],
        ranges: impl Iterator<Item = (&'a TopicName, Partition, RangeRow)>,
    ) -> Result<(), StoreError> {
        contained(|| {
            let transaction = begin(&self.db)?;
            if entries.iter().any(|entry| FrameRow::has_gaps(entry.packed)) {
                transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
            }
            let end = write_frames(&transaction, self.position, entries)?;
            write_bodies(&transaction, &self.extent, self.position, entries)?;
            let mut table = transaction.open_table(RANGES)?;
            for (topic, partition, row) in ranges {
                table.insert((topic.as_str(), partition), row.to_tuple())?;
            }
            drop(table);
            transaction.commit()?;
            self.position = end;
            Ok(())
        })
    }

    /// Begins to read what was committed.
    pub(super) fn read(&self) -> Result<Snapshot, StoreError> {
        contained(|| Ok(Snapshot(self.db.begin_read()?)))
    }

    /// Closes the file so that it can be read without repair; answers its length.
    pub(super) fn seal(self) -> Result<u64, StoreError> {
        contained(|| {
            self.db.close()?;
            Ok(self.extent.length())
        })
    }

    /// Closes the file without another write.
    pub(super) fn retire(self) {
        self.extent.retire();
        // It fails, as it was told to.
        drop(contained(|| Ok(self.db.close()?)));
    }
}

/// See [`Writer::fits`]. redb makes a file of 17 pages and a header, and doubles the pages: 16 pages doubled to
/// `segment_bytes` come with a sixteenth more.
pub(super) fn fits(length: u64, written: u64, needed: u64, segment_bytes: u64) -> bool {
    let mut capacity = length.max(EMPTY_BYTES) - HEADER_BYTES;
    while capacity * 2 <= segment_bytes + segment_bytes / 16 {
        capacity *= 2;
    }
    written + needed <= capacity.min(segment_bytes)
}

fn open_database<F: StorageBackend>(file: F) -> Result<(Database, Arc<Extent>), StoreError> {
    let (gauge, extent) = Gauge::new(file).map_err(redb::Error::from)?;
    let db = Builder::new().set_cache_size(WRITER_CACHE).create_with_backend(gauge)?;
    Ok((db, extent))
}

fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    Ok(transaction)
}

/// Writes the index; answers where the stream of bodies then ends.
fn write_frames(transaction: &WriteTransaction, mut position: u64, entries: &[Entry<'_>]) -> Result<u64, StoreError> {
    let mut table = transaction.open_table(FRAMES)?;
    for Entry { topic, partition, run, packed } in entries {
        let key = RunKey { topic: topic.as_str(), partition: *partition, run: *run };
        let row = FrameRow::new(key, position, packed).encode_to_vec();
        table.insert((key.topic, key.partition, key.run, packed.first_offset), row.as_slice())?;
        position += packed.body_bytes() as u64;
    }
    Ok(position)
}

fn write_bodies(
    transaction: &WriteTransaction,
    extent: &Extent,
    mut position: u64,
    entries: &[Entry<'_>],
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(DATA)?;
    let mut left: usize = entries.iter().map(|entry| entry.packed.body_bytes()).sum();
    let of_frames = largest_row(left / entries.len().max(1));
    // Where a page takes less than half of the file, redb doubles it as it grows; see `fits`.
    let of_file = || usize::try_from(extent.length() / 4).unwrap_or(usize::MAX);
    let mut wanted = row_bytes(left, of_frames.min(of_file()));
    let mut row = Vec::new();
    for mut piece in entries.iter().flat_map(|entry| &entry.packed.body).map(AsRef::<[u8]>::as_ref) {
        while !piece.is_empty() {
            let (taken, rest) = piece.split_at(piece.len().min(wanted - row.len()));
            piece = rest;
            if taken.len() < wanted {
                row.extend_from_slice(taken);
                if row.len() < wanted {
                    continue;
                }
                table.insert(position, row.as_slice())?;
                row.clear();
            } else {
                table.insert(position, taken)?;
            }
            position += wanted as u64;
            left -= wanted;
            wanted = row_bytes(left, of_frames.min(of_file()));
        }
    }
    Ok(())
}

/// A segment that is read.
pub(super) struct Reader {
    /// `None` only while it is dropped.
    db: Option<ReadOnlyDatabase>,
    length: u64,
}

impl Reader {
    /// Opens a segment; one that was not closed is repaired first.
    pub(super) fn open<D: Disk>(disk: &D, name: &str) -> Result<Self, StoreError> {
        if let Some(reader) = Self::try_open(disk, name)? {
            return Ok(reader);
        }
        Writer::resume(disk.open(name).map_err(redb::Error::from)?)?.seal()?;
        Self::try_open(disk, name)?.ok_or_else(|| corrupt("repaired, and still not in order"))
    }

    /// `None` where it needs repair.
    fn try_open<D: Disk>(disk: &D, name: &str) -> Result<Option<Self>, StoreError> {
        contained(|| {
            let file = disk.open(name).map_err(redb::Error::from)?;
            let length = file.len().map_err(redb::Error::from)?;
            match Builder::new().set_cache_size(READER_CACHE).open_read_only_with_backend(file) {
                Ok(db) => Ok(Some(Self { db: Some(db), length })),
                Err(DatabaseError::RepairAborted) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Length of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn read(&self) -> Result<Snapshot, StoreError> {
        let db = self.db.as_ref().ok_or_else(|| corrupt("closed"))?;
        contained(|| Ok(Snapshot(db.begin_read()?)))
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let db = self.db.take();
        // Nothing is lost with a file that was only read.
        drop(contained(|| {
            drop(db);
            Ok(())
        }));
    }
}

/// What a segment holds at one moment.
pub(super) struct Snapshot(ReadTransaction);

/// Which frames are to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Offset that the first of them holds.
    pub(super) from: Offset,
    /// Frames that begin here or later are not read.
    pub(super) until: Offset,
}

impl Snapshot {
    /// What the segment holds of each partition. Fails with [`StoreError::Version`] on a segment of a newer release.
    pub(super) fn ranges(&self) -> Result<Vec<(TopicName, Partition, RangeRow)>, StoreError> {
        contained(|| {
            let format = match self.0.open_table(META) {
                Ok(meta) => meta.get(FORMAT_KEY)?.map(|format| format.value()),
                Err(TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            match format {
                Some(FORMAT_WITHOUT_GAPS..=FORMAT) => {}
                Some(newer) if newer > FORMAT => return Err(StoreError::Version(newer)),
                _ => return Err(corrupt("no journal")),
            }
            let mut ranges = Vec::new();
            for entry in self.0.open_table(RANGES)?.iter()? {
                let (key, row) = entry?;
                let (topic, partition) = key.value();
                let topic = TopicName::new(topic).map_err(|_| corrupt("a topic's name is none"))?;
                let row = RangeRow::from_tuple(row.value()).ok_or_else(|| corrupt("a range is none"))?;
                ranges.push((topic, partition, row));
            }
            Ok(ranges)
        })
    }

    /// Reads frames to the end of the span or until the bodies of `frames` would exceed `max_bytes`, but at least one
    /// where there is none yet. Answers whether the end was reached.
    pub(super) fn frames(
        &self,
        key: RunKey<'_>,
        span: Span,
        max_bytes: usize,
        frames: &mut Vec<Packed>,
    ) -> Result<bool, StoreError> {
        contained(|| {
            let (index, data) = (self.0.open_table(FRAMES)?, self.0.open_table(DATA)?);
            let at = |offset| (key.topic, key.partition, key.run, offset);
            let first = index.range(at(Offset::MIN)..=at(span.from))?.next_back().transpose()?;
            let mut expected = first.map(|(first, _)| first.value().3).ok_or_else(|| corrupt("a frame is missing"))?;
            let mut bytes: usize = frames.iter().map(Packed::body_bytes).sum();
            for entry in index.range(at(expected)..at(span.until))? {
                let (found, row) = entry?;
                let row = FrameRow::decode(row.value()).map_err(|_| corrupt("a frame's row is none"))?;
                let (first, next) = (found.value().3, row.next_offset);
                if first != expected || next <= first || (first <= span.from && next <= span.from) {
                    return Err(corrupt("frames do not join"));
                }
                let length = usize::try_from(row.length).map_err(|_| corrupt("a frame is too long"))?;
                bytes = bytes.saturating_add(length);
                if !frames.is_empty() && bytes > max_bytes {
                    return Ok(false);
                }
                let body = read_body(&data, row.position, length)?;
                let packed = row.unpack(key, first, body).ok_or_else(|| corrupt("a frame's checksum does not hold"))?;
                frames.push(packed);
                expected = next;
            }
            if expected < span.until { Err(corrupt("frames are missing")) } else { Ok(true) }
        })
    }
}

/// Reads a body off the stream.
fn read_body(
    data: &impl ReadableTable<u64, &'static [u8]>,
    position: u64,
    length: usize,
) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    if length == 0 {
        return Ok(body);
    }
    let begin = data.range(..=position)?.next_back().transpose()?.map(|(begin, _)| begin.value());
    let mut at = begin.ok_or_else(|| corrupt("a row is missing"))?;
    let mut skip = usize::try_from(position - at).map_err(|_| corrupt("a row is missing"))?;
    for entry in data.range(at..)? {
        let (found, row) = entry?;
        let row = row.value();
        let Some(piece) = row.get(skip..).filter(|piece| found.value() == at && !piece.is_empty()) else { break };
        body.extend_from_slice(piece.get(..length - body.len()).unwrap_or(piece));
        if body.len() == length {
            return Ok(body);
        }
        at += row.len() as u64;
        skip = 0;
    }
    Err(corrupt("a row is missing"))
}
