//! Where all of it was measured.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use postern_proto::WallTime;
use serde::Serialize;

const PACKAGES: [&str; 5] = ["fwknop-server", "fwknop-client", "knockd", "iptables", "libpcap0.8"];

#[derive(Serialize)]
pub(crate) struct Machine {
    date: String,
    processor: String,
    processors: usize,
    memory_mib: u64,
    kernel: String,
    packages: Vec<String>,
    /// Waiting processes in the mean of the minute before: who else was at work.
    load_before: String,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let memory = fs::read_to_string("/proc/meminfo")?;
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no MemTotal")?;
        let total: u64 = total.split_whitespace().next().context("no number")?.parse()?;
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            date: WallTime::from(SystemTime::now()).to_string(),
            processor: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            memory_mib: total / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            packages: PACKAGES.iter().map(|package| version(package)).collect(),
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

fn version(package: &str) -> String {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
    let version = output.ok().filter(|output| output.status.success());
    version.map_or_else(
        || format!("{package} -"),
        |output| format!("{package} {}", String::from_utf8_lossy(&output.stdout)),
    )
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, processor, processors, memory_mib, kernel, packages, load_before } = self;
        writeln!(
            f,
            "{date}, {processor}, {processors} processors, {memory_mib} MiB, Linux {kernel}, load {load_before}"
        )?;
        write!(f, "{}", packages.join(", "))
    }
}
