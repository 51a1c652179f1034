//! Files that must never be half written, and of which two programs must not write one at a time.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

/// A folder that is ours to write in until this is dropped; others who ask wait.
pub(crate) struct FolderLock {
    folder: PathBuf,
    handle: File,
}

impl FolderLock {
    /// Locks the folder that a file is in.
    pub(crate) fn around(path: &Path) -> io::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let handle = File::open(&folder)?;
        flock(&handle, FlockOperation::LockExclusive)?;
        Ok(Self { folder, handle })
    }

    /// Puts a file with mode 0600 in place of the old one, whole or not at all; durable when it returns.
    pub(crate) fn replace(&self, path: &Path, content: &str) -> io::Result<()> {
        self.written(content)?.persist(path)?;
        self.handle.sync_all()
    }

    /// Makes a new file with mode 0600; an existing one is an error and stays as it is.
    pub(crate) fn create(&self, path: &Path, content: &str) -> io::Result<()> {
        self.written(content)?.persist_noclobber(path)?;
        self.handle.sync_all()
    }

    fn written(&self, content: &str) -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(content.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    }
}
