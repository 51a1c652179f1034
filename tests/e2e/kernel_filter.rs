//! Junk dies in the kernel, and no knock does: the socket filter, and what happens without it.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, WallTime};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::knocks::{now, random};
use postern_tests::netns::Family;
use postern_tests::programs;

use crate::world::{World, refuses_some};

/// Datagrams of the right length from a stranger.
const JUNK: u64 = 200;
const TOLERANCE: Duration = Duration::from_secs(2);
/// How far the clients' clocks are off: closer to the edge, a knock might be too old when it arrives.
const EDGE: Duration = Duration::from_millis(1700);
const PAUSE: Duration = Duration::from_millis(100);
/// Changes of the epoch that are lived through.
const CHANGES: u64 = 5;

#[test]
fn the_kernel_refuses_strangers_and_each_is_counted() -> Result<()> {
    for (kernel_filter, in_kernel) in [("auto", JUNK), ("off", 0)] {
        let mut world = World::running(Settings { kernel_filter, ..Settings::default() })?;
        world.opens(Family::V4)?;
        refuses_junk(&world)?;
        assert_eq!(refused(&world.gate)?, (in_kernel, JUNK), "{kernel_filter}");
        world.opens_to(&world.stranger, Family::V6)?;
        let counted = world.gate.stop()?;
        ensure!(counted.received == JUNK + counted.accepted, "{counted:?}");
    }
    Ok(())
}

/// Knocks by clocks at both edges of the tolerance, all through changes of the epoch: not one is missed.
#[test]
fn no_knock_is_lost_when_epochs_change() -> Result<()> {
    let tolerance_secs = u32::try_from(TOLERANCE.as_secs())?;
    let world = World::running(Settings { tolerance_secs, log: "info", ..Settings::default() })?;
    // A new store takes for stale what was made before it was.
    let begun = now();
    let end = begun.epoch().number() + CHANGES;
    let mut sent = 0;
    while now().epoch().number() < end {
        for at in [now().before(EDGE), now().after(EDGE)].into_iter().filter(|at| *at > begun) {
            knock(&world, at)?;
            sent += 1;
        }
        thread::sleep(PAUSE);
    }
    let counted = world.gate.wait_for_received(sent)?;
    ensure!(counted.accepted == sent, "{sent} sent; {counted:?}");
    // Not because the kernel let everything through.
    let (before, _) = refused(&world.gate)?;
    world.send(&world.stranger, Family::V4, &random())?;
    let (after, _) = refused(&world.gate)?;
    ensure!(after == before + 1, "{before}, then {after}");
    Ok(())
}

/// Without the capability that loading takes, the classic filter and the gate's own table do the work.
#[test]
fn where_the_kernel_forbids_it_the_gate_does_without() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let mut command = world.gate.host().command("setpriv");
    command.args(["--bounding-set", "-bpf", "--inh-caps", "-bpf"]);
    command.arg(programs::directory()?.join("posternd"));
    command.arg("--config").arg(world.gate.config()).args(["run", "--log-format", "json"]);
    command.env("POSTERND_LOG", "debug").env_remove("POSTERND_CONFIG");
    command.env("XTABLES_LOCKFILE", world.gate.directory().join("xtables.lock"));
    world.gate.start_by(command)?;
    let lines = world.gate.log()?;
    let says_so = |line: &&serde_json::Value| {
        line["message"].as_str().is_some_and(|text| text.starts_with("the kernel does not look hints up"))
    };
    ensure!(lines.iter().filter(says_so).count() == 1, "{lines:#?}");
    world.opens(Family::V4)?;
    refuses_junk(&world)?;
    assert_eq!(refused(&world.gate)?, (0, JUNK));
    world.opens_to(&world.stranger, Family::V4).map(drop)
}

fn knock(world: &World, at: WallTime) -> Result<()> {
    let payload = Payload { at, ..world.alice.asks_for("ssh")? };
    world.send(&world.home, Family::V4, &world.alice.seal(&payload))
}

fn refuses_junk(world: &World) -> Result<()> {
    refuses_some(&world.gate, usize::try_from(JUNK)?, || {
        (0..JUNK).try_for_each(|_| world.send(&world.stranger, Family::V4, &random()))
    })
}

/// What was refused in the kernel, and all that was unknown.
fn refused(gate: &Gate) -> Result<(u64, u64)> {
    let all = gate.reload()?.refused.get("unknown").copied().unwrap_or_default();
    let last = gate.events("counters")?.pop().context("counters were logged")?;
    Ok((last["refused_in_kernel"].as_u64().unwrap_or_default(), all))
}
