//! The command line of `posternd client`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use postern_proto::profile::Host;
use postern_proto::{ClientName, ServiceName, WallTime, Window};

#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Make a client: prints the line that it imports, once
    Add(NewClient),
    /// Make many clients of a table, all or none
    Import(Import),
    /// Give a client a new secret, and a profile with it; the old secret is good for a while yet
    Rotate(Rotation),
    /// Say which SSH key has to sign a client's knocks
    Key(NewKey),
    /// List the clients, without their secrets
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a disabled client knock again
    Enable {
        /// Its name
        name: ClientName,
    },
    /// Refuse a client as if it were not there
    Disable {
        /// Its name
        name: ClientName,
    },
    /// Delete a client and its secret
    Remove {
        /// Its name
        name: ClientName,
    },
}

#[derive(Args)]
pub(crate) struct NewClient {
    /// Its name, for logs and commands
    pub(crate) name: ClientName,
    /// A service that it may open; repeat for several
    #[arg(long = "service", required = true, value_name = "SERVICE")]
    pub(crate) services: Vec<ServiceName>,
    #[command(flatten)]
    pub(crate) signing: Signing,
    /// The longest window that it may ask for
    #[arg(long, value_name = "DURATION")]
    pub(crate) max_window: Option<Window>,
    /// A network that the address to let in must belong to; repeat for several
    #[arg(long = "source", value_name = "NETWORK")]
    pub(crate) sources: Vec<IpNet>,
    /// Refuse knocks that leave the address to let in to be observed
    #[arg(long)]
    pub(crate) must_state_source: bool,
    /// Allow knocks that let in another address than their own
    #[arg(long)]
    pub(crate) may_state_other_source: bool,
    /// How many leases it may hold at a time
    #[arg(long, value_name = "N")]
    pub(crate) max_leases: Option<u32>,
    /// From when on it may knock, such as 2027-01-31T18:00:00Z
    #[arg(long, value_name = "DATE")]
    pub(crate) not_before: Option<WallTime>,
    /// Until when it may knock
    #[arg(long, value_name = "DATE")]
    pub(crate) expires: Option<WallTime>,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
}

/// Which key signs.
#[derive(Args)]
pub(crate) struct Signing {
    /// The .pub file (- for stdin) of the SSH key that has to sign each of its knocks: Ed25519, also in a security key
    #[arg(long, value_name = "FILE", conflicts_with = "authorized_keys")]
    pub(crate) ssh_key: Option<PathBuf>,
    /// A file such as sshd's authorized-keys of which one key has to sign; it stays there, and each reload reads it
    #[arg(long, value_name = "PATH")]
    pub(crate) authorized_keys: Option<PathBuf>,
}

/// What profiles say of where the gate is.
#[derive(Args)]
pub(crate) struct Addresses {
    /// A name or address of this host for this profile, instead of those in the configuration; repeat for several
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Vec<Host>,
}

/// How a profile gets to its client.
#[derive(Args)]
pub(crate) struct DeliveryArgs {
    /// Write the profile to this new file, mode 0600, and print nothing secret
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Show the profile as a QR code, and not as a line
    #[arg(long, conflicts_with_all = ["out", "encrypt", "encrypt_to"])]
    pub(crate) qr: bool,
    #[command(flatten)]
    pub(crate) sealing: Sealing,
}

/// To whom a profile is encrypted.
#[derive(Args)]
pub(crate) struct Sealing {
    /// Encrypt the profile with age to the SSH key that signs for the client (ssh-ed25519)
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Encrypt it to the keys of this .pub file instead (ssh-ed25519 or ssh-rsa)
    #[arg(long, value_name = "FILE")]
    pub(crate) encrypt_to: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Rotation {
    /// Its name
    pub(crate) name: ClientName,
    /// How long the old secret is good beside the new one, at most a year; 0s ends it now
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = grace)]
    pub(crate) grace: Duration,
    /// The profile of the last rotation was lost: replace its secret, and leave the one before as it is
    #[arg(long, conflicts_with = "grace")]
    pub(crate) again: bool,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
}

/// Longest time for which two secrets of one client are good.
const LONGEST_GRACE: Duration = Duration::from_hours(366 * 24);

fn grace(text: &str) -> Result<Duration, String> {
    let grace = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if grace <= LONGEST_GRACE { Ok(grace) } else { Err("a grace time is a year at the most".to_owned()) }
}

#[derive(Args)]
#[group(id = "which", required = true, multiple = false, args = ["ssh_key", "authorized_keys", "none"])]
pub(crate) struct NewKey {
    /// Its name
    pub(crate) name: ClientName,
    #[command(flatten)]
    pub(crate) signing: Signing,
    /// None: its secret alone is enough
    #[arg(long)]
    pub(crate) none: bool,
}

#[derive(Args)]
pub(crate) struct Import {
    /// A table of clients, .csv or .toml; - for stdin
    pub(crate) file: PathBuf,
    /// How the table is written [default: as the file's name ends]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Make this new folder, and in it a file for each profile, instead of printing lines "name,profile"
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sealing: Sealing,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
}

/// How a table of clients is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values, with a line of titles
    Csv,
    /// [[client]] tables as in the key file, without id and secret
    Toml,
}
