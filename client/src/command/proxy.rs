//! `postern proxy`: knocks, connects and carries stdin and stdout, as ssh's `ProxyCommand`.
//!
//! The gate's answer says when to connect. Attempts are made by time as well: an answer may be lost, or not come at all.

pub(super) mod find;

use std::fmt;
use std::fs::File;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use postern_proto::{Outcome, Request, Services, Window};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::cli::{Cli, Exact, ProxyArgs};
use crate::connect::{Attempts, Connecting, connect, connect_if_open};
use crate::course::Course;
use crate::error::{Advice, Error};
use crate::exact::{ExactAttempts, SourcePort};
use crate::gate::Gate;
use crate::report::{Report, joined, say, warn_of_clock};
use crate::resolve::{Resolved, resolve};
use crate::rounds::{Manner, Rounds, knocked, wait_until};
use crate::sequence::{DELAY, send};
use crate::splice::splice;
use crate::system::ignores;

use find::{Way, find_gate, find_way, hosts};

/// How long a port that is said to be open may let no connection in, before it is knocked for again: somebody may have
/// closed it meanwhile. It doubles each time.
const OPEN_IN_VAIN: Duration = Duration::from_secs(1);
/// How long an answer may take before a connection from the stated port is tried without it: attempts from one port
/// disturb one another.
const EXACT_UNANSWERED: Duration = Duration::from_secs(1);
/// How long the proxy goes on when everybody else has gone, until what it opened is closed.
const CLOSING: Duration = Duration::from_secs(1);

pub(super) async fn run(cli: &Cli, args: &ProxyArgs) -> Result<Report, Error> {
    let mut end = End { args, at: Instant::now() + args.timeout };
    let options = args.how.options(args.timeout)?;
    if args.how.aim.profile_file.as_deref() == Some(Path::new("-")) {
        return Err(Error::Usage(
            "the profile of a proxy cannot come from stdin, which is the connection's".into(),
        ));
    }
    let (name, entry) = find_gate(cli, args)?;
    let hosts = hosts(&entry, &args.host);
    let way = find_way(&name, &entry, args.port)?;
    let (source, family) = match way {
        Way::Knock(..) => (None, options.family),
        Way::Sequence(_) if args.close_on_exit => {
            return Err(Error::Usage("a sequence cannot close: leave --close-on-exit out".into()));
        }
        Way::Sequence(_) if args.exact.is_some() => {
            return Err(Error::Usage("a sequence says no source port: leave --exact out".into()));
        }
        Way::Sequence(sequence) => args.how.of_sequence(sequence.ports.are_bound())?,
    };
    let resolving = timeout_at(end.at, resolve(&hosts, family)).await;
    let resolved =
        resolving.map_err(|_| Error::Unresolved(vec![format!("{}: no answer in time", joined(&hosts))]))?;
    resolved.require_one()?;
    if args.lazy
        && let Some(stream) = connect_if_open(&end.doors(&resolved.addresses)).await
    {
        return carry(stream).await;
    }
    match way {
        Way::Knock(profile, service) => {
            let gate = Gate::new(name, profile.clone());
            let gate = match args.how.aim.identity.as_ref().or(entry.identity_file.as_ref()) {
                Some(file) => gate.with_identity(file),
                None => gate,
            };
            let begin = Instant::now();
            let needs_touch = gate.knocker.needs_touch()?;
            // Somebody may have typed a passphrase.
            end = end.later(begin.elapsed());
            let services = Services::new(vec![service.clone()])?;
            let manner = options.manner(gate.answers());
            let ask = Ask { gate: &gate, services, window: options.window, manner, resolved: &resolved };
            if args.close_on_exit || entry.close_on_exit {
                if !needs_touch {
                    return carry_and_close(&ask, end).await;
                }
                // Whoever was here to touch the key is gone by then.
                say(
                    "not closed at the end, for that takes another touch: what is opened ends with its window",
                );
            }
            carry(open(&ask, end).await?).await
        }
        Way::Sequence(sequence) => {
            let course = Course::new(&sequence.ports, source, false)?;
            carry(touch(course, &resolved, end).await?).await
        }
    }
}

/// What the gate is asked for.
struct Ask<'a> {
    gate: &'a Gate,
    services: Services,
    window: Option<Window>,
    manner: Manner,
    resolved: &'a Resolved,
}

impl<'a> Ask<'a> {
    fn open(&self, from_port: Option<NonZeroU16>) -> Result<Rounds<'a>, Error> {
        let (services, window) = (self.services.clone(), self.window);
        self.begin(Request::Open { services, window, from_port }, from_port)
    }

    fn close(&self) -> Result<Rounds<'a>, Error> {
        self.begin(Request::Close { services: self.services.clone() }, None)
    }

    fn begin(&self, request: Request, from_port: Option<NonZeroU16>) -> Result<Rounds<'a>, Error> {
        let (addresses, ports) = (self.resolved.addresses.iter().copied(), &self.gate.profile().ports);
        let manner = Manner { from_port, ..self.manner };
        Rounds::begin(&self.gate.knocker, request, addresses, ports, manner)
    }
}

/// Carries the connection to its end.
async fn carry(stream: TcpStream) -> Result<Report, Error> {
    let denied = |source| Error::System { what: "cannot take the connection over", source };
    let stream = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    let stream = stream.map_err(denied)?;
    let carrying = spawn_blocking(move || splice(&stream));
    let carried = carrying.await.map_err(|_| denied(io::Error::other("the thread that carries failed")))?;
    carried.map_err(Error::Broken)?;
    Ok(Report::Carried)
}

/// Connects, carries, and closes what was opened; also when a signal ends it. ssh closes the pipes and sends SIGHUP, and
/// waits for nothing.
async fn carry_and_close(ask: &Ask<'_>, end: End<'_>) -> Result<Report, Error> {
    let denied = |source| Error::System { what: "cannot prepare the end", source };
    let mut hangup = Ending::by(SignalKind::hangup()).map_err(denied)?;
    let mut terminate = Ending::by(SignalKind::terminate()).map_err(denied)?;
    let mut interrupt = Ending::by(SignalKind::interrupt()).map_err(denied)?;
    let carrying = async { carry(open(ask, end).await?).await };
    let carried = tokio::select! {
        carried = carrying => carried,
        () = hangup.came() => Ok(Report::Carried),
        () = terminate.came() => Ok(Report::Carried),
        () = interrupt.came() => Ok(Report::Carried),
    };
    match &carried {
        // Nothing was opened.
        Err(Error::Refused(_) | Error::Unsent(_) | Error::Signing(_)) => return carried,
        Err(_) => {}
        Ok(_) => {
            // Whoever reads what ssh prints as an error waits until nobody can print there any more.
            let nowhere = File::options().write(true).open("/dev/null").map_err(denied)?;
            rustix::stdio::dup2_stderr(nowhere).map_err(|error| denied(error.into()))?;
        }
    }
    let closing = async {
        let mut rounds = ask.close()?;
        if ask.gate.answers() { rounds.decision().await.map(drop) } else { rounds.repeat().await }
    };
    // What could not be closed ends with its window, and nobody is left to be told.
    let _ = timeout(CLOSING, closing).await;
    carried
}

/// A signal that ends the proxy, unless whoever started it has it ignored, as nohup does: then it stays so.
struct Ending(Option<Signal>);

impl Ending {
    fn by(kind: SignalKind) -> io::Result<Self> {
        if ignores(kind.as_raw_value()) {
            Ok(Self(None))
        } else {
            signal(kind).map(|signal| Self(Some(signal)))
        }
    }

    async fn came(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => pending().await,
        }
    }
}

/// Knocks and connects, from any port or from the one that was stated.
async fn open(ask: &Ask<'_>, end: End<'_>) -> Result<TcpStream, Error> {
    match end.args.exact {
        None => open_to_any_port(ask, end).await,
        Some(Exact::Only) => open_exactly(ask, end).await,
        Some(Exact::Prefer) => {
            // The rest of the time is for the other way.
            let third = End { at: Instant::now() + end.args.timeout / 3, ..end };
            match open_exactly(ask, third).await {
                Err(Error::PortTranslated { .. } | Error::InVain { .. } | Error::System { .. }) => {
                    open_to_any_port(ask, end).await
                }
                opened => opened,
            }
        }
    }
}

async fn open_to_any_port(ask: &Ask<'_>, end: End<'_>) -> Result<TcpStream, Error> {
    let (rounds, end) = end.after(|| ask.open(None))?;
    let to = end.doors(&knocked(&rounds.destinations));
    let attempts = if ask.gate.answers() { Attempts::awaiting_answer(to) } else { Attempts::new(to) };
    connect_when_open(ask.gate, rounds, attempts, end).await
}

async fn open_exactly(ask: &Ask<'_>, end: End<'_>) -> Result<TcpStream, Error> {
    let port = SourcePort::take(&end.doors(&ask.resolved.addresses));
    let port =
        port.map_err(|source| Error::System { what: "cannot take a source port for --exact", source })?;
    let (rounds, end) = end.after(|| ask.open(Some(port.number())))?;
    let begin = if ask.gate.answers() { EXACT_UNANSWERED } else { Duration::ZERO };
    let attempts = ExactAttempts::new(port, end.doors(&knocked(&rounds.destinations)), begin);
    connect_when_open(ask.gate, rounds, attempts, end).await
}

/// Connects when the gate says that it is open, or when the port lets a connection in all the same.
async fn connect_when_open(
    gate: &Gate,
    mut rounds: Rounds<'_>,
    mut attempts: impl Connecting,
    end: End<'_>,
) -> Result<TcpStream, Error> {
    let (mut is_open, mut patience) = (false, OPEN_IN_VAIN);
    let mut again = None;
    loop {
        let until = end.later(rounds.signing()).at;
        tokio::select! {
            (stream, _) = attempts.connected() => return Ok(stream),
            reply = rounds.decision() => {
                let reply = reply?;
                match reply.answer.outcome {
                    // Another of its addresses has opened before: that is enough.
                    Outcome::Refused(_) if is_open => {}
                    Outcome::Refused(refusal) => return Err(gate.refused(refusal, reply)),
                    _ if again.is_some() => {}
                    _ if rounds.is_exact() && reply.answer.seen.port() != reply.from.port() => {
                        let (from, seen) = (reply.from.port(), reply.answer.seen.port());
                        return Err(Error::PortTranslated { from, seen });
                    }
                    _ => {
                        if !is_open {
                            warn_of_clock(reply.offset);
                        }
                        is_open = true;
                        attempts.at_once(end.door(reply.to.ip()), reply.round_trip);
                        rounds.rest();
                        again = Some(Instant::now() + patience);
                        patience *= 2;
                    }
                }
            }
            () = wait_until(again) => {
                again = None;
                rounds.again()?;
            }
            () = sleep_until(until) => {
                if end.later(rounds.signing()).at > until {
                    continue;
                }
                let advice = match (gate.answers(), is_open) {
                    (true, true) => Advice::Opened,
                    (true, false) => Advice::Unanswered,
                    (false, _) => Advice::Knock,
                };
                return Err(end.in_vain(&attempts.give_up(), advice));
            }
        }
    }
}

/// Sends a sequence, and connects. It is not repeated: its steps would come amid the attempts to connect.
async fn touch(mut course: Course, resolved: &Resolved, end: End<'_>) -> Result<TcpStream, Error> {
    let addresses = resolved.addresses.iter().copied();
    let sending = timeout_at(end.at, send(addresses, |to| course.steps_to(to), DELAY, |_, _| ())).await;
    let sent = sending.map_err(|_| end.in_vain(&"not all steps were sent", Advice::Sequence))??;
    let connected = connect(&end.doors(&sent.addresses), end.at).await;
    let (stream, _) = connected.map_err(|not_open| end.in_vain(&not_open, Advice::Sequence))?;
    Ok(stream)
}

/// What the connection is to, and when it is given up.
#[derive(Clone, Copy)]
struct End<'a> {
    args: &'a ProxyArgs,
    at: Instant,
}

impl End<'_> {
    /// The same, so much later.
    fn later(self, by: Duration) -> Self {
        Self { at: self.at + by, ..self }
    }

    /// What somebody may have to touch a key for, which does not count.
    fn after<T>(self, act: impl FnOnce() -> Result<T, Error>) -> Result<(T, Self), Error> {
        let begin = Instant::now();
        let done = act()?;
        Ok((done, self.later(begin.elapsed())))
    }

    const fn door(self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.args.port.get())
    }

    fn doors<'a>(self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<SocketAddr> {
        addresses.into_iter().map(|&address| self.door(address)).collect()
    }

    fn in_vain(self, reason: &dyn fmt::Display, advice: Advice) -> Error {
        let ProxyArgs { host, port, timeout, .. } = self.args;
        let what = format!("no connection to {host} at port {port} ({reason})");
        Error::InVain { waited: *timeout, what, advice }
    }
}
