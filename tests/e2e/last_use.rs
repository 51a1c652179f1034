//! When a client knocked last is known, whatever becomes of the gate.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use postern_proto::{ClientId, Request, WallTime};
use postern_tests::gate::Settings;
use postern_tests::knocks::now;
use postern_tests::netns::Family;
use postern_tests::wait::{LONG, wait_for};

use crate::world::{World, grants};

/// Between two uses that are to be told apart.
const APART: Duration = Duration::from_secs(3);

#[test]
fn the_last_use_of_each_client_outlives_the_gate() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    let (bob, carol) = (world.gate.client("bob")?, world.gate.client("carol")?);
    world.gate.write_clients(&[&world.alice, &bob, &carol])?;
    world.gate.start(&[])?;
    let begun = now();
    for client in [&world.alice, &bob] {
        let knock = client.seal(&client.asks_for("ssh")?);
        grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    }
    // Asking for nothing, and asking for what it may not have, is no use.
    let mut nothing = carol.asks_for("ssh")?;
    nothing.request = Request::Probe;
    world.send(&world.home, Family::V4, &carol.seal(&nothing))?;
    world.send(&world.home, Family::V4, &carol.seal(&carol.asks_for("ftp")?))?;
    let both = [world.alice.entry.id, bob.entry.id];
    is_written(&world, begun, &both)?;

    world.gate.kill()?;
    world.gate.start(&[])?;
    // The file has whole seconds.
    wait_for("another second", LONG, || Ok((now() > begun.after(APART)).then_some(())))?;
    let again = now();
    let knock = bob.seal(&bob.asks_for("ssh")?);
    grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    is_written(&world, again, &[bob.entry.id])?;
    is_written(&world, begun, &both)?;

    // Who is removed is forgotten.
    world.gate.write_clients(&[&world.alice, &carol])?;
    world.gate.reload()?;
    let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
    grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    is_written(&world, again, &[world.alice.entry.id])?;
    is_written(&world, begun, &[world.alice.entry.id])?;
    world.gate.stop().map(drop)
}

/// The file names these clients, and no others, as having knocked since.
fn is_written(world: &World, since: WallTime, clients: &[ClientId]) -> Result<()> {
    let since = since.before(Duration::from_secs(1));
    let mut last = String::new();
    wait_for("what is written of the last use", LONG, || {
        last = fs::read_to_string(world.gate.state().join("last-use")).unwrap_or_default();
        let mut used: Vec<(ClientId, WallTime)> = Vec::new();
        for line in last.lines().filter(|line| !line.starts_with('#')) {
            let Some((client, date)) = line.split_once(" = ") else { return Ok(None) };
            used.push((ClientId::from_text(client)?, date.trim_matches('"').parse()?));
        }
        used.retain(|(_, at)| *at >= since);
        let mut names: Vec<_> = used.iter().map(|(client, _)| *client).collect();
        let mut wanted = clients.to_vec();
        names.sort_unstable();
        wanted.sort_unstable();
        Ok((names == wanted).then_some(()))
    })
    .map_err(|error| error.context(last))
}
