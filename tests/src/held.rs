//! What a process holds, as /proc tells from outside.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// The five sets of capabilities of a thread.
pub const CAPABILITY_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// What one thread holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Real, effective, saved and file-system user.
    pub users: Vec<u32>,
    /// Real, effective, saved and file-system group, and then the supplementary ones.
    pub groups: Vec<u32>,
    /// Its capabilities, by set.
    pub capabilities: BTreeMap<&'static str, u64>,
    /// Whether it can gain nothing by running a program.
    pub no_new_privs: bool,
    /// The seccomp mode: 0 for none, 2 for a filter.
    pub seccomp: u32,
}

/// Every thread of a process.
///
/// # Errors
/// When there is no such process, or /proc does not say.
pub fn threads(pid: Pid) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        // One that has ended meanwhile holds nothing.
        if let Ok(status) = fs::read_to_string(task?.path().join("status")) {
            threads.push(thread(&status)?);
        }
    }
    Ok(threads)
}

fn thread(status: &str) -> Result<Thread> {
    let value = |name: &str| {
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim());
        found.with_context(|| format!("/proc tells nothing of {name}"))
    };
    let numbers = |name: &str| {
        Ok::<_, anyhow::Error>(
            value(name)?.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?,
        )
    };
    let set = |name: &'static str| Ok::<_, anyhow::Error>((name, u64::from_str_radix(value(name)?, 16)?));
    Ok(Thread {
        name: value("Name")?.to_owned(),
        users: numbers("Uid")?,
        groups: [numbers("Gid")?, numbers("Groups")?].concat(),
        capabilities: CAPABILITY_SETS.into_iter().map(set).collect::<Result<_>>()?,
        no_new_privs: value("NoNewPrivs")? == "1",
        seccomp: value("Seccomp")?.parse()?,
    })
}

/// What a descriptor leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file or device, by its path.
    File(String),
    /// One end of a pipe.
    Pipe,
    /// Something of the kernel's without a name: `eventpoll`, `eventfd`, `pidfd`.
    Anonymous(String),
    /// A socket of this machine alone: `stream`, `dgram` or `seqpacket`.
    Unix(&'static str),
    /// A socket that sees raw packets.
    Packet,
    /// A socket to talk to the kernel with.
    Netlink,
    /// A socket of UDP, by its own port.
    Udp(u16),
    /// Any other socket.
    OtherSocket,
}

/// One descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it leads to.
    pub kind: Kind,
    /// The inode of a socket: two descriptors of one socket have one.
    pub inode: Option<u64>,
}

/// Every descriptor of a process.
///
/// # Errors
/// When there is no such process, or /proc does not say.
pub fn descriptors(pid: Pid) -> Result<Vec<Descriptor>> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let sockets = sockets(&process)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("{process}/fd"))? {
        let entry = entry?;
        // One that was closed meanwhile is none.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        let inode = bracketed(&target, "socket:").map(str::parse).transpose()?;
        let kind = if let Some(inode) = &inode {
            sockets.get(inode).cloned().unwrap_or(Kind::OtherSocket)
        } else if target.starts_with("pipe:") {
            Kind::Pipe
        } else if let Some(name) = target.strip_prefix("anon_inode:") {
            Kind::Anonymous(name.trim_matches(['[', ']']).to_owned())
        } else {
            Kind::File(target)
        };
        let number = entry.file_name().to_string_lossy().parse()?;
        found.push(Descriptor { number, kind, inode });
    }
    found.sort_by_key(|descriptor| descriptor.number);
    Ok(found)
}

fn bracketed<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')
}

/// The port behind the local address, in a line of /proc/net/udp.
fn own_port(fields: &[&str]) -> Option<u16> {
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

/// The sockets of a process's network namespace, by inode.
fn sockets(process: &str) -> Result<BTreeMap<u64, Kind>> {
    let mut sockets = BTreeMap::new();
    for (table, column) in [("unix", 6), ("packet", 8), ("netlink", 9), ("udp", 9), ("udp6", 9)] {
        for line in fs::read_to_string(format!("{process}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let inode = fields.get(column).with_context(|| format!("no inode in {table}: {line}"))?;
            let kind = match (table, fields.get(4).copied()) {
                ("unix", Some("0001")) => Kind::Unix("stream"),
                ("unix", Some("0002")) => Kind::Unix("dgram"),
                ("unix", Some("0005")) => Kind::Unix("seqpacket"),
                ("packet", _) => Kind::Packet,
                ("netlink", _) => Kind::Netlink,
                ("udp" | "udp6", _) => Kind::Udp(own_port(&fields).context("a port of its own")?),
                _ => Kind::OtherSocket,
            };
            sockets.insert(inode.parse()?, kind);
        }
    }
    Ok(sockets)
}
