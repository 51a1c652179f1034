//! `postern knock`: asks a gate to open services, and waits for them where told to.

use postern_proto::{Profile, Protocol, ServiceName, Services, Source};

use super::doors::{Door, wait};
use super::profile_of;
use crate::cli::{Cli, KnockArgs};
use crate::error::{Advice, Error};
use crate::knock::{Ask, Destination, Knocker, knocked};
use crate::report::{FailedReport, KnockReport, KnockedReport, Report, say};
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
        Some(limit) => Some(wait(doors, &knocked(&destinations), limit, Advice::Knock).await?),
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

/// Only TCP answers.
fn first_tcp_ports(profile: &Profile, services: &Services) -> Result<Vec<Door>, Error> {
    let door = |service: &ServiceName| {
        let port = profile.services[service].iter().find(|port| port.protocol == Protocol::Tcp);
        let port = port.map(|port| Door { service: Some(service.clone()), port: port.number });
        port.ok_or_else(|| {
            Error::Usage(format!("service {service} has no TCP port that --wait could try: leave it out"))
        })
    };
    services.iter().map(door).collect()
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
