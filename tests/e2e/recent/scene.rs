//! A host behind rules that need no daemon, and one with many addresses that knocks at it.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postern_proto::sequence::Steps;
use postern_proto::{Port, Protocol};
use postern_tests::gate::{SSH, Variant};
use postern_tests::netns::{Family, Host, Network, ip_of};
use postern_tests::packets::{Segment, Sender};
use postern_tests::probe::{Echo, PATIENCE, Seen, probe_bound, progress, syn};
use postern_tests::process::{run, succeed};
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use tempfile::TempDir;

/// As the wiki page has it, at its end.
const WIKI: &str = include_str!("wiki.rules");
/// The wiki's script, with the options as nmap spells them today.
const WIKIS_NMAP: &str =
    "for step in 8881 7777 9991; do nmap -Pn --host-timeout 201ms --max-retries 0 -p $step HOST; done";
/// The wiki's sequence.
pub(super) const STEPS: [u16; 3] = [8881, 7777, 9991];
/// A port that has nothing to do with the sequence.
pub(super) const UNRELATED: u16 = 80;
/// The numbers of the addresses that a test may have.
const NUMBERS: Range<u16> = 1000..1400;
/// The numbers of addresses that nobody has.
pub(super) const SPOOFED: u16 = 20_000;

/// Which rules a scene has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// The wiki's.
    Wiki,
    /// Ours, for iptables-restore or ip6tables-restore.
    Xtables(Variant, Family),
    /// Ours, for nft.
    Nft(Family),
}

impl Rules {
    /// Ours in every way that there is.
    pub(super) const OURS: [Self; 6] = [
        Self::Xtables(Variant::Nft, Family::V4),
        Self::Xtables(Variant::Nft, Family::V6),
        Self::Xtables(Variant::Legacy, Family::V4),
        Self::Xtables(Variant::Legacy, Family::V6),
        Self::Nft(Family::V4),
        Self::Nft(Family::V6),
    ];
    /// Each kind of ours in each family once.
    pub(super) const FEW: [Self; 4] = [
        Self::Xtables(Variant::Nft, Family::V4),
        Self::Xtables(Variant::Legacy, Family::V6),
        Self::Nft(Family::V4),
        Self::Nft(Family::V6),
    ];

    pub(super) const fn family(self) -> Family {
        match self {
            Self::Wiki => Family::V4,
            Self::Xtables(_, family) | Self::Nft(family) => family,
        }
    }

    const fn output(self) -> &'static str {
        match self {
            Self::Wiki | Self::Xtables(_, Family::V4) => "iptables",
            Self::Xtables(_, Family::V6) => "ip6tables",
            Self::Nft(_) => "nft",
        }
    }
}

/// What ours are printed for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: &'static str,
    pub(super) steps: String,
    pub(super) door: &'static str,
    pub(super) window: &'static str,
    pub(super) timeout: &'static str,
}

impl Wanted {
    /// A sequence, for SSH, with the times of the wiki.
    pub(super) fn steps(steps: impl Into<String>) -> Self {
        Self { name: "SSH", steps: steps.into(), door: "22/tcp", window: "30s", timeout: "15s" }
    }

    /// What the wiki's is for.
    pub(super) fn wiki() -> Self {
        Self::steps(STEPS.map(|step| step.to_string()).join(","))
    }
}

/// See the module.
pub(super) struct Scene {
    pub(super) rules: Rules,
    pub(super) gate: Host,
    pub(super) home: Host,
    pub(super) steps: Vec<Port>,
    printed: String,
    unused: Range<u16>,
    sender: Sender,
    folder: TempDir,
    _echoes: [Echo; 2],
    _network: Network,
}

impl Scene {
    /// The rules are loaded, as their comments say. The wiki's are for the steps that are wanted, and else as they are.
    pub(super) fn new(rules: Rules, wanted: &Wanted) -> Result<Self> {
        stay_on_one_cpu()?;
        let mut network = Network::new()?;
        let gate = network.host([1])?;
        let home = network.host([2].into_iter().chain(NUMBERS))?;
        let echoes = [Echo::start(&gate, SSH)?, Echo::start(&gate, UNRELATED)?];
        let sender = Sender::on(&home)?;
        let steps: Steps = wanted.steps.parse()?;
        let steps = steps.as_slice().to_vec();
        let printed = if rules == Rules::Wiki { wiki(&steps) } else { print(rules, wanted)? };
        let folder = tempfile::Builder::new().prefix("postern-rules-").tempdir()?;
        let scene = Self {
            rules,
            gate,
            home,
            steps,
            printed,
            unused: NUMBERS,
            sender,
            folder,
            _echoes: echoes,
            _network: network,
        };
        scene.link_programs()?;
        scene.load()?;
        Ok(scene)
    }

    /// `iptables` and what belongs to it, as the rules' comments call them, is of the variant of this scene.
    fn link_programs(&self) -> Result<()> {
        let variant = if let Rules::Xtables(variant, _) = self.rules { variant } else { Variant::Nft };
        for (family, name) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
            for suffix in ["", "-save", "-restore"] {
                let program = format!("/usr/sbin/{}", variant.program(family, suffix));
                symlink(program, self.folder.path().join(format!("{name}{suffix}")))?;
            }
        }
        fs::write(self.file(), &self.printed)?;
        Ok(())
    }

    fn load(&self) -> Result<()> {
        if self.rules == Rules::Wiki {
            return self.script("iptables-restore FILE").map(drop);
        }
        self.does_as_said("Load").map(drop)
    }

    /// Loads rules beside those that are loaded.
    pub(super) fn also(&self, wanted: &Wanted) -> Result<()> {
        fs::write(format!("{}2", self.file()), print(self.rules, wanted)?)?;
        self.script(&self.said("Load")?.join("\n").replace("FILE", "FILE2")).map(drop)
    }

    /// Loads ours where the wiki's were.
    pub(super) fn become_ours(&mut self, wanted: &Wanted) -> Result<()> {
        self.rules = Rules::Xtables(Variant::Nft, Family::V4);
        self.printed = print(self.rules, wanted)?;
        fs::write(self.file(), &self.printed)?;
        self.load()
    }

    /// Loads rules in place of those that are loaded: another file for iptables-restore.
    pub(super) fn restore_instead(&self, rules: &str) -> Result<()> {
        succeed(self.bash(&self.gate, "iptables-restore"), rules.as_bytes(), LONG).map(drop)
    }

    fn file(&self) -> String {
        self.folder.path().join("rules").display().to_string()
    }

    /// The commands under a title in the comments of the rules.
    pub(super) fn said(&self, title: &str) -> Result<Vec<&str>> {
        let title = format!("# {title}:");
        let commands = self.printed.lines().skip_while(|line| **line != title).skip(1);
        let commands: Vec<_> = commands.map_while(|line| line.strip_prefix("#     ")).collect();
        ensure!(!commands.is_empty(), "nothing is said under {title:?}");
        Ok(commands)
    }

    /// Runs on the gate's host what the comments of the rules say.
    pub(super) fn does_as_said(&self, title: &str) -> Result<String> {
        self.script(&self.said(title)?.join("\n"))
    }

    /// Runs a script on the gate's host.
    pub(super) fn script(&self, script: &str) -> Result<String> {
        Ok(succeed(self.bash(&self.gate, script), b"", LONG)?.text())
    }

    /// What a script comes to on a host of the scene, with what it names filled in.
    pub(super) fn bash(&self, host: &Host, script: &str) -> Command {
        let folder = self.folder.path().display().to_string();
        let script = script
            .replace("FILE", &self.file())
            .replace("HOST", &self.gate.ip(self.rules.family()).to_string())
            .replace("/etc/iptables", &folder)
            .replace("/etc/nftables.conf", &format!("{folder}/nftables.conf"));
        let mut command = host.command("bash");
        command.args(["-euc", &script]);
        command.env("PATH", format!("{folder}:/usr/sbin:/usr/bin:/sbin:/bin"));
        command.env("XTABLES_LOCKFILE", self.folder.path().join("lock"));
        command
    }

    /// Runs the nmap of the wiki's script, for each step.
    pub(super) fn nmap(&self) -> Result<()> {
        let command = match self.rules {
            // It looks for the name of the address first, and waits long where nobody answers: here there is none to ask.
            Rules::Wiki => format!("mount --bind /dev/null /etc/resolv.conf; {WIKIS_NMAP}"),
            Rules::Nft(Family::V6) => self.said("Knock")?.join("\n").replace("nmap", "nmap -6"),
            _ => self.said("Knock")?.join("\n"),
        };
        let finished = run(self.bash(&self.home, &command), b"", LONG)?;
        ensure!(
            finished.code == 0,
            "nmap ended with {}: {}{}",
            finished.code,
            finished.text(),
            finished.stderr
        );
        Ok(())
    }

    /// An address that has sent nothing yet.
    pub(super) fn address(&mut self) -> Result<IpAddr> {
        Ok(ip_of(self.unused.next().context("one more address")?, self.rules.family()))
    }

    /// So many of them.
    pub(super) fn addresses(&mut self, count: usize) -> Result<Vec<IpAddr>> {
        (0..count).map(|_| self.address()).collect()
    }

    /// Addresses that nobody has.
    pub(super) fn spoofed(&self, count: u16) -> impl Iterator<Item = IpAddr> + use<> {
        let family = self.rules.family();
        (SPOOFED..SPOOFED + count).map(move |number| ip_of(number, family))
    }

    /// Sends a SYN in the name of an address; once more the same one, if it was sent before.
    pub(super) fn syn(&self, from: IpAddr, port: u16) -> Result<()> {
        self.tcp(Segment::Syn, from, port)
    }

    pub(super) fn tcp(&self, segment: Segment, from: IpAddr, port: u16) -> Result<()> {
        self.sender.tcp(segment, SocketAddr::new(from, 40_000), self.at(port))
    }

    pub(super) fn udp(&self, from: IpAddr, port: u16) -> Result<()> {
        self.sender.udp(SocketAddr::new(from, 40_000), self.at(port))
    }

    /// Takes a step in the name of an address: the first is 0.
    pub(super) fn step(&self, from: IpAddr, index: usize) -> Result<()> {
        let Port { protocol, number } = self.steps[index];
        match protocol {
            Protocol::Tcp => self.syn(from, number.get()),
            Protocol::Udp => self.udp(from, number.get()),
        }
    }

    /// Takes steps in an order.
    pub(super) fn steps(&self, from: IpAddr, order: &[usize]) -> Result<()> {
        order.iter().try_for_each(|&index| self.step(from, index))
    }

    /// Takes all steps.
    pub(super) fn knock(&self, from: IpAddr) -> Result<()> {
        (0..self.steps.len()).try_for_each(|index| self.step(from, index))
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.gate.ip(self.rules.family()), port)
    }

    pub(super) fn door(&self) -> SocketAddr {
        self.at(SSH)
    }

    /// What a port shows to an address.
    pub(super) fn sees(&self, from: IpAddr, port: u16) -> Result<Seen> {
        probe_bound(&self.home, Some(from), self.at(port))
    }

    /// The door is open to an address.
    pub(super) fn is_open(&self, from: IpAddr) -> Result<bool> {
        Ok(self.to_whom_is_open(&[from])? == 1)
    }

    /// To how many of the addresses the door is open.
    pub(super) fn to_whom_is_open(&self, addresses: &[IpAddr]) -> Result<usize> {
        let dial =
            || addresses.iter().map(|&from| syn(Some(from), self.door())).collect::<io::Result<Vec<_>>>();
        let sockets = self.home.enter(dial)??;
        let open = || {
            let seen = sockets.iter().map(progress).collect::<io::Result<Vec<_>>>()?;
            Ok::<_, io::Error>(seen.iter().filter(|seen| **seen == Seen::Open).count())
        };
        let dialled = Instant::now();
        wait_for("an answer to everybody, or none", LONG, || {
            let open = open()?;
            Ok((open == addresses.len() || dialled.elapsed() > PATIENCE).then_some(open))
        })
    }
}

/// The wiki's rules, for other steps than its own if need be.
fn wiki(steps: &[Port]) -> String {
    let other = |rules: String, (own, step): (u16, &Port)| {
        rules.replace(&format!("--dport {own} "), &format!("--dport {} ", step.number))
    };
    STEPS.into_iter().zip(steps).fold(WIKI.to_owned(), other)
}

/// What posternd prints.
fn print(rules: Rules, wanted: &Wanted) -> Result<String> {
    let Wanted { name, steps, door, window, timeout } = wanted;
    let mut command = Command::new(programs::directory()?.join("posternd"));
    command.args(["rules", "recent", "--name", name, "--output", rules.output(), "--sequence", steps]);
    command.args(["--port", door, "--window", window, "--timeout", timeout]);
    Ok(succeed(command, b"", LONG)?.text())
}

/// Packets that leave on one CPU arrive in the order in which they were sent.
fn stay_on_one_cpu() -> Result<()> {
    let mut only = CpuSet::new();
    only.set(sched_getcpu());
    Ok(sched_setaffinity(None, &only)?)
}
