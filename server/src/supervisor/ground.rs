//! What the supervisor lays out for the others before they start: they may not make it themselves.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, lstat, open, statat};
use rustix::io::Errno;

use crate::sandbox::Identity;
use crate::warden::firewall::Variant;
use crate::warden::process::lock_file;

/// The one file of the front's folder.
const STORE: &str = "replay.redb";

/// Makes the front's folder, or hands it over: from then on it is the front's user's alone.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
pub(super) fn lay_store(folder: &Path, identity: Identity) -> anyhow::Result<()> {
    hand_over(folder, identity).with_context(|| format!("state folder {}", folder.display()))
}

fn hand_over(folder: &Path, identity: Identity) -> anyhow::Result<()> {
    make(folder)?;
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
    match statat(&handle, STORE, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => chownat(&handle, STORE, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    fchown(&handle, Some(uid), Some(gid))?;
    Ok(())
}

/// Makes a folder with mode 0700, and those above it that are missing as folders to pass through; durable on return.
fn make(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent
        && !parent.exists()
    {
        make_passage(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => parent.map_or(Ok(()), |parent| File::open(parent)?.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_passage(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent()
        && !parent.as_os_str().is_empty()
        && !parent.exists()
    {
        make_passage(parent)?;
    }
    DirBuilder::new().mode(0o711).create(folder)?;
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent)?.sync_all()?;
    }
    File::open(folder)?.sync_all()
}

/// Lets the warden take the lock of iptables-legacy, which root's programs make for root alone: without it two
/// programs would write the same table at a time. iptables-nft knows no such lock.
///
/// # Errors
/// When the file is there and cannot be shared.
pub(super) fn share_lock(variant: Variant, identity: Identity) -> anyhow::Result<()> {
    if variant == Variant::Nft {
        return Ok(());
    }
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
