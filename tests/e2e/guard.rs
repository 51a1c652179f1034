//! The guard and the grants under it: how they refuse, what they cut, and what becomes of them when `posternd` starts
//! again or was only on trial.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use postern_proto::Request;
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Connection, Seen, probe, probe_from_port, wait_to_see};
use rustix::process::Signal;

use crate::neighbours::at_once;
use crate::world::{World, grants};

const TRIAL: Duration = Duration::from_secs(5);

#[test]
fn a_guard_that_resets_looks_like_a_closed_port() -> Result<()> {
    for variant in Variant::BACKENDS {
        let world = World::running(Settings { variant, guard: "reset", ..Settings::default() })?;
        for family in Family::ALL {
            let door = world.gate.at(family, SSH);
            let opened = world.opens(family)?;
            assert_eq!(probe(&world.stranger, door)?, Seen::Refused);
            world.shuts_on_time(opened)?;
            assert_eq!(probe(&world.home, door)?, Seen::Refused);
        }
        world.opens(Family::V4)?;
    }
    Ok(())
}

#[test]
fn a_service_that_cuts_ends_its_sessions_with_the_window() -> Result<()> {
    for variant in Variant::BACKENDS {
        let world = World::running(Settings { variant, established: "cut", ..Settings::default() })?;
        let opened = world.opens(Family::V4)?;
        let mut session = Connection::open(&world.home, world.gate.at(Family::V4, SSH))?;
        session.echoes("within the window", Duration::from_secs(1))?;
        world.shuts_on_time(opened)?;
        ensure!(session.echoes("after its end", Duration::from_secs(2)).is_err(), "the session goes on");
        world.opens(Family::V4)?;
    }
    Ok(())
}

#[test]
fn grants_live_through_a_restart_and_end_on_time() -> Result<()> {
    for variant in Variant::BACKENDS {
        let mut world = World::running(Settings { variant, window_secs: 6, ..Settings::default() })?;
        for family in Family::ALL {
            let door = world.gate.at(family, SSH);
            let opened = world.opens(family)?;
            world.gate.stop()?;
            assert_eq!(probe(&world.home, door)?, Seen::Open, "posternd has stopped, the grant lives");
            assert_eq!(
                probe(&world.stranger, door)?,
                Seen::Nothing,
                "posternd has stopped, the guard stands"
            );
            world.gate.start(&[])?;
            assert_eq!(probe(&world.home, door)?, Seen::Open, "posternd runs again, the grant lives");
            world.shuts_on_time(opened)?;
            world.gate.wait_for_events("ended", 1)?;
        }
        world.opens(Family::V4)?;
    }
    Ok(())
}

#[test]
fn a_guard_on_trial_falls_though_posternd_was_killed() -> Result<()> {
    for variant in Variant::BACKENDS {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        let door = world.gate.at(Family::V4, SSH);
        let armed = Instant::now();
        world.gate.start(&["--trial", "5s"])?;
        let falls_at_the_latest = Instant::now() + TRIAL + Duration::from_secs(1);
        world.opens(Family::V4)?;
        world.gate.kill()?;
        stays_shut(&world.stranger, door, armed + TRIAL)?;
        wait_to_see(&world.stranger, door, Seen::Open)?;
        let late = Instant::now().saturating_duration_since(falls_at_the_latest);
        ensure!(late < Duration::from_secs(1), "the guard fell {late:?} late");

        world.gate.start(&[])?;
        world.opens(Family::V4)?;
    }
    Ok(())
}

#[test]
fn a_guard_on_trial_stays_when_confirmed() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    world.gate.start(&["--trial", "5s"])?;
    let opened = world.opens(Family::V4)?;
    world.gate.signal(Signal::USR1)?;
    let over = Instant::now() + TRIAL + Duration::from_secs(2);
    world.shuts_on_time(opened)?;
    stays_shut(&world.stranger, world.gate.at(Family::V4, SSH), over)?;
    world.opens(Family::V4).map(drop)
}

/// Of an address that many share, one port alone is let in, also by the next warden.
#[test]
fn a_knock_for_one_source_port_lets_no_other_in() -> Result<()> {
    const ASKED: u16 = 40_000;
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::running(Settings { variant, window_secs: 60, ..Settings::default() })?;
        for family in Family::ALL {
            let (home, door) = (&world.home, world.gate.at(family, SSH));
            let mut asks = world.alice.asks_for("ssh")?;
            let Request::Open { from_port, .. } = &mut asks.request else { bail!("it asks to open") };
            *from_port = NonZeroU16::new(ASKED);
            grants(&world.gate, || world.send(home, family, &world.alice.seal(&asks)))?;
            let only_it_is_let_in = |world: &World| {
                for (host, port, expected) in [
                    (&world.home, ASKED, Seen::Open),
                    (&world.home, ASKED + 1, Seen::Nothing),
                    (&world.stranger, ASKED, Seen::Nothing),
                ] {
                    let seen = probe_from_port(host, port, door)?;
                    ensure!(seen == expected, "{variant:?}: {door} shows {port} {seen:?}");
                }
                Ok(())
            };
            only_it_is_let_in(&world)?;
            world.gate.kill()?;
            world.gate.start(&[])?;
            only_it_is_let_in(&world)?;
            // Whoever is let in from any port is beside it, and goes without it.
            world.opens(family)?;
            world.gate.administer(&["revoke", "all"])?;
            let seen = probe_from_port(&world.home, ASKED, door)?;
            let log = || world.gate.log();
            ensure!(seen == Seen::Nothing, "{variant:?}: {door} shows {seen:?} though revoked: {:#?}", log());
        }
        world.opens(Family::V4).map(drop)
    })
    .map(drop)
}

/// What `families` leaves out is as if there were no gate, until it is asked for.
#[test]
fn a_family_that_is_left_out_is_not_guarded() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        let line = format!("variant = \"{}\"\n", variant.name());
        let ipv4_alone = format!("{line}families = [\"ipv4\"]\n");
        world.gate.edit(&world.gate.config(), &line, &ipv4_alone)?;
        world.gate.start(&[])?;
        world.opens(Family::V4)?;
        let door = world.gate.at(Family::V6, SSH);
        assert_eq!(probe(&world.stranger, door)?, Seen::Open, "IPv6 is left out");
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        world.send(&world.home, Family::V6, &knock)?;
        let refused = world.gate.wait_for_events("not granted: the firewall failed", 1)?;
        ensure!(refused[0]["error"].as_str().is_some_and(|error| error.contains("families")), "{refused:?}");

        world.gate.edit(&world.gate.config(), &ipv4_alone, &line)?;
        world.gate.administer(&["reload"])?;
        assert_eq!(probe(&world.stranger, door)?, Seen::Nothing, "both are guarded now");
        world.opens(Family::V6)?;
        assert_eq!(probe(&world.stranger, world.gate.at(Family::V4, SSH))?, Seen::Nothing);
        world.gate.edit(&world.gate.config(), &line, &ipv4_alone)?;
        world.gate.administer(&["reload"])?;
        wait_to_see(&world.stranger, door, Seen::Open)?;
        world.opens_to(&world.stranger, Family::V4).map(drop)
    })
    .map(drop)
}

/// Looks at a door that has to stay shut up to an instant.
pub(crate) fn stays_shut(from: &Host, door: SocketAddr, until: Instant) -> Result<()> {
    loop {
        // What is sent before the instant counts, whenever the answer comes.
        let sent = Instant::now();
        let seen = probe(from, door)?;
        if sent >= until {
            return Ok(());
        }
        ensure!(seen == Seen::Nothing, "{door} shows {seen:?} {:?} too early", until - sent);
        thread::sleep(Duration::from_millis(20));
    }
}
