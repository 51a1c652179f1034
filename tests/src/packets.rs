//! Packets that no socket would send: a SYN that is sent again, another's address, a segment of no connection.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::netns::{Family, Host};

/// Flags of TCP that a packet of a test has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The one that begins a connection.
    Syn,
    /// One out of the middle.
    Ack,
}

/// Has what this thread sends from here on leave on one CPU: it arrives in the order in which it was sent. Processes that
/// it starts from here on stay there as well.
///
/// # Errors
/// When the kernel does not let it.
pub fn stay_on_one_cpu() -> Result<()> {
    let mut only = CpuSet::new();
    only.set(sched_getcpu());
    Ok(sched_setaffinity(None, &only)?)
}

/// Sends packets from a host, in the name of whomever.
pub struct Sender {
    v4: OwnedFd,
    v6: OwnedFd,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Sender {
    /// A sender on a host.
    ///
    /// # Errors
    /// When it may not have a raw socket.
    pub fn on(host: &Host) -> Result<Self> {
        let open = |family| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW));
        let sockets =
            host.enter(|| Ok::<_, io::Error>((open(AddressFamily::INET)?, open(AddressFamily::INET6)?)))?;
        let (v4, v6) = sockets.context("a raw socket")?;
        // Else the kernel weighs all addresses of the host for each packet, and then sends from the one that it says.
        bind(&v6, &SocketAddr::new(host.ip(Family::V6), 0))?;
        Ok(Self { v4, v6 })
    }

    /// Sends a segment without content; the same one once more, if it was sent before.
    ///
    /// # Errors
    /// When there is no route.
    pub fn tcp(&self, segment: Segment, from: SocketAddr, to: SocketAddr) -> Result<()> {
        self.segment(if segment == Segment::Syn { 0x02 } else { 0x10 }, from, to)
    }

    /// The same with any flags, as RFC 9293, section 3.1, has them.
    ///
    /// # Errors
    /// When there is no route.
    pub fn segment(&self, flags: u8, from: SocketAddr, to: SocketAddr) -> Result<()> {
        const SEQUENCE: [u8; 4] = [1, 2, 3, 4];
        const ACK: u8 = 0x10;
        let acknowledges = u32::from(flags & ACK != 0);
        let words = 5 << 4;
        let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        bytes.extend(SEQUENCE);
        bytes.extend(acknowledges.to_be_bytes());
        bytes.extend([words, flags, 0xff, 0xff]);
        bytes.extend([0; 4]);
        self.send(TCP, 16, bytes, from, to)
    }

    /// Sends a datagram of one byte.
    ///
    /// # Errors
    /// When there is no route.
    pub fn udp(&self, from: SocketAddr, to: SocketAddr) -> Result<()> {
        let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        bytes.extend([0, 9, 0, 0, b'x']);
        self.send(UDP, 6, bytes, from, to)
    }

    fn send(
        &self,
        protocol: u8,
        checksum_at: usize,
        mut transport: Vec<u8>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<()> {
        let length = u16::try_from(transport.len())?;
        let sum = checksum(&[
            addresses(from.ip(), to.ip()).as_slice(),
            &[0, protocol],
            &length.to_be_bytes(),
            &transport,
        ]);
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let (socket, header) = match Family::of(to.ip()) {
            Family::V4 => (&self.v4, v4_header(protocol, length)),
            Family::V6 => (&self.v6, v6_header(protocol, length)),
        };
        let packet = [header, addresses(from.ip(), to.ip()), transport].concat();
        // The port means nothing here, and IPv6 refuses any.
        sendto(socket, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0))?;
        Ok(())
    }
}

/// Up to the addresses; the kernel fills in length, identification and checksum.
fn v4_header(protocol: u8, length: u16) -> Vec<u8> {
    let [high, low] = (length + 20).to_be_bytes();
    vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0]
}

/// Up to the addresses.
fn v6_header(protocol: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    vec![0x60, 0, 0, 0, high, low, protocol, 64]
}

fn addresses(from: IpAddr, to: IpAddr) -> Vec<u8> {
    [from, to].into_iter().flat_map(octets).collect()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => Ipv6Addr::octets(&v6).to_vec(),
    }
}

/// The Internet checksum of the concatenation (RFC 1071). Each part but the last has an even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
