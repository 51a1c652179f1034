//! The supervisor: starts front and warden, starts them again when they die or hang, hands them new settings, and
//! stops them. It parses nothing from outside but the files of the administrator, and holds only the capabilities that
//! starting the others takes.
//!
//! ```text
//!                 supervisor
//!        settings ╱        ╲ settings        a line each: a pair of sockets that ends with either end
//!     reports    ╱          ╲    reports
//!           front ──orders──▶ warden         a pair of its own, which outlives both: what the one ordered before the
//!                                            other died is carried out by its successor
//! ```
//! Where services have commands, a runner follows the warden in the same way, and the supervisor keeps every capability:
//! commands may need any, and nobody else could give them to a runner that takes the place of a dead one.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use postern_proto::WallTime;
use rustix::thread::CapabilitySet;
use sd_notify::{NotifyState, watchdog_enabled};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use crate::alone::Alone;
use crate::clock::{BootTime, Now};
use crate::config::{Config, Files, one_time};
use crate::front::process as front;
use crate::front::sequences::Spent;
use crate::link;
use crate::log;
use crate::process::{Start, event_loop};
use crate::runner::process as runner;
use crate::sandbox::{Identity, limit_capabilities};
use crate::warden::process as warden;

mod askers;
mod ground;
mod post;
mod reload;
mod uses;

use askers::Askers;
use ground::AdminSocket;
use post::{Happening, Post};
use uses::Uses;

/// What it takes to start the others: to make them another user with fewer capabilities, to hand them what is theirs, to
/// end them, and what they keep or begin with.
const CAPABILITIES: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::BPF);

/// How often it looks whether an interface is back, while one is away.
const LOOK: Duration = Duration::from_secs(1);

/// How long the runner may take to end what is open: systemd gives a stop 90 s.
const RUNNER_ENDS: Duration = Duration::from_mins(1);

/// Runs the gate until it is told to stop. The guard and the live grants stay then; the kernel ends the grants.
///
/// # Errors
/// When the gate cannot start.
pub(crate) fn run(files: &Files, trial: Option<Duration>, log_format: log::Format) -> anyhow::Result<()> {
    log::start(log_format)?;
    let config = Config::read_all(files)?;
    // The administrator's commands may need anything, and get it from here.
    let has_commands = !config.commands().is_empty();
    limit_capabilities(if has_commands { CapabilitySet::all() } else { CAPABILITIES })?;
    event_loop(async move { Supervisor::new(files, config, trial, log_format)?.run().await })
}

struct Supervisor {
    files: Files,
    config: Config,
    identity: Identity,
    log_format: log::Format,
    /// When the trial is over, until it is confirmed.
    trial_end: Option<WallTime>,
    front: Post<front::Command, front::Event>,
    warden: Post<warden::Command, warden::Event>,
    runner: Post<runner::Command, runner::Event>,
    /// The ends of the warden's link to the runner, where commands are configured.
    errands: Option<(OwnedFd, OwnedFd)>,
    since: BootTime,
    admin: AdminSocket,
    /// Last: who takes this place finds nothing of ours.
    alone: Alone,
    /// The ends of the front's link to the warden.
    orders: (OwnedFd, OwnedFd),
    askers: Askers,
    /// Interfaces that the front does not watch: they were not there.
    unwatched: BTreeSet<String>,
    uses: Uses,
    signals: Signals,
}

struct Signals {
    hangup: Signal,
    confirm: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Supervisor {
    fn new(
        files: &Files,
        config: Config,
        trial: Option<Duration>,
        log_format: log::Format,
    ) -> anyhow::Result<Self> {
        // Before anything starts: a signal that comes early must not end the process half way.
        let signals = Signals {
            hangup: signal(SignalKind::hangup())?,
            confirm: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let identity = config.identity()?;
        let alone = ground::take_place()?;
        let admin = AdminSocket::bind(&config.admin.socket, config.admin_group()?)?;
        let needs_runner = !config.commands().is_empty();
        let errands = needs_runner.then(link::pair).transpose();
        let errands = errands.context("cannot make the link between warden and runner")?;
        let uses = Uses::load(&config.gate.state, &config.clients);
        let now = Now::read();
        Ok(Self {
            files: files.clone(),
            config,
            identity,
            log_format,
            trial_end: trial.map(|length| now.wall.after(length)),
            since: now.boot,
            admin,
            alone,
            front: Post::new("front", front::CAPABILITIES),
            warden: Post::new("warden", warden::CAPABILITIES),
            runner: Post::unconfined("runner", RUNNER_ENDS),
            errands,
            orders: link::pair().context("cannot make the link between front and warden")?,
            askers: Askers::new().context("cannot make the link for reloads")?,
            unwatched: BTreeSet::new(),
            uses,
            signals,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        // The store and the captures first: where they fail, the firewall is as it was. The guard next, and knocks are
        // read once it stands.
        self.start_front().await?;
        self.front.settle().await?;
        if self.errands.is_some() {
            self.start_runner().await?;
            self.runner.settle().await?;
        }
        self.settle_warden().await?;
        self.front.tell(&front::Command::Begin).await?;
        if let Some(end) = self.trial_end {
            let pid = std::process::id();
            info!("trial: the guard falls at {end} unless confirmed: kill -USR1 {pid}");
        }
        say_remarks(&self.config);
        info!(clients = self.config.clients.len(), "ready");
        notify(&[NotifyState::Ready]);

        // Far more often than systemd wants to hear of it, if it does: what a reload may take comes on top of the pause.
        let watchdog_time = watchdog_enabled().filter(|time| !time.is_zero());
        let is_watched = watchdog_time.is_some();
        let mut watchdog = interval(watchdog_time.unwrap_or(LOOK) / 16);
        let mut look = interval(LOOK);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = self.signals.terminate.recv() => break,
                _ = self.signals.interrupt.recv() => break,
                _ = self.signals.confirm.recv() => self.confirm().await,
                _ = self.signals.hangup.recv() => drop(self.reload_and_say().await),
                who = self.askers.asked() => {
                    let result = self.reload_and_say().await;
                    who.tell(&result);
                }
                _ = watchdog.tick(), if is_watched => notify(&[NotifyState::Watchdog]),
                _ = look.tick(), if !self.unwatched.is_empty() => self.look_for_interfaces().await,
                () = self.uses.due() => self.uses.write(),
                happening = self.runner.next() => if let Happening::Due = happening
                    && let Err(error) = self.start_runner().await
                {
                    self.runner.give_up(&error).await;
                },
                happening = self.front.next() => self.front_happening(happening).await,
                happening = self.warden.next() => if self.warden_happening(happening).await {
                    self.front.dismiss().await;
                    self.runner.dismiss().await;
                    info!("the trial was not confirmed: every rule of Postern is gone again");
                    return Ok(());
                },
            }
        }
        notify(&[NotifyState::Stopping]);
        self.front.dismiss().await;
        self.warden.dismiss().await;
        self.runner.dismiss().await;
        self.uses.finish().await;
        info!("stopped; the guard and live grants stay (posternd remove takes them away)");
        Ok(())
    }

    async fn start_front(&mut self) -> anyhow::Result<()> {
        let is_new = ground::lay_store(&self.config.store(), self.identity)?;
        self.unwatched.clear();
        let start = self.start_message(self.config.front(is_new));
        self.front.occupy(&start, &[self.orders.0.as_fd()]).await
    }

    async fn start_warden(&mut self) -> anyhow::Result<()> {
        let settings = self.config.warden(self.since, self.trial_end);
        ground::share_lock(self.identity)?;
        let start = self.start_message(settings);
        let mut descriptors =
            vec![self.orders.1.as_fd(), self.admin.as_fd(), self.askers.as_fd(), self.alone.as_fd()];
        descriptors.extend(self.errands.as_ref().map(|errands| errands.0.as_fd()));
        self.warden.occupy(&start, &descriptors).await
    }

    async fn start_runner(&mut self) -> anyhow::Result<()> {
        let settings = self.config.runner();
        ground::lay_ledger(&settings.ledger)?;
        let start = self.start_message(settings);
        let errands = self.errands.as_ref().context("no commands are configured")?;
        self.runner.occupy(&start, &[errands.1.as_fd()]).await
    }

    fn start_message<S>(&self, settings: S) -> Start<S> {
        Start { identity: self.identity, log_format: self.log_format, settings }
    }

    async fn front_happening(&mut self, happening: Happening<front::Event>) {
        let result = match happening {
            Happening::Due => self.start_front().await,
            Happening::Ready => self.front.tell(&front::Command::Begin).await,
            Happening::Event(front::Event::Unwatched(name)) => {
                if self.config.gate.interfaces.contains(&name) {
                    self.unwatched.insert(name);
                }
                Ok(())
            }
            Happening::Event(front::Event::Spent(spent)) => {
                let done = self.note_spent(&spent);
                self.front.tell(&front::Command::Noted(spent, done)).await
            }
            Happening::Event(front::Event::Used(used)) => {
                self.uses.note(used);
                Ok(())
            }
            // Who asked for it waits no more.
            Happening::Reloaded(_) | Happening::Gone => Ok(()),
        };
        if let Err(error) = result {
            self.front.give_up(&error).await;
        }
    }

    /// Notes in its file that a one-time sequence was used; `false` where it cannot: then nothing opens.
    fn note_spent(&mut self, spent: &Spent) -> bool {
        let Spent { name, steps } = spent;
        let Some(sequence) = self.config.sequences.get_mut(name) else { return false };
        let Some(file) = sequence.one_time() else { return false };
        let noted = one_time::spend(file, steps);
        // The next front is not to take it for unused either.
        sequence.spend(steps);
        if let Err(error) = &noted {
            error!(sequence = %name, "nothing opens: {error:#}");
        }
        noted.is_ok()
    }

    /// `true` when an unconfirmed trial is over.
    async fn warden_happening(&mut self, happening: Happening<warden::Event>) -> bool {
        match happening {
            Happening::Due => {
                if let Err(error) = self.start_warden().await {
                    self.warden.give_up(&error).await;
                }
            }
            Happening::Event(warden::Event::TrialOver) => return true,
            // Said here and not by the warden: one that dies before this is heard has a successor that is on trial.
            Happening::Event(warden::Event::Confirmed) => {
                self.trial_end = None;
                info!("trial confirmed: the guard stays");
            }
            Happening::Ready | Happening::Reloaded(_) | Happening::Gone => {}
        }
        false
    }

    async fn confirm(&mut self) {
        if let Err(error) = self.warden.tell(&warden::Command::Confirm).await {
            error!("not confirmed: {error:#}; confirm again");
        }
    }

    async fn settle_warden(&mut self) -> anyhow::Result<()> {
        self.start_warden().await?;
        self.warden.settle().await
    }

    /// Starts a new front when an interface is there that the old one could not watch.
    async fn look_for_interfaces(&mut self) {
        let devices = match pcap::Device::list() {
            Ok(devices) => devices,
            Err(error) => return warn!(%error, "cannot list the interfaces"),
        };
        let is_back = |device: &pcap::Device| self.unwatched.contains(&device.name) && device.flags.is_up();
        if let Some(device) = devices.iter().find(|device| is_back(device)) {
            info!(interface = device.name, "it is there: a new front watches it");
            self.front.dismiss().await;
            self.front.due_at_once();
        }
    }
}

fn say_remarks(config: &Config) {
    for remark in &config.remarks {
        warn!("{remark}");
    }
}

/// Tells systemd, where it started us. That it cannot be told is no reason to stop: it will say so itself.
fn notify(state: &[NotifyState<'_>]) {
    drop(sd_notify::notify(state));
}
