//! What became of a block of ssh's configuration.

use std::fmt;
use std::path::PathBuf;

use postern_proto::GateName;
use serde::Serialize;

/// A block of ssh's configuration.
#[derive(Debug, Serialize)]
pub struct SshConfigReport {
    /// The gate that it is for.
    pub gate: GateName,
    /// The block.
    pub block: String,
    /// The file that it is in now, when it was put into one.
    pub file: Option<PathBuf>,
    /// The file as it was before, when there was one and it was changed.
    pub backup: Option<PathBuf>,
    /// Whether the file was changed.
    pub changed: bool,
}

impl fmt::Display for SshConfigReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gate, block, file, backup, changed } = self;
        match (file, backup) {
            (None, _) => f.write_str(block),
            (Some(file), _) if !changed => {
                writeln!(f, "{gate} is in {} already; nothing was changed", file.display())
            }
            (Some(file), None) => writeln!(f, "put {gate} into {}, a new file", file.display()),
            (Some(file), Some(backup)) => {
                writeln!(f, "put {gate} into {}; as it was: {}", file.display(), backup.display())
            }
        }
    }
}
