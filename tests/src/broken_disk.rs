//! Disks that fill up, break and are repaired: small file systems of their own, mounted for one test.
//!
//! Whoever runs meanwhile in a namespace of mounts of his own, as everything on a host of the tests does, may hold on
//! to a mount for as long as he runs. So a disk is broken and repaired without being unmounted, and at the end it is
//! taken away lazily: it is gone when its last user is.

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::statvfs;
use rustix::process::Pid;

use crate::process::succeed;
use crate::wait::LONG;

/// The beginning of every mount point's name; the process id and a number follow.
const PREFIX: &str = "postern-mount-";
/// Size of a disk.
const SIZE: u64 = 8 * 1024 * 1024;

/// What the kernel does with an ext4 disk after an error in it.
#[derive(Clone, Copy, Debug)]
pub enum OnError {
    /// Goes on.
    Continue,
    /// Writes nothing any more.
    ReadOnly,
}

/// A file system that is mounted for a test.
pub struct Disk {
    at: PathBuf,
}

/// What fills a disk. Dropping it makes room again.
pub struct Filler {
    file: PathBuf,
}

impl Disk {
    /// A file system in memory.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn in_memory(kilobytes: u32) -> Result<Self> {
        Self::mount(&["-t", "tmpfs", "-o", &format!("mode=0755,size={kilobytes}k"), "postern"])
    }

    /// An ext4 file system of 8 MB in a new file, which grows as blocks are written.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn in_file(image: &Path, on_error: OnError) -> Result<Self> {
        File::create_new(image)?.set_len(SIZE)?;
        let mut mkfs = Command::new("mkfs.ext4");
        // No room that is kept for root, and no journal: with one, the first failed write ends everything.
        mkfs.args(["-q", "-m", "0", "-b", "4096", "-O", "^has_journal"]).arg(image);
        succeed(mkfs, b"", LONG)?;
        let disk = Self::of_file(image, on_error)?;
        // A loop device says that a write succeeded of which its file had room for a part. A disk that lies is not
        // what is tested: each write is one block, for which there is room or not.
        fs::write(format!("/sys/block/{}/queue/max_sectors_kb", disk.device()?), "4")?;
        Ok(disk)
    }

    /// The ext4 file system that a file holds.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn of_file(image: &Path, on_error: OnError) -> Result<Self> {
        let errors = match on_error {
            OnError::Continue => "continue",
            OnError::ReadOnly => "remount-ro",
        };
        Self::mount(&["-o", &format!("loop,errors={errors}"), image.to_str().context("a path in ASCII")?])
    }

    fn mount(arguments: &[&str]) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let at = env::temp_dir().join(format!("{PREFIX}{}-{number}", process::id()));
        fs::create_dir(&at)?;
        let mut mount = Command::new("mount");
        mount.args(arguments).arg(&at);
        let mounted = succeed(mount, b"", LONG);
        // Made now, so that a mount that failed is taken away too.
        let disk = Self { at };
        mounted.map(|_| disk)
    }

    /// Where it is mounted; whoever comes along may pass through.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// When it does not fill up.
    pub fn fill(&self) -> Result<Filler> {
        let total = statvfs(&self.at)?;
        ensure!(total.f_blocks * total.f_frsize <= SIZE, "this is not the small disk that it should be");
        let filler = Filler { file: self.at.join("filler") };
        let mut file = File::create_new(&filler.file)?;
        // Whole blocks at first; then what is left of the last.
        for chunk in [&[0xff; 4096][..], &[0xff]] {
            loop {
                match file.write(chunk) {
                    Ok(1..) => {}
                    Ok(0) => bail!("nothing was written, and nothing was wrong"),
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // On ext4 a file can be promised more than there is.
        match file.sync_all() {
            Err(error) if error.kind() != ErrorKind::StorageFull => Err(error.into()),
            _ => Ok(filler),
        }
    }

    /// Has the kernel find an error in it, after which it is read-only ([`OnError::ReadOnly`]) for everybody who has
    /// it mounted, whatever he has open.
    ///
    /// # Errors
    /// When it is none that is in a file.
    pub fn fail(&self) -> Result<()> {
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", self.device()?), "a test wants it")?;
        Ok(())
    }

    /// The name of the block device that it is on.
    fn device(&self) -> Result<String> {
        let device = mounts()?.into_iter().find(|(_, at)| *at == self.at).context("it is mounted")?.0;
        Ok(device.strip_prefix("/dev/").context("it is on a device")?.to_owned())
    }

    /// Mounts the file system of another file over it, for one process and those that share its mounts.
    ///
    /// # Errors
    /// When that fails.
    pub fn replace_for(&self, process: Pid, image: &Path) -> Result<()> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--mount", "--target", &process.as_raw_nonzero().to_string()]);
        nsenter.args(["mount", "-o", "loop"]).args([image, &self.at]);
        succeed(nsenter, b"", LONG).map(drop)
    }
}

/// Has the image of a disk that is at rest hold no blocks any more that are all zeros: where it grows by them, so it does when
/// they are written.
///
/// # Errors
/// When that fails.
pub fn give_room_away(image: &Path) -> Result<()> {
    let mut fallocate = Command::new("fallocate");
    fallocate.arg("--dig-holes").arg(image);
    succeed(fallocate, b"", LONG).map(drop)
}

impl Drop for Disk {
    fn drop(&mut self) {
        remove(&self.at);
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // There is nobody left to tell about a failure; the disk goes with the test.
        let _ = fs::remove_file(&self.file);
    }
}

/// What is mounted, and where.
fn mounts() -> Result<Vec<(String, PathBuf)>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = |line: &str| {
        let mut fields = line.split(' ').map(str::to_owned);
        Some((fields.next()?, fields.next()?.into()))
    };
    Ok(mounts.lines().filter_map(fields).collect())
}

fn remove(at: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(at).output();
    let _ = fs::remove_dir(at);
}

/// Takes away what runs that were killed have left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|owner: u32| fs::read_link(format!("/proc/{owner}/exe")).is_err()) {
            remove(&entry.path());
        }
    }
}
