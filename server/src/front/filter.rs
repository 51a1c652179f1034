//! The expression that libpcap compiles into the kernel's packet filter: only what may be a knock wakes the gate.
//!
//! Admitted is a UDP datagram, no fragment, to one of the gate's ports, whose UDP header and IP header both say that
//! its payload has the size of a knock:
//! - IPv4 with any options, where neither header is followed by a rest;
//! - IPv6 with up to two extension headers (hop-by-hop, routing, destination options), each as long as it says;
//! - on Ethernet with up to two VLAN tags. On other links libpcap knows no tags, and needs none: on `any` a tagged frame
//!   shows up once more, untagged, at the VLAN interface that takes it in.
//!
//! The frame parser decides in the end. It follows more extension headers than two, which therefore never reach it
//! live; what the filter leaves to it are frames cut short, and an IP version that belies the link layer's.
//!
//! A load past the end of a frame ends the kernel's program with a drop, so no offset here can be made to lie.

use std::num::NonZeroU16;

use postern_proto::KNOCK_LEN;

use super::frame::Link;

/// Size of a UDP header in bytes (RFC 768).
const UDP_HEADER_LEN: usize = 8;
/// What the UDP length field of a knock says.
const UDP_LEN: usize = UDP_HEADER_LEN + KNOCK_LEN;

/// The filter for knocks to `ports` on such a link, in libpcap's language (pcap-filter(7)).
pub(super) fn expression(link: Link, ports: &[NonZeroU16]) -> String {
    let knock = format!("({} or {})", ipv4(ports), ipv6(ports));
    match link {
        // Each `vlan` moves the offsets of all that follows it by one tag.
        Link::Ethernet => format!("{knock} or (vlan and ({knock} or (vlan and {knock})))"),
        Link::Cooked | Link::Cooked2 | Link::Raw | Link::Loopback => knock,
    }
}

/// IPv4: neither "more fragments" nor an offset; `udp[]` looks behind the options.
fn ipv4(ports: &[NonZeroU16]) -> String {
    let ours = ours("udp[2:4]", ports);
    format!("(ip[6:2] & 0x3fff = 0 and ip[2:2] - ((ip[0] & 15) << 2) = {UDP_LEN} and {ours})")
}

/// IPv6: `udp[]` does not look behind extension headers, so the offsets are worked out here. Each of the headers says
/// what comes next (byte 0) and how many 8-byte units it has beyond the first (byte 1).
fn ipv6(ports: &[NonZeroU16]) -> String {
    let one = "((ip6[41] + 1) << 3)";
    let two = format!("({one} + ((ip6[41 + {one}] + 1) << 3))");

    let plain = udp_over_ipv6("ip6[6]", "0", ports);
    let behind_one = udp_over_ipv6("ip6[40]", one, ports);
    let behind_two = udp_over_ipv6(&format!("ip6[40 + {one}]"), &two, ports);
    // Hop-by-hop (0) is allowed in the first place only (RFC 8200, section 4.1).
    let extended = "(ip6[6] = 0 or ip6[6] = 43 or ip6[6] = 60)";
    let extended_twice = "(ip6[40] = 43 or ip6[40] = 60)";
    format!("({plain} or ({extended} and ({behind_one} or ({extended_twice} and {behind_two}))))")
}

/// UDP, when `next_header` says so, behind so many bytes of extension headers.
fn udp_over_ipv6(next_header: &str, extensions: &str, ports: &[NonZeroU16]) -> String {
    let ours = ours(&format!("ip6[42 + {extensions} : 4]"), ports);
    format!("({next_header} = 17 and ip6[4:2] - {extensions} = {UDP_LEN} and {ours})")
}

/// One of our ports and the length of a knock: UDP's destination port and length are neighbours, so `port_and_length`,
/// one load of four bytes, holds both.
fn ours(port_and_length: &str, ports: &[NonZeroU16]) -> String {
    let any: Vec<_> =
        ports.iter().map(|port| format!("{port_and_length} = {:#06x}{UDP_LEN:04x}", port.get())).collect();
    format!("({})", any.join(" or "))
}

#[cfg(test)]
mod tests {
    use pcap::{BpfProgram, Linktype};
    use proptest::prelude::*;

    use super::super::frame::craft::{Craft, KNOCK, LINKS, PORT, table};
    use super::super::frame::{Content, Frame, parse};
    use super::*;

    fn ports(ports: &[u16]) -> Vec<NonZeroU16> {
        ports.iter().map(|&port| NonZeroU16::new(port).unwrap()).collect()
    }

    fn compile(link: Link, ports: &[NonZeroU16]) -> BpfProgram {
        let linktype = match link {
            Link::Ethernet => Linktype::ETHERNET,
            Link::Cooked => Linktype::LINUX_SLL,
            Link::Cooked2 => Linktype::LINUX_SLL2,
            Link::Raw => Linktype(12),
            Link::Loopback => Linktype::NULL,
        };
        let expression = expression(link, ports);
        pcap::Capture::dead(linktype).unwrap().compile(&expression, true).expect(&expression)
    }

    #[test]
    fn each_frame_of_the_table_is_admitted_or_not() {
        for link in LINKS {
            let program = compile(link, &ports(&[53, PORT]));
            for row in table().into_iter().filter(|row| row.fits(link)) {
                // Only Ethernet's tags are looked behind.
                let admitted = row.admitted && (row.craft.tags.is_empty() || link == Link::Ethernet);
                assert_eq!(
                    program.filter(&row.craft.frame(link)),
                    admitted,
                    "{} on {link:?}: {:?}",
                    row.name,
                    row.craft
                );
            }
        }
    }

    #[test]
    fn every_port_is_admitted_and_no_other() {
        let open = [1, 53, 123, 443, 500, 1194, PORT, 65535];
        for link in LINKS {
            let program = compile(link, &ports(&open));
            for v6 in [false, true] {
                for port in open.into_iter().flat_map(|port| port.saturating_sub(1)..=port.saturating_add(1))
                {
                    let frame = Craft { v6, port, ..Craft::default() }.frame(link);
                    assert_eq!(program.filter(&frame), open.contains(&port), "{port} on {link:?}");
                }
            }
        }
    }

    /// The kernel takes 4096 instructions at most, and up to Linux 6.8 counts the translated program against
    /// `net.core.optmem_max`, 20 kB by default: about 2500 instructions of its own. Beyond that libpcap would
    /// filter in the process instead, and each packet of the host would wake the gate.
    #[test]
    fn the_program_is_small() {
        let most = ports(&[1, 53, 123, 443, 500, 1194, PORT, 65535]);
        for link in LINKS {
            let instructions = compile(link, &most).get_instructions().len();
            let bound = if link == Link::Ethernet { 300 } else { 100 };
            assert!(instructions <= bound, "{instructions} on {link:?}");
        }
    }

    fn length(frame: &Frame<'_>) -> Option<usize> {
        match frame.content {
            Content::Datagram(payload) => Some(payload.len()),
            Content::Segment { .. } => None,
        }
    }

    fn any_knock() -> impl Strategy<Value = Craft> {
        let v4 = (0usize..=10).prop_map(|words| Craft { options: words * 4, ..Craft::default() });
        let size = (1usize..=256).prop_map(|units| units * 8);
        let first = (prop::sample::select(&[0u8, 43, 60][..]), size.clone());
        let second = (prop::sample::select(&[43u8, 60][..]), size);
        let extensions = prop_oneof![
            Just(vec![]),
            first.clone().prop_map(|first| vec![first]),
            (first, second).prop_map(|(first, second)| vec![first, second]),
        ];
        let v6 = extensions.prop_map(|extensions| Craft { v6: true, extensions, ..Craft::default() });
        let tags: Vec<&[u16]> = vec![&[], &[0x8100], &[0x88a8], &[0x88a8, 0x8100]];
        let tags = prop::sample::select(tags);
        (prop_oneof![v4, v6], tags, 0usize..64).prop_map(|(craft, tags, padding)| Craft {
            tags,
            padding,
            ..craft
        })
    }

    proptest! {
        #[test]
        fn knocks_of_any_shape_are_admitted(craft in any_knock()) {
            let link = Link::Ethernet;
            let frame = craft.frame(link);
            prop_assert_eq!(length(&parse(link, &frame).unwrap()), Some(KNOCK));
            prop_assert!(compile(link, &ports(&[PORT])).filter(&frame));
        }

        /// However a knock is damaged, what the filter still admits is a knock to the parser too, or nothing.
        #[test]
        fn nothing_but_our_port_and_length_is_admitted(
            craft in any_knock(),
            damage in prop::collection::vec((0usize..120, any::<u8>()), 1..4),
        ) {
            let link = Link::Ethernet;
            let mut bytes = craft.frame(link);
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            if compile(link, &ports(&[PORT])).filter(&bytes)
                && let Ok(frame) = parse(link, &bytes)
            {
                prop_assert_eq!((frame.port, length(&frame)), (PORT, Some(KNOCK)));
            }
        }
    }
}
