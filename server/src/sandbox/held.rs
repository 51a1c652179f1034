//! What a thread holds, as /proc says.

use std::fs;
use std::io;

use rustix::thread::CapabilitySet;

use super::Identity;

/// Seccomp mode 2 of /proc: a filter.
const FILTERED: u64 = 2;

/// What one thread holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Its name.
    pub(crate) name: String,
    /// Real, effective, saved and file-system user.
    pub(crate) users: Vec<u64>,
    /// Real, effective, saved and file-system group, and then the supplementary ones.
    pub(crate) groups: Vec<u64>,
    /// Each capability that is in any of the five sets.
    pub(crate) capabilities: CapabilitySet,
    pub(crate) no_new_privs: bool,
    pub(crate) seccomp: bool,
    /// Threads of its process.
    pub(crate) threads: u64,
}

impl Held {
    /// Reads a `status` file of /proc.
    ///
    /// # Errors
    /// The name of a line that is missing or does not read.
    pub(crate) fn parse(status: &str) -> Result<Self, String> {
        let line = |name: &str| {
            let mut lines = status.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim());
            found.ok_or_else(|| format!("/proc tells nothing of {name}"))
        };
        let numbers = |name: &str| {
            let numbers = line(name)?.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
            numbers.map_err(|_| format!("/proc tells no numbers of {name}"))
        };
        let number = |name: &str| Ok::<_, String>(numbers(name)?.first().copied().unwrap_or_default());
        let mut capabilities = CapabilitySet::empty();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let bits =
                u64::from_str_radix(line(set)?, 16).map_err(|_| format!("/proc tells no number of {set}"))?;
            capabilities |= CapabilitySet::from_bits_retain(bits);
        }
        let mut groups = numbers("Gid")?;
        groups.extend(numbers("Groups")?);
        Ok(Self {
            name: line("Name")?.to_owned(),
            users: numbers("Uid")?,
            groups,
            capabilities,
            no_new_privs: number("NoNewPrivs")? == 1,
            seccomp: number("Seccomp")? == FILTERED,
            threads: number("Threads")?,
        })
    }

    /// Whether it is this user and no other, holds no capability beside these, can gain none, and is filtered.
    ///
    /// # Errors
    /// What it holds beyond.
    pub(crate) fn is_no_more_than(&self, identity: Identity, keeps: CapabilitySet) -> Result<(), String> {
        let Self { name, users, groups, capabilities, .. } = self;
        let beyond = *capabilities - keeps;
        if users.iter().any(|&user| user != u64::from(identity.uid)) || users.is_empty() {
            return Err(format!("{name} is user {users:?}, not {}", identity.uid));
        }
        if groups.iter().any(|&group| group != u64::from(identity.gid)) || groups.is_empty() {
            return Err(format!("{name} is in the groups {groups:?}, not only {}", identity.gid));
        }
        if !beyond.is_empty() {
            return Err(format!("{name} has the capabilities {}", names(beyond)));
        }
        if !self.no_new_privs || !self.seccomp {
            return Err(format!("{name} has no_new_privs {}, seccomp {}", self.no_new_privs, self.seccomp));
        }
        Ok(())
    }
}

/// What each thread of a process holds.
///
/// # Errors
/// When there is no such process, or /proc does not say.
pub(crate) fn threads_of(pid: u32) -> io::Result<Vec<Held>> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|entry| {
            let text = fs::read_to_string(entry?.path().join("status"))?;
            Held::parse(&text).map_err(io::Error::other)
        })
        .collect()
}

/// The names of capabilities, for a person to read.
pub(crate) fn names(capabilities: CapabilitySet) -> String {
    let mut known = capabilities.iter_names();
    let mut names: Vec<_> = known.by_ref().map(|(name, _)| format!("CAP_{name}")).collect();
    if !known.remaining().is_empty() {
        names.push(format!("{:#x}", known.remaining().bits()));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tpostern-front\nUid:\t990\t990\t990\t990\nGid:\t980\t980\t980\t980\nGroups:\t \n\
        Threads:\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    const IDENTITY: Identity = Identity { uid: 990, gid: 980, landlock_optional: false };

    #[test]
    fn whatever_is_left_is_noticed() {
        let holds = |status: &str| Held::parse(status)?.is_no_more_than(IDENTITY, CapabilitySet::NET_RAW);
        assert_eq!(holds(STATUS), Ok(()));
        assert_eq!(holds(&STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t0000000000002000")), Ok(()));
        for (from, to, says) in [
            ("Uid:\t990\t990\t990\t990", "Uid:\t990\t990\t0\t990", "user"),
            ("Gid:\t980", "Gid:\t0", "groups"),
            ("Groups:\t ", "Groups:\t980 4", "groups"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000001000", "CAP_NET_ADMIN"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t8000000000000000", "0x8000000000000000"),
            ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000001", "CAP_CHOWN"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privs false"),
            ("Seccomp:\t2", "Seccomp:\t0", "seccomp false"),
            ("CapPrm:\t0000000000000000\n", "", "CapPrm"),
        ] {
            let bad = STATUS.replace(from, to);
            assert_ne!(bad, STATUS, "{from}");
            let error = holds(&bad).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
