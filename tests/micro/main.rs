//! Micro-benchmarks of what happens to every batch, with the physical limit of the same bytes beside them in the same run:
//!
//!     cargo bench -p tombolo-tests
//!
//! `copy` in each group is what memory allows, `plain_append` what the disk does.

use std::fs::File;
use std::io::Write as _;

use bytes::{Bytes, BytesMut};
use divan::Bencher;
use divan::counter::BytesCount;
use tikv_jemallocator::Jemalloc;
use tombolo_agent::journal::Journal as _;
use tombolo_kafka::records::{Record, Writer, encode_batch};
use tombolo_proto::batch::{Batch, Stamp, split};
use tombolo_proto::frame::{Entry, FrameHeader, FrameLimits, HEADER_BYTES, Packed};
use tombolo_proto::id::MirrorId;

/// Bytes of a fetch answer of one partition.
const ANSWER: usize = 256 << 10;
/// Records of a batch: a single one, a batch of some kB, one of 100 kB.
const RECORDS: [usize; 3] = [1, 16, 512];
const RECORD_BYTES: usize = 200;
/// What the agent hands to the journal at a time.
const COMMIT_BYTES: usize = 2 << 20;
const LIMITS: FrameLimits = FrameLimits { max_bytes: 2 << 20 };

/// The daemons' own.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() {
    divan::main();
}

/// Batches in a row, at most an answer of them, at least one.
fn batches(records: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    let (mut offset, mut bytes) = (0, 0);
    while bytes < ANSWER {
        let batch = batch(offset, records);
        offset = batch.next_offset();
        bytes += batch.len();
        batches.push(batch);
    }
    batches
}

fn batch(offset: i64, records: usize) -> Batch {
    let record = |number: usize| {
        let text = format!("{{\"offset\":{offset},\"number\":{number},\"celsius\":{}}}", (number * 7919) % 1000);
        let mut value = text.into_bytes();
        value.resize(RECORD_BYTES, b'.');
        Record { offset: 0, timestamp: 1_700_000_000_000, key: None, value: Some(value.into()), headers: Vec::new() }
    };
    let records: Vec<Record> = (0..records).map(record).collect();
    let encoded = encode_batch(&records, Writer { producer_id: 7, epoch: 0, sequence: 0 }).expect("records are there");
    let mut bytes = BytesMut::from(&encoded[..]);
    bytes.get_mut(..8).expect("a batch begins with its offset").copy_from_slice(&offset.to_be_bytes());
    Batch::parse(bytes.freeze()).expect("the encoder writes whole batches")
}

fn answer(records: usize) -> Bytes {
    batches(records).iter().flat_map(|batch| batch.bytes().to_vec()).collect::<Vec<u8>>().into()
}

fn entries(records: usize) -> Vec<Entry> {
    batches(records).into_iter().map(Entry::Batch).collect()
}

/// The limit of all that reads or writes every byte once.
#[divan::bench(args = RECORDS)]
fn copy(bencher: Bencher<'_, '_>, records: usize) {
    let answer = answer(records);
    bencher.counter(BytesCount::new(answer.len())).bench(|| divan::black_box(&answer[..]).to_vec());
}

/// Finding the batches of an answer, checksums aside.
#[divan::bench(args = RECORDS)]
fn walk(bencher: Bencher<'_, '_>, records: usize) {
    let answer = answer(records);
    bencher.counter(BytesCount::new(answer.len())).bench(|| split(answer.clone()).flatten().count());
}

/// The checksum of every batch.
#[divan::bench(args = RECORDS)]
fn check(bencher: Bencher<'_, '_>, records: usize) {
    let batches = batches(records);
    let bytes: usize = batches.iter().map(Batch::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| batches.iter().filter(|batch| batch.crc_is_valid()).count());
}

/// What evidence for a resume is made of.
#[divan::bench(args = RECORDS)]
fn canonical_crc(bencher: Bencher<'_, '_>, records: usize) {
    let batches = batches(records);
    let bytes: usize = batches.iter().map(Batch::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| batches.iter().fold(0, |all, batch| all ^ batch.canonical_crc()));
}

/// The header that the gateway gives a batch, which is copied for it.
#[divan::bench(args = RECORDS)]
fn restamp(bencher: Bencher<'_, '_>, records: usize) {
    let batches = batches(records);
    let bytes: usize = batches.iter().map(Batch::len).sum();
    let stamp = |sequence| Stamp { producer_id: 9, sequence };
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| batches.iter().zip(0..).map(|(batch, sequence)| batch.stamped(stamp(sequence)).len()).sum::<usize>());
}

/// A frame of plain batches: compressed, with its evidence.
#[divan::bench(args = RECORDS)]
fn pack(bencher: Bencher<'_, '_>, records: usize) {
    let entries = entries(records);
    let bytes: usize = entries.iter().map(Entry::bytes).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| Packed::new(&entries));
}

/// A frame of one small batch, as live traffic has them.
#[divan::bench]
fn pack_one() -> Packed {
    Packed::new(&[Entry::Batch(batch(0, 2))])
}

/// What the gateway does with a frame.
#[divan::bench(args = RECORDS)]
fn decode(bencher: Bencher<'_, '_>, records: usize) {
    let entries = entries(records);
    let bytes: usize = entries.iter().map(Entry::bytes).sum();
    let packed = Packed::new(&entries);
    let frame = tombolo_proto::frame::EncodedFrame { mirror: MirrorId(1), run: 1, partition: 0, packed };
    let wire = Bytes::from(frame.encode().concat());
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        let header = wire.first_chunk::<HEADER_BYTES>().expect("a frame has a header");
        let header = FrameHeader::decode(header, LIMITS).expect("the frame is whole");
        header.decode_body(wire.slice(HEADER_BYTES..)).expect("the frame is whole")
    });
}

/// The journal on the disk of the temporary folder.
#[divan::bench_group(sample_count = 30, sample_size = 1)]
mod journal {
    use tombolo_tests::commits::{Commits, PARTITIONS, journal};

    use super::*;

    /// Commits that are read again.
    const DRAINED: usize = 30;

    /// The same bytes at the end of a file, made durable.
    #[divan::bench]
    fn plain_append(bencher: Bencher<'_, '_>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let block = vec![7_u8; Commits::new(COMMIT_BYTES).bytes()];
        let mut file = File::create(folder.path().join("plain")).expect("a file");
        bencher.counter(BytesCount::new(block.len())).bench_local(|| {
            file.write_all(&block).expect("room");
            file.sync_data().expect("a disk that works");
        });
    }

    /// One commit.
    #[divan::bench]
    fn append(bencher: Bencher<'_, '_>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut journal = journal(folder.path());
        let mut commits = Commits::new(COMMIT_BYTES);
        bencher
            .counter(BytesCount::new(commits.bytes()))
            .with_inputs(|| commits.next_frames())
            .bench_local_values(|frames| journal.append(&frames).expect("room"));
    }

    /// Reading what was written, from first to last.
    #[divan::bench]
    fn drain(bencher: Bencher<'_, '_>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut journal = journal(folder.path());
        let mut commits = Commits::new(COMMIT_BYTES);
        for _ in 0..DRAINED {
            journal.append(&commits.next_frames()).expect("room");
        }
        let written = commits.bytes() * DRAINED;
        let topic = commits.topic();
        bencher.counter(BytesCount::new(written)).bench_local(|| {
            for partition in 0..PARTITIONS {
                let mut offset = 0;
                while let Some(last) =
                    journal.read(topic, partition, offset, COMMIT_BYTES).expect("a sound journal").last()
                {
                    offset = last.next_offset;
                }
            }
        });
    }
}
