//! The warden as a process of its own: an unprivileged user that may configure the network, run iptables, and not much
//! else. It never sees a packet.

use std::env;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::firewall::{Backend, Family, Firewall, installed};
use super::guard::Guard;
use super::responder::Responder;
use super::roll::Roll;
use super::{Ended, Warden, admin};
use crate::clock::BootTime;
use crate::link::{Message, Receiver, Sender};
use crate::order::Orders;
use crate::process::{LONGEST_SETTINGS, Line, Report, Start, beat, live};
use crate::sandbox::{self, Access, Calls, Files, Keeps};

/// The capabilities of the warden, and of iptables as it runs it, at the most: without iptables-legacy, which asks for its
/// tables through a raw socket, the warden gives `NET_RAW` up as well.
pub(crate) const CAPABILITIES: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// The file that programs of iptables-legacy lock so that no two write at a time.
const LOCK: &str = "/run/xtables.lock";
/// The environment variable that names another.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";

/// What the warden is told at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// When the gate was started.
    pub(crate) since: BootTime,
    pub(crate) reach: Reach,
    pub(crate) guard: Guard,
    pub(crate) roll: Roll,
}

/// How one warden reaches the firewall, and clients, for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reach {
    pub(crate) backend: Backend,
    pub(crate) families: Vec<Family>,
    /// The knock ports from which clients are answered, if they are.
    pub(crate) answers: Vec<NonZeroU16>,
}

/// What the warden is told while it runs.
#[derive(Serialize, Deserialize)]
pub(crate) enum Command {
    /// Who may have what and what is guarded, from now on. Leases that are not allowed any more end.
    Reload { guard: Guard, roll: Roll },
    /// The trial is over: the guard stays.
    Confirm,
}

impl Message for Command {
    const MAX: usize = LONGEST_SETTINGS;
}

/// What only the warden has to tell the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The trial was confirmed: the guard stays.
    Confirmed,
    /// The trial was not confirmed; everything of ours is gone from the firewall.
    TrialOver,
}

/// The warden's `main`.
///
/// # Errors
/// When nobody started it who could tell it what to do.
pub(crate) fn main() -> anyhow::Result<()> {
    live(c"postern-warden", confine, work)
}

struct Confined {
    settings: Settings,
    orders: OwnedFd,
    /// The listening admin socket.
    admin: OwnedFd,
    /// The link over which it hands on who asks for a reload.
    reloads: OwnedFd,
    /// The link to the runner, where there is one.
    runner: Option<OwnedFd>,
    /// Its part in the one place of this network namespace: as long as it lives, there is no other.
    alone: OwnedFd,
    /// Where rules of ours may be, whatever the settings say: only root can ask.
    installed: Vec<Firewall>,
    responder: Responder,
}

/// Gives up what a warden does not need.
fn confine(start: Start<Settings>, descriptors: Vec<OwnedFd>) -> anyhow::Result<Confined> {
    let Start { identity, settings, .. } = start;
    let mut descriptors = descriptors.into_iter();
    let orders = descriptors.next().context("no link to the front was handed over")?;
    let admin = descriptors.next().context("no admin socket was handed over")?;
    let reloads = descriptors.next().context("no link for reloads was handed over")?;
    let alone = descriptors.next().context("no place was handed over")?;
    let runner = descriptors.next();
    let installed = installed();
    let Reach { answers, families, .. } = &settings.reach;
    let responder = Responder::open(answers, families);
    // Programs and libraries, what these read about themselves, and what iptables asks of the kernel.
    let files = Files::default()
        .keep_existing(&["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"], Access::Run)
        .keep_existing(
            &["/etc/ld.so.cache", "/etc/protocols", "/etc/services", "/etc/nsswitch.conf"],
            Access::Read,
        )
        .keep("/proc", Access::Read)
        .keep("/dev/null", Access::Write);
    let lock = lock_file();
    let files = if lock.exists() { files.keep(lock, Access::Write) } else { files };
    let configured = Firewall::new(settings.reach.backend, &settings.reach.families);
    let is_legacy = configured.is_legacy() || installed.iter().any(Firewall::is_legacy);
    let capabilities = if is_legacy { CAPABILITIES } else { CAPABILITIES - CapabilitySet::NET_RAW };
    let keeps = Keeps { capabilities, files, calls: Calls::Ordinary };
    // The front says it where the kernel has no Landlock: once is enough.
    sandbox::give_up_root(identity, keeps)?.shut()?;
    Ok(Confined { settings, orders, admin, reloads, runner, alone, installed, responder })
}

/// The lock of iptables-legacy, which its programs open for writing.
pub(crate) fn lock_file() -> PathBuf {
    env::var_os(LOCK_VARIABLE).map_or_else(|| LOCK.into(), PathBuf::from)
}

async fn work(confined: Confined, line: Line<Command, Event>) -> anyhow::Result<()> {
    let Confined { settings, orders, admin, reloads, runner, alone: _alone, installed, responder } = confined;
    beat(line.reports.clone(), || true)?;
    let reports = line.reports.clone();
    let warden = Warden::start(settings, installed, runner.map(Sender::new), responder).await?;
    reports.send(&Report::Ready).await?;
    let (orders, requests) = (Receiver::<Orders>::new(orders)?, admin::open(admin, reloads)?);
    if warden.run(orders, requests, line).await? == Ended::TrialOver {
        reports.send(&Report::Event(Event::TrialOver)).await?;
    }
    Ok(())
}
