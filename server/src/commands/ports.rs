//! Random ports that nothing else is known or heard by; and what is heard.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::num::NonZeroU16;
use std::ops::{Range, RangeInclusive};

use anyhow::{Context, bail};
use postern_proto::Port;
use postern_proto::sequence::PortRange;

use super::random;

/// Ports are drawn from here: below what Linux gives to outgoing connections, above what needs privileges.
pub(crate) const DRAWN: Range<u16> = 10_000..32_768;

const SERVICES: &str = "/etc/services";
/// The sockets of this host, whatever their state.
const SOCKETS: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];
/// The states of a socket that anybody reaches: one of TCP that listens, one of UDP that is not connected.
const HEARING: [u8; 2] = [0x0a, 0x07];
/// How many ports a drawn row has: as many as there can be.
const ROWS: [u16; 2] = [10_000, 1_000];

/// The ports that services are known by; none where there is no such file.
pub(crate) fn known() -> anyhow::Result<BTreeSet<u16>> {
    Ok(services(&read(SERVICES)?))
}

/// The ports that a socket of this host is bound to, for TCP or UDP, IPv4 or IPv6.
pub(crate) fn in_use() -> anyhow::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for kind in SOCKETS {
        ports.extend(bound(&sockets(kind)?)?.into_iter().map(|(port, _)| port));
    }
    Ok(ports)
}

/// The ports of a range on which something listens, at whatever address.
pub(crate) fn heard_in(range: PortRange) -> anyhow::Result<BTreeSet<Port>> {
    let protocol = range.protocol();
    let mut heard = BTreeSet::new();
    for kind in [protocol.as_str().to_owned(), format!("{}6", protocol.as_str())] {
        let hearing = bound(&sockets(&kind)?)?.into_iter().filter(|(_, state)| HEARING.contains(state));
        let ports = hearing.filter_map(|(port, _)| Some(Port { protocol, number: NonZeroU16::new(port)? }));
        heard.extend(ports.filter(|&port| range.contains(port)));
    }
    Ok(heard)
}

/// The ports to draw from that are not taken.
pub(crate) fn free(taken: &BTreeSet<u16>) -> Vec<NonZeroU16> {
    DRAWN.filter(|port| !taken.contains(port)).filter_map(NonZeroU16::new).collect()
}

/// Draws a random port, which is free no more.
pub(crate) fn draw(free: &mut Vec<NonZeroU16>) -> anyhow::Result<NonZeroU16> {
    // So many more numbers than ports that the rest of the division favours none.
    let drawn = u64::from_be_bytes(random()?).checked_rem(free.len() as u64);
    let index =
        drawn.with_context(|| format!("no port is free from {} to {}", DRAWN.start, DRAWN.end - 1))?;
    Ok(free.swap_remove(usize::try_from(index)?))
}

/// Draws ports in a row of which none is taken: of the longest rows that there are, one at random.
pub(crate) fn draw_row(taken: &BTreeSet<u16>) -> anyhow::Result<RangeInclusive<NonZeroU16>> {
    for length in ROWS {
        let last = |first: NonZeroU16| first.saturating_add(length - 1);
        let is_free = |first: &NonZeroU16| {
            last(*first).get() < DRAWN.end && taken.range(first.get()..=last(*first).get()).next().is_none()
        };
        let firsts = DRAWN.step_by(length.into()).filter_map(NonZeroU16::new);
        let mut free: Vec<_> = firsts.filter(is_free).collect();
        if !free.is_empty() {
            let first = draw(&mut free)?;
            return Ok(first..=last(first));
        }
    }
    bail!("no {} ports in a row are free: choose a range with --range", ROWS[1])
}

/// The kernel's list of one kind of sockets.
fn sockets(kind: &str) -> anyhow::Result<String> {
    read(&format!("/proc/thread-self/net/{kind}"))
}

/// A file's text; none when it is not there, as without IPv6.
fn read(path: &str) -> anyhow::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

/// The ports in a file like `/etc/services`: `name  port/protocol  aliases  # comment`.
fn services(text: &str) -> BTreeSet<u16> {
    let port = |line: &str| line.split_whitespace().nth(1)?.split('/').next()?.parse().ok();
    text.lines().filter_map(port).collect()
}

/// The local ports in a file like `/proc/net/tcp`, with the states of their sockets: `0: 0100007F:1F90 00000000:0000 0A ...`,
/// under a line of titles.
fn bound(text: &str) -> io::Result<Vec<(u16, u8)>> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        Some((port, u8::from_str_radix(state, 16).ok()?))
    };
    let unread = |line: &str| io::Error::other(format!("the kernel's list of sockets has the line {line:?}"));
    text.lines().skip(1).map(|line| port(line).ok_or_else(|| unread(line))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use postern_proto::Protocol;

    use super::*;

    #[test]
    fn the_ports_of_services_are_known() {
        let text = "# comment 1/tcp\n\nssh\t\t22/tcp\t\t# SSH\ndomain  53/udp nameserver\nodd\n";
        assert_eq!(services(text), BTreeSet::from([22, 53]));
    }

    #[test]
    fn a_port_that_something_listens_on_is_in_use() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            let in_use = in_use().unwrap();
            for port in [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()] {
                assert!(in_use.contains(&port), "{address}: {port}");
            }
        }
        assert!(bound("titles\n what is this").is_err());
    }

    #[test]
    fn what_listens_is_heard_and_what_only_connects_is_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            let outgoing = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
            for (protocol, at, is_heard) in [
                (Protocol::Tcp, tcp.local_addr().unwrap(), true),
                (Protocol::Udp, udp.local_addr().unwrap(), true),
                (Protocol::Tcp, outgoing.local_addr().unwrap(), false),
            ] {
                let number = NonZeroU16::new(at.port()).unwrap();
                let heard = heard_in(PortRange::new(protocol, number..=number).unwrap()).unwrap();
                assert_eq!(heard.contains(&Port { protocol, number }), is_heard, "{at}");
            }
        }
    }

    #[test]
    fn a_row_is_drawn_of_which_nothing_is_taken() {
        let row = |taken: &[u16]| {
            let row = draw_row(&taken.iter().copied().collect()).map(RangeInclusive::into_inner);
            row.map(|(first, last)| (first.get(), last.get())).map_err(|error| error.to_string())
        };
        assert_eq!(row(&[10_050]), Ok((20_000, 29_999)));
        assert_eq!(row(&[29_999]), Ok((10_000, 19_999)));
        let thousands: Vec<u16> =
            (10..32).filter(|&thousand| thousand != 17).map(|t| t * 1000 + 500).collect();
        assert_eq!(row(&thousands), Ok((17_000, 17_999)));
        assert!(row(&[&thousands[..], &[17_000]].concat()).unwrap_err().contains("--range"));
    }

    #[test]
    fn a_port_is_drawn_that_is_not_taken_and_once() {
        let last = DRAWN.end - 1;
        let taken: BTreeSet<u16> = DRAWN.filter(|&port| port != last).collect();
        let mut free = free(&taken);
        assert_eq!(draw(&mut free).unwrap().get(), last);
        assert!(draw(&mut free).is_err());
    }
}
