//! The real knockd on a host, from Debian's package. It is installed without being started: `/etc/default/knockd` says so.

use std::fs;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::{Host, LINK};
use crate::process::Process;
use crate::wait::{LONG, wait_for};

/// A running knockd. Dropping it ends it; what its commands did stays.
pub struct Knockd {
    files: TempDir,
    _knockd: Process,
}

impl Knockd {
    /// Starts it at a host's link, with doors as its configuration has them; returns once it sees packets.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host, doors: &str) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("postern-knockd-").tempdir()?;
        let config = files.path().join("knockd.conf");
        fs::write(&config, format!("[options]\nLogFile = {}\n{doors}", files.path().join("log").display()))?;
        let mut command = host.command("knockd");
        command.args(["-i", LINK, "-p"]).arg(files.path().join("pid")).arg("-c").arg(config);
        let knockd = Self { _knockd: Process::spawn(command)?, files };
        // It opens its capture first and logs this then.
        wait_for("knockd", LONG, || {
            Ok(knockd.log()?.iter().any(|line| line.contains("starting up, listening")).then_some(()))
        })?;
        Ok(knockd)
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self) -> Result<Vec<String>> {
        let log = self.files.path().join("log");
        // It makes the file when it starts.
        let text = if log.exists() { fs::read_to_string(log)? } else { String::new() };
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// How often it has seen a whole sequence.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn opened(&self) -> Result<usize> {
        Ok(self.log()?.iter().filter(|line| line.contains("OPEN SESAME")).count())
    }
}
