//! The client's sequences, and the client in the place of `knock`, before the real knockd: what it opens, and what each
//! step is on the wire.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::gate::SSH;
use postern_tests::knockd::Knockd;
use postern_tests::netns::{Family, Host, Network};
use postern_tests::probe::{Echo, Seen, probe, syn, wait_to_see};
use postern_tests::process::{run, succeed};
use postern_tests::programs;
use postern_tests::sshd::Sshd;
use postern_tests::wait::{LONG, wait_for};
use tempfile::TempDir;

/// Each door: its name, its steps, and what it opens.
const DOORS: [(&str, &[&str], u16); 3] = [
    ("tcp", &["7000", "8000", "9000"], SSH),
    ("udp", &["7001:udp", "8001:udp", "9001:udp"], 80),
    ("mixed", &["7002:tcp", "8002:udp", "9002:tcp", "7002:udp"], 443),
];

/// A host that lets nobody in, and one to send sequences from.
struct Scene {
    gate: Host,
    home: Host,
    files: TempDir,
    _network: Network,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut network = Network::new()?;
        let scene = Self {
            gate: network.host([1])?,
            home: network.host([2])?,
            files: tempfile::Builder::new().prefix("postern-sequences-").tempdir()?,
            _network: network,
        };
        for family in Family::ALL {
            scene.firewall(family, &["-P", "INPUT", "DROP"])?;
        }
        symlink(programs::directory()?.join("postern"), scene.files.path().join("knock"))?;
        scene.configure()?;
        Ok(scene)
    }

    /// Writes the client's configuration, which knows the doors.
    fn configure(&self) -> Result<()> {
        let addresses = Family::ALL.map(|family| self.gate.ip(family).to_string());
        let sequences = DOORS.map(|(name, steps, port)| {
            format!("[gates.old.sequences.{name}]\nsteps = {steps:?}\nopens = [\"{port}/tcp\"]\n")
        });
        let text = format!("[gates.old]\naddresses = {addresses:?}\n{}", sequences.concat());
        fs::write(self.config(), text)?;
        Ok(fs::set_permissions(self.config(), Permissions::from_mode(0o600))?)
    }

    fn config(&self) -> PathBuf {
        self.files.path().join("config.toml")
    }

    fn firewall(&self, family: Family, arguments: &[&str]) -> Result<()> {
        let mut command = self.gate.command(program(family));
        command.arg("-w").args(arguments);
        succeed(command, b"", LONG).map(drop)
    }

    fn knockd(&self) -> Result<Knockd> {
        let open =
            |family, port| format!("{} -w -A INPUT -s %IP% -p tcp --dport {port} -j ACCEPT", program(family));
        let doors = DOORS.map(|(name, steps, port)| {
            format!(
                "[{name}]\nSequence = {}\nTCPFlags = syn\nStart_Command = {}\nStart_Command_6 = {}\n",
                steps.join(","),
                open(Family::V4, port),
                open(Family::V6, port),
            )
        });
        Knockd::start(&self.gate, &doors.concat())
    }

    fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.gate.ip(family), port)
    }

    /// `postern` at home.
    fn postern(&self) -> Result<Command> {
        let mut command = self.home.command(programs::directory()?.join("postern"));
        command.arg("--config").arg(self.config());
        Ok(command)
    }

    /// Each client that sends a sequence, with what it takes before the host.
    fn clients(&self) -> Result<[(&'static str, Command); 3]> {
        let mut postern = self.postern()?;
        postern.arg("sequence");
        let called_as_knock = self.home.command(self.files.path().join("knock"));
        Ok([
            ("postern sequence", postern),
            ("postern as knock", called_as_knock),
            ("knock", self.home.command("knock")),
        ])
    }
}

const fn program(family: Family) -> &'static str {
    if let Family::V4 = family { "iptables-nft" } else { "ip6tables-nft" }
}

/// TCP, UDP and both, IPv4 and IPv6; and knock itself does the same, so that it is the sequence that opens.
#[test]
fn knockds_doors_open_to_the_client_under_both_names() -> Result<()> {
    let scene = Scene::new()?;
    let _echoes = DOORS.iter().map(|door| Echo::start(&scene.gate, door.2)).collect::<Result<Vec<_>>>()?;
    let knockd = scene.knockd()?;
    let mut opened = 0;
    for family in Family::ALL {
        for (door, steps, port) in DOORS {
            for (client, mut command) in scene.clients()? {
                let to = scene.at(family, port);
                let seen = probe(&scene.home, to)?;
                ensure!(seen == Seen::Nothing, "before the sequence, {to} shows {seen:?}");
                command.arg(to.ip().to_string()).args(steps);
                succeed(command, b"", LONG)?;
                let what = || format!("{client} at the door {door}: {:#?}", knockd.log());
                wait_to_see(&scene.home, to, Seen::Open).with_context(what)?;
                opened += 1;
                ensure!(knockd.opened()? == opened, "{}", what());
                scene.firewall(family, &["-F", "INPUT"])?;
            }
        }
    }
    Ok(())
}

/// What the configuration knows by name: sent, waited for, and, by ssh, gone through.
#[test]
fn a_named_sequence_opens_the_way_for_wait_and_for_ssh() -> Result<()> {
    let scene = Scene::new()?;
    let _echo = Echo::start(&scene.gate, 443)?;
    let sshd = Sshd::start(&scene.gate)?;
    let knockd = scene.knockd()?;

    let mut wrong = scene.postern()?;
    let address = scene.gate.ip(Family::V4).to_string();
    // Without its first step, and so without an attempt that would keep knockd from taking another door's.
    wrong.args(["sequence", &address, "8000", "9000", "--wait", "0.5", "--port", "22"]);
    let wrong = run(wrong, b"", LONG)?;
    ensure!(wrong.code == 5 && wrong.stderr.contains("not open: port 22 (no answer)"), "{wrong:?}");
    ensure!(knockd.opened()? == 0);

    let mut waits = scene.postern()?;
    waits.args(["sequence", "old", "mixed", "--wait", "20"]);
    let told = succeed(waits, b"", LONG)?.text();
    ensure!(told.contains("sent 4 steps to fd00::1\nopen: ") && told.contains(" port 443, "), "{told}");
    // One sequence an address, the one after the other.
    wait_for("both doors", LONG, || Ok((knockd.opened()? == 2).then_some(())))?;

    let postern = programs::directory()?.join("postern");
    let proxy =
        format!("ProxyCommand={} --config {} proxy %h %p", postern.display(), scene.config().display());
    for family in Family::ALL {
        let to = scene.at(family, SSH);
        ensure!(probe(&scene.home, to)? == Seen::Nothing);
        let options = ["-o".to_owned(), proxy.clone()];
        let ssh = sshd.ssh(&scene.home, to.ip(), &options, "echo through");
        ensure!(succeed(ssh, b"", LONG)?.text() == "through\n");
    }
    ensure!(knockd.opened()? == 4);
    Ok(())
}

/// Nobody answers: what is repeated would be seen.
#[test]
fn each_step_is_one_packet_and_the_same_as_knocks() -> Result<()> {
    let scene = Scene::new()?;
    let (_, steps, _) = DOORS[2];
    for family in Family::ALL {
        let mut forms = Vec::new();
        for (client, mut command) in scene.clients()? {
            // So long that a SYN whose socket is kept would be sent again before the client ends.
            command.args(["-d", "400", &scene.gate.ip(family).to_string()]).args(steps);
            let packets = captured(&scene, family, command)?;
            let ports: Vec<_> = packets.iter().filter_map(Packet::destination).collect();
            ensure!(ports == [7002, 8002, 9002, 7002], "{client}: {ports:?}");
            spaced(&packets, Duration::from_millis(400)).context(client)?;
            forms.push(packets.iter().map(form).collect::<Vec<_>>());
        }
        let [sequence, as_knock, knock] = &forms[..] else { unreachable!("there are three clients") };
        ensure!(sequence == knock && as_knock == knock, "{forms:?}");
    }
    // Nobody has to ask for the spacing.
    let mut command = scene.postern()?;
    command.args(["sequence", &scene.gate.ip(Family::V4).to_string()]).args(steps);
    spaced(&captured(&scene, Family::V4, command)?, Duration::from_millis(100))
}

/// All that a client sends to the gate, from its start until long enough after its end.
///
/// The kernel sends a SYN again after a second. A SYN of the test's own, sent last and kept, shows when that is over.
fn captured(scene: &Scene, family: Family, client: Command) -> Result<Vec<Packet>> {
    const LAST: u16 = 9;
    let capture = Capture::start(&scene.gate, Direction::In, "tcp or udp or icmp")?;
    succeed(client, b"", LONG)?;
    let _last = scene.home.enter(|| syn(None, scene.at(family, LAST)))??;
    let is_last = |packet: &&Packet| packet.destination() == Some(LAST);
    let repeated = |packets: &[Packet]| packets.iter().filter(is_last).count() >= 2;
    let packets = capture.wait_for("a SYN that is sent again", repeated)?;
    capture.finish()?;
    Ok(packets.into_iter().filter(|packet| !is_last(&packet)).collect())
}

/// Each packet so long after the one before it, and not much longer.
fn spaced(packets: &[Packet], delay: Duration) -> Result<()> {
    const LATE: Duration = Duration::from_secs(2);
    // Timers may be early by less than the clock of captures tells.
    const EARLY: Duration = Duration::from_millis(1);
    for pair in packets.windows(2) {
        let gap = pair[1].at().saturating_sub(pair[0].at());
        ensure!(gap + EARLY >= delay && gap < delay + LATE, "{gap:?} between two steps");
    }
    Ok(())
}

/// What is the same in a step of each client: what kind of packet it is, how long, and what a datagram carries.
fn form(packet: &Packet) -> (Option<u8>, usize, Option<Vec<u8>>) {
    (packet.tcp_flags(), packet.len(), packet.udp_payload().map(<[u8]>::to_vec))
}
