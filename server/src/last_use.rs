//! When each client knocked last, for whoever has to decide which of them are still needed. The supervisor keeps it in a file
//! beside what the front and the others remember, and `posternd client list` reads it, whether the gate runs or not.
//!
//! No knock waits for it: a gate that ends may lose the last half second, and one that is killed a few seconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use postern_proto::text::from_toml;
use postern_proto::{ClientId, WallTime};

use crate::config::{ConfigError, Exposure, read_safe};
use crate::files::FolderLock;

/// The file, in the gate's state folder: a line for each client, `id = "date"`.
const FILE: &str = "last-use";

/// When each client knocked last.
pub(crate) type LastUse = BTreeMap<ClientId, WallTime>;

fn path_in(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// What the file says; nothing where there is none.
///
/// # Errors
/// [`ConfigError`] when it cannot be read, or is not what the gate wrote.
pub(crate) fn read(state: &Path) -> Result<LastUse, ConfigError> {
    let path = path_in(state);
    match read_safe(&path, Exposure::NotWritable) {
        Ok(text) => from_toml(&text).map_err(|cause| ConfigError::Text { path, cause }),
        Err(ConfigError::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            Ok(LastUse::new())
        }
        Err(error) => Err(error),
    }
}

/// Makes it what the file says, whole or not at all.
///
/// # Errors
/// When the folder cannot be written to.
pub(crate) fn write(state: &Path, used: &LastUse) -> anyhow::Result<()> {
    let path = path_in(state);
    let mut text = String::from("# When each client knocked last, by its id. Written by posternd.\n");
    for (client, at) in used {
        writeln!(text, "{client} = \"{at}\"").context("a text takes every line")?;
    }
    let lock = FolderLock::around(&path).with_context(|| format!("cannot change {}", path.display()))?;
    lock.replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_empty());
        let used: LastUse = (0..40_u8)
            .map(|n| (ClientId::from_bytes([n * 6; 8]), WallTime::from_secs(u64::from(n))))
            .collect();
        write(folder.path(), &used).unwrap();
        assert_eq!(read(folder.path()).unwrap(), used);
    }
}
