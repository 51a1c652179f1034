//! posternd, with each firewall and with each of the two filters in front of it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postern_proto::KNOCK_LEN;
use postern_tests::gate::{Gate, SSH, Settings, USER, Variant};
use postern_tests::knocks::Client;
use postern_tests::netns::Host;

use super::knockd::steps;
use super::{Running, Setup};
use crate::flood::Junk;
use crate::wire::{Knock, datagram};

const PORT: u16 = 62_201;
/// Clients that knock in turns, at the most: each may do so fifty times a second.
const KNOCKERS: usize = 1_000;
/// The most leases of one client: as many as the gate has for all.
const MAX_LEASES: u32 = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Backend {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// `[firewall]`.
    const fn section(self) -> &'static str {
        match self {
            Self::Nftables => "backend = \"nftables\"\n",
            Self::IptablesNft => "backend = \"iptables\"\nvariant = \"nft\"\n",
            Self::IptablesLegacy => "backend = \"iptables\"\nvariant = \"legacy\"\n",
        }
    }
}

/// Which filter is in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The one that it has by itself: hints are looked up by the kernel, where that can.
    Kernel,
    /// Port and length; hints are looked up by the gate.
    Classic,
}

impl Filter {
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Kernel => "",
            Self::Classic => "-classic",
        }
    }

    /// A line of `[gate]`.
    const fn line(self) -> &'static str {
        match self {
            Self::Kernel => "",
            Self::Classic => "kernel-filter = \"off\"\n",
        }
    }
}

/// Of the sequence that opens the same door.
const STEPS: [u16; 3] = [7000, 8000, 9000];

pub(super) struct Posternd {
    gate: Gate,
    started: Duration,
    by_steps: bool,
    knockers: Vec<Client>,
    next: usize,
}

pub(super) fn start(host: Host, backend: Backend, filter: Filter, setup: Setup) -> Result<Posternd> {
    let variant = if backend == Backend::IptablesLegacy { Variant::Legacy } else { Variant::Nft };
    let mut gate = Gate::new(host, Settings { variant, log: "info", ..Settings::default() })?;
    fs::write(gate.config(), configuration(&gate, backend, filter, setup))?;
    let mut knockers = Vec::new();
    let mut keys = String::new();
    for number in 0..setup.clients {
        let mut client = Client::new(gate.id(), &format!("client-{number}"), &["ssh"])?;
        client.entry.max_leases = Some(MAX_LEASES);
        if setup.signed {
            client.take_identity()?;
        }
        keys.push_str(&client.entry.to_toml());
        if knockers.len() < KNOCKERS {
            knockers.push(client);
        }
    }
    fs::write(gate.keys(), keys)?;
    let checked = gate.attempt(&["check"])?;
    if checked.code != 0 {
        let said = checked.stderr + &String::from_utf8_lossy(&checked.stdout);
        bail!("{}", said.lines().find(|line| !line.trim().is_empty()).unwrap_or("`posternd check` fails"));
    }
    let begun = Instant::now();
    gate.start(&[])?;
    let started = begun.elapsed();
    // With very many clients it is still busy with itself when it is ready.
    thread::sleep(Duration::from_millis(100));
    Ok(Posternd { gate, started, by_steps: setup.by_steps, knockers, next: 0 })
}

fn configuration(gate: &Gate, backend: Backend, filter: Filter, setup: Setup) -> String {
    format!(
        "[gate]\n\
         id = \"{}\"\n\
         ports = [{PORT}]\n\
         state = \"{}\"\n\
         {}\
         [services.ssh]\n\
         ports = [\"{SSH}/tcp\"]\n\
         window = \"{}s\"\n\
         {}\
         [firewall]\n\
         {}\
         [process]\n\
         user = \"{USER}\"\n\
         [admin]\n\
         socket = \"admin.sock\"\n",
        *gate.id().to_text(),
        gate.state().display(),
        filter.line(),
        setup.window_secs,
        if setup.by_steps { sequence() } else { String::new() },
        backend.section(),
    )
}

fn sequence() -> String {
    let steps = STEPS.map(|step| step.to_string());
    format!("[sequences.steps]\nsteps = {steps:?}\nservices = [\"ssh\"]\nmax-leases = 4096\n")
}

impl Running for Posternd {
    fn host(&self) -> &Host {
        self.gate.host()
    }

    fn knocks(&mut self, from: &[Ipv4Addr]) -> Result<Vec<Knock>> {
        if self.by_steps {
            return Ok(from.iter().map(|&from| steps(from, &STEPS)).collect());
        }
        let knock = |&from| {
            self.next = (self.next + 1) % self.knockers.len();
            let client = self.knockers.get(self.next).context("a client")?;
            let sealed = client.seal(&client.asks_for("ssh")?);
            Ok(Knock { from, packets: vec![datagram(SocketAddrV4::new(from, 40_000), PORT, &sealed)] })
        };
        from.iter().map(knock).collect()
    }

    fn junk(&self) -> Junk {
        Junk::Random { port: PORT, len: KNOCK_LEN }
    }

    fn first_step(&self) -> Option<u16> {
        self.by_steps.then_some(STEPS[0])
    }

    fn started(&self) -> Option<Duration> {
        Some(self.started)
    }

    fn reload(&self) -> Result<Command> {
        self.gate.posternd(&["reload"])
    }

    fn state(&self) -> Option<&Path> {
        Some(self.gate.directory())
    }
}
