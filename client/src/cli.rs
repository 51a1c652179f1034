//! The command line. Its types are those of the rooms: what gets past here is well formed.

#![expect(clippy::doc_markdown, reason = "clap prints these comments as they are, backticks and all")]

mod knock;
mod manual;
mod sequence;
mod ssh_config;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use postern_proto::profile::Host;
use postern_proto::{GateName, NameError, ServiceName, Window};

use crate::error::Error;
use crate::gate::Options;
use crate::report;
use crate::resolve::Family;
use crate::source::SourceChoice;

pub(crate) use knock::{CloseArgs, DoctorArgs, DryRunArgs};
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
      ProxyCommand postern proxy %h %p";

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
    /// The gates' profiles [default: $XDG_CONFIG_HOME/postern/config.toml or ~/.config/postern/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = "POSTERN_CONFIG")]
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
    /// opens each service, connects to its first TCP port, and closes what it opened. It exits with 0 only where all is
    /// well.
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
    /// POSTERN_PROFILE. The rest of the configuration stays as it is, comments and all.
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
    /// Close at the end what the knock opened; close-on-exit = true in the configuration says the same
    #[arg(long)]
    pub(crate) close_on_exit: bool,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// How to knock.
#[derive(Args)]
pub(crate) struct HowArgs {
    /// Ask for this window, such as 30s or 10m [default: the service's own]
    #[arg(long)]
    pub(crate) window: Option<Window>,
    #[command(flatten)]
    pub(crate) aim: AimArgs,
}

/// Where to knock at, and from where.
#[derive(Args)]
pub(crate) struct AimArgs {
    /// Whom to let in: auto, observed, or an IP address
    ///
    /// "auto" states this host's address where it is a global one, and otherwise leaves it to the gate to observe where
    /// the knock comes from ("observed"). Stating it is the stronger: a knock that somebody holds back and sends first
    /// then lets in nobody else. With an IP address, only addresses of its family are knocked at.
    #[arg(long, default_value = "auto")]
    source: SourceChoice,
    /// Knock this many times, 100 ms apart, or until the gate answers; each knock is a fresh one
    ///
    /// For networks that lose packets. A gate that answers, and did not, is knocked at again in any case.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=20))]
    pub(crate) repeat: u8,
    /// Knock at IPv4 addresses only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Knock at IPv6 addresses only
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The profile of the gate "-"; the file "-" is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) profile_file: Option<PathBuf>,
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
    /// Knock at this host instead of the profile's addresses (repeatable)
    #[arg(long = "address", value_name = "HOST")]
    pub(crate) addresses: Vec<Host>,
}

/// What to do where a connection cannot be from the port that was stated.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Exact {
    /// Fail
    Only,
    /// Connect from any port
    Prefer,
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

impl HowArgs {
    /// How to knock, and how long to wait for the answer.
    pub(crate) fn options(&self, timeout: Duration) -> Result<Options, Error> {
        Ok(Options { window: self.window, ..self.aim.options(timeout)? })
    }

    /// For a sequence the address that the gate will see, where that was stated, and the one family, if any, that is left.
    /// It can say nothing else of this; and the address only where it is bound to it.
    pub(crate) fn of_sequence(&self, is_bound: bool) -> Result<(Option<IpAddr>, Option<Family>), Error> {
        let (source, family) = self.aim.source_and_family()?;
        let (stated, is_auto) = (self.aim.stated(), source == SourceChoice::Auto);
        let takes_source = is_auto || is_bound && stated.is_some();
        if self.window.is_some() || !takes_source || self.aim.repeat > 1 {
            return Err(Error::Usage(
                "a sequence says neither window nor source, and is sent once: leave --window, --source and --repeat out"
                    .into(),
            ));
        }
        Ok((stated, family))
    }
}

impl AimArgs {
    /// How to knock, and how long to wait for the answer.
    pub(crate) fn options(&self, timeout: Duration) -> Result<Options, Error> {
        let (source, family) = self.source_and_family()?;
        Ok(Options { source, family, repeat: self.repeat, timeout, ..Options::default() })
    }

    /// The source and the one family, if any, that it and `-4` and `-6` leave.
    fn source_and_family(&self) -> Result<(SourceChoice, Option<Family>), Error> {
        let family = family_with(self.stated(), one_family(self.ipv4, self.ipv6))?;
        Ok((self.source, family))
    }

    const fn stated(&self) -> Option<IpAddr> {
        if let SourceChoice::Stated(address) = self.source { Some(address) } else { None }
    }
}

/// The one family, if any, that a stated source and what `-4` or `-6` asks for leave.
fn family_with(stated: Option<IpAddr>, asked: Option<Family>) -> Result<Option<Family>, Error> {
    let Some(address) = stated else { return Ok(asked) };
    let stated = Family::of(address);
    if asked.is_some_and(|asked| asked != stated) {
        return Err(Error::Usage(format!("--source {address} is an {stated} address: leave -4 and -6 out")));
    }
    Ok(Some(stated))
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
