//! Hosts that are network namespaces, on one switch that is a bridge in a namespace of its own.
//!
//! Names hold the process id of the test run, so that two runs never meet, and so that what a killed run left behind
//! can be told from what lives: the next run sweeps it. Nothing touches the network of the machine itself.
//!
//! [`cable`] is for who measures: two hosts without a switch between them, one of which speaks for many addresses.
//!
//! The links are quiet by themselves: neighbours are permanent, addresses are not probed for duplicates, nobody
//! solicits routers. What a capture holds was sent for a reason.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::succeed;
use crate::wait::LONG;

mod cable;

pub use cable::cable;

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// The beginning of every name of ours; the process id and a number follow.
const PREFIX: &str = "postern-";
/// The name of a host's one link.
pub const LINK: &str = "eth0";

/// Which of the two Internet protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The flag that `postern` takes for it.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// Hosts on one switch: `10.0.0.0/16` and `fd00::/64`.
pub struct Network {
    switch: Namespace,
    /// Each host's namespace and numbers, for the neighbours of those to come.
    hosts: Vec<(String, Vec<u16>)>,
}

impl Network {
    /// A switch without hosts.
    ///
    /// # Errors
    /// When a namespace or bridge cannot be made.
    pub fn new() -> Result<Self> {
        let switch = Namespace::new()?;
        switch.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        switch.ip("link add switch type bridge mcast_snooping 0\nlink set switch up\n")?;
        Ok(Self { switch, hosts: Vec::new() })
    }

    /// A host with the addresses `10.0.H.L` and `fd00::HL` of each number, HL in hexadecimal; the first is its own.
    ///
    /// # Errors
    /// When the namespace or its link cannot be made.
    pub fn host(&mut self, numbers: impl IntoIterator<Item = u16>) -> Result<Host> {
        let numbers: Vec<u16> = numbers.into_iter().collect();
        let own = *numbers.first().context("a host has at least one number")?;
        let host = Host { namespace: Namespace::new()?, number: own };
        for (name, value) in [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv6/conf/default/addr_gen_mode", "1"),
            // Reports of the groups it joins are over a few milliseconds after it starts.
            ("net/ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
        ] {
            host.namespace.write_sysctl(name, value)?;
        }
        host.namespace.ip("link set lo up\n")?;
        for (name, _) in &self.hosts {
            ip(name, &neighbours(&numbers))?;
        }
        self.hosts.push((host.namespace.name.clone(), numbers));
        self.plug_in(&host)?;
        Ok(host)
    }

    /// Gives a host without a link its link to the switch.
    ///
    /// # Errors
    /// When it has one, or it cannot be made.
    pub fn plug_in(&self, host: &Host) -> Result<()> {
        let own = host.number;
        host.namespace.ip(&format!(
            "link add {LINK} address {} type veth peer name port{own} netns {}\n",
            mac(own),
            self.switch.name
        ))?;
        self.switch.ip(&format!("link set port{own} master switch\nlink set port{own} up\n"))?;
        self.put_up(host)
    }

    /// Puts a host's link up, with all that goes when a link goes down: addresses and neighbours.
    ///
    /// # Errors
    /// When it has none.
    pub fn put_up(&self, host: &Host) -> Result<()> {
        let (own, name) = (host.number, &host.namespace.name);
        let (own_entry, others): (Vec<_>, Vec<_>) = self.hosts.iter().partition(|(other, _)| other == name);
        let mut setup = String::new();
        for &number in own_entry.iter().flat_map(|(_, numbers)| numbers) {
            // Of several addresses, IPv6 would take the last one by itself; deprecated ones only when bound to.
            let lifetime = if number == own { "forever" } else { "0" };
            writeln!(setup, "addr replace {}/16 dev {LINK}", v4(number))?;
            writeln!(setup, "addr replace {}/64 dev {LINK} nodad preferred_lft {lifetime}", v6(number))?;
        }
        writeln!(setup, "link set {LINK} up")?;
        setup.extend(others.iter().map(|(_, numbers)| neighbours(numbers)));
        host.namespace.ip(&setup)
    }

    /// Takes a host's link away.
    ///
    /// # Errors
    /// When it has none.
    pub fn unplug(&self, host: &Host) -> Result<()> {
        host.namespace.ip(&format!("link delete {LINK}\n"))
    }

    /// Puts a host's link down.
    ///
    /// # Errors
    /// When it has none.
    pub fn put_down(&self, host: &Host) -> Result<()> {
        host.namespace.ip(&format!("link set {LINK} down\n"))
    }
}

/// The batch that makes a host's addresses permanent neighbours.
fn neighbours(numbers: &[u16]) -> String {
    let mac = mac(numbers[0]);
    let entry = |ip: IpAddr| format!("neigh replace {ip} lladdr {mac} nud permanent dev {LINK}\n");
    numbers.iter().flat_map(|&number| [entry(v4(number)), entry(v6(number))]).collect()
}

fn v4(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}

fn v6(number: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number).into()
}

fn mac(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("02:00:00:00:{high:02x}:{low:02x}")
}

/// A host: one namespace with one link to the switch.
pub struct Host {
    namespace: Namespace,
    number: u16,
}

impl Host {
    /// Its own address.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        ip_of(self.number, family)
    }

    /// A program to be run on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.name]).arg(program.as_ref());
        command
    }

    /// Runs a closure on this host: what it binds and connects, it binds and connects here.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.enter(work)
    }

    /// How many packets its link has handed to it since it was made.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn packets_in(&self) -> Result<u64> {
        let devices = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let link = devices.lines().find_map(|line| line.trim_start().strip_prefix(LINK)?.strip_prefix(':'));
        let packets = link.and_then(|counts| counts.split_whitespace().nth(1));
        packets.context("the link is listed")?.parse().context("a number of packets")
    }

    /// The processes on this host.
    ///
    /// # Errors
    /// When `ip netns pids` fails.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        pids(&self.namespace.name)
    }
}

/// The address of a host's number.
#[must_use]
pub fn ip_of(number: u16, family: Family) -> IpAddr {
    match family {
        Family::V4 => v4(number),
        Family::V6 => v6(number),
    }
}

/// A network namespace. Dropping it ends whatever still runs in it.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Two `ip netns add` that make the first namespace of a machine stumble over each other.
        static MAKE: Mutex<()> = Mutex::new(());

        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", process::id());
        let _one_at_a_time = MAKE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = Command::new("ip");
        command.args(["netns", "add", &name]);
        succeed(command, b"", LONG)?;
        Ok(Self { name })
    }

    fn ip(&self, batch: &str) -> Result<()> {
        ip(&self.name, batch)
    }

    fn write_sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| fs::write(Path::new("/proc/sys").join(name), value))?.with_context(|| name.to_owned())
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let namespace = File::open(Path::new(NAMESPACES).join(&self.name))?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<_, io::Error>(work())
            });
            let result = entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.with_context(|| format!("cannot enter {}", self.name))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs `ip` commands in a namespace, one a line.
fn ip(name: &str, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", name, "-batch", "-"]);
    succeed(command, batch.as_bytes(), LONG).map(drop)
}

fn pids(name: &str) -> Result<Vec<Pid>> {
    let mut command = Command::new("ip");
    command.args(["netns", "pids", name]);
    let listed = succeed(command, b"", LONG)?.text();
    Ok(listed.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect())
}

/// Takes a namespace away with whatever still runs in it. There is nobody left to tell about a failure; the next
/// run's sweep tries again.
fn remove(name: &str) {
    for pid in pids(name).unwrap_or_default() {
        let _ = kill_process(pid, Signal::KILL);
    }
    // The lock of a gate there that was killed: nobody will ask for it again.
    if let Ok(namespace) = fs::metadata(Path::new(NAMESPACES).join(name)) {
        let _ = fs::remove_file(format!("/run/posternd-{}.lock", namespace.ino()));
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
}

/// Takes away what runs that were killed have left behind: namespaces of ours whose process is no more, or is a zombie
/// that nobody has waited for, which has no executable any more.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).map(str::parse::<u32>);
        if let Some(Ok(owner)) = owner
            && fs::read_link(format!("/proc/{owner}/exe")).is_err()
        {
            remove(&name);
        }
    }
}
