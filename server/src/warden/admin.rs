//! The admin socket, from the warden's side: takes what is asked by whoever may open it. Bounded in connections, time and size: who dawdles
//! there keeps nobody else, and never the leases, waiting.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::admin::{Answer, LONGEST_REQUEST, Request};

/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 8;
/// How long a request may take to come in, and an answer to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause when no connection can be taken, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A request, and where its answer goes.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Takes connections on a listening socket, and gives what they ask.
///
/// # Errors
/// When the socket cannot be watched.
pub(super) fn open(listener: OwnedFd) -> io::Result<mpsc::Receiver<Asked>> {
    let listener = StdListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (asked, requests) = mpsc::channel(CONNECTIONS);
    spawn_local(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let asked = asked.clone();
            spawn_local(async move {
                if let Err(error) = attend(stream, &asked).await {
                    debug!(%error, "an admin connection ended early");
                }
                drop(place);
            });
        }
    });
    Ok(requests)
}

/// One connection: a request, and its answer.
async fn attend(mut stream: UnixStream, asked: &mpsc::Sender<Asked>) -> io::Result<()> {
    let mut line = Vec::new();
    let mut bounded = BufReader::new((&mut stream).take(LONGEST_REQUEST as u64));
    timeout(DEADLINE, bounded.read_until(b'\n', &mut line)).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            asked.send(Asked { request, reply }).await.map_err(io::Error::other)?;
            answer.await.map_err(io::Error::other)?
        }
        Err(error) => Answer::Failed(format!("not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    text.push(b'\n');
    timeout(DEADLINE, stream.write_all(&text)).await?
}
