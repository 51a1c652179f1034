//! What [`Calls::Few`](super::Calls::Few) are.

use std::os::fd::RawFd;

use libc::c_int;
use seccompiler::BackendError;

use crate::system::bpf;

use super::{Rules, SOCKET_TYPE, all, is, is_not, masked};

pub(super) fn rules(mute: &[RawFd], maps: bool) -> Result<Rules, BackendError> {
    let plain = [
        // What it holds open: the link, the capture, the store.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_recvmsg,
        libc::SYS_recvfrom,
        libc::SYS_getsockopt,
        libc::SYS_getsockname,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_flock,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fadvise64,
        // The store again, after the disk failed: Landlock says which files.
        libc::SYS_openat,
        // Waiting, for events and for time.
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_ppoll,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_restart_syscall,
        // Memory and threads.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_getrandom,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // Here for the filter before this one to refuse.
        libc::SYS_clone3,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_time,
    ];
    let mut rules: Rules = plain.into_iter().map(|call| (call, vec![])).collect();
    mute_and_log(&mut rules, mute)?;
    if maps {
        // What is in the maps that it holds. It makes none, and loads no program.
        let commands = bpf::HELD.map(|command| all([is(0, command)]));
        rules.insert(libc::SYS_bpf, commands.into_iter().collect::<Result<_, _>>()?);
    }
    // No memory is both written by it and run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![all([masked(2, libc::PROT_EXEC, 0)])?]);
    }
    let own = c_int::try_from(std::process::id()).unwrap_or(c_int::MAX);
    for (call, conditions) in [
        (libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)]),
        // Only itself: the warden is the same user.
        (libc::SYS_tgkill, vec![is(0, own)]),
        // A pair of streams, for the event loop to wake itself, leads nowhere. One of datagrams would reach any socket
        // that has a path.
        (libc::SYS_socketpair, vec![is(0, libc::AF_UNIX), masked(1, SOCKET_TYPE, libc::SOCK_STREAM)]),
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)]),
    ] {
        rules.insert(call, vec![all(conditions)?]);
    }
    Ok(rules)
}

/// Nothing is written to a mute descriptor. No call is left that makes a copy of it under another number either: sendmsg,
/// with which one could send it to oneself, is not here. Nor is it closed: its number would be another file's.
///
/// The log grows, and that is all: where it is a file, what was written before stays as it is. Its flags are the
/// supervisor's as well.
fn mute_and_log(rules: &mut Rules, mute: &[RawFd]) -> Result<(), BackendError> {
    let not_mute: Vec<_> = mute.iter().map(|&descriptor| is_not(0, descriptor)).collect();
    let not_log = is_not(0, libc::STDERR_FILENO);
    let neither: Vec<_> = not_mute.iter().cloned().chain([not_log.clone()]).collect();
    for call in [libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_close] {
        rules.insert(call, if mute.is_empty() { vec![] } else { vec![all(not_mute.clone())?] });
    }
    for call in [libc::SYS_pwrite64, libc::SYS_lseek, libc::SYS_ftruncate, libc::SYS_fallocate] {
        rules.insert(call, vec![all(neither.clone())?]);
    }
    // Not the commands that choose who is sent a signal.
    let mut commands = vec![
        all(neither.into_iter().chain([is(1, libc::F_DUPFD_CLOEXEC)]))?,
        all([not_log.clone(), is(1, libc::F_SETFL)])?,
    ];
    for command in [libc::F_GETFD, libc::F_GETFL, libc::F_OFD_GETLK, libc::F_OFD_SETLK] {
        commands.push(all([is(1, command)])?);
    }
    rules.insert(libc::SYS_fcntl, commands);
    let request = |request| is(1, c_int::try_from(request).unwrap_or(c_int::MAX));
    // By getsockname and by its flags, libpcap tells an interface that is down from one that is gone.
    let requests = [all([not_log, request(libc::FIONBIO)])?, all([request(libc::SIOCGIFFLAGS)])?];
    rules.insert(libc::SYS_ioctl, requests.to_vec());
    Ok(())
}
