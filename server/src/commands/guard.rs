//! `posternd guard`: the guard alone. A host puts it up before its network is there, so that no port is open in the time
//! until the gate runs, or while the gate cannot start. It needs no key file.

use std::path::Path;

use super::print::say;
use crate::config::Config;
use crate::process::event_loop;
use crate::warden;

pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let (reach, guard) = Config::guard_alone(path)?;
    event_loop(async move {
        match warden::guard_alone(reach, guard).await? {
            Some(leases) => say!("the guard is up; live leases: {leases}"),
            None => say!("a gate runs here and keeps the guard up"),
        }
    })
}
