//! `posternd check --privileges`: what each process of the running gate holds, thread by thread, as the kernel says.

use std::fs;

use anyhow::{Context, bail};
use rustix::net::sockopt::socket_peercred;

use super::print;
use crate::admin::connect;
use crate::config::{Config, Files};
use crate::sandbox::{Held, names, threads_of};

pub(crate) fn run(files: &Files) -> anyhow::Result<()> {
    let config = Config::read_all(files)?;
    // Who listens there is the supervisor, whoever answers.
    let supervisor =
        socket_peercred(connect(&config.admin.socket)?)?.pid.as_raw_nonzero().get().unsigned_abs();
    let mut rows = Vec::new();
    for pid in std::iter::once(supervisor).chain(children(supervisor)?) {
        let threads = threads_of(pid).with_context(|| format!("cannot see what process {pid} holds"))?;
        rows.extend(threads.iter().map(|held| row(pid, held)));
    }
    print::table(["PID", "THREAD", "USER", "GROUPS", "NO_NEW_PRIVS", "SECCOMP", "CAPABILITIES"], &rows)?;
    let identity = config.identity()?;
    let confined = rows.iter().filter(|row| row[2] == identity.uid.to_string()).count();
    if confined == 0 {
        bail!("no process runs as the user of [process]: is the gate starting?");
    }
    Ok(())
}

fn row(pid: u32, held: &Held) -> [String; 7] {
    let yes_or_no = |yes| if yes { "yes" } else { "no" }.to_owned();
    let distinct = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    [
        pid.to_string(),
        held.name.clone(),
        distinct(&held.users),
        distinct(&held.groups),
        yes_or_no(held.no_new_privs),
        yes_or_no(held.seccomp),
        names(held.capabilities),
    ]
}

/// The processes that this one started.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is nobody's child.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if of.and_then(|of| of.trim().parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}
