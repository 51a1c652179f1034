//! Clients that have to sign: with a real ssh-agent at a real gate. Who has the client's secret alone does not get in.

use std::fs;

use anyhow::{Result, ensure};
use postern_proto::IdentityKey;
use postern_tests::gate::{KNOCK_PORTS, SERVICES, SSH, Settings, Variant};
use postern_tests::home::Home;
use postern_tests::knocks::Client;
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe};
use postern_tests::process::{Finished, run, succeed};
use postern_tests::ssh_agent::SshAgent;
use postern_tests::sshd::Sshd;
use postern_tests::wait::LONG;
use serde_json::Value;

use crate::neighbours::at_once;
use crate::world::World;

/// A gate at which alice has to sign with this key.
pub(crate) fn world(variant: Variant, key: &IdentityKey) -> Result<World> {
    let mut world = World::running(Settings { variant, window_secs: 60, ..Settings::default() })?;
    world.alice.entry.identity = Some(key.clone());
    world.gate.write_clients(&[&world.alice])?;
    world.gate.reload()?;
    Ok(world)
}

/// The same client, by a profile that says so of its key.
fn with_key(client: &Client, key: Option<&IdentityKey>) -> Client {
    let mut client = client.clone();
    client.entry.identity = key.cloned();
    client
}

fn knock(
    world: &World,
    from: &Host,
    client: &Client,
    family: Family,
    agent: &SshAgent,
    arguments: &[&str],
) -> Result<Finished> {
    let mut command = world.gate.answered_postern(from, client, family)?;
    command.args(["knock", "-", "ssh"]).args(arguments).env("SSH_AUTH_SOCK", agent.socket());
    run(command, b"", LONG)
}

pub(crate) fn opens(world: &World, family: Family, agent: &SshAgent) -> Result<()> {
    let door = world.gate.at(family, SSH);
    ensure!(probe(&world.home, door)? == Seen::Nothing, "shut before the knock");
    let knocked = knock(world, &world.home, &world.alice, family, agent, &[])?;
    ensure!(knocked.code == 0, "{} {}", knocked.code, knocked.stderr);
    ensure!(probe(&world.home, door)? == Seen::Open, "open with the answer");
    Ok(())
}

/// From a host that nobody has let in.
fn is_refused(world: &World, client: &Client, agent: &SshAgent, reason: &str) -> Result<()> {
    let refused = knock(world, &world.stranger, client, Family::V4, agent, &["--json"])?;
    let report: Value = serde_json::from_slice(&refused.stdout)?;
    ensure!(refused.code == 6 && report["answer"]["refusal"] == reason, "{reason}: {report}");
    let refused = knock(world, &world.stranger, client, Family::V4, agent, &[])?;
    ensure!(refused.code == 6 && refused.stderr.contains(reason), "{reason}: {}", refused.stderr);
    ensure!(probe(&world.stranger, world.gate.at(Family::V4, SSH))? == Seen::Nothing, "refused, and shut");
    Ok(())
}

#[test]
fn who_has_to_sign_gets_in_with_the_key_of_the_agent_and_not_without() -> Result<()> {
    let agent = SshAgent::start()?;
    let (key, other) = (agent.new_key("alice")?, agent.new_key("mallory")?);
    at_once(&Variant::BACKENDS, |&variant| {
        let world = world(variant, &key)?;
        is_refused(&world, &with_key(&world.alice, Some(&other)), &agent, "bad-signature")?;
        is_refused(&world, &with_key(&world.alice, None), &agent, "unsigned")?;
        for family in Family::ALL {
            opens(&world, family, &agent)?;
        }
        Ok(())
    })
    .map(drop)
}

#[test]
fn a_security_key_opens() -> Result<()> {
    let agent = SshAgent::start()?;
    let (key, other) = (agent.new_security_key("alice")?, agent.new_security_key("mallory")?);
    let world = world(Variant::Nftables, &key)?;
    is_refused(&world, &with_key(&world.alice, Some(&other)), &agent, "bad-signature")?;
    opens(&world, Family::V4, &agent)
}

/// The key that ssh logs in with has signed the knock before it.
#[test]
fn one_agent_knocks_and_logs_in() -> Result<()> {
    let mut world =
        World::new(Settings { variant: Variant::Nftables, window_secs: 60, ..Settings::default() })?;
    let sshd = Sshd::start(world.gate.host())?;
    let (home, agent) = (Home::new()?, SshAgent::start()?);
    let address = world.gate.host().ip(Family::V4);
    sshd.befriend(&home, &["bastion".to_owned(), address.to_string()])?;
    let file = home.path(".ssh/id_ed25519");
    world.alice.entry.identity = Some(agent.add(&file)?);
    fs::remove_file(file)?;
    world.gate.write_clients(&[&world.alice])?;
    world.gate.start(&[])?;

    let profile = world.alice.profile(&[address], &KNOCK_PORTS, &SERVICES, true)?;
    let as_user = |words: &[&str]| {
        let mut command = home.command(&world.home, words)?;
        command.env("SSH_AUTH_SOCK", agent.socket());
        Ok::<_, anyhow::Error>(command)
    };
    succeed(as_user(&["postern", "import", "bastion", "-"])?, profile.as_bytes(), LONG)?;
    succeed(as_user(&["postern", "ssh-config", "bastion", "--install"])?, b"", LONG)?;
    ensure!(probe(&world.home, world.gate.at(Family::V4, SSH))? == Seen::Nothing, "shut before ssh comes");
    let ssh = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "bastion", "echo", "through"];
    let said = succeed(as_user(&ssh)?, b"", LONG)?;
    ensure!(said.text() == "through\n", "{}", said.text());
    // Without the agent neither works, and the knock says so first.
    let mut alone = home.command(&world.home, &ssh)?;
    alone.env_remove("SSH_AUTH_SOCK");
    let refused = run(alone, b"", LONG)?;
    ensure!(refused.code != 0 && refused.stderr.contains("there is no ssh-agent"), "{}", refused.stderr);
    Ok(())
}
