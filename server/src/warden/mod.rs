//! The warden: the only room that touches the firewall. It never sees a packet: orders come in from the front, are
//! checked against the roll, and become leases in the ledger and rules in the kernel.
//!
//! ```text
//! Order ──roll──▶ entitled ──ledger──▶ Lease ──firewall──▶ kernel rule, with its own end
//! ```
//! The kernel ends every window by itself (P5); the warden tidies up behind it. Its guard stays when it stops.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use anyhow::{Context, anyhow};
use postern_proto::{ClientId, Port, ServiceName, Window};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::clock::{BootTime, Now};
use crate::link::Receiver;
use crate::order::Order;
use crate::process::{Line, Report};

pub(crate) mod firewall;
pub(crate) mod guard;
pub(crate) mod ledger;
mod pace;
pub(crate) mod process;
mod refusal;
pub(crate) mod roll;
mod sessions;

use firewall::{Firewall, Found};
use guard::{Guard, Session};
use ledger::{Lease, LeaseKey, Ledger, Plan};
use pace::Pace;
use process::{Command, Event, Reach, Settings};
use refusal::{OrderRefusal, Refusals};
use roll::Roll;

/// How often it is looked whether a session that stood before the guard has ended, while there is one.
const SESSION_CHECK: Duration = Duration::from_mins(1);
/// How many rules are taken out in one transaction, at the most.
const CLOSE_AT_ONCE: usize = 512;
/// How long the warden sleeps when no lease is to end.
const IDLE: Duration = Duration::from_hours(1);

const NO_SESSIONS: &str = "cannot list the sessions that stand (sock_diag)";

/// Why the warden ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to; the guard and the live grants stay.
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
    pace: Pace,
    refusals: Refusals,
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
    /// What of ours is `installed` elsewhere goes.
    ///
    /// # Errors
    /// When the firewall cannot be read or written; then it is as it was.
    pub(crate) async fn start(settings: Settings, installed: Vec<Firewall>) -> anyhow::Result<Self> {
        let Settings { reach: Reach { variant, families, admit }, guard, roll } = settings;
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
        let (pace, refusals) = (Pace::default(), Refusals::default());
        let warden = Self { firewall, guard, roll, ledger, pace, refusals, standing, closing, _alone: alone };
        if let Err(error) = warden.install().await {
            // One family's guard may be up: without a gate behind it, it would lock everybody out.
            if !was_guarded {
                warden.firewall.remove().await.context("cannot take back a guard that is half up")?;
            }
            return Err(error.into());
        }
        for other in firewall::others(installed, variant, &families).await? {
            if other.remove().await? {
                warn!(
                    "rules of Postern for another kind of iptables, or another address family, are gone: the configuration has changed"
                );
            }
        }
        info!(adopted = warden.ledger.leases().count(), standing = warden.standing.len(), "guard up");
        Ok(warden)
    }

    /// Carries out orders until the line to the supervisor ends or a trial is over.
    ///
    /// # Errors
    /// When the guard of a trial that is over cannot be taken away.
    async fn run(
        mut self,
        mut orders: Receiver<Order>,
        mut line: Line<Command, Event>,
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
                command = line.commands.receive() => match command? {
                    Some(Command::Reload { guard, roll }) => {
                        let result = self.reload(guard, roll).await;
                        line.reports.send(&Report::Reloaded(result)).await?;
                    }
                    Some(Command::Confirm) => if self.confirm().await {
                        line.reports.send(&Report::Event(Event::Confirmed)).await?;
                    },
                    None => break,
                },
                () = sleep(next_end) => self.end_leases(),
                _ = session_check.tick(), if !self.standing.is_empty() => self.end_sessions(),
                () = sleep_until(trial_end.unwrap_or_else(Instant::now)), if self.guard.until.is_some() => {
                    self.firewall.remove().await?;
                    return Ok(Ended::TrialOver);
                }
                order = orders.receive() => match order {
                    Ok(Some(order)) => self.carry_out(order).await,
                    Ok(None) => break,
                    Err(error) => self.refuse(OrderRefusal::Malformed, &error),
                },
            }
        }
        // The front has ended before: what it ordered last is here.
        while let Ok(Some(order)) = orders.receive_now() {
            self.carry_out(order).await;
        }
        self.refusals.log();
        Ok(Ended::Stopped)
    }

    async fn carry_out(&mut self, order: Order) {
        let client = match &order {
            Order::Open { client, .. } | Order::Close { client, .. } => *client,
        };
        if !self.roll.members.contains_key(&client) {
            return self.refuse(OrderRefusal::UnknownClient, &client);
        }
        if !self.pace.allows(client, Now::read().boot) {
            return self.refuse(OrderRefusal::TooFast, &client);
        }
        match order {
            Order::Open { services, source, from_port, decided, .. } => {
                for (service, window) in services {
                    let result = self.open(client, &service, window, source, from_port, decided).await;
                    if let Err(reason) = result {
                        self.refuse(reason, &format_args!("{client} {service} for {window} from {source}"));
                    }
                }
            }
            Order::Close { services, source, .. } => self.close(client, &services, source),
        }
    }

    fn refuse(&mut self, reason: OrderRefusal, order: &dyn fmt::Display) {
        self.refusals.refuse(reason, Now::read().boot, order);
    }

    async fn open(
        &mut self,
        client: ClientId,
        service: &ServiceName,
        window: Window,
        source: IpAddr,
        from_port: Option<NonZeroU16>,
        decided: BootTime,
    ) -> Result<(), OrderRefusal> {
        let now = Now::read();
        let (member, entry) = self.roll.entitled(client, service, window, source, now.wall)?;
        let name = member.name.clone();
        let left = window.duration().saturating_sub(now.boot.since(decided));
        if left.is_zero() {
            return Err(OrderRefusal::Late);
        }
        let key = LeaseKey { client: name.clone(), service: service.clone(), source, from_port };
        let (lease, replaces) = match self.ledger.plan(now, key, &entry.ports, left) {
            Plan::Unchanged => {
                debug!(client = %name, %service, %source, "granted already for as long");
                return Ok(());
            }
            Plan::Extend(lease) => {
                self.granted(lease);
                return Ok(());
            }
            Plan::Grant { lease, replaces } => (lease, replaces),
        };
        if replaces.is_none() && !self.ledger.has_room_for(&name, member.max_leases) {
            return Err(OrderRefusal::TooManyLeases);
        }
        if let Err(error) = self.firewall.open(&lease).await {
            error!(client = %name, %service, %source, %error, "not granted: the firewall failed");
            self.later(Closing::Lease(lease));
            return Ok(());
        }
        self.granted(lease);
        if let Some(old) = replaces {
            self.later(Closing::Lease(old));
        }
        Ok(())
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
        let (roll, now) = (&self.roll, Now::read().wall);
        for lease in self.ledger.take(|lease| !roll.still_allows(lease, now)) {
            self.end(lease, "withdrawn");
        }
        self.pace.retain(|client| roll.members.contains_key(&client));
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
    ///
    /// # Errors
    /// Why the guard is the old one still, or not the new one for every address family.
    async fn reload(&mut self, guard: Guard, roll: Roll) -> Result<(), String> {
        let guard = Guard { until: self.guard.until, ..guard };
        let new = guard.ports.iter().filter(|port| !self.guard.ports.contains(port));
        let new: Vec<Port> = new.map(|guarded| guarded.port).collect();
        let sessions = sessions::standing(&new).map_err(|error| format!("{NO_SESSIONS}: {error}"))?;
        self.standing.extend(sessions);
        let old = std::mem::replace(&mut self.guard, guard);
        self.roll = roll;
        self.apply_roll();
        self.install().await.map_err(|error| {
            self.guard = old;
            format!("the guard could not be changed, or not for every address family: {error}")
        })
    }

    /// Makes the guard of a trial stay; `false` where it does not.
    async fn confirm(&mut self) -> bool {
        let Some(until) = self.guard.until.take() else {
            info!("nothing to confirm: this is no trial");
            return false;
        };
        match self.install().await {
            Ok(()) => {
                info!("trial confirmed: the guard stays");
                true
            }
            Err(error) => {
                error!(%error, "not confirmed, the firewall failed: the trial goes on; confirm again");
                self.guard.until = Some(until);
                false
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
