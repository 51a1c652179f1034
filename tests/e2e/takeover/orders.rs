//! Orders that no front would send: the warden refuses each for its reason, counts it, and nothing changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_proto::{ClientEntry, ClientId, Window};
use postern_tests::gate::{Grant, Settings, Variant};
use postern_tests::held::descriptors;
use postern_tests::knocks::{now, random};
use postern_tests::netns::Family;
use postern_tests::orders::{Order, VERSION};
use postern_tests::wait::{LONG, wait_for};

use super::hostile::{Hostile, SETTLER, UNLIKE, counted, open, opened_at, said_refused, since_boot};
use crate::neighbours::at_once;
use crate::world::World;

/// The longest window of the services of these gates, which do not say: an hour.
const LONGEST: u32 = 3600;

#[test]
fn an_order_gets_no_further_than_its_client() -> Result<()> {
    at_once(&UNLIKE, |&variant| no_further_than_its_client(variant)).map(drop)
}

fn no_further_than_its_client(variant: Variant) -> Result<()> {
    let world = World::new(Settings { variant, ..Settings::default() })?;
    let client = |name: &str, change: fn(&mut ClientEntry)| {
        let mut client = world.gate.client(name)?;
        change(&mut client.entry);
        Ok::<_, anyhow::Error>(client)
    };
    let alice = world.alice.clone();
    let narrow = client("narrow", |entry| {
        entry.services.truncate(1);
        entry.sources = vec!["10.0.0.0/24".parse().expect("a network")];
        entry.max_window = Window::from_secs(10).ok();
    })?;
    let full = client("full", |entry| entry.max_leases = Some(1))?;
    let disabled = client("disabled", |entry| entry.disabled = true)?;
    let over = client("over", |entry| entry.expires = Some(now().before(Duration::from_hours(1))))?;
    let early = client("early", |entry| entry.not_before = Some(now().after(Duration::from_hours(1))))?;
    let hostile = Hostile::new(&[&alice, &narrow, &full, &disabled, &over, &early], world)?;
    let [alice, narrow, full, disabled, over, early] =
        [&alice, &narrow, &full, &disabled, &over, &early].map(|client| client.entry.id);

    hostile.has_lease(alice, SETTLER)?;
    hostile.has_lease(full, SETTLER)?;
    let before = hostile.firewall()?;
    let (own, other) = ("10.0.0.9", "10.1.0.9");
    let mut sent = BTreeMap::new();
    for (reason, client, service, window, source) in [
        ("unknown-client", ClientId::from_bytes(random()), "ssh", 10, own),
        ("unknown-client", disabled, "ssh", 10, own),
        ("unknown-service", alice, "ftp", 10, own),
        ("service-not-allowed", narrow, "web", 10, own),
        ("window-too-long", narrow, "ssh", 11, own),
        ("window-too-long", alice, "ssh", LONGEST + 1, own),
        ("window-too-long", alice, "ssh", u32::MAX, own),
        ("source-not-allowed", narrow, "ssh", 10, other),
        ("source-not-allowed", narrow, "ssh", 10, "fd00::9"),
        ("source-not-allowed", alice, "ssh", 10, "127.0.0.1"),
        ("source-not-allowed", alice, "ssh", 10, "::1"),
        ("source-not-allowed", alice, "ssh", 10, "0.0.0.0"),
        ("source-not-allowed", alice, "ssh", 10, "::"),
        ("source-not-allowed", alice, "ssh", 10, "224.0.0.1"),
        ("source-not-allowed", alice, "ssh", 10, "ff02::1"),
        ("source-not-allowed", alice, "ssh", 10, "255.255.255.255"),
        ("source-not-allowed", alice, "ssh", 10, "::ffff:10.0.0.9"),
        ("source-not-allowed", alice, "ssh", 10, "fe80::9"),
        ("not-valid-now", over, "ssh", 10, own),
        ("not-valid-now", early, "ssh", 10, own),
        ("too-many-leases", full, "ssh", 10, own),
    ] {
        hostile.link.order(&open(client, service, window, source.parse()?))?;
        *sent.entry(reason.to_owned()).or_insert(0) += 1;
    }
    for ago in [Duration::from_secs(10), since_boot()] {
        hostile.link.order(&opened_at(since_boot().saturating_sub(ago), alice, own.parse()?))?;
        *sent.entry("late".to_owned()).or_insert(0) += 1;
    }
    hostile.settle(alice)?;
    assert_eq!(hostile.firewall()?, before, "the firewall is another");
    // Each reason is said with its first order, and counted.
    let said = said_refused(&hostile.world.gate)?;
    assert_eq!(said.keys().collect::<Vec<_>>(), sent.keys().collect::<Vec<_>>());
    ensure!(said.values().all(|counts| counts == &[1]), "{said:?}");
    let Hostile { mut world, .. } = hostile;
    world.opens_to(&world.stranger, Family::V4)?;
    assert_eq!(counted(&mut world.gate)?, sent);
    Ok(())
}

#[test]
fn when_a_knock_came_makes_no_window_longer() -> Result<()> {
    at_once(&UNLIKE, |&variant| no_window_is_longer(variant)).map(drop)
}

fn no_window_is_longer(variant: Variant) -> Result<()> {
    let hostile = Hostile::usual(variant)?;
    let (alice, window) = (hostile.world.alice.entry.id, 20);
    let day = Duration::from_hours(24);
    for (number, decided, longest) in [
        (1, since_boot() + day, window),
        (2, Duration::MAX, window),
        (3, since_boot().saturating_sub(Duration::from_secs(15)), window - 15),
    ] {
        let source: IpAddr = Ipv4Addr::new(10, 0, 1, number).into();
        let services = vec![("ssh".to_owned(), window)];
        let order = Order::Open { client: alice, services, source, from_port: None, decided, answer: None };
        hostile.link.order(&order)?;
        let Grant { stops: stop, .. } = wait_for("the lease", LONG, || {
            let grants = hostile.world.gate.grants(Family::V4)?;
            Ok(grants.into_iter().find(|grant| grant.source == source))
        })?;
        // The kernel takes its last second whole.
        let latest = now().after(Duration::from_secs(u64::from(longest)));
        ensure!(stop <= latest, "{decided:?} gives {stop}, and {longest} s would be over at {latest}");
    }
    hostile.world.opens_to(&hostile.world.stranger, Family::V4).map(drop)
}

#[test]
fn what_is_no_order_is_refused_and_ends_nothing() -> Result<()> {
    at_once(&UNLIKE, |&variant| what_is_no_order_ends_nothing(variant)).map(drop)
}

fn what_is_no_order_ends_nothing(variant: Variant) -> Result<()> {
    let hostile = Hostile::usual(variant)?;
    let alice = hostile.world.alice.entry.id;
    hostile.has_lease(alice, SETTLER)?;
    let before = hostile.firewall()?;
    let warden = hostile.world.gate.pid_of("postern-warden")?;
    let packets = malformed(alice)?;
    for packet in &packets {
        hostile.link.packet(packet)?;
    }
    // Descriptors, and packets of a message that never ends: the warden is not to keep them.
    let held = descriptors(warden)?.len();
    let file = File::open("/dev/null")?;
    let four = [file.as_fd(); 4];
    for _ in 0..400 {
        hostile.link.packet_with(&[VERSION, 1], &four)?;
    }
    let with_descriptors = 400;
    hostile.link.packet_with(&open(alice, "ssh", 10, "10.0.0.9".parse()?).packet(), &four[..1])?;
    hostile.settle(alice)?;
    // It has some more while it runs a program.
    wait_for("the warden to hold what it held", LONG, || {
        Ok((descriptors(warden)?.len() <= held + 4).then_some(()))
    })?;

    assert_eq!(hostile.firewall()?, before, "the firewall is another");
    assert_eq!(said_refused(&hostile.world.gate)?, [("malformed".to_owned(), vec![1])].into());
    let Hostile { mut world, .. } = hostile;
    world.opens_to(&world.stranger, Family::V4)?;
    assert_eq!(world.gate.pid_of("postern-warden")?, warden, "it is the same warden still");
    let expected = packets.len() + with_descriptors + 1;
    assert_eq!(counted(&mut world.gate)?, [("malformed".to_owned(), u64::try_from(expected)?)].into());
    Ok(())
}

/// Packets that hold no order, of a version or shape that there is not. There is no place for a port in any: what
/// stands for one makes it malformed.
fn malformed(client: ClientId) -> Result<Vec<Vec<u8>>> {
    let source: IpAddr = "10.0.0.9".parse()?;
    let good = open(client, "ssh", 10, source).packet();
    let packet = |message: &[u8]| [&[VERSION, 0][..], message].concat();
    let (first_half, message) = (&good[..good.len() / 2], &good[2..]);
    let named = |service: &str| open(client, service, 10, source).packet();
    let shaped = |window: u32, from_port: Option<u16>, decided: (u64, u32)| {
        let services = vec![("ssh", window)];
        Ok::<_, anyhow::Error>(packet(&postcard::to_allocvec(
            &[(0_u8, client, services, source, from_port, decided, None::<()>)][..],
        )?))
    };
    let several = |services: Vec<(String, u32)>| {
        Order::Open { client, services, source, from_port: None, decided: since_boot(), answer: None }
            .packet()
    };
    let windows = |count: u32| (1..=count).map(|window| ("ssh".to_owned(), window)).collect();
    ensure!(shaped(10, Some(1), (0, 0))?.len() > 10, "the shape is an order's");
    Ok(vec![
        vec![],
        vec![VERSION],
        packet(&[]),
        [&[VERSION + 1, 0], message].concat(),
        [&[VERSION, 2], message].concat(),
        first_half.to_vec(),
        [&good[..], &[0]].concat(),
        [&good[..], &22_u16.to_be_bytes()].concat(),
        packet(&[1]),
        packet(&[1, 3]),
        packet(&[u8::MAX, 1]),
        named("22/tcp"),
        named("ssh 22"),
        named(""),
        named(&"x".repeat(33)),
        shaped(0, None, (0, 0))?,
        shaped(10, Some(0), (0, 0))?,
        shaped(10, None, (u64::MAX, u32::MAX))?,
        several(windows(2)),
        several(windows(100)),
        several(windows(200)),
        packet(&vec![0; 40_000]),
        vec![],
    ])
}
