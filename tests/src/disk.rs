//! A disk whose power can be cut: of what was not synced by then, any block may be there and any may be missing, as on
//! a real one.
//!
//! ```text
//! posternd ── ext4 ── loop device ── a file of FUSE ── [cache]: what is durable, and what was written since
//! ```
//! A loop device passes on every flush that ext4 asks of its disk as a sync of the file below, so the file knows what the
//! disk has promised to keep. Everything is mounted in a mount namespace of the test's own ([`privately`]): nobody else
//! holds on to it, and the kernel takes all of it down when the last process in there ends, even a killed one.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use tempfile::{NamedTempFile, TempPath};

use crate::process::{run, succeed};
use crate::wait::{LONG, wait_for};

mod cache;

use cache::{BLOCK, Cache};

/// Size of a disk in bytes: an ext4 with its journal, and a replay store.
const SIZE: u64 = 32 << 20;

/// Runs a closure in a mount namespace of its own, where mounts come in from outside and none goes out. Processes that
/// the closure starts are in there too.
///
/// # Errors
/// When the namespace cannot be made, or the closure fails.
pub fn privately<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let private = scope.spawn(|| {
            #[expect(
                deprecated,
                reason = "its successor is unsafe for the sake of descriptors, which stay shared here"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNS).context("cannot leave the mount namespace")?;
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
            work()
        });
        private.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What is on a disk that has no power.
pub struct Image(Vec<u8>);

impl Image {
    /// A new ext4 with a journal, and nothing on it.
    ///
    /// # Errors
    /// When `mkfs.ext4` fails.
    pub fn formatted() -> Result<Self> {
        let file = NamedTempFile::with_prefix("postern-disk-")?;
        file.as_file().set_len(SIZE)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-b", &BLOCK.to_string(), "-E", "lazy_itable_init=0,nodiscard"]);
        mkfs.arg(file.path());
        succeed(mkfs, b"", LONG)?;
        Ok(Self(fs::read(file.path())?))
    }

    /// Replays the journal of a copy, and checks that nothing is wrong with the file system then: a disk that keeps its
    /// promises never breaks it, wherever the power was cut.
    ///
    /// # Errors
    /// When something is wrong with it.
    pub fn check(&self) -> Result<()> {
        let file = NamedTempFile::with_prefix("postern-disk-")?;
        fs::write(file.path(), &self.0)?;
        let mut replay = Command::new("e2fsck");
        replay.args(["-p", "-E", "journal_only"]).arg(file.path());
        succeed(replay, b"", LONG)?;
        let mut check = Command::new("e2fsck");
        check.args(["-f", "-n"]).arg(file.path());
        let checked = run(check, b"", LONG)?;
        ensure!(checked.code == 0, "e2fsck: {}", checked.text());
        Ok(())
    }
}

/// A disk with power. Dropping it cuts the power; nothing is kept then.
pub struct Disk {
    mounted_at: PathBuf,
    file: TempPath,
    cache: Arc<Cache>,
    _session: BackgroundSession,
}

/// What a cut has left of a disk.
pub struct Remains {
    /// What is on it.
    pub image: Image,
    /// How many blocks had been written and not synced.
    pub unsynced: usize,
    /// How many of them are there, as they were written last or before.
    pub kept: usize,
}

impl Disk {
    /// Mounts what is on a disk at a directory. To be called within [`privately`].
    ///
    /// # Errors
    /// When it cannot be mounted: the kernel replays the journal first.
    pub fn mount(image: Image, at: &Path) -> Result<Self> {
        let cache = Arc::new(Cache::new(image.0));
        let file = NamedTempFile::with_prefix("postern-disk-")?.into_temp_path();
        let session = serve(Arc::clone(&cache), &file).context("FUSE")?;
        let disk = Self { mounted_at: at.to_owned(), file, cache, _session: session };
        // util-linux finds a free loop device, and has the kernel free it again with the mount.
        let mut command = Command::new("mount");
        command.args(["-n", "-t", "ext4", "-o", "loop"]).arg(&*disk.file).arg(at);
        succeed(command, b"", LONG)?;
        Ok(disk)
    }

    /// Cuts the power: every read, write and sync fails from now on.
    pub fn cut(&self) {
        self.cache.cut();
    }

    /// From now on the disk says of every sync that it is done, and does none: what no file system can survive.
    pub fn lie_about_syncs(&self) {
        self.cache.lie();
    }

    /// Takes down a disk whose power is cut, and gives what is on it: of each block that was not synced, one of the states
    /// that were written or the one before them, drawn with `rng`; without it always the one before them.
    ///
    /// # Errors
    /// When somebody still uses it.
    pub fn remains(self, rng: Option<&mut Rng>) -> Result<Remains> {
        // A process that another thread is just starting has every file open until it has become another program.
        unmount_when_free(&self.mounted_at)?;
        // The file is in use until the kernel has freed the loop device.
        unmount_when_free(&self.file)?;
        let (image, unsynced, kept) = self.cache.remains(rng);
        Ok(Remains { image: Image(image), unsynced, kept })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.cut();
        // Whoever still uses it, keeps a dead disk until it ends. Both fail when it is taken down already.
        let _ = unmount(&*self.mounted_at, UnmountFlags::DETACH);
        let _ = unmount(&*self.file, UnmountFlags::DETACH);
    }
}

fn unmount_when_free(path: &Path) -> Result<()> {
    wait_for(&format!("the last user of {}", path.display()), LONG, || {
        match unmount(path, UnmountFlags::empty()) {
            Ok(()) => Ok(Some(())),
            Err(Errno::BUSY) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot unmount {}", path.display())),
        }
    })
}

/// Mounts a FUSE over a file: its root is no directory but the one file that it serves.
fn serve(cache: Arc<Cache>, file: &Path) -> io::Result<BackgroundSession> {
    let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?);
    let options = CString::new(format!("fd={},rootmode=100600,user_id=0,group_id=0", device.as_raw_fd()))?;
    mount("postern-disk", file, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(&*options))?;
    Session::from_fd(cache::Server(cache), device, SessionACL::All, Config::default())?.spawn()
}
