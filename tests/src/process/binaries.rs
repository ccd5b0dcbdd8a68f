//! The programs, built once per test process with the profile and in the folder of the test itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// The program's path, after a build that brings it up to date.
pub(super) async fn path(name: &str) -> PathBuf {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let folder = FOLDER.get_or_init(async || spawn_blocking(build).await.expect("the build reports its failure"));
    folder.await.join(name)
}

/// Builds and returns the folder of the programs: the parent of the `deps` folder that the test runs from.
fn build() -> PathBuf {
    let test = env::current_exe().expect("a process knows its program");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in <target>/<profile>/deps").to_owned();
    let profile = folder.file_name().and_then(|name| name.to_str()).expect("profiles have plain names");
    let target = folder.parent().expect("tests lie in <target>/<profile>/deps");
    let profile = if profile == "debug" { "dev" } else { profile };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The tests' own package among the selected ones keeps the dependencies' features, and so their builds, as they are.
    let packages = ["tombolo-agent", "tombolo-gateway", "tombolo-cli", "tombolo-tests"];
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--bins", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(packages.iter().flat_map(|package| iter::once("--package").chain(iter::once(*package))))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs the tests and can run again");
    assert!(output.status.success(), "the daemons do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    folder
}
