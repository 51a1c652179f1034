//! Attempts at other processes, at privileges, and at parts of the kernel that neither process has to do with.

use libc::{
    AT_FDCWD, CLONE_FS, CLONE_NEWUSER, CLONE_NEWUTS, CLONE_SIGHAND, MAP_ANONYMOUS, MAP_PRIVATE, O_RDONLY,
    PROT_EXEC, PROT_READ, PROT_WRITE,
};
use rustix::process::Pid;

use postern_tests::debugger::Argument;

use super::attempts::Attempts;
use super::scene::{Scene, mapping, raw};

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const CAPABILITY_VERSION: i64 = 0x2008_0522;
/// A process id beyond the kernel's own limit.
const NOBODY: i32 = 5_000_000;
/// Of `asm-generic/fcntl.h`: which signal tells of a descriptor.
const F_SETSIG: i32 = 10;
const PAGE: i32 = 4096;

/// Other processes: signals to them, and their memory and descriptors.
pub(super) fn other_processes(attempts: &mut Attempts, scene: &Scene, other: Pid) {
    let own = attempts.calls.call(libc::SYS_getpid, &[]);
    for (what, pid) in [("init", 1), ("the supervisor", raw(scene.supervisor)), ("the other", raw(other))] {
        attempts.refused(format!("signal {what}"), libc::SYS_kill, &[&pid, &0]);
        attempts.refused(format!("signal a thread of {what}"), libc::SYS_tgkill, &[&pid, &pid, &0]);
    }
    let other_pid = raw(other);
    attempts.refused("trace the other", libc::SYS_ptrace, &[&libc::PTRACE_SEIZE, &other_pid, &0, &0]);
    let (here, there) = (attempts.calls.bytes(&[0; 16]), mapping(other));
    let (here, there) = (attempts.calls.words(&[here, 16]), attempts.calls.words(&[there, 16]));
    let vectors: [&dyn Argument; 6] = [&other_pid, &here, &1, &there, &1, &0];
    attempts.refused("read its memory", libc::SYS_process_vm_readv, &vectors);
    // What is there, at its program's beginning, nobody can write.
    attempts.refused_unread("write its memory", libc::SYS_process_vm_writev, &vectors);
    attempts.refused_unread("limit another", libc::SYS_prlimit64, &[&NOBODY, &libc::RLIMIT_CORE, &0, &0]);
    attempts.refused_unread("compare it with itself", libc::SYS_kcmp, &[&other_pid, &own, &99, &0, &0]);
    let pidfd = attempts.calls.call(libc::SYS_pidfd_open, &[&other_pid, &0]);
    attempts.refused("take a descriptor of it", libc::SYS_pidfd_getfd, &[&pidfd, &0, &0]);
}

/// Calls that a process needs for itself, and by which it could send signals to others.
pub(super) fn signals_by_calls_for_itself(attempts: &mut Attempts, other: Pid) {
    attempts.refused_unread("signal nobody", libc::SYS_tgkill, &[&NOBODY, &NOBODY, &0]);
    attempts.refused("have the other signalled", libc::SYS_fcntl, &[&0, &libc::F_SETOWN, &raw(other)]);
    attempts.refused("choose the signal", libc::SYS_fcntl, &[&0, &F_SETSIG, &libc::SIGKILL]);
}

/// Users, capabilities, namespaces.
pub(super) fn privileges(attempts: &mut Attempts) {
    attempts.refused("become root", libc::SYS_setuid, &[&0]);
    attempts.refused("become root in all ways", libc::SYS_setresuid, &[&0, &0, &0]);
    attempts.refused("take root's group", libc::SYS_setgid, &[&0]);
    attempts.refused("take no groups", libc::SYS_setgroups, &[&0, &0]);
    // All that root has, effective and permitted; nothing inheritable.
    let all = capabilities_of_this_test();
    let (low, high) = (all & 0xffff_ffff, all >> 32);
    let header = attempts.calls.words(&[CAPABILITY_VERSION]);
    let data = attempts.calls.words(&[low | low << 32, high << 32, high]);
    attempts.refused("take every capability", libc::SYS_capset, &[&header, &data]);
    attempts.refused("a namespace", libc::SYS_unshare, &[&CLONE_NEWUTS]);
    attempts.refused_unread("a user namespace", libc::SYS_unshare, &[&(CLONE_NEWUSER | 1)]);
    attempts.refused_unread("a child in one", libc::SYS_clone, &[&(CLONE_NEWUSER | CLONE_FS)]);
    attempts.missing("a child in one by clone3", libc::SYS_clone3, &[&0, &0]);
    attempts.refused_unread("enter a namespace", libc::SYS_setns, &[&-1, &0]);
    let (root, none) = (attempts.calls.text("/"), attempts.calls.text("/nonexistent"));
    attempts.refused("change the root", libc::SYS_chroot, &[&root]);
    attempts.refused_unread("turn the root", libc::SYS_pivot_root, &[&none, &none]);
    let tmpfs = attempts.calls.text("tmpfs");
    attempts.refused_unread("mount", libc::SYS_mount, &[&none, &none, &tmpfs, &0, &0]);
    attempts.refused_unread("change a mount", libc::SYS_mount_setattr, &[&AT_FDCWD, &none, &0, &0, &0]);
    attempts.refused_unread("unmount", libc::SYS_umount2, &[&none, &0]);
    attempts.refused("a mount without a place", libc::SYS_fsopen, &[&tmpfs, &0]);
}

/// Modules, BPF, and whatever else of the kernel is far from both processes' work.
pub(super) fn interfaces(attempts: &mut Attempts) {
    let none = attempts.calls.text("/nonexistent");
    attempts.refused_unread("load a module", libc::SYS_init_module, &[&0, &0, &none]);
    attempts.refused_unread("load a module's file", libc::SYS_finit_module, &[&-1, &none, &0]);
    attempts.refused_unread("unload a module", libc::SYS_delete_module, &[&none, &0]);
    attempts.refused_unread("load a kernel", libc::SYS_kexec_load, &[&0, &99, &0, &0]);
    attempts.refused_unread("load a kernel's file", libc::SYS_kexec_file_load, &[&-1, &-1, &0, &0, &-1]);
    attempts.refused_unread("reboot", libc::SYS_reboot, &[&0, &0, &0, &0]);
    // An array of one: type, length of a key, of a value, number of entries.
    let array = attempts.calls.words(&[2 | 4 << 32, 4 | 1 << 32, 0, 0, 0, 0, 0, 0]);
    attempts.refused("a map of BPF", libc::SYS_bpf, &[&0, &array, &64]);
    attempts.refused_unread("a program of BPF", libc::SYS_bpf, &[&5, &array, &64]);
    attempts.refused_unread("watch events", libc::SYS_perf_event_open, &[&0, &0, &-1, &-1, &0]);
    let ring = attempts.calls.bytes(&[0; 128]);
    attempts.refused("a ring of calls", libc::SYS_io_uring_setup, &[&1, &ring]);
    attempts.refused("faults of its own", libc::SYS_userfaultfd, &[&0]);
    attempts.refused_unread("a key of the kernel's", libc::SYS_keyctl, &[&99]);
    attempts.refused_unread("add a key", libc::SYS_add_key, &[&0, &0, &0, &0, &0]);
    attempts.refused_unread("open by a handle", libc::SYS_open_by_handle_at, &[&-1, &array, &0]);
    attempts.refused_unread("set the clock", libc::SYS_clock_settime, &[&0, &-1]);
    attempts.refused_unread("name the host", libc::SYS_sethostname, &[&none, &-1]);
    attempts.refused("read the kernel's log", libc::SYS_syslog, &[&10, &0, &0]);
    attempts.refused_unread("swap", libc::SYS_swapon, &[&none, &0]);
    if cfg!(target_arch = "x86_64") {
        attempts.refused_unread("reach the machine's ports", libc::SYS_iopl, &[&99]);
    }
}

/// Code that came from elsewhere, for a process that brings all of its own.
pub(super) fn programs_and_code(attempts: &mut Attempts) {
    let (read_write, private) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    let page = attempts.allowed("memory", libc::SYS_mmap, &[&0, &PAGE, &read_write, &private, &-1, &0]);
    for (what, protection) in [("code", PROT_READ | PROT_EXEC), ("code to write", read_write | PROT_EXEC)] {
        attempts.refused(what, libc::SYS_mmap, &[&0, &PAGE, &protection, &private, &-1, &0]);
        attempts.refused(format!("{what}, later"), libc::SYS_mprotect, &[&page, &PAGE, &protection]);
    }
    attempts.refused_unread(
        "code by a key",
        libc::SYS_pkey_mprotect,
        &[&page, &PAGE, &(PROT_READ | PROT_EXEC), &99],
    );
    attempts.refused("have all memory run", libc::SYS_personality, &[&libc::READ_IMPLIES_EXEC]);
    let name = attempts.calls.text("program");
    attempts.refused("a file of memory", libc::SYS_memfd_create, &[&name, &0]);
    attempts.refused_unread("a child", libc::SYS_clone, &[&CLONE_SIGHAND]);
    attempts.refused_unread("run a file", libc::SYS_execveat, &[&-1, &name, &0, &0, &0]);
    let program = attempts.calls.text("/bin/true");
    attempts.refused("open a program", libc::SYS_openat, &[&AT_FDCWD, &program, &O_RDONLY]);
    attempts.refused_unread("loosen its filter", libc::SYS_seccomp, &[&99, &0, &0]);
    attempts.refused("be dumped", libc::SYS_prctl, &[&libc::PR_SET_DUMPABLE, &1]);
    attempts.refused_unread("gain privileges", libc::SYS_prctl, &[&libc::PR_SET_NO_NEW_PRIVS, &0]);
}

/// Those of this test are those of the process that nothing confines.
fn capabilities_of_this_test() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).expect("a set of capabilities");
    i64::from_str_radix(line.trim(), 16).expect("a number")
}
