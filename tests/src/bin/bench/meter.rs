//! What a contender uses: all of its processes, those that have ended as well, since they share a cgroup (v2) of their own.
//!
//! Processor time is `usage_usec` of `cpu.stat`. Unless the kernel accounts for interrupts apart, what a packet costs in the
//! kernel before it is in the capture's ring is the time of whoever runs then: here the sender, on whose processor it arrives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// A cgroup. Dropping it kills what is still in it.
pub(crate) struct Meter {
    folder: PathBuf,
}

/// What processes hold and have done, all together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) processes: usize,
    /// In KiB; what two of them share counts twice.
    pub(crate) resident: u64,
    /// In KiB; what is shared counts in parts.
    pub(crate) proportional: u64,
    /// How often a thread of them has gone to sleep.
    pub(crate) sleeps: u64,
}

impl Meter {
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|mount| mount[2] == "cgroup2");
        let mount = mount.context("no cgroup (v2) is mounted")?[1].to_owned();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(&mount).join(format!("postern-bench-{}-{number}", process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    /// Takes a process in; what it starts from now on follows it.
    pub(crate) fn adopt(&self, pid: Pid) -> Result<()> {
        Ok(fs::write(self.folder.join("cgroup.procs"), pid.as_raw_nonzero().to_string())?)
    }

    /// How long its processes have run on a processor.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.folder.join("cpu.stat"))?;
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(usage.context("no usage_usec")?.parse()?))
    }

    pub(crate) fn pids(&self) -> Result<Vec<Pid>> {
        let listed = fs::read_to_string(self.folder.join("cgroup.procs"))?;
        Ok(listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
    }

    /// What those that live use now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut all = Usage::default();
        for pid in self.pids()? {
            let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
            // One that ends meanwhile uses nothing.
            let Ok(rollup) = fs::read_to_string(folder.join("smaps_rollup")) else { continue };
            all.processes += 1;
            all.resident += field(&rollup, "Rss:").context("no Rss")?;
            all.proportional += field(&rollup, "Pss:").context("no Pss")?;
            for task in fs::read_dir(folder.join("task")).into_iter().flatten().flatten() {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                all.sleeps += field(&status, "voluntary_ctxt_switches:").unwrap_or_default();
            }
        }
        Ok(all)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let gone = wait_for("an empty cgroup", LONG, || {
            for pid in self.pids()? {
                // One that has ended meanwhile is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            Ok(fs::remove_dir(&self.folder).ok())
        });
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.folder.display());
        }
    }
}

/// The first number behind a name.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
