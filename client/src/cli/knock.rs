//! The arguments of the commands that knock.

use std::num::NonZeroU16;
use std::time::Duration;

use clap::{Args, ValueEnum};
use postern_proto::ServiceName;
use postern_proto::profile::Host;

use super::{AimArgs, Gate, HowArgs, seconds};

#[derive(Args)]
pub(crate) struct KnockArgs {
    /// A gate of the configuration, or "-": the profile in --profile-file, else in POSTERN_PROFILE, else in the systemd
    /// credential postern-profile
    pub(crate) gate: Gate,
    /// The services to open [default: all of the gate's profile]
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<ServiceName>,
    /// Wait until the first TCP port of each service lets a connection in, this long at most
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with_all = ["dry_run", "hex"])]
    pub(crate) wait: Option<Duration>,
    /// Open only to connections from this source port
    ///
    /// Does not go with --wait, whose own connections would use the port up.
    #[arg(long, value_name = "PORT", conflicts_with = "wait")]
    pub(crate) from_port: Option<NonZeroU16>,
    /// Wait for the gate's answer this long at most, and knock anew meanwhile
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "4")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) how: HowArgs,
    #[command(flatten)]
    pub(crate) dry_run: DryRunArgs,
}

#[derive(Args)]
pub(crate) struct ProxyArgs {
    /// A gate's name or one of its addresses: ssh's %h
    pub(crate) host: String,
    /// The TCP port to open: ssh's %p
    pub(crate) port: NonZeroU16,
    /// The gate, where HOST does not tell; "-": the profile in --profile-file, else in POSTERN_PROFILE, else in the systemd
    /// credential postern-profile
    #[arg(long)]
    pub(crate) gate: Option<Gate>,
    /// Give up when there is no connection after this long
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "15")]
    pub(crate) timeout: Duration,
    /// Knock only when the port does not let a connection in at once
    #[arg(long)]
    pub(crate) lazy: bool,
    /// Have the gate let in this one connection only, by its source port
    ///
    /// Nobody else behind the same address translation can then use what was opened. Where the translation changes the
    /// port, this fails, and "prefer" knocks again for any port. It does not go with a sequence.
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "only")]
    pub(crate) exact: Option<Exact>,
    /// Close at the end what was opened; close-on-exit = true in the configuration says the same
    ///
    /// It closes all that this client has open for this service and this host's address, also what was opened by hand.
    #[arg(long)]
    pub(crate) close_on_exit: bool,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// What to do where a connection cannot be from the port that was stated.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Exact {
    /// Fail
    Only,
    /// Connect from any port
    Prefer,
}

#[derive(Args)]
pub(crate) struct CloseArgs {
    /// A gate of the configuration, or "-": the profile in --profile-file, else in POSTERN_PROFILE, else in the systemd
    /// credential postern-profile
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
    /// For "xxd -r -p | nc -u -w1 HOST PORT" from this very host. Where there are several, each is to be sent by itself, to the
    /// address and port that stderr names for it. It is a key for a minute: whoever has it can send it, and
    /// where no address is stated in it (see --source), is let in by it.
    #[arg(long)]
    pub(crate) hex: bool,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// A gate of the configuration, or "-": the profile in --profile-file, else in POSTERN_PROFILE, else in the systemd
    /// credential postern-profile
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
