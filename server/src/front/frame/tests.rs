//! Every kind of frame in the table, every prefix of it, and any bytes at all.

use proptest::prelude::*;

use super::craft::{Craft, LINKS, SEQUENCE, SOURCE_PORT, table};
use super::*;

#[test]
fn each_frame_has_its_verdict() {
    for row in table() {
        for link in LINKS.into_iter().filter(|&link| row.fits(link)) {
            let bytes = row.craft.frame(link);
            let verdict = parse(link, &bytes);
            assert_eq!(verdict.map(|_| ()), row.parsed, "{} on {link:?}: {:?}", row.name, row.craft);
            if let Ok(frame) = verdict {
                assert_eq!((frame.source, frame.destination), row.craft.addresses());
                assert_eq!((frame.source_port, frame.port), (SOURCE_PORT, row.craft.port));
                let end = bytes.len() - row.craft.padding;
                let expected = match row.craft.flags {
                    Some(flags) => Content::Segment { flags, sequence: SEQUENCE },
                    None => Content::Datagram(&bytes[end - row.craft.payload..end]),
                };
                assert_eq!(frame.content, expected);
            }
        }
    }
}

#[test]
fn a_frame_cut_short_is_refused_wherever_it_is_cut() {
    for row in table().into_iter().filter(|row| row.parsed.is_ok()) {
        for link in LINKS.into_iter().filter(|&link| row.fits(link)) {
            let bytes = row.craft.frame(link);
            for len in 0..bytes.len() - row.craft.padding {
                assert_eq!(
                    parse(link, &bytes[..len]),
                    Err(Unfit::Length),
                    "{} cut to {len} on {link:?}",
                    row.name
                );
            }
        }
    }
}

#[test]
fn what_is_not_inbound_is_refused_where_the_frame_tells() {
    for link in LINKS {
        for (packet_type, inbound) in [(0, true), (1, true), (2, true), (3, false), (4, false)] {
            let bytes = Craft { packet_type, ..Craft::default() }.frame(link);
            let tells = matches!(link, Link::Cooked | Link::Cooked2);
            let refused = tells && !inbound;
            assert_eq!(
                parse(link, &bytes).err(),
                refused.then_some(Unfit::NotInbound),
                "{packet_type} on {link:?}"
            );
        }
    }
}

#[test]
fn link_types_are_told_apart() {
    for (linktype, link) in [
        (0, Link::Loopback),
        (1, Link::Ethernet),
        (12, Link::Raw),
        (101, Link::Raw),
        (108, Link::Loopback),
        (113, Link::Cooked),
        (228, Link::Raw),
        (229, Link::Raw),
        (276, Link::Cooked2),
    ] {
        assert_eq!(Link::try_from(Linktype(linktype)), Ok(link), "{linktype}");
    }
    let error = Link::try_from(Linktype::IEEE802_11).unwrap_err();
    assert_eq!(error.to_string(), "link type IEEE802_11 (105)");
    assert_eq!(Link::try_from(Linktype(-7)).unwrap_err().to_string(), "link type -7");
}

/// The payload is a part of the frame, by address.
fn assert_within(frame: &[u8], content: Content<'_>) {
    let Content::Datagram(payload) = content else { return };
    let (outer, inner) = (frame.as_ptr_range(), payload.as_ptr_range());
    assert!(outer.start <= inner.start && inner.end <= outer.end);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        link in prop::sample::select(&LINKS[..]),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        if let Ok(frame) = parse(link, &bytes) {
            assert_within(&bytes, frame.content);
        }
    }

    #[test]
    fn damaged_frames_are_parsed_without_a_panic(
        link in prop::sample::select(&LINKS[..]),
        row in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        len in any::<prop::sample::Index>(),
    ) {
        let mut bytes = row.get(&table()).craft.frame(link);
        // Headers are where damage tells.
        let headers = bytes.len().min(80);
        for (at, byte) in damage {
            bytes[at.index(headers)] = byte;
        }
        bytes.truncate(len.index(bytes.len() + 1));
        if let Ok(frame) = parse(link, &bytes) {
            assert_within(&bytes, frame.content);
        }
    }
}
