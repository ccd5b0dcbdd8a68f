//! One file of the journal: a redb database that is written by one, then sealed and only read.
//!
//! Must never: write to a sealed file; let redb's errors or panics out as anything but a
//! [`StoreError`].

use std::sync::Arc;
use std::{fmt, iter};

use prost::Message;
use redb::{
    AccessGuard, Builder, Database, DatabaseError, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase,
    ReadableTable, StorageBackend, TableError, WriteTransaction,
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
pub(super) const WRITER_CACHE: usize = 5 << 20;
/// The same where there is no hurry.
pub(super) const MERGE_CACHE: usize = 1 << 20;
/// redb's cache of a file that is read: a few inner pages, and of rows one of the largest.
const READER_CACHE: usize = 384 << 10;
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
    pub(super) fn create<F: StorageBackend>(file: F, cache_bytes: usize) -> Result<Self, StoreError> {
        contained(|| {
            let (db, extent) = open_database(file, cache_bytes)?;
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
            let (db, extent) = open_database(file, WRITER_CACHE)?;
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
            write_bodies(&transaction, || self.extent.length(), self.position, entries)?;
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

fn open_database<F: StorageBackend>(file: F, cache_bytes: usize) -> Result<(Database, Arc<Extent>), StoreError> {
    let (gauge, extent) = Gauge::new(file).map_err(redb::Error::from)?;
    let db = Builder::new().set_cache_size(cache_bytes).create_with_backend(gauge)?;
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

/// Writes bodies as rows of the stream, each as large as what of the partition it begins in is written: that is what will
/// be read with it.
fn write_bodies(
    transaction: &WriteTransaction,
    file_bytes: impl Fn() -> u64,
    mut position: u64,
    entries: &[Entry<'_>],
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(DATA)?;
    let bytes = |entries: &[Entry<'_>]| entries.iter().map(|entry| entry.packed.body_bytes()).sum::<usize>();
    let mut left = bytes(entries);
    let mut row = Vec::new();
    let mut wanted = 0;
    for of_partition in entries.chunk_by(|one, next| (one.topic, one.partition) == (next.topic, next.partition)) {
        let largest = largest_row(bytes(of_partition));
        for mut piece in of_partition.iter().flat_map(|entry| &entry.packed.body).map(AsRef::<[u8]>::as_ref) {
            while !piece.is_empty() {
                if row.is_empty() {
                    // Where a page takes less than half of the file, redb doubles it as it grows; see `fits`.
                    let of_file = usize::try_from(file_bytes() / 4).unwrap_or(usize::MAX);
                    wanted = row_bytes(left, largest.min(of_file));
                }
                let (taken, rest) = piece.split_at(piece.len().min(wanted - row.len()));
                piece = rest;
                if taken.len() == wanted {
                    table.insert(position, taken)?;
                } else {
                    row.extend_from_slice(taken);
                    if row.len() < wanted {
                        continue;
                    }
                    table.insert(position, row.as_slice())?;
                    row.clear();
                }
                position += wanted as u64;
                left -= wanted;
            }
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
            let mut kept = None;
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
                let body = read_body(&data, row.position, length, &mut kept)?;
                let packed = row.unpack(key, first, body).ok_or_else(|| corrupt("a frame's checksum does not hold"))?;
                frames.push(packed);
                expected = next;
            }
            if expected < span.until { Err(corrupt("frames are missing")) } else { Ok(true) }
        })
    }
}

/// A row of the stream, and where it begins.
type Row<'a> = (AccessGuard<'a, u64>, AccessGuard<'a, &'static [u8]>);

/// Reads a body off the stream. The row that it ends in is kept for the next body, which mostly begins there: rows are
/// large, and redb looks for one from its neighbour.
fn read_body<'a>(
    data: &'a impl ReadableTable<u64, &'static [u8]>,
    position: u64,
    length: usize,
    kept: &mut Option<Row<'a>>,
) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    if length == 0 {
        return Ok(body);
    }
    let holds = |(begin, row): &Row<'_>| {
        position.checked_sub(begin.value()).is_some_and(|within| within < row.value().len() as u64)
    };
    let first = match kept.take().filter(holds) {
        Some(row) => row,
        None => data.range(..=position)?.next_back().transpose()?.ok_or_else(|| corrupt("a row is missing"))?,
    };
    let mut at = first.0.value();
    let mut skip = usize::try_from(position - at).map_err(|_| corrupt("a row is missing"))?;
    for entry in iter::once(Ok(first)).chain(data.range(at.saturating_add(1)..)?) {
        let (found, row) = entry?;
        let bytes = row.value();
        let Some(piece) = bytes.get(skip..).filter(|piece| found.value() == at && !piece.is_empty()) else { break };
        body.extend_from_slice(piece.get(..length - body.len()).unwrap_or(piece));
        if body.len() == length {
            *kept = Some((found, row));
            return Ok(body);
        }
        at += bytes.len() as u64;
        skip = 0;
    }
    Err(corrupt("a row is missing"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use redb::backends::InMemoryBackend;

    use super::super::spec_test::topic;
    use super::*;

    /// A frame with these pieces as its body, which is like no other.
    fn packed(pieces: &[usize]) -> Packed {
        static FRAMES: AtomicUsize = AtomicUsize::new(0);
        let frame = FRAMES.fetch_add(1, Ordering::Relaxed);
        let piece = |(number, length): (usize, &usize)| {
            let byte = |place: usize| ((place * 31 + number + frame * 7) % 251).to_le_bytes()[0];
            (0..*length).map(byte).collect::<Bytes>()
        };
        Packed {
            first_offset: 0,
            next_offset: 1,
            entries: 1,
            raw_bytes: 1,
            compressed: false,
            body: pieces.iter().enumerate().map(piece).collect(),
            tail: Vec::new(),
            last_epoch: 0,
        }
    }

    /// Writes frames as to a file of so many bytes; the lengths of the rows, which hold the stream.
    fn rows(file_bytes: u64, frames: &[(i32, Packed)]) -> Vec<usize> {
        let name = topic("t");
        let entries: Vec<_> = (frames.iter())
            .map(|(partition, packed)| Entry { topic: &name, partition: *partition, run: 1, packed })
            .collect();
        let writer = Writer::create(InMemoryBackend::new(), WRITER_CACHE).expect("a new file");
        let transaction = begin(&writer.db).expect("one at a time");
        write_bodies(&transaction, || file_bytes, 7, &entries).expect("memory has room");
        transaction.commit().expect("memory has room");
        let table = writer.db.begin_read().expect("a file").open_table(DATA).expect("made");
        let (mut lengths, mut stream) = (Vec::new(), Vec::new());
        for row in table.iter().expect("a table") {
            let (position, row) = row.expect("a row");
            assert_eq!(position.value(), 7 + stream.len() as u64);
            stream.extend_from_slice(row.value());
            lengths.push(row.value().len());
        }
        let bodies: Vec<u8> = frames.iter().flat_map(|(_, packed)| packed.body.concat()).collect();
        assert!(stream == bodies, "{} bytes for {}", stream.len(), bodies.len());
        let (mut at, mut kept) = (7, None);
        for (_, packed) in frames {
            let body = read_body(&table, at, packed.body_bytes(), &mut kept).expect("all of it is there");
            assert!(body == packed.body.concat(), "the body at {at}");
            let again = read_body(&table, at, packed.body_bytes(), &mut None).expect("all of it is there");
            assert!(body == again, "looked for anew");
            at += body.len() as u64;
        }
        lengths
    }

    #[test]
    fn nothing_is_no_row() {
        assert_eq!(rows(1 << 20, &[]), [0; 0]);
        assert_eq!(rows(1 << 20, &[(0, packed(&[])), (1, packed(&[0, 0]))]), [0; 0]);
    }

    #[test]
    fn pieces_and_rows_have_their_own_borders() {
        assert_eq!(rows(1 << 20, &[(0, packed(&[32_500]))]), [32_500], "a piece that is a row");
        assert_eq!(rows(1 << 20, &[(0, packed(&[16_250, 16_250, 1]))]), [32_500, 1], "two pieces, and a rest of 1");
        assert_eq!(rows(1 << 20, &[(0, packed(&[1, 40_000]))]), [32_500, 3_900, 3_601]);
        assert_eq!(rows(1 << 20, &[(0, packed(&[0, 3_900, 0]))]), [3_900]);
    }

    #[test]
    fn rows_are_as_large_as_what_a_partition_has_and_the_file_allows() {
        let large = || (0, packed(&[200_000, 100_000]));
        let small = |partition| (partition, packed(&[1_000]));
        let mut frames = vec![large()];
        frames.extend((1..50).map(small));
        // The row that the large one ends in takes some of the small ones along.
        assert_eq!(rows(4 << 20, &frames), [262_000, 65_300, 16_200, 3_900, 1_600]);
        let small: Vec<_> = (1..50).map(small).collect();
        assert_eq!(rows(4 << 20, &small), [32_500, 16_200, 300]);
        assert_eq!(rows(300_000, &[large()])[0], 65_300, "a quarter of the file");
        assert_eq!(rows(4 << 20, &[(0, packed(&[20_000])), (0, packed(&[50_000]))]), [65_300, 3_900, 800], "together");
    }
}
