//! What stands in the sets: keys and texts, written and read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::{Port, Protocol, WallTime};

use super::netlink::{Attributes, INET, Kind, Message, Read};
use super::rule::octets;
use super::sets::{self, Set};
use super::table::named;
use crate::clock::{BootTime, Now};
use crate::warden::firewall::{Family, Found};
use crate::warden::guard::Session;
use crate::warden::ledger::{Lease, LeaseId, LeaseKey, last_second};

/// `NFTA_SET_ELEM_LIST_SET`, `NFTA_SET_ELEM_LIST_ELEMENTS`
pub(super) const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_*`
const KEY: u16 = 1;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const USERDATA: u16 = 6;
/// `NFTA_DATA_VALUE`, `NFTA_LIST_ELEM`
const VALUE: u16 = 1;
const LIST_ELEMENT: u16 = 1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`: what `nft` prints as an element's comment.
const COMMENT: u8 = 0;
/// Bytes of elements in one message, at the most: the list of them is one attribute, which holds 64 kB.
const MESSAGE: usize = 32 * 1024;

/// Whoever adopts it has looked at the clock before.
const EARLIER: Duration = Duration::from_mins(1);

const TCP: u8 = 6;
const UDP: u8 = 17;

/// An element, as it goes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) set: Set,
    pub(super) key: Vec<u8>,
    pub(super) timeout: Option<Duration>,
    pub(super) comment: Option<String>,
}

/// An element, as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) key: Vec<u8>,
    /// How long it is there yet.
    pub(super) left: Option<Duration>,
    pub(super) comment: Option<String>,
}

/// One port that one source, or one port of it, is let in to. Several leases may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    source: IpAddr,
    port: Port,
    from_port: Option<NonZeroU16>,
}

impl Entry {
    /// Those of a lease.
    pub(super) fn of(lease: &Lease) -> impl Iterator<Item = Self> {
        let LeaseKey { source, from_port, .. } = lease.key;
        lease.ports.iter().map(move |&port| Self { source, port, from_port })
    }

    /// The element that lets it in for so long.
    pub(super) fn element(&self, timeout: Duration) -> Element {
        let family = Family::of(self.source);
        let set = if self.from_port.is_some() { sets::from_port(family) } else { sets::grants(family) };
        let from_port = self.from_port.map(|port| number(port.get())).unwrap_or_default();
        let key = [octets(self.source), door(self.port), from_port].concat();
        Element { set, key, timeout: Some(timeout), comment: None }
    }

    /// The element that says which lease it is for.
    pub(super) fn record(&self, lease: &Lease, timeout: Duration) -> Element {
        let from_port = number(self.from_port.map_or(0, NonZeroU16::get));
        let id = lease.id.0.to_ne_bytes().to_vec();
        let key = [octets(self.source), door(self.port), from_port, id].concat();
        let LeaseKey { client, service, .. } = &lease.key;
        let until = WallTime::from_secs(last_second(lease.until) + 1);
        let set = sets::leases(Family::of(self.source));
        Element { set, key, timeout: Some(timeout), comment: Some(format!("{client}:{service}:{until}")) }
    }
}

/// When the kernel ends a lease's elements: at the first full second of the wall clock at or behind its end, as in
/// every firewall. It counts from now on, whatever the wall clock does.
pub(super) fn end(lease: &Lease) -> BootTime {
    let full = WallTime::from_secs(last_second(lease.until) + 1);
    lease.ends.after(full.since(lease.until))
}

/// The element that lets a session go on.
pub(super) fn standing(session: &Session) -> Element {
    let Session { local, remote } = session;
    let key = [octets(remote.ip()), octets(local.ip()), number(remote.port()), number(local.port())].concat();
    Element { set: sets::standing(Family::of(remote.ip())), key, timeout: None, comment: None }
}

/// A port in a key.
pub(super) fn door(port: Port) -> Vec<u8> {
    let protocol = match port.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    [vec![protocol, 0, 0, 0], number(port.number.get())].concat()
}

fn number(port: u16) -> Vec<u8> {
    [port.to_be_bytes(), [0; 2]].concat()
}

/// Reads a lease's element; `None` where it is not as we write it.
pub(super) fn read_lease(family: Family, held: &Held, now: Now) -> Option<Found> {
    let (source, rest) = read_address(family, &held.key)?;
    let (port, rest) = rest.split_at_checked(8)?;
    let (from_port, id) = (read_number(rest)?, rest.get(4..)?);
    let comment = held.comment.as_deref()?;
    let [client, service, until] = comment.splitn(3, ':').collect::<Vec<_>>()[..] else { return None };
    let until: WallTime = until.parse().ok()?;
    Some(Found::Grant {
        key: LeaseKey {
            client: client.parse().ok()?,
            service: service.parse().ok()?,
            source,
            from_port: NonZeroU16::new(from_port),
        },
        id: LeaseId(u32::from_ne_bytes(id.try_into().ok()?)),
        port: read_door(port)?,
        // The kernel ends it by a clock of its own: it lets in now, whatever the wall clock was set to.
        from: now.wall.before(EARLIER),
        // What somebody saved and restored has a time of its own left; the text knows better.
        until: until.min(now.wall.after(held.left?)),
    })
}

/// Reads the element of a session.
pub(super) fn read_standing(family: Family, held: &Held) -> Option<Found> {
    let (remote, rest) = read_address(family, &held.key)?;
    let (local, rest) = read_address(family, rest)?;
    Some(Found::Standing(Session {
        remote: SocketAddr::new(remote, read_number(rest)?),
        local: SocketAddr::new(local, read_number(rest.get(4..)?)?),
    }))
}

fn read_address(family: Family, key: &[u8]) -> Option<(IpAddr, &[u8])> {
    Some(match family {
        Family::V4 => {
            let (address, rest) = key.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*address).into(), rest)
        }
        Family::V6 => {
            let (address, rest) = key.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*address).into(), rest)
        }
    })
}

fn read_door(key: &[u8]) -> Option<Port> {
    let protocol = match *key.first()? {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Port { protocol, number: NonZeroU16::new(read_number(key.get(4..)?)?)? })
}

fn read_number(key: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*key.first_chunk()?))
}

impl Element {
    /// One message with this element alone, so that what becomes of it can be told.
    pub(super) fn message(&self, kind: Kind) -> Message {
        let flags = if kind == Kind::NEW_ELEMENTS { libc::NLM_F_CREATE | libc::NLM_F_EXCL } else { 0 };
        message(kind, flags, self.set, &Attributes::default().nest(LIST_ELEMENT, &self.attributes(kind)))
    }

    fn attributes(&self, kind: Kind) -> Attributes {
        let attributes = Attributes::default().nest(KEY, &Attributes::default().bytes(VALUE, &self.key));
        if kind != Kind::NEW_ELEMENTS {
            return attributes;
        }
        let attributes = match self.timeout {
            Some(timeout) => attributes.be64(TIMEOUT, millis(timeout)),
            None => attributes,
        };
        match &self.comment {
            Some(comment) => attributes.bytes(USERDATA, &userdata(comment)),
            None => attributes,
        }
    }

    /// The port that it is.
    pub(super) fn port_text(&self) -> String {
        read_door(&self.key)
            .map_or_else(String::new, |port| format!("{} . {}", port.protocol.as_str(), port.number))
    }
}

/// The messages that put elements into sets that have none yet, as many at once as fit.
pub(super) fn fill<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Vec<Message> {
    let mut lists: Vec<(Set, Attributes)> = Vec::new();
    for element in elements {
        let attributes = element.attributes(Kind::NEW_ELEMENTS);
        match lists.iter_mut().rfind(|(set, list)| *set == element.set && list.len() < MESSAGE) {
            Some((_, list)) => *list = std::mem::take(list).nest(LIST_ELEMENT, &attributes),
            None => lists.push((element.set, Attributes::default().nest(LIST_ELEMENT, &attributes))),
        }
    }
    let create = libc::NLM_F_CREATE;
    lists.iter().map(|(set, list)| message(Kind::NEW_ELEMENTS, create, *set, list)).collect()
}

fn message(kind: Kind, flags: i32, set: Set, list: &Attributes) -> Message {
    Message::new(kind, flags, INET, named().text(LIST_SET, set.name).nest(LIST_ELEMENTS, list))
}

/// Zero would be for ever.
fn millis(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn userdata(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("names and a date are shorter");
    [&[COMMENT, length], comment.as_bytes(), &[0]].concat()
}

impl Held {
    /// Reads one element of a listing.
    pub(super) fn read(attributes: Read<'_>) -> Option<Self> {
        let left = attributes.be64(EXPIRATION).map(Duration::from_millis);
        let comment = attributes.bytes(USERDATA).and_then(read_comment);
        Some(Self { key: attributes.nest(KEY).bytes(VALUE)?.to_vec(), left, comment })
    }
}

fn read_comment(userdata: &[u8]) -> Option<String> {
    let (&[kind, length], text) = userdata.split_first_chunk::<2>()?;
    let text = text.get(..usize::from(length))?.strip_suffix(&[0])?;
    (kind == COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(source: &str, from_port: Option<u16>) -> Lease {
        Lease {
            key: LeaseKey {
                client: "alice".parse().unwrap(),
                service: "ssh".parse().unwrap(),
                source: source.parse().unwrap(),
                from_port: from_port.map(|port| NonZeroU16::new(port).unwrap()),
            },
            id: LeaseId(0x1f),
            ports: vec!["22/tcp".parse().unwrap(), "51820/udp".parse().unwrap()],
            from: WallTime::from_secs(1_000),
            until: WallTime::from_micros(1_030_250_000),
            ends: BootTime::from_boot(Duration::from_secs(130)),
        }
    }

    #[test]
    fn a_lease_is_written_and_reads_back() {
        let now =
            Now { wall: WallTime::from_secs(1_010), boot: BootTime::from_boot(Duration::from_secs(110)) };
        for source in ["192.0.2.7", "2001:db8::7"] {
            for from_port in [None, Some(40_000)] {
                let lease = lease(source, from_port);
                let family = Family::of(lease.key.source);
                for (entry, &port) in Entry::of(&lease).zip(&lease.ports) {
                    let Element { set, key, comment, .. } = entry.record(&lease, Duration::from_secs(20));
                    assert_eq!(set, sets::leases(family));
                    for (left, until) in [(60, 1_031), (5, 1_015)] {
                        let held = Held {
                            key: key.clone(),
                            left: Some(Duration::from_secs(left)),
                            comment: comment.clone(),
                        };
                        let found = Found::Grant {
                            key: lease.key.clone(),
                            id: lease.id,
                            port,
                            from: now.wall.before(EARLIER),
                            until: WallTime::from_secs(until),
                        };
                        assert_eq!(read_lease(family, &held, now), Some(found), "the earlier end counts");
                    }
                }
            }
        }
    }

    #[test]
    fn a_session_is_written_and_reads_back() {
        for (local, remote) in
            [("192.0.2.1:22", "198.51.100.7:40000"), ("[2001:db8::1]:22", "[2001:db8::7]:40000")]
        {
            let session = Session { local: local.parse().unwrap(), remote: remote.parse().unwrap() };
            let Element { key, .. } = standing(&session);
            let held = Held { key, left: None, comment: None };
            let family = Family::of(session.remote.ip());
            assert_eq!(read_standing(family, &held), Some(Found::Standing(session)));
        }
    }

    #[test]
    fn an_element_ends_at_a_full_second_and_never_early() {
        let lease = lease("192.0.2.7", None);
        assert_eq!(end(&lease).since(lease.ends), Duration::from_millis(750));
        assert_eq!(millis(Duration::ZERO), 1, "zero would be for ever");
    }

    #[test]
    fn what_others_write_is_no_lease() {
        let lease = lease("192.0.2.7", None);
        let now = Now { wall: lease.from, boot: lease.ends };
        let record = Entry::of(&lease).next().unwrap().record(&lease, Duration::ZERO);
        let held = |comment: Option<&str>, key: &[u8]| Held {
            key: key.to_vec(),
            left: Some(Duration::from_secs(1)),
            comment: comment.map(ToOwned::to_owned),
        };
        for comment in
            [None, Some(""), Some("alice:ssh"), Some("alice:ssh:soon"), Some(":ssh:2026-11-22T10:00:00Z")]
        {
            assert_eq!(read_lease(Family::V4, &held(comment, &record.key), now), None, "{comment:?}");
        }
        for length in 0..record.key.len() {
            let held = held(record.comment.as_deref(), &record.key[..length]);
            assert_eq!(read_lease(Family::V4, &held, now), None, "{length}");
        }
    }

    #[test]
    fn many_elements_share_few_messages() {
        let session = |port| Session {
            local: "192.0.2.1:22".parse().unwrap(),
            remote: SocketAddr::new("192.0.2.7".parse().unwrap(), port),
        };
        let elements: Vec<_> = (1..=5_000).map(|port| standing(&session(port))).collect();
        let messages = fill(&elements);
        assert!(messages.len() < 10, "{}", messages.len());
    }
}
