//! One-time sequences: each of a file's lines opens once, in their order, and is a comment from then on.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::programs;
use postern_tests::wait::LONG;

use crate::world::{World, grants, refuses};

const V4: Family = Family::V4;
const LINES: [&str; 3] = ["7001,8001:udp,9001", "7002,8002:udp,9002", "7003,8003:udp,9003"];

#[test]
fn each_line_opens_once_and_the_last_is_no_end_of_the_gate() -> Result<()> {
    let mut world = World::new(Settings { window_secs: 2, ..Settings::default() })?;
    let file = lists(&world)?;
    world.listen(&[SSH])?;
    world.gate.start(&[])?;
    // Not the first of them.
    touch(&world, LINES[1])?;
    ensure!(probe(&world.home, world.gate.at(V4, SSH))? == Seen::Nothing, "the second line opened first");

    opens(&world, LINES[0])?;
    assert_eq!(fs::read_to_string(&file)?, format!("#{}\n {}\n {}\n", LINES[0], LINES[1], LINES[2]));
    opens_nothing(&world, LINES[0])?;
    // What was used is known to the next gate as well, however the last one ended.
    world.gate.kill()?;
    world.gate.start(&[])?;
    opens_nothing(&world, LINES[0])?;
    opens(&world, LINES[1])?;

    // A file that cannot say so.
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside)?;
    refuses(&world.gate, "unrecorded", || touch(&world, LINES[2]))?;
    ensure!(probe(&world.home, world.gate.at(V4, SSH))? == Seen::Nothing, "it was not noted, and opened");
    fs::rename(&aside, &file)?;
    world.gate.administer(&["reload"])?;
    opens(&world, LINES[2])?;
    world.gate.wait_for_events("no one-time sequence is left: nothing opens it", 2)?;
    opens_nothing(&world, LINES[2])?;
    world.gate.stop()?;
    world.gate.start(&[])?;
    world.opens(V4).map(drop)
}

/// Writes the file, and has the gate know it.
fn lists(world: &World) -> Result<PathBuf> {
    let file = world.gate.directory().join("one-time");
    fs::write(&file, LINES.map(|line| format!(" {line}\n")).concat())?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    let section = "[sequences.legacy]\none-time = \"one-time\"\nservices = [\"ssh\"]\n[firewall]\n";
    world.gate.edit(&world.gate.config(), "[firewall]\n", section)?;
    Ok(file)
}

fn opens(world: &World, line: &str) -> Result<()> {
    grants(&world.gate, || touch(world, line)).context(line.to_owned())?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Open)?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)
}

/// A knock that comes behind it is seen, so it was seen as well.
fn opens_nothing(world: &World, line: &str) -> Result<()> {
    let before = world.gate.events("granted")?.len();
    // Who is let in already may be told so, and is not granted anything.
    wait_to_see(&world.stranger, world.gate.at(V4, SSH), Seen::Nothing)?;
    touch(world, line)?;
    grants(&world.gate, || world.gate.knock(&world.stranger, &world.alice, V4, &[]))?;
    let after = world.gate.events("granted")?;
    let other = after[before..].iter().find(|event| event["client"] == "legacy");
    ensure!(other.is_none(), "{line} opened again: {other:?}");
    Ok(())
}

fn touch(world: &World, line: &str) -> Result<()> {
    let mut command = world.home.command(programs::directory()?.join("postern"));
    command.arg("sequence").arg(world.gate.host().ip(V4).to_string()).args(line.split(','));
    succeed(command, b"", LONG).map(drop).context("postern sequence")
}
