//! Which gate a host stands for, and what of the gate's opens the port: a service to knock for, else a classic sequence.
//! Of several the narrowest is taken, to open no more than is needed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::profile::Host;
use postern_proto::{GateName, Port, Profile, Protocol, ServiceName};

use super::super::{at_hand, no_profile_file};
use crate::cli::{Cli, Gate, ProxyArgs};
use crate::config::{Config, Entry, Sequence, locate};
use crate::error::Error;
use crate::report::joined;

/// What opens a port.
pub(super) enum Way<'a> {
    /// A knock for this service.
    Knock(&'a Profile, &'a ServiceName),
    Sequence(&'a Sequence),
}

/// The gate that the host stands for, and its name.
pub(super) fn find_gate(cli: &Cli, args: &ProxyArgs) -> Result<(String, Entry), Error> {
    if args.gate == Some(Gate::AtHand) {
        return Ok(("-".to_owned(), at_hand(&args.how.aim)?.into()));
    }
    no_profile_file(&args.how.aim)?;
    let path = locate(cli.config.as_deref())?;
    let config = Config::load(&path)?;
    let name = match &args.gate {
        Some(Gate::Named(name)) => name.clone(),
        _ => match gate_for(config.gates(), &args.host, args.port)[..] {
            [name] => name.clone(),
            [] => return Err(Error::NoGateFor { host: args.host.clone(), path }),
            ref several => {
                let gates = several.iter().map(ToString::to_string).collect();
                return Err(Error::Ambiguous { host: args.host.clone(), gates });
            }
        },
    };
    Ok((name.to_string(), config.into_gate(&name, &path)?))
}

/// What of the gate's opens the port.
pub(super) fn find_way<'a>(name: &str, gate: &'a Entry, port: NonZeroU16) -> Result<Way<'a>, Error> {
    if let Some(profile) = &gate.profile
        && let Some(service) = service_at(profile, port)
    {
        return Ok(Way::Knock(profile, service));
    }
    let sequence = gate.sequences_at(port).min_by_key(|(_, sequence)| sequence.opens.len());
    sequence.map(|(_, sequence)| Way::Sequence(sequence)).ok_or_else(|| unknown_port(name, gate, port))
}

/// The gates that a host stands for: the one of that name, else those that list it as an address; of several, those
/// that open the port.
fn gate_for<'a>(gates: &'a BTreeMap<GateName, Entry>, host: &str, port: NonZeroU16) -> Vec<&'a GateName> {
    // ssh may write a name in lower case before it comes here.
    let named = gates.keys().find(|name| name.as_str() == host);
    let named = named.or_else(|| gates.keys().find(|name| name.as_str().eq_ignore_ascii_case(host)));
    if let Some(name) = named {
        return vec![name];
    }
    let lists_host = |gate: &Entry| gate.addresses.iter().any(|address| is_host(address, host));
    let mut listing: Vec<_> = gates.iter().filter(|(_, gate)| lists_host(gate)).collect();
    if listing.len() > 1 && listing.iter().any(|(_, gate)| opens(gate, port)) {
        listing.retain(|(_, gate)| opens(gate, port));
    }
    listing.into_iter().map(|(name, _)| name).collect()
}

fn opens(gate: &Entry, port: NonZeroU16) -> bool {
    let by_knock = gate.profile.as_ref().is_some_and(|profile| service_at(profile, port).is_some());
    by_knock || gate.sequences_at(port).next().is_some()
}

/// Where to send to: the host itself when it is one of the gate's, else all of them.
pub(super) fn hosts(gate: &Entry, host: &str) -> Vec<Host> {
    match gate.addresses.iter().find(|address| is_host(address, host)) {
        Some(address) => vec![address.clone()],
        None => gate.addresses.clone(),
    }
}

fn is_host(address: &Host, host: &str) -> bool {
    if let (Ok(address), Ok(host)) = (address.as_str().parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return address == host;
    }
    let name = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    name(address.as_str()) == name(host)
}

/// The service at a TCP port: of several the one with the fewest ports.
fn service_at(profile: &Profile, number: NonZeroU16) -> Option<&ServiceName> {
    let port = Port { protocol: Protocol::Tcp, number };
    let services = profile.services.iter().filter(|(_, ports)| ports.contains(&port));
    services.min_by_key(|(_, ports)| ports.len()).map(|(name, _)| name)
}

pub(in super::super) fn unknown_port(name: &str, gate: &Entry, port: NonZeroU16) -> Error {
    let services = gate.profile.iter().flat_map(|profile| &profile.services);
    let services = services.map(|(name, ports)| format!("{name} ({})", joined(ports)));
    let sequences = gate.sequences.iter().map(|(name, one)| match &one.opens[..] {
        [] => name.to_string(),
        opens => format!("{name} ({})", joined(opens)),
    });
    Error::UnknownPort { gate: name.to_owned(), port: port.get(), known: services.chain(sequences).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::course::Course;

    const GATES: &str = r#"
        bastion = { addresses = ["bastion.example.org", "2001:db8::1"], services = { ssh = ["22/tcp"] } }
        inner = { addresses = ["192.0.2.1", "shared.example.org"], services = { ssh = ["22/tcp"] } }
        other = { addresses = ["shared.example.org", "both"], services = { all = ["22/tcp", "80/tcp"], web = ["80/tcp"] } }
        third = { addresses = ["both"], services = { dns = ["53/udp"] }, sequences.web = { steps = ["3"], opens = ["80/tcp"] } }
    "#;

    /// A gate without a profile.
    const OLD: &str = r#"
        [gates.old]
        addresses = ["192.0.2.8"]
        sequences.all = { steps = ["1"], opens = ["22/tcp", "80/tcp"] }
        sequences.ssh = { steps = ["2"], opens = ["22/tcp"] }
    "#;

    fn config() -> Config {
        let keys = format!(
            "gate-id = {0:?}, client-id = {1:?}, secret = {2:?}",
            "A".repeat(22),
            "A".repeat(11),
            "A".repeat(43)
        );
        let text = GATES.replace("{ addresses", &format!("{{ {keys}, ports = [62201], addresses"));
        Config::parse(&format!("[gates]\n{text}{OLD}")).unwrap()
    }

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    #[test]
    fn a_host_stands_for_a_gate() {
        let config = config();
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
            ("both", 80, &["other", "third"]),
            ("both", 22, &["other"]),
            ("192.0.2.8", 22, &["old"]),
            ("elsewhere", 22, &[]),
            ("192.0.2.2", 22, &[]),
        ] {
            let found: Vec<_> =
                gate_for(config.gates(), host, port(number)).iter().map(|name| name.as_str()).collect();
            assert_eq!(found, names, "{host} {number}");
        }
    }

    #[test]
    fn a_host_of_the_gate_is_knocked_at_alone() {
        let config = config();
        let at = |host: &str| joined(&hosts(&config.gates()[&"bastion".parse().unwrap()], host));
        assert_eq!(at("bastion.example.org."), "bastion.example.org");
        assert_eq!(at("2001:db8:0::1"), "2001:db8::1");
        assert_eq!(at("bastion"), "bastion.example.org, 2001:db8::1");
    }

    #[test]
    fn a_port_stands_for_the_narrowest_service() {
        let config = config();
        let service = |gate: &str, number| {
            let profile = config.gates()[&gate.parse().unwrap()].profile.as_ref().unwrap();
            service_at(profile, port(number)).map(ServiceName::as_str)
        };
        assert_eq!(service("bastion", 22), Some("ssh"));
        assert_eq!(service("other", 80), Some("web"));
        assert_eq!(service("other", 22), Some("all"));
        assert_eq!(service("third", 53), None);
    }

    #[test]
    fn a_sequence_opens_what_no_service_does() {
        let config = config();
        let opener = |gate: &str, number| {
            let gate = &config.gates()[&gate.parse().unwrap()];
            match find_way("gate", gate, port(number)) {
                Ok(Way::Knock(..)) => "a knock".to_owned(),
                Ok(Way::Sequence(sequence)) => {
                    let course = Course::new(&sequence.ports, None, false).unwrap();
                    course.steps_now().unwrap().0.to_string()
                }
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(opener("other", 80), "a knock");
        assert_eq!(opener("third", 80), "3:tcp");
        assert_eq!(opener("old", 22), "2:tcp");
        assert_eq!(opener("old", 80), "1:tcp");
        let none = "gate gate has no service at port 53/tcp; it has dns (53/udp), web (80/tcp)";
        assert_eq!(opener("third", 53), none);
    }
}
