//! Sessions that stand when the guard goes up, asked of the kernel (`sock_diag`): connection tracking may never have
//! seen them, and arming must not cut anybody.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagMessage, constants::IPPROTO_TCP};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use postern_proto::{Port, Protocol};

use super::guard::Session;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The established TCP sessions to these ports of this host, both families.
///
/// # Errors
/// When the kernel does not answer: without the list, arming could cut somebody.
pub(crate) fn standing(ports: &[Port]) -> io::Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for family in [AF_INET, AF_INET6] {
        established(family, |session| {
            let port = session.local.port();
            if ports.iter().any(|guarded| guarded.protocol == Protocol::Tcp && guarded.number.get() == port) {
                sessions.push(session);
            }
        })?;
    }
    Ok(sessions)
}

/// Hands over every established TCP session of one address family.
fn established(family: u8, mut each: impl FnMut(Session)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(family), 0)?;
    loop {
        let mut received = Vec::with_capacity(RECEIVE_BUFFER);
        socket.recv(&mut received, 0)?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length =
                usize::try_from(message.header.length).map_err(io::Error::other)?.next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let id = &response.header.socket_id;
                    each(Session {
                        local: SocketAddr::new(plain(id.source_address), id.source_port),
                        remote: SocketAddr::new(plain(id.destination_address), id.destination_port),
                    });
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(family: u8) -> Vec<u8> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        // A session that one side has ended still has something to carry to the other.
        states: StateFlags::ESTABLISHED
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT,
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// A dual-stack socket's IPv4 peers appear as mapped addresses; their packets do not.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn a_session_of_either_family_is_found_by_its_port() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let host = if address.starts_with("[::1]") { "::1" } else { "127.0.0.1" };
            let client = TcpStream::connect((host, port)).unwrap();
            let _server = listener.accept().unwrap();
            let guarded = |protocol| Port { protocol, number: NonZeroU16::new(port).unwrap() };
            let session =
                Session { local: client.peer_addr().unwrap(), remote: client.local_addr().unwrap() };
            assert_eq!(standing(&[guarded(Protocol::Tcp)]).unwrap(), [session], "{address}");
            assert_eq!(standing(&[guarded(Protocol::Udp)]).unwrap(), []);
        }
    }
}
