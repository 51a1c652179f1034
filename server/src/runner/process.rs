//! The runner as a process of its own. It keeps what the supervisor has.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::ledger::LedgerError;
use super::{CommandTable, Runner};
use crate::errand::Errand;
use crate::link::{Message, Receiver};
use crate::process::{LONGEST_SETTINGS, Line, Report, Start, beat, live};

/// How long an earlier runner may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(50);
const PAUSE: Duration = Duration::from_millis(50);

/// What the runner is told at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) commands: CommandTable,
    /// The file of what is owed.
    pub(crate) ledger: PathBuf,
}

/// What the runner is told while it runs.
#[derive(Serialize, Deserialize)]
pub(crate) enum Command {
    /// Other commands, for leases that begin from now on.
    Reload(CommandTable),
}

impl Message for Command {
    const MAX: usize = LONGEST_SETTINGS;
}

/// What only the runner has to tell the supervisor: nothing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {}

/// The runner's `main`.
///
/// # Errors
/// When nobody started it who could tell it what to do.
pub(crate) fn main() -> anyhow::Result<()> {
    live(c"postern-runner", confine, work)
}

struct Ready {
    settings: Settings,
    errands: OwnedFd,
}

/// Takes what it was handed; there is nothing that it could give up.
fn confine(start: Start<Settings>, descriptors: Vec<OwnedFd>) -> anyhow::Result<Ready> {
    let errands = descriptors.into_iter().next().context("no link to the warden was handed over")?;
    Ok(Ready { settings: start.settings, errands })
}

async fn work(ready: Ready, line: Line<Command, Event>) -> anyhow::Result<()> {
    let Ready { settings, errands } = ready;
    beat(line.reports.clone(), || true)?;
    let runner = start(settings).await?;
    line.reports.send(&Report::Ready).await?;
    runner.run(Receiver::<Errand>::new(errands)?, line).await
}

/// Starts once an earlier runner, whose supervisor was killed, has ended what was open.
async fn start(settings: Settings) -> Result<Runner, LedgerError> {
    let begun = Instant::now();
    loop {
        match Runner::start(&settings.ledger, settings.commands.clone()) {
            Err(error) if error.is_in_use() && begun.elapsed() < PATIENCE => sleep(PAUSE).await,
            result => return result,
        }
    }
}
