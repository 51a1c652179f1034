//! Who asks over the admin socket for the files to be read again. The warden hands their connections over, so that they
//! are answered also where the reload takes another warden.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tracing::{debug, error};

use crate::admin::{Answer, ReloadAsked};
use crate::link::{self, Receiver};

/// The link over which they come.
pub(super) struct Askers {
    asked: Receiver<ReloadAsked>,
    /// The warden's end; a new warden goes on with it.
    theirs: OwnedFd,
}

impl Askers {
    /// A link that nobody uses yet.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(super) fn new() -> io::Result<Self> {
        let (ours, theirs) = link::pair()?;
        Ok(Self { asked: Receiver::new(ours)?, theirs })
    }

    /// The warden's end.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.theirs.as_fd()
    }

    /// Waits until somebody asks. Nothing is lost when it is dropped while it waits.
    pub(super) async fn asked(&mut self) -> Asker {
        loop {
            match self.asked.receive_with().await {
                Ok(Some((ReloadAsked, descriptors))) => {
                    // Without a connection there is nobody to tell, and without anybody to tell no reload.
                    if let Some(connection) = descriptors.into_iter().next() {
                        return Asker(connection);
                    }
                }
                // The warden's end is held here too: only a warden that was taken over can have shut it down, and its
                // successor gets another.
                Ok(None) => match Self::new() {
                    Ok(another) => *self = another,
                    Err(error) => {
                        error!(%error, "reloads can be asked for by SIGHUP only: there is no link for them");
                        pending::<()>().await;
                    }
                },
                Err(error) => debug!(%error, "the warden hands over what is no connection"),
            }
        }
    }
}

/// Somebody who waits to hear of a reload.
pub(super) struct Asker(OwnedFd);

impl Asker {
    /// Says what became of it.
    pub(super) fn tell(self, result: &Result<(), String>) {
        let answer = match result {
            Ok(()) => Answer::Reloaded,
            Err(why) => Answer::Failed(why.clone()),
        };
        if let Err(error) = answer.send_now(self.0.as_fd()) {
            debug!(%error, "who asked for a reload does not hear of it");
        }
    }
}
