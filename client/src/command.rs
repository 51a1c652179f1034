//! The commands: each reads what it needs from the command line and the configuration, and walks the rooms.

mod close;
mod completions;
mod doctor;
mod doors;
mod dry_run;
mod gates;
mod import;
mod knock;
mod man;
mod proxy;
mod sequence;
mod ssh_config;

use std::future::Future;

use nix::sys::signal::SigSet;
use postern_proto::{Profile, Source};

use crate::cli::{AimArgs, Cli, Command, Gate as Which};
use crate::config::{Origin, lacks, locate};
use crate::error::Error;
use crate::gate::{Gate, Sending};
use crate::report::{FailedReport, KnockedReport, Report, be_quiet, say};
use crate::rounds::Destination;

/// Does what the command line says.
///
/// # Errors
/// [`Error`], with the exit code that it stands for.
pub fn run(cli: &Cli) -> Result<Report, Error> {
    if cli.quiet {
        if cli.json {
            return Err(Error::Usage("--quiet does not go with --json: leave one out".into()));
        }
        be_quiet();
    }
    match &cli.command {
        Command::Knock(args) => wait_for(knock::run(cli, args)),
        Command::Close(args) => wait_for(close::run(cli, args)),
        Command::Doctor(args) => wait_for(doctor::run(cli, args)),
        Command::Sequence(args) => wait_for(sequence::run(cli, args)),
        Command::Proxy(args) => {
            if cli.json {
                return Err(Error::Usage(
                    "--json does not go with proxy: its stdout is the connection's".into(),
                ));
            }
            wait_for(proxy::run(cli, args))
        }
        Command::Import(args) => import::run(&locate(cli.config.as_deref())?, args),
        Command::Gates => gates::run(&locate(cli.config.as_deref())?),
        Command::SshConfig(args) => ssh_config::run(cli, args),
        Command::Completions(args) => Ok(completions::run(args.shell)),
        Command::Man(args) => man::run(args),
    }
}

/// Runs a future on this thread. A name look-up that is still under way, or a reading of stdin, is left behind, for it
/// cannot be stopped; signals come to this thread and not to that, so that they can be held while somebody is asked.
pub(crate) fn wait_for<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(|| SigSet::all().thread_block().expect("these are signals"))
        .build()
        .map_err(|source| Error::System { what: "cannot start the event loop", source })?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}

/// Names and addresses that no knock could be sent to; people are told of them at once.
fn failures(cli: &Cli, sending: &Sending<'_>) -> Vec<FailedReport> {
    let failed: Vec<_> = sending.failures().map(|(host, message)| FailedReport { host, message }).collect();
    say_failures(cli, &failed);
    failed
}

fn say_failures(cli: &Cli, failed: &[FailedReport]) {
    if !cli.json {
        for FailedReport { host, message } in failed {
            say(&format!("not knocked at {host}: {message}"));
        }
    }
}

/// Where knocks went.
fn knocks(sending: &Sending<'_>) -> Vec<KnockedReport> {
    let report = |destination: &Destination| {
        let (source, sent) = (source_text(destination.source?), destination.sent);
        let (address, port) = (destination.to.ip(), destination.to.port());
        Some(KnockedReport { address, port, sent, source, times: sent, datagram: None })
    };
    sending.destinations().iter().filter_map(report).collect()
}

fn source_text(source: Source) -> String {
    match source {
        Source::Observed => "observed".to_owned(),
        Source::Stated(address) => address.to_string(),
    }
}

/// The profile of the gate `-`: it needs neither configuration nor home.
fn at_hand(aim: &AimArgs) -> Result<Profile, Error> {
    let origin = Origin::at_hand(aim.profile_file.as_deref());
    let profile = origin.profile()?.ok_or(Error::NoProfile)?;
    match lacks(&profile) {
        Some(lack) => {
            Err(Error::Incomplete { origin: origin.name(), message: format!("the profile has {lack}") })
        }
        None => Ok(profile),
    }
}

/// `--profile-file` beside the name of a gate would go unread.
fn no_profile_file(aim: &AimArgs) -> Result<(), Error> {
    match aim.profile_file {
        Some(_) => {
            Err(Error::Usage("--profile-file is the profile of the gate \"-\": name that gate".into()))
        }
        None => Ok(()),
    }
}

/// The gate that the command line names.
fn gate_of(cli: &Cli, gate: &Which, aim: &AimArgs) -> Result<Gate, Error> {
    let gate = match gate {
        Which::AtHand => Gate::new("-".to_owned(), at_hand(aim)?),
        Which::Named(name) => {
            no_profile_file(aim)?;
            Gate::load(name, cli.config.as_deref())?
        }
    };
    Ok(match &aim.identity {
        Some(file) => gate.with_identity(file),
        None => gate,
    })
}
