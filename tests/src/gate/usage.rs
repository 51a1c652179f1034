//! What the processes of a gate use of their machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// What processes use, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// How many they are.
    pub processes: usize,
    /// Memory of theirs that is resident, in KiB: their own, and what they map of files and of the kernel (a capture's ring
    /// is some 8 MB); what two of them share counts twice.
    pub resident: u64,
    /// Of that, what is their own and no file's, in KiB.
    pub anonymous: u64,
    /// The time that they have run on a processor, in the kernel and outside, since they were started.
    pub cpu: Duration,
}

impl Usage {
    /// What these processes use now.
    ///
    /// # Errors
    /// When one of them is gone.
    pub(super) fn of(pids: &[Pid]) -> Result<Self> {
        let mut all = Self::default();
        for pid in pids.iter().map(|pid| pid.as_raw_nonzero()) {
            let read = |file: &str| {
                let path = format!("/proc/{pid}/{file}");
                fs::read_to_string(&path).context(path)
            };
            let status = read("status")?;
            all.processes += 1;
            all.resident += kib(&status, "VmRSS:")?;
            all.anonymous += kib(&status, "RssAnon:")?;
            all.cpu += cpu(&read("stat")?)?;
        }
        Ok(all)
    }
}

/// One size out of `/proc/PID/status`.
fn kib(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    size.with_context(|| format!("no {name} in kB"))?.parse().with_context(|| name.to_owned())
}

/// User and system time out of `/proc/PID/stat`: the 14th and 15th fields, of which the second, in parentheses, may
/// hold spaces.
fn cpu(stat: &str) -> Result<Duration> {
    let (_, behind_name) = stat.rsplit_once(") ").context("no name in parentheses")?;
    let times = behind_name.split(' ').skip(11).take(2).map(str::parse::<u32>);
    let ticks: u32 = times.collect::<Result<Vec<_>, _>>()?.iter().sum();
    Ok(Duration::from_secs(1) * ticks / u32::try_from(clock_ticks_per_second())?)
}
