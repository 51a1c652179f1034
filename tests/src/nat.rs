//! Hosts behind a router that translates their addresses into its own, as a home or an office has it.

use std::net::IpAddr;

use anyhow::Result;

use crate::netns::{Family, Host, Network};
use crate::process::{Process, succeed};
use crate::wait::{LONG, wait_for};

/// What the router makes of source ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Keeps them where they are free: Linux's `masquerade`.
    Kept,
    /// Gives each connection another one.
    Changed,
}

/// A router on the network, and two hosts that have no other way out.
pub struct Nat {
    /// The router.
    pub router: Host,
    /// The hosts behind it.
    pub inside: [Host; 2],
    _residents: Vec<Process>,
}

/// On the router: a bridge, with a link to the process `$0` and `$1` of each host inside.
const ROUTER: &str = "
ip link add inside type bridge
ip link set inside up
ip addr add 192.168.7.1/24 dev inside
ip addr add fd77::1/64 dev inside nodad
for pid in $0 $1; do
    ip link add in$pid type veth peer name eth1 netns $pid
    ip link set in$pid master inside up
done
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
nft -f - <<RULES
table inet nat {
    chain out {
        type nat hook postrouting priority 100
        oifname eth0 meta l4proto { tcp, udp } masquerade $2
    }
}
RULES
";
/// On a host inside, of the number `$0`.
const INSIDE: &str = "
ip addr flush dev eth0
ip link set eth1 up
ip addr add 192.168.7.$0/24 dev eth1
ip addr add fd77::$0/64 dev eth1 nodad
ip route add default via 192.168.7.1
ip -6 route add default via fd77::1
";

impl Nat {
    /// Puts one into a network; `number` is the router's there, the two that follow must be free.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn new(network: &mut Network, number: u16, ports: Ports) -> Result<Self> {
        let router = network.host([number])?;
        let inside = [network.host([number + 1])?, network.host([number + 2])?];
        // A link is moved into a namespace by a process that lives there.
        let residents = inside.iter().map(|host| Process::spawn(host.command("cat")));
        let residents = residents.collect::<Result<Vec<_>>>()?;
        let mut pids = Vec::new();
        for (host, resident) in inside.iter().zip(&residents) {
            wait_for("a host inside", LONG, || Ok(host.pids()?.contains(&resident.pid()).then_some(())))?;
            pids.push(resident.pid().as_raw_nonzero().to_string());
        }
        let to = if ports == Ports::Changed { "to :20000-29999 random" } else { "" };
        shell(&router, ROUTER, &[&pids[0], &pids[1], to])?;
        for (host, number) in inside.iter().zip(["11", "12"]) {
            shell(host, INSIDE, &[number])?;
        }
        Ok(Self { router, inside, _residents: residents })
    }

    /// The address that the hosts behind it have outside.
    #[must_use]
    pub fn outside(&self, family: Family) -> IpAddr {
        self.router.ip(family)
    }

    /// Has the router drop all UDP, without a word.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub fn drops_udp(&self) -> Result<()> {
        let rules = "table inet drops { chain forward { type filter hook forward priority 0; meta l4proto udp counter drop; }; }";
        shell(&self.router, "echo \"$0\" | nft -f -", &[rules])
    }

    /// Waits until it has dropped a datagram since it was told to.
    ///
    /// # Errors
    /// When none comes.
    pub fn has_dropped_one(&self) -> Result<()> {
        wait_for("a datagram that is dropped", LONG, || {
            let mut list = self.router.command("nft");
            list.args(["list", "table", "inet", "drops"]);
            let table = succeed(list, b"", LONG)?.text();
            Ok((!table.contains("counter packets 0 ")).then_some(()))
        })
    }

    /// Has it drop nothing any more.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub fn lets_udp_through(&self) -> Result<()> {
        shell(&self.router, "nft delete table inet drops", &[])
    }
}

fn shell(host: &Host, script: &str, arguments: &[&str]) -> Result<()> {
    let mut command = host.command("sh");
    command.args(["-ec", script]).args(arguments);
    succeed(command, b"", LONG).map(drop)
}
