//! A gate with doors of its own that open to sequences, and a host with many addresses that knocks at it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::netns::{Family, Host, Network, ip_of};
use postern_tests::packets::{Segment, Sender, stay_on_one_cpu};
use postern_tests::probe::{Echo, open_to};
use postern_tests::wait::{LONG, wait_for};

/// A port that has nothing to do with any sequence.
pub(super) const UNRELATED: u16 = 80;
/// The numbers of the addresses that a test may have.
const NUMBERS: Range<u16> = 1000..1500;
/// How fast packets are sent of which there are many. Nobody promises to see what comes faster than it can be read.
const PER_SECOND: u32 = 30_000;
/// Packets between two looks at the time.
const BATCH: u32 = 100;

/// A sequence of the gate's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Door {
    pub(super) name: &'static str,
    pub(super) steps: [u16; 3],
    /// What stands in its section beside that.
    more: &'static str,
}

/// With nothing that need not be said.
pub(super) const PLAIN: Door = Door { name: "plain", steps: [8881, 7777, 9991], more: "" };
pub(super) const STRICT: Door = Door { name: "strict", steps: [6881, 5777, 6991], more: "strays = 0\n" };
pub(super) const ASCENDING: Door = Door { name: "ascending", steps: [1111, 2222, 3333], more: "" };

/// See the module.
pub(super) struct Scene {
    family: Family,
    pub(super) gate: Gate,
    home: Host,
    sender: Sender,
    unused: Range<u16>,
    _echo: Echo,
    _network: Network,
}

impl Scene {
    /// The gate runs. All doors open the same service.
    pub(super) fn new(family: Family) -> Result<Self> {
        let mut network = Network::new()?;
        let host = network.host([1])?;
        let home = network.host([2].into_iter().chain(NUMBERS))?;
        let mut gate = Gate::new(host, Settings { window_secs: 600, log: "info", ..Settings::default() })?;
        let sections = [PLAIN, STRICT, ASCENDING].map(|Door { name, steps, more }| {
            let steps = steps.map(|step| step.to_string());
            format!("[sequences.{name}]\nsteps = {steps:?}\nservices = [\"ssh\"]\nmax-leases = 4096\n{more}")
        });
        gate.edit(&gate.config(), "[firewall]\n", &format!("{}[firewall]\n", sections.concat()))?;
        let echo = Echo::start(gate.host(), SSH)?;
        let sender = Sender::on(&home)?;
        gate.start(&[])?;
        stay_on_one_cpu()?;
        Ok(Self { family, gate, home, sender, unused: NUMBERS, _echo: echo, _network: network })
    }

    /// Somebody who is not the client.
    pub(super) fn stranger(&self) -> IpAddr {
        ip_of(30_000, self.family)
    }

    /// An address that nobody has, and to which there is no way back.
    pub(super) fn spoofed(&self, number: u32) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from_bits(0x0a40_0000 + number).into(),
            Family::V6 => Ipv6Addr::from_bits((0xfd01 << 112) + u128::from(number)).into(),
        }
    }

    /// So many addresses that have sent nothing yet.
    pub(super) fn addresses(&mut self, count: usize) -> Result<Vec<IpAddr>> {
        (0..count).map(|_| Ok(ip_of(self.unused.next().context("one more address")?, self.family))).collect()
    }

    /// Sends a SYN in the name of an address; once more the same one, if it was sent before.
    pub(super) fn syn(&self, from: IpAddr, port: u16) -> Result<()> {
        self.sender.tcp(Segment::Syn, SocketAddr::new(from, 40_000), self.gate.at(self.family, port))
    }

    /// Sends many, as fast as may be.
    pub(super) fn syns(&self, syns: impl IntoIterator<Item = (IpAddr, u16)>) -> Result<()> {
        let begun = Instant::now();
        for ((from, port), number) in syns.into_iter().zip(0..) {
            if number % BATCH == 0 {
                let due = Duration::from_secs(1) * number / PER_SECOND;
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            self.syn(from, port)?;
        }
        Ok(())
    }

    /// Sends SYNs that begin connections of their own: the number tells them apart.
    pub(super) fn new_syn(&self, from: IpAddr, port: u16, number: u16) -> Result<()> {
        let from = SocketAddr::new(from, 50_000 + number);
        self.sender.tcp(Segment::Syn, from, self.gate.at(self.family, port))
    }

    /// Takes steps in an order: the first is 0.
    pub(super) fn steps(&self, door: Door, from: IpAddr, order: &[usize]) -> Result<()> {
        order.iter().try_for_each(|&index| self.syn(from, door.steps[index]))
    }

    /// Takes all steps.
    pub(super) fn knock(&self, door: Door, from: IpAddr) -> Result<()> {
        self.steps(door, from, &[0, 1, 2])
    }

    /// To how many of the addresses the service is open now.
    pub(super) fn open_to(&self, addresses: &[IpAddr]) -> Result<usize> {
        open_to(&self.home, addresses, self.gate.at(self.family, SSH))
    }

    /// It opens to all of them.
    pub(super) fn opens_to(&self, addresses: &[IpAddr]) -> Result<()> {
        let mut open = 0;
        wait_for("a door to open", LONG, || {
            open = self.open_to(addresses)?;
            Ok((open == addresses.len()).then_some(()))
        })
        .with_context(|| format!("open to {open} of {}", addresses.len()))
    }

    /// Returns when everything that was sent has had its effect: what comes behind it has.
    pub(super) fn settle(&mut self) -> Result<()> {
        let last = self.addresses(1)?;
        self.knock(PLAIN, last[0])?;
        self.opens_to(&last)
    }
}
