//! What is done to a store while no gate has it open: one begins, is looked at, is reset. It takes rights in the
//! folder that the running front does not have.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use postern_proto::{Tolerance, WallTime};
use tempfile::NamedTempFile;
use tracing::warn;

use super::error::StoreError;
use super::file::{StoreFile, lock, read_copy};
use crate::clock::Now;

/// What a look at a store shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There is none.
    Missing,
    /// A gate has it open.
    InUse,
    /// It reads well.
    Sound {
        /// How many knocks it remembers.
        knocks: usize,
    },
}

/// What a reset has done.
#[derive(Debug)]
pub(crate) struct Reset {
    /// The old store, if there was one.
    pub(crate) kept: Option<PathBuf>,
    /// Knocks made up to then are stale.
    pub(crate) floor: WallTime,
}

/// The store's file, in the front's folder. What is redb's begins behind the journal.
pub(crate) const FILE: &str = "replay.redb";

/// The file of the store in a folder.
pub(crate) fn path_in(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Begins a new store in an existing folder, unless one is there. It belongs to whoever the folder belongs to. Knocks
/// made up to `floor` are stale: if there was a store, it is not known any more which of them were used.
///
/// # Errors
/// [`StoreError::Io`] when it cannot be made.
pub fn prepare(folder: &Path, floor: WallTime) -> Result<(), StoreError> {
    let path = path_in(folder);
    let failed = |cause| StoreError::Io { path: path.clone(), cause };
    match fs::symlink_metadata(&path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let new = begin(folder, floor)?;
    new.persist_noclobber(&path).map_err(|error| failed(error.error))?;
    make_durable(folder).map_err(failed)?;
    warn!(store = %path.display(), %floor, "there was no replay store: a new one begins, and knocks made up to its floor are stale");
    Ok(())
}

/// Looks at the store in a folder, and leaves it as it is.
///
/// # Errors
/// [`StoreError`] when it cannot be read, or is damaged.
pub(crate) fn examine(folder: &Path) -> Result<Condition, StoreError> {
    let path = path_in(folder);
    let failed = |cause| StoreError::Io { path: path.clone(), cause };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Condition::Missing),
        file => file.map_err(failed)?,
    };
    // Held while it is read, so that no gate writes to it meanwhile.
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Condition::InUse),
        Err(TryLockError::Error(cause)) => return Err(failed(cause)),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let memory = read_copy(&path, &bytes, Now::read().boot)?;
    Ok(Condition::Sound { knocks: memory.knocks() })
}

/// Begins a new store in place of the old one, which is kept beside it.
///
/// Knocks made before stay shut out, though nobody remembers them: the new floor lies ahead by the tolerance, and so
/// above whatever the old store could have accepted from a client whose clock is ahead.
///
/// # Errors
/// [`StoreError::Locked`] while a gate runs; [`StoreError::Io`] when the new store cannot be made.
pub(crate) fn reset(folder: &Path, now: WallTime, tolerance: Tolerance) -> Result<Reset, StoreError> {
    let path = path_in(folder);
    let failed = |cause| StoreError::Io { path: path.clone(), cause };
    let old = match File::options().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        file => Some(file.map_err(failed)?),
    };
    if let Some(old) = &old {
        lock(&path, old)?;
    }
    let floor = now.after(tolerance.duration());
    let new = begin(folder, floor)?;
    // A second name first, then the new store over the old name: at no moment is there none, for which a gate that
    // starts just now would make one with a lower floor.
    let kept = old.is_some().then(|| folder.join(format!("{FILE}.{now}")));
    if let Some(kept) = &kept {
        fs::hard_link(&path, kept).map_err(failed)?;
    }
    new.persist(&path).map_err(|error| failed(error.error))?;
    make_durable(folder).map_err(failed)?;
    Ok(Reset { kept, floor })
}

/// A new store under a name of its own, so that no crash leaves half a store under the right one.
fn begin(folder: &Path, floor: WallTime) -> Result<NamedTempFile, StoreError> {
    let path = path_in(folder);
    let make = || {
        let new = NamedTempFile::new_in(folder)?;
        let (ours, folder) = (new.as_file().metadata()?, fs::metadata(folder)?);
        if (ours.uid(), ours.gid()) != (folder.uid(), folder.gid()) {
            fchown(new.as_file(), Some(folder.uid()), Some(folder.gid()))?;
        }
        let file = new.reopen()?;
        Ok((new, file))
    };
    let (new, file) = make().map_err(|cause| StoreError::Io { path: path.clone(), cause })?;
    StoreFile::init(&path, file, floor)?;
    new.as_file().sync_all().map_err(|cause| StoreError::Io { path, cause })?;
    Ok(new)
}

/// A file whose name is lost with the power would be a store that has forgotten everything.
fn make_durable(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
