//! Others that use iptables as well: who restores a ruleset of his own, and who puts rules before the guard.

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe};
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use super::{at_once, heals, holds_and_opens, remarks, remedy, removes_ours_alone};
use crate::world::World;

/// A ruleset as somebody saved it.
const RULESET: &str = "*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
:OTHERS -
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -j OTHERS
-A OTHERS -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
";

#[test]
fn a_restored_ruleset_and_the_guard_stand_together() -> Result<()> {
    let ways = Variant::ALL.into_iter().flat_map(|variant| {
        [(true, false), (true, true), (false, true)]
            .map(|(noflush, gate_first)| (variant, noflush, gate_first))
    });
    at_once(&ways.collect::<Vec<_>>(), |&(variant, noflush, gate_first)| {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        if gate_first {
            world.gate.start(&[])?;
        }
        for family in Family::ALL {
            let mut restore = world.gate.firewall(family, "-restore");
            restore.args(noflush.then_some("--noflush"));
            succeed(restore, RULESET.as_bytes(), LONG)?;
        }
        if gate_first {
            heals(&world.gate)?;
        } else {
            world.gate.start(&[])?;
        }
        holds_and_opens(&world, &Family::ALL)?;
        assert_eq!(remarks(world.gate.posternd(&["check"])?)?, Vec::<String>::new());
        removes_ours_alone(&mut world)
    })
    .map(drop)
}

/// With no gate that would set it right by itself.
#[test]
fn rules_before_the_guard_are_warned_of_and_come_behind_it() -> Result<()> {
    at_once(&Variant::ALL, |&variant| {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        world.gate.administer(&["guard"])?;
        let door = world.gate.at(Family::V4, SSH);
        for (deed, words) in [
            ("-I INPUT -p tcp --dport 22 -j ACCEPT", "is not the first"),
            ("-F INPUT", "does not lead to the guard"),
        ] {
            let mut command = world.gate.firewall(Family::V4, "");
            command.args(["-w"]).args(deed.split(' '));
            succeed(command, b"", LONG)?;
            assert_eq!(probe(&world.stranger, door)?, Seen::Open);
            let told = remarks(world.gate.posternd(&["check"])?)?;
            assert_eq!(remedy(&told, &[words])?, "posternd guard");
            world.gate.administer(&["guard"])?;
            assert_eq!(probe(&world.stranger, door)?, Seen::Nothing);
            let told = remarks(world.gate.posternd(&["check"])?)?;
            ensure!(told.is_empty(), "{told:#?}");
        }
        world.gate.start(&[])?;
        world.opens(Family::V4)
    })
    .map(drop)
}
