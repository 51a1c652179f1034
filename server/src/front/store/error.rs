//! Why the store cannot be used, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refuses: a full or broken disk, a read-only file system, missing rights.
    #[error("replay store {}: {cause}", path.display())]
    Io {
        /// Its file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Another process has it open.
    #[error("replay store {}: another process has it open", path.display())]
    Locked {
        /// Its file.
        path: PathBuf,
    },
    /// It does not hold what was written to it.
    #[error(
        "replay store {}: damaged ({cause}); it is kept: see what `posternd state reset` costs",
        path.display()
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The path does not lead to the file that the running gate has recorded in.
    #[error(
        "replay store {}: not the file that this gate has recorded in ({problem}); put that back, or run \
         `posternd state reset` and start posternd again",
        path.display()
    )]
    Strange {
        /// Where it should be.
        path: PathBuf,
        /// What is there instead.
        problem: &'static str,
    },
}

impl StoreError {
    /// What redb says, sorted into what the disk does and what the file holds.
    pub(super) fn from_redb(path: &Path, error: redb::Error) -> Self {
        let path = path.to_owned();
        match error {
            // Without the system's own number it is not the disk that failed: an offset in the file leads nowhere.
            redb::Error::Io(cause) if cause.raw_os_error().is_some() => Self::Io { path, cause },
            error => Self::Damaged { path, cause: error.to_string() },
        }
    }
}
