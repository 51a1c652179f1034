//! The admin socket, from the warden's side: takes what is asked by whoever may open it. Bounded in connections, time and
//! size: who dawdles there keeps the leases waiting never, and root neither, for whom there is always a connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::admin::{Answer, LONGEST_REQUEST, ReloadAsked, Request};
use crate::link::Sender;

/// Connections of others than root at a time; further ones are told to come again.
const CONNECTIONS: usize = 32;
/// Requests that may wait for the warden.
const WAITING: usize = 8;
/// How long a request may take to come in, to be handed over, and an answer to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause when no connection can be taken, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A request, and where its answer goes.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Where requests go: reloads to the supervisor, with their connections, and all others to the warden.
struct Desk {
    asked: mpsc::Sender<Asked>,
    reloads: Sender<ReloadAsked>,
}

/// Takes connections on a listening socket, and gives what they ask; reloads go over their own link.
///
/// # Errors
/// When the socket cannot be watched.
pub(super) fn open(listener: OwnedFd, reloads: OwnedFd) -> io::Result<mpsc::Receiver<Asked>> {
    let listener = StdListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (asked, requests) = mpsc::channel(WAITING);
    let desk = Rc::new(Desk { asked, reloads: Sender::new(reloads) });
    spawn_local(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
            let place = Arc::clone(&places).try_acquire_owned();
            if place.is_err() && !is_root {
                drop(Answer::Failed("too many ask at a time: try again".to_owned()).send_now(stream.as_fd()));
                continue;
            }
            let desk = Rc::clone(&desk);
            spawn_local(async move {
                if let Err(error) = desk.attend(stream).await {
                    debug!(%error, "an admin connection ended early");
                }
                drop(place);
            });
        }
    });
    Ok(requests)
}

impl Desk {
    /// One connection: a request, and its answer.
    async fn attend(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = Vec::new();
        let mut bounded = BufReader::new((&mut stream).take(LONGEST_REQUEST as u64));
        timeout(DEADLINE, bounded.read_until(b'\n', &mut line)).await??;
        let answer = match serde_json::from_slice(&line) {
            // Whatever becomes of this warden in the course of it, the supervisor is there to answer.
            Ok(Request::Reload) => {
                let connection = [stream.as_fd()];
                return timeout(DEADLINE, self.reloads.send_with(&ReloadAsked, &connection)).await?;
            }
            Ok(request) => {
                let (reply, answer) = oneshot::channel();
                self.asked.send(Asked { request, reply }).await.map_err(io::Error::other)?;
                answer.await.map_err(io::Error::other)?
            }
            Err(error) => Answer::Failed(format!("not understood: {error}")),
        };
        timeout(DEADLINE, stream.write_all(&answer.to_line()?)).await?
    }
}
