//! Files that nobody else may change, or read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use super::ConfigError;

/// What others must not be able to do with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// Change it.
    NotWritable,
    /// Change or read it.
    NotReadable,
}

/// Reads a text file, unless its mode lets others do more than they may, or somebody else owns it.
pub(crate) fn read_safe(path: &Path, exposure: Exposure) -> Result<Zeroizing<String>, ConfigError> {
    let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
    let mode_error = |problem| Err(ConfigError::Unfit { path: path.to_owned(), problem });
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return mode_error("is not a file".to_owned());
    }
    let mode = metadata.permissions().mode() & 0o777;
    let me = rustix::process::geteuid().as_raw();
    if ![0, me].contains(&metadata.uid()) {
        return mode_error("belongs to another user: chown root".to_owned());
    }
    let (forbidden, verb) = match exposure {
        Exposure::NotWritable => (0o022, "change"),
        Exposure::NotReadable => (0o077, "read or change"),
    };
    if mode & forbidden != 0 {
        return mode_error(format!("mode {mode:04o} lets others {verb} it: chmod 600"));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map(|_| text).map_err(read)
}
