//! The processes of a gate, told apart by their command lines: which one is killed, and who takes its place.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::Gate;
use crate::process::has_ended;
use crate::wait::{LONG, wait_for};

/// What a process of a gate is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that was started, and starts the others.
    Supervisor,
    /// The one that reads packets.
    Front,
    /// The one that touches the firewall.
    Warden,
    /// The one that runs commands, where there are any.
    Runner,
}

impl Role {
    /// What it is called in the log, and in its command line unless it is the supervisor.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Front => "front",
            Self::Warden => "warden",
            Self::Runner => "runner",
        }
    }
}

impl Gate {
    /// The process in a role, where there is one at present.
    ///
    /// # Errors
    /// When `posternd` was not started.
    pub fn pid(&self, role: Role) -> Result<Option<Pid>> {
        let supervisor = self.running()?.pid();
        if role == Role::Supervisor {
            return Ok(Some(supervisor));
        }
        let number = supervisor.as_raw_nonzero();
        // Of one that has ended, there are none.
        let children =
            fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
        let is_it = |pid: &Pid| {
            let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            line.is_ok_and(|line| line.split('\0').nth(1) == Some(role.name()))
        };
        let pids = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        Ok(pids.into_iter().find(is_it))
    }

    /// Waits until a role is filled, by another process than those.
    ///
    /// # Errors
    /// When it is not.
    pub fn wait_for_pid(&self, role: Role, not: &[Pid]) -> Result<Pid> {
        let filled = || Ok(self.pid(role)?.filter(|pid| !not.contains(pid)));
        wait_for(&format!("a {}", role.name()), LONG, filled)
    }

    /// Sends the process in a role a signal; gives its pid.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal_to(&self, role: Role, signal: Signal) -> Result<Pid> {
        let pid = self.pid(role)?.with_context(|| format!("there is a {}", role.name()))?;
        kill_process(pid, signal).with_context(|| format!("signal to the {}", role.name()))?;
        Ok(pid)
    }

    /// Kills the process in a role with SIGKILL, and waits until it is gone; gives what was its pid.
    ///
    /// # Errors
    /// When there is none, or it outlives it.
    pub fn kill_one(&self, role: Role) -> Result<Pid> {
        let pid = self.signal_to(role, Signal::KILL)?;
        wait_for(&format!("the end of the {}", role.name()), LONG, || Ok(has_ended(pid).then_some(())))?;
        Ok(pid)
    }
}
