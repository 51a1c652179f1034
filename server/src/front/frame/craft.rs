//! Frames made to order for the tests: what a capture may bring, well-formed or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pcap::{BpfProgram, Linktype};

use super::{Link, Unfit};

/// A destination port that counts as the gate's.
pub(in crate::front) const PORT: u16 = 62201;
pub(in crate::front) const SOURCE_PORT: u16 = 40_000;
/// The sequence number of each segment.
pub(in crate::front) const SEQUENCE: u32 = 0x0102_0304;
/// The flag of a segment that begins a connection.
pub(in crate::front) const SYN: u8 = 0x02;
/// The size of a knock.
pub(in crate::front) const KNOCK: usize = 256;

pub(in crate::front) const LINKS: [Link; 5] =
    [Link::Ethernet, Link::Cooked, Link::Cooked2, Link::Raw, Link::Loopback];

const SOURCE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DESTINATION4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const DESTINATION6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

// Protocol numbers, those of extension headers among them.
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const NOTHING: u8 = 59;
const DESTINATION: u8 = 60;

// IPv4's flags.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

// What announces a VLAN tag: 802.1Q, 802.1ad, and QinQ's old number.
const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;
const OLD_SERVICE: u16 = 0x9100;

/// What libpcap makes of a filter for such a link.
pub(in crate::front) fn compile(link: Link, expression: &str) -> BpfProgram {
    let linktype = match link {
        Link::Ethernet => Linktype::ETHERNET,
        Link::Cooked => Linktype::LINUX_SLL,
        Link::Cooked2 => Linktype::LINUX_SLL2,
        Link::Raw => Linktype(12),
        Link::Loopback => Linktype::NULL,
    };
    pcap::Capture::dead(linktype).unwrap().compile(expression, true).expect(expression)
}

/// The plan of one frame: by default a knock to one of our ports, over IPv4, without anything that can be left out.
#[derive(Clone, Debug)]
pub(in crate::front) struct Craft {
    pub(in crate::front) v6: bool,
    /// Ethertypes of the VLAN tags, the outermost first.
    pub(in crate::front) tags: &'static [u16],
    /// Bytes of IPv4 options.
    pub(in crate::front) options: usize,
    /// Extension headers: kind and size in bytes.
    pub(in crate::front) extensions: Vec<(u8, usize)>,
    /// IPv4's flags and offset; for IPv6, those of each fragment header among the extensions.
    pub(in crate::front) fragment: u16,
    pub(in crate::front) protocol: u8,
    /// A TCP segment with these flags, in place of the datagram.
    pub(in crate::front) flags: Option<u8>,
    pub(in crate::front) source_port: u16,
    pub(in crate::front) port: u16,
    pub(in crate::front) payload: usize,
    /// Bytes behind the IP packet.
    pub(in crate::front) padding: usize,
    /// Added to the true lengths.
    pub(in crate::front) udp_length_off: i16,
    pub(in crate::front) ip_length_off: i16,
    /// Linux's packet type, where the link has one.
    pub(in crate::front) packet_type: u8,
    /// Another ethertype than that of the IP version, where the link has one.
    pub(in crate::front) ethertype: Option<u16>,
}

impl Default for Craft {
    fn default() -> Self {
        Self {
            v6: false,
            tags: &[],
            options: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol: UDP,
            flags: None,
            source_port: SOURCE_PORT,
            port: PORT,
            payload: KNOCK,
            padding: 0,
            udp_length_off: 0,
            ip_length_off: 0,
            packet_type: 0,
            ethertype: None,
        }
    }
}

impl Craft {
    /// Source and destination address.
    pub(in crate::front) fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.v6 { (SOURCE6.into(), DESTINATION6.into()) } else { (SOURCE4.into(), DESTINATION4.into()) }
    }

    /// The whole frame.
    pub(in crate::front) fn frame(&self, link: Link) -> Vec<u8> {
        let ethertype = self.ethertype.unwrap_or(if self.v6 { 0x86dd } else { 0x0800 });
        let outer = *self.tags.first().unwrap_or(&ethertype);
        let mut frame = match link {
            Link::Ethernet => [&[0x02; 12][..], &outer.to_be_bytes()].concat(),
            Link::Cooked => {
                [&[0, self.packet_type, 0, 1, 0, 6], &[0x02; 8][..], &outer.to_be_bytes()].concat()
            }
            Link::Cooked2 => {
                [&outer.to_be_bytes()[..], &[0, 0, 0, 0, 0, 2, 0, 1, self.packet_type, 6], &[0x02; 8]]
                    .concat()
            }
            Link::Raw => Vec::new(),
            Link::Loopback => vec![if self.v6 { 10 } else { 2 }, 0, 0, 0],
        };
        for inner in self.tags.iter().skip(1).chain((!self.tags.is_empty()).then_some(&ethertype)) {
            frame.extend([0, 7]);
            frame.extend(inner.to_be_bytes());
        }
        frame.extend(self.packet());
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// The IP packet.
    fn packet(&self) -> Vec<u8> {
        let mut inner = self.extension_headers();
        inner.extend(self.flags.map_or_else(|| self.datagram(), |flags| self.segment(flags)));
        let length = |true_length: usize| {
            u16::try_from(true_length).unwrap().wrapping_add_signed(self.ip_length_off).to_be_bytes()
        };
        if self.v6 {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length(inner.len()));
            packet.extend([self.first_header(), 64]);
            packet.extend(SOURCE6.octets());
            packet.extend(DESTINATION6.octets());
            [packet, inner].concat()
        } else {
            let header = 20 + self.options;
            let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
            packet.extend(length(header + inner.len()));
            packet.extend([0, 0]);
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([64, self.first_header(), 0, 0]);
            packet.extend(SOURCE4.octets());
            packet.extend(DESTINATION4.octets());
            packet.resize(header, 1);
            [packet, inner].concat()
        }
    }

    fn first_header(&self) -> u8 {
        self.extensions.first().map_or(self.protocol, |&(kind, _)| kind)
    }

    fn extension_headers(&self) -> Vec<u8> {
        let next = self.extensions.iter().skip(1).map(|&(kind, _)| kind).chain([self.protocol]);
        let mut headers = Vec::new();
        for (&(kind, size), next) in self.extensions.iter().zip(next) {
            let units = match kind {
                FRAGMENT => 0,
                AUTHENTICATION => size / 4 - 2,
                _ => size / 8 - 1,
            };
            let mut header = vec![next, u8::try_from(units).unwrap()];
            if kind == FRAGMENT {
                header.extend(self.fragment.to_be_bytes());
            }
            header.resize(size, 0);
            headers.extend(header);
        }
        headers
    }

    /// Without options, and as long as its payload makes it.
    fn segment(&self, flags: u8) -> Vec<u8> {
        let mut segment = [self.source_port.to_be_bytes(), self.port.to_be_bytes()].concat();
        segment.extend(SEQUENCE.to_be_bytes());
        segment.extend([0, 0, 0, 0, 5 << 4, flags]);
        segment.resize(20 + self.payload, 0);
        segment
    }

    fn datagram(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload).unwrap().wrapping_add_signed(self.udp_length_off);
        let mut datagram = Vec::new();
        datagram.extend(self.source_port.to_be_bytes());
        datagram.extend(self.port.to_be_bytes());
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend((0..self.payload).map(|at| u8::try_from(at % 251).unwrap()));
        datagram
    }
}

/// One row of the table that the parser and the filter are both held against.
pub(in crate::front) struct Row {
    pub(in crate::front) name: &'static str,
    pub(in crate::front) craft: Craft,
    /// What the parser says.
    pub(in crate::front) parsed: Result<(), Unfit>,
    /// Whether the filter admits it.
    pub(in crate::front) admitted: bool,
}

impl Row {
    /// Tags and ethertypes make sense only on a link that has them.
    pub(in crate::front) fn fits(&self, link: Link) -> bool {
        let tagged = !self.craft.tags.is_empty() || self.craft.ethertype.is_some();
        !(tagged && matches!(link, Link::Raw | Link::Loopback))
    }
}

/// Frames of every kind, with the verdicts on them.
pub(in crate::front) fn table() -> Vec<Row> {
    fn v4() -> Craft {
        Craft::default()
    }
    fn v6() -> Craft {
        Craft { v6: true, ..v4() }
    }
    let mut rows = Vec::new();
    let mut row = |name, craft, parsed, admitted| rows.push(Row { name, craft, parsed, admitted });

    let mut knock = |name, craft| row(name, craft, Ok(()), true);
    knock("v4", v4());
    knock("v6", v6());
    knock("v4, do not fragment", Craft { fragment: DONT_FRAGMENT, ..v4() });
    knock("v4, one word of options", Craft { options: 4, ..v4() });
    knock("v4, all options", Craft { options: 40, ..v4() });
    knock("v6, hop-by-hop", Craft { extensions: vec![(HOP_BY_HOP, 8)], ..v6() });
    knock("v6, routing", Craft { extensions: vec![(ROUTING, 24)], ..v6() });
    knock("v6, destination", Craft { extensions: vec![(DESTINATION, 2048)], ..v6() });
    knock("v6, two extensions", Craft { extensions: vec![(HOP_BY_HOP, 16), (DESTINATION, 8)], ..v6() });
    knock("v6, two of a kind", Craft { extensions: vec![(DESTINATION, 8), (DESTINATION, 40)], ..v6() });
    for craft in [v4(), v6(), Craft { options: 8, ..v4() }, Craft { extensions: vec![(ROUTING, 8)], ..v6() }]
    {
        knock("one byte of padding", Craft { padding: 1, ..craft.clone() });
        knock("a checksum behind it", Craft { padding: 4, ..craft.clone() });
        knock("802.1Q", Craft { tags: &[CUSTOMER], ..craft.clone() });
        knock("802.1ad", Craft { tags: &[SERVICE], ..craft.clone() });
        knock("old QinQ", Craft { tags: &[OLD_SERVICE, CUSTOMER], ..craft.clone() });
        knock("QinQ", Craft { tags: &[SERVICE, CUSTOMER], ..craft });
    }

    // Datagrams, but no knocks to us.
    for craft in [v4(), v6(), Craft { extensions: vec![(HOP_BY_HOP, 8), (ROUTING, 8)], ..v6() }] {
        for port in [0, PORT - 1, PORT + 1, SOURCE_PORT] {
            row("another port", Craft { port, ..craft.clone() }, Ok(()), false);
        }
        for payload in [0, 1, KNOCK - 1, KNOCK + 1, KNOCK + 256, 1400] {
            row("another length", Craft { payload, ..craft.clone() }, Ok(()), false);
        }
    }
    for craft in [v4(), v6(), Craft { options: 40, ..v4() }, Craft { extensions: vec![(ROUTING, 8)], ..v6() }]
    {
        for payload in [0, 1, KNOCK] {
            let segment = Craft { protocol: TCP, flags: Some(SYN), payload, ..craft.clone() };
            row("TCP", segment.clone(), Ok(()), false);
            row("TCP behind a tag", Craft { tags: &[CUSTOMER], padding: 2, ..segment }, Ok(()), false);
        }
    }
    let three = vec![(HOP_BY_HOP, 8), (DESTINATION, 8), (ROUTING, 8)];
    row("more extensions than the filter follows", Craft { extensions: three, ..v6() }, Ok(()), false);

    let mut refused = |name, craft, reason| row(name, craft, Err(reason), false);
    let fragment = Unfit::Fragment;
    refused("v4, first fragment", Craft { fragment: MORE_FRAGMENTS, ..v4() }, fragment);
    refused("v4, later fragment", Craft { fragment: MORE_FRAGMENTS | 32, ..v4() }, fragment);
    refused("v4, last fragment", Craft { fragment: 32, ..v4() }, fragment);
    for (name, bits) in [("v6, whole", 0), ("v6, first fragment", 1), ("v6, last fragment", 256)] {
        let v6 = Craft { fragment: bits, ..v6() };
        refused(name, Craft { extensions: vec![(FRAGMENT, 8)], ..v6.clone() }, fragment);
        refused(name, Craft { extensions: vec![(HOP_BY_HOP, 8), (FRAGMENT, 8)], ..v6.clone() }, fragment);
        refused(name, Craft { extensions: vec![(FRAGMENT, 8), (DESTINATION, 8)], ..v6 }, fragment);
    }
    for craft in [v4(), v6()] {
        let authenticated = Craft { extensions: vec![(AUTHENTICATION, 24)], ..craft.clone() };
        refused("authentication header", authenticated, Unfit::Extension);
        refused("TCP that is none", Craft { protocol: TCP, ..craft.clone() }, Unfit::Length);
        refused("ESP", Craft { protocol: ESP, ..craft.clone() }, Unfit::OtherTransport);
        refused("no next header", Craft { protocol: NOTHING, ..craft.clone() }, Unfit::OtherTransport);
        let three = &[SERVICE, CUSTOMER, CUSTOMER];
        refused("three tags", Craft { tags: three, ..craft.clone() }, Unfit::NotIp);
        refused("ARP", Craft { ethertype: Some(0x0806), ..craft.clone() }, Unfit::NotIp);
        let other = if craft.v6 { 0x0800 } else { 0x86dd };
        refused("another version", Craft { ethertype: Some(other), ..craft.clone() }, Unfit::NotIp);
        let tagged = Craft { tags: &[CUSTOMER], ethertype: Some(other), ..craft };
        refused("another version behind a tag", tagged, Unfit::NotIp);
    }
    let late = vec![(DESTINATION, 8), (HOP_BY_HOP, 8)];
    refused("v6, late hop-by-hop", Craft { extensions: late, ..v6() }, Unfit::Extension);
    refused("v6, jumbogram", Craft { ip_length_off: -264, ..v6() }, Unfit::Extension);
    refused("v4, no length", Craft { ip_length_off: -284, ..v4() }, Unfit::Length);
    for craft in [v4(), v6(), Craft { options: 12, ..v4() }, Craft { extensions: vec![(ROUTING, 8)], ..v6() }]
    {
        for off in [-264, -257, -256, -1, 1, 1000] {
            refused("UDP length", Craft { udp_length_off: off, ..craft.clone() }, Unfit::Length);
        }
        for off in [-257, -1, 1, 1000] {
            refused("IP length", Craft { ip_length_off: off, ..craft.clone() }, Unfit::Length);
        }
        let rest = Craft { payload: KNOCK + 1, udp_length_off: -1, ..craft.clone() };
        refused("a rest behind UDP", rest, Unfit::Length);
        let hidden = Craft { payload: KNOCK - 1, udp_length_off: 1, padding: 1, ..craft };
        refused("padding counted as payload", hidden, Unfit::Length);
    }
    rows
}
