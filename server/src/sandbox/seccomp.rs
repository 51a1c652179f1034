//! The system calls that a process can still make.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use super::SandboxError;

/// Bit of the calls of x32, the other ABI that 64-bit x86 takes: the same calls under other numbers.
const X32: c_long = 0x4000_0000;

/// Which calls stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Only those with which a process reads what it holds, writes its store, keeps time and talks to those it is
    /// connected with. It can run no program, make no socket, and map nothing new as code.
    Few,
    /// All but those with which a process gets at others, at the kernel or at the machine: it has to run programs
    /// (iptables), which use more than can be listed for every distribution.
    Ordinary,
}

impl Calls {
    /// Restricts this thread, and those it starts, for good.
    pub(super) fn restrict(self) -> Result<(), SandboxError> {
        let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
        for program in self.programs().map_err(|error| failed(&error))? {
            apply_filter(&program).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn programs(self) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
        let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        match self {
            // clone3 hides what it is asked for in memory, where no filter looks; the C library falls back to clone.
            Self::Few => Ok(vec![
                filter([(libc::SYS_clone3, vec![])].into(), SeccompAction::Allow, missing())?,
                filter(few()?, refuse, SeccompAction::Allow)?,
            ]),
            Self::Ordinary => Ok(vec![filter(never(), SeccompAction::Allow, refuse)?]),
        }
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn missing() -> SeccompAction {
    SeccompAction::Errno(libc::ENOSYS.cast_unsigned())
}

fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()
}

/// What [`Calls::Few`] are.
fn few() -> Result<Rules, seccompiler::BackendError> {
    let plain = [
        // What it holds open: the link, the capture, the store, the log.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_recvmsg,
        libc::SYS_recvfrom,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_getsockopt,
        libc::SYS_shutdown,
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_flock,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fadvise64,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
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
        libc::SYS_tgkill,
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
    let masked = |argument, mask: libc::c_int, value: libc::c_int| {
        let (mask, value) = (u64::from(mask.cast_unsigned()), u64::from(value.cast_unsigned()));
        SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(mask),
            value,
        )?])
    };
    let whole = -1;
    // No memory is both written by it and run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![masked(2, libc::PROT_EXEC, 0)?]);
    }
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?]);
    // A pair of sockets, for the event loop to wake itself, leads nowhere.
    rules.insert(libc::SYS_socketpair, vec![masked(0, whole, libc::AF_UNIX)?]);
    let nonblocking = libc::c_int::try_from(libc::FIONBIO).unwrap_or(whole);
    rules.insert(libc::SYS_ioctl, vec![masked(1, whole, nonblocking)?]);
    rules.insert(libc::SYS_prctl, vec![masked(0, whole, libc::PR_SET_NAME)?]);
    Ok(rules)
}

/// What [`Calls::Ordinary`] are not.
fn never() -> Rules {
    let calls = [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_syslog,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_iopl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_modify_ldt,
    ];
    let both = calls.into_iter().flat_map(|call| [call, call | X32]);
    both.map(|call| (call, vec![])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_compile() {
        assert_eq!(Calls::Few.programs().unwrap().len(), 2);
        assert_eq!(Calls::Ordinary.programs().unwrap().len(), 1);
    }
}
