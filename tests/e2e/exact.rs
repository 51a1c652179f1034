//! `postern proxy --exact`: the grant is for one connection. Another process of the same host, and another host behind the
//! same address translation, stay outside while it is in.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::nat::{Nat, Ports};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe};
use postern_tests::process::{Process, run};
use postern_tests::wait::LONG;

use crate::neighbours::at_once;
use crate::world::World;

/// A connection that `postern proxy` carries.
struct Carried {
    proxy: Process,
    stdout: BufReader<ChildStdout>,
}

impl Carried {
    fn open(command: Command) -> Result<Self> {
        let (proxy, stdout) = Process::spawn_with_stdout(command)?;
        let mut carried = Self { proxy, stdout: BufReader::new(stdout) };
        carried.echoes("in")?;
        Ok(carried)
    }

    fn echoes(&mut self, line: &str) -> Result<()> {
        self.proxy.write(format!("{line}\n").as_bytes())?;
        let mut echoed = String::new();
        self.stdout.read_line(&mut echoed)?;
        ensure!(echoed.trim_end() == line, "{echoed:?} came back; {:?}", self.proxy.lines());
        Ok(())
    }
}

fn proxy(world: &World, from: &Host, family: Family, arguments: &[&str]) -> Result<Command> {
    let mut command = world.gate.answered_postern(from, &world.alice, family)?;
    let host = world.gate.host().ip(family).to_string();
    command.args(["proxy", &host, &SSH.to_string(), "--gate", "-"]).args(arguments);
    Ok(command)
}

fn world(variant: Variant) -> Result<World> {
    World::running(Settings { variant, window_secs: 600, ..Settings::default() })
}

#[test]
fn an_exact_grant_lets_one_connection_in_through_a_translation_that_keeps_ports() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = world(variant)?;
        let nat = Nat::new(&mut world.network, 20, Ports::Kept)?;
        for family in Family::ALL {
            one_connection(&world, &nat, family).with_context(|| format!("{variant:?} {family:?}"))?;
        }
        world.opens(Family::V4).map(drop)
    })
    .map(drop)
}

fn one_connection(world: &World, nat: &Nat, family: Family) -> Result<()> {
    let [client, neighbour] = &nat.inside;
    let door = world.gate.at(family, SSH);
    let mut carried = Carried::open(proxy(world, client, family, &["--exact"])?)?;
    for (who, host) in [("the same host", client), ("its neighbour", neighbour), ("the router", &nat.router)]
    {
        for _ in 0..5 {
            let seen = probe(host, door)?;
            ensure!(seen == Seen::Nothing, "{who} sees {seen:?}");
        }
    }
    carried.echoes("still in")?;

    // Without it, all of them share what was opened: so it is the port that keeps them out.
    let mut shared = Carried::open(proxy(world, client, family, &[])?)?;
    for host in [client, neighbour, &nat.router] {
        ensure!(probe(host, door)? == Seen::Open, "shared by all behind one address");
    }
    carried.echoes("both")?;
    shared.echoes("both")?;
    world.gate.administer(&["revoke", "all"]).map(drop)
}

#[test]
fn a_translation_that_changes_ports_is_named_and_gone_round_only_when_told_to() -> Result<()> {
    let mut world = world(Variant::Nftables)?;
    let nat = Nat::new(&mut world.network, 20, Ports::Changed)?;
    let [client, _] = &nat.inside;
    for family in Family::ALL {
        let refused = run(proxy(&world, client, family, &["--exact"])?, b"", LONG)?;
        let said = &refused.stderr;
        ensure!(refused.code != 0 && said.contains("changes the source port"), "{} {said}", refused.code);
        ensure!(said.contains("--exact=prefer") && said.lines().count() == 1, "{said}");
        ensure!(probe(client, world.gate.at(family, SSH))? == Seen::Nothing, "nothing is open beside it");
        Carried::open(proxy(&world, client, family, &["--exact=prefer"])?)?.echoes("from any port")?;
        world.gate.administer(&["revoke", "all"])?;
    }
    world.opens(Family::V4).map(drop)
}

#[test]
fn an_exact_grant_keeps_other_processes_of_the_same_host_out() -> Result<()> {
    let world = world(Variant::Nftables)?;
    for family in Family::ALL {
        let mut carried = Carried::open(proxy(&world, &world.home, family, &["--exact"])?)?;
        let seen = probe(&world.home, world.gate.at(family, SSH))?;
        ensure!(seen == Seen::Nothing, "another process sees {seen:?}");
        // Two at once do not get in one another's way.
        let mut second = Carried::open(proxy(&world, &world.home, family, &["--exact"])?)?;
        carried.echoes("one")?;
        second.echoes("two")?;
    }
    world.opens_to(&world.stranger, Family::V4).map(drop)
}
