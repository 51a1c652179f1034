//! Opens each service, goes through its door, and closes it again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use postern_proto::{Protocol, Request, ServiceName, Services};
use tokio::time::Instant;

use super::findings::Findings;
use super::{only, refused};
use crate::connect::{connect, connect_opened};
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::reply::Reply;
use crate::report::{joined, open_line};

pub(super) async fn check(
    gate: &Gate,
    services: &Services,
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    findings: &mut Findings,
) -> Result<(), Error> {
    let mut opened = Vec::new();
    for service in services {
        let request = Request::Open { services: only(service)?, window: None, from_port: None };
        let reply = match ask(gate, request, options).await {
            Ok(reply) => reply,
            Err(error) => {
                refused(gate, &format!("{service} does not open"), error, findings)?;
                continue;
            }
        };
        match &reply {
            Some(reply) => findings.ok("opened", open_line(reply, service.as_str())),
            None => findings.note("sent", format_args!("a knock for {service} was sent")),
        }
        opened.push(service.clone());
        go_through(gate, service, reply, addresses, options, findings).await;
    }
    if !opened.is_empty() {
        close(gate, opened, options, findings).await?;
    }
    Ok(())
}

async fn ask(gate: &Gate, request: Request, options: &Options) -> Result<Option<Reply>, Error> {
    gate.send(request, options).await?.decision().await
}

/// Connects to the first TCP port of a service that was opened.
async fn go_through(
    gate: &Gate,
    service: &ServiceName,
    reply: Option<Reply>,
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    findings: &mut Findings,
) {
    let Some(port) = gate.services()[service].iter().find(|port| port.protocol == Protocol::Tcp) else {
        findings.note("udp-service", format_args!("{service} has no TCP port that could be tried"));
        return;
    };
    let door = |address| SocketAddr::new(address, port.number.get());
    let deadline = Instant::now() + options.timeout;
    let connected = if let Some(Reply { to, round_trip, .. }) = reply {
        let peer = door(to.ip());
        connect_opened(peer, round_trip, deadline).await.map(|_| peer)
    } else {
        let to: Vec<_> = addresses.iter().copied().map(door).collect();
        connect(&to, deadline).await.map(|(_, peer)| peer)
    };
    match connected {
        Ok(peer) => findings.ok("connection", format_args!("{peer} lets a connection in, for {service}")),
        Err(not_open) if not_open.is_refused() => findings.fault(
            "not-listening",
            format_args!("{service} at port {}: {not_open}", port.number),
            "nothing listens there, or the gate has not opened it (guard = \"reset\"): look at the service itself",
        ),
        Err(not_open) => {
            let advice = if gate.answers() {
                "the gate has opened it: another firewall there or on the way drops it; `posternd check` there"
            } else {
                "the gate did not open it, or another firewall drops it; its log says which"
            };
            findings.fault(
                "no-connection",
                format_args!("{service} at port {}: {not_open}", port.number),
                advice,
            );
        }
    }
}

async fn close(
    gate: &Gate,
    opened: Vec<ServiceName>,
    options: &Options,
    findings: &mut Findings,
) -> Result<(), Error> {
    let names = joined(&opened);
    match ask(gate, Request::Close { services: Services::new(opened)? }, options).await {
        Ok(Some(_)) => findings.ok("closed", format_args!("closed again: {names}")),
        Ok(None) => findings.note("closed", format_args!("a knock was sent that closes again: {names}")),
        Err(error) => {
            let message = format!("not closed again: {names} ({error})");
            findings.warning("not-closed", message, "it ends with its window");
        }
    }
    Ok(())
}
