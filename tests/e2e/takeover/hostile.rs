//! A gate whose front is in a test's hand: its link to the warden takes what no front would send.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use postern_proto::ClientId;
use postern_tests::gate::{Gate, SSH, Settings, Variant, WEB};
use postern_tests::knocks::Client;
use postern_tests::netns::Family;
use postern_tests::orders::{Link, Order};
use postern_tests::probe::{Seen, probe};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::world::World;

/// A gate whose link from the front to the warden is in the test's hand.
pub(super) struct Hostile {
    pub(super) world: World,
    pub(super) link: Link,
}

impl Hostile {
    pub(super) fn new(clients: &[&Client], world: World) -> Result<Self> {
        let mut world = world;
        world.listen(&[SSH, WEB])?;
        world.gate.write_clients(clients)?;
        world.gate.start(&[])?;
        world.opens(Family::V4)?;
        let gate = &world.gate;
        wait_for("an end of the first lease", LONG, || {
            let entries = gate.entries(Family::V4)?;
            Ok((!entries.iter().any(|entry| entry.contains("alice:ssh:"))).then_some(()))
        })?;
        let link = Link::to_warden(gate.pid_of("postern-front")?, gate.pid_of("posternd")?)?;
        Ok(Self { world, link })
    }

    /// A gate with nobody but alice.
    pub(super) fn usual(variant: Variant) -> Result<Self> {
        let world = World::new(Settings { variant, ..Settings::default() })?;
        let alice = world.alice.clone();
        Self::new(&[&alice], world)
    }

    /// Gives a client a lease that outlasts the test.
    pub(super) fn has_lease(&self, client: ClientId, source: IpAddr) -> Result<()> {
        let granted = || Ok::<_, anyhow::Error>(self.world.gate.events("granted")?.len());
        let before = granted()?;
        self.link.order(&open(client, "ssh", 600, source))?;
        wait_for("the lease", LONG, || Ok((granted()? > before).then_some(())))
    }

    /// Everything in the filter tables, the guard and those who are let in.
    pub(super) fn firewall(&self) -> Result<Vec<String>> {
        let (gate, mut all) = (&self.world.gate, Vec::new());
        for family in Family::ALL {
            all.push(gate.saved(family)?);
            all.extend(gate.guard(family)?);
            all.extend(gate.entries(family)?);
        }
        Ok(all)
    }

    /// Waits until the warden has come to the end of what was sent, by an order that changes nothing.
    pub(super) fn settle(&self, client: ClientId) -> Result<()> {
        let said = || Ok::<_, anyhow::Error>(self.world.gate.events("granted already for as long")?.len());
        let before = said()?;
        self.link.order(&open(client, "ssh", 1, SETTLER))?;
        wait_for("the end of the orders", LONG, || Ok((said()? > before).then_some(())))
    }
}

/// What a warden makes of an order is the same through both kinds of iptables.
pub(super) const UNLIKE: [Variant; 2] = [Variant::Nft, Variant::Nftables];

/// The address with a long lease, by which it is seen that the warden has come so far.
pub(super) const SETTLER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 77));

pub(super) fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).expect("the machine has booted")
}

pub(super) fn open(client: ClientId, service: &str, window: u32, source: IpAddr) -> Order {
    let services = vec![(service.to_owned(), window)];
    Order::Open { client, services, source, from_port: None, decided: since_boot(), answer: None }
}

/// An order for ssh and ten seconds, for a knock that came at this time since boot.
pub(super) fn opened_at(decided: Duration, client: ClientId, source: IpAddr) -> Order {
    let services = vec![("ssh".to_owned(), 10)];
    Order::Open { client, services, source, from_port: None, decided, answer: None }
}

/// Lines of the warden about refused orders, by reason, with the number that each tells.
pub(super) fn said_refused(gate: &Gate) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut refused = BTreeMap::<_, Vec<_>>::new();
    for event in gate.log()? {
        let message = event["message"].as_str().unwrap_or_default();
        if message.starts_with("the front's order is refused") {
            let reason = event["reason"].as_str().context("a reason")?;
            refused.entry(reason.to_owned()).or_default().push(event["refused"].as_u64().context("a count")?);
        }
    }
    Ok(refused)
}

/// Stops the gate; gives what its warden has counted.
pub(super) fn counted(gate: &mut Gate) -> Result<BTreeMap<String, u64>> {
    gate.signal(Signal::TERM)?;
    let events = gate.wait_for_events("orders of the front", 1)?;
    gate.stop()?;
    let told = events[0]["refused"].as_str().context("counts")?.to_owned();
    told.split(' ')
        .map(|reason| {
            let (name, count) = reason.split_once('=').context("a reason and its count")?;
            Ok((name.to_owned(), count.parse()?))
        })
        .collect()
}

/// Knocks every now and then: a front that is only starting hears nothing.
pub(super) fn knock_until_open(world: &World) -> Result<()> {
    let door = world.gate.at(Family::V4, SSH);
    wait_for("a knock that opens", LONG, || {
        world.gate.knock(&world.home, &world.alice, Family::V4, &[])?;
        let opens = wait_for("the door", Duration::from_secs(1), || {
            Ok((probe(&world.home, door)? == Seen::Open).then_some(()))
        });
        Ok(opens.ok())
    })
}
