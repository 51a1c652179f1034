//! What an administrator asks of the running gate over its socket: status, list, revoke, reload. Who may not ask
//! gets no answer, and who dawdles there keeps nobody waiting.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Group, User};
use postern_tests::gate::{GROUP, Gate, SSH, Settings, USER, Variant};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::{Finished, run, succeed};
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};
use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use serde_json::Value;

use crate::neighbours::at_once;
use crate::world::{World, grants, refuses};

#[test]
fn status_and_list_tell_what_the_gate_does() -> Result<()> {
    let world = World::running(Settings { window_secs: 60, ..Settings::default() })?;
    let gate = &world.gate;
    ensure!(ask(gate, &["list"])? == Value::Array(vec![]), "nobody is let in yet");
    world.opens(Family::V4)?;
    refuses(gate, "replayed", || {
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        grants(gate, || world.send(&world.stranger, Family::V6, &knock))?;
        world.send(&world.stranger, Family::V6, &knock)
    })?;

    let leases = ask(gate, &["list"])?;
    let rows = leases.as_array().context("a list")?;
    ensure!(rows.len() == 2, "{leases}");
    for (row, source) in rows.iter().zip([world.home.ip(Family::V4), world.stranger.ip(Family::V6)]) {
        ensure!(row["client"] == "alice" && row["service"] == "ssh", "{row}");
        ensure!(row["source"] == source.to_string() && row["ports"][0] == "22/tcp", "{row}");
        ensure!((1..=60).contains(&row["left-secs"].as_u64().unwrap_or(0)), "{row}");
    }
    // What the front has counted is known a moment later. `postern` makes a knock for each of the two ports.
    let status = wait_for("the counters", LONG, || {
        let status = ask(gate, &["status"])?;
        Ok((status["packets"]["received"] == 4).then_some(status))
    })?;
    ensure!(status["leases"] == 2 && status["watched"][0] == "any", "{status}");
    ensure!(status["packets"]["accepted"] == 3 && status["packets"]["refused"]["replayed"] == 1, "{status}");
    let text = gate.administer(&["status"])?.text();
    ensure!(text.contains("refused     1 replayed: this knock was seen before"), "{text}");
    let text = gate.administer(&["list"])?.text();
    ensure!(text.lines().count() == 3 && text.starts_with("LEASE"), "{text}");
    Ok(())
}

#[test]
fn revoked_is_shut_at_once_and_nobody_else_is() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, window_secs: 60, ..Settings::default() })?;
        let gate = &world.gate;
        let door = |family| gate.at(family, SSH);
        let lease_of = |source: String| -> Result<String> {
            let leases = ask(gate, &["list"])?;
            let row = leases.as_array().and_then(|rows| rows.iter().find(|row| row["source"] == source));
            Ok(row.and_then(|row| row["lease"].as_str()).context("a lease for this source")?.to_owned())
        };
        for by in ["lease", "client", "address", "all"] {
            world.opens(Family::V4)?;
            world.opens(Family::V6)?;
            let v4 = world.home.ip(Family::V4).to_string();
            let (which, spares_v6) = match by {
                "lease" => (lease_of(v4)?, true),
                "address" => (v4, true),
                "client" => ("alice".to_owned(), false),
                _ => ("all".to_owned(), false),
            };
            let revoked = ask(gate, &["revoke", &which])?;
            let expected = if spares_v6 { 1 } else { 2 };
            ensure!(revoked.as_array().is_some_and(|rows| rows.len() == expected), "{by}: {revoked}");
            ensure!(
                probe(&world.home, door(Family::V4))? == Seen::Nothing,
                "{by}: open after it was revoked"
            );
            let v6 = if spares_v6 { Seen::Open } else { Seen::Nothing };
            ensure!(probe(&world.home, door(Family::V6))? == v6, "{by}: the other lease");
            ask(gate, &["revoke", "all"])?;
        }
        let nothing = gate.attempt(&["revoke", "no such thing"])?;
        ensure!(
            nothing.code == 1 && nothing.stderr.contains("no lease, client or address"),
            "{}",
            nothing.stderr
        );
        world.opens(Family::V4).map(drop)
    })
    .map(drop)
}

#[test]
fn a_client_that_is_disabled_is_shut_out_at_once() -> Result<()> {
    let world = World::running(Settings { window_secs: 60, ..Settings::default() })?;
    world.opens(Family::V4)?;
    world.gate.administer(&["client", "disable", "alice"])?;
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    world.gate.administer(&["client", "enable", "alice"])?;
    world.opens(Family::V4).map(drop)
}

#[test]
fn a_reload_says_what_is_wrong_and_changes_nothing() -> Result<()> {
    let world = World::running(Settings { window_secs: 60, ..Settings::default() })?;
    let gate = &world.gate;
    world.opens(Family::V4)?;
    let good = fs::read_to_string(gate.config())?;
    fs::write(gate.config(), good.replace("22/tcp", "22/tcpp"))?;
    let refused = gate.attempt(&["reload"])?;
    ensure!(
        refused.code == 1 && refused.stderr.contains("ports: a port is a number"),
        "{} {}",
        refused.code,
        refused.stderr
    );
    ensure!(probe(&world.home, gate.at(Family::V4, SSH))? == Seen::Open, "the lease lives on");
    fs::write(gate.config(), good)?;
    ensure!(gate.administer(&["reload"])?.text() == "reloaded\n", "reloaded");
    ensure!(probe(&world.home, gate.at(Family::V4, SSH))? == Seen::Open, "the lease lives on");
    world.opens(Family::V6).map(drop)
}

#[test]
fn only_root_and_the_group_may_ask() -> Result<()> {
    let mut world = World::running(Settings::default())?;
    let socket = socket(&world.gate);
    let metadata = fs::metadata(&socket)?;
    let group = Group::from_name(GROUP)?.context("the group is there")?.gid;
    assert_eq!(
        (metadata.permissions().mode() & 0o777, metadata.uid(), metadata.gid()),
        (0o660, 0, group.as_raw())
    );
    let user = User::from_name(USER)?.context("the user is there")?;
    // Where the programs are built need not be a place that everybody may look into.
    let posternd = world.gate.directory().join("posternd");
    // Copied by another process: a program that was started here meanwhile would hold the copy open, and busy.
    let mut copy = Command::new("cp");
    copy.arg(programs::directory()?.join("posternd")).arg(&posternd);
    succeed(copy, b"", LONG)?;
    let asks = |gid: u32| -> Result<Finished> {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={}", user.uid), &format!("--regid={gid}"), "--clear-groups"]);
        command.arg(&posternd);
        command.args(["status", "--socket"]).arg(&socket);
        run(command, b"", LONG)
    };
    let stranger = asks(user.gid.as_raw())?;
    ensure!(
        stranger.code == 1 && stranger.stderr.contains("only root, and the group"),
        "{}",
        stranger.stderr
    );
    let member = asks(group.as_raw())?;
    ensure!(member.code == 0 && member.text().contains("guard       up"), "{}", member.stderr);

    world.gate.stop()?;
    ensure!(!socket.exists(), "the socket goes with the gate");
    let nobody = world.gate.attempt(&["status"])?;
    ensure!(nobody.code == 1 && nobody.stderr.contains("is posternd running?"), "{}", nobody.stderr);
    world.gate.start(&[])?;
    world.opens(Family::V4).map(drop)
}

/// A member of the group that takes every connection there is, and says nothing; junk of each kind.
#[test]
fn who_dawdles_keeps_nobody_waiting() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.shuts_on_time(world.opens(Family::V4)?)?;
    let connect = || UnixStream::connect(socket(&world.gate));
    let silent = connections_of_a_member(&world.gate, 64)?;
    ensure!(silent.len() == 64, "{} connections", silent.len());
    ask(&world.gate, &["status"])?;
    ask(&world.gate, &["reload"])?;
    world.shuts_on_time(world.opens(Family::V4)?)?;
    drop(silent);

    let mut long = connect()?;
    long.set_read_timeout(Some(LONG))?;
    let mut answer = String::new();
    // It may be cut off before all of it is sent.
    let sent = long.write_all(&vec![b'x'; 1 << 20]);
    match long.read_to_string(&mut answer) {
        Ok(_) => ensure!(answer.is_empty() || answer.contains("not understood"), "{answer}"),
        Err(error) => ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}"),
    }
    ensure!(sent.is_err() || !answer.is_empty(), "a request of a megabyte was taken");
    for junk in ["\n", "{}\n", "\"Status\"\n", "{\"revoke\":5}\n", "\u{0}\u{1}\n"] {
        let mut stream = connect()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(junk.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains("not understood"), "{junk:?}: {answer}");
    }
    world.opens(Family::V4).map(drop)
}

/// Connections of somebody who may ask and is not root.
fn connections_of_a_member(gate: &Gate, count: usize) -> Result<Vec<UnixStream>> {
    let user = User::from_name(USER)?.context("the user is there")?.uid;
    let group = Group::from_name(GROUP)?.context("the group is there")?.gid;
    let socket = socket(gate);
    // The identity is this thread's alone, and ends with it.
    let connects = move || {
        let (uid, gid) = (Uid::from_raw(user.as_raw()), Gid::from_raw(group.as_raw()));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        (0..count).map(|_| Ok(UnixStream::connect(&socket)?)).collect()
    };
    thread::spawn(connects).join().ok().context("the thread")?
}

#[test]
fn what_each_process_holds_is_printed() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.opens(Family::V4)?;
    let text = world.gate.administer(&["check", "--privileges"])?.text();
    let user = User::from_name(USER)?.context("the user is there")?.uid.to_string();
    let line =
        |name: &str| text.lines().find(|line| line.contains(name)).context(format!("{name} in:\n{text}"));
    let front: Vec<_> = line("postern-front")?.split_whitespace().collect();
    ensure!(front[2] == user && front[4..] == ["yes", "yes", "none"], "{text}");
    let warden: Vec<_> = line("postern-warden")?.split_whitespace().collect();
    ensure!(warden[2] == user && warden[4..] == ["yes", "yes", "CAP_NET_ADMIN"], "{text}");
    Ok(())
}

/// Asks for JSON.
fn ask(gate: &Gate, arguments: &[&str]) -> Result<Value> {
    let text = gate.administer(&[arguments, &["--json"]].concat())?.text();
    serde_json::from_str(&text).context(text)
}

fn socket(gate: &Gate) -> PathBuf {
    gate.directory().join("admin.sock")
}
