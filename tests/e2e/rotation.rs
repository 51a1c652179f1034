//! A new secret for a client that knocks all the time: not one knock is lost, and the old secret ends when it is said to.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{KeyFile, Profile};
use postern_tests::gate::Settings;
use postern_tests::knocks::{Client, now};
use postern_tests::netns::Family;
use postern_tests::wait::{LONG, wait_for};

use crate::world::{World, refuses};

/// So many knocks go out across the rotation, this far apart.
const KNOCKS: u64 = 1_000;
const APART: Duration = Duration::from_millis(8);
/// Both secrets work for so long.
const GRACE: Duration = Duration::from_secs(10);

#[test]
fn no_knock_is_lost_across_a_rotation_and_the_old_secret_ends() -> Result<()> {
    let world = World::running(Settings::default())?;
    let (gate, old) = (&world.gate, &world.alice);
    let (rotated, sent) = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| (0..KNOCKS / 2).try_for_each(|_| knock(&world, old)));
        // Amid the knocks.
        wait_for("half of the old secret's knocks", LONG, || {
            Ok((gate.reload()?.accepted >= KNOCKS / 5).then_some(()))
        })?;
        let grace = format!("{}s", GRACE.as_secs());
        let line =
            gate.administer(&["client", "rotate", "alice", "--grace", &grace, "--address", "10.0.0.1"])?;
        let new = client(&world, &Profile::from_line(&line.text())?)?;
        // Both at once, and then the new one alone.
        let mut sent = 0;
        while !sender.is_finished() {
            knock(&world, &new)?;
            sent += 1;
        }
        sender.join().expect("a sender does not panic")?;
        while sent < KNOCKS / 2 {
            knock(&world, &new)?;
            sent += 1;
        }
        Ok((new, sent + KNOCKS / 2))
    })?;
    let counted = gate.wait_for_received(sent)?;
    ensure!(counted.accepted == sent, "{sent} were sent; {counted:?}");

    let until = rotated.entry.previous_until.context("the old secret has an end")?;
    ensure!(rotated.entry.previous_secret.as_ref() == Some(&old.entry.secret), "the old secret is kept");
    wait_for("the end of the old secret", LONG, || Ok((now() > until).then_some(())))?;
    for _ in 0..3 {
        refuses(gate, "unknown", || knock(&world, old))?;
    }
    let before = gate.reload()?.accepted;
    knock(&world, &rotated)?;
    wait_for("the new secret's knock", LONG, || Ok((gate.reload()?.accepted == before + 1).then_some(())))
}

fn knock(world: &World, client: &Client) -> Result<()> {
    thread::sleep(APART);
    world.send(&world.home, Family::V4, &client.seal(&client.asks_for("ssh")?))
}

/// The client of a profile, as the key file has it now.
fn client(world: &World, profile: &Profile) -> Result<Client> {
    let keys = KeyFile::parse(&fs::read_to_string(world.gate.keys())?)?;
    let entry = keys.clients().iter().find(|entry| entry.id == profile.client).context("its entry")?;
    ensure!(entry.secret == profile.secret, "the profile has the new secret");
    Ok(Client::at(world.gate.id(), entry.clone()))
}
