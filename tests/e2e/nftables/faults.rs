//! The kernel refuses what the warden asks of it: that is said, nothing else is lost by it, and what could not be done is
//! done as soon as it can be.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_proto::{Payload, Request, Services};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::held::{Kind, descriptors};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::Process;
use postern_tests::wait::{LONG, wait_for};
use rustix::net::connect;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

use super::{HEALED, LIMIT, SETTINGS};
use crate::world::World;

const NOT_OUT: &str = "a rule could not be taken out; the kernel ends a lease's at its time";
const NOT_HEALED: &str = "cannot make sure that the guard is up; trying again every second";
const NOT_GRANTED: &str = "not granted: the firewall failed";

const LASTING: Settings = Settings { window_secs: 60, ..SETTINGS };

/// A warden whose way to the kernel is blocked: what it sends is refused, until this is dropped.
struct Blocked(Vec<OwnedFd>);

impl Blocked {
    fn new(gate: &Gate) -> Result<Self> {
        /// Nobody's port: the kernel gives out process ids, and numbers with the highest bit.
        const NOBODY: SocketAddrNetlink = SocketAddrNetlink::new(1 << 30, 0);
        let warden = gate.pid_of("postern-warden")?;
        let (process, mut blocked) = (pidfd_open(warden, PidfdFlags::empty())?, Self(Vec::new()));
        for held in descriptors(warden)?.iter().filter(|held| held.kind == Kind::Netlink) {
            let socket = pidfd_getfd(&process, held.number, PidfdGetfdFlags::empty())?;
            connect(&socket, &NOBODY)?;
            blocked.0.push(socket);
        }
        ensure!(!blocked.0.is_empty(), "the warden has a socket to the kernel");
        Ok(blocked)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        for socket in &self.0 {
            connect(socket, &SocketAddrNetlink::new(0, 0)).expect("the way to the kernel is always there");
        }
    }
}

/// A client closes its door.
fn close(world: &World, family: Family) -> Result<()> {
    let request = Request::Close { services: Services::new(vec!["ssh".parse()?])? };
    let close = world.alice.seal(&Payload { request, ..world.alice.asks_for("ssh")? });
    world.send(&world.home, family, &close)
}

/// The book of the warden knows it no more, the kernel holds it: it does not stay until the end of the window.
#[test]
fn a_lease_that_could_not_be_taken_out_goes_as_soon_as_it_can() -> Result<()> {
    let world = World::running(LASTING)?;
    let gate = &world.gate;
    for family in Family::ALL {
        let door = gate.at(family, SSH);
        world.opens_to(&world.stranger, family)?;
        for knocks_again in [false, true] {
            world.opens(family)?;
            let (failed, healed) = (gate.events(NOT_OUT)?.len(), gate.events(HEALED)?.len());
            let blocked = Blocked::new(gate)?;
            close(&world, family)?;
            let said = gate.wait_for_events(NOT_OUT, failed + 1)?;
            ensure!(
                said[failed]["error"].as_str().is_some_and(|error| error.contains("nftables")),
                "{said:?}"
            );
            assert_eq!(probe(&world.home, door)?, Seen::Open, "the kernel holds it");
            drop(blocked);
            if knocks_again {
                gate.knock(&world.home, &world.alice, family, &[])?;
            }
            let said = gate.wait_for_events(HEALED, healed + 1)?;
            ensure!(said[healed]["wrong"] == "grants", "{said:?}");
            if knocks_again {
                wait_to_see(&world.home, door, Seen::Open)?;
                close(&world, family)?;
            }
            wait_to_see(&world.home, door, Seen::Nothing)?;
            let home = world.home.ip(family).to_string();
            let left = gate.entries(family)?;
            ensure!(!left.iter().any(|entry| entry.starts_with(&format!("{home} "))), "{left:?}");
            assert_eq!(probe(&world.stranger, door)?, Seen::Open, "nobody else's lease ends");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_healed_or_granted_is_said_and_the_gate_goes_on() -> Result<()> {
    let world = World::running(LASTING)?;
    let (gate, door) = (&world.gate, world.gate.at(Family::V4, SSH));
    world.opens_to(&world.stranger, Family::V4)?;
    let blocked = Blocked::new(gate)?;
    gate.nft(&["delete table inet postern"])?;
    let failed = gate.wait_for_events(NOT_HEALED, 1)?;
    ensure!(failed[0]["error"].as_str().is_some_and(|error| error.contains("nftables")), "{failed:?}");
    assert_eq!(probe(&world.home, door)?, Seen::Open, "it was deleted");
    world.send(&world.home, Family::V4, &world.alice.seal(&world.alice.asks_for("ssh")?))?;
    gate.wait_for_events(NOT_GRANTED, 1)?;
    drop(blocked);
    gate.wait_for_events(HEALED, 1)?;
    assert_eq!(probe(&world.stranger, door)?, Seen::Open, "the lease from before lives");
    world.opens(Family::V4).map(drop)
}

#[test]
fn a_reload_that_the_kernel_refuses_changes_nothing() -> Result<()> {
    let world = World::running(LASTING)?;
    let (gate, door) = (&world.gate, world.gate.at(Family::V4, SSH));
    world.opens(Family::V4)?;
    let before = (gate.guard(Family::V4)?, gate.entries(Family::V4)?);
    let (good, blocked) = (std::fs::read_to_string(gate.config())?, Blocked::new(gate)?);
    gate.edit(&gate.config(), "8080/tcp", "8081/tcp")?;
    let told = gate.attempt(&["reload"])?;
    ensure!(told.code == 1 && told.stderr.contains("nftables"), "{} {}", told.code, told.stderr);
    drop(blocked);
    assert_eq!((gate.guard(Family::V4)?, gate.entries(Family::V4)?), before);
    assert_eq!(probe(&world.home, door)?, Seen::Open, "the lease lives");
    gate.administer(&["reload"])?;
    ensure!(gate.guard(Family::V4)?.contains(&"tcp . 8081".to_owned()), "it is taken over now");
    std::fs::write(gate.config(), good)?;
    gate.administer(&["reload"])?;
    assert_eq!((gate.guard(Family::V4)?, gate.entries(Family::V4)?), before);
    world.opens_to(&world.stranger, Family::V4).map(drop)
}

/// A table that a program owns nobody else may change; it is gone when the program ends.
#[test]
fn a_table_of_our_name_that_another_program_owns_is_named() -> Result<()> {
    let world = World::running(LASTING)?;
    let (gate, door) = (&world.gate, world.gate.at(Family::V4, SSH));
    world.opens(Family::V4)?;
    let mut nft = gate.host().command("nft");
    nft.arg("--interactive");
    let mut owner = Process::spawn(nft)?;
    owner.write(b"delete table inet postern; add table inet postern { flags owner; }\n")?;
    let failed = gate.wait_for_events(NOT_HEALED, 1)?;
    let said = failed[0]["error"].as_str().unwrap_or_default();
    ensure!(said.contains("another program owns"), "{failed:?}");
    assert_eq!(probe(&world.stranger, door)?, Seen::Open, "the guard is gone");
    owner.signal(Signal::TERM)?;
    owner.wait(LONG)?;
    let ended = Instant::now();
    wait_for("a shut port", LONG, || Ok((probe(&world.stranger, door)? == Seen::Nothing).then_some(())))?;
    ensure!(ended.elapsed() <= LIMIT + Duration::from_secs(1), "healed after {:?}", ended.elapsed());
    assert_eq!(probe(&world.home, door)?, Seen::Open, "the lease lives");
    world.opens(Family::V6).map(drop)
}
