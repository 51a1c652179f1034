//! A knock opens once (P4): whoever recorded one can send it again, from anywhere, at any time, and nothing opens.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::knocks::{Client, Knock};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Echo, Seen, probe, wait_to_see};

use crate::world::{World, grants, refuses, send};

#[test]
fn a_recorded_knock_opens_nothing_over_ipv4() -> Result<()> {
    a_recorded_knock_opens_nothing(Family::V4)
}

#[test]
fn a_recorded_knock_opens_nothing_over_ipv6() -> Result<()> {
    a_recorded_knock_opens_nothing(Family::V6)
}

fn a_recorded_knock_opens_nothing(family: Family) -> Result<()> {
    let mut world = World::running(Settings::default())?;
    let capture = Capture::start(world.gate.host(), Direction::In, "udp")?;
    let opened = world.opens(family)?;
    let recorded = capture.wait_for("the knock", |packets| !knocks(packets).is_empty())?;
    let recorded = knocks(&recorded);
    capture.finish()?;

    // At once, while the door is open: not to another address, and not for longer.
    for knock in &recorded {
        refuses(&world.gate, "replayed", || world.send(&world.home, family, knock))?;
    }
    replays_open_nothing(&world, &world.stranger, family, &recorded)?;
    world.shuts_on_time(opened)?;
    for host in [&world.home, &world.stranger] {
        replays_open_nothing(&world, host, family, &recorded)?;
    }
    world.gate.stop()?;
    world.gate.start(&[])?;
    for host in [&world.home, &world.stranger] {
        replays_open_nothing(&world, host, family, &recorded)?;
    }
    world.gate.kill()?;
    world.gate.start(&[])?;
    for host in [&world.home, &world.stranger] {
        replays_open_nothing(&world, host, family, &recorded)?;
    }
    world.opens(family).map(drop)
}

/// `posternd` is killed as soon as the knock has opened, without any time to put things in order.
#[test]
fn a_kill_right_behind_the_knock_forgets_nothing() -> Result<()> {
    let mut world = World::running(Settings::default())?;
    let opened = world.opens(Family::V4)?;
    world.shuts_on_time(opened)?;
    let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
    let knocked = Instant::now();
    grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    world.gate.kill()?;
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Open)?;
    let opened = world.opened(world.gate.at(Family::V4, SSH), knocked);
    world.gate.start(&[])?;
    world.shuts_on_time(opened)?;
    replays_open_nothing(&world, &world.home, Family::V4, &[knock])?;
    world.opens(Family::V4).map(drop)
}

/// Two gates that know one client by one secret: a knock is bound to the gate it was made for.
#[test]
fn a_recorded_knock_opens_nothing_at_another_gate() -> Result<()> {
    let mut world = World::running(Settings::default())?;
    let mut other = Gate::new(world.network.host([4])?, Settings::default())?;
    let alice_there = Client::at(other.id(), world.alice.entry.clone());
    other.write_clients(&[&alice_there])?;
    let _echo = Echo::start(other.host(), SSH)?;
    other.start(&[])?;
    let there = other.at(Family::V4, SSH);

    let used = world.alice.seal(&world.alice.asks_for("ssh")?);
    grants(&world.gate, || world.send(&world.home, Family::V4, &used))?;
    let unused = world.alice.seal(&world.alice.asks_for("ssh")?);
    for knock in [used, unused] {
        refuses(&other, "unknown", || send(&world.home, &other, Family::V4, &knock))?;
        ensure!(probe(&world.home, there)? == Seen::Nothing, "another gate's knock opened");
    }
    other.knock(&world.home, &alice_there, Family::V4, &[])?;
    wait_to_see(&world.home, there, Seen::Open).context("a fresh knock opens there")
}

fn knocks(packets: &[Packet]) -> Vec<Knock> {
    packets.iter().filter_map(|packet| packet.udp_payload()?.try_into().ok()).collect()
}

/// Sends recorded knocks from a host: each is refused as replayed, and the door does not open to that host.
fn replays_open_nothing(world: &World, host: &Host, family: Family, recorded: &[Knock]) -> Result<()> {
    for knock in recorded {
        refuses(&world.gate, "replayed", || world.send(host, family, knock))?;
        let seen = probe(host, world.gate.at(family, SSH))?;
        ensure!(seen == Seen::Nothing, "a replayed knock opened");
    }
    Ok(())
}
