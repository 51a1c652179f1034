//! Where the time of our processes goes in measurements 1, 2 and 4: perf asks a thousand times a second. Only when asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{Process, succeed};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

use super::Plan;
use crate::contenders::{Contender, Setup};
use crate::prober::Pace;
use crate::report::Section;
use crate::scene::Scene;

const TITLE: &str = "Profile";
const FIGURES: &[&str] = &["of its samples, %"];
const HEAVIEST: usize = 10;
const KNOCKS: usize = 500;
const FLOOD: u32 = 100_000;
const RATE: u32 = 1_000;
const LENGTH: Duration = Duration::from_secs(8);
const OPEN_AFTER: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);
const CLIENTS: usize = 250;

type Work = fn(&mut Scene) -> Result<()>;

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section { compares: false, ..Section::new(TITLE, FIGURES) };
    let works: [(&str, Work); 3] =
        [("1. knock to open", knock), ("2. junk, 100k/s", junk), ("4. 1,000 knocks a second", rate)];
    for contender in plan.contenders.iter().copied().filter(|who| who.is_ours() && who.has_first_firewall()) {
        for (name, work) in works {
            let condition = format!("{name}, {}", contender.name());
            eprintln!("{TITLE}: {condition}");
            match profile(contender, work) {
                Ok(heaviest) => {
                    for (share, symbol) in heaviest {
                        section.enter(&condition, &symbol, vec![Some(share)]);
                    }
                }
                Err(error) => section.miss(&condition, &contender.name(), &format!("{error:#}")),
            }
        }
    }
    section
}

/// The heaviest symbols while something is done, each with its process and with its share in per cent.
fn profile(contender: Contender, work: Work) -> Result<Vec<(f64, String)>> {
    let mut scene = Scene::start(contender, Setup { clients: CLIENTS, window_secs: 5, ..Setup::PLAIN })?;
    let folder = tempfile::Builder::new().prefix("postern-profile-").tempdir()?;
    let data = folder.path().join("perf.data");
    let pids: Vec<_> = scene.meter.pids()?.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let mut command = Command::new("perf");
    command
        .args(["record", "--event", "cpu-clock", "--freq", "997", "--pid", &pids.join(","), "--output"])
        .arg(&data);
    let mut perf = Process::spawn(command)?;
    wait_for("perf", LONG, || {
        ensure!(!perf.has_ended()?, "perf has ended: {}", perf.lines().join("; "));
        Ok(fs::metadata(&data).is_ok_and(|data| data.len() > 0).then_some(()))
    })?;
    work(&mut scene)?;
    perf.signal(Signal::INT)?;
    perf.wait(LONG)?;
    report(&data)
}

fn report(data: &Path) -> Result<Vec<(f64, String)>> {
    let mut command = Command::new("perf");
    command
        .args(["report", "--stdio", "--sort", "comm,symbol", "--field-separator", ";", "--input"])
        .arg(data);
    let printed = succeed(command, b"", LONG)?.text();
    let lines = printed.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for line in lines {
        let (share, symbol) = read(line).with_context(|| format!("perf says {line:?}"))?;
        *shares.entry(symbol).or_default() += share;
    }
    ensure!(!shares.is_empty(), "not one sample: it did not run");
    let mut heaviest: Vec<_> = shares.into_iter().map(|(symbol, share)| (share, symbol)).collect();
    heaviest.sort_by(|one, other| other.0.total_cmp(&one.0));
    heaviest.truncate(HEAVIEST);
    Ok(heaviest)
}

/// Of `12.34%;postern-front;[k] symbol;-;-`. Of a thread that is new, perf knows the number and no name.
fn read(line: &str) -> Option<(f64, String)> {
    let mut fields = line.split(';').map(str::trim);
    let share = fields.next()?.trim_end_matches('%').parse().ok()?;
    let (thread, symbol) = (fields.next()?, fields.next()?);
    let thread = if thread.starts_with(':') { "a thread" } else { thread };
    let symbol = symbol.split_whitespace().take_while(|word| *word != "-").collect::<Vec<_>>().join(" ");
    Some((share, format!("{thread} {symbol}")))
}

fn knock(scene: &mut Scene) -> Result<()> {
    for knock in scene.knocks(KNOCKS)? {
        thread::sleep(Duration::from_millis(5));
        scene.prober.one(knock, Pace::Slowing, LIMIT)?;
    }
    Ok(())
}

fn junk(scene: &mut Scene) -> Result<()> {
    let flood = scene.flood(scene.contender.junk(), Some(FLOOD))?;
    thread::sleep(LENGTH);
    flood.end()
}

fn rate(scene: &mut Scene) -> Result<()> {
    let knocks = scene.knocks(usize::try_from(u64::from(RATE) * LENGTH.as_secs())?)?;
    scene.prober.once(&knocks, Duration::from_secs(1) / RATE, OPEN_AFTER).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_prints_is_read() {
        let named = "12.34%;postern-front   ;[k] _raw_spin_lock   -      -";
        assert_eq!(read(named), Some((12.34, "postern-front [k] _raw_spin_lock".to_owned())));
        let numbered = " 1.00%;:19904;[.] a::b<c>";
        assert_eq!(read(numbered), Some((1.0, "a thread [.] a::b<c>".to_owned())));
        assert_eq!(read("no samples"), None);
    }
}
