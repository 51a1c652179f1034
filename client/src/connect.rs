//! Connects through a door that is about to open.
//!
//! The guard drops what comes too early, and the kernel repeats a dropped SYN only after a second. So attempts with
//! fresh sockets follow one another at growing gaps, none waiting for the ones before it: on a fast path a door that
//! opens within a few milliseconds is found about as fast, and on a slow one an early attempt is not given up before
//! its answer can be back. The first to succeed wins, and the others are dropped unfinished.
//!
//! Each attempt that succeeds and is not needed is one that sshd sees go before it has logged in, and newer ones hold that
//! against the address. So where a gate answers, its answer is waited for with no more than one attempt under way.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// From the knock to the first attempt: a gate on the same network opens in about this time.
const FIRST_GAP: Duration = Duration::from_millis(5);
/// The same where the gate answers: most answers are there before, and on a slow path this saves a round trip.
const FIRST_GAP_ANSWERED: Duration = Duration::from_millis(20);
/// From one attempt to the next at least, where the gate answers.
const GAP_ANSWERED: Duration = Duration::from_millis(300);
/// What an attempt may take longer than a knock and its answer.
const JITTER: Duration = Duration::from_millis(5);
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

/// The same, where an answer that took so long says that it is open.
///
/// # Errors
/// [`NotOpen`] at the deadline.
pub(crate) async fn connect_opened(
    peer: SocketAddr,
    round_trip: Duration,
    deadline: Instant,
) -> Result<TcpStream, NotOpen> {
    let mut attempts = Attempts::awaiting_answer(vec![peer]);
    attempts.at_once(peer, round_trip);
    match timeout_at(deadline, attempts.connected()).await {
        Ok((stream, _)) => Ok(stream),
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
    /// Makes one attempt at once, where the door is said to be open, by an answer that took so long.
    fn at_once(&mut self, peer: SocketAddr, round_trip: Duration);
    /// The first that succeeds. It may be dropped and asked again.
    async fn connected(&mut self) -> (TcpStream, SocketAddr);
    /// Why none did.
    fn give_up(self) -> NotOpen;
}

/// Attempts from any port, which overtake one another.
pub(crate) struct Attempts {
    to: Vec<SocketAddr>,
    under_way: JoinSet<Attempt>,
    /// When the last to each address began, unless it has failed.
    begun: BTreeMap<SocketAddr, Instant>,
    gap: Duration,
    next: Instant,
    /// Where the door is said to be open, and when it is tried unless an attempt that is under way succeeds.
    called: Option<(SocketAddr, Instant)>,
    last: Option<io::Error>,
}

impl Attempts {
    /// To all of these addresses, beginning soon.
    pub(crate) fn new(to: Vec<SocketAddr>) -> Self {
        Self::beginning(to, FIRST_GAP, FIRST_GAP * 3 / 2)
    }

    /// The same where an answer says when to begin, unless it is lost.
    pub(crate) fn awaiting_answer(to: Vec<SocketAddr>) -> Self {
        Self::beginning(to, FIRST_GAP_ANSWERED, GAP_ANSWERED)
    }

    fn beginning(to: Vec<SocketAddr>, first: Duration, gap: Duration) -> Self {
        let (under_way, begun, next) = (JoinSet::new(), BTreeMap::new(), Instant::now() + first);
        Self { to, under_way, begun, gap, next, called: None, last: None }
    }

    fn begin(&mut self, peer: SocketAddr) {
        self.begun.insert(peer, Instant::now());
        self.under_way.spawn(async move {
            let unanswered = |_| Err(io::ErrorKind::TimedOut.into());
            (peer, timeout(ATTEMPT_LIMIT, TcpStream::connect(peer)).await.unwrap_or_else(unanswered))
        });
    }

    fn judge(&mut self, ended: Result<Attempt, JoinError>) -> Option<(TcpStream, SocketAddr)> {
        let (peer, error) = match ended {
            Ok((peer, Ok(stream))) if !is_own_echo(&stream, peer) => return Some((stream, peer)),
            Ok((peer, Ok(_))) => (peer, None),
            Ok((peer, Err(error))) => (peer, Some(error)),
            Err(_) => return None,
        };
        self.begun.remove(&peer);
        if let Some((called, when)) = &mut self.called
            && *called == peer
        {
            *when = Instant::now();
        }
        // Unanswered in time; the next attempt is on its way.
        self.last = error.filter(|error| error.kind() != io::ErrorKind::TimedOut).or(self.last.take());
        None
    }
}

impl Connecting for Attempts {
    /// Or a little later: an attempt that is under way and met the open door is connected within the same time.
    fn at_once(&mut self, peer: SocketAddr, round_trip: Duration) {
        let now = Instant::now();
        let due = self.begun.get(&peer).map_or(now, |begun| *begun + round_trip + JITTER);
        self.called = Some((peer, due));
        self.gap = GAP_ANSWERED.max(round_trip * 2);
        self.next = due.max(now) + self.gap;
    }

    async fn connected(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let (next, called) = (self.next, self.called);
            tokio::select! {
                Some(ended) = self.under_way.join_next() => {
                    if let Some(connected) = self.judge(ended) {
                        return connected;
                    }
                }
                () = sleep_until(called.map_or(next, |(_, due)| due)), if called.is_some() => {
                    if let Some((peer, _)) = self.called.take() {
                        self.begin(peer);
                    }
                }
                () = sleep_until(next) => {
                    for peer in self.to.clone() {
                        self.begin(peer);
                    }
                    self.next = Instant::now() + self.gap;
                    self.gap = (self.gap * 3 / 2).min(LAST_GAP.max(self.gap));
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
    async fn where_an_answer_calls_for_it_there_is_one_attempt_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let connections = async |attempts: &mut Attempts| {
            attempts.connected().await;
            listener.accept().await.unwrap();
            timeout(Duration::from_millis(50), listener.accept()).await.is_ok()
        };
        let mut attempts = Attempts::awaiting_answer(vec![peer]);
        attempts.at_once(peer, Duration::from_millis(1));
        assert!(!connections(&mut attempts).await, "a second connection was made");
        // One that is under way already is given its time.
        let mut attempts = Attempts::awaiting_answer(vec![peer]);
        attempts.begin(peer);
        attempts.at_once(peer, Duration::from_hours(1));
        assert!(!connections(&mut attempts).await, "a second connection was made");
    }

    #[tokio::test]
    async fn one_that_is_under_way_and_fails_gives_way_to_the_one_that_is_called_for() {
        let (socket, peer) = closed();
        let mut attempts = Attempts::awaiting_answer(vec![peer]);
        attempts.begin(peer);
        // It runs now, and is refused before the door opens; that is noticed behind the answer.
        tokio::task::yield_now().await;
        let _listener = socket.listen(1).unwrap();
        attempts.at_once(peer, Duration::from_hours(1));
        let connected = timeout(Duration::from_secs(20), attempts.connected()).await;
        assert_eq!(connected.expect("it is tried at once").1, peer);
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
