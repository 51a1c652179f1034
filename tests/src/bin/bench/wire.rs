//! Packets as they leave the world: with any source address, whole from the IPv4 header on.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use postern_tests::netns::Host;
use postern_tests::packets::checksum;
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags, SocketType, ipproto,
    sendmmsg, sendto, socket_with,
};

/// The gate's address.
pub(crate) const GATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// From the IPv4 header on.
pub(crate) type Packet = Vec<u8>;

/// All that one knock is: one packet, or the steps of a sequence, [`APART`] from one another.
#[derive(Clone, Debug)]
pub(crate) struct Knock {
    pub(crate) from: Ipv4Addr,
    pub(crate) packets: Vec<Packet>,
}

/// Between two steps: less, and a real network would bring them in another order.
pub(crate) const APART: Duration = Duration::from_millis(5);

const IP_LEN: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A datagram. It has no checksum, as IPv4 allows (RFC 768).
pub(crate) fn datagram(from: SocketAddrV4, port: u16, payload: &[u8]) -> Packet {
    let length = u16::try_from(8 + payload.len()).expect("a knock is short");
    let header = [from.port(), port, length, 0].map(u16::to_be_bytes).concat();
    packet(UDP, *from.ip(), &[&header, payload].concat())
}

/// A SYN.
pub(crate) fn syn(from: SocketAddrV4, port: u16, sequence: u32) -> Packet {
    let mut bytes = [from.port(), port].map(u16::to_be_bytes).concat();
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.ip().octets()[..], &GATE.octets(), &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo, &bytes]);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(TCP, *from.ip(), &bytes)
}

/// The kernel fills in length, identification and checksum.
fn packet(protocol: u8, from: Ipv4Addr, transport: &[u8]) -> Packet {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    bytes.extend(from.octets());
    bytes.extend(GATE.octets());
    debug_assert_eq!(bytes.len(), IP_LEN);
    bytes.extend(transport);
    bytes
}

/// A SYN and ACK that came in, from its IPv4 header on: from the port, to the address and its port.
pub(crate) fn syn_ack(bytes: &[u8]) -> Option<(u16, SocketAddrV4)> {
    const SYN_ACK: u8 = 0x12;
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    let to: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    let tcp = bytes.get(header..header + 14)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    (tcp[13] & 0x3f == SYN_ACK).then(|| (port(0), SocketAddrV4::new(to.into(), port(2))))
}

/// Sends packets to the gate.
pub(crate) struct Wire {
    socket: OwnedFd,
    gate: SocketAddrAny,
}

impl Wire {
    pub(crate) fn of(world: &Host) -> Result<Self> {
        let open =
            || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW));
        Ok(Self { socket: world.enter(open)??, gate: SocketAddr::from((GATE, 0)).into() })
    }

    pub(crate) fn send(&self, packet: &[u8]) -> io::Result<()> {
        sendto(&self.socket, packet, SendFlags::empty(), &self.gate)?;
        Ok(())
    }

    /// Sends many at once; gives how many it were.
    pub(crate) fn send_all<'a>(&self, packets: impl Iterator<Item = &'a Packet>) -> io::Result<usize> {
        let slices: Vec<_> = packets.map(|packet| [IoSlice::new(packet)]).collect();
        let mut controls: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let messages = slices
            .iter()
            .zip(&mut controls)
            .map(|(slice, control)| MMsgHdr::new_with_addr(&self.gate, slice, control));
        Ok(sendmmsg(&self.socket, &mut messages.collect::<Vec<_>>(), SendFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_and_ack_is_told_from_other_segments() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 128, 0, 7), 1024);
        let mut packet = syn(from, 22, 1);
        assert_eq!(syn_ack(&packet), None, "a SYN alone");
        packet[IP_LEN + 13] = 0x12;
        assert_eq!(syn_ack(&packet), Some((1024, SocketAddrV4::new(GATE, 22))));
        packet[IP_LEN + 13] = 0x14;
        assert_eq!(syn_ack(&packet), None, "a reset");
        assert_eq!(syn_ack(&packet[..30]), None, "not all of it");
    }

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_nothing() {
        let packet = syn(SocketAddrV4::new(Ipv4Addr::new(10, 128, 3, 4), 40_000), 22, 7);
        let pseudo = [&packet[12..IP_LEN], &[0, TCP, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[IP_LEN..]]), 0);
    }
}
