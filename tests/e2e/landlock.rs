//! A kernel without Landlock: the gate does not start unless it is told to go on without, and then says so once.

use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::process::run;
use postern_tests::programs;
use postern_tests::wait::LONG;

use crate::world::World;

const SAID: &str = "this kernel has no Landlock: a process that is taken over could read what its user may";

#[test]
fn without_landlock_the_gate_runs_only_where_it_may() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let refused = run(on_an_old_kernel(&world.gate)?, b"", LONG)?;
    ensure!(refused.code == 1, "exit code {}: {}", refused.code, refused.stderr);
    ensure!(refused.stderr.contains("landlock = \"if-available\""), "{}", refused.stderr);

    world.gate.edit(&world.gate.config(), "[process]\n", "[process]\nlandlock = \"if-available\"\n")?;
    let command = on_an_old_kernel(&world.gate)?;
    world.gate.start_by(command)?;
    world.opens(Family::V4)?;
    ensure!(world.gate.events(SAID)?.len() == 1, "it is said {} times", world.gate.events(SAID)?.len());
    Ok(())
}

/// What starts a gate, on a kernel that answers as one does that knows nothing of Landlock.
fn on_an_old_kernel(gate: &Gate) -> Result<Command> {
    let mut command = gate.host().command("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset"]);
    command.args(["-e", "inject=landlock_create_ruleset:error=EOPNOTSUPP"]);
    command.arg(programs::directory()?.join("posternd")).arg("--config").arg(gate.config());
    command.args(["run", "--log-format", "json"]);
    command.env("POSTERND_LOG", "debug").env_remove("POSTERND_CONFIG");
    Ok(command)
}
