//! The expression that libpcap compiles into the kernel's packet filter: only what may be a knock, or a step of a
//! sequence, wakes the gate.
//!
//! A knock is a UDP datagram, no fragment, to one of the gate's ports, whose UDP header and IP header both say that
//! its payload has the size of a knock:
//! - IPv4 with any options, where neither header is followed by a rest;
//! - IPv6 with up to two extension headers (hop-by-hop, routing, destination options), each as long as it says;
//! - on Ethernet with up to two VLAN tags. On other links libpcap knows no tags, and needs none: on `any` a tagged frame
//!   shows up once more, untagged, at the VLAN interface that takes it in.
//!
//! A step is a UDP datagram, or a TCP segment with the flags that it must have, to one of the ports that sequences are made
//! of. Where a sequence counts strays, every datagram and every segment that begins a connection is admitted: whoever
//! scans the host is to be seen. No step is looked for behind extension headers; no kernel sends one there.
//!
//! The frame parser decides in the end. It follows more extension headers than two, which therefore never reach it
//! live; what the filter leaves to it are frames cut short, and an IP version that belies the link layer's.
//!
//! A load past the end of a frame ends the kernel's program with a drop, so no offset here can be made to lie.

use std::collections::HashSet;
use std::num::NonZeroU16;

use postern_proto::{KNOCK_LEN, Protocol};
use serde::{Deserialize, Serialize};

use super::frame::Link;

/// What a capture is to see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sought {
    /// UDP ports that knocks come to.
    pub(crate) knocks: Vec<NonZeroU16>,
    /// What may be a step of a sequence.
    pub(crate) steps: Vec<Touch>,
    /// Whether all datagrams and beginnings of connections count, to whatever port.
    pub(crate) strays: bool,
}

/// Packets to a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Touch {
    pub(crate) protocol: Protocol,
    /// The first port and the last.
    pub(crate) ports: (NonZeroU16, NonZeroU16),
    /// Flags of a TCP segment that must be set, and that must be clear.
    pub(crate) flags: (u8, u8),
}

impl Sought {
    /// Few touches of a protocol that cover all steps of it.
    pub(super) fn touches(&self, protocol: Protocol) -> impl Iterator<Item = Touch> {
        together(&self.steps).into_iter().filter(move |touch| touch.protocol == protocol)
    }
}

impl Touch {
    /// Whether its flags are those of beginnings of connections only: SYN, and no ACK.
    pub(crate) const fn begins_connections(self) -> bool {
        let (set, clear) = self.flags;
        set & 0x02 != 0 && clear & 0x10 != 0
    }
}

/// Touches that are told apart, at the most; more are taken together, for a small program (see its test).
const TOUCHES: usize = 8;

/// TCP's flags in the filter's terms: SYN, and no ACK.
const BEGINS: &str = "& 0x12 = 0x02";

/// Size of a UDP header in bytes (RFC 768).
const UDP_HEADER_LEN: usize = 8;
/// What the UDP length field of a knock says.
const UDP_LEN: usize = UDP_HEADER_LEN + KNOCK_LEN;

/// The filter for what is sought on such a link, in libpcap's language (pcap-filter(7)).
pub(super) fn expression(link: Link, sought: &Sought) -> String {
    let Sought { knocks, steps, strays } = sought;
    let mut seen = Vec::new();
    if !knocks.is_empty() {
        seen.extend([ipv4(knocks), ipv6(knocks)]);
    }
    if *strays {
        seen.push(format!("(ip[9] = 17 and ip[6:2] & 0x3fff = 0) or ip6[6] = 17 or tcp[13] {BEGINS}"));
        seen.push(format!("(ip6[6] = 6 and ip6[53] {BEGINS})"));
    }
    seen.extend(together(steps).into_iter().map(touch));
    if seen.is_empty() {
        // One-time sequences, and none is left: no packet is as short.
        seen.push("less 1".to_owned());
    }
    let seen = format!("({})", seen.join(" or "));
    match link {
        // Each `vlan` moves the offsets of all that follows it by one tag.
        Link::Ethernet => format!("{seen} or (vlan and ({seen} or (vlan and {seen})))"),
        Link::Cooked | Link::Cooked2 | Link::Raw | Link::Loopback => seen,
    }
}

/// Few touches that cover these.
fn together(steps: &[Touch]) -> Vec<Touch> {
    let mut known = HashSet::new();
    let distinct: Vec<Touch> = steps.iter().copied().filter(|step| known.insert(*step)).collect();
    if distinct.len() <= TOUCHES {
        return distinct;
    }
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .filter_map(|protocol| {
            let of_protocol = distinct.iter().filter(|touch| touch.protocol == protocol);
            of_protocol.copied().reduce(|one, other| Touch {
                protocol,
                ports: (one.ports.0.min(other.ports.0), one.ports.1.max(other.ports.1)),
                flags: (one.flags.0 & other.flags.0, one.flags.1 & other.flags.1),
            })
        })
        .collect()
}

/// Packets of one touch, over IPv4 and IPv6.
fn touch(Touch { protocol, ports: (first, last), flags: (set, clear) }: Touch) -> String {
    let port = |at: &str| {
        if first == last { format!("{at} = {first}") } else { format!("{at} >= {first} and {at} <= {last}") }
    };
    match protocol {
        Protocol::Udp => format!(
            "(ip[6:2] & 0x3fff = 0 and {}) or (ip6[6] = 17 and {})",
            port("udp[2:2]"),
            port("ip6[42:2]")
        ),
        Protocol::Tcp => {
            let flags = format!("& {:#04x} = {set:#04x}", set | clear);
            format!(
                "({} and tcp[13] {flags}) or (ip6[6] = 6 and {} and ip6[53] {flags})",
                port("tcp[2:2]"),
                port("ip6[42:2]")
            )
        }
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
    use pcap::BpfProgram;
    use proptest::prelude::*;

    use super::super::frame::craft::{self, Craft, KNOCK, LINKS, PORT, SYN, table};
    use super::super::frame::{Content, Frame, parse};
    use super::*;

    fn ports(ports: &[u16]) -> Sought {
        let knocks = ports.iter().map(|&port| NonZeroU16::new(port).unwrap()).collect();
        Sought { knocks, ..Sought::default() }
    }

    fn compile(link: Link, sought: &Sought) -> BpfProgram {
        craft::compile(link, &expression(link, sought))
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
        let step =
            |port, tcp: bool| touch_of(if tcp { Protocol::Tcp } else { Protocol::Udp }, (port, port + 9));
        let steps = |count| (0..count).map(|index| step(1000 + index * 1000, index % 2 == 0)).collect();
        for (steps, strays, of_ethernet, of_others) in
            [(steps(0), false, 300, 100), (steps(8), true, 900, 300), (steps(40), true, 600, 200)]
        {
            let most = Sought { steps, strays, ..most.clone() };
            for link in LINKS {
                let instructions = compile(link, &most).get_instructions().len();
                let bound = if link == Link::Ethernet { of_ethernet } else { of_others };
                assert!(instructions <= bound, "{instructions} on {link:?} for {most:?}");
            }
        }
    }

    /// New connections, or datagrams.
    fn touch_of(protocol: Protocol, ports: (u16, u16)) -> Touch {
        let port = |number| NonZeroU16::new(number).unwrap();
        Touch { protocol, ports: (port(ports.0), port(ports.1)), flags: (SYN, 0x15) }
    }

    #[test]
    fn steps_are_admitted_and_their_neighbours_are_not() {
        let ack = 0x10;
        let steps = vec![
            touch_of(Protocol::Tcp, (7000, 7000)),
            touch_of(Protocol::Tcp, (8000, 8009)),
            touch_of(Protocol::Udp, (9000, 9000)),
        ];
        let sought = Sought { steps, ..ports(&[PORT]) };
        let strays = Sought { strays: true, ..sought.clone() };
        for link in LINKS {
            let (program, strays) = (compile(link, &sought), compile(link, &strays));
            for (port, flags, is_step) in [
                (7000, Some(SYN), true),
                (7000, Some(SYN | 0xc0), true),
                (7000, Some(SYN | ack), false),
                (7000, Some(ack), false),
                (7000, None, false),
                (6999, Some(SYN), false),
                (7999, Some(SYN), false),
                (8000, Some(SYN), true),
                (8009, Some(SYN), true),
                (8010, Some(SYN), false),
                (9000, Some(SYN), false),
                (9000, None, true),
                (9001, None, false),
            ] {
                let protocol = if flags.is_some() { 6 } else { 17 };
                for (v6, payload, options) in [(false, 0, 0), (false, 40, 40), (true, 1, 0)] {
                    let craft = Craft { v6, options, protocol, flags, port, payload, ..Craft::default() };
                    assert_eq!(program.filter(&craft.frame(link)), is_step, "{craft:?} on {link:?}");
                    let counts = flags.is_none_or(|flags| flags & (SYN | ack) == SYN);
                    assert_eq!(strays.filter(&craft.frame(link)), counts, "{craft:?} on {link:?}");
                    let later = Craft { fragment: 32, ..craft };
                    assert!(v6 || !strays.filter(&later.frame(link)), "{later:?} on {link:?}");
                }
            }
        }
    }

    #[test]
    fn without_knock_ports_there_are_no_knocks() {
        let steps = vec![touch_of(Protocol::Udp, (7000, 7000))];
        let program = compile(Link::Ethernet, &Sought { steps, ..ports(&[]) });
        assert!(!program.filter(&Craft::default().frame(Link::Ethernet)));
        assert!(program.filter(&Craft { port: 7000, ..Craft::default() }.frame(Link::Ethernet)));
        for link in LINKS {
            assert!(!compile(link, &Sought::default()).filter(&Craft::default().frame(link)), "{link:?}");
        }
    }

    #[test]
    fn many_steps_are_all_admitted() {
        let steps = (0..40u16).map(|index| {
            let protocol = if index % 3 == 0 { Protocol::Udp } else { Protocol::Tcp };
            touch_of(protocol, (7000 + 7 * index, 7000 + 7 * index))
        });
        let sought = Sought { steps: steps.collect(), ..ports(&[PORT]) };
        let program = compile(Link::Ethernet, &sought);
        for Touch { protocol, ports: (port, _), .. } in sought.steps {
            let flags = (protocol == Protocol::Tcp).then_some(SYN);
            let protocol = if flags.is_some() { 6 } else { 17 };
            let craft = Craft { protocol, flags, port: port.get(), payload: 0, ..Craft::default() };
            assert!(program.filter(&craft.frame(Link::Ethernet)), "{port}");
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
