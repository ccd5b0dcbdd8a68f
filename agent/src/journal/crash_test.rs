//! Nothing acknowledged is lost: a short workload on a disk that loses power at every write and every sync, and on one
//! that fails for good at every one of them.

use std::sync::OnceLock;

use tombolo_proto::id::{Offset, Partition};

use super::crash_disk::{CrashDisk, Fault};
use super::spec_test::{Model, read_all, sized, topic};
use super::{Journal, JournalError, JournalFrame, Limits, SegmentJournal};

const LIMITS: Limits = Limits { max_bytes: 8 << 20, segment_bytes: 512 << 10 };
/// Ways in which what was not synced is lost, for each power cut.
const SEEDS: u64 = 4;
/// Of so many power cuts, one is followed by power cuts while the journal is opened.
const TWICE: usize = 16;

/// Partition 0 is stuck: it is not confirmed before the end, so that what is left of it is merged.
#[derive(Debug)]
enum Step {
    Append(Vec<JournalFrame>),
    Trim(Vec<(Partition, Offset)>),
    Discard(Partition),
}

fn round(at: Offset) -> Step {
    Step::Append(vec![
        sized("t", 0, at, 1, 500),
        sized("t", 1, at, 1, 40_000),
        sized("t", 2, at, 1, 33_000),
        sized("t", 3, at * 2, 2, 9_000),
    ])
}

fn workload() -> &'static [Step] {
    static STEPS: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS.get_or_init(|| {
        let mut steps: Vec<Step> = (0..14).map(round).collect();
        steps.insert(4, Step::Trim(vec![(1, 2), (3, 5)]));
        steps.extend([
            Step::Trim(vec![(1, 13), (2, 13), (3, 27)]),
            round(14),
            Step::Trim(vec![(1, 14), (2, 14)]),
            // The cloud lost its end: back, and on from there.
            Step::Append(vec![sized("t", 3, 20, 5, 9_000), sized("t", 3, 25, 5, 9_000)]),
            Step::Discard(2),
            Step::Trim(vec![(0, 6), (1, 15)]),
            round(15),
            Step::Trim(vec![(0, 16), (1, 16), (2, 16), (3, 32)]),
            round(16),
        ]);
        steps
    })
}

/// Commits of so much of a partition that rows are as large as the file takes.
fn large_rows() -> &'static [Step] {
    static STEPS: OnceLock<Vec<Step>> = OnceLock::new();
    STEPS.get_or_init(|| {
        vec![
            Step::Append(vec![sized("t", 0, 0, 1, 500), sized("t", 1, 0, 3, 200_000)]),
            Step::Append(vec![sized("t", 1, 3, 1, 500_000), sized("t", 2, 0, 1, 700)]),
        ]
    })
}

/// Runs a workload until something fails; answers the append that may or may not have been written.
fn run(
    journal: &mut SegmentJournal<CrashDisk>,
    model: &mut Model,
    steps: &'static [Step],
) -> Result<(), Option<&'static [JournalFrame]>> {
    let trimmed = |(partition, offset): &(Partition, Offset)| (topic("t"), *partition, *offset);
    for step in steps {
        match step {
            Step::Append(frames) => {
                journal.append(frames).map_err(|_| Some(frames.as_slice()))?;
                model.append(frames);
            }
            Step::Trim(confirmed) => {
                for (partition, offset) in confirmed {
                    model.trim(*partition, *offset);
                }
                let confirmed: Vec<_> = confirmed.iter().map(trimmed).collect();
                journal.trim(&confirmed).map_err(|_| None)?;
            }
            Step::Discard(partition) => {
                model.discard(*partition);
                journal.discard(&[(topic("t"), *partition)]).map_err(|_| None)?;
            }
        }
    }
    Ok(())
}

/// What was acknowledged, and the same with the append that may have been.
fn outcomes(model: Model, doubtful: Option<&[JournalFrame]>) -> Vec<Model> {
    let mut outcomes = vec![model];
    if let Some(frames) = doubtful {
        let mut with = outcomes[0].clone();
        with.append(frames);
        outcomes.push(with);
    }
    outcomes
}

/// Whether the journal holds what the model says, or more that was confirmed or discarded.
fn holds(journal: &mut SegmentJournal<CrashDisk>, model: &Model) -> bool {
    let ranges = journal.ranges();
    model.held.iter().all(|(partition, (trimmed, held))| {
        let Some(range) = ranges.iter().find(|range| range.partition == *partition) else { return false };
        let mut frames = read_all(journal, range);
        frames.retain(|packed| packed.next_offset > *trimmed);
        range.first <= *trimmed && frames == *held
    })
}

/// Opens a disk that works, and sees that all that was acknowledged is there and that it goes on.
fn verify(disk: CrashDisk, outcomes: &[Model], context: &str) {
    let (mut journal, lost) =
        SegmentJournal::open_on(disk, LIMITS).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(lost, [], "{context}: nothing is damaged");
    assert_eq!(journal.usage().damaged_segments, 0, "{context}");
    for range in journal.ranges() {
        // Contiguous, and every checksum holds.
        assert!(!read_all(&mut journal, &range).is_empty(), "{context}: {range:?}");
    }
    let model = outcomes.iter().find(|model| holds(&mut journal, model));
    let model = model.unwrap_or_else(|| panic!("{context}: {:?} is none of {outcomes:?}", journal.ranges()));
    let mut model = model.clone();
    model.tell_again(&mut journal);
    let more: Vec<_> =
        (0..4).map(|part| sized("t", part, model.ends.get(&part).copied().unwrap_or(0), 1, 70)).collect();
    journal.append(&more).unwrap_or_else(|error| panic!("{context}: {error}"));
    model.append(&more);
    model.compare(&mut journal);
}

/// Runs a workload on a disk with a fault; answers the disk and what it should hold.
fn run_with(fault: Fault, steps: &'static [Step]) -> (CrashDisk, Vec<Model>) {
    let disk = CrashDisk::new();
    disk.fault(fault);
    let mut model = Model::default();
    let doubtful = match SegmentJournal::open_on(disk.clone(), LIMITS) {
        Ok((mut journal, _)) => match run(&mut journal, &mut model, steps) {
            Ok(()) => None,
            Err(doubtful) => {
                assert_keeps_failing(&mut journal, fault);
                doubtful
            }
        },
        Err(_) => None,
    };
    (disk, outcomes(model, doubtful))
}

/// After a failed write the same cause is given, for whatever is asked.
fn assert_keeps_failing(journal: &mut SegmentJournal<CrashDisk>, fault: Fault) {
    let append = |journal: &mut SegmentJournal<CrashDisk>| journal.append(&[sized("t", 7, 0, 1, 10)]);
    let error = append(journal).expect_err("nothing can be written");
    assert!(matches!(error, JournalError::Poisoned { .. }), "{fault:?}: {error}");
    assert_eq!(append(journal), Err(error.clone()));
    assert_eq!(journal.read(&topic("t"), 0, 3, 100), Err(error.clone()));
    assert_eq!(journal.trim(&[]), Err(error));
}

fn operations(steps: &'static [Step]) -> usize {
    let (disk, outcomes) = run_with(Fault::None, steps);
    let operations = disk.operations();
    verify(disk, &outcomes, "no fault");
    operations
}

#[test]
fn workload_meets_rotation_merging_and_removal() {
    let disk = CrashDisk::new();
    let (mut journal, _) = SegmentJournal::open_on(disk, LIMITS).expect("a new journal");
    let (mut most, mut merged, mut appended) = (0, false, 0);
    for step in workload() {
        if let Step::Append(frames) = step {
            appended += frames.iter().map(|frame| frame.packed.body_bytes() as u64).sum::<u64>();
            journal.append(frames).expect("room");
        } else if let Step::Trim(confirmed) = step {
            let confirmed: Vec<_> = confirmed.iter().map(|(part, offset)| (topic("t"), *part, *offset)).collect();
            journal.trim(&confirmed).expect("healthy");
        }
        most = journal.usage().segments.max(most);
        merged |= journal.usage().written_bytes > appended;
    }
    assert!(most >= 3, "at most {most} segments");
    assert!(merged, "nothing was copied");
    assert_eq!(journal.usage().segments, 1, "{:?}", journal.usage());
}

#[test]
fn power_cut_at_every_operation_loses_nothing_acknowledged() {
    let operations = operations(workload());
    assert!(operations > 300, "a workload of {operations} operations");
    for at in 0..operations {
        let (disk, outcomes) = run_with(Fault::PowerCut(at), workload());
        for seed in 0..SEEDS {
            let context = format!("power cut at {at}, seed {seed}");
            let image = disk.after_power_cut(seed);
            if at % TWICE == 0 {
                cut_while_opening(&image, &outcomes, &context);
            }
            verify(image, &outcomes, &context);
        }
    }
}

#[test]
fn a_commit_of_large_rows_is_there_or_not() {
    for at in 0..operations(large_rows()) {
        let (disk, outcomes) = run_with(Fault::PowerCut(at), large_rows());
        for seed in 0..SEEDS {
            verify(disk.after_power_cut(seed), &outcomes, &format!("power cut at {at}, seed {seed}"));
        }
    }
}

/// Repairs are cut, too.
fn cut_while_opening(image: &CrashDisk, outcomes: &[Model], context: &str) {
    for at in 0.. {
        let disk = image.healthy_copy();
        disk.fault(Fault::PowerCut(at));
        let opened = SegmentJournal::open_on(disk.clone(), LIMITS);
        let done = opened.is_ok() && disk.operations() <= at;
        drop(opened);
        if done {
            break;
        }
        verify(disk.after_power_cut(at as u64), outcomes, &format!("{context}, then at {at} of opening"));
    }
}

#[test]
fn errors_from_any_operation_on_lose_nothing_acknowledged() {
    let operations = operations(workload());
    for at in 0..operations {
        for fault in [Fault::Errors(at), Fault::NoRoom(at)] {
            let (disk, outcomes) = run_with(fault, workload());
            verify(disk.healthy_copy(), &outcomes, &format!("{fault:?}"));
            verify(disk.after_power_cut(at as u64), &outcomes, &format!("{fault:?}, then a power cut"));
        }
    }
}
