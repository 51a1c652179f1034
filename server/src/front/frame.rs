//! From a captured frame to the UDP datagram it carries, or to the head of its TCP segment. Pure, and it trusts nothing.
//!
//! Every byte here may be a stranger's, and every length may lie: a datagram is handed on only when the frame, the IP
//! header and the UDP header agree about where it ends, and it is always a part of the frame. Nothing is copied and
//! nothing is allocated, since a flood of junk comes this way at line rate.
//!
//! Refused, besides what is neither UDP nor TCP:
//! - fragments, whole ("atomic") IPv6 ones too: pieces would have to be kept for strangers, and no knock needs them;
//! - an authentication header: the capture sees it before the kernel has checked it;
//! - IPv6 jumbograms, whose length field is zero;
//! - frames that this host sent, or that were for another host, where the capture says so.
//!
//! Checksums are not looked at: network cards leave them to be filled in later, so a capture often sees unfinished
//! ones, and a knock is sealed anyway.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::err::ip::{HeadersError, SliceError};
use etherparse::{
    IpPayloadSlice, IpSlice, Ipv6ExtensionSlice, LenSource, TcpHeaderSlice, UdpSlice, ip_number,
};
use pcap::Linktype;

use crate::address::Way;

#[cfg(test)]
pub(super) mod craft;
#[cfg(test)]
mod tests;

/// The most VLAN tags a frame may wear: 802.1Q inside 802.1ad.
pub(super) const MAX_TAGS: usize = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what stacked tags used before that was a standard.
const ETHERTYPES_TAG: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// Ethernet: two addresses, then the protocol.
const ETHERNET_PROTOCOL_AT: usize = 12;
const ETHERNET_LEN: usize = 14;
/// A tag follows the protocol that announces it: VLAN (2 bytes), then the next protocol.
const TAG_PROTOCOL_AT: usize = 2;
const TAG_LEN: usize = 4;
/// Linux cooked, version 1: packet type (2 bytes), address, protocol. libpcap puts a VLAN tag back in after it.
const COOKED_TYPE_AT: usize = 0;
const COOKED_PROTOCOL_AT: usize = 14;
const COOKED_LEN: usize = 16;
/// Linux cooked, version 2: protocol, interface, packet type (1 byte), address.
const COOKED2_PROTOCOL_AT: usize = 0;
const COOKED2_TYPE_AT: usize = 10;
const COOKED2_LEN: usize = 20;
/// TCP: the flags are one byte of the header.
const TCP_FLAGS_AT: usize = 13;
/// BSD loopback: an address family, in whose byte order and number systems differ; the IP version says the same.
const LOOPBACK_LEN: usize = 4;

/// Linux's packet types for what another host should get, and for what this one sent (`if_packet.h`).
const PACKET_OTHERHOST: u8 = 3;
const PACKET_OUTGOING: u8 = 4;

/// What comes before the IP header in each frame of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Ethernet, with up to two VLAN tags.
    Ethernet,
    /// Linux cooked version 1: what the interface `any` gives.
    Cooked,
    /// Linux cooked version 2.
    Cooked2,
    /// Nothing: IPv4 or IPv6 by its version.
    Raw,
    /// BSD loopback (`NULL` and `LOOP`).
    Loopback,
}

/// A link type that is not understood, by libpcap's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnsupportedLink(Linktype);

impl TryFrom<Linktype> for Link {
    type Error = UnsupportedLink;

    fn try_from(linktype: Linktype) -> Result<Self, UnsupportedLink> {
        /// Linux's own number for raw IP; `Linktype::RAW` is the number in files.
        const DLT_RAW: Linktype = Linktype(12);
        match linktype {
            Linktype::ETHERNET => Ok(Self::Ethernet),
            Linktype::LINUX_SLL => Ok(Self::Cooked),
            Linktype::LINUX_SLL2 => Ok(Self::Cooked2),
            DLT_RAW | Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => Ok(Self::Raw),
            Linktype::NULL | Linktype::LOOP => Ok(Self::Loopback),
            other => Err(UnsupportedLink(other)),
        }
    }
}

impl fmt::Display for UnsupportedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get_name() {
            Ok(name) => write!(f, "link type {name} ({})", self.0.0),
            Err(_) => write!(f, "link type {}", self.0.0),
        }
    }
}

impl std::error::Error for UnsupportedLink {}

/// One packet, as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// The address in the IP header: whoever sent the packet chose it.
    pub(crate) source: IpAddr,
    /// Source port.
    pub(crate) source_port: u16,
    /// The address it was sent to.
    pub(crate) destination: IpAddr,
    /// Destination port.
    pub(crate) port: u16,
    /// What it is.
    pub(crate) content: Content<'a>,
}

impl Frame<'_> {
    pub(crate) const fn way(&self) -> Way {
        Way {
            from: SocketAddr::new(self.source, self.source_port),
            to: SocketAddr::new(self.destination, self.port),
        }
    }
}

/// What a packet is, by its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// UDP, with its payload, of any length.
    Datagram(&'a [u8]),
    /// TCP; what the segment carries is not looked at.
    Segment {
        /// The flags, as they stand in the header.
        flags: u8,
        /// The sequence number.
        sequence: u32,
    },
}

/// Why a frame holds no packet for the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// This host sent it, or it was for another host (Linux cooked frames tell).
    #[error("not addressed to the host that captured it")]
    NotInbound,
    /// Neither IPv4 nor IPv6, more than two VLAN tags, or IP of another version than the link layer says.
    #[error("not IPv4 or IPv6")]
    NotIp,
    /// A part of a packet, or an IPv6 packet that says it is its only part.
    #[error("a fragment")]
    Fragment,
    /// An authentication header, a jumbogram, or extension headers out of order.
    #[error("an IP extension that no knock uses")]
    Extension,
    /// Another protocol than UDP and TCP.
    #[error("neither UDP nor TCP")]
    OtherTransport,
    /// Cut short, or lengths that contradict one another.
    #[error("cut short, or its lengths disagree")]
    Length,
}

/// Finds the UDP datagram in a frame, or the head of the TCP segment.
///
/// # Errors
///
/// [`Unfit`] says why there is none.
pub(crate) fn parse(link: Link, frame: &[u8]) -> Result<Frame<'_>, Unfit> {
    let ip = IpSlice::from_slice(network(link, frame)?).map_err(|error| match error {
        SliceError::Len(_) => Unfit::Length,
        SliceError::IpHeaders(HeadersError::Ip(_)) => Unfit::NotIp,
        SliceError::IpHeaders(_) => Unfit::Extension,
    })?;
    check_headers(&ip)?;

    let (source_port, port, content) = transport(ip.payload())?;
    Ok(Frame { source: ip.source_addr(), source_port, destination: ip.destination_addr(), port, content })
}

/// The ports, and what the IP packet carries.
fn transport<'a>(packet: &IpPayloadSlice<'a>) -> Result<(u16, u16, Content<'a>), Unfit> {
    match packet.ip_number {
        ip_number::UDP => {
            let udp = UdpSlice::from_slice(packet.payload).map_err(|_| Unfit::Length)?;
            // The parser would also take a length of zero, or one that leaves a rest.
            if usize::from(udp.length()) != packet.payload.len() {
                return Err(Unfit::Length);
            }
            Ok((udp.source_port(), udp.destination_port(), Content::Datagram(udp.payload())))
        }
        ip_number::TCP => {
            let tcp = TcpHeaderSlice::from_slice(packet.payload).map_err(|_| Unfit::Length)?;
            let content =
                Content::Segment { flags: tcp.slice()[TCP_FLAGS_AT], sequence: tcp.sequence_number() };
            Ok((tcp.source_port(), tcp.destination_port(), content))
        }
        _ => Err(Unfit::OtherTransport),
    }
}

/// The IP packet that the link layer carries, and after it perhaps padding.
fn network(link: Link, frame: &[u8]) -> Result<&[u8], Unfit> {
    let (protocol_at, packet_at) = match link {
        Link::Ethernet => (ETHERNET_PROTOCOL_AT, ETHERNET_LEN),
        Link::Cooked => {
            // The high byte of the type is zero.
            check_inbound(frame, COOKED_TYPE_AT + 1)?;
            (COOKED_PROTOCOL_AT, COOKED_LEN)
        }
        Link::Cooked2 => {
            check_inbound(frame, COOKED2_TYPE_AT)?;
            (COOKED2_PROTOCOL_AT, COOKED2_LEN)
        }
        Link::Raw => return Ok(frame),
        Link::Loopback => return frame.get(LOOPBACK_LEN..).ok_or(Unfit::Length),
    };
    let mut protocol = u16_at(frame, protocol_at)?;
    let mut packet = frame.get(packet_at..).ok_or(Unfit::Length)?;
    for _ in 0..MAX_TAGS {
        if !ETHERTYPES_TAG.contains(&protocol) {
            break;
        }
        protocol = u16_at(packet, TAG_PROTOCOL_AT)?;
        packet = packet.get(TAG_LEN..).ok_or(Unfit::Length)?;
    }
    match (protocol, packet.first().map(|first| first >> 4)) {
        (ETHERTYPE_IPV4, Some(4)) | (ETHERTYPE_IPV6, Some(6)) => Ok(packet),
        (ETHERTYPE_IPV4 | ETHERTYPE_IPV6, None) => Err(Unfit::Length),
        _ => Err(Unfit::NotIp),
    }
}

/// Refuses what this host sent: it would knock at itself. And what is for another host, which comes in only while some
/// other program has put the interface into promiscuous mode.
fn check_inbound(frame: &[u8], type_at: usize) -> Result<(), Unfit> {
    match frame.get(type_at) {
        Some(&(PACKET_OTHERHOST | PACKET_OUTGOING)) => Err(Unfit::NotInbound),
        Some(_) => Ok(()),
        None => Err(Unfit::Length),
    }
}

/// Refuses fragments, authentication headers and jumbograms.
fn check_headers(ip: &IpSlice<'_>) -> Result<(), Unfit> {
    match ip {
        IpSlice::Ipv4(ip) if ip.is_payload_fragmented() => Err(Unfit::Fragment),
        IpSlice::Ipv4(ip) if ip.extensions().auth.is_some() => Err(Unfit::Extension),
        IpSlice::Ipv4(_) => Ok(()),
        // A length field of zero; the parser then takes all that was captured.
        IpSlice::Ipv6(ip) if ip.payload().len_source != LenSource::Ipv6HeaderPayloadLen => {
            Err(Unfit::Extension)
        }
        IpSlice::Ipv6(ip) => ip.extensions().clone().into_iter().try_for_each(|header| match header {
            Ipv6ExtensionSlice::HopByHop(_)
            | Ipv6ExtensionSlice::Routing(_)
            | Ipv6ExtensionSlice::DestinationOptions(_) => Ok(()),
            Ipv6ExtensionSlice::Fragment(_) => Err(Unfit::Fragment),
            Ipv6ExtensionSlice::Authentication(_) => Err(Unfit::Extension),
        }),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Unfit> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|&field| u16::from_be_bytes(field)).ok_or(Unfit::Length)
}
