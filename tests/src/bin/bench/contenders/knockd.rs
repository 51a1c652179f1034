//! knockd, from Debian's package, with the door that its package proposes.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use postern_tests::knockd::Knockd as Daemon;
use postern_tests::netns::Host;

use super::{Running, default_drop};
use crate::flood::Junk;
use crate::wire::{Knock, syn};

const STEPS: [u16; 3] = [7000, 8000, 9000];
const DOOR: &str = "\
[openSSH]
sequence = 7000,8000,9000
seq_timeout = 5
command = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
tcpflags = syn
";

pub(super) struct Knockd {
    _daemon: Daemon,
    host: Host,
}

pub(super) fn start(host: Host) -> Result<Knockd> {
    default_drop(&host, &[])?;
    Ok(Knockd { _daemon: Daemon::start(&host, DOOR)?, host })
}

/// The steps of a sequence, one behind the other.
pub(super) fn steps(from: Ipv4Addr, steps: &[u16]) -> Knock {
    let source = SocketAddrV4::new(from, 40_000);
    Knock { from, packets: steps.iter().map(|&step| syn(source, step, fastrand::u32(..))).collect() }
}

impl Running for Knockd {
    fn host(&self) -> &Host {
        &self.host
    }

    fn knocks(&mut self, from: &[Ipv4Addr]) -> Result<Vec<Knock>> {
        Ok(from.iter().map(|&from| steps(from, &STEPS)).collect())
    }

    /// No datagram reaches it.
    fn junk(&self) -> Junk {
        Junk::Syns { port: STEPS[0], sources: 5_000 }
    }

    fn first_step(&self) -> Option<u16> {
        Some(STEPS[0])
    }
}
