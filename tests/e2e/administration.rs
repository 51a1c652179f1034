//! What an administrator does besides `run`: set a gate up, manage its clients, explain a capture, take all away.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{KeyFile, Payload, Profile};
use postern_tests::capture::{Capture, Direction};
use postern_tests::gate::{Gate, SSH, Settings, USER, Variant};
use postern_tests::knocks::{Client, now, random};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use crate::neighbours::at_once;
use crate::world::{World, grants, refuses};

#[test]
fn remove_leaves_the_firewall_as_it_was() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        for family in Family::ALL {
            for rule in [
                "-A INPUT -p tcp --dport 9 -j DROP",
                "-N other",
                "-A other -j RETURN",
                "-A INPUT -j other",
                "-A FORWARD -j DROP",
            ] {
                let mut command = world.gate.firewall(family, "");
                command.args(["-w"]).args(rule.split(' '));
                succeed(command, b"", LONG)?;
            }
        }
        let before = whole_firewall(&world.gate)?;
        world.gate.start(&[])?;
        world.opens(Family::V4)?;
        ensure!(whole_firewall(&world.gate)? != before, "posternd runs, and the firewall is as before");
        world.gate.stop()?;
        world.gate.administer(&["remove"])?;
        assert_eq!(whole_firewall(&world.gate)?, before);
        world.gate.start(&[])?;
        world.opens(Family::V6).map(drop)
    })
    .map(drop)
}

/// Both filter tables, and everything of nftables without counters.
fn whole_firewall(gate: &Gate) -> Result<[String; 3]> {
    let ruleset = gate.nft(&["--stateless", "list", "ruleset"])?;
    Ok([gate.saved(Family::V4)?, gate.saved(Family::V6)?, ruleset])
}

#[test]
fn clients_come_and_go_while_the_gate_runs() -> Result<()> {
    let world = World::running(Settings::default())?;
    let gate = &world.gate;
    world.shuts_on_time(world.opens(Family::V4)?)?;

    let added =
        gate.administer(&["client", "add", "bob", "--service", "ssh", "--address", "10.0.0.1"])?.text();
    ensure!(added.lines().count() == 1, "nothing but the profile: {added:?}");
    let profile = Profile::from_line(&added)?;
    let keys = KeyFile::parse(&fs::read_to_string(gate.directory().join("keys"))?)?;
    let entry =
        keys.clients().iter().find(|client| client.name.as_str() == "bob").context("bob in the key file")?;
    ensure!(entry.id == profile.client && entry.secret == profile.secret, "the profile is the entry's");
    let bob = Client::at(gate.id(), entry.clone());
    let listed = gate.administer(&["client", "list"])?.text();
    ensure!(listed.contains("alice") && listed.contains("bob"), "{listed}");
    ensure!(!listed.contains(&**bob.entry.secret.to_text()), "the list holds a secret");

    let knock = || Ok::<_, anyhow::Error>(bob.seal(&bob.asks_for("ssh")?));
    opens_for(&world, &bob)?;
    for (command, welcome) in [("disable", false), ("enable", true), ("remove", false)] {
        gate.administer(&["client", command, "bob"])?;
        if welcome {
            opens_for(&world, &bob)?;
        } else {
            refuses(gate, "unknown", || world.send(&world.home, Family::V4, &knock()?))?;
        }
    }
    world.opens(Family::V4).map(drop)
}

fn opens_for(world: &World, client: &Client) -> Result<()> {
    grants(&world.gate, || world.send(&world.home, Family::V4, &client.seal(&client.asks_for("ssh")?)))?;
    let door = world.gate.at(Family::V4, SSH);
    wait_to_see(&world.home, door, Seen::Open)?;
    wait_to_see(&world.home, door, Seen::Nothing)
}

#[test]
fn explain_tells_what_became_of_each_packet() -> Result<()> {
    let world = World::running(Settings::default())?;
    let capture = Capture::start(world.gate.host(), Direction::In, "udp")?;
    let good = world.alice.seal(&world.alice.asks_for("ssh")?);
    let slow = Payload { at: now().before(Duration::from_hours(3)), ..world.alice.asks_for("ssh")? };
    let knocks = [good, good, random(), world.alice.seal(&slow)];
    for knock in &knocks {
        world.send(&world.home, Family::V4, knock)?;
    }
    capture.wait_for("the knocks", |packets| packets.len() >= knocks.len())?;
    let file = world.gate.directory().join("knocks.pcap");
    capture.save(&file)?;
    capture.finish()?;

    let told = world.gate.administer(&["explain", &file.display().to_string()])?.text();
    let lines: Vec<_> = told.lines().filter(|line| line.contains("10.0.0.2")).collect();
    for (line, words) in lines.iter().zip([
        &["accepted", "alice"][..],
        &["replayed", "alice"],
        &["unknown"],
        &["unknown", "alice", "its clock is 3h"],
    ]) {
        ensure!(words.iter().all(|word| line.contains(word)), "no {words:?} in {line:?}");
    }
    assert_eq!(lines.len(), knocks.len(), "{told}");
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    world.opens(Family::V4).map(drop)
}

/// `posternd status | head -1` is no mistake; a list that is not whole for want of room is one.
#[test]
fn whoever_reads_may_go_and_a_full_disk_is_a_failure() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.opens(Family::V4)?;
    for arguments in [
        &["check"][..],
        &["check", "--privileges"],
        &["status"],
        &["status", "--json"],
        &["list"],
        &["client", "list"],
        &["sequence", "new", "--count", "3"],
        &["sequence", "new", "--rolling"],
        &["rules", "recent", "--sequence", "7000,8000", "--port", "22/tcp"],
    ] {
        let printed_to = |stdout: Stdio| -> Result<_> {
            let printed = world.gate.posternd(arguments)?.stdout(stdout).output()?;
            Ok((printed.status.code(), String::from_utf8(printed.stderr)?))
        };
        let (_, nobody) = io::pipe()?;
        assert_eq!(printed_to(nobody.into())?, (Some(0), String::new()), "{arguments:?}");
        let (code, said) = printed_to(OpenOptions::new().write(true).open("/dev/full")?.into())?;
        ensure!(
            code == Some(1) && said.starts_with("posternd: cannot print: No space left"),
            "{arguments:?}: {code:?}: {said}"
        );
    }
    Ok(())
}

/// From nothing to an open door, by commands alone, with the configuration that `init` writes.
#[test]
fn init_makes_a_gate_that_works() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let (config, keys) = (world.gate.config(), world.gate.directory().join("keys"));
    for file in [&config, &keys] {
        fs::remove_file(file)?;
    }
    world.gate.administer(&["init", "--address", "10.0.0.1"])?;
    for file in [&config, &keys] {
        assert_eq!(fs::metadata(file)?.permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let written = fs::read_to_string(&config)?;
    ensure!(
        world.gate.attempt(&["init"])?.code == 1 && fs::read_to_string(&config)? == written,
        "overwritten"
    );

    // Nothing but its user and its places: those it has by itself are the machine's.
    let state = format!("[gate]\nstate = \"{}\"\n", world.gate.directory().join("state").display());
    let written = written
        .replacen("[gate]\n", &state, 1)
        .replace("#user = \"postern\"", &format!("user = \"{USER}\""))
        .replace("#socket = \"/run/postern/admin.sock\"", "socket = \"admin.sock\"");
    fs::write(&config, written)?;
    world.gate.administer(&["check"])?;
    let profile = world.gate.administer(&["client", "add", "carol", "--service", "ssh"])?.text();
    world.gate.start(&[])?;
    let door = world.gate.at(Family::V4, SSH);
    ensure!(probe(&world.home, door)? == Seen::Nothing, "shut before the knock");
    let mut knock = world.gate.postern(&world.home, &world.alice, Family::V4)?;
    knock.env("POSTERN_PROFILE", profile.trim()).args(["knock", "-", "--wait", "10"]);
    succeed(knock, b"", LONG)?;
    ensure!(probe(&world.home, door)? == Seen::Open, "--wait has waited for it");
    Ok(())
}
