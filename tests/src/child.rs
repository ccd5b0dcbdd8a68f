//! A child process that cannot outlive the test process, however that one ends.
//!
//! `setpriv --pdeathsig KILL` asks the kernel for it. The kernel acts when the *thread* that started the child ends, and
//! every test runs in a thread of its own, so all children are started by one thread that lives as long as the process.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

/// Kernel ticks a second that `/proc` counts in: the same on every Linux that Rust runs on (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has taken of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of processor time, the kernel's for the process included.
    pub cpu_seconds: f64,
    /// The most memory it ever held (`VmHWM`), in bytes.
    pub peak_bytes: u64,
}

impl Usage {
    /// `None` once it has ended.
    pub(crate) fn of(id: u32) -> Option<Self> {
        let folder = Path::new("/proc").join(id.to_string());
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // Fields from the third on follow the name, which may hold anything, in brackets: proc_pid_stat(5).
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
        // utime and stime.
        let cpu_seconds = (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND;
        Some(Self { cpu_seconds, peak_bytes: kib * 1024 })
    }
}

struct Order {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

static STARTER: LazyLock<SyncSender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = sync_channel::<Order>(16);
    thread::Builder::new()
        .name("child-starter".to_owned())
        .spawn(move || {
            for mut order in inbox {
                let started = order.command.spawn();
                // The caller waits for the answer; if its thread is gone, dropping the receiver's half is all there is.
                drop(order.answer.send(started));
            }
        })
        .expect("a thread can be started");
    orders
});

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
}

impl Program {
    /// Starts `program` with `arguments` in `folder`; both output streams are appended to `log`.
    pub fn start(program: &Path, arguments: &[String], folder: &Path, log: &Path) -> Self {
        let out = appended(log);
        let err = out.try_clone().expect("a file handle can be cloned");
        Self::spawn(program, arguments, folder, |command| command.stdin(Stdio::null()).stdout(out).stderr(err))
    }

    /// Starts `program` to talk with; its standard error is appended to `log`.
    pub(crate) fn start_piped(
        program: &Path,
        arguments: &[String],
        folder: &Path,
        log: &Path,
    ) -> (Self, ChildStdin, ChildStdout) {
        let err = appended(log);
        let mut started = Self::spawn(program, arguments, folder, |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(err)
        });
        let stdin = started.child.stdin.take().expect("its standard input is a pipe");
        let stdout = started.child.stdout.take().expect("its standard output is a pipe");
        (started, stdin, stdout)
    }

    fn spawn(
        program: &Path,
        arguments: &[String],
        folder: &Path,
        connect: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments).current_dir(folder);
        connect(&mut command);
        let (answer, started) = sync_channel(1);
        STARTER.send(Order { command, answer }).expect("the starter thread lives as long as the process");
        match started.recv().expect("the starter thread answers every order") {
            Ok(child) => Self { child },
            Err(error) => {
                panic!("cannot start setpriv (it is in Debian's util-linux) for {}: {error}", program.display())
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once the program has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of this process can be waited for")
    }

    /// Sends a signal; a program that has ended already is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("process ids are positive");
            kill_process(id, signal).expect("a child that was not waited for can be signalled");
        }
    }

    /// What it has taken of the machine since it started; nothing more is known once it has been waited for.
    pub fn usage(&self) -> Usage {
        Usage::of(self.id()).expect("a running process has a status")
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().expect("a child of this process can be waited for")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn appended(log: &Path) -> File {
    File::options().create(true).append(true).open(log).expect("the log file can be written")
}

/// Whether the process with this id exists.
pub(crate) fn alive(id: u32) -> bool {
    Path::new("/proc").join(id.to_string()).exists()
}
