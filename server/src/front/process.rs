//! The front as a process of its own: it opens its captures as root, then gives up everything but its replay store,
//! its captures, and the links that it was given.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use postern_proto::keyfile::KeyFile;
use postern_proto::text::TextError;
use postern_proto::{GateId, GateKeys, HintTable, Tolerance};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use tracing::warn;
use zeroize::Zeroizing;

use super::Front;
use super::capture::Capture;
use super::filter::Sought;
use super::gate::{Authorized, Client, ServiceTable};
use super::kernel::KernelFilter;
use super::sequences::{SequenceSettings, Spent};
use super::store;
use crate::clock::Now;
use crate::last_use::LastUse;
use crate::link::{Message, Sender};
use crate::process::{LONGEST_SETTINGS, Line, Report, Start, beat, live};
use crate::sandbox::{self, Access, Calls, Files, Keeps};

/// The capabilities of the front once it works: none.
pub(crate) const CAPABILITIES: CapabilitySet = CapabilitySet::empty();

/// What the front is told at its start.
#[derive(Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Whether the folder of its store was made just now: no knock was ever recorded there.
    pub(crate) is_new: bool,
    pub(crate) watch: Watch,
    /// How many clients there are: room for their hints is made before their keys are read.
    pub(crate) clients: usize,
    pub(crate) enrolled: Enrolled,
}

/// What one front watches and remembers for as long as it lives.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watch {
    pub(crate) interfaces: Vec<String>,
    pub(crate) sought: Sought,
    pub(crate) gate: GateId,
    pub(crate) tolerance: Tolerance,
    /// Whether clients are answered.
    pub(crate) answers: bool,
    /// Whether the kernel is to look hints up, where it can.
    pub(crate) kernel_filter: bool,
    /// Folder of the replay store.
    pub(crate) store: PathBuf,
}

/// Who may knock for what.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Enrolled {
    pub(crate) services: ServiceTable,
    /// The key file's text.
    pub(crate) keys: Zeroizing<String>,
    /// What the files hold that it points to, which this process could not read.
    pub(crate) authorized: Authorized,
    pub(crate) sequences: Vec<SequenceSettings>,
}

impl Enrolled {
    /// The clients, with keys for this gate.
    ///
    /// # Errors
    /// When the key file does not read.
    pub(crate) fn clients(&self, gate: &GateId) -> Result<Vec<Client>, TextError> {
        let entries = KeyFile::parse(&self.keys)?.into_clients();
        Ok(Client::all(gate, &entries, &self.authorized))
    }

    /// All that takes long before others may knock, done while those that may are still let in.
    ///
    /// # Errors
    /// When the key file does not read.
    pub(super) fn prepare(self, gate: &GateId, tolerance: Tolerance) -> Result<Newcomers, TextError> {
        let clients = self.clients(gate)?;
        let hints = HintTable::new(tolerance, Now::read().wall, &clients);
        Ok(Newcomers { services: self.services, clients, hints, sequences: self.sequences })
    }
}

/// Who may knock from now on, with everything that the gate needs for it.
pub(super) struct Newcomers {
    pub(super) services: ServiceTable,
    pub(super) clients: Vec<Client>,
    pub(super) hints: HintTable,
    pub(super) sequences: Vec<SequenceSettings>,
}

/// What the front is told while it runs.
#[derive(Serialize, Deserialize)]
pub(crate) enum Command {
    /// The guard stands: knocks may be read.
    Begin,
    /// Others may knock from now on.
    Reload(Enrolled),
    /// Whether a one-time sequence is noted as used.
    Noted(Spent, bool),
}

impl Message for Command {
    const MAX: usize = LONGEST_SETTINGS;
}

/// What only the front has to tell the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// An interface is not there, or not up. It takes a new front to watch it again: this one may not open anything.
    Unwatched(String),
    /// A one-time sequence was used: it is to be noted.
    Spent(Spent),
    /// Clients knocked.
    Used(LastUse),
}

/// The front's `main`.
///
/// # Errors
/// When nobody started it who could tell it what to do.
pub(crate) fn main() -> anyhow::Result<()> {
    live(c"postern-front", confine, work)
}

struct Confined {
    settings: Settings,
    orders: OwnedFd,
    captures: Vec<Capture>,
    kernel: Option<KernelFilter>,
    unwatched: Vec<String>,
}

/// Opens what takes privileges, and gives them up.
fn confine(start: Start<Settings>, descriptors: Vec<OwnedFd>) -> anyhow::Result<Confined> {
    let Start { identity, settings, .. } = start;
    let orders = descriptors.into_iter().next().context("no link to the warden was handed over")?;
    let (mut captures, mut unwatched) = (Vec::new(), Vec::new());
    for name in &settings.watch.interfaces {
        match Capture::open(name, &settings.watch.sought) {
            Ok(capture) => captures.push(capture),
            Err(error) if error.may_pass() => {
                warn!(interface = name, "not watched until it is there: {error}");
                unwatched.push(name.clone());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let kernel = lay_filter(&settings, &captures);
    let files = Files::default().keep(&settings.watch.store, Access::Write);
    let mute = captures.iter().map(Capture::as_raw_fd).collect();
    let keeps =
        Keeps { capabilities: CAPABILITIES, files, calls: Calls::Few { mute, maps: kernel.is_some() } };
    let threshold = sandbox::give_up_root(identity, keeps)?;
    // A store that was lost knew knocks that a client's clock may have dated ahead.
    let ahead = if settings.is_new { Duration::ZERO } else { settings.watch.tolerance.duration() };
    store::prepare(&settings.watch.store, Now::read().wall.after(ahead))?;
    if !threshold.shut()? {
        warn!("this kernel has no Landlock: a process that is taken over could read what its user may");
    }
    Ok(Confined { settings, orders, captures, kernel, unwatched })
}

/// Has the kernel look hints up, where it can and is to.
fn lay_filter(settings: &Settings, captures: &[Capture]) -> Option<KernelFilter> {
    let Settings { watch, clients, .. } = settings;
    // Without knocks there is nothing to look up.
    if !watch.kernel_filter || watch.sought.knocks.is_empty() {
        return None;
    }
    let keys = GateKeys::derive(&watch.gate);
    let laid = KernelFilter::lay(captures, &watch.sought, &keys, watch.tolerance, *clients);
    laid.inspect_err(|error| warn!("the kernel does not look hints up, the gate does it alone: {error}")).ok()
}

async fn work(confined: Confined, mut line: Line<Command, Event>) -> anyhow::Result<()> {
    let Confined { settings, orders, captures, kernel, unwatched } = confined;
    let front = Front::start(&settings, captures, kernel, Sender::new(orders))?;
    let pulse = front.pulse.clone();
    beat(line.reports.clone(), move || pulse.is_felt(Now::read().boot))?;
    line.reports.send(&Report::Ready).await?;
    for interface in unwatched {
        line.reports.send(&Report::Event(Event::Unwatched(interface))).await?;
    }
    // Not one knock is read before the guard stands: nobody is let in whom the kernel would not let out.
    match line.commands.receive().await? {
        Some(Command::Begin) => front.run(line).await,
        Some(_) => anyhow::bail!("told of something before it was told to begin"),
        None => Ok(()),
    }
}
