//! Folders for what a test writes to disk.
//!
//! A test that passes removes its folder; one that fails leaves it for a look and prints where. Folders of test
//! processes that are gone are removed when the next one starts, so a failure's traces live until the next run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process, thread};

use crate::child::alive;

/// A folder of its own, removed when dropped unless the thread panics.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes `<temp>/tombolo-tests/<process id>-<number>-<name>`.
    pub fn new(name: &str) -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = env::temp_dir().join("tombolo-tests");
        SWEEP.call_once(|| sweep(&root));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("{}-{number}-{name}", process::id()));
        fs::create_dir_all(&path).expect("the temp folder can be written");
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file below the folder and returns its path.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).expect("the temp folder can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the one channel that the test runner shows beside a failure")]
            {
                eprintln!("kept for a look: {}", self.path.display());
            }
        } else {
            // A process that was killed this instant may still hold a file; the next run's sweep takes what is left.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()).and_then(|id| id.parse::<u32>().ok());
        if owner.is_some_and(|id| !alive(id)) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
