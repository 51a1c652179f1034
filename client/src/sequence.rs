//! Sends a classic sequence: touches ports, one after the other, the way knockd's own client does.
//!
//! A TCP step is one SYN, a UDP step one datagram with one byte in it. The socket of a SYN is closed at once: the kernel
//! repeats a SYN that nobody answers, and to knockd a repeated one is a wrong step. It forgets a socket that is closed
//! before the answer has come. Every step leaves from a socket of its own, so that no ICMP error that an earlier one drew
//! is reported for a later one.
//!
//! Nothing on the wire says which step comes first but the order of arrival. So steps are spaced.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postern_proto::sequence::Steps;
use postern_proto::{Port, Protocol};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use tokio::time::sleep;

use crate::error::Error;
use crate::knock::connected;

/// Between two steps: longer than one packet overtakes another on parallel paths, or waits for a radio link to repeat it.
/// The longest sequence takes 3 seconds then, and knockd waits 25 for it.
pub(crate) const DELAY: Duration = Duration::from_millis(100);

/// What a UDP step carries; knock sends the same.
const DATAGRAM: [u8; 1] = [0];

/// What became of a sequence.
pub(crate) struct Sent {
    /// The addresses that every step left for.
    pub(crate) addresses: Vec<IpAddr>,
    /// For each other address what did not leave for it, and why: the address, or the first such step.
    pub(crate) failed: Vec<(String, io::Error)>,
}

/// Sends the whole sequence to each address, one after the other: two addresses may belong to one host, which would see
/// the steps mixed if they were sent side by side. `steps` gives them for an address, when it is its turn; `hitting` is
/// told of each step just before it leaves.
///
/// # Errors
/// [`Error::Unsent`] when it left for none of them.
pub(crate) async fn send(
    addresses: impl IntoIterator<Item = IpAddr>,
    mut steps: impl FnMut(IpAddr) -> io::Result<Steps>,
    delay: Duration,
    mut hitting: impl FnMut(Protocol, SocketAddr),
) -> Result<Sent, Error> {
    let mut sent = Sent { addresses: Vec::new(), failed: Vec::new() };
    for address in addresses {
        if !sent.addresses.is_empty() {
            sleep(delay).await;
        }
        match steps(address) {
            Ok(steps) => match send_to(address, &steps, delay, &mut hitting).await {
                Ok(()) => sent.addresses.push(address),
                Err((to, error)) => sent.failed.push((to.to_string(), error)),
            },
            Err(error) => sent.failed.push((address.to_string(), error)),
        }
    }
    if sent.addresses.is_empty() {
        return Err(Error::Unsent(sent.failed.iter().map(|(to, error)| format!("{to}: {error}")).collect()));
    }
    Ok(sent)
}

async fn send_to(
    address: IpAddr,
    steps: &Steps,
    delay: Duration,
    hitting: &mut impl FnMut(Protocol, SocketAddr),
) -> Result<(), (SocketAddr, io::Error)> {
    for (index, &Port { protocol, number }) in steps.as_slice().iter().enumerate() {
        if index > 0 {
            sleep(delay).await;
        }
        let to = SocketAddr::new(address, number.get());
        hitting(protocol, to);
        let step = match protocol {
            Protocol::Tcp => syn(to),
            Protocol::Udp => connected(to).and_then(|socket| socket.send(&DATAGRAM).map(drop)),
        };
        step.map_err(|error| (to, error))?;
    }
    Ok(())
}

/// Begins to connect, and gives it up.
fn syn(to: SocketAddr) -> io::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    ioctl_fionbio(&socket, true)?;
    match connect(&socket, &to) {
        // Refused: the SYN was answered already.
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
