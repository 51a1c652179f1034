//! Reports that no front would send: the supervisor goes on with its work, and ends a front that does not do its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::gate::{Gate, Settings};
use postern_tests::netns::Family;
use postern_tests::orders::{Link, VERSION};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::{Pid, Signal};

use super::hostile::knock_until_open;
use super::scene::stop_for_a_while;
use crate::world::World;

/// That it is not stuck, by a front.
const ALIVE: [u8; 3] = [VERSION, 0, 2];
/// That it works.
const READY: [u8; 3] = [VERSION, 0, 0];
/// The supervisor's patience with a process that says nothing.
const WATCHDOG: Duration = Duration::from_secs(10);
/// And with one that says that it lives, but does not answer to new settings.
const ANSWERS: Duration = Duration::from_secs(30);

fn line(gate: &Gate) -> Result<(Pid, Link)> {
    let front = gate.pid_of("postern-front")?;
    Ok((front, Link::to_supervisor(front, gate.pid_of("posternd")?)?))
}

/// Does something while a packet is sent again and again.
fn amid<T>(link: &Link, packet: &[u8], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // It ends with the link as well.
            while !is_over.load(Ordering::Relaxed) {
                if link.packet(packet).is_err() {
                    break;
                }
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn reports_without_end_keep_the_supervisor_from_nothing() -> Result<()> {
    for packet in [ALIVE, READY] {
        let mut world = World::running(Settings::default())?;
        world.opens(Family::V4)?;
        let (_, link) = line(&world.gate)?;
        let stop = amid(&link, &packet, || {
            // The warden is heard, and the administrator.
            world.opens(Family::V6)?;
            world.gate.signal(Signal::USR1)?;
            world.gate.wait_for_events("nothing to confirm: this is no trial", 1)?;
            let begun = Instant::now();
            world.gate.stop()?;
            Ok(begun.elapsed())
        })?;
        println!("amid reports without end the gate stops within {stop:?}");
        ensure!(stop < WATCHDOG, "it stops within {stop:?}");
        world.gate.start(&[])?;
        world.opens_to(&world.stranger, Family::V4)?;
    }
    Ok(())
}

#[test]
fn a_front_that_feigns_to_live_does_not_hold_a_reload_up() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.opens(Family::V4)?;
    let (front, link) = line(&world.gate)?;
    stop_for_a_while(front)?;
    let begun = Instant::now();
    amid(&link, &ALIVE, || {
        world.gate.signal(Signal::HUP)?;
        wait_for("another front", 2 * LONG, || {
            Ok(world.gate.pid_of("postern-front").is_ok_and(|pid| pid != front).then_some(()))
        })
    })?;
    println!("the front was replaced after {:?}", begun.elapsed());
    ensure!(begun.elapsed() < ANSWERS + WATCHDOG, "it was replaced after {:?}", begun.elapsed());
    knock_until_open(&world)
}
