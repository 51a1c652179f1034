//! One command: an argument vector, what it is told of the lease, and its end by a deadline. No shell is involved unless
//! the administrator names one.
//!
//! It is started through this program ([`main`]), which has it die with the runner: a command for the beginning that
//! outlived its runner could come behind the one for the end, which the next runner runs.

use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use postern_proto::Port;
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use crate::errand::LeaseKey;

/// Stands for the address in an argument, as in knockd.conf.
const ADDRESS: &str = "%IP%";
/// Where programs are looked for that are named without a path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments, for one address family or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Argv(Vec<String>);

impl Argv {
    /// `None` without a program.
    pub(crate) fn new(words: Vec<String>) -> Option<Self> {
        words.first().is_some_and(|program| !program.is_empty()).then_some(Self(words))
    }

    /// With the address in its place. An address is typed: nothing that anybody sent is in its text.
    pub(super) fn of(&self, source: IpAddr) -> Self {
        let address = source.to_string();
        Self(self.0.iter().map(|word| word.replace(ADDRESS, &address)).collect())
    }
}

/// Becomes a command of the runner with this process id, and dies with it.
///
/// # Errors
/// When the runner has died already, or there is no such program.
pub(crate) fn main(runner: i32, argv: &[String]) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that took effect.
    ensure!(getppid().map(|parent| parent.as_raw_nonzero().get()) == Some(runner), "the runner is gone");
    let (program, arguments) = argv.split_first().context("no program is named")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| program.clone())
}

/// Why a command did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("cannot be run: {0}")]
    Spawn(#[from] std::io::Error),
    #[error("it failed: {0}")]
    Failed(ExitStatus),
    #[error("it took longer than {}, and was ended", humantime::format_duration(*.0))]
    Late(Duration),
}

/// Runs a command to its end, or to the deadline: then it is ended with everything that it runs.
///
/// In its environment stand the path for programs and the lease, and nothing else.
///
/// # Errors
/// [`CommandError`]
pub(super) async fn run(
    argv: &Argv,
    lease: &LeaseKey,
    ports: &[Port],
    deadline: Duration,
) -> Result<(), CommandError> {
    let LeaseKey { client, service, source, from_port } = lease;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("posternd").arg("launch").arg(std::process::id().to_string()).args(&argv.0);
    command.env_clear().env("PATH", PATH);
    command.env("POSTERN_CLIENT", client.as_str()).env("POSTERN_SERVICE", service.as_str());
    command.env("POSTERN_ADDRESS", source.to_string());
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    command.env("POSTERN_PORTS", ports.join(","));
    if let Some(from_port) = from_port {
        command.env("POSTERN_FROM_PORT", from_port.to_string());
    }
    // What it writes must not look like the gate's own log.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own, to be ended as a whole.
    let mut child = command.process_group(0).current_dir("/").spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let Ok(ended) = timeout(deadline, child.wait()).await else {
        if let Some(group) = group {
            // It fails where all have ended meanwhile, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
        child.wait().await?;
        return Err(CommandError::Late(deadline));
    };
    let status = ended?;
    if status.success() { Ok(()) } else { Err(CommandError::Failed(status)) }
}
