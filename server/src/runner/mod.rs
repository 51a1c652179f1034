//! The runner: runs the commands of services when their leases open and end, on the warden's word. It is there only
//! where commands are configured, and the only process that stays what the supervisor is: commands are the
//! administrator's, and may need anything. It reads no packet and no text that anybody sent.
//!
//! ```text
//! Errand ──▶ ledger ──▶ on-open ──▶ open ──(its end, or sooner)──▶ on-close ──▶ struck out of the ledger
//!          (durable)   (deadline)                                  (deadline)
//! ```
//! One lease has one run of each, however often it is renewed. What was begun is ended: by the runner's own clock where
//! the warden says nothing, when the gate stops, and after a crash as soon as there is a runner again. A command for
//! the end is run a second time only if the runner died between its run and the note of it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use postern_proto::{Port, ServiceName, WallTime};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use crate::clock::{BootTime, Now};
use crate::errand::{Errand, LeaseKey};
use crate::link::Receiver;
use crate::order::LIVE_LEASES;
use crate::process::{Line, Report};

pub(crate) mod command;
mod ledger;
pub(crate) mod process;
#[cfg(test)]
mod tests;

use command::{Argv, CommandError};
use ledger::{Ledger, LedgerError, Owed};
use process::{Command, Event};

/// Commands that run at a time; further ones wait.
const AT_ONCE: usize = 16;
/// Errands that share one durable write, at the most.
const BATCH: usize = 256;
/// Runs of one lease's command that wait for each other, at the most, where it is run each time: as many as the warden lets
/// a client order at once.
const REPEATS: usize = 256;
/// How long the runner sleeps when nothing is to end.
const IDLE: Duration = Duration::from_hours(1);

/// The commands of each service that has any.
pub(crate) type CommandTable = HashMap<ServiceName, Commands>;

/// What is run for the leases of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commands {
    pub(crate) on_open: ByFamily,
    pub(crate) on_close: ByFamily,
    /// How long each may take.
    pub(crate) deadline: Duration,
    /// The ports of the service, for them to know.
    pub(crate) ports: Vec<Port>,
}

/// A command for each address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ByFamily {
    pub(crate) ipv4: Option<Argv>,
    pub(crate) ipv6: Option<Argv>,
}

impl ByFamily {
    /// The command for a lease, with its address in it.
    fn of(&self, lease: &LeaseKey) -> Option<Argv> {
        let argv = if lease.source.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        argv.as_ref().map(|argv| argv.of(lease.source))
    }
}

/// The runner at work.
struct Runner {
    commands: CommandTable,
    ledger: Ledger,
    leases: HashMap<LeaseKey, Standing>,
    /// Commands that wait: those for an end are run first.
    closing: VecDeque<Job>,
    opening: VecDeque<Job>,
    running: JoinSet<Done>,
}

/// How it stands with one lease.
struct Standing {
    owed: Owed,
    due: BootTime,
    phase: Phase,
    /// It was let in again: once at the most while it was being shut out, and each time while all that there is to run for it
    /// was running.
    again: Vec<Errand>,
}

impl Standing {
    /// Lets it in again later; `false` where too many wait for that.
    fn wait(&mut self, open: Errand) -> bool {
        if !self.owed.is_nothing() {
            self.again.clear();
        }
        let fits = self.again.len() < REPEATS;
        if fits {
            self.again.push(open);
        }
        fits
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its first command runs, or waits to.
    Opening,
    /// Nothing is to be done before its end.
    Open,
    /// Its last command runs, or waits to.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Open,
    Close,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "on-open",
            Self::Close => "on-close",
        })
    }
}

/// A command that is to be run.
struct Job {
    lease: LeaseKey,
    when: When,
    argv: Argv,
    ports: Vec<Port>,
    deadline: Duration,
}

impl Job {
    fn new(when: When, lease: &LeaseKey, argv: Argv, owed: &Owed) -> Self {
        Self { lease: lease.clone(), when, argv, ports: owed.ports.clone(), deadline: owed.deadline }
    }
}

/// A command that was run.
struct Done {
    lease: LeaseKey,
    when: When,
    result: Result<(), CommandError>,
}

impl Runner {
    /// Takes up what an earlier runner owed.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    fn start(ledger: &Path, commands: CommandTable) -> Result<Self, LedgerError> {
        let (ledger, owed) = Ledger::open(ledger)?;
        let now = Now::read();
        let standing = |owed: Owed| Standing { due: owed.due(now), owed, phase: Phase::Open, again: vec![] };
        let leases = owed.into_iter().map(|(lease, owed)| (lease, standing(owed))).collect();
        let (closing, opening) = (VecDeque::new(), VecDeque::new());
        Ok(Self { commands, ledger, leases, closing, opening, running: JoinSet::new() })
    }

    /// Runs errands until the line to the supervisor ends; then ends everything that is open.
    async fn run(
        mut self,
        mut errands: Receiver<Errand>,
        mut line: Line<Command, Event>,
    ) -> anyhow::Result<()> {
        loop {
            self.shut_due(Now::read().boot);
            self.begin_jobs();
            let next = self.next_due(Now::read().boot).unwrap_or(IDLE);
            tokio::select! {
                command = line.commands.receive() => match command? {
                    Some(Command::Reload(commands)) => {
                        self.commands = commands;
                        line.reports.send(&Report::Reloaded(Ok(()))).await?;
                    }
                    None => break,
                },
                Some(done) = self.running.join_next() => self.conclude(done?),
                errand = errands.receive() => match errand {
                    Ok(Some(first)) => self.take(first, &mut errands),
                    Ok(None) => break,
                    Err(error) => warn!(%error, "the warden asks for something that is no errand"),
                },
                () = sleep(next) => {}
            }
        }
        self.shut_all(&mut errands).await
    }

    /// Nobody would end what stays open when the gate has stopped.
    async fn shut_all(&mut self, errands: &mut Receiver<Errand>) -> anyhow::Result<()> {
        while let Ok(Some(errand)) = errands.receive_now() {
            self.take(errand, errands);
        }
        while !self.leases.is_empty() {
            for standing in self.leases.values_mut() {
                standing.due = BootTime::from_boot(Duration::ZERO);
                standing.again.clear();
            }
            self.shut_due(Now::read().boot);
            self.begin_jobs();
            if let Some(done) = self.running.join_next().await {
                self.conclude(done?);
            }
        }
        Ok(())
    }

    /// Takes an errand, and those that wait behind it: they share one write.
    fn take(&mut self, first: Errand, errands: &mut Receiver<Errand>) {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(Some(next)) = errands.receive_now()
        {
            batch.push(next);
        }
        self.carry_out(batch);
    }

    fn carry_out(&mut self, batch: Vec<Errand>) {
        let now = Now::read();
        let mut changed: HashMap<LeaseKey, Owed> = HashMap::new();
        // What was asked for more than once, and is run each time.
        let mut repeats = Vec::new();
        for errand in batch {
            match errand {
                Errand::Close(lease) => {
                    if let Some(standing) = self.leases.get_mut(&lease) {
                        standing.due = now.boot;
                        standing.again.clear();
                        // Another runner has it to end as well.
                        let over = Owed { until: now.wall, lasts: Duration::ZERO, ..standing.owed.clone() };
                        changed.insert(lease, over);
                    } else {
                        // Let in and shut out while nobody looked: nothing was begun.
                        changed.remove(&lease);
                        repeats.retain(
                            |errand| !matches!(errand, Errand::Open { lease: other, .. } if *other == lease),
                        );
                    }
                }
                Errand::Open { lease, until, lasts } => {
                    if changed.get(&lease).is_some_and(Owed::is_nothing) {
                        repeats.push(Errand::Open { lease, until, lasts });
                    } else if let Some(owed) = self.open(now, &lease, until, lasts) {
                        changed.insert(lease, owed);
                    }
                }
            }
        }
        if changed.is_empty() {
            return;
        }
        let written = self.ledger.write(&changed, []);
        for (lease, owed) in changed {
            match (&written, self.leases.get_mut(&lease)) {
                // Renewed or shut. Where that could not be written, a crash would end it at another time, and nothing else.
                (_, Some(standing)) => standing.owed = owed,
                (Ok(()), None) => self.begin(now, lease, owed),
                (Err(error), None) => {
                    let LeaseKey { client, service, source, .. } = &lease;
                    error!(%client, %service, %source, %error, "on-open is not run: its end cannot be recorded");
                }
            }
        }
        if written.is_ok() && !repeats.is_empty() {
            self.carry_out(repeats);
        }
    }

    /// What is owed to a lease that was let in, if that is to be written.
    fn open(&mut self, now: Now, lease: &LeaseKey, until: WallTime, lasts: Duration) -> Option<Owed> {
        // The warden has said so long ago: it is over.
        if until <= now.wall {
            return None;
        }
        let is_full = self.leases.len() >= LIVE_LEASES;
        match self.leases.get_mut(lease) {
            Some(standing) if standing.phase == Phase::Closing || standing.owed.is_nothing() => {
                if !standing.wait(Errand::Open { lease: lease.clone(), until, lasts }) {
                    let LeaseKey { client, service, source, .. } = lease;
                    error!(%client, %service, %source, "on-open is not run: {REPEATS} runs of it wait");
                }
                None
            }
            Some(standing) => {
                let owed = Owed { until, lasts, ..standing.owed.clone() };
                standing.due = owed.due(now);
                Some(owed)
            }
            None if is_full => {
                let LeaseKey { client, service, source, .. } = lease;
                error!(%client, %service, %source, "on-open is not run: {LIVE_LEASES} leases wait for their commands");
                None
            }
            None => {
                let commands = self.commands.get(&lease.service)?;
                let (on_close, ports) = (commands.on_close.of(lease), commands.ports.clone());
                Some(Owed { on_close, deadline: commands.deadline, ports, until, lasts })
            }
        }
    }

    /// Begins with a lease whose end is recorded.
    fn begin(&mut self, now: Now, lease: LeaseKey, owed: Owed) {
        let commands = self.commands.get(&lease.service);
        let argv = commands.and_then(|commands| commands.on_open.of(&lease));
        let phase = if argv.is_some() { Phase::Opening } else { Phase::Open };
        if let Some(argv) = argv {
            self.opening.push_back(Job::new(When::Open, &lease, argv, &owed));
        }
        let due = owed.due(now);
        self.leases.insert(lease, Standing { owed, due, phase, again: vec![] });
    }

    /// Has the last command run for every lease that is over.
    fn shut_due(&mut self, now: BootTime) {
        let mut over = Vec::new();
        for (lease, standing) in &mut self.leases {
            if standing.phase != Phase::Open || standing.due > now {
                continue;
            }
            standing.phase = Phase::Closing;
            match standing.owed.on_close.clone() {
                Some(argv) => self.closing.push_back(Job::new(When::Close, lease, argv, &standing.owed)),
                None => over.push(lease.clone()),
            }
        }
        self.strike_out(&over);
    }

    fn next_due(&self, now: BootTime) -> Option<Duration> {
        let open = self.leases.values().filter(|standing| standing.phase == Phase::Open);
        open.map(|standing| standing.due.since(now)).min()
    }

    fn begin_jobs(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some(job) = self.closing.pop_front().or_else(|| self.opening.pop_front())
        {
            let Job { lease, when, argv, ports, deadline } = job;
            self.running.spawn_local(async move {
                let result = command::run(&argv, &lease, &ports, deadline).await;
                Done { lease, when, result }
            });
        }
    }

    /// Goes on with the lease of a command that was run, and with those that ended in the same moment.
    fn conclude(&mut self, first: Done) {
        let mut over = Vec::new();
        let more = std::iter::from_fn(|| self.running.try_join_next()?.ok()).collect::<Vec<_>>();
        for Done { lease, when, result } in [first].into_iter().chain(more) {
            let LeaseKey { client, service, source, .. } = &lease;
            match result {
                Ok(()) => debug!(%client, %service, %source, "{when} was run"),
                Err(error) => error!(%client, %service, %source, %error, "{when}"),
            }
            match when {
                When::Open => {
                    if let Some(standing) = self.leases.get_mut(&lease) {
                        standing.phase = Phase::Open;
                    }
                }
                When::Close => over.push(lease),
            }
        }
        self.strike_out(&over);
    }

    /// Nothing is owed to these any more; those that were let in again begin anew.
    fn strike_out(&mut self, over: &[LeaseKey]) {
        if over.is_empty() {
            return;
        }
        if let Err(error) = self.ledger.write([], over) {
            error!(%error, "what was run cannot be struck out: it would be run again after a restart");
        }
        let over = over.iter().filter_map(|lease| self.leases.remove(lease));
        let again = over.flat_map(|standing| standing.again).collect::<Vec<_>>();
        if !again.is_empty() {
            self.carry_out(again);
        }
    }
}
