//! The sets of the table. Those that let somebody in end by themselves, element by element; each has a largest size.

use super::netlink::Attributes;
use crate::warden::firewall::Family;

/// Elements of a set for leases, at the most: eight ports for each lease that may live at a time.
const LEASES: u32 = 131_072;
/// Ports of all services, and sessions, at the most.
const OTHERS: u32 = 65_536;

/// `NFTA_SET_*`
pub(super) const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
pub(super) const SET_HANDLE: u16 = 16;
/// `NFTA_SET_DESC_SIZE`
const DESCRIPTION_SIZE: u16 = 1;
/// What `nft` numbers its types with takes so many bits each in a key of several.
const TYPE_BITS: u32 = 6;

/// A set: its name, the parts of its key, whether elements end, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Set {
    pub(super) name: &'static str,
    key: &'static [Part],
    pub(super) ends: bool,
    pub(super) size: u32,
}

/// A part of a key, each padded to whole words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Number,
}

use Part::{Ipv4, Ipv6, Number, Port, Protocol};

/// What is guarded,
pub(super) const PORTS: Set = Set { name: "ports", key: &[Protocol, Port], ends: true, size: OTHERS };
/// what knocks come to,
pub(super) const KNOCKS: Set = Set { name: "knocks", key: &[Protocol, Port], ends: true, size: OTHERS };
/// and where sessions outlive their window.
pub(super) const KEPT: Set = Set { name: "kept", key: &[Protocol, Port], ends: false, size: OTHERS };

pub(super) const ALL: [Set; 11] = [
    PORTS,
    KNOCKS,
    KEPT,
    grants(Family::V4),
    from_port(Family::V4),
    standing(Family::V4),
    leases(Family::V4),
    grants(Family::V6),
    from_port(Family::V6),
    standing(Family::V6),
    leases(Family::V6),
];

/// Who is let in where, from any port.
pub(super) const fn grants(family: Family) -> Set {
    match family {
        Family::V4 => Set { name: "grants_ipv4", key: &[Ipv4, Protocol, Port], ends: true, size: LEASES },
        Family::V6 => Set { name: "grants_ipv6", key: &[Ipv6, Protocol, Port], ends: true, size: LEASES },
    }
}

/// Who is let in where, from one port only.
pub(super) const fn from_port(family: Family) -> Set {
    let (name, key): (_, &[Part]) = match family {
        Family::V4 => ("from_port_ipv4", &[Ipv4, Protocol, Port, Port]),
        Family::V6 => ("from_port_ipv6", &[Ipv6, Protocol, Port, Port]),
    };
    Set { name, key, ends: true, size: LEASES }
}

/// Sessions that stood before the guard.
pub(super) const fn standing(family: Family) -> Set {
    let (name, key): (_, &[Part]) = match family {
        Family::V4 => ("standing_ipv4", &[Ipv4, Ipv4, Port, Port]),
        Family::V6 => ("standing_ipv6", &[Ipv6, Ipv6, Port, Port]),
    };
    Set { name, key, ends: false, size: OTHERS }
}

/// Who holds what, one element for each lease and port, with its text. No rule looks here: the kernel keeps it for the
/// next warden.
pub(super) const fn leases(family: Family) -> Set {
    let (name, key): (_, &[Part]) = match family {
        Family::V4 => ("leases_ipv4", &[Ipv4, Protocol, Port, Port, Number]),
        Family::V6 => ("leases_ipv6", &[Ipv6, Protocol, Port, Port, Number]),
    };
    Set { name, key, ends: true, size: LEASES }
}

impl Set {
    /// What makes it, behind the table's name.
    pub(super) fn attributes(&self, named: Attributes, id: u32) -> Attributes {
        let flags = if self.ends { libc::NFT_SET_TIMEOUT.cast_unsigned() } else { 0 };
        let (kind, length) = self.key.iter().fold((0, 0), |(kind, length), part| {
            let (number, bytes, _) = part.description();
            (kind << TYPE_BITS | number, length + bytes)
        });
        named
            .text(SET_NAME, self.name)
            .be32(SET_FLAGS, flags)
            .be32(SET_KEY_TYPE, kind)
            .be32(SET_KEY_LEN, length)
            .be32(SET_ID, id)
            .nest(SET_DESCRIPTION, &Attributes::default().be32(DESCRIPTION_SIZE, self.size))
    }

    pub(super) fn type_text(&self) -> String {
        self.key.iter().map(|part| part.description().2).collect::<Vec<_>>().join(" . ")
    }
}

impl Part {
    /// Its number in `nft` (`enum datatypes`), its length in a key, and its name.
    const fn description(self) -> (u32, u32, &'static str) {
        match self {
            Self::Ipv4 => (7, 4, "ipv4_addr"),
            Self::Ipv6 => (8, 16, "ipv6_addr"),
            Self::Protocol => (12, 4, "inet_proto"),
            Self::Port => (13, 4, "inet_service"),
            Self::Number => (19, 4, "mark"),
        }
    }
}
