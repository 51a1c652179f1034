//! Connects from one source port that the knock has stated, so that the grant is for this one connection, and for nobody
//! else behind the same address translation.
//!
//! The port is taken before it is stated, and held to the end. Two attempts from it to one address would be one
//! connection to the kernel: so they follow one another, each with more time than the one before.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::connect::{Connecting, NotOpen};
use crate::knock::routed;

/// How often another port is looked for, when one is free at some of this host's addresses only.
const TRIES: usize = 16;
/// How long the first attempt may take that no answer has called for. The next have twice as long each, up to
/// [`LAST_LIMIT`].
const FIRST_LIMIT: Duration = Duration::from_millis(250);
/// How long an attempt may take at the most: the kernel repeats a lost SYN after one second.
const LAST_LIMIT: Duration = Duration::from_secs(4);
/// From the end of an attempt to the next.
const GAP: Duration = Duration::from_millis(50);

/// A TCP port that nobody else of this host takes, at each local address from which there is a way to one of the peers.
pub(crate) struct SourcePort {
    number: NonZeroU16,
    /// Bound, and never connected.
    held: Vec<(IpAddr, TcpSocket)>,
}

impl SourcePort {
    /// Takes one.
    ///
    /// # Errors
    /// When there is no way to any of the peers, or no such port.
    pub(crate) fn take(peers: &[SocketAddr]) -> io::Result<Self> {
        let mut local = Vec::new();
        let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for &peer in peers {
            match routed(peer) {
                Ok(address) if !local.contains(&address) => local.push(address),
                Ok(_) => {}
                Err(unreachable) => error = unreachable,
            }
        }
        let Some((&first, others)) = local.split_first() else { return Err(error) };
        for _ in 0..TRIES {
            let socket = bound(first, 0)?;
            let number = socket.local_addr()?.port();
            let others = others.iter().map(|&address| Ok((address, bound(address, number)?)));
            match (others.collect::<io::Result<Vec<_>>>(), NonZeroU16::new(number)) {
                (Ok(mut held), Some(number)) => {
                    held.push((first, socket));
                    return Ok(Self { number, held });
                }
                (Err(taken), _) => error = taken,
                (Ok(_), None) => {}
            }
        }
        Err(error)
    }

    pub(crate) const fn number(&self) -> NonZeroU16 {
        self.number
    }

    /// A socket at the port, to connect to a peer with.
    fn socket(&self, peer: SocketAddr) -> io::Result<TcpSocket> {
        let local = routed(peer)?;
        if self.held.iter().all(|(held, _)| *held != local) {
            // The way there has changed since.
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        bound(local, self.number.get())
    }
}

/// Attempts from one port, one at a time.
pub(crate) struct ExactAttempts {
    from: SourcePort,
    to: Vec<SocketAddr>,
    turn: usize,
    limit: Duration,
    next: Instant,
    under_way: Option<Pin<Box<dyn Future<Output = Attempt> + Send>>>,
    last: Option<io::Error>,
}

/// What became of one.
type Attempt = (SocketAddr, io::Result<TcpStream>);

impl ExactAttempts {
    /// To these addresses in turn, beginning after this time.
    pub(crate) fn new(from: SourcePort, to: Vec<SocketAddr>, begin: Duration) -> Self {
        let next = Instant::now() + begin;
        Self { from, to, turn: 0, limit: FIRST_LIMIT, next, under_way: None, last: None }
    }

    fn begin(&mut self, peer: SocketAddr, limit: Duration) {
        let socket = self.from.socket(peer);
        self.under_way = Some(Box::pin(async move {
            let attempt = async { socket?.connect(peer).await };
            let unanswered = |_| Err(io::ErrorKind::TimedOut.into());
            (peer, timeout(limit, attempt).await.unwrap_or_else(unanswered))
        }));
    }
}

impl Connecting for ExactAttempts {
    fn at_once(&mut self, peer: SocketAddr, _: Duration) {
        // The one that was under way is dropped before: it may be to the same address.
        self.under_way = None;
        self.begin(peer, LAST_LIMIT);
    }

    async fn connected(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Some(attempt) = &mut self.under_way {
                let (peer, ended) = attempt.await;
                self.under_way = None;
                self.next = Instant::now() + GAP;
                match ended {
                    Ok(stream) => return (stream, peer),
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    Err(error) => self.last = Some(error),
                }
            } else {
                sleep_until(self.next).await;
                self.begin(self.to[self.turn % self.to.len()], self.limit);
                self.turn += 1;
                if self.turn.is_multiple_of(self.to.len()) {
                    self.limit = (self.limit * 2).min(LAST_LIMIT);
                }
            }
        }
    }

    fn give_up(self) -> NotOpen {
        NotOpen::because(self.last)
    }
}

/// Several sockets may be bound like this to one port, as long as none listens: one that holds it, and one that connects.
fn bound(address: IpAddr, port: u16) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind((address, port).into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn attempts_of_one_port_follow_one_another_until_the_door_opens() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let closed = bound(loopback.parse::<SocketAddr>().unwrap().ip(), 0).unwrap();
            let peer = closed.local_addr().unwrap();
            let port = SourcePort::take(&[peer]).unwrap();
            let number = port.number();
            let mut attempts = ExactAttempts::new(port, vec![peer], Duration::ZERO);
            let early = timeout(Duration::from_millis(200), attempts.connected()).await;
            assert!(early.is_err(), "nobody listens there");
            let listener = closed.listen(4).unwrap();
            let ((stream, to), accepted) = tokio::join!(attempts.connected(), listener.accept());
            assert_eq!((to, stream.local_addr().unwrap().port()), (peer, number.get()));
            assert_eq!(accepted.unwrap().1.port(), number.get());
        }
    }

    #[tokio::test]
    async fn an_attempt_that_is_called_for_comes_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let port = SourcePort::take(&[peer]).unwrap();
        let mut attempts = ExactAttempts::new(port, vec![peer], Duration::from_hours(1));
        attempts.at_once(peer, Duration::ZERO);
        // Again before it has begun: the first is dropped.
        attempts.at_once(peer, Duration::ZERO);
        assert_eq!(attempts.connected().await.1, peer);
    }

    #[tokio::test]
    async fn a_port_is_free_at_the_addresses_of_both_families() {
        let peers = ["127.0.0.1:9", "[::1]:9", "127.0.0.2:9"].map(|peer| peer.parse().unwrap());
        let port = SourcePort::take(&peers).unwrap();
        let held: Vec<_> = port.held.iter().map(|(_, socket)| socket.local_addr().unwrap()).collect();
        assert!(held.iter().all(|address| address.port() == port.number().get()), "{held:?}");
        assert!(held.iter().any(SocketAddr::is_ipv4) && held.iter().any(SocketAddr::is_ipv6));
    }
}
