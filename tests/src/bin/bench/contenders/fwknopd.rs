//! fwknopd, from Debian's package: both of its ways to get packets, as installed and with what its manual offers for speed.
//!
//! Its client makes the packets ahead of time, so that its start is not measured; they are sent as they are.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_tests::knocks::random;
use postern_tests::netns::Host;
use postern_tests::process::Process;
use postern_tests::wait::{LONG, wait_for};
use tempfile::TempDir;

use super::{Running, Setup, default_drop};
use crate::flood::Junk;
use crate::wire::{GATE, Knock, datagram};

const PORT: u16 = 62_201;
/// Characters of a packet that asks for one port.
const LEN: usize = 204;

/// How it gets packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pcap,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tuning {
    Installed,
    Tuned,
}

impl Mode {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pcap => "pcap",
            Self::Udp => "udp",
        }
    }
}

impl Tuning {
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Installed => "",
            Self::Tuned => "-tuned",
        }
    }
}

/// What is in its configuration beside where it runs.
const fn settings(mode: Mode, tuning: Tuning) -> &'static str {
    match (mode, tuning) {
        (Mode::Pcap, Tuning::Installed) => "",
        (Mode::Pcap, Tuning::Tuned) => "PCAP_LOOP_SLEEP 1000;\nPCAP_DISPATCH_COUNT 10000;\n",
        (Mode::Udp, Tuning::Installed) => "ENABLE_UDP_SERVER Y;\n",
        (Mode::Udp, Tuning::Tuned) => "ENABLE_UDP_SERVER Y;\nRULES_CHECK_THRESHOLD 0;\n",
    }
}

/// Base64, of one who has a key.
struct Keys {
    rijndael: String,
    hmac: String,
}

pub(super) struct Fwknopd {
    keys: Keys,
    _daemon: Process,
    files: TempDir,
    host: Host,
}

pub(super) fn start(host: Host, mode: Mode, tuning: Tuning, setup: Setup) -> Result<Fwknopd> {
    let port = format!("-A INPUT -p udp --dport {PORT} -j ACCEPT");
    let ports = if mode == Mode::Udp { vec![port.as_str()] } else { vec![] };
    default_drop(&host, &ports)?;
    let files = tempfile::Builder::new().prefix("postern-fwknopd-").tempdir()?;
    let path = |name: &str| files.path().join(name);
    let mut access = String::new();
    // The one who knocks comes last.
    for number in 1..=setup.clients {
        let keys = if number == setup.clients { None } else { Some(Keys::new()) };
        access.extend(keys.map(|keys| keys.stanza(setup.window_secs)));
    }
    let keys = Keys::new();
    access.push_str(&keys.stanza(setup.window_secs));
    write_private(&path("access.conf"), &access)?;
    fs::create_dir(path("run"))?;
    let place = format!("PCAP_INTF eth0;\nFWKNOP_RUN_DIR {};\n", path("run").display());
    write_private(&path("fwknopd.conf"), &(place + settings(mode, tuning)))?;
    let mut command = host.command("fwknopd");
    command.arg("--foreground").arg("-c").arg(path("fwknopd.conf")).arg("-a").arg(path("access.conf"));
    let mut daemon = Process::spawn(command)?;
    wait_for("fwknopd", LONG, || {
        let lines = daemon.lines();
        if daemon.has_ended()? {
            bail!("fwknopd has ended: {}", lines.join("; "));
        }
        Ok(lines
            .iter()
            .any(|line| line.contains("Starting fwknopd main event loop") || line.contains("UDP server"))
            .then_some(()))
    })?;
    Ok(Fwknopd { keys, _daemon: daemon, files, host })
}

impl Keys {
    /// As long as `fwknopd --key-gen` makes them.
    fn new() -> Self {
        Self { rijndael: STANDARD.encode(random::<32>()), hmac: STANDARD.encode(random::<64>()) }
    }

    fn stanza(&self, window_secs: u32) -> String {
        let Self { rijndael, hmac } = self;
        format!(
            "SOURCE ANY\nOPEN_PORTS tcp/22\nKEY_BASE64 {rijndael}\nHMAC_KEY_BASE64 {hmac}\nFW_ACCESS_TIMEOUT {window_secs}\n\n"
        )
    }
}

impl Running for Fwknopd {
    fn host(&self) -> &Host {
        &self.host
    }

    fn knocks(&mut self, from: &[Ipv4Addr]) -> Result<Vec<Knock>> {
        from.iter()
            .map(|&from| {
                let payload = self.keys.packet(&self.files.path().join("packet"))?;
                Ok(Knock { from, packets: vec![datagram(SocketAddrV4::new(from, 40_000), PORT, &payload)] })
            })
            .collect()
    }

    fn junk(&self) -> Junk {
        Junk::Base64 { port: PORT, len: LEN }
    }
}

impl Keys {
    /// A packet of its client, for whoever sends it.
    fn packet(&self, to: &Path) -> Result<Vec<u8>> {
        let mut command = Command::new("fwknop");
        command.args(["-A", "tcp/22", "-s", "-D", &GATE.to_string(), "--use-hmac", "--test"]);
        command.args(["--no-rc-file", "--no-save-args", "--save-packet"]).arg(to);
        command.arg(format!("--key-base64-rijndael={}", self.rijndael));
        command.arg(format!("--key-base64-hmac={}", self.hmac));
        let output = command.output().context("fwknop")?;
        if !output.status.success() {
            bail!("fwknop fails: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut packet = fs::read(to)?;
        packet.truncate(packet.trim_ascii_end().len());
        Ok(packet)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}
