//! Files that must never be half written, and of which two programs must not write one at a time; folders that must
//! not be lost with the power.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// Makes a folder of mode 0700, and those above it that are missing, all durable. One that is there stays as it is.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    make(folder, 0o700)
}

fn make(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = parent(folder);
    make(parent, 0o755)?;
    match DirBuilder::new().mode(mode).create(folder) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        created => created?,
    }
    // Whatever the mask of whoever starts us: another user has to get through the upper ones.
    fs::set_permissions(folder, Permissions::from_mode(mode))?;
    File::open(parent)?.sync_all()
}

/// The folder that a path is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How long a folder that another one has is waited for, and from one look to the next.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A folder that is ours to write in until this is dropped; others who ask wait.
pub(crate) struct FolderLock {
    folder: PathBuf,
    handle: File,
}

impl FolderLock {
    /// Locks the folder that a file is in.
    ///
    /// # Errors
    /// When there is no such folder, or another one keeps it for long: that may wait for whoever reads what it prints.
    pub(crate) fn around(path: &Path) -> io::Result<Self> {
        Self::within(PATIENCE, path)
    }

    fn within(patience: Duration, path: &Path) -> io::Result<Self> {
        let folder = parent(path).to_owned();
        let handle = File::open(&folder)?;
        let begun = Instant::now();
        loop {
            match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { folder, handle }),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < patience => sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    let busy = format!(
                        "{} has been locked for {} s, as by a posternd command that waits for something: see whose it is \
                         (fuser -v {0}), and end that",
                        folder.display(),
                        patience.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, busy));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts a file with mode 0600 in place of the old one, whole or not at all; durable when it returns.
    pub(crate) fn replace(&self, path: &Path, content: &str) -> io::Result<()> {
        written_in(&self.folder, content)?.persist(path)?;
        self.handle.sync_all()
    }

    /// [`create_private`], in this folder.
    pub(crate) fn create(&self, path: &Path, content: &str) -> io::Result<()> {
        written_in(&self.folder, content)?.persist_noclobber(path)?;
        self.handle.sync_all()
    }
}

/// Makes a new file with mode 0600, durable when it returns; an existing one is an error and stays as it is. There is nothing to
/// lock: only one of two who make it at a time succeeds.
pub(crate) fn create_private(path: &Path, content: &str) -> io::Result<()> {
    let folder = parent(path);
    written_in(folder, content)?.persist_noclobber(path)?;
    File::open(folder)?.sync_all().inspect_err(|_| drop(fs::remove_file(path)))
}

fn written_in(folder: &Path, content: &str) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(folder)?;
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_one_keeps_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let held = FolderLock::around(&file).unwrap();
        let error = FolderLock::within(Duration::from_millis(50), &file).err().unwrap();
        let says = format!("{} has been locked", folder.path().display());
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().starts_with(&says), "{error}");
        drop(held);
        FolderLock::around(&file).unwrap();
    }
}
