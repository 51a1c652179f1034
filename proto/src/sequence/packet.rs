//! A packet as a sequence sees it: where from, where to, and what tells it from a copy of itself.

use std::net::IpAddr;
use std::time::Duration;

use super::flags::{ACK, SYN};
use crate::port::{Port, Protocol};
use crate::time::WallTime;

/// When a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since some instant that stays the same, by a clock that is not set: the time of attempts.
    pub elapsed: Duration,
    /// By the wall clock: the epoch of rolling sequences.
    pub wall: WallTime,
}

/// An incoming TCP packet or UDP datagram.
///
/// IPv4 mapped into IPv6 (`::ffff:192.0.2.1`) is the IPv4 address that it stands for, here as at the firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whose it is, or says to be.
    pub source: IpAddr,
    /// The address of the gate that it was sent to.
    pub destination: IpAddr,
    /// The port that it was sent to.
    pub port: Port,
    /// The port that it came from.
    pub source_port: u16,
    /// What TCP adds; `None` for UDP. A packet to a TCP port without it is ignored.
    pub tcp: Option<Tcp>,
}

/// What matters here of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The byte of flags, see [`flags`](super::flags).
    pub flags: u8,
    /// The sequence number.
    pub sequence: u32,
}

impl Packet {
    /// Whether it asks for a new connection, or is a datagram: what counts as a stray outside a sequence. Packets of
    /// connections that stand, and answers to the host's own, do not.
    pub(super) const fn is_new(&self) -> bool {
        match (self.port.protocol, self.tcp) {
            (Protocol::Tcp, Some(tcp)) => tcp.flags & (SYN | ACK) == SYN,
            (Protocol::Tcp, None) => false,
            (Protocol::Udp, _) => true,
        }
    }

    pub(super) const fn canonical(&self) -> Self {
        Self { source: self.source.to_canonical(), destination: self.destination.to_canonical(), ..*self }
    }
}

/// An address in 16 bytes, IPv4 as it is mapped into IPv6.
pub(super) const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
