//! Random ports that nothing else is known or heard by.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::num::NonZeroU16;
use std::ops::Range;

use anyhow::Context;

use super::random;

/// Ports are drawn from here: below what Linux gives to outgoing connections, above what needs privileges.
pub(crate) const DRAWN: Range<u16> = 10_000..32_768;

const SERVICES: &str = "/etc/services";
/// The sockets of this host, whatever their state.
const SOCKETS: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

/// The ports that services are known by; none where there is no such file.
pub(crate) fn known() -> anyhow::Result<BTreeSet<u16>> {
    Ok(services(&read(SERVICES)?))
}

/// The ports that a socket of this host is bound to, for TCP or UDP, IPv4 or IPv6.
pub(crate) fn in_use() -> anyhow::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for kind in SOCKETS {
        ports.extend(bound(&read(&format!("/proc/thread-self/net/{kind}"))?)?);
    }
    Ok(ports)
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

/// The local ports in a file like `/proc/net/tcp`: `0: 0100007F:1F90 ...`, under a line of titles.
fn bound(text: &str) -> io::Result<BTreeSet<u16>> {
    let port = |line: &str| {
        let local = line.split_whitespace().nth(1)?;
        u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
    };
    let unread = |line: &str| io::Error::other(format!("the kernel's list of sockets has the line {line:?}"));
    text.lines().skip(1).map(|line| port(line).ok_or_else(|| unread(line))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

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
    fn a_port_is_drawn_that_is_not_taken_and_once() {
        let last = DRAWN.end - 1;
        let taken: BTreeSet<u16> = DRAWN.filter(|&port| port != last).collect();
        let mut free = free(&taken);
        assert_eq!(draw(&mut free).unwrap().get(), last);
        assert!(draw(&mut free).is_err());
    }
}
