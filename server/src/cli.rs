//! The command line of posternd, and the exit codes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use postern_proto::identity::is_unprintable;
use postern_proto::profile::Host;
use postern_proto::sequence::{PortRange, Rolling, Steps};
use postern_proto::{Port, Window};

use crate::commands::sequence;
use crate::config::{ConfigError, Files};
use crate::log;
use crate::rules::{Name, Output, Unfit};

pub(crate) mod client;

use client::ClientCommand;

/// posternd opens hidden ports to whoever sends one encrypted, replay-protected UDP packet.
#[derive(Parser)]
#[command(name = "posternd", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// The configuration file [default: /etc/postern/posternd.toml]
    #[arg(short, long, global = true, value_name = "FILE", env = "POSTERND_CONFIG")]
    config: Option<PathBuf>,
    /// Have the doors of this knockd.conf as well; without a configuration file, these alone
    #[arg(long, global = true, value_name = "FILE")]
    knockd: Option<PathBuf>,
    /// `run`, where only --knockd is given
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Cli {
    /// The files that say what the gate is to do.
    pub(crate) fn files(&self) -> Files {
        Files::new(self.config.as_deref(), self.knockd.as_deref())
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the firewall, the capture or the replay store (its message says which)
  2  bad usage
  3  bad configuration or key file

The log level is taken from POSTERND_LOG (error, warn, info, debug, trace).";

/// Nothing to do was named.
#[derive(Debug, thiserror::Error)]
#[error("say what to do. Usage: posternd [OPTIONS] <COMMAND>; --help lists the commands")]
pub(crate) struct NoCommand;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Watch for knocks and open ports, in the foreground
    Run {
        /// Let the guard fall after this time unless confirmed with SIGUSR1, so that a mistake locks nobody out
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        trial: Option<Duration>,
        /// How the log is written
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        log_format: log::Format,
    },
    /// Read the configuration and the key file, look at the firewall, and say what `run` would do
    Check {
        /// Say instead what each process of the running gate holds
        #[arg(long)]
        privileges: bool,
    },
    /// Write a commented configuration with a new gate id and a random knock port, and an empty key file
    Init {
        /// A name or address that clients reach this host by; repeat for several
        #[arg(long, value_name = "HOST")]
        address: Vec<Host>,
    },
    /// Manage clients; a running gate takes changes up at once
    #[command(subcommand)]
    Client(ClientCommand),
    /// Say of each packet of a capture file what the gate would do with it, and why
    Explain {
        /// A pcap file
        file: PathBuf,
    },
    /// Say how the running gate does
    Status(Asking),
    /// List the live leases: who is let in, where, and until when
    List(Asking),
    /// End leases: those of a client, an address or a lease number, or "all"
    Revoke {
        /// A lease's number, a client's name, an address, or "all"
        #[arg(value_name = "LEASE|CLIENT|ADDRESS|all")]
        which: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Have the running gate read its files again
    Reload(Asking),
    /// Put up the guard alone, without a gate behind it: what the host does while it boots
    Guard,
    /// Print rules for a firewall that does without posternd
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Make sequences of ports, for clients that can only touch ports
    #[command(subcommand)]
    Sequence(SequenceCommand),
    /// Care for what the gate remembers
    #[command(subcommand)]
    State(StateCommand),
    /// Print what a knockd.conf says as services and sequences for posternd.toml, and what is not the same
    ImportKnockd {
        /// The knockd.conf
        file: PathBuf,
    },
    /// Take every rule of Postern out of the firewall
    Remove,
    /// What `run` starts to read packets
    #[command(hide = true)]
    Front,
    /// What `run` starts to touch the firewall
    #[command(hide = true)]
    Warden,
    /// What `run` starts to run the commands of services
    #[command(hide = true)]
    Runner,
    /// What the runner starts to become one of them
    #[command(hide = true)]
    Launch {
        runner: i32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct Asking {
    /// The gate's socket, instead of the one that the configuration names
    #[arg(long, value_name = "PATH", env = "POSTERND_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Subcommand)]
pub(crate) enum RulesCommand {
    /// Open a port to a sequence of knocks; the kernel remembers who has sent which
    Recent {
        /// The ports to knock at, 1 to 16, such as 7000,8000:udp,9000
        #[arg(long, value_name = "STEPS")]
        sequence: Steps,
        /// The port to open, such as 22/tcp
        #[arg(long, value_name = "PORT")]
        port: Port,
        /// How long it is open to begin a session
        #[arg(long, value_name = "DURATION", default_value_t = Window::DEFAULT)]
        window: Window,
        /// How long a step may take
        #[arg(long, value_name = "DURATION", default_value = "15s")]
        timeout: Window,
        /// What chains and lists are named after [default: the port]
        #[arg(long)]
        name: Option<Name>,
        /// What reads the rules
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
}

#[derive(Subcommand)]
pub(crate) enum SequenceCommand {
    /// Draw new sequences, of ports that no service is known by and that nothing listens on; one a line
    New {
        /// How many steps each has, 3 to 32
        #[arg(long, value_name = "N", default_value_t = 4, value_parser = sequence::length)]
        steps: usize,
        /// How many sequences
        #[arg(long, value_name = "N", default_value_t = 1)]
        count: u32,
        /// Draw one that rolls instead: a key and a range of ports, as lines for posternd.toml and for its clients
        #[arg(long, conflicts_with_all = ["steps", "count"])]
        rolling: bool,
        /// How many ports it has, 1 to 32
        #[arg(long, value_name = "N", requires = "rolling", default_value_t = Rolling::LENGTH)]
        length: usize,
        /// The range [default: 10,000 ports in a row, or 1,000, that no service is known by and that nothing uses]
        #[arg(long, requires = "rolling")]
        range: Option<PortRange>,
    },
}

#[derive(Subcommand)]
pub(crate) enum StateCommand {
    /// Say what it costs to begin a new replay store, as after a damage; with --yes, do it and keep the old one aside
    Reset {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// A command line that reads, and does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A text that others may have had a hand in, such as a table's, as it can be shown on a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let escaped = |char: char| {
        let is_plain = !is_unprintable(char) || matches!(char, '\n' | '\t');
        if is_plain { Ok(char) } else { Err(char.escape_default()) }
    };
    let mut shown = String::with_capacity(text.len());
    for char in text.chars().map(escaped) {
        match char {
            Ok(char) => shown.push(char),
            Err(escape) => shown.extend(escape),
        }
    }
    shown
}

/// The exit code of a failure: 2 for options that do not go together, 3 for a file that the administrator has to mend,
/// else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_usage = error.is::<Unfit>() || error.is::<NoCommand>() || error.is::<Usage>();
    let is_config = error.chain().any(<dyn std::error::Error>::is::<ConfigError>);
    ExitCode::from(match (is_usage, is_config) {
        (true, _) => 2,
        (false, true) => 3,
        (false, false) => 1,
    })
}
