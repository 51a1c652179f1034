//! `postern doctor` against a real gate: it names what is wrong between a client and a door that does not open.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{KNOCK_PORTS, SERVICES, SSH, Settings, Variant};
use postern_tests::nat::{Nat, Ports};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, wait_to_see};
use postern_tests::process::{run, succeed};
use postern_tests::programs;
use postern_tests::wait::LONG;
use serde_json::Value;

use crate::world::World;

/// What doctor found, by id: the level of each finding.
struct Diagnosis {
    code: i32,
    findings: BTreeMap<String, String>,
    text: String,
}

impl Diagnosis {
    fn of(command: Command) -> Result<Self> {
        let finished = run(command, b"", LONG)?;
        let text = finished.text();
        let report: Value =
            serde_json::from_str(&text).with_context(|| format!("{text}{}", finished.stderr))?;
        let findings = report["findings"].as_array().context("findings")?;
        let pair = |finding: &Value| {
            Some((finding["id"].as_str()?.to_owned(), finding["level"].as_str()?.to_owned()))
        };
        let findings = findings.iter().map(pair).collect::<Option<_>>().context("ids and levels")?;
        Ok(Self { code: finished.code, findings, text })
    }

    /// It has found this one fault, and no other.
    fn names(&self, fault: &str) -> Result<()> {
        let faults: Vec<_> =
            self.findings.iter().filter(|(_, level)| *level == "fault").map(|(id, _)| id.as_str()).collect();
        ensure!(faults == [fault] && self.code == 1, "{faults:?}, not {fault}: {}", self.text);
        Ok(())
    }

    fn has(&self, id: &str, level: &str) -> Result<()> {
        ensure!(self.findings.get(id).is_some_and(|is| is == level), "no {level} {id}: {}", self.text);
        Ok(())
    }
}

fn world() -> Result<World> {
    World::running(Settings { variant: Variant::Nftables, window_secs: 60, ..Settings::default() })
}

/// Of alice, from a host, about the gate at these addresses.
fn doctor(world: &World, from: &Host, at: &[IpAddr], arguments: &[&str]) -> Result<Command> {
    let mut command = world.gate.answered_postern(from, &world.alice, Family::V4)?;
    command.env("POSTERN_PROFILE", world.alice.profile(at, &KNOCK_PORTS, &SERVICES, true)?);
    command.args(["--json", "doctor", "-", "ssh", "--timeout", "3"]).args(arguments);
    Ok(command)
}

fn at(world: &World) -> [IpAddr; 1] {
    [world.gate.host().ip(Family::V4)]
}

/// The door shuts behind the diagnosis, and a fresh knock opens it.
fn shuts_and_opens(world: &World) -> Result<()> {
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    world.opens(Family::V4).map(drop)
}

#[test]
fn all_is_well_and_nothing_is_open_afterwards() -> Result<()> {
    let world = world()?;
    for family in Family::ALL {
        let at = world.gate.host().ip(family);
        let found = Diagnosis::of(doctor(&world, &world.home, &[at], &["--exact"])?)?;
        ensure!(found.code == 0, "{}", found.text);
        for id in ["route", "answer", "clock", "nat", "opened", "connection"] {
            found.has(id, "ok")?;
        }
        // It was opened for a moment: the service's own window is twice as long as this waits.
        wait_to_see(&world.home, SocketAddr::new(at, SSH), Seen::Nothing)?;
    }
    shuts_and_opens(&world)
}

#[test]
fn a_wrong_key_and_a_gate_that_is_stopped_are_named() -> Result<()> {
    let mut world = world()?;
    let stranger = world.gate.client("stranger")?;
    let mut command = doctor(&world, &world.home, &at(&world), &[])?;
    command.env("POSTERN_PROFILE", stranger.profile(&at(&world), &KNOCK_PORTS, &SERVICES, true)?);
    Diagnosis::of(command)?.names("wrong-key-or-gate-down")?;

    // The guard stands, and is silent to everybody: nobody can tell the two apart.
    world.gate.stop()?;
    Diagnosis::of(doctor(&world, &world.home, &at(&world), &[])?)?.names("wrong-key-or-gate-down")?;
    // Without it the kernel says that nothing is there.
    world.gate.administer(&["remove"])?;
    Diagnosis::of(doctor(&world, &world.home, &at(&world), &[])?)?.names("gate-down")?;
    world.gate.start(&[])?;
    let found = Diagnosis::of(doctor(&world, &world.home, &at(&world), &[])?)?;
    ensure!(found.code == 0, "{}", found.text);
    Ok(())
}

#[test]
fn answers_that_are_turned_off_at_the_gate_are_named() -> Result<()> {
    let settings =
        Settings { variant: Variant::Nftables, window_secs: 60, answer: false, ..Settings::default() };
    let world = World::running(settings)?;
    // The profile is from before that.
    Diagnosis::of(doctor(&world, &world.home, &at(&world), &[])?)?.names("answers-off")?;
    shuts_and_opens(&world)
}

#[test]
fn a_clock_that_is_off_by_five_minutes_is_named() -> Result<()> {
    let world = world()?;
    for offset in ["-5m", "+5m"] {
        let mut command = doctor(&world, &world.home, &at(&world), &[])?;
        command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1");
        command.envs([("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
        let found = Diagnosis::of(command)?;
        found.names("clock-off")?;
        let says = if offset == "-5m" { "behind the gate's" } else { "ahead of the gate's" };
        ensure!(found.text.contains(says), "{offset}: {}", found.text);
    }
    shuts_and_opens(&world)
}

#[test]
fn udp_that_is_dropped_on_the_way_is_named() -> Result<()> {
    let mut world = world()?;
    let nat = Nat::new(&mut world.network, 20, Ports::Kept)?;
    let [client, _] = &nat.inside;
    let found = Diagnosis::of(doctor(&world, client, &at(&world), &[])?)?;
    ensure!(found.code == 0, "{}", found.text);
    nat.drops_udp()?;
    // As long as it is open from before, nothing could be said of a gate that does not answer.
    wait_to_see(client, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    Diagnosis::of(doctor(&world, client, &at(&world), &[])?)?.names("udp-blocked")?;
    shuts_and_opens(&world)
}

#[test]
fn a_translation_that_leaves_no_exact_grant_is_named() -> Result<()> {
    let mut world = world()?;
    let keeps = Nat::new(&mut world.network, 20, Ports::Kept)?;
    let changes = Nat::new(&mut world.network, 30, Ports::Changed)?;
    for (nat, level) in [(&keeps, "ok"), (&changes, "warning")] {
        let found = Diagnosis::of(doctor(&world, &nat.inside[0], &at(&world), &["--exact"])?)?;
        found.has("nat-ports", level)?;
        ensure!((found.code == 0) == (level == "ok"), "{}", found.text);
        ensure!(found.text.contains(&nat.outside(Family::V4).to_string()), "{}", found.text);
    }
    shuts_and_opens(&world)
}

#[test]
fn a_service_that_the_client_may_not_have_is_named() -> Result<()> {
    let world = world()?;
    let mut command = doctor(&world, &world.home, &at(&world), &["web"])?;
    let mut restricted = world.gate.client("restricted")?;
    let profile = restricted.profile(&at(&world), &KNOCK_PORTS, &SERVICES, true)?;
    restricted.entry.services = vec!["ssh".parse()?];
    world.gate.write_clients(&[&world.alice, &restricted])?;
    world.gate.administer(&["reload"])?;
    command.env("POSTERN_PROFILE", profile);
    Diagnosis::of(command)?.names("service-not-allowed")?;
    shuts_and_opens(&world)
}

#[test]
fn a_dead_address_before_the_living_one_is_named() -> Result<()> {
    let world = world()?;
    let dead: IpAddr = "10.0.9.9".parse()?;
    let [living] = at(&world);
    // By a name, as DNS gives them: the dead one first.
    let mut hosts = world.home.command("sh");
    let script = format!(
        "printf '{dead} gate.test\\n{living} gate.test\\n' > {0}; mount --bind {0} /etc/hosts; shift; exec \"$@\"",
        world.gate.directory().join("hosts").display()
    );
    let profile = world.alice.profile(&[living], &KNOCK_PORTS, &SERVICES, true)?;
    let program = programs::directory()?.join("postern");
    let config = world.gate.directory().join("client.toml");
    let mut import = Command::new(&program);
    import.args(["--config"]).arg(&config).args(["import", "gate", "-", "--address", "gate.test"]);
    succeed(import, profile.as_bytes(), LONG)?;
    hosts.args(["-ec", &script, "sh", "-"]).arg(&program).arg("--config").arg(&config);
    hosts.args(["--json", "doctor", "gate", "ssh", "--timeout", "3"]);
    let found = Diagnosis::of(hosts)?;
    found.has("dead-address", "warning")?;
    found.has("connection", "ok")?;
    ensure!(found.text.contains(&format!("{dead} does not answer, {living} does")), "{}", found.text);
    shuts_and_opens(&world)
}
