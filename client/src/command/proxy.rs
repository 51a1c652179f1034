//! `postern proxy`: knocks, connects and carries stdin and stdout, as ssh's `ProxyCommand`.
//!
//! The gate's answer says when to connect. Attempts are made by time as well: an answer may be lost, or not come at all.

mod find;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use postern_proto::{Outcome, Request, Services};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::cli::{Cli, ProxyArgs};
use crate::connect::{Attempts, connect, connect_if_open};
use crate::course::Course;
use crate::error::{Advice, Error};
use crate::gate::Gate;
use crate::report::{Report, joined, warn_of_clock};
use crate::resolve::{Resolved, resolve};
use crate::rounds::{Manner, Rounds, knocked, wait_until};
use crate::sequence::{DELAY, send};
use crate::splice::splice;

use find::{Way, find_gate, find_way, hosts};

/// How long a port that is said to be open may let no connection in, before it is knocked for again: somebody may have
/// closed it meanwhile. It doubles each time.
const OPEN_IN_VAIN: Duration = Duration::from_secs(1);

/// The connection through the door that the knock, or the sequence, opens.
pub(super) async fn run(cli: &Cli, args: &ProxyArgs) -> Result<TcpStream, Error> {
    let end = End { args, at: Instant::now() + args.timeout };
    let options = args.how.options(args.timeout)?;
    if args.how.profile_file.as_deref() == Some(Path::new("-")) {
        return Err(Error::Usage(
            "the profile of a proxy cannot come from stdin, which is the connection's".into(),
        ));
    }
    let (name, entry) = find_gate(cli, args)?;
    let hosts = hosts(&entry, &args.host);
    let way = find_way(&name, &entry, args.port)?;
    let (source, family) = match way {
        Way::Knock(..) => (None, options.family),
        Way::Sequence(sequence) => args.how.of_sequence(sequence.ports.are_bound())?,
    };
    let resolving = timeout_at(end.at, resolve(&hosts, family)).await;
    let resolved =
        resolving.map_err(|_| Error::Unresolved(vec![format!("{}: no answer in time", joined(&hosts))]))?;
    resolved.require_one()?;
    let to: Vec<_> =
        resolved.addresses.iter().map(|&address| SocketAddr::new(address, args.port.get())).collect();
    let open = if args.lazy { connect_if_open(&to).await } else { None };
    let stream = match (open, way) {
        (Some(stream), _) => stream,
        (None, Way::Knock(profile, service)) => {
            let gate = Gate::new(name, profile.clone());
            let request = Request::Open {
                services: Services::new(vec![service.clone()])?,
                window: options.window,
                from_port: None,
            };
            knock(&gate, request, options.manner(gate.answers()), &resolved, end).await?
        }
        (None, Way::Sequence(sequence)) => {
            touch(Course::new(&sequence.ports, source, false)?, &resolved, end).await?
        }
    };
    let blocking = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    blocking.map_err(|source| Error::System { what: "cannot take the connection over", source })
}

/// Carries the connection to its end.
pub(super) fn carry(stream: &TcpStream) -> Result<Report, Error> {
    splice(stream).map_err(Error::Broken)?;
    Ok(Report::Carried)
}

/// Knocks, and connects when the gate says so, or when the port lets a connection in all the same.
async fn knock(
    gate: &Gate,
    request: Request,
    manner: Manner,
    resolved: &Resolved,
    end: End<'_>,
) -> Result<tokio::net::TcpStream, Error> {
    let addresses = resolved.addresses.iter().copied();
    let mut rounds = Rounds::begin(&gate.knocker, request, addresses, &gate.profile().ports, manner)?;
    let mut attempts = Attempts::new(end.doors(knocked(&rounds.destinations)));
    let (mut is_open, mut patience) = (false, OPEN_IN_VAIN);
    let mut again = None;
    loop {
        tokio::select! {
            (stream, _) = attempts.connected() => return Ok(stream),
            reply = rounds.decision() => {
                let reply = reply?;
                match reply.answer.outcome {
                    // Another of its addresses has opened before: that is enough.
                    Outcome::Refused(_) if is_open => {}
                    Outcome::Refused(refusal) => return Err(gate.refused(refusal, reply)),
                    _ if again.is_some() => {}
                    _ => {
                        if !is_open {
                            warn_of_clock(reply.offset);
                        }
                        is_open = true;
                        attempts.at_once(end.door(reply.to.ip()));
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
            () = sleep_until(end.at) => {
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
async fn touch(
    mut course: Course,
    resolved: &Resolved,
    end: End<'_>,
) -> Result<tokio::net::TcpStream, Error> {
    let addresses = resolved.addresses.iter().copied();
    let sending = timeout_at(end.at, send(addresses, |to| course.steps_to(to), DELAY, |_, _| ())).await;
    let sent = sending.map_err(|_| end.in_vain(&"not all steps were sent", Advice::Sequence))??;
    let connected = connect(&end.doors(sent.addresses), end.at).await;
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
    const fn door(self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.args.port.get())
    }

    fn doors(self, addresses: Vec<IpAddr>) -> Vec<SocketAddr> {
        addresses.into_iter().map(|address| self.door(address)).collect()
    }

    fn in_vain(self, reason: &dyn fmt::Display, advice: Advice) -> Error {
        let ProxyArgs { host, port, timeout, .. } = self.args;
        let what = format!("no connection to {host} at port {port} ({reason})");
        Error::InVain { waited: *timeout, what, advice }
    }
}
