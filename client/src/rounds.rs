//! Knocks at all addresses and ports of a gate, and again while it does not answer: each time with new knocks.
//!
//! Where each knock takes a touch of a security key, there is one at a time: at the next address or port only when nothing
//! has come back for a good while, and never again at the same.

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::{Outcome, Refusal, Request, Source};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::Error;
use crate::knock::Knocker;
use crate::reply::{Heard, Kind, Reply, listen};
use crate::source::SourceChoice;

/// Time between knocks that are to be repeated anyway: longer than a burst of loss on most links.
const REPEAT_GAP: Duration = Duration::from_millis(100);
/// Time from a knock to the next while no answer comes: at first more than most round trips, later more than all. The
/// last is for all that follow.
const ANSWER_GAPS: [Duration; 4] =
    [Duration::from_millis(400), Duration::from_millis(600), Duration::from_secs(1), Duration::from_secs(2)];
/// The same where each knock takes a touch.
const TOUCH_GAP: Duration = Duration::from_secs(3);
/// How long another address has time to say better, after one has refused for the source that it saw.
const SECOND_OPINION: Duration = Duration::from_millis(200);

/// Knocks for one thing at all destinations, and what came back.
pub(crate) struct Rounds<'a> {
    knocker: &'a Knocker,
    request: Request,
    manner: Manner,
    pub(crate) destinations: Vec<Destination>,
    repeats: usize,
    /// The next destination, where each knock takes a touch.
    turn: Option<usize>,
    /// How long was waited for signatures, after the first knocks.
    signing: Duration,
    unanswered: usize,
    next: Option<Instant>,
    refused: Option<(Reply, Instant)>,
    listeners: JoinSet<()>,
    tell: UnboundedSender<Heard>,
    heard: UnboundedReceiver<Heard>,
}

/// One address and port of a gate, and what became of the knocks there.
pub(crate) struct Destination {
    pub(crate) to: SocketAddr,
    /// How many knocks left this host.
    pub(crate) sent: u8,
    /// Whom they asked to let in; absent while none left.
    pub(crate) source: Option<Source>,
    /// Why the last that did not leave did not.
    error: Option<io::Error>,
    /// What came back in the place of an answer.
    trouble: Option<String>,
}

/// How to knock.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) source: SourceChoice,
    /// How many knocks are sent in any case, as long as no answer has come.
    pub(crate) repeat: u8,
    /// Whether the gate answers, and what it does not answer is sent again.
    pub(crate) answers: bool,
    /// The local port to knock from, where it is free.
    pub(crate) from_port: Option<NonZeroU16>,
}

impl<'a> Rounds<'a> {
    /// Sends the first knock to every port of every address; to the first alone, where each takes a touch.
    ///
    /// # Errors
    /// [`Error::Unsent`] when not one of them left this host; [`Error::NoRandom`]; [`Error::Signing`].
    pub(crate) fn begin(
        knocker: &'a Knocker,
        request: Request,
        addresses: impl IntoIterator<Item = IpAddr>,
        ports: &[NonZeroU16],
        manner: Manner,
    ) -> Result<Self, Error> {
        let rounds = Self::try_begin(knocker, request, addresses, ports, manner)?;
        if rounds.destinations.iter().any(|destination| destination.sent > 0) {
            return Ok(rounds);
        }
        let failures = rounds.destinations.iter().filter_map(Destination::failure);
        Err(Error::Unsent(failures.map(|(to, error)| format!("{to}: {error}")).collect()))
    }

    /// The same, whether any knock left or not: each destination knows.
    ///
    /// # Errors
    /// [`Error::NoRandom`]; [`Error::Signing`], and then nothing was sent.
    pub(crate) fn try_begin(
        knocker: &'a Knocker,
        request: Request,
        addresses: impl IntoIterator<Item = IpAddr>,
        ports: &[NonZeroU16],
        manner: Manner,
    ) -> Result<Self, Error> {
        let to = addresses
            .into_iter()
            .flat_map(|address| ports.iter().map(move |port| SocketAddr::new(address, port.get())));
        let destinations: Vec<_> = to.map(Destination::new).collect();
        let needs_touch = knocker.needs_touch()?;
        let repeats = match manner.repeat {
            0 | 1 if needs_touch && !manner.answers => destinations.len().saturating_sub(1),
            0 | 1 => 0,
            _ if needs_touch => {
                return Err(Error::Usage(
                    "each knock takes a touch of the security key: leave --repeat out".into(),
                ));
            }
            more => usize::from(more) - 1,
        };
        let (tell, heard) = unbounded_channel();
        let mut rounds = Self {
            knocker,
            request,
            manner,
            destinations,
            repeats,
            turn: needs_touch.then_some(0),
            signing: Duration::ZERO,
            unanswered: 0,
            next: None,
            refused: None,
            listeners: JoinSet::new(),
            tell,
            heard,
        };
        rounds.round()?;
        // Only from here on somebody waits for an answer.
        rounds.signing = Duration::ZERO;
        Ok(rounds)
    }

    /// Sends the knocks that are to be repeated in any case. Where no answer comes, there is no other end.
    ///
    /// # Errors
    /// [`Error::NoRandom`]; a destination that cannot be reached only says so in itself.
    pub(crate) async fn repeat(&mut self) -> Result<(), Error> {
        while self.repeats > 0 {
            self.next().await?;
        }
        Ok(())
    }

    /// The gate's decision: the first answer, but for a refusal that another of its addresses may not share. Meanwhile the
    /// knocks go on; without an answer it waits for ever. It may be dropped and asked again.
    ///
    /// # Errors
    /// [`Error::NoRandom`].
    pub(crate) async fn decision(&mut self) -> Result<Reply, Error> {
        loop {
            let refused = self.refused;
            let heard = tokio::select! {
                heard = self.next() => heard?,
                () = wait_until(refused.map(|(_, until)| until)) => {
                    self.refused = None;
                    return Ok(refused.expect("it is what was waited for").0);
                }
            };
            let Some(Heard::Reply(reply)) = heard else { continue };
            match reply.answer.outcome {
                Outcome::Refused(refusal) if depends_on_source(refusal) && self.has_other(reply.to.ip()) => {
                    let until = Instant::now() + SECOND_OPINION.max(reply.round_trip * 2);
                    self.refused.get_or_insert((reply, until));
                }
                _ => return Ok(reply),
            }
        }
    }

    /// The same within so much time, without that for which signatures were waited for.
    ///
    /// # Errors
    /// As with [`Rounds::decision`].
    pub(crate) async fn decision_within(&mut self, limit: Duration) -> Result<Option<Reply>, Error> {
        let begin = Instant::now();
        loop {
            let deadline = begin + limit + self.signing;
            match timeout_at(deadline, self.decision()).await {
                Ok(reply) => return reply.map(Some),
                Err(_) if begin + limit + self.signing > deadline => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// How long was waited for signatures, since the first knocks had left.
    pub(crate) const fn signing(&self) -> Duration {
        self.signing
    }

    /// Where knocks left for.
    pub(crate) fn sent(&self) -> Vec<SocketAddr> {
        let sent = self.destinations.iter().filter(|destination| destination.sent > 0);
        sent.map(|destination| destination.to).collect()
    }

    /// Whether there is a destination that was not knocked at yet.
    pub(crate) fn has_next(&self) -> bool {
        self.turn.is_some_and(|turn| turn < self.destinations.len())
    }

    /// The next that comes back, or `None` when knocks were sent again.
    ///
    /// # Errors
    /// [`Error::NoRandom`].
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, Error> {
        let heard = tokio::select! {
            Some(heard) = self.heard.recv() => heard,
            () = wait_until(self.next) => {
                self.repeats = self.repeats.saturating_sub(1);
                self.round()?;
                return Ok(None);
            }
        };
        let trouble = match &heard {
            Heard::Reply(_) => return Ok(Some(heard)),
            Heard::NotUnderstood(to) => (to, "an answer that this version does not understand".to_owned()),
            Heard::Unreachable(to, error) => (to, plain(error)),
        };
        if let Some(destination) = self.destinations.iter_mut().find(|one| one.to == *trouble.0) {
            destination.trouble = Some(trouble.1);
        }
        Ok(Some(heard))
    }

    /// Knocks at once, and then again as at the beginning; not where somebody would have to touch a key once more.
    ///
    /// # Errors
    /// [`Error::NoRandom`]; [`Error::Signing`].
    pub(crate) fn again(&mut self) -> Result<(), Error> {
        if self.turn.is_some() {
            return Ok(());
        }
        self.unanswered = 0;
        self.round()
    }

    /// Whether what opens is for one source port.
    pub(crate) const fn is_exact(&self) -> bool {
        self.manner.from_port.is_some()
    }

    /// Knocks no more by itself; what comes back for earlier knocks is still heard.
    pub(crate) const fn rest(&mut self) {
        self.next = None;
    }

    /// Each destination that was knocked at, with what came back in the place of an answer.
    pub(crate) fn silent(&self) -> Vec<String> {
        let sent = self.destinations.iter().filter(|destination| destination.sent > 0);
        let text = |one: &Destination| match &one.trouble {
            Some(trouble) => format!("{} port {} ({trouble})", one.to.ip(), one.to.port()),
            None => format!("{} port {}", one.to.ip(), one.to.port()),
        };
        sent.map(text).collect()
    }

    fn round(&mut self) -> Result<(), Error> {
        let begin = Instant::now();
        match self.turn {
            None => {
                for at in 0..self.destinations.len() {
                    self.knock_at(at)?;
                }
            }
            Some(first) => {
                let mut at = first;
                // What does not leave has taken no touch.
                while at < self.destinations.len() && !self.knock_at(at)? {
                    at += 1;
                }
                self.turn = Some(at + 1);
            }
        }
        self.signing += begin.elapsed();
        // Those that have ended leave the set.
        while self.listeners.try_join_next().is_some() {}
        self.next = self.gap().map(|gap| Instant::now() + gap);
        Ok(())
    }

    /// Knocks at one destination. Whether that left this host.
    fn knock_at(&mut self, at: usize) -> Result<bool, Error> {
        let Manner { source, answers, from_port, .. } = self.manner;
        let destination = &mut self.destinations[at];
        match self.knocker.send(destination.to, &self.request, source, from_port)? {
            Ok(knock) => {
                destination.sent = destination.sent.saturating_add(1);
                destination.source = Some(knock.source);
                if answers {
                    let (keys, kind) = (self.knocker.keys(), Kind::of(&self.request));
                    self.listeners.spawn(listen(knock, keys, kind, self.tell.clone()));
                }
                Ok(true)
            }
            Err(error) => {
                destination.error = Some(error);
                Ok(false)
            }
        }
    }

    /// How long until the next round.
    fn gap(&mut self) -> Option<Duration> {
        if self.turn.is_some() {
            return self.has_next().then_some(TOUCH_GAP);
        }
        if self.repeats > 0 {
            return Some(REPEAT_GAP);
        }
        let gap = ANSWER_GAPS[self.unanswered.min(ANSWER_GAPS.len() - 1)];
        self.unanswered += 1;
        self.manner.answers.then_some(gap)
    }

    fn has_other(&self, address: IpAddr) -> bool {
        self.destinations.iter().any(|other| other.sent > 0 && other.to.ip() != address)
    }
}

impl Destination {
    const fn new(to: SocketAddr) -> Self {
        Self { to, sent: 0, source: None, error: None, trouble: None }
    }

    /// Why no knock left for here; `None` when one did.
    pub(crate) fn failure(&self) -> Option<(SocketAddr, &io::Error)> {
        let error = self.error.as_ref().filter(|_| self.sent == 0)?;
        Some((self.to, error))
    }
}

/// The addresses that at least one knock left for.
pub(crate) fn knocked(destinations: &[Destination]) -> Vec<IpAddr> {
    let sent = destinations.iter().filter(|destination| destination.sent > 0);
    let mut addresses: Vec<_> = sent.map(|destination| destination.to.ip()).collect();
    // Those of one address with several ports stand side by side.
    addresses.dedup();
    addresses
}

/// Whether a knock at another address of the gate may fare better: it arrives from another source.
const fn depends_on_source(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::UnusableSource
            | Refusal::SourceNotStated
            | Refusal::SourceNotOwn
            | Refusal::SourceNotAllowed
    )
}

/// Until then; without a time, for ever.
pub(crate) async fn wait_until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

/// An error of the network without its number.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
