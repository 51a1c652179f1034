//! Who is measured, and how each is set up: as its package has it, or with what its manual offers.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use postern_tests::netns::Host;
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use crate::flood::Junk;
use crate::wire::Knock;

mod fwknopd;
mod knockd;
mod posternd;
mod recent;

pub(crate) use posternd::{Backend, Filter};

/// Somebody to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Posternd(Backend, Filter),
    Fwknopd(fwknopd::Mode, fwknopd::Tuning),
    Knockd,
    /// The ruleset that needs no daemon.
    Recent,
}

/// What a measurement asks of a contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// How many have a key.
    pub(crate) clients: usize,
    /// How long a door stays open.
    pub(crate) window_secs: u32,
    /// Whether its clients sign their knocks, where it has that.
    pub(crate) signed: bool,
    /// Knocks are the steps of a sequence, where it has both.
    pub(crate) by_steps: bool,
    /// Whether it has no part in the processor of whoever measures.
    pub(crate) apart: bool,
}

impl Setup {
    /// One client, and doors that stay open for as long as anything takes here.
    pub(crate) const PLAIN: Self =
        Self { clients: 1, window_secs: 600, signed: false, by_steps: false, apart: false };
}

/// A contender that runs. Dropping it ends it.
pub(crate) trait Running {
    /// Where it runs.
    fn host(&self) -> &Host;

    /// Fresh knocks, one from each of those addresses.
    fn knocks(&mut self, from: &[Ipv4Addr]) -> Result<Vec<Knock>>;

    /// What it takes for a knock at first.
    fn junk(&self) -> Junk;

    /// The port of a sequence's first step, where it has one.
    fn first_step(&self) -> Option<u16> {
        None
    }

    /// How long it took from its start until it was ready, where that is known.
    fn started(&self) -> Option<Duration> {
        None
    }

    /// What has it read its files again, and ends when it has.
    fn reload(&self) -> Result<Command> {
        bail!("it is not asked to reload here")
    }

    /// Where it keeps what must be durable before a door opens, if anything must.
    fn state(&self) -> Option<&Path> {
        None
    }
}

impl Contender {
    /// All, in the order of the report; the first is what the others are compared with.
    pub(crate) const ALL: [Self; 12] = {
        use fwknopd::{Mode, Tuning};
        [
            Self::Posternd(Backend::Nftables, Filter::Kernel),
            Self::Posternd(Backend::Nftables, Filter::Classic),
            Self::Posternd(Backend::IptablesNft, Filter::Kernel),
            Self::Posternd(Backend::IptablesNft, Filter::Classic),
            Self::Posternd(Backend::IptablesLegacy, Filter::Kernel),
            Self::Posternd(Backend::IptablesLegacy, Filter::Classic),
            Self::Fwknopd(Mode::Pcap, Tuning::Installed),
            Self::Fwknopd(Mode::Pcap, Tuning::Tuned),
            Self::Fwknopd(Mode::Udp, Tuning::Installed),
            Self::Fwknopd(Mode::Udp, Tuning::Tuned),
            Self::Knockd,
            Self::Recent,
        ]
    };

    pub(crate) fn name(self) -> String {
        match self {
            Self::Posternd(backend, filter) => format!("posternd-{}{}", backend.name(), filter.suffix()),
            Self::Fwknopd(mode, tuning) => format!("fwknopd-{}{}", mode.name(), tuning.suffix()),
            Self::Knockd => "knockd".to_owned(),
            Self::Recent => "xt_recent".to_owned(),
        }
    }

    /// Whether it is what all of this is about.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Posternd(..))
    }

    /// Whether a knock is a datagram.
    pub(crate) const fn has_datagrams(self) -> bool {
        matches!(self, Self::Posternd(..) | Self::Fwknopd(..))
    }

    /// Whether a knock is a sequence, or can be.
    pub(crate) const fn has_steps(self) -> bool {
        matches!(self, Self::Posternd(..) | Self::Knockd | Self::Recent)
    }

    /// Whether it is as it is installed: filters are for junk, and tuning is for what comes in.
    pub(crate) const fn is_as_installed(self) -> bool {
        !matches!(self, Self::Posternd(_, Filter::Classic) | Self::Fwknopd(_, fwknopd::Tuning::Tuned))
    }

    /// Whether it is ours with nftables, or not ours: where the firewall has no part, one of ours is enough.
    pub(crate) const fn has_first_firewall(self) -> bool {
        !matches!(self, Self::Posternd(Backend::IptablesNft | Backend::IptablesLegacy, _))
    }

    /// How long apart its knocks should be: by more than whatever it sleeps in between, at random.
    pub(crate) const fn rest_millis(self) -> u64 {
        if self.is_ours() { 8 } else { 100 }
    }

    pub(crate) fn start(self, gate: Host, setup: Setup) -> Result<Box<dyn Running>> {
        Ok(match self {
            Self::Posternd(backend, filter) => Box::new(posternd::start(gate, backend, filter, setup)?),
            Self::Fwknopd(mode, tuning) => Box::new(fwknopd::start(gate, mode, tuning, setup)?),
            Self::Knockd => Box::new(knockd::start(gate)?),
            Self::Recent => Box::new(recent::start(gate)?),
        })
    }
}

/// The firewall of a host as a careful administrator has it, for those that only add to it.
fn default_drop(gate: &Host, accepts: &[&str]) -> Result<()> {
    let usual = [
        "-P INPUT DROP",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    ];
    usual.iter().chain(accepts).try_for_each(|rule| {
        let mut command: Command = gate.command("iptables");
        command.args(rule.split(' '));
        succeed(command, b"", LONG).map(drop)
    })
}
