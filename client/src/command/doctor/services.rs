//! Opens each service for a moment, and goes through its door.
//!
//! Nothing is closed: what is open for this host's address is this client's as a whole, whoever knocked for it, and a close
//! would end the windows of others, and their sessions where the gate cuts them. A window that is open already is not
//! made shorter either.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use postern_proto::{Refusal, Request, ServiceName, Services, Window};
use tokio::time::Instant;

use super::findings::Findings;
use super::{only, refused};
use crate::connect::{connect, connect_opened};
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::reply::Reply;
use crate::report::open_line;

/// For how long a service is opened, in seconds: more than a connection takes.
const WINDOW_SECONDS: u32 = 10;

pub(super) async fn check(
    gate: &Gate,
    services: &Services,
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    findings: &mut Findings,
) -> Result<(), Error> {
    for service in services {
        let reply = match open(gate, service, options).await {
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
        go_through(gate, service, reply, addresses, options, findings).await;
    }
    Ok(())
}

/// Opens a service for a moment, or for its own window where even that is longer than this client may have.
async fn open(gate: &Gate, service: &ServiceName, options: &Options) -> Result<Option<Reply>, Error> {
    let ask = async |request| gate.send(request, options).await?.decision().await;
    match ask(request(service, Some(moment()))?).await {
        Err(Error::Refused(refused)) if refused.refusal == Refusal::WindowTooLong => {
            ask(request(service, None)?).await
        }
        opened => opened,
    }
}

/// What asks for a service.
pub(super) fn request(service: &ServiceName, window: Option<Window>) -> Result<Request, Error> {
    Ok(Request::Open { services: only(service)?, window, from_port: None })
}

pub(super) fn moment() -> Window {
    Window::from_secs(WINDOW_SECONDS).expect("it is not zero")
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
    let Some(port) = gate.first_tcp_port(service) else {
        findings.note("udp-service", format_args!("{service} has no TCP port that could be tried"));
        return;
    };
    let door = |address| SocketAddr::new(address, port.get());
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
            format_args!("{service} at port {port}: {not_open}"),
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
                format_args!("{service} at port {port}: {not_open}"),
                advice,
            );
        }
    }
}
