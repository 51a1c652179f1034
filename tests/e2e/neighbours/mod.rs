//! Beside other firewalls, real ones wherever Debian has them: a fresh knock opens, strangers stay outside, and the others'
//! rules are as they wrote them when ours are gone. Where a knock cannot open, `check` has the command that helps, and
//! here it is run as it stands there.

use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, SSH};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::wait::{LONG, wait_for};

use crate::world::{World, grants};

mod docker;
mod fail2ban;
mod firewalld;
mod restored;
mod tables;
mod ufw;

const JUMP: &str = "-A INPUT -j POSTERN";

/// What `check` has to say of other firewalls.
fn remarks(check: Command) -> Result<Vec<String>> {
    let told = succeed(check, b"", LONG)?.text();
    let remarks = told.lines().filter(|line| line.starts_with("warning: ") || line.starts_with("note: "));
    Ok(remarks.map(str::to_owned).collect())
}

/// The command that a warning with these words ends with.
fn remedy(remarks: &[String], words: &[&str]) -> Result<String> {
    let warns =
        |remark: &&String| remark.starts_with("warning: ") && words.iter().all(|word| remark.contains(word));
    let warning = remarks.iter().find(warns);
    let warning = warning.with_context(|| format!("no warning with {words:?} among {remarks:#?}"))?;
    let (_, command) = warning.split_once("run: ").with_context(|| format!("no command in {warning:?}"))?;
    Ok(command.to_owned())
}

/// Runs a script on a host.
fn script(host: &Host, script: &str) -> Result<String> {
    let mut command = host.command("sh");
    command.args(["-ec", script]);
    Ok(succeed(command, b"", LONG)?.text())
}

/// Fresh knocks are granted, and yet the port stays shut; the leases are revoked when this returns.
fn knocks_in_vain(world: &World, families: &[Family]) -> Result<()> {
    let gate = &world.gate;
    for &family in families {
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        grants(gate, || world.send(&world.home, family, &knock))?;
        let seen = probe(&world.home, gate.at(family, SSH))?;
        ensure!(seen != Seen::Open, "it is open: nothing keeps it shut in {family:?}");
    }
    gate.administer(&["revoke", "all"]).map(drop)
}

/// Fresh knocks open, and only to whoever knocked; the port is shut again when this returns.
fn holds_and_opens(world: &World, families: &[Family]) -> Result<()> {
    for &family in families {
        world.opens(family)?;
        let seen = probe(&world.stranger, world.gate.at(family, SSH))?;
        ensure!(seen == Seen::Nothing, "a stranger sees {seen:?} in {family:?}");
    }
    world.gate.administer(&["revoke", "all"])?;
    families
        .iter()
        .try_for_each(|&family| wait_to_see(&world.home, world.gate.at(family, SSH), Seen::Nothing))
}

/// Does something for each at the same time, in worlds of their own: most of the time they wait.
pub(crate) fn at_once<T: Sync, R: Send>(each: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let threads: Vec<_> = each.iter().map(|one| scope.spawn(|| work(one))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic but a failed assertion's")).collect()
    })
}

/// Waits until the running gate has its guard first in INPUT again.
fn heals(gate: &Gate) -> Result<()> {
    wait_for("the guard in INPUT", LONG, || {
        let guarded = |family| {
            Ok::<_, anyhow::Error>(gate.rules(family, "INPUT")?.first().is_some_and(|rule| rule == JUMP))
        };
        Ok((guarded(Family::V4)? && guarded(Family::V6)?).then_some(()))
    })
}

/// The rules of others in iptables: those that are not ours, of both families.
fn others(gate: &Gate) -> Result<String> {
    let saved = [gate.saved(Family::V4)?, gate.saved(Family::V6)?].concat();
    Ok(saved.split_inclusive('\n').filter(|line| !line.contains("POSTERN")).collect())
}

/// Takes the gate away and looks at what is left: what the others had all the time, and nothing of ours.
fn removes_ours_alone(world: &mut World) -> Result<()> {
    let before = others(&world.gate)?;
    world.gate.stop()?;
    world.gate.administer(&["remove"])?;
    let left = [world.gate.saved(Family::V4)?, world.gate.saved(Family::V6)?].concat();
    assert_eq!(left, before);
    Ok(())
}
