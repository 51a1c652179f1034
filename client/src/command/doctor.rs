//! `postern doctor`: follows a knock step by step, from the configuration to the open door, and says of each whether it
//! is well, and what to do where it is not.
//!
//! What it finds out at first changes nothing at the gate: probes ask for nothing, whenever they arrive. Then it opens
//! each service for a moment, and leaves the rest to its window. Where no probe is answered, one knock tells whether the
//! gate opens all the same.
//!
//! Where each knock takes a touch of a security key, it asks for as few as it can: one probe that is answered, and one for each
//! service.

mod answers_off;
mod findings;
mod local;
mod probe;
mod services;
mod silence;

use std::time::Duration;

use postern_proto::profile::Host;
use postern_proto::{ServiceName, Services};

use super::gate_of;
use crate::cli::{Cli, DoctorArgs, Gate as Which};
use crate::config::locate;
use crate::error::Error;
use crate::gate::Gate;
use crate::ntp;
use crate::report::{CLOCK_WARNING_SECONDS, Off, Report};
use crate::resolve::first;

use findings::Findings;

/// How long a time server may take.
const NTP_TIMEOUT: Duration = Duration::from_secs(3);
/// A gate refuses knocks that are off by more, unless it is configured otherwise.
const TOLERANCE_SECONDS: u64 = 60;

pub(super) async fn run(cli: &Cli, args: &DoctorArgs) -> Result<Report, Error> {
    let mut findings = Findings::new(!cli.json && !cli.quiet);
    let name = match &args.gate {
        Which::Named(name) => name.to_string(),
        Which::AtHand => "-".to_owned(),
    };
    match examine(cli, args, &mut findings).await {
        Err(Error::Signing(error)) => {
            findings.fault(
                "identity",
                error,
                "without a signature the gate refuses whatever this client asks",
            );
        }
        examined => examined?,
    }
    Ok(Report::Doctor(findings.report(name)))
}

/// Every check, up to the first without which the next ones say nothing.
async fn examine(cli: &Cli, args: &DoctorArgs, findings: &mut Findings) -> Result<(), Error> {
    let options = args.aim.options(args.timeout)?;
    let gate = match gate_of(cli, &args.gate, &args.aim) {
        Ok(gate) => gate,
        Err(error @ (Error::Usage(_) | Error::UnknownGate { .. } | Error::NoKnock { .. })) => {
            return Err(error);
        }
        Err(error) => {
            findings.fault("configuration", error, "without it there is nothing to knock with");
            return Ok(());
        }
    };
    match &args.gate {
        Which::Named(_) => local::configuration(&locate(cli.config.as_deref())?, findings),
        Which::AtHand => findings.ok("configuration", "the profile at hand is whole"),
    }
    let services = gate.wanted(&args.services)?;
    if let Some(server) = &args.ntp {
        clock(server, findings).await;
    }
    if !local::identity(&gate, findings) {
        return Ok(());
    }
    let Some(way) = local::way(&gate, &options, findings).await else { return Ok(()) };
    let heard = if gate.answers() {
        probe::probe(&gate, &services, &way, &options, args.exact, findings).await?
    } else {
        findings.note(
            "no-answers",
            "this gate does not answer: only a connection shows whether it hears, knows and accepts knocks",
        );
        true
    };
    if heard {
        services::check(&gate, &services, &way.addresses, &options, findings).await?;
    }
    Ok(())
}

/// This host's clock, against the time server that was named.
async fn clock(server: &Host, findings: &mut Findings) {
    let asked = match first(server, None).await {
        Ok(address) => {
            ntp::ask((address, ntp::PORT).into(), NTP_TIMEOUT).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match asked {
        Ok(offset) => {
            let whose = format!("that of {server}");
            let message = format!("this host's clock is {}", Off(offset, &whose));
            let seconds = offset.abs().as_secs();
            if seconds < CLOCK_WARNING_SECONDS {
                findings.ok("time-server", message);
            } else if seconds < TOLERANCE_SECONDS {
                findings.warning("time-server", message, SET_CLOCK);
            } else {
                findings.fault("time-server", message, SET_CLOCK);
            }
        }
        Err(error) => {
            let message = format!("the time server {server} says nothing of this host's clock: {error}");
            findings.warning("time-server-silent", message, "name another");
        }
    }
}

const SET_CLOCK: &str = "set it right, and have it kept right: timedatectl set-ntp true";

/// A service of the gate, asked for alone.
fn only(service: &ServiceName) -> Result<Services, Error> {
    Ok(Services::new(vec![service.clone()])?)
}

/// The gate's own words for why it refused, as a finding.
fn refused(gate: &Gate, what: &str, error: Error, findings: &mut Findings) -> Result<(), Error> {
    match error {
        Error::Refused(refused) => {
            let message = format!("{what}: {}", refused.refusal.meaning());
            findings.fault(refused.refusal.name(), message, refused.advice());
            Ok(())
        }
        Error::InVain { .. } => {
            let message = format!("{what}: gate {} did not answer", gate.name());
            findings.fault(
                "no-answer",
                message,
                "its firewall may not have taken it, or a quota be full: its log says so",
            );
            Ok(())
        }
        Error::Unsent(_) | Error::Unresolved(_) => {
            findings.fault("unsent", format!("{what}: {error}"), "try again: it was sent before");
            Ok(())
        }
        error => Err(error),
    }
}
