//! `postern knock`: asks a gate to open services, and waits for them where told to.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::{Profile, Protocol, ServiceName, Services, Source};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::profile_of;
use crate::cli::{Cli, KnockArgs};
use crate::connect::connect;
use crate::error::Error;
use crate::knock::{Ask, Destination, Knocker, knocked};
use crate::report::{FailedReport, KnockReport, KnockedReport, OpenReport, Report, say};
use crate::resolve::{Resolved, resolve};

pub(super) async fn run(cli: &Cli, args: &KnockArgs) -> Result<Report, Error> {
    let (source, family) = args.how.source_and_family()?;
    let (gate, profile) = profile_of(cli, &args.gate, &args.how)?;
    let services = wanted(&gate, &profile, &args.services)?;
    let doors = if args.wait.is_some() { first_tcp_ports(&profile, &services)? } else { Vec::new() };

    let resolved = resolve(&profile.addresses, family).await;
    resolved.require_one()?;
    let names = services.iter().cloned().collect();
    let window = args.how.window;
    let knocker = Knocker::new(&profile, Ask { services, window, from_port: args.from_port, source });
    let mut destinations = knocker.knock(resolved.addresses.iter().copied(), &profile.ports)?;
    knocker.repeat(&mut destinations, args.how.repeat - 1).await?;

    let failed = failures(&resolved, &destinations);
    if !cli.json {
        for FailedReport { host, message } in &failed {
            say(&format!("not knocked at {host}: {message}"));
        }
    }
    let open = match args.wait {
        Some(limit) => Some(wait(doors, &knocked(&destinations), limit).await?),
        None => None,
    };
    let knocks = destinations.iter().filter_map(report).collect();
    let window_seconds = window.map(postern_proto::Window::as_secs);
    Ok(Report::Knock(KnockReport { gate, services: names, window_seconds, knocks, failed, open }))
}

/// The services to knock for: all of the profile unless some are named.
fn wanted(gate: &str, profile: &Profile, named: &[ServiceName]) -> Result<Services, Error> {
    for service in named {
        if !profile.services.contains_key(service) {
            let known = profile.services.keys().map(ToString::to_string).collect();
            return Err(Error::UnknownService { gate: gate.to_owned(), service: service.clone(), known });
        }
    }
    let all = || profile.services.keys().cloned().collect();
    Ok(Services::new(if named.is_empty() { all() } else { named.to_vec() })?)
}

/// A service and the port that tells whether it is open. Only TCP answers.
type Door = (ServiceName, NonZeroU16);

fn first_tcp_ports(profile: &Profile, services: &Services) -> Result<Vec<Door>, Error> {
    let door = |service: &ServiceName| {
        let port = profile.services[service].iter().find(|port| port.protocol == Protocol::Tcp);
        let port = port.map(|port| (service.clone(), port.number));
        port.ok_or_else(|| {
            Error::Usage(format!("service {service} has no TCP port that --wait could try: leave it out"))
        })
    };
    services.iter().map(door).collect()
}

/// Until each door lets a connection in at one of the addresses.
async fn wait(doors: Vec<Door>, addresses: &[IpAddr], limit: Duration) -> Result<Vec<OpenReport>, Error> {
    let begin = Instant::now();
    let mut tries = JoinSet::new();
    for (service, port) in doors {
        let to: Vec<_> = addresses.iter().map(|&address| SocketAddr::new(address, port.get())).collect();
        tries.spawn(async move {
            let connected = connect(&to, begin + limit).await;
            (service, port.get(), connected, begin.elapsed())
        });
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for (service, port, connected, after) in tries.join_all().await {
        match connected {
            Ok((_, peer)) => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                open.push(OpenReport { service, address: peer.ip(), port, after_ms });
            }
            Err(not_open) => closed.push(format!("{service} at port {port} ({not_open})")),
        }
    }
    if closed.is_empty() {
        open.sort_by(|one, other| one.service.cmp(&other.service));
        return Ok(open);
    }
    closed.sort();
    Err(Error::InVain { waited: limit, what: format!("not open: {}", closed.join(", ")) })
}

fn failures(resolved: &Resolved, destinations: &[Destination]) -> Vec<FailedReport> {
    let names = resolved.failed.iter().map(|(host, message)| (host.to_string(), message.clone()));
    let sends = destinations.iter().filter_map(Destination::failure);
    names
        .chain(sends.map(|(to, error)| (to.to_string(), error.to_string())))
        .map(|(host, message)| FailedReport { host, message })
        .collect()
}

fn report(destination: &Destination) -> Option<KnockedReport> {
    let source = match destination.source? {
        Source::Observed => "observed".to_owned(),
        Source::Stated(address) => address.to_string(),
    };
    let (address, port) = (destination.to.ip(), destination.to.port());
    Some(KnockedReport { address, port, sent: destination.sent, source })
}
