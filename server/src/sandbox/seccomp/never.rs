//! What [`Calls::Ordinary`](super::Calls::Ordinary) are not.

use libc::c_int;
use seccompiler::{BackendError, SeccompRule};

use super::{Rules, SOCKET_TYPE, all, is, is_not, masked};

/// Flags of clone: a child in a namespace of its own. In one of users it would hold every capability.
const NAMESPACES: [c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The old name of a packet socket (`linux/net.h`).
const SOCK_PACKET: c_int = 10;

pub(super) fn rules() -> Result<Rules, BackendError> {
    let plain = [
        // Other processes: the front is the same user.
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_send_signal,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        // Parts of the kernel that a firewall does not need.
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
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        // What is mounted where, and namespaces.
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_umount2,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fspick,
        libc::SYS_fsmount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_open_by_handle_at,
        // Landlock does not look at modes and owners: those of the front's files are its user's.
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fchmodat2,
        libc::SYS_truncate,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown,
        // The machine.
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
    let mut rules: Rules = plain.into_iter().map(|call| (call, vec![])).collect();
    let namespaces = NAMESPACES.map(|flag| all([masked(0, flag, flag)]));
    rules.insert(libc::SYS_clone, namespaces.into_iter().collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_socket, sockets()?);
    // Limits of others: the front is the same user.
    rules.insert(libc::SYS_prlimit64, vec![all([is_not(0, 0)])?]);
    // What is typed into a terminal for whoever reads there.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| {
        let request = c_int::try_from(request).unwrap_or(c_int::MAX);
        all([is(1, request)])
    });
    rules.insert(libc::SYS_ioctl, terminal.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Sockets that show packets, and those of families that a firewall does not need.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    // iptables-legacy asks for its tables through a raw socket of a protocol that no packet has.
    let raw =
        |family| all([is(0, family), masked(1, SOCKET_TYPE, libc::SOCK_RAW), is_not(2, libc::IPPROTO_RAW)]);
    let stream = |family| all([is(0, family), masked(1, SOCKET_TYPE, libc::SOCK_STREAM)]);
    Ok(vec![
        all(families.map(|family| is_not(0, family)))?,
        raw(libc::AF_INET)?,
        raw(libc::AF_INET6)?,
        all([is(0, libc::AF_INET), masked(1, SOCKET_TYPE, SOCK_PACKET)])?,
        stream(libc::AF_INET)?,
        stream(libc::AF_INET6)?,
    ])
}
