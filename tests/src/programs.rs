//! The programs under test, built once a process in the profile of the tests, so that no stale one is ever tested.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

/// The directory with `postern` and `posternd`, both up to date.
///
/// # Errors
/// When they do not build, or when this process may not do what the tests do.
pub fn directory() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(directory) => Ok(directory),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<PathBuf> {
    ensure!(
        geteuid().is_root(),
        "the end-to-end tests make network namespaces: run them as root (`bash tests/run`)"
    );
    // A test runs in TARGET/PROFILE/deps, a program in TARGET/PROFILE.
    let executable = env::current_exe()?;
    let directory = executable.parent().context("an executable has a directory")?;
    let profile = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    let profile = profile.context("deps has a directory above it")?;
    let target = profile.parent().context("a profile has a directory above it")?;

    // All programs at once: the features of what they share are then those of the tests, which are built already.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--target-dir"]).arg(target);
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    ensure!(cargo.status()?.success(), "the programs under test do not build");
    Ok(profile.to_owned())
}
