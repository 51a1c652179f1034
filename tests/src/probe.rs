//! What a port shows to whoever connects, and a server that shows something.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::netns::{Family, Host};
use crate::wait::{LONG, wait_for};

/// How long an answer may take on links as short as these, with every core busy. Shorter than the second after which
/// TCP would send its SYN again, so that one probe is one packet.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// What a TCP port shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It accepts.
    Open,
    /// It answers with a reset, or with the word that there is no such port.
    Refused,
    /// Somebody answers that it must not be reached.
    Prohibited,
    /// It does not answer.
    Nothing,
}

/// Sends one SYN to a port and says what came of it.
///
/// # Errors
/// When the probe itself fails.
pub fn probe(from: &Host, to: SocketAddr) -> Result<Seen> {
    probe_bound(from, None, to)
}

/// [`probe`] from one of a host's addresses.
///
/// # Errors
/// When the probe itself fails.
pub fn probe_bound(from: &Host, address: Option<IpAddr>, to: SocketAddr) -> Result<Seen> {
    answer(&from.enter(|| syn(address, to))??, to)
}

/// [`probe`] from this port of a host's own address; it can be taken again at once.
///
/// # Errors
/// When the probe itself fails.
pub fn probe_from_port(from: &Host, port: u16, to: SocketAddr) -> Result<Seen> {
    let own = SocketAddr::new(from.ip(Family::of(to.ip())), port);
    let socket = from.enter(|| dial(Some(own), to))??;
    // What it opens is reset, and leaves nothing behind.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    answer(&socket, to)
}

fn answer(socket: &OwnedFd, to: SocketAddr) -> Result<Seen> {
    let answer = Timespec::try_from(PATIENCE)?;
    poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&answer))?;
    progress(socket).with_context(|| format!("connect to {to}"))
}

/// Begins to connect, which sends a SYN, and does not wait.
///
/// # Errors
/// When there is no route, no port or no descriptor left.
pub fn syn(from: Option<IpAddr>, to: SocketAddr) -> io::Result<OwnedFd> {
    dial(from.map(|address| SocketAddr::new(address, 0)), to)
}

fn dial(own: Option<SocketAddr>, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(own) = own {
        bind(&socket, &own)?;
    }
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// What a socket from [`syn`] has met so far.
///
/// # Errors
/// When connecting failed otherwise than by an answer that says no, or for want of one.
pub fn progress(socket: &OwnedFd) -> io::Result<Seen> {
    match sockopt::socket_error(socket)? {
        Err(Errno::CONNREFUSED) => return Ok(Seen::Refused),
        // ICMP's "administratively prohibited", in IPv4 and in IPv6.
        Err(Errno::HOSTUNREACH | Errno::ACCESS) => return Ok(Seen::Prohibited),
        Err(error) => return Err(error.into()),
        Ok(()) => {}
    }
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(Seen::Open),
        Err(Errno::NOTCONN) => Ok(Seen::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// To how many of a host's addresses a port is open: all of them try at once.
///
/// # Errors
/// When the probe itself fails.
pub fn open_to(from: &Host, addresses: &[IpAddr], to: SocketAddr) -> Result<usize> {
    let dial = || addresses.iter().map(|&address| syn(Some(address), to)).collect::<io::Result<Vec<_>>>();
    let (dialled, sockets) = (Instant::now(), from.enter(dial)??);
    wait_for("an answer to everybody, or none", LONG, || {
        let seen = sockets.iter().map(progress).collect::<io::Result<Vec<_>>>()?;
        let open = seen.iter().filter(|seen| **seen == Seen::Open).count();
        Ok((open == addresses.len() || dialled.elapsed() > PATIENCE).then_some(open))
    })
}

/// Sends SYNs until one is answered, and gives how long after `since` that one was sent; `None` when none is answered for
/// `limit`. A dropped SYN is sent again only after a second, so each attempt is a socket of its own, and stays open while
/// later ones are under way. To be called on the host itself.
///
/// # Errors
/// When the port refuses, or the probe itself fails.
pub fn first_through(
    from: IpAddr,
    to: SocketAddr,
    since: Instant,
    every: Duration,
    limit: Duration,
) -> Result<Option<Duration>> {
    let mut attempts: Vec<(Duration, OwnedFd)> = Vec::new();
    while since.elapsed() < limit {
        let sent = since.elapsed();
        attempts.push((sent, syn(Some(from), to)?));
        thread::sleep(every);
        for (sent, socket) in &attempts {
            match progress(socket)? {
                Seen::Open => return Ok(Some(*sent)),
                seen => ensure!(seen == Seen::Nothing, "{to} shows {seen:?}"),
            }
        }
    }
    Ok(None)
}

/// A TCP connection from a host, for a test that talks through it.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When the port does not accept.
    pub fn open(from: &Host, to: SocketAddr) -> Result<Self> {
        let stream = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE))??;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a line to an [`Echo`] and waits for it to come back.
    ///
    /// # Errors
    /// When it does not for `limit`, or the connection is broken.
    pub fn echoes(&mut self, line: &str, limit: Duration) -> Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut echoed = String::new();
        self.stream.read_line(&mut echoed)?;
        if echoed.trim_end() != line {
            bail!("sent {line:?}, got {echoed:?}");
        }
        Ok(())
    }
}

/// A TCP server on a host that sends back what it gets, on a port of both families.
pub struct Echo {
    listener: TcpListener,
}

impl Echo {
    /// Listens.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
        let accepting = listener.try_clone()?;
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                thread::spawn(move || echo(&stream));
            }
        });
        Ok(Self { listener })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Wakes the thread that accepts. It fails only when the listener is broken, and then the thread has ended.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

/// Ends with the connection, however that ends.
fn echo(stream: &TcpStream) {
    let (mut from, mut to) = (stream, stream);
    let _ = io::copy(&mut from, &mut to);
    let _ = stream.shutdown(Shutdown::Both);
}

/// A UDP socket on a host, bound to one of its addresses, or to any.
///
/// # Errors
/// When it cannot be bound.
pub fn udp(host: &Host, from: IpAddr) -> Result<UdpSocket> {
    host.enter(|| UdpSocket::bind((from, 0)))?.with_context(|| format!("bind to {from}"))
}

/// Probes until a port shows `wanted`.
///
/// # Errors
/// When it did not for as long as anything takes.
pub fn wait_to_see(from: &Host, to: SocketAddr, wanted: Seen) -> Result<()> {
    wait_for(&format!("{to} to show {wanted:?}"), LONG, || Ok((probe(from, to)? == wanted).then_some(())))
}
