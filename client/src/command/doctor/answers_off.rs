//! A gate that answers no probe may open all the same: somebody has turned its answers off since the profile was made. So
//! before it is said to be down, or not to know the key, it is knocked at and a connection is tried.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use postern_proto::Services;
use tokio::time::Instant;

use super::findings::Findings;
use super::services::{moment, request};
use crate::connect::{connect, connect_if_open};
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::reply::Reply;

/// What came of a knock at a gate that has answered no probe.
pub(super) enum Tried {
    /// The door stays shut, or there is none that could be tried.
    Shut,
    /// It was found, and told, why no probe says anything.
    Told,
    /// There is an answer.
    Answered(Box<Reply>),
}

/// Knocks, and tries the first TCP port of the services that has one.
pub(super) async fn knock(
    gate: &Gate,
    services: &Services,
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    findings: &mut Findings,
) -> Result<Tried, Error> {
    let Some((service, port)) =
        services.iter().find_map(|service| Some((service, gate.first_tcp_port(service)?)))
    else {
        return Ok(Tried::Shut);
    };
    let doors: Vec<_> = addresses.iter().map(|&address| SocketAddr::new(address, port.get())).collect();
    if connect_if_open(&doors).await.is_some() {
        findings.fault(
            "open-before",
            format_args!(
                "no probe is answered, and port {port} lets a connection in before any knock, so that none can be judged by it"
            ),
            "try again when the window of an earlier knock is over; where it is open even then, nothing guards that port",
        );
        return Ok(Tried::Told);
    }
    let mut sending = gate.send(request(service, Some(moment()))?, options).await?;
    let deadline = Instant::now() + options.timeout;
    let peer = tokio::select! {
        connected = connect(&doors, deadline) => connected.ok().map(|(_, peer)| peer),
        decision = sending.decision() => match decision {
            Ok(Some(reply)) => return Ok(Tried::Answered(Box::new(reply))),
            Err(Error::Refused(refused)) => return Ok(Tried::Answered(Box::new(refused.reply))),
            Ok(None) | Err(Error::InVain { .. }) => None,
            Err(error) => return Err(error),
        },
    };
    let Some(peer) = peer else { return Ok(Tried::Shut) };
    findings.fault(
        "answers-off",
        format_args!(
            "the gate does not answer, and opens: after a knock for {service}, {peer} lets a connection in"
        ),
        "set answers = false for it in the configuration, or import a new profile",
    );
    Ok(Tried::Told)
}
