//! The gate's clock is set ahead and back while it runs, and while it does not: no knock opens twice (P4), and whoever's
//! clock agrees with it is let in.
//!
//! The clock that is set is the gate's alone: its processes are run with libfaketime. The kernel's own clock stays right,
//! so that a rule's dates, and not the door, say what it would have let in under a kernel whose clock had been set too.

use std::fs::{self, DirBuilder};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, WallTime};
use postern_tests::gate::{Gate, Grant, KNOCK_PORTS, SSH, Settings, Variant};
use postern_tests::knocks::{Knock, now};
use postern_tests::netns::Family;
use postern_tests::probe::Seen;
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};

use crate::crowd::{Crowd, rules_for};
use crate::neighbours::at_once;
use crate::world::{World, refuses_some};

const WINDOW: Duration = Duration::from_secs(8);
const HOUR: i64 = 3_600;
const TRIAL: Duration = Duration::from_secs(8);

/// Front and warden may each read other files; this folder is below one of either. Nothing on the machine is changed:
/// what `ip netns exec` runs has mounts of its own. Shared memory is out of reach for most of the processes, and
/// libfaketime does without it only where none of them has any.
const RUN: &str = "mount --bind \"$1\" /usr/games && mount -t tmpfs -o ro none /dev/shm && shift && exec env \
    'LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1' FAKETIME_TIMESTAMP_FILE=/usr/games/front/clock \
    FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \"$@\"";

/// The clock of a gate.
pub(crate) struct Clock {
    file: PathBuf,
    off: i64,
}

impl Clock {
    /// A clock that is right.
    pub(crate) fn of(gate: &Gate) -> Result<Self> {
        let folder = gate.state().join("front");
        // The supervisor is root without root's capabilities, and the clock is its too.
        DirBuilder::new().recursive(true).mode(0o711).create(&folder)?;
        let mut clock = Self { file: folder.join("clock"), off: 0 };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it so many seconds off the right time.
    pub(crate) fn set(&mut self, off: i64) -> Result<()> {
        // At no moment is half of it there.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{off:+}\n"))?;
        fs::rename(&new, &self.file)?;
        self.off = off;
        Ok(())
    }

    /// What it shows now.
    pub(crate) fn read(&self) -> WallTime {
        let off = Duration::from_secs(self.off.unsigned_abs());
        if self.off < 0 { now().before(off) } else { now().after(off) }
    }
}

/// What starts a gate by its clock.
pub(crate) fn command(gate: &Gate, arguments: &[&str]) -> Result<Command> {
    let mut command = gate.host().command("sh");
    command.args(["-c", RUN, "sh"]).arg(gate.state()).arg(programs::directory()?.join("posternd"));
    command.arg("--config").arg(gate.config()).args(["run", "--log-format", "json"]).args(arguments);
    command.env("POSTERND_LOG", "debug").env_remove("POSTERND_CONFIG");
    Ok(command)
}

#[test]
fn no_step_of_the_clock_opens_twice_or_locks_out() -> Result<()> {
    let mut gate = Stepping::new(Variant::Nft)?;
    let again = gate.crowd.address(Family::V4)?;
    gate.lets_in_a_fresh_knock()?;
    for off in [2 * HOUR, -2 * HOUR, 0, 25 * HOUR, 24 * HOUR, -HOUR, 0] {
        gate.clock.set(off)?;
        gate.step(again).with_context(|| format!("{off} s off"))?;
    }
    // The same while it does not run.
    for off in [2 * HOUR, -HOUR, 0] {
        gate.world.gate.kill()?;
        gate.clock.set(off)?;
        gate.starts()?;
        gate.step(again).with_context(|| format!("started {off} s off"))?;
    }
    gate.lets_in_a_fresh_knock()
}

/// A lease that was granted under a clock that ran ahead is over by the boot clock, or when the gate starts again with its
/// clock right: its rule must not wait for its hour to come.
#[test]
fn a_rule_of_a_clock_that_ran_ahead_does_not_wait_for_its_hour() -> Result<()> {
    let mut gate = Stepping::new(Variant::Nft)?;
    gate.lets_in_a_fresh_knock()?;
    for starts_again in [false, true] {
        gate.clock.set(HOUR)?;
        let from = gate.crowd.address(Family::V4)?;
        let granted = Instant::now();
        gate.is_granted(from)?;
        if starts_again {
            gate.world.gate.kill()?;
            gate.clock.set(0)?;
            gate.starts()?;
            assert_eq!(rules_for(&gate.world, from)?, [""; 0]);
        } else {
            gate.clock.set(0)?;
            let gone = || Ok(rules_for(&gate.world, from)?.is_empty().then_some(()));
            wait_for("the end of the rule", LONG, gone)?;
            let lived = granted.elapsed();
            ensure!(lived >= WINDOW && lived < WINDOW + Duration::from_secs(2), "it lived for {lived:?}");
        }
        gate.lets_in_a_fresh_knock()?;
    }
    Ok(())
}

/// A trial is as long as it was said to be, though the clock is set back.
#[test]
fn a_trial_does_not_grow_with_a_clock_that_is_set_back() -> Result<()> {
    let mut gate = Stepping::new(Variant::Nft)?;
    gate.world.gate.stop()?;
    gate.world.gate.administer(&["remove"])?;
    let started = Instant::now();
    let command = command(&gate.world.gate, &["--trial", &format!("{}s", TRIAL.as_secs())])?;
    gate.world.gate.start_by(command)?;
    gate.lets_in_a_fresh_knock()?;
    gate.clock.set(-HOUR)?;
    gate.world.gate.wait_for_end()?;
    let lasted = started.elapsed();
    ensure!(lasted >= TRIAL && lasted < TRIAL + Duration::from_secs(5), "it lasted {lasted:?}");
    ensure!(!gate.world.gate.saved(Family::V4)?.contains("POSTERN"), "rules of Postern are left");
    gate.clock.set(0)?;
    gate.starts()?;
    gate.lets_in_a_fresh_knock()
}

/// nftables counts by a clock that nobody sets: a window is as long as it was said to be, and so is a renewed one.
#[test]
fn through_nftables_no_step_of_the_clock_moves_an_end() -> Result<()> {
    const BETWEEN: Duration = Duration::from_millis(3_050);
    // Set back by three seconds, the clock shows for the renewal the second that it showed for the first knock.
    at_once(&[HOUR, -HOUR, -3], |&off| {
        let mut gate = Stepping::new(Variant::Nftables)?;
        let [left, renewed] = [gate.crowd.address(Family::V4)?, gate.crowd.address(Family::V4)?];
        let knocked = Instant::now();
        gate.opens(left)?;
        let opened = Instant::now();
        wait_for("a second to begin", LONG, || Ok((now().as_micros() % 1_000_000 < 100_000).then_some(())))?;
        let first = Instant::now();
        gate.opens(renewed)?;
        wait_for("the time for a renewal", LONG, || Ok((first.elapsed() > BETWEEN).then_some(())))?;
        gate.clock.set(off)?;
        let knocked_again = Instant::now();
        let granted = gate.world.gate.events("granted")?.len();
        gate.opens(renewed)?;
        gate.world.gate.wait_for_events("granted", granted + 1)?;
        let opened_again = Instant::now();
        gate.lasts(left, knocked, opened).with_context(|| format!("{off} s off"))?;
        gate.lasts(renewed, knocked_again, opened_again).with_context(|| format!("renewed {off} s off"))
    })
    .map(drop)
}

/// A gate with a clock that can be set, and the knocks that have opened there.
struct Stepping {
    world: World,
    crowd: Crowd,
    clock: Clock,
    opened: Vec<Knock>,
}

impl Stepping {
    fn new(variant: Variant) -> Result<Self> {
        let settings = Settings {
            variant,
            window_secs: u32::try_from(WINDOW.as_secs())?,
            // The kernel's clock does not step with the gate's here: it would not see that its set is of another time.
            kernel_filter: "off",
            ..Settings::default()
        };
        let mut world = World::new(settings)?;
        world.listen(&[SSH])?;
        let crowd = Crowd::join(&mut world, 200)?;
        let clock = Clock::of(&world.gate)?;
        let mut gate = Self { world, crowd, clock, opened: Vec::new() };
        // Its store is no new one: to that, everything is stale that was made before it was.
        gate.clock.set(-48 * HOUR)?;
        gate.starts()?;
        gate.world.gate.kill()?;
        gate.clock.set(0)?;
        gate.starts()?;
        Ok(gate)
    }

    fn starts(&mut self) -> Result<()> {
        let command = command(&self.world.gate, &[])?;
        self.world.gate.start_by(command)
    }

    /// Kernel, gate and client agree on the time: the door opens.
    fn lets_in_a_fresh_knock(&mut self) -> Result<()> {
        self.crowd.is_let_in(&self.world.gate, &self.world.alice).map(drop)
    }

    /// What holds however the clock stands: a knock by it opens once, for the time that it says; nothing that has opened
    /// opens again; and a lease that another clock has ended, or not begun yet, is granted anew.
    fn step(&mut self, again: IpAddr) -> Result<()> {
        let from = self.crowd.address(Family::V4)?;
        self.is_granted(from)?;
        self.is_granted(again)?;
        if self.clock.off != 0 {
            let stale = self.world.alice.seal(&self.world.alice.asks_for("ssh")?);
            self.is_refused(&[stale])?;
        }
        self.is_refused(&self.opened.clone())?;
        let seen = self.crowd.sees(from, self.door())?;
        // The kernel's clock is right, whatever the gate's is.
        ensure!((seen == Seen::Open) == (self.clock.off == 0), "the door shows {seen:?}");
        Ok(())
    }

    /// A fresh knock by the gate's clock is granted, with the one rule that is right by it.
    fn is_granted(&mut self, from: IpAddr) -> Result<()> {
        let payload = Payload { at: self.clock.read(), ..self.world.alice.asks_for("ssh")? };
        let knock = self.world.alice.seal(&payload);
        let before = self.clock.read();
        self.crowd.send(from, &self.world.gate, KNOCK_PORTS[0], &knock)?;
        let mut last = Vec::new();
        let rule = wait_for(&format!("a rule for {from}"), LONG, || {
            last = self.world.gate.grants(Family::V4)?;
            last.retain(|grant| grant.source == from);
            let [Grant { starts: Some(starts), stops, .. }] = &last[..] else { return Ok(None) };
            let after = self.clock.read();
            // It begins five seconds early, and its last second is a whole one.
            let begun = before.as_secs() - 5..=after.as_secs() - 5;
            let ends = before.after(WINDOW).as_secs() - 1..=after.after(WINDOW).as_secs();
            Ok((begun.contains(&starts.as_secs()) && ends.contains(&stops.as_secs())).then_some(()))
        });
        rule.with_context(|| format!("sent at {before}: {last:#?}"))?;
        self.opened.push(knock);
        Ok(())
    }

    /// A knock by the gate's clock opens.
    fn opens(&self, from: IpAddr) -> Result<()> {
        let payload = Payload { at: self.clock.read(), ..self.world.alice.asks_for("ssh")? };
        self.crowd.send(from, &self.world.gate, KNOCK_PORTS[0], &self.world.alice.seal(&payload))?;
        self.crowd.is_to_see(from, self.door(), Seen::Open)
    }

    /// A door that was knocked at, and was seen open a moment later, is open for its window, and not a second longer.
    fn lasts(&self, from: IpAddr, knocked: Instant, opened: Instant) -> Result<()> {
        const GRACE: Duration = Duration::from_secs(1);
        let mut last = None;
        while opened.elapsed() < WINDOW + 2 * GRACE {
            let sent = Instant::now();
            if self.crowd.sees(from, self.door())? == Seen::Open {
                last = Some(sent);
            }
        }
        let last = last.context("it was shut already")?;
        let (early, late) = (knocked + WINDOW.saturating_sub(GRACE), opened + WINDOW + GRACE);
        ensure!((early..=late).contains(&last), "open for {:?} after the knock", last - knocked);
        Ok(())
    }

    /// The gate refuses each of these knocks, from an address of its own, and has no rule for any of them.
    fn is_refused(&mut self, knocks: &[Knock]) -> Result<()> {
        let addresses = knocks.iter().map(|_| self.crowd.address(Family::V4)).collect::<Result<Vec<_>>>()?;
        refuses_some(&self.world.gate, knocks.len(), || {
            addresses
                .iter()
                .zip(knocks)
                .try_for_each(|(&from, knock)| self.crowd.send(from, &self.world.gate, KNOCK_PORTS[0], knock))
        })?;
        let grants = self.world.gate.grants(Family::V4)?;
        let granted = self.world.gate.events("granted")?;
        for from in addresses {
            ensure!(!grants.iter().any(|grant| grant.source == from), "a rule for {from}: {grants:#?}");
            let is_its = |event: &serde_json::Value| event["source"] == from.to_string();
            ensure!(!granted.iter().any(is_its), "{from} was let in");
        }
        Ok(())
    }

    fn door(&self) -> SocketAddr {
        self.world.gate.at(Family::V4, SSH)
    }
}
