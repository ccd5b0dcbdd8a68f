//! The whole system in one thread and virtual time: the shipped `EdgeLink`, `CloudLink`, `Mirror` and `Lease` between a
//! source that grows and a cloud cluster that answers as a real one does (`broker`), with whatever can go wrong in between.
//!
//! A seed decides everything. `TOMBOLO_SIM_SEED=n` replays one seed and prints what happens; `TOMBOLO_SIM_SEEDS=from..to`
//! runs others than the default ones.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each part of the simulation looks at a few of many events and outputs, and passes the rest on"
)]
#![expect(clippy::needless_pass_by_value, reason = "an event is over once it has happened")]

mod broker;
mod bugs;
mod carrier;
mod cloud;
mod cluster;
mod dice;
mod disk;
// The agent's own judgement, private to its crate.
#[path = "../../agent/src/evidence.rs"]
mod evidence;
mod faults;
mod journal;
mod kept;
mod plan;
mod properties;
mod site;
mod source;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;

use bugs::Bug;
use dice::Dice;
use plan::Plan;
use properties::SOMETIMES;
use world::{Ended, Tracing, World};

/// Seeds of the test command.
const DEFAULT_SEEDS: Range<u64> = 0..2_000;
const THREADS: u64 = 2;
#[expect(clippy::print_stderr, reason = "a trace and a replay command are for the person at the terminal")]
pub(crate) fn print(line: &str) {
    eprintln!("{line}");
}

fn run(seed: u64, bug: Option<Bug>, tracing: Tracing) -> Ended {
    let mut dice = Dice::new(seed);
    let plan = Plan { bug, ..Plan::of(&mut dice) };
    World::new(plan, dice, tracing).run()
}

/// Runs a seed; a panic (an offset chain that does not hold, a sum that went below zero) is a violation like any other.
fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Ended, String> {
    std::panic::catch_unwind(|| run(seed, bug, Tracing::Off)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref().copied()).unwrap_or("a panic").to_owned()
    })
}

fn replay_command(seed: u64) -> String {
    format!("TOMBOLO_SIM_SEED={seed} cargo test -p tombolo-tests --test sim -- --exact thousand_seeds_hold --nocapture")
}

/// Runs seeds on some threads; what was seen is added up, and every violation is told with its seed.
fn run_all(seeds: &Range<u64>) -> (BTreeMap<&'static str, u64>, Vec<String>) {
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let mine = seeds.clone().filter(move |seed| seed % THREADS == thread);
            std::thread::spawn(move || mine.map(|seed| (seed, run_caught(seed, None))).collect::<Vec<_>>())
        })
        .collect();
    let (mut counters, mut broken) = (BTreeMap::new(), Vec::new());
    for thread in threads {
        for (seed, ended) in thread.join().expect("a seed that panics says so itself") {
            let ended = match ended {
                Ok(ended) => ended,
                Err(panic) => {
                    broken.push(format!("seed {seed}: panic: {panic}\n  {}", replay_command(seed)));
                    continue;
                }
            };
            for (what, times) in ended.counters {
                *counters.entry(what).or_default() += times;
            }
            *counters.entry("events").or_default() += ended.events;
            if let Some(violation) = ended.violation {
                let (rule, text) = (violation.rule, violation.text);
                broken.push(format!("seed {seed}: {rule:?}: {text}\n  {}", replay_command(seed)));
            }
        }
    }
    (counters, broken)
}

fn seeds_asked_for() -> Option<Range<u64>> {
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no seed"));
    if let Ok(seed) = std::env::var("TOMBOLO_SIM_SEED") {
        return Some(number(&seed)..number(&seed) + 1);
    }
    let seeds = std::env::var("TOMBOLO_SIM_SEEDS").ok()?;
    let (from, to) = seeds.split_once("..").unwrap_or_else(|| panic!("TOMBOLO_SIM_SEEDS={seeds}: not from..to"));
    Some(number(from)..number(to))
}

#[test]
fn thousand_seeds_hold() {
    let asked = seeds_asked_for();
    if let Some(seeds) = asked.as_ref().filter(|seeds| seeds.end == seeds.start + 1) {
        let ended = run(seeds.start, None, Tracing::Printed);
        assert_eq!(ended.violation, None, "after {} events", ended.events);
        return;
    }
    let seeds = asked.clone().unwrap_or(DEFAULT_SEEDS);
    let (counters, broken) = run_all(&seeds);
    for (what, times) in &counters {
        print(&format!("{times:>10} {what}"));
    }
    assert!(broken.is_empty(), "{} seeds:\n{}", broken.len(), broken.join("\n"));
    if asked.is_none() {
        let never: Vec<_> = SOMETIMES.iter().filter(|what| !counters.contains_key(*what)).collect();
        assert!(never.is_empty(), "never seen: {never:?}");
    }
}

/// A frame that is confirmed within the spill delay never touches the disk.
#[test]
fn nothing_is_written_in_a_healthy_hour() {
    for seed in 0..3 {
        let mut dice = Dice::new(seed);
        let plan = Plan::healthy_hour(&mut dice);
        let ended = World::new(plan, dice, Tracing::Off).run();
        assert_eq!(ended.violation, None, "seed {seed}");
        assert!(ended.appended > 5_000, "seed {seed}: {} batches", ended.appended);
        assert_eq!(ended.journal_written, 0, "seed {seed}: bytes in {} batches", ended.appended);
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in [1, 7, 42] {
        let (first, second) = (run(seed, None, Tracing::Hashed), run(seed, None, Tracing::Hashed));
        assert!(first.events > 1_000);
        assert_eq!((first.trace_hash, first.events), (second.trace_hash, second.events), "seed {seed}");
    }
    let other = run(8, None, Tracing::Hashed);
    assert_ne!(other.trace_hash, run(7, None, Tracing::Hashed).trace_hash);
}

/// Every rule of the broker model names a test that holds a real broker against it; the test must exist.
#[test]
fn every_rule_of_the_broker_model_has_its_twin() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
    let mut rules = String::new();
    for entry in std::fs::read_dir(folder).expect("tests/rules") {
        rules.push_str(&std::fs::read_to_string(entry.expect("an entry").path()).expect("a text"));
    }
    let model = [include_str!("broker.rs"), include_str!("cluster.rs")].concat();
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let comments = model.lines().filter(|line| line.trim_start().starts_with("//"));
    let words = comments.flat_map(|line| line.split(|character| !is_name(character)));
    let twins: Vec<_> = words.filter(|word| word.starts_with("broker_")).collect();
    assert!(twins.len() >= 20, "{twins:?}");
    let missing: Vec<_> = twins.iter().filter(|twin| !rules.contains(&format!("fn {twin}("))).collect();
    assert!(missing.is_empty(), "no such tests in tests/rules: {missing:?}");
}
