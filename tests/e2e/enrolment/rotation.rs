//! New secrets for old ones.

use std::fs;

use anyhow::{Context, Result, ensure};
use postern_proto::{KeyFile, Profile};
use postern_tests::gate::Settings;
use postern_tests::knocks::{Client, now};
use postern_tests::netns::Family;
use postern_tests::wait::{LONG, wait_for};

use super::AT;
use crate::world::{World, grants, refuses};

/// Long enough for a few commands on a busy machine.
const GRACE: &str = "12s";

#[test]
fn both_secrets_open_while_the_grace_time_lasts_and_then_only_the_new_one() -> Result<()> {
    let world = World::running(Settings::default())?;
    let (gate, keys) = (&world.gate, world.gate.keys());
    gate.edit(&keys, "[[client]]\n", "# of the staff\n[[client]] # alice\n")?;
    gate.edit(&keys, "services = ", "# what she may\nservices = ")?;
    let comments = fs::read_to_string(&keys)?.matches('#').count();

    let second = rotate(&world, &["--grace", GRACE])?;
    opens(&world, &world.alice)?;
    opens(&world, &second)?;
    let until = previous_until(&world)?.context("a grace time")?;
    ensure!(now() < until, "the machine was too slow for this test: the grace time was over");
    let listed = gate.administer(&["client", "list"])?.text();
    ensure!(listed.contains(&format!("rotating-until={until}")), "{listed}");
    let before = fs::read_to_string(&keys)?;
    let refused = gate.attempt(&[&["client", "rotate", "alice"], &AT[..]].concat())?;
    ensure!(refused.code == 1 && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr.contains(&format!("until {until}")), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(&keys)?, before);

    wait_for("the end of the grace time", LONG, || Ok((now() >= until).then_some(())))?;
    no_longer_opens(&world, &world.alice)?;
    opens(&world, &second)?;
    // What is over stands in nobody's way; and without a grace time, whatever was good before is not.
    let third = rotate(&world, &[])?;
    opens(&world, &second)?;
    let fourth = rotate(&world, &["--grace", "0s"])?;
    for old in [&second, &third] {
        no_longer_opens(&world, old)?;
    }
    opens(&world, &fourth)?;
    assert_eq!(previous_until(&world)?, None);
    let text = fs::read_to_string(&keys)?;
    assert_eq!(text.matches('#').count(), comments, "a comment is lost");
    Ok(())
}

#[test]
fn a_grace_time_is_a_year_at_the_most() -> Result<()> {
    let world = World::new(Settings::default())?;
    for (grace, says) in [("367d", "a year at the most"), ("soon", "expected number")] {
        let arguments = [&["client", "rotate", "alice", "--grace", grace], &AT[..]].concat();
        let refused = world.gate.attempt(&arguments)?;
        ensure!(refused.code == 2 && refused.stderr.contains(says), "{refused:?}");
    }
    let refused = world.gate.attempt(&[&["client", "rotate", "nobody"], &AT[..]].concat())?;
    ensure!(refused.code == 3 && refused.stderr.contains("no client nobody"), "{refused:?}");
    Ok(())
}

/// Alice with a new secret, out of the profile that she is given.
fn rotate(world: &World, arguments: &[&str]) -> Result<Client> {
    let rotated = world.gate.administer(&[&["client", "rotate", "alice"], arguments, &AT].concat())?;
    let profile = Profile::from_line(&rotated.text())?;
    ensure!(profile.client == world.alice.entry.id, "it is the same client");
    let mut entry = world.alice.entry.clone();
    entry.secret = profile.secret;
    ensure!(!rotated.stderr.contains(&**entry.secret.to_text()), "a secret in {}", rotated.stderr);
    Ok(Client::at(world.gate.id(), entry))
}

fn previous_until(world: &World) -> Result<Option<postern_proto::WallTime>> {
    let file = KeyFile::parse(&fs::read_to_string(world.gate.keys())?)?;
    Ok(file.clients().first().context("alice in the key file")?.previous().map(|(_, until)| until))
}

fn opens(world: &World, client: &Client) -> Result<()> {
    grants(&world.gate, || world.send(&world.home, Family::V4, &client.seal(&client.asks_for("ssh")?)))
}

fn no_longer_opens(world: &World, client: &Client) -> Result<()> {
    let knock = client.seal(&client.asks_for("ssh")?);
    refuses(&world.gate, "unknown", || world.send(&world.home, Family::V4, &knock))
}
