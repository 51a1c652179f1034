//! ufw: it drops in INPUT whatever it does not allow.

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::packages::Packages;
use postern_tests::probe::{Seen, probe};

use super::{
    JUMP, at_once, heals, holds_and_opens, knocks_in_vain, others, remarks, remedy, removes_ours_alone,
};
use crate::world::World;

#[test]
fn ufw_and_the_gate_stand_beside_each_other_in_both_orders() -> Result<()> {
    let rules = at_once(&[true, false], |&ufw_first| {
        let mut world = World::new(Settings::default())?;
        world.listen(&[SSH])?;
        let ufw = Packages::on(world.gate.host())?;
        if ufw_first {
            ufw.run("ufw", &["--force", "enable"])?;
            world.gate.start(&[])?;
        } else {
            world.gate.start(&[])?;
            ufw.run("ufw", &["--force", "enable"])?;
        }
        holds_and_opens(&world, &Family::ALL)?;
        let told = remarks(world.gate.posternd(&["check"])?)?;
        ensure!(matches!(&told[..], [note] if note.starts_with("note: ufw is active")), "{told:#?}");

        // Whom ufw allows has to knock as well, also after ufw has put up all its rules anew.
        ufw.run("ufw", &["allow", "22/tcp"])?;
        ufw.run("ufw", &["reload"])?;
        for family in Family::ALL {
            assert_eq!(world.gate.rules(family, "INPUT")?[0], JUMP, "it stayed the first");
        }
        holds_and_opens(&world, &Family::ALL)?;
        removes_ours_alone(&mut world)?;
        assert_eq!(probe(&world.stranger, world.gate.at(Family::V4, SSH))?, Seen::Open, "ufw allows it");
        others(&world.gate)
    })?;
    assert_eq!(rules[0], rules[1], "the order makes no difference to ufw's rules");
    Ok(())
}

#[test]
fn who_is_returned_to_ufw_is_let_in_when_ufw_allows_it() -> Result<()> {
    let mut world = World::new(Settings { grants: "return", ..Settings::default() })?;
    world.listen(&[SSH])?;
    let ufw = Packages::on(world.gate.host())?;
    ufw.run("ufw", &["--force", "enable"])?;
    world.gate.start(&[])?;
    knocks_in_vain(&world, &Family::ALL)?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    let remedy = remedy(&told, &["22/tcp", "grants = \"accept\""])?;
    assert_eq!(remedy, "ufw allow 22/tcp");
    ufw.run("sh", &["-ec", &remedy])?;
    holds_and_opens(&world, &Family::ALL)?;
    removes_ours_alone(&mut world)
}

/// Told to leave IPv6 out, ufw leaves nothing of ip6tables in place when it starts.
#[test]
fn ufw_without_ipv6_is_warned_of() -> Result<()> {
    let world = World::running(Settings::default())?;
    let ufw = Packages::on(world.gate.host())?;
    ufw.run("sed", &["-i", "s/^IPV6=.*/IPV6=no/", "/etc/default/ufw"])?;
    ufw.run("ufw", &["--force", "enable"])?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    ufw.run("sh", &["-ec", &remedy(&told, &["ufw does without IPv6"])?])?;
    heals(&world.gate)?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    ensure!(remedy(&told, &[]).is_err(), "{told:#?}");
    holds_and_opens(&world, &Family::ALL)
}
