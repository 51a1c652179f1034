//! The post of one process: it is started, listened to, ended when it hangs, and filled anew with a back-off when it
//! dies.

use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::CapabilitySet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{error, info};

use crate::link::{self, Message, Receiver, Sender};
use crate::process::{HEARTBEAT, Report, Start};
use crate::sandbox::{Identity, threads_of};

/// A process that says nothing for so long hangs: two heartbeats and a half.
const HANGS: Duration = Duration::from_secs(10);
/// By how much a heartbeat may be late.
const LATE: Duration = Duration::from_secs(1);
/// How long a process may take until it is ready: a large store is read, and every client's keys are derived.
const STARTS: Duration = Duration::from_mins(1);
/// How long a process may take to answer to new settings: the warden may have to wait for others' iptables.
const ANSWERS: Duration = Duration::from_secs(30);
/// What may happen at a post while something else is waited for: a front tells of each interface once.
const EARLY: usize = 1024;
/// How long a process may take to end when it is told to.
const ENDS: Duration = Duration::from_secs(10);
/// For so long a killed process is waited for: one that waits for a disk that hangs dies with that wait, and not before.
const DIES: Duration = Duration::from_secs(5);
/// The first pause before another one is started; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who lived so long did not die of how it was started.
const STEADY: Duration = Duration::from_mins(1);

/// What a process must not inherit: by these it would speak to systemd in the supervisor's place.
const SYSTEMD_VARIABLES: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS"];

/// A post, filled or vacant.
pub(super) struct Post<C, E> {
    /// What it is, and the command that starts it.
    role: &'static str,
    /// What its holder may hold; `None` where it may hold what the supervisor does.
    capabilities: Option<CapabilitySet>,
    /// How long its holder may take to end when it is told to.
    ends: Duration,
    holder: Option<Holder<C, E>>,
    /// When a vacant post is to be filled.
    due: Option<Instant>,
    pause: Duration,
    /// What came while something else was waited for.
    early: VecDeque<Happening<E>>,
}

struct Holder<C, E> {
    child: Child,
    /// Ends after it.
    group: Group,
    identity: Identity,
    commands: Sender<C>,
    reports: Receiver<Report<E>>,
    /// Whether reports still come.
    listens: bool,
    ready_since: Option<Instant>,
    /// When it counts as hanging.
    hangs: Instant,
    /// It was not heard of in time, once.
    is_doubted: bool,
    /// What it, or the supervisor, said of its end.
    last_words: Option<String>,
}

/// A process and what it runs, which would otherwise outlive its death: an iptables that waits for its lock would undo
/// later what the next warden has done.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // As a rule, nobody is left in it.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// What happens at a post.
#[derive(Debug)]
pub(super) enum Happening<E> {
    /// It is time to fill it.
    Due,
    /// Its holder works.
    Ready,
    /// Its holder answers to new settings.
    Reloaded(Result<(), String>),
    /// Something that only this kind of process tells.
    Event(E),
    /// Its holder has ended; another one is due.
    Gone,
}

impl<C, E> Post<C, E>
where
    C: Message,
    E: Serialize + DeserializeOwned + fmt::Debug,
{
    /// A vacant post, for a process that gives up all but these capabilities.
    pub(super) fn new(role: &'static str, capabilities: CapabilitySet) -> Self {
        let (pause, early) = (FIRST_PAUSE, VecDeque::new());
        Self { role, capabilities: Some(capabilities), ends: ENDS, holder: None, due: None, pause, early }
    }

    /// A vacant post, for a process that gives up nothing and takes its time to end.
    pub(super) fn unconfined(role: &'static str, ends: Duration) -> Self {
        Self { capabilities: None, ends, ..Self::new(role, CapabilitySet::empty()) }
    }

    /// Starts a process and tells it its settings.
    ///
    /// # Errors
    /// When it cannot be started; the post is vacant then.
    pub(super) async fn occupy<S>(
        &mut self,
        start: &Start<S>,
        descriptors: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()>
    where
        S: Serialize + DeserializeOwned,
    {
        self.due = None;
        let role = self.role;
        let (ours, theirs) = link::pair().context("cannot make a link")?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("posternd").arg(role).kill_on_drop(true);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        for variable in SYSTEMD_VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn().with_context(|| format!("cannot start the {role}"))?;
        drop(command);
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has a process id")?;
        let holder = Holder {
            child,
            group: Group(pid),
            identity: start.identity,
            commands: Sender::new(ours.try_clone()?),
            reports: Receiver::new(ours.try_clone()?)?,
            listens: true,
            ready_since: None,
            hangs: Instant::now() + STARTS,
            is_doubted: false,
            last_words: None,
        };
        self.holder = Some(holder);
        let sender = Sender::<Start<S>>::new(ours);
        let told = timeout(STARTS, sender.send_with(start, descriptors))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .with_context(|| format!("the {role} does not take its settings"));
        if told.is_err() {
            // It is killed with this.
            self.holder = None;
        }
        told
    }

    /// Waits until the holder of a post that was just filled works.
    ///
    /// # Errors
    /// Why it does not; the post is vacant then, and stays so.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        loop {
            match self.listen().await {
                Heard::Happened(Happening::Ready) => return Ok(()),
                Heard::Happened(other) => self.keep(other),
                Heard::Ended(why) => bail!("{why}"),
            }
        }
    }

    /// Tells the holder something.
    ///
    /// # Errors
    /// When there is none, or it does not listen.
    pub(super) async fn tell(&mut self, command: &C) -> anyhow::Result<()> {
        let role = self.role;
        let holder = self.holder.as_mut().with_context(|| format!("there is no {role} at present"))?;
        timeout(HANGS, holder.commands.send(command))
            .await
            .map_err(|_| anyhow!("the {role} does not listen"))?
            .with_context(|| format!("the {role} does not listen"))
    }

    /// Tells the holder of new settings and waits for its answer. Where there is no holder that listens, the next one
    /// will have them from the start.
    ///
    /// # Errors
    /// Why they are not in force.
    pub(super) async fn ask(&mut self, command: &C) -> anyhow::Result<()> {
        if self.holder.as_ref().is_none_or(|holder| holder.ready_since.is_none()) {
            return self.abandon_start().await;
        }
        if let Err(error) = self.tell(command).await {
            self.give_up(&error).await;
            return Ok(());
        }
        let deadline = Instant::now() + ANSWERS;
        loop {
            match timeout_at(deadline, self.listen()).await {
                Ok(Heard::Happened(Happening::Reloaded(result))) => {
                    return result.map_err(|error| anyhow!("the {}: {error}", self.role));
                }
                Ok(Heard::Happened(other)) => self.keep(other),
                Ok(Heard::Ended(why)) => {
                    self.vacated(&why);
                    return Ok(());
                }
                Err(_late) => {
                    let why = anyhow!("the {} does not answer to new settings", self.role);
                    self.give_up(&why).await;
                    return Ok(());
                }
            }
        }
    }

    /// Keeps what is to be seen to later; who tells more than any process has to tell is not listened to.
    fn keep(&mut self, happening: Happening<E>) {
        if self.early.len() < EARLY {
            self.early.push_back(happening);
        }
    }

    /// A holder that is only starting has the old settings: the next one will have the new.
    async fn abandon_start(&mut self) -> anyhow::Result<()> {
        if self.holder.is_some() {
            self.dismiss().await;
            self.due_at_once();
        }
        Ok(())
    }

    /// What happens next. Nothing is lost when it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Happening<E> {
        if let Some(happening) = self.early.pop_front() {
            return happening;
        }
        if self.holder.is_none() {
            match self.due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
            self.due = None;
            return Happening::Due;
        }
        match self.listen().await {
            Heard::Happened(happening) => happening,
            Heard::Ended(why) => {
                self.vacated(&why);
                Happening::Gone
            }
        }
    }

    /// Has the holder end what it does, and ends it where it does not.
    pub(super) async fn dismiss(&mut self) {
        self.early.clear();
        let Some(Holder { mut child, group, commands, reports, .. }) = self.holder.take() else { return };
        // The end of the line is the sign.
        drop((commands, reports));
        if timeout(self.ends, child.wait()).await.is_err() {
            error!("the {} does not end; it is killed", self.role);
            drop(timeout(DIES, child.kill()).await);
        }
        drop(group);
    }

    /// The post is to be filled now.
    pub(super) fn due_at_once(&mut self) {
        self.due = Some(Instant::now());
    }

    /// The post is to be filled now if nobody is there and nobody is due.
    pub(super) fn due_if_vacant(&mut self) {
        if self.holder.is_none() && self.due.is_none() {
            self.due_at_once();
        }
    }

    /// The holder cannot be started or spoken to: it is ended, and another one is due.
    pub(super) async fn give_up(&mut self, error: &anyhow::Error) {
        if let Some(mut holder) = self.holder.take() {
            drop(timeout(DIES, holder.child.kill()).await);
        }
        self.vacated(&format!("{error:#}"));
    }

    /// Says once why the post is vacant, and when it is filled again.
    fn vacated(&mut self, why: &str) {
        self.due = Some(Instant::now() + self.pause);
        let pause = humantime::format_duration(self.pause);
        error!("{why}; another {} starts in {pause}", self.role);
        self.pause = LONGEST_PAUSE.min(2 * self.pause);
    }

    /// What the holder says next, or how it ended.
    async fn listen(&mut self) -> Heard<E> {
        let (role, capabilities) = (self.role, self.capabilities);
        let Some(holder) = &mut self.holder else { return pending().await };
        loop {
            tokio::select! {
                biased;
                report = holder.reports.receive(), if holder.listens => match report {
                    Ok(Some(report)) => if let Some(happening) = holder.hear(report, capabilities) {
                        if matches!(happening, Happening::Ready) && self.pause > 2 * FIRST_PAUSE {
                            info!("the {role} works again");
                        }
                        return Heard::Happened(happening);
                    },
                    Ok(None) => holder.listens = false,
                    Err(error) => holder.end(&format!("it sends what is no report ({error})")),
                },
                status = holder.child.wait() => {
                    let why = holder.obituary(role, status.ok());
                    if holder.ready_since.is_some_and(|since| since.elapsed() >= STEADY) {
                        self.pause = FIRST_PAUSE;
                    }
                    self.holder = None;
                    return Heard::Ended(why);
                }
                // Where the whole machine stood still, it has the time of a heartbeat to say so.
                () = sleep_until(holder.hangs), if !holder.is_doubted => {
                    holder.is_doubted = true;
                    holder.hangs = Instant::now() + HEARTBEAT + LATE;
                }
                () = sleep_until(holder.hangs) => {
                    let patience = if holder.ready_since.is_some() { HANGS } else { STARTS };
                    holder.end(&format!("it hangs: nothing was heard of it for {}", humantime::format_duration(patience)));
                }
            }
        }
    }
}

enum Heard<E> {
    Happened(Happening<E>),
    Ended(String),
}

impl<C, E> Holder<C, E> {
    /// Takes a report in; gives what there is to do about it.
    fn hear(&mut self, report: Report<E>, capabilities: Option<CapabilitySet>) -> Option<Happening<E>> {
        let patience = if self.ready_since.is_some() { HANGS } else { STARTS };
        self.hangs = Instant::now() + patience;
        self.is_doubted = false;
        match report {
            // It begins to work once: hearing it again and again is to cost nothing.
            Report::Ready if self.ready_since.is_some() => None,
            Report::Alive => None,
            Report::Failed(why) => {
                self.last_words = Some(one_line(&why));
                None
            }
            Report::Ready => match self.prove(capabilities) {
                Ok(()) => {
                    self.ready_since = Some(Instant::now());
                    self.hangs = Instant::now() + HANGS;
                    Some(Happening::Ready)
                }
                Err(why) => {
                    self.end(&why);
                    None
                }
            },
            Report::Reloaded(result) => Some(Happening::Reloaded(result.map_err(|why| one_line(&why)))),
            Report::Event(event) => Some(Happening::Event(event)),
        }
    }

    /// Looks from outside whether every thread has given up what it must: its own word is not enough.
    fn prove(&self, capabilities: Option<CapabilitySet>) -> Result<(), String> {
        let Some(capabilities) = capabilities else { return Ok(()) };
        let pid = self.child.id().ok_or("it has ended")?;
        let threads = threads_of(pid).map_err(|error| format!("cannot see what it holds: {error}"))?;
        threads.iter().try_for_each(|thread| thread.is_no_more_than(self.identity, capabilities))
    }

    fn end(&mut self, why: &str) {
        self.last_words = Some(why.to_owned());
        self.listens = false;
        self.hangs = Instant::now() + STARTS;
        // It fails where the process has ended meanwhile, which is what is wanted.
        drop(self.child.start_kill());
    }

    fn obituary(&mut self, role: &str, status: Option<ExitStatus>) -> String {
        let status = status.map_or_else(|| "nobody knows how".to_owned(), |status| status.to_string());
        let what = if self.ready_since.is_some() { "died" } else { "did not start" };
        match self.last_words.take() {
            Some(words) => format!("the {role} {what}: {words}"),
            None => format!("the {role} {what} ({status})"),
        }
    }
}

/// What a process says goes into the log as one line, whatever took the process over.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
