//! What the supervisor lays out for the others before they start: they may not make it themselves.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, lstat, open, statat};
use rustix::io::Errno;
use rustix::process::umask;

use crate::alone::Alone;
use crate::files::make_private;
use crate::front::store;
use crate::sandbox::Identity;
use crate::warden::process::lock_file;

/// Makes the front's folder, or hands it over: from then on it is the front's user's alone. Says whether it is new.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
pub(super) fn lay_store(folder: &Path, identity: Identity) -> anyhow::Result<bool> {
    let is_new = !folder.exists();
    hand_over(folder, identity).with_context(|| format!("state folder {}", folder.display()))?;
    Ok(is_new)
}

fn hand_over(folder: &Path, identity: Identity) -> anyhow::Result<()> {
    make_private(folder)?;
    // Looked at and not opened: what is the front's already lets root in only by a capability that is given up.
    let owner = lstat(folder)?.st_uid;
    if owner == identity.uid {
        return Ok(());
    }
    // Root's folder holds what root put there; somebody else's may hold links to anywhere.
    if owner != 0 {
        bail!("belongs to user {owner}: chown it to user {} of [process], or to root", identity.uid);
    }
    let handle = open(folder, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    match statat(&handle, store::FILE, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => chownat(&handle, store::FILE, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    fchown(&handle, Some(uid), Some(gid))?;
    Ok(())
}

/// Lets the warden take the lock of iptables-legacy, which root's programs make for root alone: without it two
/// programs would write the same table at a time. iptables-nft knows no such lock, but where somebody uses
/// iptables-legacy beside it, a warden that starts looks there for rules that an earlier one has left.
///
/// # Errors
/// When the file is there and cannot be shared.
pub(super) fn share_lock(identity: Identity) -> anyhow::Result<()> {
    let path = lock_file();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    share(open(&path, flags, Mode::from_raw_mode(0o600)), identity)
        .with_context(|| format!("cannot share the lock of iptables, {}", path.display()))
}

fn share(lock: rustix::io::Result<OwnedFd>, identity: Identity) -> io::Result<()> {
    let lock = lock?;
    let mode = Mode::from_raw_mode(0o660);
    let stat = fstat(&lock)?;
    if stat.st_gid != identity.gid {
        fchown(&lock, None, Some(Gid::from_raw(identity.gid)))?;
    }
    if Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o777) != mode {
        fchmod(&lock, mode)?;
    }
    Ok(())
}

/// Makes the folder of the runner's ledger: root's alone.
///
/// # Errors
/// When it cannot be made.
pub(super) fn lay_ledger(ledger: &Path) -> anyhow::Result<()> {
    let folder = ledger.parent().unwrap_or(Path::new("/"));
    let lay = || {
        make_private(folder)?;
        let stat = lstat(folder)?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            bail!("others than root may change it: root runs what stands in it; chown it to root, chmod 700");
        }
        Ok(())
    };
    lay().with_context(|| format!("state folder {}", folder.display()))
}

/// How long a gate that was killed may take to be gone from its socket.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Takes the one place of this network namespace, from a gate that was killed just now where need be.
///
/// # Errors
/// When another gate has it.
pub(super) fn take_place() -> anyhow::Result<Alone> {
    let begun = Instant::now();
    loop {
        match Alone::take()
            .context("cannot make sure that no other posternd guards this network namespace")?
        {
            Some(alone) => return Ok(alone),
            None if begun.elapsed() > PATIENCE => {
                bail!("another posternd guards this network namespace already")
            }
            None => sleep(PAUSE),
        }
    }
}

/// The socket on which the gate answers root, and a group.
pub(super) struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Listens at a path, in the place of a gate that is no more.
    ///
    /// # Errors
    /// When another gate answers there, or it cannot be made.
    pub(super) fn bind(path: &Path, group: Option<u32>) -> anyhow::Result<Self> {
        bind(path, group).with_context(|| format!("admin socket {}", path.display()))
    }

    /// The listening end, for the warden.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Left behind, it says that no gate answers: the next one takes its place.
        drop(fs::remove_file(&self.path));
    }
}

fn bind(path: &Path, group: Option<u32>) -> anyhow::Result<AdminSocket> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        let before = umask(Mode::from_raw_mode(0o022));
        let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        umask(before);
        made?;
    }
    let begun = Instant::now();
    while UnixStream::connect(path).is_ok() {
        if begun.elapsed() > PATIENCE {
            bail!("another gate answers there: stop it, or give this one its own socket in [admin]");
        }
        sleep(PAUSE);
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => bail!("is there, and no socket: move it away"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // Until it is the group's, the group that may write is root's own.
    let before = umask(Mode::from_raw_mode(if group.is_some() { 0o117 } else { 0o177 }));
    let listener = UnixListener::bind(path);
    umask(before);
    let socket = AdminSocket { listener: listener?, path: path.to_owned() };
    if let Some(group) = group {
        lchown(path, None, Some(group))?;
    }
    Ok(socket)
}
