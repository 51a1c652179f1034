//! The supervisor: starts front and warden, hands them new settings, and stops them. It parses nothing from
//! outside but the files of the administrator. Front and warden share nothing but the pipe between them.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tracing::{error, info};

use crate::config::Config;
use crate::front::Front;
use crate::pipe::{OrderReceiver, OrderSender};
use crate::warden::{Command, Ended, Warden};

/// Runs the gate until it is told to stop. The guard and the live grants stay then; the kernel ends the grants.
///
/// # Errors
/// When the gate cannot start, or a part of it fails.
pub(crate) fn run(path: &Path, config: &Config, trial: Option<Duration>) -> anyhow::Result<()> {
    runtime()?.block_on(supervise(path, config, trial))
}

async fn supervise(path: &Path, config: &Config, trial: Option<Duration>) -> anyhow::Result<()> {
    // Before anything starts: a signal that comes early must not end the process half way.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut confirm = signal(SignalKind::user_defined1())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let (front_end, warden_end) =
        StdStream::pair().context("cannot make the pipe between front and warden")?;
    let (to_warden, warden_commands) = mpsc::channel(1);
    let (to_front, front_commands) = mpsc::channel(1);
    let (front_ready, front_is_ready) = oneshot::channel();
    let (warden_ready, warden_is_ready) = oneshot::channel();
    let (begin, may_begin) = oneshot::channel();

    // The store and the captures first: where they fail, the firewall is as it was. The guard next: it stands before
    // the first knock is read, so that nobody is let in whom the kernel would not let out.
    let settings = config.front();
    let mut front = room("front", async move || {
        let front = Front::start(settings)?;
        let _ = front_ready.send(());
        match may_begin.await {
            Ok(()) => front.run(OrderSender::new(attach(front_end)?), front_commands).await,
            Err(_) => Ok(()),
        }
    })?;
    if front_is_ready.await.is_err() {
        return front.await.context("the front is gone")?;
    }
    let settings = config.warden(trial);
    let mut warden = room("warden", async move || {
        let warden = Warden::start(settings).await?;
        let _ = warden_ready.send(());
        warden.run(OrderReceiver::new(attach(warden_end)?), warden_commands).await
    })?;
    if warden_is_ready.await.is_err() {
        return warden.await.context("the warden is gone")?.map(drop);
    }
    let _ = begin.send(());
    if let Some(trial) = trial {
        let trial = humantime::format_duration(trial);
        let pid = std::process::id();
        info!("trial: the guard falls in {trial} unless confirmed: kill -USR1 {pid}");
    }
    info!(clients = config.clients.len(), "ready");

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = confirm.recv() => drop(to_warden.send(Command::Confirm).await),
            _ = hangup.recv() => match Config::read(path) {
                Ok(config) => {
                    drop(to_warden.send(Command::Reload(Box::new(config.warden(None)))).await);
                    drop(to_front.send(config.enrolled()).await);
                    info!(clients = config.clients.len(), "reloaded clients and services");
                }
                Err(error) => error!(%error, "not reloaded; everything stays as it was"),
            },
            ended = &mut front => {
                ended.context("the front is gone")?.context("the front failed")?;
                bail!("the front ended by itself");
            }
            ended = &mut warden => match ended.context("the warden is gone")?.context("the warden failed")? {
                Ended::TrialOver => {
                    info!("the trial was not confirmed: every rule of Postern is gone again");
                    return Ok(());
                }
                Ended::Stopped => bail!("the warden ended by itself"),
            },
        }
    }
    drop(to_front);
    front.await.context("the front is gone")??;
    warden.await.context("the warden is gone")?.map(drop)?;
    info!("stopped; the guard and live grants stay (posternd remove takes them away)");
    Ok(())
}

/// Runs a room on a thread and a runtime of its own; gives what it ends with.
fn room<T, F>(name: &str, work: F) -> io::Result<oneshot::Receiver<anyhow::Result<T>>>
where
    T: Send + 'static,
    F: AsyncFnOnce() -> anyhow::Result<T> + Send + 'static,
{
    let (ended, receiver) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let result = runtime()
            .map_err(|error| anyhow!(error))
            .and_then(|runtime| LocalSet::new().block_on(&runtime, work()));
        drop(ended.send(result));
    })?;
    Ok(receiver)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()
}

fn attach(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
