//! The warden: the only room that touches the firewall. It never sees a packet: orders come in through the pipe, are
//! checked against the roll, and become leases in the ledger and rules in the kernel.
//!
//! ```text
//! Order ──roll──▶ entitled ──ledger──▶ Lease ──firewall──▶ kernel rule, with its own end
//! ```
//! The kernel ends every window by itself (P5); the warden tidies up behind it. Its guard stays when it stops.

use std::time::Duration;

use anyhow::Context;
use postern_proto::{ClientId, Port, ServiceName, WallTime, Window};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::clock::Now;
use crate::pipe::{Order, OrderReceiver};

pub(crate) mod firewall;
pub(crate) mod guard;
pub(crate) mod ledger;
pub(crate) mod roll;
mod sessions;

use firewall::{Family, Firewall, Found, Variant};
use guard::{Admit, Guard, Session};
use ledger::{Lease, LeaseKey, Ledger};
use roll::Roll;

/// How often it is looked whether a session that stood before the guard has ended, while there is one.
const SESSION_CHECK: Duration = Duration::from_mins(1);
/// How many rules are taken out in one transaction, at the most.
const CLOSE_AT_ONCE: usize = 512;
/// How long the warden sleeps when no lease is to end.
const IDLE: Duration = Duration::from_hours(1);

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
        let firewall = Firewall::new(variant, &families, admit);
        let now = Now::read();
        let (mut ledger, mut standing) = (Ledger::default(), Vec::new());
        for found in firewall.found().await? {
            match found {
                Found::Grant { key, id, port, from, until } if until > now.wall => {
                    ledger.adopt(now, key, id, port, from, until);
                }
                Found::Grant { .. } => {}
                Found::Standing(session) => standing.push(session),
            }
        }
        let ports: Vec<Port> = guard.ports.iter().map(|guarded| guarded.port).collect();
        let sessions =
            sessions::standing(&ports).context("cannot list the sessions that stand (sock_diag)")?;
        let was_guarded = firewall.is_guarded().await?;
        if was_guarded {
            // Connection tracking has known every session since the guard went up, but for these.
            standing.retain(|session| sessions.contains(session));
        } else {
            standing = sessions;
        }
        let (closing, queue) = mpsc::unbounded_channel();
        tokio::spawn(close_behind(firewall.clone(), queue));
        let warden = Self { firewall, guard, roll, ledger, standing, closing };
        if let Err(error) = warden.install().await {
            // One family's guard may be up: without a gate behind it, it would lock everybody out.
            if !was_guarded {
                warden.firewall.remove().await.context("cannot take back a guard that is half up")?;
            }
            return Err(error.into());
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
        loop {
            let now = Now::read();
            let next_end = self.ledger.next_end(now.boot).unwrap_or(IDLE);
            let sessions = if self.standing.is_empty() { IDLE } else { SESSION_CHECK };
            let trial = self.guard.until.map(|until| until.since(now.wall));
            tokio::select! {
                order = orders.receive() => match order? {
                    Some(Order::Open { client, services, source, from_port }) => {
                        for (service, window) in services {
                            self.open(client, &service, window, source, from_port).await;
                        }
                    }
                    Some(Order::Close { client, services, source }) => self.close(client, &services, source),
                    None => return Ok(Ended::Stopped),
                },
                () = sleep(next_end) => self.end_leases(),
                () = sleep(sessions) => self.end_sessions(),
                () = sleep(trial.unwrap_or(IDLE)), if trial.is_some() => {
                    self.firewall.remove().await?;
                    return Ok(Ended::TrialOver);
                }
                Some(command) = commands.recv() => match command {
                    Command::Reload(settings) => {
                        self.roll = settings.roll;
                        self.guard = Guard { until: self.guard.until, ..settings.guard };
                        self.apply_roll();
                        self.install().await?;
                    }
                    Command::Confirm => self.confirm().await?,
                },
            }
        }
    }

    async fn open(
        &mut self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
        source: std::net::IpAddr,
        from_port: Option<std::num::NonZeroU16>,
    ) {
        let Some((member, entry)) = self.roll.entitled(client, service, window) else {
            warn!(%client, %service, %source, "an order beyond what the roll allows was refused");
            return;
        };
        let (name, now) = (member.name.clone(), Now::read());
        let key = LeaseKey { client: name.clone(), service: service.clone(), source, from_port };
        let Some(change) = self.ledger.plan(now, key, &entry.ports, window) else {
            info!(client = %name, %service, %source, "granted already for as long");
            return;
        };
        if change.replaces.is_none() && !self.ledger.has_room_for(&name, member.max_leases) {
            warn!(client = %name, %service, %source, "too many leases: not granted");
            return;
        }
        let lease = change.lease;
        if let Err(error) = self.firewall.open(&lease).await {
            error!(client = %name, %service, %source, %error, "not granted: the firewall failed");
            self.later(Closing::Lease(lease));
            return;
        }
        let from_port = from_port.map(std::num::NonZeroU16::get);
        info!(client = %name, %service, %source, from_port, until = %lease.until, lease = %lease.id, "granted");
        self.ledger.enter(lease);
        if let Some(old) = change.replaces {
            self.later(Closing::Lease(old));
        }
    }

    fn close(&mut self, client: ClientId, services: &[ServiceName], source: std::net::IpAddr) {
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
        for lease in self.ledger.take(|lease| !roll.still_allows(&lease.key.client, &lease.key.service)) {
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
                for session in self.standing.extract_if(.., |session| !sessions.contains(session)) {
                    drop(self.closing.send(Closing::Session(session)));
                }
            }
            Err(error) => warn!(%error, "cannot list the sessions that stand; asking again in a minute"),
        }
    }

    async fn confirm(&mut self) -> anyhow::Result<()> {
        if self.guard.until.take().is_none() {
            info!("nothing to confirm: this is no trial");
            return Ok(());
        }
        self.install().await?;
        info!("trial confirmed: the guard stays");
        Ok(())
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

/// When a trial that begins now is over.
pub(crate) fn trial_end(length: Duration) -> WallTime {
    Now::read().wall.after(length)
}
