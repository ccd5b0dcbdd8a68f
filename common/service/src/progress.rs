//! How far a long job has come, on stderr: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{msg:>10} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Bytes of a job.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    done: u64,
    total: u64,
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Progress {
    /// A job of `total` bytes, named by a word.
    pub fn new(what: &'static str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            // A template that cannot be read would be seen by whoever wrote it.
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what)
        });
        Self { what, done: 0, total, bar, told: Instant::now() }
    }

    /// So many more bytes are done.
    pub fn add(&mut self, bytes: u64) {
        self.done = self.total.min(self.done.saturating_add(bytes));
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if self.told.elapsed() >= LINE_EVERY => {
                self.told = Instant::now();
                self.line("");
            }
            None => {}
        }
    }

    /// The job ended here, done or not.
    pub fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.abandon(),
            None => self.line(", done"),
        }
    }

    fn line(&self, end: &str) {
        let (done, total) = (HumanBytes(self.done), HumanBytes(self.total));
        // Where stderr is gone there is nobody to tell.
        drop(writeln!(io::stderr().lock(), "{}: {done} of {total}{end}", self.what));
    }
}
