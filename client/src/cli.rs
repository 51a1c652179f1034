//! The command line. Its types are those of the rooms: what gets past here is well formed.

#![expect(clippy::doc_markdown, reason = "clap prints these comments as they are, backticks and all")]

mod aim;
mod knock;
mod manual;
mod sequence;
mod ssh_config;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use postern_proto::profile::Host;
use postern_proto::{GateName, NameError};

use crate::report;
use crate::resolve::Family;

use aim::family_with;
pub(crate) use aim::{AimArgs, HowArgs};
pub(crate) use knock::{CloseArgs, DoctorArgs, DryRunArgs, Exact, KnockArgs, ProxyArgs};
pub(crate) use manual::{CompletionsArgs, ManArgs, Shell};
pub(crate) use sequence::{SequenceArgs, Which, delay, parse_steps};
pub(crate) use ssh_config::SshConfigArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  anything else failed
  2  bad usage
  3  bad configuration or key
  4  cannot resolve or send
  5  waited in vain
  6  the gate refused";

const SEQUENCE_USAGE: &str = "\
postern sequence [OPTIONS] <HOST> <STEP>...
       postern sequence [OPTIONS] <GATE> <NAME>";

const SSH: &str = "\
In ~/.ssh/config, where \"postern ssh-config bastion --install\" puts it:
  Host bastion
      ProxyCommand postern proxy --gate bastion %h %p";

const COMPLETIONS: &str = "\
To be found by:
  bash  postern completions bash > ~/.local/share/bash-completion/completions/postern
  zsh   postern completions zsh > ~/.zfunc/_postern    # with ~/.zfunc in fpath, before compinit
  fish  postern completions fish > ~/.config/fish/completions/postern.fish";

/// Knocks at a Postern gate: one encrypted UDP packet opens a hidden port for a timed window.
///
/// A gate answers a client's knock, unless its administrator has turned that off, and nobody else's. Without answers, "sent"
/// means that the packet left this host; --wait and "postern proxy" find out whether the door is open by going through it.
#[derive(Parser)]
#[command(name = "postern", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
#[command(arg_required_else_help = false)]
pub struct Cli {
    // The value is hidden: a profile that was put there by mistake is a secret.
    /// The gates' profiles [default: $XDG_CONFIG_HOME/postern/config.toml or ~/.config/postern/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = "POSTERN_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print one JSON object on stdout, also when the command fails
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but errors; the exit code tells the rest
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Ask a gate to open services to this host
    #[command(after_help = EXIT_CODES)]
    Knock(KnockArgs),
    /// Ask a gate to close again what it has open for this host
    #[command(after_help = EXIT_CODES)]
    Close(CloseArgs),
    /// Knock, connect and carry stdin and stdout: ssh's ProxyCommand
    ///
    /// Where no service of the gate has the port, and a sequence of the gate opens it, that is sent instead of a knock.
    #[command(after_help = format!("{SSH}\n\n{EXIT_CODES}"))]
    Proxy(ProxyArgs),
    /// Find out why a gate does not open: follows a knock step by step
    ///
    /// It looks at the configuration, names, routes, clocks and address translation by probes that open nothing; then it
    /// opens each service for 10 seconds and connects to its first TCP port. It closes nothing. It exits with 0 only where
    /// all is well.
    #[command(after_help = EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Touch ports in their order: a classic sequence, for knockd or a gate's own
    ///
    /// A TCP step is one SYN, a UDP step one datagram. Where the configuration has sequences for a gate, the NAME of one
    /// stands for its steps. Options and steps are those of knockd's client; called as "knock", by a link, this program
    /// stands in for it.
    #[command(version, after_help = EXIT_CODES, override_usage = SEQUENCE_USAGE)]
    Sequence(SequenceArgs),
    /// Keep a gate's profile in the configuration
    ///
    /// The profile is read from the first that is given: the argument, --file, the environment variable
    /// POSTERN_PROFILE. It is a line, as it was printed or as "zbarimg -q" or "zbarcam -1" read it from a QR code, or what age
    /// made of that line for your SSH key, armored or not. The rest of the configuration stays as it is, comments and all.
    #[command(after_help = EXIT_CODES)]
    Import(ImportArgs),
    /// List the gates of the configuration, without their secrets
    #[command(after_help = EXIT_CODES)]
    Gates,
    /// Print what ssh needs in its configuration to go through a gate, or put it there
    ///
    /// The block names the gate and its addresses, so that ssh, scp, sftp, rsync, git and all else that uses ssh knock by
    /// themselves. The host's key is looked up under the name that is typed, as without it: for the gate's own name ssh
    /// asks once.
    #[command(after_help = EXIT_CODES)]
    SshConfig(SshConfigArgs),
    /// Print what a shell needs to complete the arguments of postern
    #[command(after_help = format!("{COMPLETIONS}\n\n{EXIT_CODES}"))]
    Completions(CompletionsArgs),
    /// Print a page of the manual, for "man -l -", or write all of them
    #[command(after_help = EXIT_CODES)]
    Man(ManArgs),
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// What to call the gate
    pub(crate) name: GateName,
    /// The profile, or "-": stdin, where other users cannot see it
    #[arg(conflicts_with = "file")]
    pub(crate) profile: Option<String>,
    /// Read the profile from a file
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Replace a gate of that name
    #[arg(long)]
    pub(crate) force: bool,
    /// Decrypt with this private key what age encrypted [default: ~/.ssh/id_ed25519]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Knock at this host instead of the profile's addresses (repeatable)
    #[arg(long = "address", value_name = "HOST")]
    pub(crate) addresses: Vec<Host>,
}

/// A gate of the configuration, or the profile at hand.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    Named(GateName),
    /// `-`
    AtHand,
}

impl FromStr for Gate {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "-" { Ok(Self::AtHand) } else { text.parse().map(Self::Named) }
    }
}

/// The family that `-4` or `-6` leaves.
pub(crate) const fn one_family(ipv4: bool, ipv6: bool) -> Option<Family> {
    match (ipv4, ipv6) {
        (true, _) => Some(Family::V4),
        (_, true) => Some(Family::V6),
        _ => None,
    }
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or("a number of seconds, up to a day")
}

impl Cli {
    /// Reads the command line of this process.
    ///
    /// # Errors
    /// [`NotRun`] when it asks for help or for the version, and when it is wrong.
    pub fn read() -> Result<Self, NotRun> {
        Self::try_parse().map_err(NotRun)
    }
}

/// A command line without a command to run.
pub struct NotRun(clap::Error);

impl NotRun {
    /// Prints the help that was asked for, or what is wrong.
    #[must_use]
    pub fn finish(self) -> ExitCode {
        if self.0.use_stderr() {
            let json = std::env::args_os().any(|argument| argument == "--json");
            let message = self.0.to_string();
            report::fail(json, message.trim_start_matches("error: ").trim_end(), 2)
        } else if self.0.print().is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["", "0", "-1", "10s", "nan", "inf", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
