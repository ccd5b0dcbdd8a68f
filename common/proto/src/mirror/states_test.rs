//! Every state of a partition meets every input: what is not listed changes nothing.

use super::tests::{appended, batch, empty, live, outputs};
use super::*;
use crate::frame::Entry;

const NOW: Time = Time::from_secs(50);

type Act = fn(&mut Mirror);

fn doubt() -> SkipOutcome {
    SkipOutcome::Doubt { reason: "x".to_owned() }
}

fn refused() -> SkipOutcome {
    SkipOutcome::Refused { reason: "x".to_owned() }
}

fn no() -> Result<(), String> {
    Err("x".to_owned())
}

/// The ticket that was given out last.
fn last(mirror: &Mirror) -> u64 {
    mirror.next_ticket.saturating_sub(1)
}

fn attempt(mirror: &Mirror) -> u32 {
    if let State::Recovering { attempt } = mirror.state { attempt } else { 99 }
}

const INPUTS: [(&str, Act); 21] = [
    ("recover", Mirror::recover),
    ("look again", Mirror::look_again),
    ("stop", Mirror::stop),
    ("fail", Mirror::fail),
    ("batch", |mirror| {
        mirror.receive(batch(mirror.progress.received, 1));
    }),
    ("gap", |mirror| {
        mirror.receive(Entry::Gap { offset: mirror.progress.received, count: 2 });
    }),
    ("source start", |mirror| assert!(mirror.source_start(90, false, OnLoss::Skip) || !mirror.held.is_empty())),
    ("produced", |mirror| {
        let offset = mirror.in_flight.back().map_or(10, |sent| sent.offset);
        mirror.produced(last(mirror), appended(offset));
    }),
    ("produced, in doubt", |mirror| mirror.produced(last(mirror), Outcome::Doubt { reason: "x".to_owned() })),
    ("produced, sequence", |mirror| mirror.produced(last(mirror), Outcome::Sequence)),
    ("produced, refused", |mirror| mirror.produced(last(mirror), Outcome::Refused { reason: "x".to_owned() })),
    ("skipped", |mirror| mirror.skipped(last(mirror), SkipOutcome::Appended { log_end: 12 }, NOW)),
    ("skipped, in doubt", |mirror| mirror.skipped(last(mirror), doubt(), NOW)),
    ("skipped, refused", |mirror| mirror.skipped(last(mirror), refused(), NOW)),
    ("fast-forwarded", |mirror| {
        mirror.fast_forwarded(last(mirror), Ok(()), NOW);
    }),
    ("fast-forward failed", |mirror| {
        mirror.fast_forwarded(last(mirror), no(), NOW);
    }),
    ("loss recorded", |mirror| {
        mirror.loss_recorded(last(mirror), Ok(()), NOW);
    }),
    ("loss not recorded", |mirror| {
        mirror.loss_recorded(last(mirror), no(), NOW);
    }),
    ("recovered", |mirror| mirror.recovered(attempt(mirror), &empty(mirror.progress.confirmed))),
    ("recovery failed", |mirror| mirror.recovery_failed(attempt(mirror), "x".to_owned(), NOW)),
    ("timeout", |mirror| mirror.handle_timeout(NOW + Time::from_mins(1))),
];

fn prepared(log_end: Offset, acts: &[Act]) -> Mirror {
    let mut mirror = live(log_end);
    for act in acts {
        act(&mut mirror);
        outputs(&mut mirror);
    }
    mirror
}

/// State, place and errand, and what is asked for.
fn show(mirror: &mut Mirror) -> String {
    let asked: Vec<&str> = outputs(mirror)
        .iter()
        .map(|output| match output {
            MirrorOutput::Recover { .. } => "Recover",
            MirrorOutput::Position { .. } => "Position",
            MirrorOutput::Produce { .. } => "Produce",
            MirrorOutput::Skip { .. } => "Skip",
            MirrorOutput::FastForward { .. } => "FastForward",
            MirrorOutput::RecordLoss { .. } => "RecordLoss",
            MirrorOutput::Failed(_) => "Failed",
        })
        .collect();
    let state = match mirror.state {
        State::Idle => "Idle",
        State::Settling => "Settling",
        State::Recovering { .. } => "Recovering",
        State::Waiting { .. } => "Waiting",
        State::Live => "Live",
        State::Draining => "Draining",
        State::Failed => "Failed",
    };
    let place = mirror.place;
    format!("{state} {place:?} {}", asked.join(" ")).trim_end().to_owned()
}

/// A state's name, the log end and the acts that lead to it, and what each input that changes something leads to.
type Row = (&'static str, Offset, &'static [Act], &'static [(&'static str, &'static str)]);

const BATCH: Act = |mirror| {
    mirror.receive(batch(mirror.progress.received, 1));
};
const GAP: Act = |mirror| {
    mirror.receive(Entry::Gap { offset: mirror.progress.received, count: 2 });
};
const START: Act = |mirror| assert!(mirror.source_start(12, false, OnLoss::Skip));

const ROWS: [Row; 12] = [
    ("idle", 10, &[Mirror::stop], &[("recover", "Recovering Nowhere Recover"), ("fail", "Failed Nowhere")]),
    ("failed", 10, &[Mirror::fail], &[("stop", "Idle Nowhere")]),
    (
        "settling",
        10,
        &[GAP, Mirror::stop, Mirror::recover],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("skipped", "Recovering Nowhere Recover"),
            ("skipped, in doubt", "Waiting Nowhere"),
            ("skipped, refused", "Recovering Nowhere Recover"),
        ],
    ),
    (
        "recovering",
        10,
        &[Mirror::look_again],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("source start", "Recovering Over"),
            ("recovered", "Live Told"),
            ("recovery failed", "Waiting Told"),
        ],
    ),
    (
        "waiting",
        10,
        &[GAP, |mirror| mirror.skipped(last(mirror), doubt(), NOW)],
        &[("stop", "Idle Nowhere"), ("fail", "Failed Nowhere"), ("timeout", "Recovering Told Recover")],
    ),
    (
        "live",
        10,
        &[],
        &[
            ("look again", "Recovering Told Recover"),
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("batch", "Live Told Produce"),
            ("gap", "Live Told Skip"),
            ("source start", "Live Over RecordLoss"),
        ],
    ),
    (
        "live, a batch in flight, a gap behind it",
        10,
        &[BATCH, GAP],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("produced", "Live Told Skip"),
            ("produced, in doubt", "Recovering Told Recover"),
            ("produced, sequence", "Recovering Told Recover"),
            ("produced, refused", "Failed Nowhere Failed"),
        ],
    ),
    (
        "live, markers in flight, a batch behind them",
        10,
        &[GAP, BATCH],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("skipped", "Live Told Produce"),
            ("skipped, in doubt", "Waiting Told"),
            ("skipped, refused", "Failed Nowhere Failed"),
        ],
    ),
    (
        "live, the empty log's end being moved",
        0,
        &[START],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("fast-forwarded", "Recovering Nowhere Recover"),
            ("fast-forward failed", "Waiting Nowhere"),
        ],
    ),
    (
        "live, a loss being recorded",
        10,
        &[START],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("loss recorded", "Live Filling Skip"),
            ("loss not recorded", "Waiting Over"),
        ],
    ),
    (
        "recovering, a lost range to fill",
        10,
        &[
            START,
            |mirror| {
                mirror.loss_recorded(last(mirror), Ok(()), NOW);
            },
            |mirror| mirror.skipped(last(mirror), doubt(), NOW),
            |mirror| mirror.handle_timeout(NOW + MARKER_SETTLE),
        ],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("recovered", "Live Filling Skip"),
            ("recovery failed", "Waiting Filling"),
        ],
    ),
    (
        "draining",
        10,
        &[
            BATCH,
            BATCH,
            BATCH,
            |mirror| mirror.produced(0, appended(10)),
            |mirror| {
                mirror.produced(1, Outcome::Doubt { reason: "x".to_owned() });
            },
        ],
        &[
            ("stop", "Idle Nowhere"),
            ("fail", "Failed Nowhere"),
            ("produced", "Recovering Told Recover"),
            ("produced, in doubt", "Recovering Told Recover"),
            ("produced, sequence", "Recovering Told Recover"),
            ("produced, refused", "Failed Nowhere Failed"),
        ],
    ),
];

#[test]
fn every_state_meets_every_input() {
    for (name, log_end, acts, changes) in ROWS {
        for (input, act) in INPUTS {
            let mut mirror = prepared(log_end, acts);
            let before = show(&mut mirror);
            act(&mut mirror);
            let expected = changes.iter().find(|(of, _)| *of == input).map_or(&*before, |(_, after)| after);
            assert_eq!(show(&mut mirror), expected, "{name}: {input}");
        }
        for (input, _) in changes {
            assert!(INPUTS.iter().any(|(name, _)| name == input), "{input}");
        }
    }
}
