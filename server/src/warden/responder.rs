//! Sends answers to clients (SPEC 9): sealed by the front, which can send nothing to anybody itself, and carried from the knock
//! port and the address that the knock was sent to.
//!
//! A front that was taken over could have it send what it likes: 256 bytes at a time, from a knock port of this host, to one
//! address, and no oftener than a client may order (`pace`). Nothing is received here: the kernel drops what comes for these
//! sockets.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::{debug, warn};

use super::firewall::Family;
use crate::address::{Way, is_usable_source};
use crate::order::SealedAnswer;

/// The sockets that answers leave from; none where clients are not answered.
#[derive(Default)]
pub(crate) struct Responder {
    sockets: Vec<Bound>,
    /// Whether it was said that answers may not leave.
    has_warned: AtomicBool,
}

/// A socket at a knock port, for one address family.
struct Bound {
    family: Family,
    port: NonZeroU16,
    socket: UdpSocket,
}

impl Responder {
    /// Takes these ports, as far as nobody else has them. Below 1024 that needs a capability.
    pub(crate) fn open(ports: &[NonZeroU16], families: &[Family]) -> Self {
        let mut sockets = Vec::new();
        for port in ports {
            for family in families {
                match bind(*family, *port) {
                    Ok(socket) => sockets.push(Bound { family: *family, port: *port, socket }),
                    Err(error) => warn!(%port, ?family, "knocks at this port are not answered: {error}"),
                }
            }
        }
        Self { sockets, ..Self::default() }
    }

    /// Sends an answer, if it can go where it is for. Where it cannot leave, its client sends another knock.
    pub(crate) fn send(&self, answer: &SealedAnswer) {
        let Way { from, to } = answer.way;
        let Some(socket) = self.socket(to).filter(|_| is_usable_source(from.ip())) else { return };
        match send_from(socket, to.ip(), from, &answer.bytes) {
            Ok(()) => debug!(client = %from, "answered"),
            Err(error)
                if error.kind() != io::ErrorKind::PermissionDenied
                    || self.has_warned.swap(true, Ordering::Relaxed) =>
            {
                debug!(client = %from, "not answered: {error}");
            }
            Err(error) => warn!(
                "an answer could not be sent: {error}; let UDP out from the knock ports, or set `answer = false` in [gate] (said once)"
            ),
        }
    }

    fn socket(&self, to: SocketAddr) -> Option<&UdpSocket> {
        let is_at = |bound: &&Bound| bound.port.get() == to.port() && bound.family == Family::of(to.ip());
        self.sockets.iter().find(is_at).map(|bound| &bound.socket)
    }
}

/// A socket at a port of every address of this host.
fn bind(family: Family, port: NonZeroU16) -> io::Result<UdpSocket> {
    let (domain, any): (_, IpAddr) = match family {
        Family::V4 => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    // Whoever has this port at an address of his own, as a resolver at 127.0.0.53, keeps it.
    socket.set_reuse_address(true)?;
    socket.attach_filter(&[NOTHING])?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, port.get()).into())?;
    Ok(socket.into())
}

/// A program of the classic packet filter that takes no byte of any packet.
const NOTHING: SockFilter = SockFilter::new(RETURN, 0, 0, 0);
const RETURN: u16 = 0x06;

fn send_from(socket: &UdpSocket, own: IpAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let (data, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(to));
    let send = |own: ControlMessage<'_>| {
        sendmsg(socket.as_raw_fd(), &data, &[own], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL, Some(&to))
    };
    match own {
        IpAddr::V4(own) => {
            let address = |address: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
            let (ipi_spec_dst, ipi_addr) = (address(own), address(Ipv4Addr::UNSPECIFIED));
            send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr }))
        }
        IpAddr::V6(own) => {
            let ipi6_addr = libc::in6_addr { s6_addr: own.octets() };
            send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 }))
        }
    }?;
    Ok(())
}
