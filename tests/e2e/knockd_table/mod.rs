//! One knockd.conf with many doors, run by posternd and by the real knockd on one host, which see the same packets: what
//! opens is the same, but for the differences that are meant.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, Settings};
use postern_tests::knockd::Knockd;
use postern_tests::netns::{Family, Host, Network, ip_of};
use postern_tests::packets::{Segment, Sender, stay_on_one_cpu};
use postern_tests::process::succeed;
use postern_tests::wait::{LONG, wait_for};
use tempfile::TempDir;

use crate::knockd_conf::ALONE;
use crate::neighbours::at_once;

mod packet;
mod schedules;

use packet::Packet;
use schedules::{SCHEDULES, Schedule};

const V4: Family = Family::V4;
const DOORS: &str = include_str!("doors.conf");
/// The gate's addresses.
const GATE: [u16; 2] = [1, 200];
/// The numbers of the sources begin with this one.
const FIRST: u16 = 2000;
/// Each schedule has so many.
const SOURCES: u16 = 3;
/// The last of them shows that the others are done.
const DONE_SOURCE: u16 = 2;
/// At this door.
const DONE: u16 = 5000;

/// So many gates have a part of the schedules each, at the same time.
const LANES: usize = 4;

/// A gate whose knockd.conf is run twice.
struct Scene {
    gate: Gate,
    conf: PathBuf,
    /// What the commands write.
    opened: PathBuf,
    sender: Sender,
    _files: TempDir,
    _home: Host,
    _network: Network,
}

/// A run of a start command.
#[derive(Debug)]
struct Run {
    is_ours: bool,
    source: u16,
    door: String,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut network = Network::new()?;
        let (host, home) = (network.host(GATE)?, network.host([2])?);
        let gate = Gate::new(host, Settings { log: "info", ..Settings::default() })?;
        fs::write(gate.config(), ALONE)?;
        let files = tempfile::Builder::new().prefix("postern-table-").tempdir()?;
        let (conf, opened) = (files.path().join("knockd.conf"), files.path().join("opened"));
        fs::write(&conf, DOORS.replace("OPENED", &opened.to_string_lossy()))?;
        fs::write(&opened, "")?;
        // Nobody is there to be answered.
        let mut silence = gate.firewall(V4, "");
        silence.args(["-w", "-P", "INPUT", "DROP"]);
        succeed(silence, b"", LONG)?;
        let sender = Sender::on(&home)?;
        Ok(Self { gate, conf, opened, sender, _files: files, _home: home, _network: network })
    }

    /// Sends the packets of a schedule in order, and has the last door show that they were seen.
    fn send(&self, number: u16, schedule: &Schedule) -> Result<()> {
        stay_on_one_cpu()?;
        let mut ports = HashMap::new();
        for (packet, new) in schedule.packets.split(' ').zip(40_000..) {
            let packet: Packet = packet.parse()?;
            thread::sleep(packet.after);
            let last = ports.entry((packet.source, packet.port)).or_insert(new);
            if !packet.again {
                *last = new;
            }
            let from = SocketAddr::new(ip_of(FIRST + number * SOURCES + packet.source, V4), *last);
            let to = SocketAddr::new(ip_of(GATE[usize::from(packet.elsewhere)], V4), packet.port);
            match packet.flags {
                Some(flags) => self.sender.segment(flags, from, to)?,
                None => self.sender.udp(from, to)?,
            }
        }
        let last = SocketAddr::new(ip_of(FIRST + number * SOURCES + DONE_SOURCE, V4), 40_000);
        self.sender.tcp(Segment::Syn, last, self.gate.at(V4, DONE))
    }

    /// Has knockd see a schedule that sees no other: it would mix them up. Gives how many commands it has run.
    fn run_by_knockd(&self, number: u16, schedule: &Schedule) -> Result<usize> {
        let knockd = Knockd::run(self.gate.host(), &self.conf)?;
        // In a thread of its own: no process shall be kept to one CPU.
        let sent = thread::scope(|scope| scope.spawn(|| self.send(number, schedule)).join());
        sent.unwrap_or_else(|panic| resume_unwind(panic))?;
        // A process of its own says that; it and those before it live on.
        let is_done = |line: &String| line.contains("done: running command");
        wait_for("knockd to have seen it all", LONG, || Ok(knockd.log()?.iter().any(is_done).then_some(())))?;
        knockd.opened()
    }

    /// The runs of start commands so far.
    fn runs(&self) -> Result<Vec<Run>> {
        let text = fs::read_to_string(&self.opened)?;
        let run = |line: &str| {
            let [who, address, door] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let [10, 0, high, low] = address.parse::<Ipv4Addr>().ok()?.octets() else { return None };
            // posternd's commands are told the address once more.
            let (is_ours, source) = (who != "knockd", u16::from_be_bytes([high, low]) - FIRST);
            Some(Run { is_ours, source, door: door.to_owned() })
        };
        text.lines().map(|line| run(line).with_context(|| line.to_owned())).collect()
    }

    /// How many commands posternd has to run: one for each lease where there is a command for the end, else one each time.
    fn commands(&self) -> Result<usize> {
        let granted = self.gate.events("granted")?;
        let (kept, others): (Vec<_>, Vec<_>) = granted.iter().partition(|event| event["client"] == "kept");
        let kept: HashSet<_> = kept.iter().map(|event| event["source"].to_string()).collect();
        Ok(kept.len() + others.len())
    }
}

#[test]
fn doors_open_as_knockds_do_but_for_what_is_meant() -> Result<()> {
    let lanes: Vec<_> = SCHEDULES.chunks(SCHEDULES.len().div_ceil(LANES)).collect();
    let wrong = at_once(&lanes, |lane| run(lane))?.concat();
    let differences = SCHEDULES.iter().filter(|schedule| schedule.ours.is_some()).count();
    println!("{} schedules, {differences} differences", SCHEDULES.len());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Runs schedules, one after the other; gives what is not as they say.
fn run(schedules: &[Schedule]) -> Result<Vec<String>> {
    let mut scene = Scene::new()?;
    scene.gate.start(&["--knockd", &scene.conf.to_string_lossy()])?;
    let mut by_knockd = 0;
    for (schedule, number) in schedules.iter().zip(0..) {
        by_knockd += scene.run_by_knockd(number, schedule).context(schedule.what)?;
    }
    // Each schedule ends with the door that shows it, and posternd opens them in order.
    wait_for("posternd to have seen it all", LONG, || {
        let granted = scene.gate.events("granted")?;
        let last = granted.iter().filter(|event| event["client"] == "done").count();
        Ok((last == schedules.len()).then_some(()))
    })?;
    let by_ours = scene.commands()?;
    let mut seen = (0, 0);
    let runs = wait_for("all commands to have run", LONG, || {
        let runs = scene.runs()?;
        let ours = runs.iter().filter(|run| run.is_ours).count();
        seen = (runs.len() - ours, ours);
        Ok((seen.0 >= by_knockd && seen.1 >= by_ours).then_some(runs))
    })
    .with_context(|| format!("{seen:?} runs, of {by_knockd} and {by_ours}"))?;
    ensure!(runs.len() == by_ours + by_knockd, "{} runs, of {by_ours} and {by_knockd}", runs.len());
    Ok(schedules.iter().zip(0..).filter_map(|(schedule, number)| wrong(schedule, number, &runs)).collect())
}

/// What is not as a schedule says.
fn wrong(schedule: &Schedule, number: u16, runs: &[Run]) -> Option<String> {
    let Schedule { what, packets, knockd, ours } = schedule;
    let opened = |is_ours: bool| {
        let of_it = runs.iter().filter(|run| run.is_ours == is_ours && run.source / SOURCES == number);
        let of_it = of_it.filter(|run| run.source % SOURCES != DONE_SOURCE);
        let name = |run: &Run| {
            format!("{}:{}", if run.source.is_multiple_of(SOURCES) { 'a' } else { 'b' }, run.door)
        };
        let mut doors: Vec<_> = of_it.map(name).collect();
        doors.sort_unstable();
        doors.join(" ")
    };
    let (theirs, our_own) = (opened(false), opened(true));
    let wanted = ours.map_or(*knockd, |(_, ours)| ours);
    (theirs != *knockd || our_own != wanted || ours.is_some_and(|(_, ours)| ours == *knockd)).then(|| {
        format!("{what} ({packets}): knockd {theirs:?}, to be {knockd:?}; posternd {our_own:?}, to be {wanted:?}, {ours:?}")
    })
}
