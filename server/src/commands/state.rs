//! `posternd state`: what the gate remembers, when it has to be begun anew.

use std::path::Path;

use anyhow::bail;
use postern_proto::{Tolerance, WallTime};

use super::print::say;
use crate::cli::StateCommand;
use crate::clock::Now;
use crate::config::Config;
use crate::front::store::{self, Condition, Reset};

pub(crate) fn run(path: &Path, command: &StateCommand) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let StateCommand::Reset { yes } = command;
    let (folder, tolerance) = (config.store(), config.gate.tolerance);
    if *yes {
        reset(&folder, Now::read().wall, tolerance)
    } else {
        say_cost(&folder, tolerance)?;
        bail!("nothing was changed; `posternd state reset --yes` does it");
    }
}

fn reset(folder: &Path, now: WallTime, tolerance: Tolerance) -> anyhow::Result<()> {
    let Reset { kept, floor } = store::reset(folder, now, tolerance)?;
    say!("{}: a new store, which remembers nothing", store::path_in(folder).display())?;
    if let Some(kept) = kept {
        say!("{}: the old one", kept.display())?;
    }
    say!("knocks made before {floor} are refused as stale")
}

fn say_cost(folder: &Path, tolerance: Tolerance) -> anyhow::Result<()> {
    let file = store::path_in(folder);
    let file = file.display();
    match store::examine(folder) {
        Ok(Condition::Sound { knocks }) => {
            say!("{file}: reads well and remembers {knocks} knocks; nothing in it asks for a reset")?;
        }
        Ok(Condition::InUse) => say!("{file}: in use by a running gate; stop it first")?,
        Ok(Condition::Missing) => say!("{file}: not there")?,
        Err(error) => say!("{error}")?,
    }
    let (once, twice) = (tolerance.duration(), 2 * tolerance.duration());
    let (once, twice) = (humantime::format_duration(once), humantime::format_duration(twice));
    say!(
        "a reset begins a new store in its place, and keeps the old one beside it. What it costs: the gate"
    )?;
    say!(
        "forgets which knocks were used. So that none of them opens again, no knock opens for {once} after it,"
    )?;
    say!(
        "and none of a client whose clock is slow for up to {twice}. Windows that are open, sessions, clients"
    )?;
    say!("and the firewall stay as they are.")
}
