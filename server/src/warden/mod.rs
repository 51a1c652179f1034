//! The warden: the only room that touches the firewall. It never sees a packet: orders come in through the pipe, are
//! checked against the roll, and become leases in the ledger and rules in the kernel.
//!
//! ```text
//! Order ──roll──▶ entitled ──ledger──▶ Lease ──firewall──▶ kernel rule, with its own end
//! ```
//! The kernel ends every window by itself (P5); the warden tidies up behind it. Its guard stays when it stops.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use anyhow::{Context, anyhow};
use postern_proto::{ClientId, Port, ServiceName, WallTime, Window};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::clock::Now;
use crate::pipe::{Order, OrderReceiver};

pub(crate) mod firewall;
pub(crate) mod guard;
pub(crate) mod ledger;
pub(crate) mod roll;
mod sessions;

use firewall::{Family, Firewall, Found, Variant};
use guard::{Admit, Guard, Session};
use ledger::{Lease, LeaseKey, Ledger, Plan};
use roll::Roll;

/// How often it is looked whether a session that stood before the guard has ended, while there is one.
const SESSION_CHECK: Duration = Duration::from_mins(1);
/// How many rules are taken out in one transaction, at the most.
const CLOSE_AT_ONCE: usize = 512;
/// How long the warden sleeps when no lease is to end.
const IDLE: Duration = Duration::from_hours(1);

const NO_SESSIONS: &str = "cannot list the sessions that stand (sock_diag)";

/// What the warden is told at its start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) variant: Variant,
    pub(crate) families: Vec<Family>,
    pub(crate) admit: Admit,
    pub(crate) guard: Guard,
    pub(crate) roll: Roll,
}

/// What the warden is told while it runs.
pub(crate) enum Command {
    /// Who may have what and what is guarded, from now on. Leases that are not allowed any more end. How the
    /// firewall is reached and how it admits stays as it was at the start.
    Reload(Box<Settings>),
    /// The trial is over: the guard stays.
    Confirm,
}

/// Why the warden ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The front is gone; the guard and the live grants stay.
    Stopped,
    /// The trial was not confirmed; everything of ours is gone from the firewall.
    TrialOver,
}

/// The warden at work.
pub(crate) struct Warden {
    firewall: Firewall,
    guard: Guard,
    roll: Roll,
    ledger: Ledger,
    standing: Vec<Session>,
    closing: mpsc::UnboundedSender<Closing>,
    /// There is one warden in a network namespace: two would take each other's rules away.
    _alone: UnixListener,
}

/// A rule to take out, off the way of those that go in.
enum Closing {
    Lease(Lease),
    Session(Session),
}

impl Warden {
    /// Adopts the leases that the kernel holds, and puts the guard up around them and around the sessions that stand.
    ///
    /// # Errors
    /// When the firewall cannot be read or written; then it is as it was.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        let Settings { variant, families, admit, guard, roll } = settings;
        let alone = be_alone()?;
        let firewall = Firewall::new(variant, &families, admit);
        let now = Now::read();
        let (mut ledger, mut standing) = (Ledger::default(), Vec::new());
        for found in firewall.found().await? {
            match found {
                Found::Grant { key, id, port, from, until } => ledger.adopt(now, key, id, port, from, until),
                Found::Standing(session) => standing.push(session),
            }
        }
        let ports: Vec<Port> = guard.ports.iter().map(|guarded| guarded.port).collect();
        let sessions = sessions::standing(&ports).context(NO_SESSIONS)?;
        let was_guarded = firewall.is_guarded().await?;
        if was_guarded {
            // Connection tracking has known every session since the guard went up, but for these.
            standing.retain(|session| sessions.contains(session));
        } else {
            standing = sessions;
        }
        let (closing, queue) = mpsc::unbounded_channel();
        tokio::spawn(close_behind(firewall.clone(), queue));
        let warden = Self { firewall, guard, roll, ledger, standing, closing, _alone: alone };
        if let Err(error) = warden.install().await {
            // One family's guard may be up: without a gate behind it, it would lock everybody out.
            if !was_guarded {
                warden.firewall.remove().await.context("cannot take back a guard that is half up")?;
            }
            return Err(error.into());
        }
        for other in firewall::others(variant, &families).await? {
            if other.remove().await? {
                warn!(
                    "rules of Postern for another kind of iptables, or another address family, are gone: the configuration has changed"
                );
            }
        }
        info!(adopted = warden.ledger.leases().count(), standing = warden.standing.len(), "guard up");
        Ok(warden)
    }

    /// Carries out orders until the front is gone or a trial is over.
    ///
    /// # Errors
    /// When the pipe does not hold what the front sends, or the guard cannot be changed.
    pub(crate) async fn run(
        mut self,
        mut orders: OrderReceiver,
        mut commands: mpsc::Receiver<Command>,
    ) -> anyhow::Result<Ended> {
        self.apply_roll();
        let mut session_check = interval(SESSION_CHECK);
        session_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // By the boot clock too: a wall clock that is set back must not make a trial longer.
        let trial_end = self.guard.until.map(|until| Instant::now() + until.since(Now::read().wall));
        loop {
            let next_end = self.ledger.next_end(Now::read().boot).unwrap_or(IDLE);
            tokio::select! {
                // Orders last: what a client that was just enabled asks for comes behind the news of it.
                biased;
                Some(command) = commands.recv() => match command {
                    Command::Reload(settings) => self.reload(*settings).await,
                    Command::Confirm => self.confirm().await,
                },
                () = sleep(next_end) => self.end_leases(),
                _ = session_check.tick(), if !self.standing.is_empty() => self.end_sessions(),
                () = sleep_until(trial_end.unwrap_or_else(Instant::now)), if self.guard.until.is_some() => {
                    self.firewall.remove().await?;
                    return Ok(Ended::TrialOver);
                }
                order = orders.receive() => match order? {
                    Some(Order::Open { client, services, source, from_port }) => {
                        for (service, window) in services {
                            self.open(client, &service, window, source, from_port).await;
                        }
                    }
                    Some(Order::Close { client, services, source }) => self.close(client, &services, source),
                    None => return Ok(Ended::Stopped),
                },
            }
        }
    }

    async fn open(
        &mut self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
        source: IpAddr,
        from_port: Option<NonZeroU16>,
    ) {
        let Some((member, entry)) = self.roll.entitled(client, service, window) else {
            warn!(%client, %service, %source, "an order beyond what the roll allows was refused");
            return;
        };
        let (name, now) = (member.name.clone(), Now::read());
        let key = LeaseKey { client: name.clone(), service: service.clone(), source, from_port };
        let (lease, replaces) = match self.ledger.plan(now, key, &entry.ports, window) {
            Plan::Unchanged => {
                debug!(client = %name, %service, %source, "granted already for as long");
                return;
            }
            Plan::Extend(lease) => {
                self.granted(lease);
                return;
            }
            Plan::Grant { lease, replaces } => (lease, replaces),
        };
        if replaces.is_none() && !self.ledger.has_room_for(&name, member.max_leases) {
            warn!(client = %name, %service, %source, "too many leases: not granted");
            return;
        }
        if let Err(error) = self.firewall.open(&lease).await {
            error!(client = %name, %service, %source, %error, "not granted: the firewall failed");
            self.later(Closing::Lease(lease));
            return;
        }
        self.granted(lease);
        if let Some(old) = replaces {
            self.later(Closing::Lease(old));
        }
    }

    fn granted(&mut self, lease: Lease) {
        let Lease { key: LeaseKey { client, service, source, from_port }, id, until, .. } = &lease;
        let from_port = from_port.map(NonZeroU16::get);
        info!(%client, %service, %source, from_port, %until, lease = %id, "granted");
        self.ledger.enter(lease);
    }

    fn close(&mut self, client: ClientId, services: &[ServiceName], source: IpAddr) {
        let Some(name) = self.roll.members.get(&client).map(|member| member.name.clone()) else { return };
        for service in services {
            for lease in self.ledger.close(&name, service, source) {
                self.end(lease, "closed");
            }
        }
    }

    fn end_leases(&mut self) {
        for lease in self.ledger.ended(Now::read().boot) {
            self.end(lease, "ended");
        }
    }

    /// Ends the leases that the roll does not allow any more.
    fn apply_roll(&mut self) {
        let roll = &self.roll;
        for lease in
            self.ledger.take(|lease| !roll.still_allows(&lease.key.client, &lease.key.service, &lease.ports))
        {
            self.end(lease, "withdrawn");
        }
    }

    fn end(&self, lease: Lease, how: &str) {
        let LeaseKey { client, service, source, .. } = &lease.key;
        info!(%client, %service, %source, lease = %lease.id, "{how}");
        self.later(Closing::Lease(lease));
    }

    fn end_sessions(&mut self) {
        let ports: Vec<Port> = self.guard.ports.iter().map(|guarded| guarded.port).collect();
        match sessions::standing(&ports) {
            Ok(sessions) => {
                let over = self.standing.extract_if(.., |session| !sessions.contains(session));
                for session in over.collect::<Vec<_>>() {
                    self.later(Closing::Session(session));
                }
            }
            Err(error) => warn!(%error, "cannot list the sessions that stand; asking again in a minute"),
        }
    }

    /// Takes over another roll and guard.
    async fn reload(&mut self, settings: Settings) {
        let guard = Guard { until: self.guard.until, ..settings.guard };
        let new = guard.ports.iter().filter(|port| !self.guard.ports.contains(port));
        let new: Vec<Port> = new.map(|guarded| guarded.port).collect();
        match sessions::standing(&new) {
            Ok(sessions) => self.standing.extend(sessions),
            Err(error) => {
                error!(%error, "{NO_SESSIONS}: everything stays as it was");
                return;
            }
        }
        let old = std::mem::replace(&mut self.guard, guard);
        self.roll = settings.roll;
        self.apply_roll();
        if let Err(error) = self.install().await {
            error!(%error, "the guard could not be changed, or not for every address family: reload again");
            self.guard = old;
        }
    }

    async fn confirm(&mut self) {
        let Some(until) = self.guard.until.take() else {
            info!("nothing to confirm: this is no trial");
            return;
        };
        match self.install().await {
            Ok(()) => info!("trial confirmed: the guard stays"),
            Err(error) => {
                error!(%error, "not confirmed, the firewall failed: the trial goes on; confirm again");
                self.guard.until = Some(until);
            }
        }
    }

    /// Puts the whole guard up anew, with everybody in who is in.
    async fn install(&self) -> Result<(), firewall::FirewallError> {
        let leases: Vec<&Lease> = self.ledger.leases().collect();
        self.firewall.install(&self.guard, &leases, &self.standing).await
    }

    fn later(&self, closing: Closing) {
        // The other end lives as long as the warden's runtime; without it the kernel ends the rule.
        drop(self.closing.send(closing));
    }
}

/// Takes rules out, all that wait in one transaction: it costs about as much as one rule. A rule that cannot be taken
/// out still ends by itself, and the next start of a warden tidies up.
async fn close_behind(firewall: Firewall, mut queue: mpsc::UnboundedReceiver<Closing>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, CLOSE_AT_ONCE).await > 0 {
        let (mut leases, mut sessions) = (Vec::new(), Vec::new());
        for closing in batch.drain(..) {
            match closing {
                Closing::Lease(lease) => leases.push(lease),
                Closing::Session(session) => sessions.push(session),
            }
        }
        if let Err(error) = firewall.close(&leases, &sessions).await {
            warn!(%error, "a rule could not be taken out; the kernel ends a lease's at its time");
        }
    }
}

/// Takes the one place that a network namespace has for a warden: an abstract socket, which nobody connects to, and which
/// the kernel frees with its process.
fn be_alone() -> anyhow::Result<UnixListener> {
    let name = SocketAddr::from_abstract_name("postern-warden")?;
    UnixListener::bind_addr(&name).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!("another posternd guards this network namespace already"),
        _ => anyhow!(error).context("cannot make sure that no other posternd guards this network namespace"),
    })
}

/// When a trial that begins now is over.
pub(crate) fn trial_end(length: Duration) -> WallTime {
    Now::read().wall.after(length)
}
