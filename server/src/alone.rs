//! There is one gate in a network namespace: two would take each other's rules away. Who runs one, puts up its guard or
//! removes it holds the lock of a file that only root can open: no name that anybody else could take first.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The one place of this network namespace. The kernel frees it with the last process that holds it.
pub(crate) struct Alone {
    file: File,
    path: PathBuf,
}

impl Alone {
    /// Takes the place; `None` where somebody has it.
    ///
    /// # Errors
    /// When the file cannot be made or locked: only root can.
    pub(crate) fn take() -> io::Result<Option<Self>> {
        let namespace = fs::metadata("/proc/self/ns/net")?.ino();
        let path = PathBuf::from(format!("/run/posternd-{namespace}.lock"));
        loop {
            let mut options = File::options();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Who had it before takes the file away when he ends: then this lock is of nothing.
            if fs::metadata(&path)
                .is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()))
            {
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// The lock, for another process to hold as well.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // A file that is left behind is locked by nobody, and takes no place.
        drop(fs::remove_file(&self.path));
    }
}
