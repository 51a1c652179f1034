//! Attempts at files. Some of them everybody may read or write, as far as their modes say: there only Landlock is in the
//! way.

use std::fs::File;
use std::path::{Path, PathBuf};

use libc::{AT_FDCWD, AT_REMOVEDIR, O_RDONLY, O_RDWR, O_TMPFILE, O_WRONLY};

use rustix::process::Pid;

use super::attempts::Attempts;
use super::scene::{Scene, host_keys, raw};

/// Files that are neither process's.
pub(super) fn of_others(attempts: &mut Attempts, scene: &Scene, others: [Pid; 2]) {
    let mut secrets = vec![scene.key_file(), scene.config(), scene.lost_key(), "/etc/shadow".into()];
    secrets.extend(host_keys());
    // On some machines these are kept from root as well.
    let of_init = ["/proc/1/environ", "/proc/1/mem"].map(Into::into);
    secrets.extend(of_init.into_iter().filter(|path: &PathBuf| File::open(path).is_ok()));
    for pid in others.map(raw) {
        secrets.extend(["environ", "maps", "mem"].map(|name| format!("/proc/{pid}/{name}").into()));
    }
    for path in &secrets {
        open(attempts, "read", path, O_RDONLY);
    }
    open(attempts, "list", Path::new("/root"), O_RDONLY);
    open(attempts, "write", &scene.beside(), O_WRONLY);
    open(attempts, "make a file in", &scene.open_folder(), O_WRONLY | O_TMPFILE);
    open(attempts, "write", Path::new("/proc/sys/net/ipv4/ip_forward"), O_WRONLY);
    open(attempts, "write", Path::new("/proc/self/mem"), O_RDWR);
    open(attempts, "write", Path::new("/dev/net/tun"), O_RDWR);
}

/// What the front can do with its own folder: write the store, and no more.
pub(super) fn of_the_front(attempts: &mut Attempts, scene: &Scene) {
    let path = attempts.calls.text(scene.store().display());
    attempts.allowed("open its own store", libc::SYS_openat, &[&AT_FDCWD, &path, &O_RDWR]);
    changes(attempts, scene);
    // Here the log is a pipe; it could be a file.
    let log = libc::STDERR_FILENO;
    attempts.refused_unread("go back in the log", libc::SYS_lseek, &[&log, &0, &0]);
    attempts.refused_unread("write into the log", libc::SYS_pwrite64, &[&log, &path, &1, &0]);
    attempts.refused_unread("empty the log", libc::SYS_ftruncate, &[&log, &0]);
    attempts.refused("drop lines of the log", libc::SYS_fcntl, &[&log, &libc::F_SETFL, &libc::O_NONBLOCK]);
    attempts.refused("copy the log", libc::SYS_fcntl, &[&log, &libc::F_DUPFD_CLOEXEC, &0]);
}

/// The front's folder, for the warden: their user is the same.
pub(super) fn of_nobody_but_the_front(attempts: &mut Attempts, scene: &Scene) {
    open(attempts, "read", &scene.store(), O_RDONLY);
    open(attempts, "write", &scene.store(), O_RDWR);
    open(attempts, "make a file in", &scene.folder(), O_WRONLY | O_TMPFILE);
    changes(attempts, scene);
}

fn open(attempts: &mut Attempts, verb: &str, path: &Path, flags: i32) {
    // Of the test's own files, whose folder has another name each time, the rest says which it is.
    let name = path.display().to_string();
    let name = name.split_once("/postern-gate-").map_or(name.as_str(), |(_, rest)| &rest[6..]);
    let what = format!("{verb} {name}");
    let path = attempts.calls.text(path.display());
    attempts.refused(what, libc::SYS_openat, &[&AT_FDCWD, &path, &flags]);
}

/// Changes of names and owners.
fn changes(attempts: &mut Attempts, scene: &Scene) {
    let folder = scene.spare();
    let mut path = |name: &str| attempts.calls.text(folder.join(name).display());
    let [file, second, third, below] = ["file", "second", "third", "below"].map(&mut path);
    let [link, moved, name, fifo, new] = ["link", "moved", "name", "fifo", "new"].map(&mut path);
    let fifo_mode = libc::S_IFIFO | 0o600;
    attempts.refused("change a mode", libc::SYS_fchmodat, &[&AT_FDCWD, &file, &0o644]);
    attempts.refused("change an owner", libc::SYS_fchownat, &[&AT_FDCWD, &file, &-1, &-1, &0]);
    attempts.refused("link a file", libc::SYS_linkat, &[&AT_FDCWD, &file, &AT_FDCWD, &link, &0]);
    attempts.refused("rename a file", libc::SYS_renameat2, &[&AT_FDCWD, &second, &AT_FDCWD, &moved, &0]);
    attempts.refused("unlink a file", libc::SYS_unlinkat, &[&AT_FDCWD, &third, &0]);
    attempts.refused("make a link", libc::SYS_symlinkat, &[&file, &AT_FDCWD, &name]);
    attempts.refused("make a fifo", libc::SYS_mknodat, &[&AT_FDCWD, &fifo, &fifo_mode, &0]);
    attempts.refused("make a folder", libc::SYS_mkdirat, &[&AT_FDCWD, &new, &0o700]);
    attempts.refused("remove a folder", libc::SYS_unlinkat, &[&AT_FDCWD, &below, &AT_REMOVEDIR]);
    attempts.refused("truncate a file", libc::SYS_truncate, &[&file, &0]);
}
