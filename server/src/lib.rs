//! posternd, the gate of Postern: watches for knocks, verifies them, and opens ports for a timed window.
//!
//! ```text
//!  wire ──▶ front ────────────────────────────────────────────▶ warden ─────────────▶ kernel
//!           capture ─ frame ─ gate ─ recorder ─▶ link (orders)  ─▶  roll ─ ledger ─ firewall
//!           reads strangers' packets,                           touches the firewall,  errands ─▶ runner
//!           never the firewall                                  never a packet         runs commands, where there are any
//! ```
//! Several processes, one program: the `supervisor` reads the files of the administrator (`config`), starts the others
//! (what a `process` is, and the `sandbox` it goes into), and hands them new settings. None of the others imports another;
//! the folders are the map of privileges. `commands` holds what the administrator runs beside the gate (`rules` is what one
//! of them prints), `system` the only unsafe code.

// A command prints through its `print`, which says why when it cannot.
#![warn(clippy::print_stdout)]

mod address;
mod admin;
mod alarm;
mod alone;
mod cli;
mod clock;
mod commands;
mod config;
mod counters;
mod errand;
mod files;
pub mod front;
mod knockd;
mod last_use;
mod link;
mod log;
mod order;
mod process;
mod readiness;
mod rules;
mod runner;
mod sandbox;
mod supervisor;
mod system;
mod warden;

pub use cli::{Cli, exit_code, printable};
pub use clock::{BootTime, Now};

use cli::{Command, NoCommand};

/// Carries out a command line.
///
/// # Errors
/// What went wrong, for a person to read; [`exit_code`] tells its kind.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    let files = cli.files();
    let path = &files.config;
    // `posternd --knockd FILE` alone, as knockd is called.
    let Some(command) = &cli.command else {
        anyhow::ensure!(files.knockd.is_some(), NoCommand);
        return supervisor::run(&files, None, log::Format::default());
    };
    match command {
        Command::Run { trial, log_format } => supervisor::run(&files, *trial, *log_format),
        Command::Front => front::process::main(),
        Command::Warden => warden::process::main(),
        Command::Runner => runner::process::main(),
        Command::Launch { runner, argv } => runner::command::main(*runner, argv),
        Command::Check { privileges: false } => commands::check::run(&files),
        Command::Check { privileges: true } => commands::privileges::run(&files),
        Command::Init { address } => commands::init::run(path, address),
        Command::Client(command) => commands::client::run(path, command),
        Command::ImportKnockd { file } => commands::import_knockd::run(file),
        Command::Explain { file } => commands::explain::run(path, file),
        Command::Status(asking) => commands::control::status(path, asking),
        Command::List(asking) => commands::control::list(path, asking),
        Command::Revoke { which, asking } => commands::control::revoke(path, which, asking),
        Command::Reload(asking) => commands::control::reload(path, asking),
        Command::Guard => commands::guard::run(path),
        Command::Rules(command) => commands::rules::run(command.clone()),
        Command::Sequence(command) => commands::sequence::run(command),
        Command::State(command) => commands::state::run(path, command),
        Command::Remove => commands::remove::run(),
    }
}
