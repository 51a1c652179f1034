//! The interface that knocks come over goes down, away, and comes back, or is there later than the gate: knocks over it
//! open again, and nobody who is in is put out.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::gate::{Role, Settings};
use postern_tests::wait::LONG;

use crate::crowd::{Crowd, Lease, gate_and_crowd};
use crate::world::World;

const WATCHES: Settings = Settings { window_secs: 60, interfaces: &["eth0"], ..Settings::DEFAULT };
/// An interface is looked for once a second, and a front takes a moment to start.
const BACK_WITHIN: Duration = Duration::from_secs(5);
const LOST: &str = "not watched until it is back";
const MISSING: &str = "not watched until it is there";

#[test]
fn an_interface_that_goes_down_is_watched_again() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(WATCHES)?;
    let lease = Lease::take(&world, &mut crowd)?;
    for times in 1..=2 {
        world.network.put_down(world.gate.host())?;
        wait_for_line(&world, LOST, times)?;
        world.network.put_up(world.gate.host())?;
        is_soon_let_in(&world, &mut crowd)?;
    }
    lease.is_untouched(&world, &crowd)
}

#[test]
fn an_interface_that_is_deleted_and_made_again_is_watched_again() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(WATCHES)?;
    let lease = Lease::take(&world, &mut crowd)?;
    world.network.unplug(world.gate.host())?;
    wait_for_line(&world, LOST, 1)?;
    world.network.plug_in(world.gate.host())?;
    is_soon_let_in(&world, &mut crowd)?;
    // Gone and back before anybody could look.
    world.network.unplug(world.gate.host())?;
    world.network.plug_in(world.gate.host())?;
    is_soon_let_in(&world, &mut crowd)?;
    lease.is_untouched(&world, &crowd)
}

/// One of two that were never there keeps nobody from the other.
#[test]
fn an_interface_that_appears_late_is_watched_from_then_on() -> Result<()> {
    let settings = Settings { interfaces: &["eth0", "eth9"], ..WATCHES };
    let (mut world, mut crowd) = gate_and_crowd(settings)?;
    world.gate.stop()?;
    world.network.unplug(world.gate.host())?;
    world.gate.start(&[])?;
    wait_for_line(&world, MISSING, 2)?;
    world.network.plug_in(world.gate.host())?;
    is_soon_let_in(&world, &mut crowd)?;

    let front = world.gate.wait_for_pid(Role::Front, &[])?;
    let lease = Lease::take(&world, &mut crowd)?;
    let over = Instant::now() + Duration::from_secs(3);
    while Instant::now() < over {
        ensure!(
            world.gate.pid(Role::Front)? == Some(front),
            "another front for an interface that is not there"
        );
        thread::sleep(Duration::from_millis(100));
    }
    lease.is_untouched(&world, &crowd)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

/// All interfaces at once are watched without a break, whichever of them come and go.
#[test]
fn who_watches_any_interface_needs_no_new_front() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { interfaces: &[], ..WATCHES })?;
    let (front, lease) = (world.gate.wait_for_pid(Role::Front, &[])?, Lease::take(&world, &mut crowd)?);
    world.network.put_down(world.gate.host())?;
    world.network.put_up(world.gate.host())?;
    is_soon_let_in(&world, &mut crowd)?;
    world.network.unplug(world.gate.host())?;
    world.network.plug_in(world.gate.host())?;
    is_soon_let_in(&world, &mut crowd)?;
    assert_eq!(world.gate.pid(Role::Front)?, Some(front));
    lease.is_untouched(&world, &crowd)
}

fn is_soon_let_in(world: &World, crowd: &mut Crowd) -> Result<()> {
    let since = Instant::now();
    crowd.is_let_in(&world.gate, &world.alice)?;
    ensure!(since.elapsed() < BACK_WITHIN, "let in only after {:?}", since.elapsed());
    Ok(())
}

/// Waits until the log has had so many lines with some words.
fn wait_for_line(world: &World, words: &str, count: usize) -> Result<()> {
    let found =
        |lines: &[String]| (lines.iter().filter(|line| line.contains(words)).count() >= count).then_some(());
    world.gate.running()?.wait_for_lines(words, LONG, found)
}
