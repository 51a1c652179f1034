//! The filter, as the kernel runs it. All of this takes `CAP_BPF`.

use std::num::NonZeroU16;

use postern_proto::{Datagram, GateId, GateKeys, Protocol};
use proptest::prelude::*;

use super::super::filter::{Touch, expression};
use super::super::frame::craft::{self, Craft, KNOCK, LINKS, PORT, SYN, table};
use super::super::frame::{Link, parse};
use super::*;

/// A filter with its maps.
struct Lab {
    link: Link,
    maps: Maps,
    filter: Filter,
}

fn keys() -> GateKeys {
    GateKeys::derive(&GateId::from_bytes([7; 16]))
}

fn sought(ports: &[u16]) -> Sought {
    let knocks = ports.iter().map(|&port| NonZeroU16::new(port).unwrap()).collect();
    Sought { knocks, ..Sought::default() }
}

impl Lab {
    /// A set for all times, without a hint.
    fn new(link: Link, sought: &Sought) -> Self {
        let maps = Maps::create(1 << 20).unwrap();
        maps.set_window(0, u64::MAX).unwrap();
        let filter = Filter::load(&program::program(link, sought, &keys(), &maps)).unwrap();
        Self { link, maps, filter }
    }

    /// Whether it admits a frame, as a capture would show it.
    fn admits(&self, frame: &[u8]) -> bool {
        // Sockets for `any` are shown no link layer: the kernel knows the packet's type, and its protocol.
        let (protocol, shown) = match self.link {
            Link::Ethernet | Link::Raw | Link::Loopback => ([0x08, 0x00], frame),
            Link::Cooked => ([frame[14], frame[15]], &frame[16..]),
            Link::Cooked2 => ([frame[0], frame[1]], &frame[20..]),
        };
        let to_other = match self.link {
            Link::Cooked => frame[1] == 3,
            Link::Cooked2 => frame[10] == 3,
            _ => false,
        };
        let header = [&[if to_other { 2 } else { 0 }; 6][..], &[0; 6], &protocol].concat();
        self.filter.test(&[&header, shown].concat()).unwrap() > 0
    }

    /// Has the hint of a knock in the set.
    fn knows(&self, payload: &[u8]) {
        self.maps.hints.insert(&[Datagram::new(payload).unwrap().unveil(&keys()).bytes()]).unwrap();
    }
}

fn classic(link: Link, sought: &Sought) -> pcap::BpfProgram {
    craft::compile(link, &expression(link, sought))
}

/// Has the kernel look up the hint of each knock on this capture, and know that of crafted ones, or none. Gives what tells
/// how many it has refused.
pub(in crate::front) fn look_up(
    capture: &Capture,
    sought: &Sought,
    is_known: bool,
) -> impl Fn() -> u64 + use<> {
    let lab = Lab::new(capture.link(), sought);
    if is_known {
        lab.knows(&crafted());
    }
    lab.filter.attach(capture.as_raw_fd()).unwrap();
    move || lab.maps.refused.sum().unwrap()
}

/// What the crafted knocks carry.
fn crafted() -> Vec<u8> {
    (0..KNOCK).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn each_frame_of_the_table_is_admitted_or_not() {
    for link in LINKS {
        let lab = Lab::new(link, &sought(&[53, PORT]));
        for known in [false, true] {
            for row in table().into_iter().filter(|row| row.fits(link)) {
                let admitted = row.admitted && (row.craft.tags.is_empty() || link == Link::Ethernet) && known;
                let frame = row.craft.frame(link);
                assert_eq!(
                    lab.admits(&frame),
                    admitted,
                    "{} on {link:?}, {known}: {:?}",
                    row.name,
                    row.craft
                );
            }
            lab.knows(&crafted());
        }
        // Each knock that is not known is counted, and nothing else is.
        let knocks = table().into_iter().filter(|row| row.fits(link) && row.admitted);
        let knocks = knocks.filter(|row| row.craft.tags.is_empty() || link == Link::Ethernet).count();
        assert_eq!(lab.maps.refused.sum().unwrap(), u64::try_from(knocks).unwrap(), "{link:?}");
    }
}

#[test]
fn what_is_for_others_is_not_admitted_on_any() {
    for link in [Link::Cooked, Link::Cooked2] {
        let lab = Lab::new(link, &sought(&[PORT]));
        lab.knows(&crafted());
        assert!(lab.admits(&Craft::default().frame(link)));
        assert!(!lab.admits(&Craft { packet_type: 3, ..Craft::default() }.frame(link)));
    }
}

#[test]
fn nothing_is_refused_outside_the_window() {
    let lab = Lab::new(Link::Ethernet, &sought(&[PORT]));
    let knock = Craft::default().frame(Link::Ethernet);
    for (from, until, is_refused) in [(0, u64::MAX, true), (0, 1, false), (u64::MAX, u64::MAX, false)] {
        lab.maps.set_window(from, until).unwrap();
        assert_eq!(lab.admits(&knock), !is_refused, "{from}..{until}");
    }
    lab.maps.set_window(0, u64::MAX).unwrap();
    lab.maps.shut_window().unwrap();
    assert!(lab.admits(&knock));
    assert_eq!(lab.maps.refused.sum().unwrap(), 1);
}

/// A million random datagrams: the kernel admits those whose hint, as Rust unveils it, is in the set, and not those of which
/// a neighbour is.
#[test]
fn kernel_and_rust_unveil_alike() {
    const ROUNDS: usize = 1_000_000;
    let lab = Lab::new(Link::Raw, &sought(&[PORT]));
    let mut random = fastrand::Rng::with_seed(5);
    let frame = Craft::default().frame(Link::Raw);
    let at = frame.len() - KNOCK;
    let mut packet = [&[0; 12][..], &[0x08, 0x00], &frame].concat();
    for round in 0..ROUNDS {
        random.fill(&mut packet[14 + at..14 + at + 32]);
        let mut hint = Datagram::new(&packet[14 + at..]).unwrap().unveil(&keys()).bytes();
        let is_known = round % 2 == 0;
        if !is_known {
            hint[random.usize(..8)] ^= 1 << random.u8(..8);
        }
        lab.maps.hints.insert(&[hint]).unwrap();
        assert_eq!(lab.filter.test(&packet).unwrap() > 0, is_known, "{packet:?}");
        lab.maps.hints.remove(&[hint]).unwrap();
    }
    assert_eq!(lab.maps.refused.sum().unwrap(), u64::try_from(ROUNDS / 2).unwrap());
}

fn touch(protocol: Protocol, ports: (u16, u16)) -> Touch {
    let port = |number| NonZeroU16::new(number).unwrap();
    Touch { protocol, ports: (port(ports.0), port(ports.1)), flags: (SYN, 0x15) }
}

fn any_sought() -> impl Strategy<Value = Sought> {
    let steps = vec![
        touch(Protocol::Tcp, (7000, 7000)),
        touch(Protocol::Tcp, (8000, 8009)),
        touch(Protocol::Udp, (9000, 9001)),
        touch(Protocol::Udp, (PORT, PORT)),
    ];
    (any::<bool>(), any::<bool>()).prop_map(move |(has_steps, strays)| Sought {
        steps: if has_steps { steps.clone() } else { Vec::new() },
        strays,
        ..sought(&[53, PORT])
    })
}

fn any_packet() -> impl Strategy<Value = Craft> {
    let port = prop::sample::select(&[53, PORT, 7000, 7001, 8000, 8009, 8010, 9000, 9001, 9002][..]);
    let flags = prop::option::of(prop::sample::select(&[SYN, 0x12, 0x10, 0xc2, 0x03][..]));
    let payload = prop::sample::select(&[KNOCK, KNOCK, KNOCK, 0, 255, 257][..]);
    let kinds = prop::sample::select(&[0u8, 43, 60, 44, 51][..]);
    let extensions = prop::collection::vec((kinds, (1usize..4).prop_map(|units| units * 8)), 0..4);
    let tags: Vec<&[u16]> = vec![&[], &[], &[0x8100], &[0x88a8, 0x8100], &[0x8100, 0x8100, 0x8100]];
    let tags = prop::sample::select(tags);
    let rest = (0usize..=10, 0usize..8, prop::sample::select(&[0u16, 0, 0, 0x4000, 0x2000, 32][..]));
    (any::<bool>(), port, flags, payload, extensions, tags, rest).prop_map(
        |(v6, port, flags, payload, extensions, tags, (words, padding, fragment))| Craft {
            v6,
            port,
            flags,
            protocol: if flags.is_some() { 6 } else { 17 },
            payload,
            extensions: if v6 { extensions } else { Vec::new() },
            tags,
            options: if v6 { 0 } else { words * 4 },
            padding,
            fragment,
            ..Craft::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// Of what the parser understands, the kernel admits what the classic filter does, but for knocks with hints that it
    /// does not know.
    #[test]
    fn admits_what_the_classic_filter_and_the_set_admit(
        sought in any_sought(),
        craft in any_packet(),
        link in prop::sample::select(&LINKS[..]),
        known in any::<bool>(),
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
    ) {
        let craft = if matches!(link, Link::Raw | Link::Loopback) { Craft { tags: &[], ..craft } } else { craft };
        let mut frame = craft.frame(link);
        for (at, byte) in damage {
            let at = at % frame.len();
            // What libpcap makes up for sockets without a link layer, and an address family, are not the kernel's.
            let made_up = match link {
                Link::Cooked | Link::Cooked2 => 20,
                Link::Loopback => 4,
                Link::Ethernet | Link::Raw => 0,
            };
            if at >= made_up {
                frame[at] = byte;
            }
        }
        if let Ok(parsed) = parse(link, &frame) {
            let lab = Lab::new(link, &sought);
            let knock = match parsed.content {
                super::super::frame::Content::Datagram(payload) if [53, PORT].contains(&parsed.port) => Datagram::new(payload),
                _ => None,
            };
            if let Some(knock) = knock && known {
                lab.maps.hints.insert(&[knock.unveil(&keys()).bytes()]).unwrap();
            }
            let admitted = classic(link, &sought).filter(&frame);
            let plain = sought.knocks.len() == 2 && knock.is_some();
            prop_assert_eq!(lab.admits(&frame), admitted && (known || !plain));
        }
    }
}
