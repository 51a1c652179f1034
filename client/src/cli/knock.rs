//! The arguments of the commands that knock, besides `knock` and `proxy` themselves.

use std::time::Duration;

use clap::Args;
use postern_proto::ServiceName;
use postern_proto::profile::Host;

use super::{AimArgs, Gate, seconds};

#[derive(Args)]
pub(crate) struct CloseArgs {
    /// A gate of the configuration, or "-": the profile in --profile-file or in POSTERN_PROFILE
    pub(crate) gate: Gate,
    /// The services to close [default: all of the gate's profile]
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<ServiceName>,
    /// Wait for the gate's answer this long at most, and knock anew meanwhile
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "4")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) aim: AimArgs,
    #[command(flatten)]
    pub(crate) dry_run: DryRunArgs,
}

/// Whether to send at all.
#[derive(Args)]
pub(crate) struct DryRunArgs {
    /// Say what would be sent to where, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print each knock as a line of hexadecimal digits, and send nothing
    ///
    /// For "xxd -r -p | nc -u -w1 HOST PORT" from this very host. It is a key for a minute: whoever has it can send it, and
    /// where no address is stated in it (see --source), is let in by it.
    #[arg(long)]
    pub(crate) hex: bool,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// A gate of the configuration, or "-": the profile in --profile-file or in POSTERN_PROFILE
    pub(crate) gate: Gate,
    /// The services to try [default: all of the gate's profile]
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<ServiceName>,
    /// Compare this host's clock with that of a time server
    #[arg(long, value_name = "HOST")]
    pub(crate) ntp: Option<Host>,
    /// Tell whether address translation on the way lets "postern proxy --exact" work
    #[arg(long)]
    pub(crate) exact: bool,
    /// Wait for each answer and each connection this long at most
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) aim: AimArgs,
}

impl DryRunArgs {
    /// Whether nothing is to be sent.
    pub(crate) const fn is_dry(&self) -> bool {
        self.dry_run || self.hex
    }
}
