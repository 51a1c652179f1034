//! What each process holds once it works: every thread of it, and every descriptor.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings, Variant};
use postern_tests::held::{CAPABILITY_SETS, Kind, descriptors, threads};
use postern_tests::netns::Family;
use postern_tests::process::{Process, run};
use postern_tests::wait::{LONG, wait_for};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;

use super::scene::raw;
use crate::neighbours::at_once;
use crate::world::World;

/// The user of front and warden, and its group, as every Debian has them.
const NOBODY: u32 = 65_534;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const NET_BIND_SERVICE: u64 = 1 << 10;
const BPF: u64 = 1 << 39;
/// What it takes to start the others: `CHOWN`, `FOWNER`, `KILL`, `SETGID`, `SETUID` and `SETPCAP`, and what they hold or begin
/// with.
const SUPERVISOR: u64 =
    BPF | 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | NET_BIND_SERVICE | NET_ADMIN | NET_RAW;
/// The seccomp mode of /proc: a filter.
const FILTERED: u32 = 2;

#[test]
fn every_thread_holds_what_its_work_takes_and_no_more() -> Result<()> {
    let all =
        [(Variant::Nft, NET_ADMIN), (Variant::Legacy, NET_ADMIN | NET_RAW), (Variant::Nftables, NET_ADMIN)];
    at_once(&all, |&(variant, warden)| {
        let world = World::running(Settings { variant, ..Settings::default() })?;
        hold_no_more(&world.gate, warden)?;
        world.opens(Family::V4)?;
        let threads = hold_no_more(&world.gate, warden)?;
        // The store's, and those that wait for iptables, where it is run.
        ensure!(threads > 3, "a knock starts threads: there are {threads} of three processes");
        world.opens(Family::V6).map(drop)
    })
    .map(drop)
}

/// Checks every thread of every process; gives their number.
fn hold_no_more(gate: &Gate, warden: u64) -> Result<usize> {
    let mut count = 0;
    for (name, capabilities) in [("postern-front", 0), ("postern-warden", warden)] {
        for thread in threads(gate.pid_of(name)?)? {
            println!("{name}: {thread:x?}");
            ensure!(thread.users == [NOBODY; 4], "{thread:?}");
            ensure!(thread.groups == [NOBODY; 4], "and no supplementary one: {thread:?}");
            ensure!(
                CAPABILITY_SETS.iter().all(|set| thread.capabilities[set] == capabilities),
                "{thread:x?}"
            );
            ensure!(thread.no_new_privs && thread.seccomp == FILTERED, "{thread:?}");
            count += 1;
        }
    }
    for thread in threads(gate.pid_of("posternd")?)? {
        println!("posternd: {thread:x?}");
        ensure!(thread.users == [0; 4], "{thread:?}");
        for (set, expected) in CAPABILITY_SETS.into_iter().zip([0, SUPERVISOR, SUPERVISOR, SUPERVISOR, 0]) {
            ensure!(thread.capabilities[set] == expected, "{set} of {thread:x?}");
        }
        ensure!(thread.no_new_privs, "{thread:?}");
        count += 1;
    }
    Ok(count)
}

#[test]
fn no_descriptor_is_left_of_who_started_the_gate() -> Result<()> {
    at_once(&[Variant::Nft, Variant::Nftables], |&variant| nothing_is_left(variant)).map(drop)
}

fn nothing_is_left(variant: Variant) -> Result<()> {
    let mut world = World::new(Settings { variant, ..Settings::default() })?;
    // As a careless script would: every process that is started from here on inherits it.
    let keys = File::open(world.gate.directory().join("keys"))?;
    fcntl_setfd(&keys, FdFlags::empty())?;
    world.listen(&[SSH])?;
    world.gate.start(&[])?;
    fcntl_setfd(&keys, FdFlags::CLOEXEC)?;
    world.opens(Family::V4)?;

    let leaked = Kind::File(world.gate.directory().join("keys").display().to_string());
    let supervisor = descriptors(world.gate.pid_of("posternd")?)?;
    ensure!(supervisor.iter().any(|descriptor| descriptor.kind == leaked), "it was left to the supervisor");
    let store = Kind::File(world.gate.directory().join("state/front/replay.redb").display().to_string());
    let maps = Kind::Anonymous("bpf-map".to_owned());
    holds_only(&world.gate, "postern-front", |kind| [&Kind::Packet, &store, &maps].contains(&kind))?;
    // With the lock of this namespace's one place in its hands, no other gate begins before it has ended.
    let place = |path: &str| path.starts_with("/run/posternd-");
    holds_only(&world.gate, "postern-warden", |kind| {
        match kind {
            Kind::Netlink => true,
            // Those that answers leave from.
            Kind::Udp(port) => KNOCK_PORTS.contains(port),
            Kind::File(path) => place(path),
            _ => false,
        }
    })?;
    world.opens(Family::V6).map(drop)
}

/// Checks each descriptor of a process: there are those that both have, and its own kinds.
fn holds_only(gate: &Gate, name: &str, own: impl Fn(&Kind) -> bool) -> Result<()> {
    let pid = gate.pid_of(name)?;
    // A program that the warden runs has pipes to it while it runs.
    let held = wait_for(&format!("a {name} at rest"), LONG, || {
        let held = descriptors(pid)?;
        let is_busy = held.iter().any(|held| held.number > 2 && held.kind == Kind::Pipe);
        Ok((!is_busy).then_some(held))
    })?;
    for descriptor in held {
        println!("{name}: {descriptor:?}");
        let is_allowed = match &descriptor.kind {
            Kind::File(path) if path == "/dev/null" => descriptor.number < 2,
            // The log.
            Kind::Pipe => descriptor.number == 2,
            // The links; the event loop's own, and the warden's name, which nobody else may have.
            Kind::Unix(kind) => ["seqpacket", "stream"].contains(kind),
            Kind::Anonymous(name) if ["eventpoll", "eventfd", "timerfd"].contains(&name.as_str()) => true,
            other => own(other),
        };
        ensure!(is_allowed, "{name} holds {descriptor:?}");
    }
    Ok(())
}

/// Front and warden are one user, and any program may be it: that alone must let nobody in.
#[test]
fn no_other_process_of_their_user_gets_at_them() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.opens(Family::V4)?;
    let mut sleep = Command::new("sleep");
    sleep.arg("600").uid(NOBODY).gid(NOBODY);
    let sleep = Process::spawn(sleep)?;
    for file in ["maps", "environ", "mem"] {
        let opens = |pid: Pid| {
            let mut dd = Command::new("dd");
            dd.arg(format!("if=/proc/{}/{file}", raw(pid))).args(["count=0"]).uid(NOBODY).gid(NOBODY);
            Ok::<_, anyhow::Error>(run(dd, b"", LONG)?.code == 0)
        };
        ensure!(opens(sleep.pid())?, "{file} of a process that anybody else of the user's started");
        for name in ["postern-front", "postern-warden"] {
            ensure!(!opens(world.gate.pid_of(name)?)?, "{file} of {name}");
        }
    }
    world.opens(Family::V6).map(drop)
}
