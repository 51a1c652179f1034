//! Orders without end: the warden does its work all the same, and the next front finds it well.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_proto::ClientId;
use postern_tests::gate::{Gate, Settings, Variant};
use postern_tests::held::{Kind, descriptors};
use postern_tests::knocks::random;
use postern_tests::netns::Family;
use postern_tests::orders::{Link, Order, VERSION};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use super::hostile::{Hostile, SETTLER, counted, knock_until_open, open, since_boot};
use super::scene::stop_for_a_while;
use crate::world::World;

/// The longest window of the services of these gates, which do not say: an hour.
const LONGEST: u32 = 3600;
/// Orders of one client that are in time at once.
const BURST: u64 = 256;
/// One more is in time after each of these.
const PACE: Duration = Duration::from_millis(20);
/// After so long without a sign of life a process is ended.
const WATCHDOG: Duration = Duration::from_secs(10);
const RELOADS: usize = 10;

#[test]
fn thousands_of_orders_at_once_cost_what_one_client_may_through_iptables() -> Result<()> {
    thousands_of_orders_at_once(Variant::Nft)
}

#[test]
fn thousands_of_orders_at_once_cost_what_one_client_may_through_nftables() -> Result<()> {
    thousands_of_orders_at_once(Variant::Nftables)
}

fn thousands_of_orders_at_once(variant: Variant) -> Result<()> {
    const ORDERS: u16 = 5000;
    let world = World::new(Settings { variant, ..Settings::default() })?;
    let (alice, greedy) = (world.alice.clone(), world.gate.client("greedy")?);
    let hostile = Hostile::new(&[&alice, &greedy], world)?;
    let gate = &hostile.world.gate;
    hostile.has_lease(alice.entry.id, SETTLER)?;
    let lines = gate.log()?.len();
    let begun = Instant::now();
    for number in 0..ORDERS {
        let [high, low] = number.to_be_bytes();
        // Each service counts: each can be a rule.
        let services = ["ssh", "web"].map(|name| (name.to_owned(), 600)).to_vec();
        hostile.link.order(&Order::Open {
            client: greedy.entry.id,
            services,
            source: Ipv4Addr::new(10, 1, high, low).into(),
            from_port: None,
            decided: since_boot(),
            answer: None,
        })?;
    }
    hostile.settle(alice.entry.id)?;
    let (took, in_time) = (begun.elapsed(), most_in_time(begun.elapsed()));
    let granted = granted_to(gate, "greedy")?;
    let knocked = Instant::now();
    hostile.world.opens(Family::V4)?;
    let (opened, lines) = (knocked.elapsed(), gate.log()?.len() - lines);
    println!(
        "{ORDERS} orders of two services: {granted} granted within {took:?}; a knock then opens within {opened:?}; {lines} lines"
    );
    ensure!(granted >= BURST, "a burst is in time");
    ensure!(opened < Duration::from_secs(5), "a knock opens after {opened:?}");
    // Of debug's lines, a knock has several of its own.
    ensure!(lines <= usize::try_from(granted)? + 50, "{lines} lines for {granted} leases");

    let Hostile { mut world, .. } = hostile;
    let refused = counted(&mut world.gate)?;
    println!("{refused:?}");
    let count = |reason: &str| refused.get(reason).copied().unwrap_or_default();
    let (slow_enough, too_fast) = (granted + count("too-many-leases"), count("too-fast"));
    assert_eq!(slow_enough + too_fast, 2 * u64::from(ORDERS), "{refused:?}");
    ensure!(slow_enough <= in_time, "{slow_enough} services in {took:?}");
    world.gate.start(&[])?;
    world.opens_to(&world.stranger, Family::V4).map(drop)
}

/// A front that sends whatever it can, as fast as it can, and for longer than a watchdog waits.
#[test]
fn orders_without_end_keep_the_warden_from_nothing() -> Result<()> {
    // Of debug's lines there would be one an order.
    let world = World::new(Settings { log: "info", ..Settings::default() })?;
    let (alice, greedy) = (world.alice.clone(), world.gate.client("greedy")?);
    let hostile = Hostile::new(&[&alice, &greedy], world)?;
    let gate = &hostile.world.gate;
    let (front, warden) = (gate.pid_of("postern-front")?, gate.pid_of("postern-warden")?);
    let lines = gate.log()?.len();
    let is_over = AtomicBool::new(false);
    let (sent, took, slowest) = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&hostile.link, greedy.entry.id, &is_over));
        let begun = Instant::now();
        let looked = same_warden_for(gate, warden, WATCHDOG + Duration::from_secs(2));
        let reloaded = looked.and_then(|()| slowest_reload(gate));
        is_over.store(true, Ordering::Relaxed);
        let sent = flood.join().expect("sending does not panic")?;
        Ok::<_, anyhow::Error>((sent, begun.elapsed(), reloaded?))
    })?;
    let (lines, granted) = (gate.log()?.len() - lines, granted_to(gate, "greedy")?);
    println!(
        "{sent} packets within {took:?}: {granted} granted, {lines} lines; the slowest reload took {slowest:?}"
    );
    ensure!(slowest < Duration::from_secs(5), "a reload took {slowest:?}");
    ensure!(granted <= most_in_time(took), "{granted} orders in {took:?}");
    ensure!(lines <= usize::try_from(granted)? + 3 * RELOADS + 50, "{lines} lines");

    // The next front is there soon, and what the first one left in the link is done with soon.
    let killed = Instant::now();
    kill_process(front, Signal::KILL)?;
    wait_for("another front", LONG, || {
        Ok(gate.pid_of("postern-front").is_ok_and(|pid| pid != front).then_some(()))
    })?;
    knock_until_open(&hostile.world)?;
    let until_open = killed.elapsed();
    println!("{until_open:?} after the death of the front a knock opens");
    ensure!(until_open < Duration::from_secs(20), "a knock opens after {until_open:?}");
    Ok(())
}

/// The warden is the same for so long, and there is one.
fn same_warden_for(gate: &Gate, warden: Pid, time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        ensure!(gate.pid_of("postern-warden")? == warden, "another warden after {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Reloads a few times; gives how long the slowest took.
fn slowest_reload(gate: &Gate) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for count in 1..=RELOADS {
        let asked = Instant::now();
        gate.signal(Signal::HUP)?;
        gate.wait_for_events("reloaded", count)?;
        slowest = slowest.max(asked.elapsed());
    }
    Ok(slowest)
}

/// Sends packets until it is over: at first such as are refused at once, and then as well such as are carried out.
fn flood(link: &Link, client: ClientId, is_over: &AtomicBool) -> Result<u64> {
    let (source, stranger) = ("10.0.0.9".parse()?, ClientId::from_bytes(random()));
    let (begun, mut sent) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..50 {
            link.packet(&[0; 1000])?;
            link.order(&open(stranger, "ssh", 10, source))?;
            sent += 2;
        }
        if begun.elapsed() > WATCHDOG {
            let window = 1 + u32::try_from(sent)? % LONGEST;
            link.order(&open(client, "ssh", window, source))?;
            sent += 1;
        }
    }
    Ok(sent)
}

/// What a front leaves in the link when the gate stops is carried out by the warden as its last: junk in it ends nothing.
#[test]
fn junk_before_the_last_orders_loses_none() -> Result<()> {
    let hostile = Hostile::usual(Variant::Nft)?;
    let (gate, alice) = (&hostile.world.gate, hostile.world.alice.entry.id);
    let (supervisor, warden) = (gate.pid_of("posternd")?, gate.pid_of("postern-warden")?);
    stop_for_a_while(warden)?;
    hostile.link.packet(&[])?;
    hostile.link.packet(&[VERSION, 0])?;
    hostile.link.order(&open(alice, "ssh", 60, SETTLER))?;
    gate.signal(Signal::TERM)?;
    // Of its links, the supervisor has no more than both ends of those to the warden: of orders, and of reloads. The warden
    // is to end.
    wait_for("the end of the warden's line", LONG, || {
        let held = descriptors(supervisor)?;
        let links = held.iter().filter(|descriptor| descriptor.kind == Kind::Unix("seqpacket")).count();
        Ok((links <= 4).then_some(()))
    })?;
    kill_process(warden, Signal::CONT)?;
    gate.wait_for_events("orders of the front", 1)?;
    let granted = gate.events("granted")?;
    ensure!(granted.iter().any(|event| event["source"] == SETTLER.to_string()), "{granted:?}");
    let Hostile { mut world, .. } = hostile;
    assert_eq!(counted(&mut world.gate)?, [("malformed".to_owned(), 2)].into());
    world.gate.start(&[])?;
    world.opens_to(&world.stranger, Family::V4).map(drop)
}

/// Orders of one client that are in time at the most, since an instant so long ago.
fn most_in_time(since: Duration) -> u64 {
    let steady = since.as_millis() / PACE.as_millis();
    BURST + u64::try_from(steady).unwrap_or(u64::MAX) + 1
}

fn granted_to(gate: &Gate, client: &str) -> Result<u64> {
    let granted = gate.events("granted")?;
    Ok(granted.iter().filter(|event| event["client"] == client).count() as u64)
}
