//! The real knockd on a host, from Debian's package. It is installed without being started: `/etc/default/knockd` says so.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::netns::{Host, LINK};
use crate::process::{Process, has_ended};
use crate::wait::{LONG, wait_for};

/// Where it logs, as far as it can tell: a folder of its own stands there.
const LOG: &str = "/var/log/knockd.log";

/// A running knockd. Dropping it ends it; what its commands did stays.
pub struct Knockd {
    files: TempDir,
    knockd: Process,
}

impl Knockd {
    /// Starts it at a host's link, with doors as its configuration has them; returns once it sees packets.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host, doors: &str) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("postern-knockd-").tempdir()?;
        let config = files.path().join("knockd.conf");
        fs::write(&config, format!("[options]\nLogFile = {LOG}\n{doors}"))?;
        Self::run(host, &config)
    }

    /// Starts it at a host's link, from a file that has it log to `/var/log/knockd.log`; returns once it sees packets.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run(host: &Host, config: &Path) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("postern-knockd-").tempdir()?;
        // `ip netns exec` gives each program mounts of its own.
        let mut command = host.command("sh");
        command.args(["-ec", "mount --bind \"$0\" /var/log\nexec knockd \"$@\""]).arg(files.path());
        command.args(["-i", LINK, "-p"]).arg(files.path().join("pid")).arg("-c").arg(config);
        let knockd = Self { knockd: Process::spawn(command)?, files };
        // It opens its capture first and logs this then.
        wait_for("knockd", LONG, || {
            Ok(knockd.log()?.iter().any(|line| line.contains("starting up, listening")).then_some(()))
        })?;
        Ok(knockd)
    }

    /// Stops it as systemd does with Debian's unit: SIGTERM for itself, and when it has ended, SIGKILL for what it leaves
    /// behind on its host.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self, host: &Host) -> Result<()> {
        let all = self.processes(host)?;
        self.knockd.signal(Signal::TERM)?;
        self.knockd.wait(LONG)?;
        end(all)
    }

    /// Kills it with everything that it has started.
    ///
    /// # Errors
    /// When one of its processes cannot be killed.
    pub fn kill(self, host: &Host) -> Result<()> {
        end(self.processes(host)?)
    }

    /// Itself, and a child for each door that it is to shut.
    fn processes(&self, host: &Host) -> Result<Vec<Pid>> {
        let program = |pid: Pid| fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        let own = program(self.knockd.pid())?;
        Ok(host.pids()?.into_iter().filter(|&pid| program(pid).is_ok_and(|program| program == own)).collect())
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self) -> Result<Vec<String>> {
        let log = self.files.path().join("knockd.log");
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

fn end(pids: Vec<Pid>) -> Result<()> {
    let left = pids.into_iter().filter(|&pid| !has_ended(pid));
    left.into_iter().try_for_each(|pid| Ok(kill_process(pid, Signal::KILL)?))
}
