//! The commands: each reads what it needs from the command line and the configuration, and walks the rooms.

mod completions;
mod doors;
mod gates;
mod import;
mod knock;
mod man;
mod proxy;
mod sequence;
mod ssh_config;

use std::future::Future;

use postern_proto::Profile;

use crate::cli::{Cli, Command, Gate, HowArgs};
use crate::config::{Config, Origin, lacks, locate};
use crate::error::Error;
use crate::report::{Report, be_quiet};

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
        Command::Sequence(args) => wait_for(sequence::run(cli, args)),
        Command::Proxy(args) => {
            if cli.json {
                return Err(Error::Usage(
                    "--json does not go with proxy: its stdout is the connection's".into(),
                ));
            }
            let stream = wait_for(proxy::run(cli, args))?;
            proxy::carry(&stream)
        }
        Command::Import(args) => import::run(&locate(cli.config.as_deref())?, args),
        Command::Gates => gates::run(&locate(cli.config.as_deref())?),
        Command::SshConfig(args) => ssh_config::run(cli, args),
        Command::Completions(args) => Ok(completions::run(args.shell)),
        Command::Man(args) => man::run(args),
    }
}

/// Runs a future on this thread. A name look-up that is still under way is left behind, for it cannot be stopped.
pub(crate) fn wait_for<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the event loop", source })?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}

/// The profile of the gate `-`: it needs neither configuration nor home.
fn at_hand(how: &HowArgs) -> Result<Profile, Error> {
    let origin = Origin::at_hand(how.profile_file.as_deref());
    let profile = origin.profile()?.ok_or(Error::NoProfile)?;
    match lacks(&profile) {
        Some(lack) => {
            Err(Error::Incomplete { origin: origin.name(), message: format!("the profile has {lack}") })
        }
        None => Ok(profile),
    }
}

/// `--profile-file` beside the name of a gate would go unread.
fn no_profile_file(how: &HowArgs) -> Result<(), Error> {
    match how.profile_file {
        Some(_) => {
            Err(Error::Usage("--profile-file is the profile of the gate \"-\": name that gate".into()))
        }
        None => Ok(()),
    }
}

/// The profile of a gate, and what to call it in messages.
fn profile_of(cli: &Cli, gate: &Gate, how: &HowArgs) -> Result<(String, Profile), Error> {
    match gate {
        Gate::AtHand => Ok(("-".to_owned(), at_hand(how)?)),
        Gate::Named(name) => {
            no_profile_file(how)?;
            let path = locate(cli.config.as_deref())?;
            let gate = Config::load(&path)?.into_gate(name, &path)?;
            let known = gate.sequences.keys().map(ToString::to_string).collect();
            let profile = gate.profile.ok_or_else(|| Error::NoKnock { gate: name.clone(), known })?;
            Ok((name.to_string(), profile))
        }
    }
}
