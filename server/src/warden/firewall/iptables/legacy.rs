//! The filter table of iptables-legacy, asked of the kernel without starting a program: nothing tells of a change to it, so
//! it has to be looked at again and again. What is kept of a look is a fingerprint of all rules without their counters.
//!
//! The layouts are those of `linux/netfilter_ipv4/ip_tables.h` and `linux/netfilter_ipv6/ip6_tables.h`; every iptables
//! binary relies on them, so they never change.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::system::{XtablesLevel, XtablesQuery, ask_xtables};
use crate::warden::firewall::Family;

const NAME: &[u8] = b"filter";

/// `struct ipt_getinfo`, `struct ip6t_getinfo`.
#[repr(C)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// `struct ipt_get_entries`, `struct ip6t_get_entries`; entries of `struct ipt_entry` or `struct ip6t_entry` follow.
#[repr(C)]
struct Entries {
    name: [u8; 32],
    size: u32,
    table: [Counters; 0],
}

/// `struct ipt_entry` and `struct ip6t_entry`; the matches and the target follow, up to the next entry.
#[repr(C)]
struct Entry<Header> {
    header: Header,
    nfcache: u32,
    target_offset: u16,
    next_offset: u16,
    comefrom: u32,
    counters: Counters,
}

/// `struct ipt_ip`.
#[repr(C)]
struct Ipv4Header {
    addresses: [[u32; 1]; 4],
    interfaces: [u8; 64],
    protocol: u16,
    flags: [u8; 2],
}

/// `struct ip6t_ip6`.
#[repr(C)]
struct Ipv6Header {
    addresses: [[u32; 4]; 4],
    interfaces: [u8; 64],
    protocol: u16,
    class_and_flags: [u8; 3],
}

/// `struct xt_counters`.
#[repr(C)]
struct Counters {
    packets: u64,
    bytes: u64,
}

/// Where in an entry stands what is needed of it.
#[derive(Clone, Copy, Debug)]
struct Layout {
    next_offset: usize,
    counters: usize,
    /// The length of an entry without matches and target.
    length: usize,
}

const COUNTERS_LEN: usize = size_of::<Counters>();
const IPV4: Layout = layout::<Ipv4Header>();
const IPV6: Layout = layout::<Ipv6Header>();

// As a C compiler has them for a 64-bit machine.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Info>() == 84 && offset_of!(Info, size) == 80);
    assert!(size_of::<Entries>() == 40 && offset_of!(Entries, size) == 32);
    assert!(size_of::<Ipv4Header>() == 84 && size_of::<Ipv6Header>() == 136);
    assert!(IPV4.next_offset == 90 && IPV4.counters == 96 && IPV4.length == 112);
    assert!(IPV6.next_offset == 142 && IPV6.counters == 152 && IPV6.length == 168);
};

const fn layout<Header>() -> Layout {
    Layout {
        next_offset: offset_of!(Entry<Header>, next_offset),
        counters: offset_of!(Entry<Header>, counters),
        length: size_of::<Entry<Header>>(),
    }
}

/// The filter table of one family.
pub(in crate::warden::firewall) struct LegacyTable {
    /// Only asked, never bound: no packet comes here.
    socket: OwnedFd,
    level: XtablesLevel,
    layout: Layout,
    /// The last answer, kept for its room.
    answer: Vec<u8>,
}

impl LegacyTable {
    /// # Errors
    /// When there is no socket left, or the kernel does not know the family.
    pub(in crate::warden::firewall) fn new(family: Family) -> io::Result<Self> {
        let (domain, level, layout) = match family {
            Family::V4 => (AddressFamily::INET, XtablesLevel::Ipv4, IPV4),
            Family::V6 => (AddressFamily::INET6, XtablesLevel::Ipv6, IPV6),
        };
        let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, level, layout, answer: Vec::new() })
    }

    /// A number that is another as soon as the rules are others, or stand in another order.
    ///
    /// # Errors
    /// When there is no such table, or it changes this very moment ([`io::ErrorKind::WouldBlock`]).
    pub(in crate::warden::firewall) fn fingerprint(&mut self) -> io::Result<u64> {
        let mut info = [0; size_of::<Info>()];
        info[..NAME.len()].copy_from_slice(NAME);
        ask_xtables(&self.socket, self.level, XtablesQuery::Info, &mut info)?;
        let size: [u8; 4] = info[offset_of!(Info, size)..].try_into().expect("it is the last of its fields");
        let length = usize::try_from(u32::from_ne_bytes(size)).map_err(io::Error::other)?;

        self.answer.clear();
        self.answer.resize(offset_of!(Entries, table) + length, 0);
        self.answer[..NAME.len()].copy_from_slice(NAME);
        self.answer[offset_of!(Entries, size)..][..size.len()].copy_from_slice(&size);
        ask_xtables(&self.socket, self.level, XtablesQuery::Entries, &mut self.answer)?;
        fingerprint(&self.answer[offset_of!(Entries, table)..], self.layout)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Walks over the entries; `None` when one does not end where the next one can begin. Whoever can write this table gains
/// nothing by two tables with one fingerprint, so that the hasher needs no key.
fn fingerprint(mut table: &[u8], layout: Layout) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    while !table.is_empty() {
        let next = *table.get(layout.next_offset..)?.first_chunk()?;
        let (entry, rest) = table.split_at_checked(u16::from_ne_bytes(next).into())?;
        if entry.len() < layout.length {
            return None;
        }
        hasher.write(&entry[..layout.counters]);
        hasher.write(&entry[layout.counters + COUNTERS_LEN..]);
        table = rest;
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry with this protocol, these counters, and so much behind it.
    fn entry(layout: Layout, protocol: u8, counters: u8, rest: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; layout.length];
        entry[0] = protocol;
        entry[layout.counters..][..COUNTERS_LEN].fill(counters);
        entry.extend_from_slice(rest);
        let length = u16::try_from(entry.len()).unwrap();
        entry[layout.next_offset..][..2].copy_from_slice(&length.to_ne_bytes());
        entry
    }

    #[test]
    fn rules_and_their_order_count_and_counters_do_not() {
        for layout in [IPV4, IPV6] {
            let table = |rules: &[(u8, u8, &[u8])]| {
                let entries =
                    rules.iter().flat_map(|&(protocol, count, rest)| entry(layout, protocol, count, rest));
                fingerprint(&entries.collect::<Vec<_>>(), layout).unwrap()
            };
            let rules: [(u8, u8, &[u8]); 2] = [(6, 0, b"ACCEPT"), (17, 0, b"DROP")];
            let before = table(&rules);
            assert_eq!(before, table(&[(6, 9, b"ACCEPT"), (17, 255, b"DROP")]), "counters");
            for (what, changed) in [
                ("order", &[rules[1], rules[0]][..]),
                ("a header", &[(7, 0, b"ACCEPT"), rules[1]]),
                ("a target", &[(6, 0, b"REJECT"), rules[1]]),
                ("a rule less", &rules[..1]),
                ("a rule more", &[rules[0], rules[1], rules[1]]),
                ("no rule", &[]),
            ] {
                assert_ne!(before, table(changed), "{what}");
            }
        }
    }

    #[test]
    fn entries_that_do_not_fit_together_are_no_table() {
        for layout in [IPV4, IPV6] {
            let good = entry(layout, 6, 0, b"ACCEPT");
            for next in [0, 1, layout.length - 1, good.len() + 1, usize::from(u16::MAX)] {
                let mut bad = good.clone();
                bad[layout.next_offset..][..2].copy_from_slice(&u16::try_from(next).unwrap().to_ne_bytes());
                assert_eq!(fingerprint(&bad, layout), None, "{next}");
            }
            assert_eq!(fingerprint(&good[..good.len() - 1], layout), None);
            assert_eq!(fingerprint(&good[..=layout.next_offset], layout), None);
        }
    }
}
