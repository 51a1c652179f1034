//! What the wiki's rules do that nobody would want, beside the table's rows; ours do not.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::gate::SSH;
use postern_tests::netns::Family;
use postern_tests::packets::Segment;
use postern_tests::probe::{Seen, probe};

use super::scene::{Rules, Scene, UNRELATED, Wanted};
use crate::neighbours::at_once;

/// Runs a trial with the wiki's rules and with ours: it says whether the weakness is there.
fn is_the_wikis_alone(wanted: &Wanted, weakness: impl Fn(&mut Scene) -> Result<bool> + Sync) -> Result<()> {
    let all: Vec<_> = [Rules::Wiki].into_iter().chain(Rules::FEW).collect();
    at_once(&all, |&rules| {
        let mut scene = Scene::new(rules, wanted)?;
        assert_eq!(weakness(&mut scene)?, rules == Rules::Wiki, "{rules:?}");
        let from = scene.address()?;
        scene.knock(from)?;
        ensure!(scene.is_open(from)?, "{rules:?} does not open any more");
        Ok(())
    })
    .map(drop)
}

#[test]
fn a_step_may_come_at_any_time() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let wanted = Wanted { timeout: "1s", ..Wanted::wiki() };
    is_the_wikis_alone(&wanted, |scene| {
        let mut open = Vec::new();
        for late in [1, 2] {
            let from = scene.address()?;
            for index in 0..scene.steps.len() {
                if index == late {
                    pass(TIMEOUT + TIMEOUT / 4);
                }
                scene.step(from, index)?;
            }
            open.push(scene.is_open(from)?);
        }
        ensure!(open[0] == open[1], "which step comes late makes a difference: {open:?}");
        Ok(open[0])
    })
}

/// The time itself is what this is about.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn segments_out_of_the_middle_are_knocks() -> Result<()> {
    is_the_wikis_alone(&Wanted::wiki(), |scene| {
        let from = scene.address()?;
        for step in scene.steps.clone() {
            scene.tcp(Segment::Ack, from, step.number.get())?;
        }
        scene.is_open(from)
    })
}

#[test]
fn the_hosts_other_ports_are_shut() -> Result<()> {
    is_the_wikis_alone(&Wanted::wiki(), |scene| {
        let from = scene.address()?;
        Ok(scene.sees(from, UNRELATED)? == Seen::Nothing)
    })
}

#[test]
fn the_host_cannot_speak_with_itself() -> Result<()> {
    is_the_wikis_alone(&Wanted::wiki(), |scene| {
        let door = scene.door();
        Ok([UNRELATED, SSH]
            .into_iter()
            .map(|port| probe(&scene.gate, (door.ip(), port).into()))
            .collect::<Result<Vec<_>>>()?
            .contains(&Seen::Nothing))
    })
}

/// Ours for IPv4 say so, and there are ours for IPv6.
#[test]
fn the_door_is_open_over_ipv6() -> Result<()> {
    is_the_wikis_alone(&Wanted::wiki(), |scene| {
        let door = (scene.gate.ip(Family::V6), SSH).into();
        let seen = probe(&scene.home, door)?;
        if let Rules::Xtables(_, Family::V4) = scene.rules {
            assert_eq!(seen, Seen::Open);
            return Ok(false);
        }
        Ok(seen == Seen::Open)
    })
}

/// As it is within the window: the rules take the first knock for a reason to shut.
#[test]
fn whoever_has_been_let_in_has_to_knock_twice() -> Result<()> {
    is_the_wikis_alone(&Wanted::wiki(), |scene| {
        let from = scene.address()?;
        scene.knock(from)?;
        ensure!(scene.is_open(from)?, "it does not open");
        scene.knock(from)?;
        Ok(!scene.is_open(from)?)
    })
}
