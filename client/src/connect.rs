//! Connects through a door that is about to open.
//!
//! The guard drops what comes too early, and the kernel repeats a dropped SYN only after a second. So attempts with
//! fresh sockets follow one another at growing gaps, none waiting for the ones before it: on a fast path a door that
//! opens within a few milliseconds is found about as fast, and on a slow one an early attempt is not given up before
//! its answer can be back. The first to succeed wins, and the others are dropped unfinished.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// From the knock to the first attempt: a gate on the same network opens in about this time.
const FIRST_GAP: Duration = Duration::from_millis(5);
/// Between attempts at the most. With [`ATTEMPT_LIMIT`] it bounds how many are under way: fifteen an address.
const LAST_GAP: Duration = Duration::from_millis(500);
/// How long one attempt may take: several times the round trip of a slow path.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);

/// How long a port may take to answer that need not be opened first.
const FIRST_TRY: Duration = Duration::from_millis(300);

/// No connection while there was time, and why the last attempt that was answered at all failed.
#[derive(Debug)]
pub(crate) struct NotOpen(Option<io::Error>);

impl NotOpen {
    pub(crate) const fn because(last: Option<io::Error>) -> Self {
        Self(last)
    }

    /// Whether somebody said that nothing listens there.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

impl fmt::Display for NotOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(error) => error.fmt(f),
            None => f.pad("no answer"),
        }
    }
}

/// The first connection that any of the addresses accepts, and the address that did.
///
/// # Errors
/// [`NotOpen`] at the deadline.
pub(crate) async fn connect(
    to: &[SocketAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), NotOpen> {
    let mut attempts = Attempts::new(to.to_vec());
    match timeout_at(deadline, attempts.connected()).await {
        Ok(connected) => Ok(connected),
        Err(_) => Err(attempts.give_up()),
    }
}

/// A connection to one of the addresses that answers without being opened first.
pub(crate) async fn connect_if_open(to: &[SocketAddr]) -> Option<TcpStream> {
    let mut attempts = Attempts::new(Vec::new());
    for &peer in to {
        attempts.begin(peer);
    }
    let connected = async {
        while let Some(ended) = attempts.under_way.join_next().await {
            if let Some((stream, _)) = attempts.judge(ended) {
                return Some(stream);
            }
        }
        None
    };
    timeout(FIRST_TRY, connected).await.ok().flatten()
}

/// Attempts to connect.
pub(crate) trait Connecting {
    /// Makes one attempt at once, where the door is said to be open.
    fn at_once(&mut self, peer: SocketAddr);
    /// The first that succeeds. It may be dropped and asked again.
    async fn connected(&mut self) -> (TcpStream, SocketAddr);
    /// Why none did.
    fn give_up(self) -> NotOpen;
}

/// Attempts from any port, which overtake one another.
pub(crate) struct Attempts {
    to: Vec<SocketAddr>,
    under_way: JoinSet<Attempt>,
    gap: Duration,
    next: Instant,
    last: Option<io::Error>,
}

impl Attempts {
    /// To all of these addresses, beginning soon.
    pub(crate) fn new(to: Vec<SocketAddr>) -> Self {
        let (under_way, next) = (JoinSet::new(), Instant::now() + FIRST_GAP);
        Self { to, under_way, gap: FIRST_GAP, next, last: None }
    }

    fn begin(&mut self, peer: SocketAddr) {
        self.under_way.spawn(async move {
            let unanswered = |_| Err(io::ErrorKind::TimedOut.into());
            (peer, timeout(ATTEMPT_LIMIT, TcpStream::connect(peer)).await.unwrap_or_else(unanswered))
        });
    }

    fn judge(&mut self, ended: Result<Attempt, JoinError>) -> Option<(TcpStream, SocketAddr)> {
        match ended {
            Ok((peer, Ok(stream))) if !is_own_echo(&stream, peer) => return Some((stream, peer)),
            // Unanswered in time; the next attempt is on its way.
            Ok((_, Err(error))) if error.kind() == io::ErrorKind::TimedOut => {}
            Ok((_, Err(error))) => self.last = Some(error),
            _ => {}
        }
        None
    }
}

impl Connecting for Attempts {
    /// The others follow as at the beginning.
    fn at_once(&mut self, peer: SocketAddr) {
        self.begin(peer);
        self.gap = FIRST_GAP;
        self.next = Instant::now() + self.gap;
    }

    async fn connected(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let next = self.next;
            tokio::select! {
                Some(ended) = self.under_way.join_next() => {
                    if let Some(connected) = self.judge(ended) {
                        return connected;
                    }
                }
                () = sleep_until(next) => {
                    for peer in self.to.clone() {
                        self.begin(peer);
                    }
                    self.gap = (self.gap * 3 / 2).min(LAST_GAP);
                    self.next = Instant::now() + self.gap;
                }
            }
        }
    }

    fn give_up(self) -> NotOpen {
        NotOpen(self.last)
    }
}

/// What became of one attempt.
type Attempt = (SocketAddr, io::Result<TcpStream>);

/// On loopback, a socket that happens to get the port it connects to as its own is connected to itself (TCP's
/// simultaneous open), with nobody listening at all.
fn is_own_echo(stream: &TcpStream, peer: SocketAddr) -> bool {
    stream.local_addr().is_ok_and(|local| local == peer)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn deadline(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    /// A port at which nobody listens, and which nobody else can take.
    fn closed() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn a_port_that_opens_late_is_found() {
        let (socket, address) = closed();
        let late = async {
            sleep_until(deadline(200)).await;
            socket.listen(1).unwrap()
        };
        let (stream, _listener) =
            tokio::join!(connect(std::slice::from_ref(&address), deadline(10_000)), late);
        assert_eq!(stream.unwrap().1, address);
    }

    #[tokio::test]
    async fn any_of_the_addresses_will_do() {
        let (_socket, closed) = closed();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = [closed, open.local_addr().unwrap()];
        assert_eq!(connect(&to, deadline(10_000)).await.unwrap().1, to[1]);
    }

    #[tokio::test]
    async fn a_closed_port_is_given_up_at_the_deadline() {
        let (_socket, closed) = closed();
        let begin = Instant::now();
        let error = connect(&[closed], deadline(100)).await.unwrap_err();
        assert!(begin.elapsed() >= Duration::from_millis(100));
        assert_eq!(error.0.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
