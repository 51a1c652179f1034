//! `postern proxy`: knocks, connects and carries stdin and stdout, as ssh's `ProxyCommand`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::path::Path;

use postern_proto::profile::Host;
use postern_proto::{GateName, Port, Profile, Protocol, ServiceName, Services};
use tokio::time::{Instant, timeout_at};

use super::{no_profile_file, profile_of};
use crate::cli::{Cli, ProxyArgs};
use crate::config::{Config, locate};
use crate::connect::connect;
use crate::error::Error;
use crate::knock::{Ask, Knocker, knocked};
use crate::report::{Report, joined};
use crate::resolve::resolve;
use crate::splice::splice;

/// The connection through the door that the knock opens.
pub(super) async fn run(cli: &Cli, args: &ProxyArgs) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + args.timeout;
    let (source, family) = args.how.source_and_family()?;
    if args.how.profile_file.as_deref() == Some(Path::new("-")) {
        return Err(Error::Usage(
            "the profile of a proxy cannot come from stdin, which is the connection's".into(),
        ));
    }
    let (gate, profile) = find_gate(cli, args)?;
    let service = service_at(&gate, &profile, args.port)?;
    let hosts = hosts(&profile, &args.host);

    let resolving = timeout_at(deadline, resolve(&hosts, family)).await;
    let resolved =
        resolving.map_err(|_| Error::Unresolved(vec![format!("{}: no answer in time", joined(&hosts))]))?;
    resolved.require_one()?;
    let services = Services::new(vec![service])?;
    let knocker = Knocker::new(&profile, Ask { services, window: args.how.window, from_port: None, source });
    let mut destinations = knocker.knock(resolved.addresses, &profile.ports)?;

    let to: Vec<_> = knocked(&destinations).iter().map(|&to| SocketAddr::new(to, args.port.get())).collect();
    let repeat = async {
        knocker.repeat(&mut destinations, args.how.repeat - 1).await?;
        std::future::pending::<Result<_, Error>>().await
    };
    let (stream, _) = tokio::select! {
        connected = connect(&to, deadline) => connected.map_err(|not_open| {
            let what = format!("no connection to {} at port {} ({not_open})", args.host, args.port);
            Error::InVain { waited: args.timeout, what }
        }),
        failed = repeat => failed,
    }?;
    let blocking = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    blocking.map_err(|source| Error::System { what: "cannot take the connection over", source })
}

/// Carries the connection to its end.
pub(super) fn carry(stream: &TcpStream) -> Result<Report, Error> {
    splice(stream).map_err(Error::Broken)?;
    Ok(Report::Carried)
}

fn find_gate(cli: &Cli, args: &ProxyArgs) -> Result<(String, Profile), Error> {
    if let Some(gate) = &args.gate {
        return profile_of(cli, gate, &args.how);
    }
    no_profile_file(&args.how)?;
    let path = locate(cli.config.as_deref())?;
    let config = Config::load(&path)?;
    let name = match gate_for(config.gates(), &args.host, args.port)[..] {
        [name] => name.clone(),
        [] => return Err(Error::NoGateFor { host: args.host.clone(), path }),
        ref several => {
            let gates = several.iter().map(ToString::to_string).collect();
            return Err(Error::Ambiguous { host: args.host.clone(), gates });
        }
    };
    Ok((name.to_string(), config.into_gate(&name, &path)?))
}

/// The gates that a host stands for: the one of that name, else those that list it as an address; of several, those
/// with a service at the port.
fn gate_for<'a>(gates: &'a BTreeMap<GateName, Profile>, host: &str, port: NonZeroU16) -> Vec<&'a GateName> {
    // ssh may write a name in lower case before it comes here.
    let named = gates.keys().find(|name| name.as_str() == host);
    let named = named.or_else(|| gates.keys().find(|name| name.as_str().eq_ignore_ascii_case(host)));
    if let Some(name) = named {
        return vec![name];
    }
    let lists_host = |profile: &Profile| profile.addresses.iter().any(|address| is_host(address, host));
    let mut listing: Vec<_> = gates.iter().filter(|(_, profile)| lists_host(profile)).collect();
    if listing.len() > 1 && listing.iter().any(|(_, profile)| services_at(profile, port).next().is_some()) {
        listing.retain(|(_, profile)| services_at(profile, port).next().is_some());
    }
    listing.into_iter().map(|(name, _)| name).collect()
}

/// Where to knock: at the host itself when it is one of the gate's, else at all of them.
fn hosts(profile: &Profile, host: &str) -> Vec<Host> {
    match profile.addresses.iter().find(|address| is_host(address, host)) {
        Some(address) => vec![address.clone()],
        None => profile.addresses.clone(),
    }
}

fn is_host(address: &Host, host: &str) -> bool {
    if let (Ok(address), Ok(host)) = (address.as_str().parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return address == host;
    }
    let name = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    name(address.as_str()) == name(host)
}

/// The service at a TCP port: of several the one with the fewest ports, to open no more than is needed.
fn service_at(gate: &str, profile: &Profile, port: NonZeroU16) -> Result<ServiceName, Error> {
    services_at(profile, port).min_by_key(|(_, ports)| ports.len()).map(|(name, _)| name.clone()).ok_or_else(
        || {
            let known =
                profile.services.iter().map(|(name, ports)| format!("{name} ({})", joined(ports))).collect();
            Error::UnknownPort { gate: gate.to_owned(), port: port.get(), known }
        },
    )
}

fn services_at(profile: &Profile, port: NonZeroU16) -> impl Iterator<Item = (&ServiceName, &Vec<Port>)> {
    let port = Port { protocol: Protocol::Tcp, number: port };
    profile.services.iter().filter(move |(_, ports)| ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATES: &str = r#"
        bastion = { addresses = ["bastion.example.org", "2001:db8::1"], services = { ssh = ["22/tcp"] } }
        inner = { addresses = ["192.0.2.1", "shared.example.org"], services = { ssh = ["22/tcp"] } }
        other = { addresses = ["shared.example.org", "both"], services = { all = ["22/tcp", "80/tcp"], web = ["80/tcp"] } }
        third = { addresses = ["both"], services = { dns = ["53/udp"] } }
    "#;

    fn gates() -> BTreeMap<GateName, Profile> {
        let keys = format!(
            "gate-id = {0:?}, client-id = {1:?}, secret = {2:?}",
            "A".repeat(22),
            "A".repeat(11),
            "A".repeat(43)
        );
        let text = GATES.replace("{ addresses", &format!("{{ {keys}, ports = [62201], addresses"));
        Config::parse(&format!("[gates]\n{text}")).unwrap().gates().clone()
    }

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    #[test]
    fn a_host_stands_for_a_gate() {
        let gates = gates();
        for (host, number, names) in [
            ("bastion", 22, &["bastion"][..]),
            ("BASTION", 22, &["bastion"]),
            ("Bastion.Example.org.", 22, &["bastion"]),
            ("2001:DB8:0::1", 22, &["bastion"]),
            ("192.0.2.1", 9, &["inner"]),
            ("shared.example.org", 22, &["inner", "other"]),
            ("shared.example.org", 80, &["other"]),
            ("shared.example.org", 9, &["inner", "other"]),
            ("both", 53, &["other", "third"]),
            ("elsewhere", 22, &[]),
            ("192.0.2.2", 22, &[]),
        ] {
            let found: Vec<_> =
                gate_for(&gates, host, port(number)).iter().map(|name| name.as_str()).collect();
            assert_eq!(found, names, "{host} {number}");
        }
    }

    #[test]
    fn a_host_of_the_gate_is_knocked_at_alone() {
        let gates = gates();
        let at = |host: &str| joined(&hosts(&gates[&"bastion".parse().unwrap()], host));
        assert_eq!(at("bastion.example.org."), "bastion.example.org");
        assert_eq!(at("2001:db8:0::1"), "2001:db8::1");
        assert_eq!(at("bastion"), "bastion.example.org, 2001:db8::1");
    }

    #[test]
    fn a_port_stands_for_the_narrowest_service() {
        let gates = gates();
        let service = |gate: &str, number| {
            let found = service_at(gate, &gates[&gate.parse().unwrap()], port(number));
            found.map_or_else(|error| error.to_string(), |service| service.to_string())
        };
        assert_eq!(service("bastion", 22), "ssh");
        assert_eq!(service("other", 80), "web");
        assert_eq!(service("other", 22), "all");
        assert_eq!(service("third", 53), "gate third has no service at port 53/tcp; it has dns (53/udp)");
    }
}
