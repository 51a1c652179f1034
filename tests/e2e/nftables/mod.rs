//! What is particular to the table of nftables: what others do to it is healed, what the gate does itself is not taken for
//! that, leases live through a change of backend, and a port that is led elsewhere is guarded as well.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, Role, SSH, Settings, Variant, WEB};
use postern_tests::netns::{Family, Host, ip_of};
use postern_tests::probe::{Seen, probe, udp, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::wait::{LONG, wait_for};

use crate::world::World;

mod faults;
mod forwarding;
mod sets;

const HEALED: &str = "the firewall was not as the gate left it: restored";
const LIMIT: Duration = Duration::from_secs(2);

const SETTINGS: Settings = Settings { variant: Variant::Nftables, window_secs: 4, ..Settings::DEFAULT };

fn nft(gate: &Gate, script: &str) -> Result<String> {
    gate.nft(&[script])
}

#[test]
fn heals_after_each_deed() -> Result<()> {
    for family in Family::ALL {
        // A gate of its own: one says no more than ten times in a row that it healed something.
        let world = World::running(SETTINGS)?;
        let (gate, door) = (&world.gate, world.gate.at(family, SSH));
        for (deed, wrong) in [
            ("flush ruleset", "table"),
            ("delete table inet postern", "table"),
            ("flush chain inet postern doors", "table"),
            ("insert rule inet postern doors accept", "table"),
            ("flush set inet postern ports", "guard"),
            ("add element inet postern grants_ipv4 { 10.0.0.3 . tcp . 22 timeout 1h }", "grants"),
            ("add element inet postern grants_ipv6 { fd00::3 . tcp . 22 timeout 1h }", "grants"),
            ("flush set inet postern leases_ipv4; flush set inet postern leases_ipv6", "grants"),
        ] {
            let opened = world.opens(family)?;
            let before = gate.events(HEALED)?.len();
            nft(gate, deed)?;
            let begun = Instant::now();
            let said = gate.wait_for_events(HEALED, before + 1).context(deed)?;
            ensure!(begun.elapsed() <= LIMIT, "{deed}: healed after {:?}", begun.elapsed());
            ensure!(
                said[before]["wrong"].as_str().is_some_and(|said| said.contains(wrong)),
                "{deed}: {said:?}"
            );
            assert_eq!(probe(&world.stranger, door)?, Seen::Nothing, "{deed}: the guard stands");
            assert_eq!(probe(&world.home, door)?, Seen::Open, "{deed}: the lease lives");
            world.shuts_on_time(opened).context(deed)?;
        }
    }
    Ok(())
}

#[test]
fn what_the_gate_does_itself_is_no_damage() -> Result<()> {
    const NUMBERS: std::ops::Range<u16> = 1000..1020;
    let mut world = World::new(Settings { window_secs: 1, ..SETTINGS })?;
    world.listen(&[SSH])?;
    let farm = world.network.host(NUMBERS)?;
    world.gate.start(&[])?;
    let gate = &world.gate;
    for family in Family::ALL {
        for round in 0..5 {
            for number in NUMBERS {
                let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
                udp(&farm, ip_of(number, family))?.send_to(&knock, gate.at(family, KNOCK_PORTS[0]))?;
            }
            gate.wait_for_events("granted", (round + 1) * 8)?;
            gate.wait_for_events("ended", round * 4)?;
            gate.reload()?;
        }
    }
    let all_ended = || Ok((!nft(gate, "list table inet postern")?.contains("expires")).then_some(()));
    wait_for("the end of every lease", LONG, all_ended)?;
    // Another one's table, which is none of the gate's business; what is noticed is looked at before a second is over.
    nft(gate, "add table inet others")?;
    world.opens(Family::V4)?;
    assert_eq!(gate.events(HEALED)?, Vec::<serde_json::Value>::new());
    assert_eq!(programs_run(gate)?, 0, "nothing is run");
    Ok(())
}

/// Page faults of the programs that the warden has run: there is none without any.
fn programs_run(gate: &Gate) -> Result<u64> {
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", gate.wait_for_pid(Role::Warden, &[])?.as_raw_nonzero()))?;
    let (_, fields) = stat.rsplit_once(") ").context("a name in stat")?;
    // `cminflt` in proc(5), counted from behind the name.
    Ok(fields.split(' ').nth(8).context("cminflt")?.parse()?)
}

#[test]
fn two_clients_behind_one_address_share_an_entry() -> Result<()> {
    let mut world = World::running(Settings { window_secs: 60, ..SETTINGS })?;
    let bob = world.gate.client("bob")?;
    world.gate.write_clients(&[&world.alice, &bob])?;
    world.gate.reload()?;
    for family in Family::ALL {
        let door = world.gate.at(family, SSH);
        world.opens(family)?;
        world.gate.knock(&world.home, &bob, family, &[])?;
        wait_for("bob's lease", LONG, || {
            Ok(world.gate.administer(&["list"])?.text().contains("bob").then_some(()))
        })?;
        world.gate.kill()?;
        world.gate.start(&[])?;
        let listed = world.gate.administer(&["list"])?.text();
        ensure!(listed.contains("alice") && listed.contains("bob"), "adopted: {listed}");
        world.gate.administer(&["revoke", "alice"])?;
        assert_eq!(probe(&world.home, door)?, Seen::Open, "bob's lease holds it");
        world.gate.administer(&["revoke", "bob"])?;
        assert_eq!(probe(&world.home, door)?, Seen::Nothing, "and nobody else's");
    }
    world.opens(Family::V4).map(drop)
}

#[test]
fn leases_live_through_a_change_of_backend() -> Result<()> {
    let mut world = World::running(Settings { variant: Variant::Nft, window_secs: 60, ..SETTINGS })?;
    let door = world.gate.at(Family::V4, SSH);
    world.opens(Family::V4)?;
    for (variant, ours) in [(Variant::Nftables, true), (Variant::Legacy, false), (Variant::Nftables, true)] {
        world.gate.configure(Settings { variant, window_secs: 60, ..SETTINGS })?;
        world.gate.administer(&["reload"])?;
        wait_for("the guard in its new place", LONG, || {
            let table = nft(&world.gate, "list tables")?.contains("table inet postern");
            Ok((table == ours).then_some(()))
        })?;
        assert_eq!(probe(&world.home, door)?, Seen::Open, "{variant:?}: the lease lives");
        assert_eq!(probe(&world.stranger, door)?, Seen::Nothing, "{variant:?}: the guard stands");
    }
    ensure!(!world.gate.saved(Family::V4)?.contains("POSTERN"), "the old guard is gone");
    world.gate.stop()?;
    world.gate.administer(&["remove"])?;
    ensure!(!nft(&world.gate, "list tables")?.contains("postern"), "removed");
    wait_to_see(&world.stranger, door, Seen::Open)
}

#[test]
fn a_port_that_is_led_elsewhere_is_guarded() -> Result<()> {
    const BEHIND: u16 = 2222;
    let mut world = World::new(SETTINGS)?;
    world.listen(&[BEHIND, WEB])?;
    nft(
        &world.gate,
        &format!(
            "table inet published {{ chain nat {{ type nat hook prerouting priority dstnat; \
             tcp dport {SSH} redirect to :{BEHIND}; tcp dport 9000 redirect to :{WEB}; }}; }}"
        ),
    )?;
    world.gate.start(&[])?;
    for family in Family::ALL {
        let opened = world.opens(family)?;
        assert_eq!(probe(&world.stranger, world.gate.at(family, SSH))?, Seen::Nothing);
        assert_eq!(probe(&world.home, world.gate.at(family, 9000))?, Seen::Nothing, "led to a guarded one");
        world.shuts_on_time(opened)?;
    }
    Ok(())
}

/// Whoever prints or saves the table gets what can be loaded again, and what `check` shows is that very table.
#[test]
fn nft_reads_the_table_and_what_check_shows_of_it() -> Result<()> {
    for family in Family::ALL {
        let settings = Settings { always_allow: &["10.0.9.0/24", "fd00::900/120"], ..SETTINGS };
        let world = World::running(settings)?;
        // Its lines are indented.
        let told = world.gate.administer(&["check"])?.text();
        let shown: String =
            told.lines().filter_map(|line| Some(line.strip_prefix("  ")?.to_owned() + "\n")).collect();
        let listed = nft(&world.gate, "list table inet postern")?;
        for chain in ["refuse", "knocks", "doors", "prerouting", "input"] {
            ensure!(listed.contains(&format!("\tchain {chain} {{\n")), "no {chain} in\n{listed}");
        }
        ensure!(loaded(&world.stranger, &shown)? == listed, "{shown}\n{listed}");
        world.opens(family)?;
        let listed = nft(&world.gate, "list table inet postern")?;
        ensure!(listed.contains("alice:ssh:"), "the lease is in it: {listed}");
        loaded(&world.home, &listed)?;
    }
    Ok(())
}

/// Loads a ruleset on a host without any, and gives it as it is listed there.
fn loaded(host: &Host, ruleset: &str) -> Result<String> {
    let mut nft = host.command("nft");
    nft.args(["-f", "-"]);
    succeed(nft, ruleset.as_bytes(), LONG)?;
    let mut nft = host.command("nft");
    nft.args(["list", "ruleset"]);
    Ok(succeed(nft, b"", LONG)?.text())
}
