//! A host with many addresses: each knock is from one of its own, so that it can be told which one opened.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::thread;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings};
use postern_tests::knocks::{Client, Knock};
use postern_tests::netns::{Family, Host, ip_of};
use postern_tests::probe::{PATIENCE, Seen, probe_bound, progress, syn, udp};
use postern_tests::wait::{LONG, wait_for};

use crate::world::World;

/// A gate that runs, and has let somebody of a crowd in.
pub(crate) fn gate_and_crowd(settings: Settings) -> Result<(World, Crowd)> {
    let mut world = World::running(settings)?;
    let mut crowd = Crowd::join(&mut world, 60)?;
    crowd.is_let_in(&world.gate, &world.alice)?;
    Ok((world, crowd))
}

pub(crate) struct Crowd {
    host: Host,
    unused: Range<u16>,
}

impl Crowd {
    /// Joins the network of a world with so many addresses.
    pub(crate) fn join(world: &mut World, addresses: u16) -> Result<Self> {
        const FIRST: u16 = 1000;
        let mut unused = FIRST..FIRST + addresses;
        let host = world.network.host(unused.clone())?;
        unused.next().context("the host's own address")?;
        Ok(Self { host, unused })
    }

    /// An address from which nobody has knocked.
    pub(crate) fn address(&mut self, family: Family) -> Result<IpAddr> {
        Ok(ip_of(self.unused.next().context("one more address")?, family))
    }

    /// Sends a knock from an address.
    pub(crate) fn send(&self, from: IpAddr, gate: &Gate, port: u16, knock: &Knock) -> Result<()> {
        udp(&self.host, from)?.send_to(knock, gate.at(family(from), port))?;
        Ok(())
    }

    /// Sends each knock from its address.
    pub(crate) fn send_all(&self, knocks: &[(IpAddr, Knock)], gate: &Gate, port: u16) -> Result<()> {
        let sent = self.host.enter(|| {
            knocks.iter().try_for_each(|(from, knock)| {
                let to = gate.at(family(*from), port);
                UdpSocket::bind((*from, 0))?.send_to(knock, to).map(drop)
            })
        });
        Ok(sent??)
    }

    /// Those of the addresses to whom a door is open.
    pub(crate) fn to_whom_is_open(&self, addresses: &[IpAddr], door: SocketAddr) -> Result<Vec<IpAddr>> {
        let mut open = Vec::new();
        // Not more at once than a process may hold open.
        for some in addresses.chunks(200) {
            let dialled = || some.iter().map(|&from| syn(Some(from), door)).collect::<io::Result<Vec<_>>>();
            let sockets = self.host.enter(dialled)??;
            thread::sleep(PATIENCE);
            for (from, socket) in some.iter().zip(&sockets) {
                if progress(socket)? == Seen::Open {
                    open.push(*from);
                }
            }
        }
        Ok(open)
    }

    /// What a door shows to an address.
    pub(crate) fn sees(&self, from: IpAddr, door: SocketAddr) -> Result<Seen> {
        probe_bound(&self.host, Some(from), door)
    }

    /// Waits until a door shows something to an address.
    pub(crate) fn is_to_see(&self, from: IpAddr, door: SocketAddr, wanted: Seen) -> Result<()> {
        let seen = || Ok((self.sees(from, door)? == wanted).then_some(()));
        wait_for(&format!("{door} to show {wanted:?} to {from}"), LONG, seen)
    }

    /// A client is let in for fresh knocks, from an address that was not before; gives it. A knock that comes while
    /// nobody listens is lost: the client knocks again, as one does.
    pub(crate) fn is_let_in(&mut self, gate: &Gate, client: &Client) -> Result<IpAddr> {
        self.is_let_in_by(gate, client, KNOCK_PORTS[0])
    }

    /// [`Crowd::is_let_in`], by knocks at another port.
    pub(crate) fn is_let_in_by(&mut self, gate: &Gate, client: &Client, port: u16) -> Result<IpAddr> {
        let from = self.address(Family::V4)?;
        let door = gate.at(Family::V4, SSH);
        let seen = self.sees(from, door)?;
        ensure!(seen == Seen::Nothing, "before the knock, {door} shows {seen:?} to {from}");
        wait_for("a fresh knock to open", LONG, || {
            self.send(from, gate, port, &client.seal(&client.asks_for("ssh")?))?;
            // The first look is as a rule too early for the rule.
            let opened = self.sees(from, door)? == Seen::Open || self.sees(from, door)? == Seen::Open;
            Ok(opened.then_some(()))
        })?;
        Ok(from)
    }
}

/// A lease that is not to be touched: its one rule, and the door that it holds open.
pub(crate) struct Lease {
    address: IpAddr,
    rule: String,
}

impl Lease {
    /// By one knock, which a gate that is known to be alive does not lose: a second one would renew it.
    pub(crate) fn take(world: &World, crowd: &mut Crowd) -> Result<Self> {
        let address = crowd.address(Family::V4)?;
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        crowd.send(address, &world.gate, KNOCK_PORTS[0], &knock)?;
        Self::of(world, crowd, address)
    }

    /// The lease of an address that has knocked.
    pub(crate) fn of(world: &World, crowd: &Crowd, address: IpAddr) -> Result<Self> {
        let only = || {
            let rules = rules_for(world, address)?;
            Ok(<[_; 1]>::try_from(rules).ok())
        };
        let [rule] = wait_for(&format!("one rule for {address}"), LONG, only)?;
        let lease = Self { address, rule };
        lease.is_untouched(world, crowd)?;
        Ok(lease)
    }

    pub(crate) fn is_untouched(&self, world: &World, crowd: &Crowd) -> Result<()> {
        let rules = rules_for(world, self.address)?;
        ensure!(rules == [self.rule.as_str()], "was {:?}, is {rules:#?}", self.rule);
        let seen = crowd.sees(self.address, world.gate.at(Family::V4, SSH))?;
        ensure!(seen == Seen::Open, "{} sees {seen:?}", self.address);
        Ok(())
    }
}

/// What the kernel holds for an address.
pub(crate) fn rules_for(world: &World, address: IpAddr) -> Result<Vec<String>> {
    let mut rules = world.gate.entries(Family::V4)?;
    let address = address.to_string();
    rules.retain(|rule| rule.split(' ').any(|word| word.trim_end_matches("/32") == address));
    Ok(rules)
}

fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}
