//! What a suite found: figures of every run, their medians, and what was asked for beside what was seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde::Serialize;

/// All of one suite.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) suite: &'static str,
    /// What was written and how, in a sentence.
    pub(crate) data: String,
    pub(crate) machine: Machine,
    /// The command line of this run.
    pub(crate) command: String,
    /// Settings of the contenders, name and content.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) findings: Vec<Finding>,
}

/// Where and when.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) kafka: String,
    pub(crate) tombolo: String,
}

/// One run of one contender.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) contender: String,
    /// Name with unit, and value.
    pub(crate) figures: Vec<(&'static str, f64)>,
}

/// What was asked for, and what was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) asked: String,
    pub(crate) seen: String,
    pub(crate) met: bool,
}

impl Report {
    pub(crate) fn new(suite: &'static str, data: String) -> Self {
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        Self {
            suite,
            data,
            machine: Machine::here(),
            command: format!("cargo run --release -p tombolo-tests --bin bench -- {command}"),
            settings: Vec::new(),
            rows: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// The median of a figure over a contender's runs; NaN, which meets nothing, where it did not run. Panics where it ran
    /// and has no such figure: a suite knows what it measured.
    pub(crate) fn median(&self, contender: &str, figure: &str) -> f64 {
        let medians = self.medians();
        let Some(figures) = medians.get(contender) else { return f64::NAN };
        let found = figures.iter().find(|(name, _)| *name == figure).map(|(_, value)| *value);
        found.unwrap_or_else(|| panic!("{contender} has no figure {figure}"))
    }

    /// Takes down that a median is to be at least so much.
    pub(crate) fn at_least(&mut self, what: &str, seen: f64, asked: f64) {
        let (asked_text, seen_text) = (format!("at least {}", number(asked)), number(seen));
        let finding = Finding { what: what.to_owned(), asked: asked_text, seen: seen_text, met: seen >= asked };
        self.findings.push(finding);
    }

    /// Takes down that a median is to be at most so much.
    pub(crate) fn at_most(&mut self, what: &str, seen: f64, asked: f64) {
        let (asked_text, seen_text) = (format!("at most {}", number(asked)), number(seen));
        let finding = Finding { what: what.to_owned(), asked: asked_text, seen: seen_text, met: seen <= asked };
        self.findings.push(finding);
    }

    /// Per contender, in the order of the runs.
    pub(crate) fn medians(&self) -> BTreeMap<String, Vec<(&'static str, f64)>> {
        let mut medians = BTreeMap::new();
        for contender in self.contenders() {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.contender == contender).collect();
            let names = rows.first().map(|row| row.figures.iter().map(|(name, _)| *name)).into_iter().flatten();
            let of_all = names.map(|name| {
                let values = rows.iter().flat_map(|row| &row.figures).filter(|(other, _)| *other == name);
                (name, median(values.map(|(_, value)| *value).collect()))
            });
            medians.insert(contender, of_all.collect());
        }
        medians
    }

    pub(crate) fn contenders(&self) -> Vec<String> {
        let mut contenders: Vec<String> = Vec::new();
        for row in &self.rows {
            if !contenders.contains(&row.contender) {
                contenders.push(row.contender.clone());
            }
        }
        contenders
    }

    /// The names of all figures, in the order in which they came.
    pub(crate) fn figures(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (name, _) in self.rows.iter().flat_map(|row| &row.figures) {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        names
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}: {}\n{}\n\n", self.suite, self.data, self.machine.text());
        for (name, content) in &self.settings {
            writeln!(text, "{name}: {content}").expect("a string takes all");
        }
        let medians = self.medians();
        let contenders = self.contenders();
        let width = self.figures().iter().map(|name| name.len()).max().unwrap_or(0);
        write!(text, "\n{:width$}", "median").expect("a string takes all");
        for contender in &contenders {
            write!(text, "  {contender:>24}").expect("a string takes all");
        }
        text.push('\n');
        for figure in self.figures() {
            write!(text, "{figure:width$}").expect("a string takes all");
            for contender in &contenders {
                let value = medians.get(contender).and_then(|all| all.iter().find(|(name, _)| *name == figure));
                let value = value.map_or_else(|| "-".to_owned(), |(_, value)| number(*value));
                write!(text, "  {value:>24}").expect("a string takes all");
            }
            text.push('\n');
        }
        text.push('\n');
        for finding in &self.findings {
            let Finding { what, asked, seen, met } = finding;
            let verdict = if *met { "met" } else { "NOT MET" };
            writeln!(text, "{verdict:8} {what}: {seen} (asked: {asked})").expect("a string takes all");
        }
        text
    }
}

impl Machine {
    fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory_kib: u64 =
            field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            date: output("date", &["--utc", "+%Y-%m-%d %H:%M UTC"]),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get),
            memory_gib: memory_kib.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kafka: tombolo_tests::mirror_maker::version(),
            tombolo: output("git", &["describe", "--always", "--dirty"]),
        }
    }

    pub(crate) fn text(&self) -> String {
        let Self { date, processor, cores, memory_gib, kernel, kafka, tombolo } = self;
        format!(
            "{date}; {cores} cores ({processor}), {memory_gib} GiB, Linux {kernel}; Kafka and MirrorMaker {kafka}; \
             tombolo {tombolo}"
        )
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    run.map(|run| String::from_utf8_lossy(&run.stdout).trim().to_owned()).unwrap_or_default()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}

/// Three digits that count, thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        #[expect(clippy::cast_possible_truncation, reason = "figures are far below")]
        let digits = (value.round() as i64).to_string();
        let mut grouped = String::new();
        for (place, digit) in digits.char_indices() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                grouped.push(' ');
            }
            grouped.push(digit);
        }
        grouped
    } else if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
