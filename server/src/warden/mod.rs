//! The warden: the only room that touches the firewall. It never sees a packet: orders come in from the front, are
//! checked against the roll, and become leases in the ledger and rules in the kernel.
//!
//! ```text
//! Order ──roll──▶ entitled ──ledger──▶ Lease ──firewall──▶ kernel rule, with its own end
//!   └── its answer, sealed ─────────────────────────────────── responder ──▶ the client, once it is done
//! ```
//! The kernel ends every window by itself (P5); the warden tidies up behind it. Its guard stays when it stops, and comes
//! back when somebody else takes it away.

use std::io;
use std::mem::replace;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postern_proto::Port;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::alarm::Alarm;
use crate::alone::Alone;
use crate::clock::{BootTime, Now};
use crate::errand::Errand;
use crate::link::{Receiver, Sender};
use crate::order::{LIVE_LEASES, Note, Orders, SealedAnswer};
use crate::process::{Line, Report};

mod admin;
mod answers;
pub(crate) mod firewall;
pub(crate) mod guard;
mod heal;
pub(crate) mod ledger;
mod orders;
mod pace;
pub(crate) mod process;
mod refusal;
pub(crate) mod responder;
pub(crate) mod roll;
mod sessions;

use admin::Asked;
use firewall::{Family, Firewall, Found};
use guard::{Guard, Session};
use heal::{Closings, Healing};
use ledger::{Lease, LeaseKey, Ledger};
use pace::{LEASES, ORDERS, Pace};
use process::{Command, Event, Reach, Settings};
use refusal::{OrderRefusal, Refusals};
use responder::Responder;
use roll::Roll;

/// How often it is looked whether a session that stood before the guard has ended, while there is one.
const SESSION_CHECK: Duration = Duration::from_mins(1);
/// How many rules are taken out in one transaction, at the most.
const CLOSE_AT_ONCE: usize = 512;
/// Errands that wait for the runner, at the most: as many as leases can open and end while it is started anew.
const ERRANDS: usize = 2 * LIVE_LEASES;

const NOT_ALONE: &str = "cannot make sure that no other posternd guards this network namespace";
const NO_SESSIONS: &str = "cannot list the sessions that stand (sock_diag)";

/// Puts the guard up, for nobody to be let in but those that were granted before: how many leases these are. `None` where
/// a gate runs that keeps its guard up by itself.
///
/// # Errors
/// When the firewall cannot be read or written.
pub(crate) async fn guard_alone(reach: Reach, guard: Guard) -> anyhow::Result<Option<usize>> {
    let Some(_alone) = Alone::take().context(NOT_ALONE)? else { return Ok(None) };
    let since = Now::read().boot;
    let settings = Settings { since, reach, guard, roll: Roll::default() };
    let warden = Warden::start(settings, firewall::installed(), None, Responder::default()).await?;
    Ok(Some(warden.ledger.leases().count()))
}

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
    /// Of leases and closes, and of all orders.
    leases_pace: Pace,
    orders_pace: Pace,
    refusals: Refusals,
    /// What the front said last of how it does.
    note: Note,
    since: BootTime,
    standing: Vec<Session>,
    closing: mpsc::UnboundedSender<Closing>,
    healing: Healing,
    /// Where commands are configured.
    runner: Option<mpsc::Sender<Errand>>,
    responder: Arc<Responder>,
}

/// A rule to take out, off the way of those that go in.
enum Closing {
    Lease(Lease),
    Session(Session),
    /// Nothing: it says that what was before it is out.
    Answer(SealedAnswer),
}

impl Warden {
    /// Adopts the leases that the kernel holds, and puts the guard up around them and around the sessions that stand.
    /// What of ours is `installed` elsewhere goes, once its leases are here.
    ///
    /// # Errors
    /// When the firewall cannot be read or written; then it is as it was.
    pub(crate) async fn start(
        settings: Settings,
        installed: Vec<Firewall>,
        runner: Option<Sender<Errand>>,
        responder: Responder,
    ) -> anyhow::Result<Self> {
        let Settings { since, reach: Reach { backend, families, .. }, guard, roll } = settings;
        let firewall = Firewall::new(backend, &families);
        let now = Now::read();
        let (mut ledger, mut standing) = (Ledger::default(), Vec::new());
        for found in firewall.found().await? {
            match found {
                Found::Grant { key, id, port, from, until } => ledger.adopt(now, key, id, port, from, until),
                Found::Standing(session) => standing.push(session),
            }
        }
        let others = firewall::others(installed, backend, &families).await?;
        for other in &others {
            for found in other.found().await? {
                if let Found::Grant { key, id, port, from, until } = found
                    && families.contains(&Family::of(key.source))
                {
                    ledger.adopt(now, key, id, port, from, until);
                }
            }
        }
        let watch = firewall.watch().await?.context("cannot watch the firewall for changes by others")?;
        let healing = Healing::new(watch);
        let ports: Vec<Port> = guard.ports.iter().map(|guarded| guarded.port).collect();
        let sessions = sessions::standing(&ports).context(NO_SESSIONS)?;
        let was_guarded = firewall.is_guarded().await?;
        if was_guarded {
            // Connection tracking has known every session since the guard went up, but for these.
            standing.retain(|session| sessions.contains(session));
        } else {
            standing = sessions;
        }
        let runner = runner.map(|link| {
            let (runner, errands) = mpsc::channel(ERRANDS);
            tokio::spawn(hand_on(errands, link));
            runner
        });
        let (closing, queue) = mpsc::unbounded_channel();
        let responder = Arc::new(responder);
        let closings = Arc::clone(healing.closings());
        tokio::spawn(close_behind(firewall.clone(), queue, closings, Arc::clone(&responder)));
        let mut warden = Self {
            firewall,
            guard,
            roll,
            ledger,
            leases_pace: Pace::new(LEASES),
            orders_pace: Pace::new(ORDERS),
            refusals: Refusals::default(),
            note: Note::default(),
            since,
            standing,
            closing,
            healing,
            runner,
            responder,
        };
        if let Err(error) = warden.install().await {
            // One family's guard may be up: without a gate behind it, it would lock everybody out.
            if !was_guarded {
                warden.firewall.remove().await.context("cannot take back a guard that is half up")?;
            }
            return Err(error.into());
        }
        for other in others {
            if other.remove().await? {
                warn!(
                    "rules of Postern for another kind of firewall, or another address family, are gone: the configuration has changed"
                );
            }
        }
        let (adopted, standing) = (warden.ledger.leases().count(), warden.standing.len());
        if was_guarded {
            debug!(adopted, standing, "guard stood");
        } else {
            info!(adopted, standing, "guard up");
        }
        Ok(warden)
    }

    /// Carries out orders until the line to the supervisor ends or a trial is over.
    ///
    /// # Errors
    /// When the guard of a trial that is over cannot be taken away.
    async fn run(
        mut self,
        mut orders: Receiver<Orders>,
        mut requests: mpsc::Receiver<Asked>,
        mut line: Line<Command, Event>,
    ) -> anyhow::Result<Ended> {
        self.apply_roll();
        let mut lease_end = Alarm::new().context("cannot wait for the ends of leases")?;
        let mut session_check = interval(SESSION_CHECK);
        session_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // By the boot clock too: a wall clock that is set back must not make a trial longer.
        let trial_end = self.guard.until.map(|until| Instant::now() + until.since(Now::read().wall));
        loop {
            let next_end = self.ledger.next_end();
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
                // Who asked and went away needs no answer.
                Some(Asked { request, reply }) = requests.recv() => drop(reply.send(self.answer(request).await)),
                woken = lease_end.at(next_end.unwrap_or(self.since)), if next_end.is_some() => {
                    woken.context("cannot wait for the end of a lease")?;
                    self.end_leases();
                }
                _ = session_check.tick(), if !self.standing.is_empty() => self.end_sessions(),
                () = sleep_until(trial_end.unwrap_or_else(Instant::now)), if self.guard.until.is_some() => {
                    self.firewall.remove().await?;
                    return Ok(Ended::TrialOver);
                }
                due = self.healing.due() => {
                    due.context("cannot watch the firewall any more")?;
                    self.heal().await;
                }
                order = orders.receive() => match order {
                    Ok(Some(orders)) => {
                        self.carry_out(orders).await;
                        // Of those that are refused, nothing waits for the kernel, and a heartbeat has its turn.
                        yield_now().await;
                    }
                    Ok(None) => break,
                    Err(error) => self.refuse(OrderRefusal::Malformed, &error),
                },
            }
        }
        // The front has ended before: what it ordered last is here.
        loop {
            match orders.receive_now() {
                Ok(Some(orders)) => self.carry_out(orders).await,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.refuse(OrderRefusal::Malformed, &error);
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.refusals.log();
        Ok(Ended::Stopped)
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
        self.leases_pace.retain(|client| roll.members.contains_key(&client));
        self.orders_pace.retain(|client| roll.members.contains_key(&client));
    }

    fn end(&self, lease: Lease, how: &str) {
        self.note_end(&lease, how);
        self.later(Closing::Lease(lease));
    }

    fn note_end(&self, lease: &Lease, how: &str) {
        let LeaseKey { client, service, source, .. } = &lease.key;
        info!(%client, %service, %source, lease = %lease.id, "{how}");
        self.ask_runner(Errand::Close(lease.key.clone()));
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
        let stood = self.standing.len();
        self.standing.extend(sessions);
        let old = (replace(&mut self.guard, guard), replace(&mut self.roll, roll));
        if let Err(error) = self.install().await {
            (self.guard, self.roll) = old;
            self.standing.truncate(stood);
            return Err(format!("the guard could not be changed, or not for every address family: {error}"));
        }
        self.apply_roll();
        Ok(())
    }

    /// Makes the guard of a trial stay; `false` where it does not.
    async fn confirm(&mut self) -> bool {
        let Some(until) = self.guard.until.take() else {
            info!("nothing to confirm: this is no trial");
            return false;
        };
        match self.install().await {
            Ok(()) => true,
            Err(error) => {
                error!(%error, "not confirmed, the firewall failed: the trial goes on; confirm again");
                self.guard.until = Some(until);
                false
            }
        }
    }

    /// Puts the whole guard up anew, with everybody in who is in.
    async fn install(&mut self) -> Result<(), firewall::FirewallError> {
        let leases: Vec<&Lease> = self.ledger.leases().collect();
        self.firewall.install(&self.guard, &leases, &self.standing).await
    }

    fn later(&self, closing: Closing) {
        self.healing.closings().begin();
        // The other end lives as long as the warden's runtime; without it the kernel ends the rule.
        drop(self.closing.send(closing));
    }
}

/// Hands errands on as fast as the runner takes them.
async fn hand_on(mut errands: mpsc::Receiver<Errand>, runner: Sender<Errand>) {
    while let Some(errand) = errands.recv().await {
        if let Err(error) = runner.send(&errand).await {
            error!(%error, "the link to the runner is gone");
            return;
        }
    }
}

/// Takes rules out, all that wait in one transaction: it costs about as much as one rule. A rule that cannot be taken
/// out still ends by itself, and healing takes it out before.
async fn close_behind(
    firewall: Firewall,
    mut queue: mpsc::UnboundedReceiver<Closing>,
    closings: Arc<Closings>,
    responder: Arc<Responder>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, CLOSE_AT_ONCE).await > 0 {
        let (mut leases, mut sessions, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for closing in batch.drain(..) {
            match closing {
                Closing::Lease(lease) => leases.push(lease),
                Closing::Session(session) => sessions.push(session),
                Closing::Answer(answer) => answers.push(answer),
            }
        }
        let result = firewall.close(&leases, &sessions).await;
        closings.end(leases.len() + sessions.len(), result.is_ok());
        match result {
            // A rule of an earlier batch may stand still: then nothing is said, and the client asks again.
            Ok(()) if closings.are_out() => answers.iter().for_each(|answer| responder.send(answer)),
            Ok(()) => {}
            Err(error) => {
                warn!(%error, "a rule could not be taken out; the kernel ends a lease's at its time");
            }
        }
    }
}
