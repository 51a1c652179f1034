//! Keeps the file that says when each client knocked last. A disk that hangs must not hold the supervisor up: it is written
//! beside, one time after the other.

use std::collections::HashSet;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use postern_proto::ClientId;
use postern_proto::keyfile::ClientEntry;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::last_use::{self, LastUse};

/// From one time that it is written to the next, at the least.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a gate that stops waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the clients of the key file knocked last.
pub(super) struct Uses {
    state: PathBuf,
    /// Of nobody else anything is kept, whatever the front says.
    clients: HashSet<ClientId>,
    used: LastUse,
    has_changed: bool,
    next: Instant,
    /// What came of the last write, once that is done.
    writing: Option<oneshot::Receiver<anyhow::Result<()>>>,
}

impl Uses {
    /// Goes on with what the file says. It is no more than a help for people: one that does not read is begun anew.
    pub(super) fn load(state: &Path, clients: &[ClientEntry]) -> Self {
        let used = last_use::read(state).unwrap_or_else(|error| {
            warn!("when clients knocked last is forgotten: {error}");
            LastUse::new()
        });
        let (state, next) = (state.to_owned(), Instant::now());
        let mut kept = Self { state, clients: HashSet::new(), used, has_changed: false, next, writing: None };
        kept.expect(clients);
        kept
    }

    /// These are the clients from now on.
    pub(super) fn expect(&mut self, clients: &[ClientEntry]) {
        self.clients = clients.iter().map(|client| client.id).collect();
        self.used.retain(|client, _| self.clients.contains(client));
    }

    /// Clients knocked.
    pub(super) fn note(&mut self, used: LastUse) {
        self.used.extend(used.into_iter().filter(|(client, _)| self.clients.contains(client)));
        self.has_changed = true;
    }

    /// Until it is to be written again. It may be dropped and asked again.
    pub(super) async fn due(&mut self) {
        self.written().await;
        if !self.has_changed {
            pending::<()>().await;
        }
        sleep_until(self.next).await;
    }

    /// Begins to write it.
    pub(super) fn write(&mut self) {
        self.has_changed = false;
        self.next = Instant::now() + PAUSE;
        let (state, used) = (self.state.clone(), self.used.clone());
        let (tell, written) = oneshot::channel();
        // A thread of its own: the event loop would wait for one of its own at the end, however long the disk hangs.
        let write = move || drop(tell.send(last_use::write(&state, &used)));
        match thread::Builder::new().name("last-use".to_owned()).spawn(write) {
            Ok(_) => self.writing = Some(written),
            Err(error) => warn!("when clients knocked last is not written: {error}"),
        }
    }

    /// Writes what is not written yet; where the disk hangs, that is lost.
    pub(super) async fn finish(&mut self) {
        let finish = async {
            self.written().await;
            if self.has_changed {
                self.write();
                self.written().await;
            }
        };
        if timeout(PATIENCE, finish).await.is_err() {
            warn!("the disk hangs: when clients knocked in the last seconds is not written");
        }
    }

    async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let result = writing.await;
        self.writing = None;
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("when clients knocked last is not written: {error:#}"),
            Err(error) => warn!("when clients knocked last is not written: {error}"),
        }
    }
}
