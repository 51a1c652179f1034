//! `postern gates`: what is in the configuration, without the secrets. The steps of a sequence are one.

use std::path::Path;

use postern_proto::{GateName, IdentityKey};

use crate::config::{Config, Entry};
use crate::error::Error;
use crate::report::{GateReport, IdentityReport, Report};

pub(super) fn run(path: &Path) -> Result<Report, Error> {
    let config = Config::load(path)?;
    Ok(Report::Gates { gates: config.gates().iter().map(report).collect() })
}

fn report((name, gate): (&GateName, &Entry)) -> GateReport {
    let profile = gate.profile.as_ref();
    GateReport {
        name: name.clone(),
        addresses: gate.addresses.clone(),
        ports: profile.iter().flat_map(|profile| &profile.ports).map(|port| port.get()).collect(),
        services: profile.map(|profile| profile.services.clone()).unwrap_or_default(),
        identities: profile.iter().flat_map(|profile| &profile.identities).map(named).collect(),
        sequences: gate.sequences.iter().map(|(name, one)| (name.clone(), one.opens.clone())).collect(),
    }
}

fn named(key: &IdentityKey) -> IdentityReport {
    let comment = key.public().comment().to_owned();
    IdentityReport { fingerprint: key.fingerprint(), comment, needs_touch: key.needs_touch() }
}
