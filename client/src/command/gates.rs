//! `postern gates`: what is in the configuration, without the secrets.

use std::path::Path;

use postern_proto::{GateName, Profile};

use crate::config::Config;
use crate::error::Error;
use crate::report::{GateReport, Report};

pub(super) fn run(path: &Path) -> Result<Report, Error> {
    let config = Config::load(path)?;
    Ok(Report::Gates { gates: config.gates().iter().map(report).collect() })
}

fn report((name, profile): (&GateName, &Profile)) -> GateReport {
    GateReport {
        name: name.clone(),
        addresses: profile.addresses.clone(),
        ports: profile.ports.iter().map(|port| port.get()).collect(),
        services: profile.services.clone(),
    }
}
