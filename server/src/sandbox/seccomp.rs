//! The system calls that a process can still make.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use libc::c_int;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

use super::SandboxError;

mod few;
mod never;

/// From here on the calls of x32 have their numbers, the other ABI that 64-bit x86 takes: no list here knows them.
const X32: u32 = 0x4000_0000;
/// Bits of a socket's type that are not flags.
const SOCKET_TYPE: c_int = 0xf;

/// Which calls stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Only those with which a process reads what it holds, writes its store, keeps time and talks to those it is
    /// connected with. It can run no program, make no socket, and map nothing new as code.
    Few {
        /// Descriptors that it only reads. A capture's would send raw frames to anywhere as well, to loopback behind the
        /// guard not the least: the kernel asks for the capability when such a socket is made, and never again.
        mute: Vec<RawFd>,
        /// Whether it changes maps of the kernel that it holds.
        maps: bool,
    },
    /// All but those with which a process gets at others, at the kernel or at the machine: it has to run programs
    /// (iptables), which use more than can be listed for every distribution.
    Ordinary,
}

impl Calls {
    /// Restricts this thread, and those it starts, for good.
    pub(super) fn restrict(&self) -> Result<(), SandboxError> {
        let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
        for program in self.programs().map_err(|error| failed(&error))? {
            apply_filter(&program).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn programs(&self) -> Result<[BpfProgram; 3], BackendError> {
        let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()));
        // clone3 hides what it is asked for in memory, where no filter looks; the C library falls back to clone.
        let hide = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        let clone3 = filter([(libc::SYS_clone3, vec![])].into(), allow.clone(), hide)?;
        let rest = match self {
            Self::Few { mute, maps } => filter(few::rules(mute, *maps)?, refuse, allow)?,
            Self::Ordinary => filter(never::rules()?, allow, refuse)?,
        };
        Ok([no_x32(), clone3, rest])
    }
}

/// Refuses every call of x32. The numbers that the lists know are far below, on every machine.
fn no_x32() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| {
        let code = u16::try_from(code).expect("the codes of instructions are small");
        sock_filter { code, jt, jf, k }
    };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    vec![
        // The call's number is the first word that the kernel shows.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Calls, each with the rules of which one has to hold; a call without rules is meant whatever its arguments are.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()
}

/// Holds where all of these conditions do.
fn all(conditions: impl IntoIterator<Item = Condition>) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.into_iter().map(|Condition(argument, operator, value)| {
        let value = u64::from(value.cast_unsigned());
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Something about an argument, of which the kernel looks at 32 bits.
#[derive(Clone)]
struct Condition(u8, SeccompCmpOp, c_int);

/// The argument has this value.
fn is(argument: u8, value: c_int) -> Condition {
    Condition(argument, SeccompCmpOp::Eq, value)
}

/// The argument has another value.
fn is_not(argument: u8, value: c_int) -> Condition {
    Condition(argument, SeccompCmpOp::Ne, value)
}

/// These bits of the argument have this value.
fn masked(argument: u8, mask: c_int, value: c_int) -> Condition {
    Condition(argument, SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned())), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_compile() {
        let few = |mute, maps| Calls::Few { mute, maps };
        for calls in [few(vec![], false), few((3..70).collect(), true), Calls::Ordinary] {
            calls.programs().unwrap();
        }
    }
}
