//! Replaces a file in one step: whoever reads it meanwhile, and whatever is cut short, meets the old one or the new one.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

/// Who may do what with a file.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    mode: u32,
    /// User and group, where they are not to be those of this process.
    owner: Option<(u32, u32)>,
}

impl Access {
    /// Nobody else may do anything.
    pub(crate) const PRIVATE: Self = Self { mode: 0o600, owner: None };
    /// Everybody may read it.
    pub(crate) const READABLE: Self = Self { mode: 0o644, owner: None };

    /// As it is with another file.
    pub(crate) fn of(file: &Metadata) -> Self {
        Self { mode: file.mode() & 0o7777, owner: Some((file.uid(), file.gid())) }
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes `bytes` the content of the file of this name, whether or not there is one. Where the name is a link, the link is
/// replaced.
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let folder = folder_of(path);
    // Nobody else's until it is whole.
    let mut file = tempfile::Builder::new().prefix(".postern-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Some((user, group)) = access.owner {
        let now = file.as_file().metadata()?;
        if (now.uid(), now.gid()) != (user, group) {
            fchown(file.as_file(), Some(user), Some(group))?;
        }
    }
    file.as_file().set_permissions(Permissions::from_mode(access.mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}
