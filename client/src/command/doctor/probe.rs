//! Asks each address of the gate for nothing but an answer, and reads from it what else it shows: whether the key is
//! known, how far the clocks are apart, and what address translation does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use postern_proto::profile::Host;
use postern_proto::{Outcome, Request, Services};
use tokio::time::{Instant, timeout_at};

use super::findings::Findings;
use super::local::Way;
use super::{SET_CLOCK, refused, silence};
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::reply::{Heard, Reply};
use crate::report::{CLOCK_WARNING_SECONDS, Off, joined};
use crate::rounds::{Rounds, plain};

/// What came back for the probes.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) replies: BTreeMap<SocketAddr, Reply>,
    /// What the network said in the place of an answer.
    pub(super) errors: BTreeMap<SocketAddr, io::Error>,
    pub(super) not_understood: BTreeSet<SocketAddr>,
    /// Every place that a probe left for.
    pub(super) sent: Vec<SocketAddr>,
    /// Whether the first answer was enough, because each probe takes a touch.
    pub(super) one_by_one: bool,
}

/// Whether the gate hears this client.
pub(super) async fn probe(
    gate: &Gate,
    services: &Services,
    Way { addresses, firsts }: &Way,
    options: &Options,
    exact: bool,
    findings: &mut Findings,
) -> Result<bool, Error> {
    let echo = listen(gate, addresses, options, findings).await?;
    if echo.sent.is_empty() {
        return Ok(false);
    }
    let answering: BTreeSet<_> = echo.replies.keys().map(SocketAddr::ip).collect();
    let Some(nearest) = echo.replies.values().min_by_key(|reply| reply.round_trip) else {
        return silence::explain(gate, services, &echo, options, findings).await;
    };
    let is_accepted = answers(gate, &echo, findings)?;
    clock(nearest, findings);
    for address in &answering {
        if let Some(reply) = echo.replies.values().find(|reply| reply.to.ip() == *address) {
            translation(reply, exact, findings);
        }
    }
    let was_probed = |address: &IpAddr| echo.sent.iter().any(|to| to.ip() == *address) || !echo.one_by_one;
    for &dead in addresses.difference(&answering).filter(|address| was_probed(address)) {
        dead_address(dead, &answering, &echo, firsts, findings);
    }
    Ok(is_accepted)
}

/// Probes every address, until all have answered or the time is over.
async fn listen(
    gate: &Gate,
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    findings: &mut Findings,
) -> Result<Echo, Error> {
    let (to, ports) = (addresses.iter().copied(), &gate.profile().ports);
    let mut rounds = Rounds::try_begin(&gate.knocker, Request::Probe, to, ports, options.manner(true))?;
    for (to, error) in rounds.destinations.iter().filter_map(|destination| destination.failure()) {
        let message = format!("nothing leaves this host for {to}: {}", plain(error));
        if error.kind() == io::ErrorKind::PermissionDenied {
            let advice = "a firewall of this host drops it: look at its OUTPUT chain, or nft list ruleset";
            findings.fault("send-denied", message, advice);
        } else {
            findings.fault("unreachable", message, "look at this host's network: ip route");
        }
    }
    let mut echo = Echo { sent: rounds.sent(), one_by_one: gate.knocker.needs_touch()?, ..Echo::default() };
    let mut deadline = Instant::now() + options.timeout;
    let is_enough = |echo: &Echo| {
        let answered = echo.replies.len();
        answered == echo.sent.len() || echo.one_by_one && answered > 0
    };
    while !is_enough(&echo) {
        let heard = match timeout_at(deadline, rounds.next()).await {
            Ok(heard) => heard,
            // The next is knocked at soon.
            Err(_) if rounds.has_next() => {
                deadline = Instant::now() + options.timeout;
                continue;
            }
            Err(_) => break,
        };
        match heard? {
            Some(Heard::Reply(reply)) => {
                echo.replies.entry(reply.to).or_insert(reply);
            }
            Some(Heard::NotUnderstood(to)) => {
                echo.not_understood.insert(to);
            }
            Some(Heard::Unreachable(to, error)) => {
                echo.errors.insert(to, error);
            }
            None if echo.one_by_one => {
                echo.sent = rounds.sent();
                deadline = Instant::now() + options.timeout;
            }
            None => {}
        }
    }
    Ok(echo)
}

/// What each place that answers says, and whether any accepts this client.
fn answers(gate: &Gate, echo: &Echo, findings: &mut Findings) -> Result<bool, Error> {
    let mut is_accepted = false;
    for (to, reply) in &echo.replies {
        let (address, port) = (to.ip(), to.port());
        if let Outcome::Refused(refusal) = reply.answer.outcome {
            let what = format!("{address} port {port} refuses this client");
            refused(gate, &what, gate.refused(refusal, *reply), findings)?;
        } else {
            is_accepted = true;
            let after = reply.round_trip.as_millis();
            findings.ok(
                "answer",
                format_args!("{address} port {port} answers in {after} ms, and knows this client's key"),
            );
        }
    }
    for silent in echo.sent.iter().filter(|to| !echo.replies.contains_key(to)) {
        if let Some(other) = echo.replies.keys().find(|to| to.ip() == silent.ip()) {
            let (address, port) = (silent.ip(), silent.port());
            let message = format!("{address} does not answer at port {port}, and does at {}", other.port());
            findings.warning(
                "silent-port",
                message,
                "that port is filtered on the way, or is none of the gate's: take it out of `ports`",
            );
        }
    }
    Ok(is_accepted)
}

pub(super) fn clock(reply: &Reply, findings: &mut Findings) {
    let message = format!("this host's clock is {}", Off(reply.offset, "the gate's"));
    if reply.offset.abs().as_secs() < CLOCK_WARNING_SECONDS {
        findings.ok("clock", message);
    } else {
        findings.warning("clock-off", message, SET_CLOCK);
    }
}

/// What address translation on the way makes of this host's address and port.
fn translation(reply: &Reply, exact: bool, findings: &mut Findings) {
    let (from, seen, gate) = (reply.from, reply.answer.seen, reply.to.ip());
    match (from.ip() == seen.ip(), from.port() == seen.port()) {
        (true, true) => findings.ok("nat", format_args!("{gate} sees this host as it is: {}", seen.ip())),
        (false, true) => findings.note(
            "nat",
            format_args!(
                "{gate} sees {} for {}: address translation, which keeps ports",
                seen.ip(),
                from.ip()
            ),
        ),
        (_, false) => {
            let message = format!("{gate} sees {seen} for {from}: address translation, which changes ports");
            if exact {
                let advice = "proxy --exact does not work from here: leave it out, or say --exact=prefer";
                findings.warning("nat-ports", message, advice);
            } else {
                findings.note("nat-ports", message);
            }
            return;
        }
    }
    if exact {
        findings.ok("nat-ports", format_args!("source ports stay as they are on the way to {gate}"));
    }
}

/// An address that does not answer beside one that does.
fn dead_address(
    dead: IpAddr,
    answering: &BTreeSet<IpAddr>,
    echo: &Echo,
    firsts: &[(Host, IpAddr)],
    findings: &mut Findings,
) {
    let alive: Vec<_> = answering.iter().collect();
    let verb = if alive.len() == 1 { "does" } else { "do" };
    let reason = echo.errors.iter().find(|(to, _)| to.ip() == dead);
    let reason = reason.map(|(_, error)| format!(" ({})", plain(error))).unwrap_or_default();
    let mut message = format!("{dead} does not answer{reason}, {} {verb}", joined(&alive));
    let mut advice =
        "`postern proxy` takes the one that answers; ssh by itself may try this one first".to_owned();
    if let Some((name, _)) = firsts.iter().find(|(_, first)| *first == dead) {
        message = format!("{message}: the first address of {name} is dead");
        advice =
            format!("take it out of DNS: ssh without `postern proxy` tries it first, and waits; {advice}");
    }
    findings.warning("dead-address", message, &advice);
}
