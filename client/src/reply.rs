//! Listens for the answer to a knock.
//!
//! Only what opens under the client's answer key, for that very knock, is an answer (SPEC 9). Whatever else arrives is
//! forgotten as it comes, without a word and without bound: strangers can send as much as they like, and change nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postern_proto::{ANSWER_LEN, Answer, NoAnswer, Outcome, Request, Source, WallTime, answer};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};

use crate::clock::ClockOffset;
use crate::knock::{Keys, Knock};

/// How long an answer is waited for at one knock's socket: longer than any path takes.
const LISTEN: Duration = Duration::from_secs(10);
/// From one error of a socket to the next look at it.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// The answer to a knock, and what can be told from its way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Reply {
    /// Where the knock went, and the answer came from.
    pub to: SocketAddr,
    /// Where the knock left from, before any address translation.
    pub from: SocketAddr,
    /// Whom the knock asked to let in.
    pub source: Source,
    /// What the gate said.
    pub answer: Answer,
    /// How far the gate's clock is ahead of this host's.
    pub offset: ClockOffset,
    /// From sending the knock to receiving the answer.
    pub round_trip: Duration,
}

impl Reply {
    /// Until when what was asked for is open, by this host's clock.
    #[must_use]
    pub const fn until(&self) -> Option<WallTime> {
        match self.answer.outcome {
            Outcome::Opened { until } => Some(self.offset.to_host(until)),
            _ => None,
        }
    }

    /// The address that is let in, if any is.
    #[must_use]
    pub const fn let_in(&self) -> IpAddr {
        match self.source {
            Source::Observed => self.answer.seen.ip(),
            Source::Stated(address) => address,
        }
    }
}

/// What came back for a knock. Of each kind at most one is told of a knock.
pub(crate) enum Heard {
    Reply(Reply),
    /// Sealed by the gate, but in words that this version does not know.
    NotUnderstood(SocketAddr),
    /// The network says that it does not get there. Anybody on the way can say so: it only informs.
    Unreachable(SocketAddr, io::Error),
}

/// What answers fit a request.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Open,
    Close,
    Probe,
}

impl Kind {
    pub(crate) const fn of(request: &Request) -> Self {
        match request {
            Request::Open { .. } => Self::Open,
            Request::Close { .. } => Self::Close,
            Request::Probe => Self::Probe,
        }
    }

    const fn fits(self, outcome: &Outcome) -> bool {
        matches!(
            (self, outcome),
            (_, Outcome::Refused(_))
                | (Self::Open, Outcome::Opened { .. })
                | (Self::Close, Outcome::Closed)
                | (Self::Probe, Outcome::Heard)
        )
    }
}

/// Tells what comes back for a knock, until its answer has come or nothing will any more.
pub(crate) async fn listen(knock: Knock, keys: Arc<Keys>, kind: Kind, tell: UnboundedSender<Heard>) {
    let to = knock.to;
    if let Ok(Err(error)) = timeout(LISTEN, hear(knock, &keys, kind, &tell)).await {
        // Nobody is left to be told where this fails.
        let _ = tell.send(Heard::Unreachable(to, error));
    }
}

async fn hear(knock: Knock, keys: &Keys, kind: Kind, tell: &UnboundedSender<Heard>) -> io::Result<()> {
    let Knock { to, from, source, nonce, sent_at, sent, socket } = knock;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let (mut is_told_of_error, mut is_told_of_words) = (false, false);
    // One byte more than an answer: what is longer must not pass for one.
    let mut buffer = [0; ANSWER_LEN + 1];
    loop {
        let len = match socket.recv(&mut buffer).await {
            Ok(len) => len,
            // An ICMP message that the knock drew, or that somebody forged: the answer may come all the same.
            Err(error) => {
                if !is_told_of_error {
                    is_told_of_error = true;
                    let _ = tell.send(Heard::Unreachable(to, error));
                }
                // Whoever forges them in numbers takes no more than this of the processor.
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        match answer::open(keys.gate.id(), &keys.client.answer, &nonce, &buffer[..len]) {
            Ok(answer) if kind.fits(&answer.outcome) => {
                let round_trip = sent.elapsed();
                let offset = ClockOffset::between(answer.at, sent_at.after(round_trip / 2));
                let _ = tell.send(Heard::Reply(Reply { to, from, source, answer, offset, round_trip }));
                return Ok(());
            }
            Ok(_) | Err(NoAnswer::Malformed) if !is_told_of_words => {
                is_told_of_words = true;
                let _ = tell.send(Heard::NotUnderstood(to));
            }
            _ => {}
        }
    }
}
