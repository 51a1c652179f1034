//! What front and warden have in common as processes of their own: how each begins, and its line to the supervisor.
//!
//! The line is the process's standard input, so that it needs no other descriptor than any child has. The first
//! message brings the settings, then the process confines itself, then it works. When the line ends, so does it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::setsid;
use rustix::thread::set_name;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::{LocalSet, spawn_local};

use crate::alarm::Alarm;
use crate::link::{Message, Receiver, Sender, receive_first};
use crate::log;
use crate::sandbox::Identity;

/// How often a process says that it is not stuck.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(4);
/// Settings hold the key file, at about 200 bytes a client.
pub(crate) const LONGEST_SETTINGS: usize = 1 << 30;

/// The first message to a process.
#[derive(Serialize, Deserialize)]
#[serde(bound(deserialize = "S: DeserializeOwned"))]
pub(crate) struct Start<S> {
    pub(crate) identity: Identity,
    pub(crate) log_format: log::Format,
    pub(crate) settings: S,
}

impl<S: Serialize + DeserializeOwned> Message for Start<S> {
    const MAX: usize = LONGEST_SETTINGS;
    const HAS_DESCRIPTORS: bool = true;
}

/// What a process tells the supervisor; `E` is what only its kind has to tell.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "E: DeserializeOwned"))]
pub(crate) enum Report<E> {
    /// It holds no more than it may, and works.
    Ready,
    /// It cannot start, or not go on, and why.
    Failed(String),
    /// It is not stuck.
    Alive,
    /// The new settings are in force; or why not, and the old ones still are.
    Reloaded(Result<(), String>),
    /// Something else.
    Event(E),
}

impl<E: Serialize + DeserializeOwned> Message for Report<E> {
    const MAX: usize = 16 * 1024;
}

/// The line to the supervisor, as a process has it.
pub(crate) struct Line<C, E> {
    pub(crate) commands: Receiver<C>,
    pub(crate) reports: Rc<Sender<Report<E>>>,
}

/// Lives as a process that the supervisor started: takes the settings, confines itself with one thread and no event
/// loop, then works until the line ends. What fails is told to the supervisor, who says it.
///
/// # Errors
/// When there is no supervisor at the other end of the standard input.
pub(crate) fn live<S, C, E, P>(
    name: &CStr,
    confine: impl FnOnce(Start<S>, Vec<OwnedFd>) -> anyhow::Result<P>,
    work: impl AsyncFnOnce(P, Line<C, E>) -> anyhow::Result<()>,
) -> anyhow::Result<()>
where
    S: Serialize + DeserializeOwned,
    C: Message,
    E: Serialize + DeserializeOwned + 'static,
{
    set_name(name)?;
    // A session of its own: a Ctrl-C is for the supervisor, which then stops the others in order, and who takes this
    // process over has no terminal to type into.
    setsid()?;
    close_inherited()?;
    let line = io::stdin().as_fd().try_clone_to_owned()?;
    // What the process runs later has no part in the line.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let (start, descriptors) = receive_first::<Start<S>>(line.as_fd())
        .map_err(|error| anyhow::anyhow!("this command is for `posternd run` to start ({error})"))?;
    log::start(start.log_format)?;
    let confined = confine(start, descriptors);
    event_loop(async move {
        let reports = Rc::new(Sender::new(line.try_clone()?));
        let told = Rc::clone(&reports);
        let work = async {
            let line = Line { commands: Receiver::new(line)?, reports };
            work(confined?, line).await
        };
        if let Err(error) = work.await {
            told.send(&Report::Failed(format!("{error:#}"))).await?;
        }
        Ok(())
    })
}

/// Closes what the supervisor was started with beside the standard streams: somebody may have left it open by mistake, and a
/// process that opened nothing yet has none that is its own.
fn close_inherited() -> io::Result<()> {
    let names = fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let descriptors = names.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    for descriptor in descriptors.filter(|&descriptor| descriptor > libc::STDERR_FILENO) {
        // That of the listing is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Tells the supervisor now and then that the event loop turns, and that all is well beside it.
///
/// # Errors
/// When the system has no timer left.
pub(crate) fn beat<E: Serialize + DeserializeOwned + 'static>(
    reports: Rc<Sender<Report<E>>>,
    is_well: impl Fn() -> bool + 'static,
) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    spawn_local(async move {
        // Where nobody listens any more, the process ends for that anyway; without a clock, since nothing is heard of it.
        loop {
            if is_well() {
                let _ = reports.send(&Report::Alive).await;
            }
            if alarm.after(HEARTBEAT).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Runs the one event loop of a process.
pub(crate) fn event_loop<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    LocalSet::new().block_on(&runtime, work)
}
