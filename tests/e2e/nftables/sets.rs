//! The sets with very many elements: none is lost, and what does not fit is refused and said.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe};
use postern_tests::wait::{LONG, wait_for};
use serde_json::Value;

use super::{HEALED, SETTINGS};
use crate::crowd::Crowd;
use crate::world::World;

const LASTING: Settings = Settings { window_secs: 600, log: "info", ..SETTINGS };

fn ask(gate: &Gate, command: &str) -> Result<Value> {
    let text = gate.administer(&[command, "--json"])?.text();
    serde_json::from_str(&text).context(text)
}

/// How many leases the gate has.
fn live(gate: &Gate) -> Result<usize> {
    Ok(usize::try_from(ask(gate, "status")?["leases"].as_u64().context("a number")?)?)
}

/// Every lease: its number, and whose it is.
fn leases(gate: &Gate) -> Result<BTreeMap<String, String>> {
    let listed = ask(gate, "list")?;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let rows = listed.as_array().context("a list")?.iter();
    Ok(rows.map(|row| (text(row, "lease"), text(row, "source"))).collect())
}

#[test]
fn thousands_of_leases_are_adopted_and_none_is_lost() -> Result<()> {
    const LEASES: u16 = 5_000;
    /// The kernel's ring has room for them.
    const AT_ONCE: usize = 200;
    let mut world = World::new(LASTING)?;
    world.listen(&[SSH])?;
    let mut crowd = Crowd::join(&mut world, LEASES + 1)?;
    world.alice.entry.max_leases = Some(u32::from(LEASES));
    world.gate.write_clients(&[&world.alice])?;
    world.gate.start(&[])?;
    let begun = Instant::now();
    let mut everybody = Vec::new();
    while everybody.len() < usize::from(LEASES) {
        let mut knocks = Vec::new();
        for family in Family::ALL.into_iter().cycle().take(AT_ONCE) {
            knocks.push((crowd.address(family)?, world.alice.seal(&world.alice.asks_for("ssh")?)));
        }
        crowd.send_all(&knocks, &world.gate, KNOCK_PORTS[0])?;
        everybody.extend(knocks.into_iter().map(|(from, _)| from));
        let granted = || Ok((live(&world.gate)? == everybody.len()).then_some(()));
        wait_for("as many leases as knocks", LONG, granted)?;
    }
    let opened = begun.elapsed();

    let before = leases(&world.gate)?;
    ensure!(before.len() == usize::from(LEASES), "{} leases", before.len());
    world.gate.kill()?;
    let begun = Instant::now();
    world.gate.start(&[])?;
    println!("{LEASES} leases within {opened:?}, adopted within {:?}", begun.elapsed());
    assert_eq!(leases(&world.gate)?, before, "adopted");
    for set in ["grants_ipv4", "grants_ipv6", "leases_ipv4", "leases_ipv6"] {
        assert_eq!(world.gate.elements(set)?.len(), usize::from(LEASES) / 2, "{set}");
    }
    for family in Family::ALL {
        let some: Vec<_> =
            everybody.iter().copied().filter(|from| Family::of(*from) == family).step_by(25).collect();
        let open = crowd.to_whom_is_open(&some, world.gate.at(family, SSH))?;
        assert_eq!(open, some, "to whom it is open");
        assert_eq!(probe(&world.stranger, world.gate.at(family, SSH))?, Seen::Nothing);
    }
    assert_eq!(world.gate.events(HEALED)?, Vec::<Value>::new());
    world.gate.administer(&["revoke", "all"])?;
    for set in ["grants_ipv4", "grants_ipv6", "leases_ipv4", "leases_ipv6"] {
        wait_for(set, LONG, || Ok(world.gate.elements(set)?.is_empty().then_some(())))?;
    }
    world.opens(Family::V4).map(drop)
}

/// Leases of thousands of ports each: the kernel takes 131,072 elements of a kind, and not one more.
#[test]
fn a_full_set_refuses_and_nothing_else_is_lost() -> Result<()> {
    const PORTS: u16 = 4_096;
    const LEASES: usize = 131_072 / PORTS as usize;
    let mut world = World::new(LASTING)?;
    world.listen(&[SSH])?;
    let mut crowd = Crowd::join(&mut world, 60)?;
    let mut many = "\"22/tcp\"".to_owned();
    for port in 20_001..20_000 + PORTS {
        write!(many, ", \"{port}/tcp\"")?;
    }
    world.gate.edit(&world.gate.config(), "\"22/tcp\"", &many)?;
    world.alice.entry.max_leases = Some(1_000);
    world.gate.write_clients(&[&world.alice])?;
    world.gate.start(&[])?;
    let gate = &world.gate;
    let (door, knock) =
        (gate.at(Family::V4, SSH), || world.alice.asks_for("ssh").map(|ask| world.alice.seal(&ask)));
    let mut in_it = Vec::new();
    for number in 1..=LEASES {
        let from = crowd.address(Family::V4)?;
        crowd.send(from, gate, KNOCK_PORTS[0], &knock()?)?;
        wait_for("one more lease", LONG, || Ok((live(gate)? == number).then_some(())))?;
        in_it.push(from);
    }

    let late = crowd.address(Family::V4)?;
    crowd.send(late, gate, KNOCK_PORTS[0], &knock()?)?;
    let refused = gate.wait_for_events("not granted: the firewall failed", 1)?;
    ensure!(refused[0]["error"].as_str().is_some_and(|error| error.contains("a set is full")), "{refused:?}");
    ensure!(live(gate)? == LEASES, "it is no lease");
    assert_eq!(crowd.sees(late, door)?, Seen::Nothing);
    assert_eq!(crowd.to_whom_is_open(&in_it, door)?, in_it, "nobody is put out");
    // The other family has sets of its own.
    world.opens(Family::V6)?;

    gate.administer(&["revoke", &in_it[0].to_string()])?;
    crowd.is_to_see(in_it[0], door, Seen::Nothing)?;
    crowd.send(late, gate, KNOCK_PORTS[0], &knock()?)?;
    crowd.is_to_see(late, door, Seen::Open)?;
    assert_eq!(crowd.to_whom_is_open(&in_it, door)?, in_it[1..], "but for one that was revoked");
    assert_eq!(gate.events(HEALED)?, Vec::<Value>::new());
    Ok(())
}
