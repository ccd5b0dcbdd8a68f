//! The programs, built once per test process with the profile and in the folder of the test itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// What `cargo test --workspace` has built is built already: with examples wanted (there are none), Cargo chooses the
/// features of dependencies as it does for tests.
const AS_TESTS: &[&str] = &["--workspace", "--examples"];
/// The package of the program that runs among the selected ones keeps the dependencies' features, and so their builds.
const AS_PROGRAMS: &[&str] =
    &["--package=tombolo-agent", "--package=tombolo-gateway", "--package=tombolo-cli", "--package=tombolo-tests"];

/// The program's path, after a build that brings it up to date.
pub(super) async fn path(name: &str) -> PathBuf {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let folder = FOLDER.get_or_init(async || spawn_blocking(build).await.expect("the build reports its failure"));
    folder.await.join(name)
}

/// Builds and returns the folder of the programs: that of the program that runs, or the parent of the `deps` folder that
/// a test runs from.
fn build() -> PathBuf {
    let program = env::current_exe().expect("a process knows its program");
    let folder = program.parent().expect("programs lie in <target>/<profile>");
    let is_test = folder.ends_with("deps");
    let folder =
        if is_test { folder.parent().expect("tests lie in <target>/<profile>/deps") } else { folder }.to_owned();
    let profile = folder.file_name().and_then(|name| name.to_str()).expect("profiles have plain names");
    let target = folder.parent().expect("programs lie in <target>/<profile>");
    let profile = if profile == "debug" { "dev" } else { profile };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--bins", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(if is_test { AS_TESTS } else { AS_PROGRAMS })
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs the tests and can run again");
    assert!(output.status.success(), "the daemons do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    folder
}
