//! Commands that follow leases: run once for each, told whose it is, and the one for the end whatever happens.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, Source};
use postern_tests::gate::{Role, SSH, Settings};
use postern_tests::knocks::Client;
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::seed::seeded;
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

use crate::world::{World, grants};

const V4: Family = Family::V4;

/// Leases whose end is looked for.
const LEASES: u16 = 1_000;
/// Commands that may run at a time.
const AT_ONCE: usize = 16;

#[test]
fn a_lease_has_its_commands_once_and_they_know_whose_it_is() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    let told = r#"echo "$0 $1 $POSTERN_ADDRESS $POSTERN_CLIENT $POSTERN_SERVICE $POSTERN_PORTS $#" >> "#;
    let line = |when: &str| command(&format!("{told}{}", log(&world).display()), &[when, "%IP%"]);
    let commands = format!("[services.ssh]\non-open = {}\non-close = {}\n", line("open"), line("close"));
    world.gate.edit(&world.gate.config(), "[services.ssh]\n", &commands)?;
    world.listen(&[SSH])?;
    world.gate.start(&[])?;

    world.opens(V4)?;
    let about = |when: &str, address: IpAddr| format!("{when} {address} {address} alice ssh 22/tcp 1");
    let (v4, v6) = (world.home.ip(V4), world.home.ip(Family::V6));
    assert_eq!(wait_for_lines(&world, 1)?, [about("open", v4)]);
    // A renewal is no other lease.
    grants(&world.gate, || world.gate.knock(&world.home, &world.alice, V4, &[]))?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    assert_eq!(wait_for_lines(&world, 2)?, [about("open", v4), about("close", v4)]);

    // An end that is sooner than planned, and another address family.
    world.opens(Family::V6)?;
    wait_for_lines(&world, 3)?;
    world.gate.administer(&["revoke", "all"])?;
    assert_eq!(wait_for_lines(&world, 4)?[2..], [about("open", v6), about("close", v6)]);

    // When the gate stops, nobody would be there to end what is open; its window is the kernel's to end.
    world.opens(V4)?;
    world.gate.stop()?;
    assert_eq!(lines_of(&world)?[4..], [about("open", v4), about("close", v4)]);
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    world.gate.start(&[])?;
    world.opens(V4).map(drop)
}

/// Each of them is ended, though the runner and all others are killed again and again. A command is run once more only
/// if the runner died while it ran, or before it was struck out.
#[test]
fn every_lease_is_ended_whatever_is_killed() -> Result<()> {
    let mut rng = seeded()?;
    let (mut world, bob) = with_door("10s", "0.02")?;
    let mut kills = 0;
    let mut numbers = 0..;
    // Knocks that come while nobody is there, or whose gate is killed, are lost.
    while kills < 10 || known(&lines_of(&world)?).len() < usize::from(LEASES) {
        for number in numbers.by_ref().take(100) {
            knock_for(&world, &bob, number)?;
        }
        thread::sleep(Duration::from_millis(rng.u64(0..300)));
        match rng.u8(0..3) {
            0 => drop(world.gate.kill_one(Role::Runner)?),
            1 => {
                world.gate.kill()?;
                world.gate.start(&[])?;
            }
            _ => continue,
        }
        kills += 1;
        world.gate.wait_for_pid(Role::Runner, &[])?;
    }
    // The log of a gate that was killed is gone; what its leases ran is not.
    let never_ended = |lines: &[String]| {
        let ended = addresses(lines, "closed");
        addresses(lines, "open").into_iter().filter(|address| !ended.contains(address)).count()
    };
    wait_for("every end", 4 * LONG, || {
        let before = lines_of(&world)?;
        thread::sleep(Duration::from_secs(2));
        let lines = lines_of(&world)?;
        Ok((never_ended(&lines) == 0 && lines.len() == before.len()).then_some(()))
    })?;

    let lines = lines_of(&world)?;
    let (begun, ended) = (addresses(&lines, "open"), addresses(&lines, "closed"));
    let again = lines.iter().filter(|line| line.starts_with("closed ")).count() - ended.len();
    println!("{} opened, {} ended, {again} runs too many, {kills} kills", begun.len(), ended.len());
    ensure!(begun.len() > 100, "only {} opened", begun.len());
    ensure!(again <= kills * AT_ONCE, "{again} runs too many by {kills} kills");
    Ok(())
}

/// A thousand that end in one moment, with nobody killed: each once, and a bounded number at a time.
#[test]
fn a_thousand_ends_at_once_are_run_a_few_at_a_time() -> Result<()> {
    let (world, bob) = with_door("10m", "0.005")?;
    let opened = |lines: &[String]| lines.iter().filter(|line| line.starts_with("open")).count();
    for number in 0..LEASES {
        knock_for(&world, &bob, number)?;
    }
    wait_for(
        "every on-open",
        LONG,
        || Ok((opened(&lines_of(&world)?) == usize::from(LEASES)).then_some(())),
    )?;
    world.gate.administer(&["revoke", "all"])?;
    wait_for("every on-close", LONG, || {
        let ended = lines_of(&world)?.iter().filter(|line| line.starts_with("closed")).count();
        Ok((ended == usize::from(LEASES)).then_some(()))
    })?;
    let most = most_at_a_time(&lines_of(&world)?);
    println!("{most} at a time");
    ensure!((2..=AT_ONCE).contains(&most), "{most} at a time");
    Ok(())
}

#[test]
fn a_command_that_hangs_is_ended_with_what_it_runs() -> Result<()> {
    // What a shell leaves behind is ended with it.
    let (mut world, bob) = door("2s", "1s", |file| {
        [format!("echo $$ >> {file}; sleep 1000 & sleep 1000"), "exec /nonexistent".to_owned()]
    })?;
    world.gate.start(&[])?;
    knock_for(&world, &bob, 1)?;
    let failed = world.gate.wait_for_events("on-open", 1)?;
    ensure!(failed[0]["error"].to_string().contains("took longer than 1s"), "{failed:?}");
    let group: i32 = lines_of(&world)?.first().context("its number")?.trim().parse()?;
    wait_for("the end of all that it ran", LONG, || Ok(members_of(group)?.is_empty().then_some(())))?;
    let failed = world.gate.wait_for_events("on-close", 1)?;
    ensure!(failed[0]["error"].to_string().contains("it failed: exit status: 127"), "{failed:?}");
    ensure!(probe(&world.home, world.gate.at(V4, SSH))? == Seen::Nothing, "the guard stands");
    world.opens(V4).map(drop)
}

/// The command for the beginning takes its time, and the runner dies meanwhile: it must not come behind the one for the
/// end.
#[test]
fn a_command_dies_with_its_runner() -> Result<()> {
    let (mut world, bob) = door("2s", "30s", |file| {
        [format!("echo open >> {file}; sleep 5; echo late >> {file}"), format!("echo close >> {file}")]
    })?;
    world.gate.start(&[])?;
    knock_for(&world, &bob, 1)?;
    wait_for_lines(&world, 1)?;
    world.gate.kill_one(Role::Runner)?;
    world.gate.wait_for_pid(Role::Runner, &[])?;
    assert_eq!(wait_for_lines(&world, 2)?, ["open", "close"]);
    let shut = Instant::now();
    wait_for("longer than it would have taken", LONG, || {
        Ok((shut.elapsed() > Duration::from_secs(6)).then_some(()))
    })?;
    assert_eq!(lines_of(&world)?, ["open", "close"]);
    world.opens(V4).map(drop)
}

/// A file that does not name any command at the start cannot name one later.
#[test]
fn commands_take_privileges_that_a_gate_without_them_has_given_up() -> Result<()> {
    let mut world = World::running(Settings::default())?;
    world.opens(V4)?;
    world.gate.edit(
        &world.gate.config(),
        "[services.web]\n",
        "[services.web]\non-open = [\"/bin/true\"]\n",
    )?;
    let refused = world.gate.attempt(&["reload"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("restart posternd"), "{}", refused.stderr);
    world.gate.stop()?;
    world.gate.start(&[])?;
    world.gate.signal_to(Role::Runner, Signal::KILL)?;
    world.gate.wait_for_events("the runner died (signal: 9 (SIGKILL)); another runner starts in 100ms", 1)?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    world.opens(V4).map(drop)
}

/// The processes of a group, by their ids.
fn members_of(group: i32) -> Result<Vec<i32>> {
    let pids =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_member = |pid: &i32| {
        // Behind the name, which may hold anything: state, parent, group.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').collect::<Vec<_>>());
        fields.is_some_and(|fields| fields[0] != "Z" && fields[2] == group.to_string())
    };
    Ok(pids.filter(is_member).collect())
}

/// A gate with a service that has commands and no ports, which each say in a file what they do.
fn with_door(window: &str, takes: &str) -> Result<(World, Client)> {
    let (mut world, bob) = door(window, "10s", |file| {
        let says = |what: &str| format!("echo {what} $POSTERN_ADDRESS >> {file}");
        [says("open"), format!("{}; sleep {takes}; {}", says("close"), says("closed"))]
    })?;
    world.gate.start(&[])?;
    Ok((world, bob))
}

/// The same with other commands, before its start, and a client who may have many leases of it.
fn door(window: &str, timeout: &str, commands: impl FnOnce(&str) -> [String; 2]) -> Result<(World, Client)> {
    let mut world = World::new(Settings { log: "info", ..Settings::default() })?;
    let [on_open, on_close] = commands(&log(&world).to_string_lossy()).map(|text| command(&text, &[]));
    let door = format!(
        "[services.door]\nwindow = \"{window}\"\non-open = {on_open}\non-close = {on_close}\n\
         command-timeout = \"{timeout}\"\n[firewall]\n"
    );
    world.gate.edit(&world.gate.config(), "[firewall]\n", &door)?;
    let mut bob = Client::new(world.gate.id(), "bob", &["door"])?;
    bob.entry.may_state_other_source = true;
    bob.entry.max_leases = Some(u32::from(LEASES));
    world.gate.write_clients(&[&world.alice, &bob])?;
    world.listen(&[SSH])?;
    Ok((world, bob))
}

/// Lets in one of many addresses.
fn knock_for(world: &World, bob: &Client, number: u16) -> Result<()> {
    let [high, low] = number.to_be_bytes();
    let source = Source::Stated(IpAddr::from([10, 77, high, low]));
    world.send(&world.home, V4, &bob.seal(&Payload { source, ..bob.asks_for("door")? }))
}

/// The addresses for which a command said so.
fn addresses<'a>(lines: &'a [String], what: &str) -> HashSet<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ')).collect()
}

/// Whoever was let in, or shut out.
fn known(lines: &[String]) -> HashSet<&str> {
    lines.iter().filter_map(|line| Some(line.split_once(' ')?.1)).collect()
}

/// A shell command, as the configuration has it.
fn command(text: &str, arguments: &[&str]) -> String {
    let argv = [&["/bin/sh", "-c", text], arguments].concat();
    format!("{argv:?}")
}

/// The file in which commands say what they do.
fn log(world: &World) -> PathBuf {
    world.gate.directory().join("commands.log")
}

fn lines_of(world: &World) -> Result<Vec<String>> {
    match fs::read_to_string(log(world)) {
        Ok(text) => Ok(text.lines().map(ToOwned::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_lines(world: &World, count: usize) -> Result<Vec<String>> {
    wait_for(&format!("{count} lines"), LONG, || {
        Ok(Some(lines_of(world)?).filter(|lines| lines.len() >= count))
    })
}

/// How many were being ended at a time, at the most.
fn most_at_a_time(lines: &[String]) -> usize {
    let (mut running, mut most) = (0usize, 0);
    for line in lines {
        match line.split(' ').next() {
            Some("close") => running += 1,
            Some("closed") => running = running.saturating_sub(1),
            _ => {}
        }
        most = most.max(running);
    }
    most
}
