//! Hosts without people: many knocks at once with one key, and not one lost.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings, Variant};
use postern_tests::knocks::Knock;
use postern_tests::netns::{Family, ip_of};
use postern_tests::probe::{Seen, probe_bound, udp, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::wait::{LONG, wait_for};
use serde_json::Value;

use crate::world::World;

/// The twenty addresses that knock.
const NUMBERS: Range<u16> = 1000..1020;
const KNOCKS: usize = 100;

#[test]
fn a_hundred_knocks_at_once_from_twenty_addresses_through_iptables_nft() -> Result<()> {
    a_hundred_knocks_at_once(Variant::Nft, |_| Ok(()))
}

#[test]
fn a_hundred_knocks_at_once_from_twenty_addresses_through_iptables_legacy() -> Result<()> {
    a_hundred_knocks_at_once(Variant::Legacy, |_| Ok(()))
}

/// Rules come and go for each of the knocks while the guard is put up anew: nobody loses what was granted (P9).
#[test]
fn a_reload_amid_a_hundred_knocks_drops_nobody_through_iptables_nft() -> Result<()> {
    a_hundred_knocks_at_once(Variant::Nft, reload_amid)
}

#[test]
fn a_reload_amid_a_hundred_knocks_drops_nobody_through_iptables_legacy() -> Result<()> {
    a_hundred_knocks_at_once(Variant::Legacy, reload_amid)
}

fn reload_amid(gate: &Gate) -> Result<()> {
    // Of knocks that come together from one address, not each is granted anew: so often there is one at least.
    for granted in (0..NUMBERS.len()).step_by(2) {
        gate.wait_for_events("granted", granted)?;
        gate.reload()?;
    }
    Ok(())
}

#[test]
fn a_hundred_knocks_at_once_through_nftables() -> Result<()> {
    a_hundred_knocks_at_once(Variant::Nftables, |_| Ok(()))
}

fn a_hundred_knocks_at_once(variant: Variant, amid: impl FnOnce(&Gate) -> Result<()>) -> Result<()> {
    // A window that does not end before everything has been looked at.
    let mut world = World::new(Settings { variant, window_secs: 60, ..Settings::default() })?;
    world.listen(&[SSH])?;
    let farm = world.network.host(NUMBERS)?;
    let worker = world.gate.client("worker")?;
    world.gate.write_clients(&[&world.alice, &worker])?;
    world.gate.start(&[])?;
    world.opens(Family::V4)?;
    // `postern` has knocked once at each port.
    let before = world.gate.wait_for_received(KNOCK_PORTS.len() as u64)?;

    let knock = || Ok::<_, anyhow::Error>(worker.seal(&worker.asks_for("ssh")?));
    let knocks = (0..KNOCKS).map(|_| knock()).collect::<Result<Vec<_>>>()?;
    let sockets = NUMBERS.map(|number| udp(&farm, ip_of(number, Family::V4))).collect::<Result<Vec<_>>>()?;
    let to = world.gate.at(Family::V4, KNOCK_PORTS[0]);
    thread::scope(|scope| {
        let shares = sockets.iter().zip(knocks.chunks(KNOCKS / sockets.len()));
        let senders: Vec<_> =
            shares.map(|(socket, share)| scope.spawn(move || send_each(socket, share, to))).collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("sending does not panic"))
    })?;

    amid(&world.gate)?;
    one_rule_an_address(&world.gate)?;
    for number in NUMBERS {
        let address = ip_of(number, Family::V4);
        let seen = probe_bound(&farm, Some(address), world.gate.at(Family::V4, SSH))?;
        ensure!(seen == Seen::Open, "{address} sees {seen:?}");
    }
    let counters = world.gate.wait_for_received(before.received + KNOCKS as u64)?;
    assert_eq!(counters.accepted, before.accepted + KNOCKS as u64, "{counters:?}");
    world.opens_to(&world.stranger, Family::V4).map(drop)
}

/// Waits until each address has its rule, and there is no other, and it stays so: knocks that came later renew.
fn one_rule_an_address(gate: &Gate) -> Result<()> {
    let mut expected: Vec<_> = NUMBERS.map(|number| ip_of(number, Family::V4)).collect();
    expected.sort();
    let (mut last, mut settled) = (Vec::new(), None);
    let looked = wait_for("one rule an address", LONG, || {
        last = workers_addresses(gate)?;
        last.sort();
        let since = *settled.get_or_insert_with(Instant::now);
        if last != expected {
            settled = None;
        }
        Ok((last == expected && since.elapsed() > Duration::from_secs(1)).then_some(()))
    });
    looked.with_context(|| format!("{last:?}"))
}

/// The address of each entry that the kernel has for the worker.
fn workers_addresses(gate: &Gate) -> Result<Vec<IpAddr>> {
    let entries = gate.entries(Family::V4)?;
    let of_worker = entries.iter().filter(|entry| entry.contains("worker:ssh:"));
    let address =
        |entry: &String| entry.split_whitespace().find_map(|word| word.trim_end_matches("/32").parse().ok());
    of_worker.map(|entry| address(entry).with_context(|| format!("no address: {entry}"))).collect()
}

fn send_each(socket: &UdpSocket, knocks: &[Knock], to: SocketAddr) -> io::Result<()> {
    knocks.iter().try_for_each(|knock| socket.send_to(knock, to).map(drop))
}

/// Twenty jobs on one host, each with a `postern` of its own that waits for the door, and says so in JSON.
#[test]
fn twenty_jobs_at_once_on_one_host() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.shuts_on_time(world.opens(Family::V6)?)?;
    thread::scope(|scope| {
        let job = || {
            let mut knock = world.gate.postern(&world.home, &world.alice, Family::V6)?;
            knock.args(["--json", "knock", "-", "ssh", "--wait", "10"]);
            let report: Value = serde_json::from_slice(&succeed(knock, b"", LONG)?.stdout)?;
            ensure!(report.is_object(), "one JSON object: {report}");
            Ok(())
        };
        let jobs: Vec<_> = (0..20).map(|_| scope.spawn(job)).collect();
        jobs.into_iter().try_for_each(|job| job.join().expect("a job does not panic"))
    })?;
    wait_to_see(&world.home, world.gate.at(Family::V6, SSH), Seen::Nothing)?;
    world.opens(Family::V6).map(drop)
}
