//! The wiki page's own knockd.conf, run by posternd and by knockd: what people knock with opens its door, and what stops
//! the gate leaves none open.
//!
//! Three things are edited, with knockd as well: `tcpflags` is `syn`, since no ordinary client sends `syn,ack`;
//! iptables is where Debian has it; and nmap is called with `--host-timeout 201ms`, as it spells that today. The chain TCP
//! is the one of the firewall to which the page refers.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::knockd::Knockd;
use postern_tests::netns::{Family, Host, Network};
use postern_tests::probe::{Echo, Seen, probe, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};

use crate::neighbours::at_once;

const V4: Family = Family::V4;

/// As the page has it.
const WIKI: &str = include_str!("wiki.conf");
/// The page has nothing for IPv6.
const FOR_IPV6: &str = "\
        start_command_6 = /usr/sbin/ip6tables -A TCP -s %IP% -p tcp --dport 22 -j ACCEPT
        stop_command_6  = /usr/sbin/ip6tables -D TCP -s %IP% -p tcp --dport 22 -j ACCEPT
";
/// Its `cmd_timeout`.
const OPEN_FOR: Duration = Duration::from_secs(10);
/// By which a door may shut sooner or later: knockd's clock has whole seconds, a probe takes a moment, iptables too.
const GRACE: Duration = Duration::from_secs(3);

/// Nothing but what any posternd needs: no port of its own to knock at, none to guard.
pub(crate) const ALONE: &str = "[gate]\nid = \"AAAAAAAAAAAAAAAAAAAAAA\"\nports = []\nstate = \"state\"\n\
    [process]\nuser = \"nobody\"\n[admin]\nsocket = \"admin.sock\"\n";

/// What people knock with, in a shell; those with `-F` for IPv6 where they need to be told.
const CLIENTS: [(&str, &str); 5] = [
    ("knock", "knock -F HOST 8881 7777 9991"),
    (
        "nmap",
        "for port in 8881 7777 9991; do nmap -F -Pn --host-timeout 201ms --max-retries 0 -p $port HOST; done",
    ),
    (
        "bash",
        "for port in 8881 7777 9991; do timeout 0.2 bash -c \"echo > /dev/tcp/HOST/$port\" || true; done",
    ),
    ("postern", "postern sequence -F HOST 8881 7777 9991"),
    // It speaks no IPv6. It fails when nobody answers.
    ("hping3", "for port in 8881 7777 9991; do hping3 -S -c 1 -p $port HOST || true; done"),
];

/// Who runs the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Posternd,
    Knockd,
}

/// A host with the page's firewall, and one of each client's own.
struct Scene {
    gate: Gate,
    conf: PathBuf,
    homes: Vec<Host>,
    _echo: Echo,
    _network: Network,
}

impl Scene {
    /// No daemon runs yet.
    fn new(conf: &str) -> Result<Self> {
        let mut network = Network::new()?;
        let host = network.host([1])?;
        let homes = (10..).take(CLIENTS.len()).map(|number| network.host([number]));
        let homes = homes.collect::<Result<_>>()?;
        let gate = Gate::new(host, Settings { log: "info", ..Settings::default() })?;
        fs::write(gate.config(), ALONE)?;
        let path = gate.directory().join("knockd.conf");
        fs::write(&path, conf)?;
        let echo = Echo::start(gate.host(), SSH)?;
        let scene = Self { gate, conf: path, homes, _echo: echo, _network: network };
        for family in Family::ALL {
            let icmp = if family == V4 { "icmp" } else { "ipv6-icmp" };
            for rule in [
                "-P INPUT DROP",
                "-N TCP",
                &format!("-A INPUT -p {icmp} -j ACCEPT"),
                "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A INPUT -p tcp --syn -m conntrack --ctstate NEW -j TCP",
            ] {
                let mut command = scene.gate.firewall(family, "");
                command.arg("-w").args(rule.split(' '));
                succeed(command, b"", LONG)?;
            }
        }
        Ok(scene)
    }

    fn start(&mut self) -> Result<()> {
        self.gate.start(&["--knockd", &self.conf.to_string_lossy()])
    }

    fn door(&self, family: Family) -> SocketAddr {
        self.gate.at(family, SSH)
    }

    /// What the commands have put into the page's chain.
    fn rules(&self, family: Family) -> Result<Vec<String>> {
        self.gate.rules(family, "TCP")
    }

    /// A client, to be run.
    fn client(&self, index: usize, family: Family) -> Result<Command> {
        let flag = if family == Family::V6 { "-6" } else { "" };
        let script = CLIENTS[index].1.replace("HOST", &self.gate.host().ip(family).to_string());
        let mut command = self.homes[index].command("bash");
        // Nobody is there to be asked for names; nmap would try for 13 seconds.
        let script = format!("mount --bind /dev/null /etc/resolv.conf\n{}", script.replace("-F", flag));
        command.args(["-euc", &script]);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs::directory()?.display()));
        Ok(command)
    }

    /// The door is shut to a client, and opens.
    fn opens(&self, index: usize, family: Family) -> Result<Instant> {
        let (home, door) = (&self.homes[index], self.door(family));
        let seen = probe(home, door)?;
        ensure!(seen == Seen::Nothing, "before the sequence, {door} shows {seen:?}");
        let before = Instant::now();
        let said = succeed(self.client(index, family)?, b"", LONG)?;
        wait_to_see(home, door, Seen::Open).with_context(|| said.text())?;
        Ok(before)
    }

    /// The door that a client has opened is shut when its time is over, and not before.
    fn shuts_on_time(&self, index: usize, family: Family, knocked: Instant) -> Result<()> {
        let opened = Instant::now();
        let mut last_open = opened;
        wait_for("the end of what was opened", LONG, || {
            let sent = Instant::now();
            if probe(&self.homes[index], self.door(family))? != Seen::Open {
                return Ok(Some(()));
            }
            last_open = sent;
            thread::sleep(Duration::from_millis(100));
            Ok(None)
        })?;
        let (shortest, longest) = (last_open - knocked, last_open - opened);
        ensure!(shortest + GRACE >= OPEN_FOR, "shut after {shortest:?}");
        ensure!(longest <= OPEN_FOR + GRACE, "open for {longest:?}");
        Ok(())
    }
}

/// The page's file with the edits.
fn conf() -> String {
    WIKI.replace("syn,ack", "syn").replace("/usr/bin/iptables", "/usr/sbin/iptables")
}

#[test]
fn the_wikis_door_opens_to_whatever_people_knock_with() -> Result<()> {
    at_once(&[Daemon::Posternd, Daemon::Knockd], |&daemon| opens_to_each(daemon, V4, &conf())).map(drop)
}

/// With the two lines more that IPv6 takes.
#[test]
fn the_wikis_door_opens_over_ipv6_too() -> Result<()> {
    let conf = conf() + FOR_IPV6;
    at_once(&[Daemon::Posternd, Daemon::Knockd], |&daemon| opens_to_each(daemon, Family::V6, &conf)).map(drop)
}

fn opens_to_each(daemon: Daemon, family: Family, conf: &str) -> Result<()> {
    let mut scene = Scene::new(conf)?;
    let knockd = match daemon {
        Daemon::Posternd => {
            scene.start()?;
            None
        }
        Daemon::Knockd => Some(Knockd::run(scene.gate.host(), &scene.conf)?),
    };
    let clients: Vec<_> =
        (0..CLIENTS.len()).filter(|&index| family == V4 || CLIENTS[index].0 != "hping3").collect();
    // knockd forgets everybody's steps when somebody has been through: one after the other.
    let turn = Mutex::new(());
    at_once(&clients, |&index| {
        let opened = {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            scene.opens(index, family)
        };
        let shut = opened.and_then(|knocked| scene.shuts_on_time(index, family, knocked));
        shut.with_context(|| format!("{} before {daemon:?} over {family:?}", CLIENTS[index].0))
    })?;
    let rules = scene.rules(family)?;
    ensure!(rules.is_empty(), "{daemon:?} leaves {rules:?}");
    if let Some(knockd) = knockd {
        ensure!(knockd.opened()? == clients.len(), "{:#?}", knockd.log()?);
    }
    Ok(())
}

/// What is open when the gate stops is shut by then, and what is open when it is killed, after the next start and at its
/// time.
#[test]
fn no_door_stays_open_when_the_gate_stops_or_is_killed() -> Result<()> {
    at_once(&Family::ALL, |&family| stops_and_is_killed(family)).map(drop)
}

fn stops_and_is_killed(family: Family) -> Result<()> {
    let mut scene = Scene::new(&(conf() + FOR_IPV6))?;
    scene.start()?;
    scene.opens(0, family)?;
    scene.opens(1, family)?;
    ensure!(scene.rules(family)?.len() == 2);
    scene.gate.stop()?;
    ensure!(scene.rules(family)?.is_empty(), "left when it was stopped: {:?}", scene.rules(family)?);

    scene.start()?;
    scene.opens(0, family)?;
    scene.opens(1, family)?;
    let knocked = Instant::now();
    scene.gate.kill()?;
    ensure!(!scene.rules(family)?.is_empty(), "nobody was there to run the command");
    scene.start()?;
    let gone = || Ok(scene.rules(family)?.is_empty().then(|| knocked.elapsed()));
    let lasted = wait_for("the end of what a gate that was killed has opened", LONG, gone)?;
    ensure!(lasted <= OPEN_FOR + GRACE, "open for {lasted:?}");
    scene.opens(0, family).map(drop)
}

/// The rules of the page have no time of their own. When knockd is told to stop, it waits for one of the doors that it is
/// to shut; the others stay open for good, and all of them when it is killed.
#[test]
fn knockd_leaves_doors_open_when_it_stops_or_is_killed() -> Result<()> {
    at_once(&[true, false], |&is_told| {
        let scene = Scene::new(&conf())?;
        let knockd = Knockd::run(scene.gate.host(), &scene.conf)?;
        let first = scene.opens(0, V4)?;
        wait_for("another door's time to be another", LONG, || Ok((first.elapsed() > GRACE).then_some(())))?;
        let second = scene.opens(1, V4)?;
        ensure!(scene.rules(V4)?.len() == 2);
        let left = if is_told {
            knockd.stop(scene.gate.host())?;
            1
        } else {
            knockd.kill(scene.gate.host())?;
            2
        };
        while second.elapsed() < OPEN_FOR + GRACE {
            ensure!(scene.rules(V4)?.len() == left, "{:?}", scene.rules(V4)?);
            thread::sleep(Duration::from_millis(100));
        }
        ensure!(probe(&scene.homes[1], scene.door(V4))? == Seen::Open);
        Ok(())
    })
    .map(drop)
}
