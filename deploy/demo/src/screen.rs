//! The live table: drawn over itself on a terminal, line by line elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Between two drawings on a terminal.
const REDRAW: Duration = Duration::from_millis(250);
/// Between two drawings elsewhere.
const REPEAT: Duration = Duration::from_secs(2);

/// What is shown at one moment.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    /// Since the first record.
    pub(crate) elapsed: Duration,
    /// What the run does.
    pub(crate) phase: &'static str,
    /// How the agent sees the link.
    pub(crate) link: String,
    /// Since when the forwarder drops every packet, while it does.
    pub(crate) dark: Option<Duration>,
    /// Records that the producers wrote.
    pub(crate) produced: u64,
    /// Topics, in order.
    pub(crate) topics: Vec<TopicRow>,
}

/// One topic: sums over its partitions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicRow {
    pub(crate) name: String,
    pub(crate) partitions: usize,
    pub(crate) state: String,
    /// Offsets after the last record at the source, as far as the agent has looked.
    pub(crate) source_end: i64,
    /// Offsets after the last record that the cloud confirmed.
    pub(crate) confirmed: i64,
}

impl TopicRow {
    fn lag(&self) -> i64 {
        (self.source_end - self.confirmed).max(0)
    }
}

/// Where frames and messages go.
pub(crate) struct Screen {
    in_place: bool,
    /// Lines of the last frame, to be drawn over.
    drawn: usize,
}

impl Screen {
    /// `quiet` promises that nothing else writes to the terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { in_place: quiet && io::stdout().is_terminal(), drawn: 0 }
    }

    /// How often [`Screen::draw`] is worth calling.
    pub(crate) fn interval(&self) -> Duration {
        if self.in_place { REDRAW } else { REPEAT }
    }

    /// Shows a frame.
    pub(crate) fn draw(&mut self, frame: &Frame) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.in_place {
            writeln!(out, "{}", line(frame))?;
            return out.flush();
        }
        if self.drawn > 0 {
            write!(out, "\x1b[{}A", self.drawn)?;
        }
        let lines = table(frame);
        for line in &lines {
            // Clears what a longer line left behind.
            writeln!(out, "{line}\x1b[K")?;
        }
        self.drawn = lines.len();
        out.flush()
    }

    /// Prints below what was drawn.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        self.drawn = 0;
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

fn head(frame: &Frame) -> String {
    let dark = frame.dark.map(|since| format!("  ** DARK for {:.1} s **", since.as_secs_f32())).unwrap_or_default();
    format!(
        "{:5.1} s  {:<10}  link {:<12}{dark}  {} records produced",
        frame.elapsed.as_secs_f32(),
        frame.phase,
        frame.link,
        frame.produced
    )
}

/// One line: the topics' lags.
fn line(frame: &Frame) -> String {
    let lags: Vec<_> = frame.topics.iter().map(|topic| format!("{} {}", topic.name, topic.lag())).collect();
    format!("{}  lag: {}", head(frame), lags.join(", "))
}

fn table(frame: &Frame) -> Vec<String> {
    let mut lines = vec![head(frame)];
    let columns = ["topic", "partitions", "state", "source end", "confirmed", "lag"].map(str::to_owned);
    let rows = frame.topics.iter().map(|topic| {
        [
            topic.name.clone(),
            topic.partitions.to_string(),
            topic.state.clone(),
            topic.source_end.to_string(),
            topic.confirmed.to_string(),
            topic.lag().to_string(),
        ]
    });
    for [name, partitions, state, source_end, confirmed, lag] in std::iter::once(columns).chain(rows) {
        lines.push(format!("  {name:<24}{partitions:>10}  {state:<18}{source_end:>12}{confirmed:>12}{lag:>10}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let row = TopicRow {
            name: "orders".to_owned(),
            partitions: 4,
            state: "ACTIVE".to_owned(),
            source_end: 120,
            confirmed: 100,
        };
        Frame {
            elapsed: Duration::from_millis(7_400),
            phase: "producing",
            link: "DIALING".to_owned(),
            dark: Some(Duration::from_millis(2_400)),
            produced: 130,
            topics: vec![row],
        }
    }

    #[test]
    fn a_line_says_link_outage_and_lag() {
        let line = line(&frame());
        for part in ["7.4 s", "link DIALING", "DARK for 2.4 s", "130 records", "orders 20"] {
            assert!(line.contains(part), "{part:?} in {line:?}");
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_topic() {
        let table = table(&frame());
        assert_eq!(table.len(), 3);
        for part in ["orders", "4", "ACTIVE", "120", "100", "20"] {
            assert!(table.last().unwrap().contains(part), "{part:?}");
        }
    }
}
