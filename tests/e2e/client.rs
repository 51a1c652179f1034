//! What `postern` makes of a real gate's answers: it says until when what is open, why it is refused, knocks again where none
//! comes, and shuts what it has opened.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, Request, Services, Window};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::knocks::{now, open};
use postern_tests::nat::{Nat, Ports};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::{Finished, Process, run, succeed};
use postern_tests::wait::{LONG, wait_for};
use serde_json::Value;

use crate::neighbours::at_once;
use crate::ssh_tools::User;
use crate::world::{World, refuses};

const PARALLEL: usize = 200;

fn world() -> Result<World> {
    World::running(Settings { variant: Variant::Nftables, window_secs: 60, ..Settings::default() })
}

fn postern(world: &World, from: &Host, family: Family, arguments: &[&str]) -> Result<Finished> {
    run(command(world, from, family, arguments)?, b"", LONG)
}

fn command(world: &World, from: &Host, family: Family, arguments: &[&str]) -> Result<Command> {
    let mut command = world.gate.answered_postern(from, &world.alice, family)?;
    command.args(arguments);
    Ok(command)
}

fn json(finished: &Finished) -> Result<Value> {
    serde_json::from_slice(&finished.stdout).with_context(|| finished.text())
}

#[test]
fn a_knock_says_until_when_it_is_open_and_for_whom() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, window_secs: 60, ..Settings::default() })?;
        for family in Family::ALL {
            let knocked = postern(&world, &world.home, family, &["knock", "-", "ssh"])?;
            // No pause: the answer says that the door is open.
            ensure!(probe(&world.home, world.gate.at(family, SSH))? == Seen::Open, "open with the answer");
            let said = knocked.text();
            ensure!(knocked.code == 0 && said.starts_with("open until "), "{said} {}", knocked.stderr);
            ensure!(said.contains(&format!(" for {}: ssh", world.home.ip(family))), "{said}");
        }
        world.opens_to(&world.stranger, Family::V4).map(drop)
    })
    .map(drop)
}

#[test]
fn a_refusal_says_why_and_has_an_exit_code_of_its_own() -> Result<()> {
    let world = world()?;
    for (arguments, reason) in [
        (&["knock", "-", "ssh", "--window", "2h"][..], "window-too-long"),
        (&["knock", "-", "ssh", "--source", "10.0.0.99"], "source-not-own"),
    ] {
        let refused = postern(&world, &world.home, Family::V4, arguments)?;
        ensure!(refused.code == 6 && refused.stderr.contains(reason), "{} {}", refused.code, refused.stderr);
        let refused = postern(&world, &world.home, Family::V4, &[&["--json"], arguments].concat())?;
        let report = json(&refused)?;
        ensure!(report["error"]["code"] == 6 && report["answer"]["refusal"] == reason, "{report}");
        ensure!(probe(&world.home, world.gate.at(Family::V4, SSH))? == Seen::Nothing, "refused, and shut");
    }
    world.opens(Family::V4).map(drop)
}

/// The first knocks are lost: later ones, each a new one, open.
#[test]
fn what_is_not_answered_is_knocked_for_anew() -> Result<()> {
    let mut world = world()?;
    let nat = Nat::new(&mut world.network, 20, Ports::Kept)?;
    let [client, _] = &nat.inside;
    nat.drops_udp()?;
    let mut knock =
        Process::spawn(command(&world, client, Family::V4, &["knock", "-", "ssh", "--timeout", "30"])?)?;
    nat.has_dropped_one()?;
    ensure!(!knock.has_ended()?, "it waits for an answer: {:?}", knock.lines());
    nat.lets_udp_through()?;
    ensure!(knock.wait(LONG)?.success(), "{:?}", knock.lines());
    ensure!(probe(client, world.gate.at(Family::V4, SSH))? == Seen::Open, "open with the answer");

    nat.drops_udp()?;
    let silent = postern(&world, client, Family::V4, &["knock", "-", "ssh", "--timeout", "1"])?;
    ensure!(silent.code == 5 && silent.stderr.contains("no answer"), "{} {}", silent.code, silent.stderr);
    world.opens(Family::V4).map(drop)
}

#[test]
fn a_close_shuts_what_is_open_and_no_open_from_before_it_opens_again() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, window_secs: 600, ..Settings::default() })?;
        for family in Family::ALL {
            let door = world.gate.at(family, SSH);
            // Made, and held back on its way.
            let delayed = world.alice.seal(&world.alice.asks_for("ssh")?);
            world.opens(family)?;
            let closed = postern(&world, &world.home, family, &["close", "-", "ssh"])?;
            ensure!(
                closed.code == 0 && closed.text().contains("closed"),
                "{} {}",
                closed.text(),
                closed.stderr
            );
            ensure!(probe(&world.home, door)? == Seen::Nothing, "shut with the answer");
            refuses(&world.gate, "stale", || world.send(&world.home, family, &delayed))?;
            refuses(&world.gate, "stale", || world.send(&world.stranger, family, &delayed))?;
            ensure!(probe(&world.home, door)? == Seen::Nothing, "a delayed open opens nothing");
            world.opens(family)?;
            world.gate.administer(&["revoke", "all"])?;
        }
        Ok(())
    })
    .map(drop)
}

#[test]
fn an_open_that_was_made_right_after_a_close_opens() -> Result<()> {
    let world = world()?;
    let services = || Ok::<_, anyhow::Error>(Services::new(vec!["ssh".parse()?])?);
    let at = now();
    let close =
        Payload { at, request: Request::Close { services: services()? }, ..world.alice.asks_for("ssh")? };
    let request = open("ssh", Window::from_secs(60).ok())?;
    let open = Payload { at: at.after(Duration::from_millis(1)), request, ..close.clone() };
    let (close, open) = (world.alice.seal(&close), world.alice.seal(&open));
    world.send(&world.home, Family::V4, &close)?;
    world.send(&world.home, Family::V4, &open)?;
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Open)
}

#[test]
fn the_proxy_closes_its_own_lease_where_it_is_told_to() -> Result<()> {
    let world = world()?;
    for arguments in [&["--close-on-exit"][..], &["--close-on-exit", "--exact"]] {
        let host = world.gate.host().ip(Family::V4).to_string();
        let line = [&["proxy", &host, "22", "--gate", "-"], arguments].concat();
        let carried = run(command(&world, &world.home, Family::V4, &line)?, b"through\n", LONG)?;
        ensure!(carried.code == 0 && carried.text() == "through\n", "{} {}", carried.text(), carried.stderr);
        let leases = || world.gate.administer(&["list", "--json"]).map(|listed| listed.text());
        wait_for("no lease", LONG, || Ok((leases()?.trim() == "[]").then_some(())))?;
    }
    world.opens(Family::V4).map(drop)
}

#[test]
fn two_hundred_jobs_at_once_with_one_key() -> Result<()> {
    let world = world()?;
    let reports = thread::scope(|scope| {
        let job = || {
            let knock = command(&world, &world.home, Family::V4, &["--json", "knock", "-", "ssh"]);
            succeed(knock?, b"", LONG).map(|done| done.stdout)
        };
        let jobs: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(job)).collect();
        jobs.into_iter().map(|job| job.join().expect("a job does not panic")).collect::<Result<Vec<_>>>()
    })?;
    let mut jq = Command::new("jq");
    let opened = "[.[] | select(.answer.outcome == \"opened\" and .failed == []) | .answer.source]";
    jq.args(["-s", "-c", &format!("{opened} | unique, length")]);
    let picked = succeed(jq, &reports.concat(), LONG)?.text();
    let source = world.home.ip(Family::V4);
    ensure!(picked == format!("[\"{source}\"]\n{PARALLEL}\n"), "{picked}");
    ensure!(probe(&world.home, world.gate.at(Family::V4, SSH))? == Seen::Open, "open to all of them");
    world.opens_to(&world.stranger, Family::V6).map(drop)
}

/// While ssh runs through the proxy, no process on either host shows the client's secret to whoever can list processes, and
/// none has it in its environment.
#[test]
fn nothing_secret_is_in_a_command_line_or_an_environment() -> Result<()> {
    let user = User::new(Family::V4)?;
    let config = fs::read_to_string(user.home.path(".config/postern/config.toml"))?;
    let secret = config.lines().find_map(|line| line.strip_prefix("secret = ")).context("a secret")?;
    let secret = secret.trim_matches('"').to_owned();
    let home = &user.world.home;
    let mut ssh = Process::spawn(user.home.command(home, &["ssh", "bastion", "echo up; read line"])?)?;
    ssh.wait_for_lines("a shell", LONG, |lines| lines.iter().any(|line| line == "up").then_some(()))?;
    let mut seen = Vec::new();
    for host in [home, user.world.gate.host()] {
        for pid in host.pids()? {
            let file =
                |name: &str| fs::read(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default();
            let (line, environment) = (file("cmdline"), file("environ"));
            for bytes in [&line, &environment] {
                let text = String::from_utf8_lossy(bytes);
                ensure!(!text.contains(&secret) && !text.contains("postern1:"), "{text}");
            }
            seen.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    ensure!(seen.iter().any(|line| line.contains("postern proxy")), "{seen:?}");
    ssh.write(b"\n")?;
    ensure!(ssh.wait(LONG)?.success(), "{:?}", ssh.lines());
    user.leaves()
}
