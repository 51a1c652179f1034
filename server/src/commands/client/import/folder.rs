//! A new folder of profiles, which is there whole or not at all.
//!
//! It is filled beside the place that it goes to, under a name that begins with a dot, and gets its own name when it is complete and on
//! the disk. A sync of each of a hundred thousand files would take minutes: the file system is synced once instead (syncfs), which
//! says as well when something could not be written.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use tempfile::TempDir;

/// The folder; it is removed again, with all that is in it, unless it is kept.
pub(super) struct NewFolder {
    /// Where it goes.
    path: PathBuf,
    /// Where it is filled; gone from there when it has gone to its place.
    draft: TempDir,
    is_kept: bool,
}

impl NewFolder {
    /// An empty one beside its place, which nobody must have taken.
    pub(super) fn beside(path: &Path) -> anyhow::Result<Self> {
        if path.symlink_metadata().is_ok() {
            bail!("{} exists already: it is left as it is, and nothing was changed", path.display());
        }
        let Some(name) = path.file_name() else {
            bail!("{} names no new folder", path.display());
        };
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let draft = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent(path))
            .with_context(|| format!("cannot make {}, and nothing was changed", path.display()))?;
        Ok(Self { path: path.to_owned(), draft, is_kept: false })
    }

    /// Puts a file with mode 0600 into it.
    pub(super) fn add(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.draft.path().join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| {
            format!("cannot write {name} into {}, and nothing was changed", self.path.display())
        })
    }

    /// All files are in it: gives it its name, durable when this returns.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        self.rename().with_context(|| format!("cannot make {}, and nothing was changed", self.path.display()))
    }

    fn rename(&self) -> io::Result<()> {
        let above = File::open(parent(&self.path))?;
        syncfs(File::open(self.draft.path())?)?;
        renameat_with(CWD, self.draft.path(), CWD, &self.path, RenameFlags::NOREPLACE)?;
        above.sync_all()
    }

    /// The gate knows its clients.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // What has not been renamed is the temporary folder's own to remove.
        let is_renamed = !self.draft.path().exists();
        if is_renamed
            && !self.is_kept
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("cannot remove {}, which is good for nothing: {error}", self.path.display());
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("profiles");
        // Nobody finished it, then nobody kept it.
        for finishes in [false, true] {
            let folder = NewFolder::beside(&path).unwrap();
            folder.add("alice.profile", "a").unwrap();
            assert!(!path.exists());
            if finishes {
                folder.finish().unwrap();
                assert_eq!(names(&path), ["alice.profile"]);
            }
            drop(folder);
            assert!(names(above.path()).is_empty(), "{:?}", names(above.path()));
        }
        let folder = NewFolder::beside(&path).unwrap();
        folder.add("bob.profile", "b").unwrap();
        assert!(folder.add("bob.profile", "c").is_err());
        folder.finish().unwrap();
        folder.keep();
        assert_eq!(names(above.path()), ["profiles"]);
        assert_eq!(fs::read_to_string(path.join("bob.profile")).unwrap(), "b");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("bob.profile"))), (0o700, 0o600));
    }

    #[test]
    fn what_is_there_already_is_left_as_it_is() {
        let above = tempfile::tempdir().unwrap();
        assert!(NewFolder::beside(above.path()).is_err());
        // Somebody else makes it meanwhile.
        let path = above.path().join("profiles");
        let folder = NewFolder::beside(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(folder.finish().is_err());
        drop(folder);
        assert_eq!(names(above.path()), ["profiles"]);
    }
}
