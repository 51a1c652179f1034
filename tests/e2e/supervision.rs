//! Front and warden die or hang: others take their places, nobody who is in is put out, and the log has one line about
//! it. The supervisor dies: the others end themselves, and the kernel ends the windows (P5, P9).

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, Window};
use postern_tests::debugger::stop_thread;
use postern_tests::gate::{KNOCK_PORTS, Role, SSH, Settings, Variant};
use postern_tests::knocks::open;
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, wait_to_see};
use postern_tests::process::has_ended;
use postern_tests::wait::{LONG, wait_for};
use rustix::process::{Pid, Signal};

use crate::crowd::{Lease, gate_and_crowd, rules_for};
use crate::guard::stays_shut;
use crate::neighbours::at_once;
use crate::world::World;

/// Windows that end after everything has been looked at, and a log as an administrator has it.
const LASTING: Settings = Settings { window_secs: 60, log: "info", ..Settings::DEFAULT };
/// What becomes of them is the same for both kinds of iptables, but for the lock of one.
const WITHOUT_LOCK: [Variant; 2] = [Variant::Nft, Variant::Nftables];
/// How long a silent process is waited for (`HANGS` in the supervisor): a heartbeat less, and a moment to be replaced.
const HANGS: std::ops::RangeInclusive<u64> = 7..=16;
const TRIAL: Duration = Duration::from_secs(8);

#[test]
fn a_killed_front_is_replaced() -> Result<()> {
    the_killed_are_replaced(&[Role::Front])
}

#[test]
fn a_killed_warden_is_replaced() -> Result<()> {
    the_killed_are_replaced(&[Role::Warden])
}

#[test]
fn front_and_warden_killed_at_once_are_replaced() -> Result<()> {
    the_killed_are_replaced(&[Role::Front, Role::Warden])
}

fn the_killed_are_replaced(victims: &[Role]) -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| the_killed_are_replaced_through(variant, victims)).map(drop)
}

fn the_killed_are_replaced_through(variant: Variant, victims: &[Role]) -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
    let lease = Lease::take(&world, &mut crowd)?;
    let told = Told::so_far(&world)?;
    let killed = victims.iter().map(|&victim| world.gate.signal_to(victim, Signal::KILL));
    let killed = killed.collect::<Result<Vec<_>>>()?;
    lease.is_untouched(&world, &crowd)?;
    for &victim in victims {
        world.gate.wait_for_pid(victim, &killed)?;
    }
    crowd.is_let_in(&world.gate, &world.alice)?;
    lease.is_untouched(&world, &crowd)?;
    let mut lines = told.since(&world)?;
    for name in victims.iter().map(|victim| victim.name()) {
        let line = format!("the {name} died (signal: 9 (SIGKILL)); another {name} starts in 100ms");
        let at = lines.iter().position(|told| told.contains(&line));
        lines.remove(at.with_context(|| format!("no {line:?} in {lines:#?}"))?);
    }
    ensure!(lines.is_empty(), "more than one line about it: {lines:#?}");
    Ok(())
}

#[test]
fn who_dies_again_and_again_is_waited_for_longer_and_longer() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(LASTING)?;
    let lease = Lease::take(&world, &mut crowd)?;
    let told = Told::so_far(&world)?;
    for pause in [100, 200, 400] {
        for role in [Role::Front, Role::Warden] {
            let killed = Instant::now();
            let pid = world.gate.kill_one(role)?;
            world.gate.wait_for_pid(role, &[pid])?;
            let (name, vacant) = (role.name(), killed.elapsed());
            ensure!(vacant >= Duration::from_millis(pause), "another {name} after {vacant:?}");
            crowd.is_let_in(&world.gate, &world.alice)?;
            let line = format!("the {name} died (signal: 9 (SIGKILL)); another {name} starts in {pause}ms");
            ensure!(told.since(&world)?.iter().any(|told| told.contains(&line)), "no {line:?}");
        }
    }
    lease.is_untouched(&world, &crowd)?;
    for role in [Role::Front, Role::Warden] {
        world.gate.wait_for_events(&format!("the {} works again", role.name()), 1)?;
    }
    Ok(())
}

#[test]
fn a_front_that_hangs_is_replaced() -> Result<()> {
    who_hangs_is_replaced(Role::Front)
}

#[test]
fn a_warden_that_hangs_is_replaced() -> Result<()> {
    who_hangs_is_replaced(Role::Warden)
}

/// The thread that reads packets, and it alone: the one that speaks with the supervisor goes on.
#[test]
fn a_front_that_reads_no_more_is_replaced() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(LASTING)?;
    let lease = Lease::take(&world, &mut crowd)?;
    let stopped = Instant::now();
    let pid = world.gate.wait_for_pid(Role::Front, &[])?;
    stop_thread(pid, "watch")?;
    let another = || Ok(world.gate.pid(Role::Front)?.filter(|&front| front != pid));
    wait_for("another front", 2 * LONG, another)?;
    let noticed = stopped.elapsed();
    // Before it is silent, it is stuck for some time (`STUCK` in the front).
    ensure!((15..=45).contains(&noticed.as_secs()), "another front after {noticed:?}");
    crowd.is_let_in(&world.gate, &world.alice)?;
    lease.is_untouched(&world, &crowd)
}

fn who_hangs_is_replaced(victim: Role) -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| who_hangs_is_replaced_through(variant, victim)).map(drop)
}

fn who_hangs_is_replaced_through(variant: Variant, victim: Role) -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
    let lease = Lease::take(&world, &mut crowd)?;
    let told = Told::so_far(&world)?;
    let stopped = Instant::now();
    let pid = world.gate.signal_to(victim, Signal::STOP)?;
    world.gate.wait_for_pid(victim, &[pid])?;
    let noticed = stopped.elapsed();
    ensure!(HANGS.contains(&noticed.as_secs()), "another {} after {noticed:?}", victim.name());
    ensure!(has_ended(pid), "who hangs was not ended");
    crowd.is_let_in(&world.gate, &world.alice)?;
    lease.is_untouched(&world, &crowd)?;
    let (name, lines) = (victim.name(), told.since(&world)?);
    let line =
        format!("the {name} died: it hangs: nothing was heard of it for 10s; another {name} starts in 100ms");
    ensure!(matches!(&lines[..], [only] if only.contains(&line)), "not only {line:?}: {lines:#?}");
    Ok(())
}

#[test]
fn without_a_supervisor_the_others_end_and_the_next_start_adopts_what_lives() -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| the_next_start_adopts_what_lives(variant)).map(drop)
}

fn the_next_start_adopts_what_lives(variant: Variant) -> Result<()> {
    let settings = Settings { variant, window_secs: 4, log: "debug", ..LASTING };
    let (mut world, mut crowd) = gate_and_crowd(settings)?;
    let lasting = crowd.address(Family::V4)?;
    let window = Some(Window::from_secs(60)?);
    let payload = Payload { request: open("ssh", window)?, ..world.alice.asks_for("ssh")? };
    crowd.send(lasting, &world.gate, KNOCK_PORTS[0], &world.alice.seal(&payload))?;
    let lease = Lease::of(&world, &crowd, lasting)?;
    let opened = world.opens(Family::V4)?;

    let others = [Role::Front, Role::Warden].map(|role| world.gate.wait_for_pid(role, &[]));
    let others = others.into_iter().collect::<Result<Vec<_>>>()?;
    world.gate.kill_one(Role::Supervisor)?;
    let gone = || Ok(others.iter().all(|&pid| has_ended(pid)).then_some(()));
    wait_for("the end of the others", Duration::from_secs(1), gone)?;
    lease.is_untouched(&world, &crowd)?;
    world.shuts_on_time(opened)?;
    let dead = rules_for(&world, world.home.ip(Family::V4))?;
    // nftables takes out by itself what has ended.
    ensure!(dead.is_empty() == (variant == Variant::Nftables), "dead, and there: {dead:#?}");

    world.gate.start(&[])?;
    let dead = rules_for(&world, world.home.ip(Family::V4))?;
    ensure!(dead.is_empty(), "a dead rule is still there: {dead:#?}");
    lease.is_untouched(&world, &crowd)?;
    let adopted = world.gate.wait_for_events("guard stood", 1)?;
    assert_eq!(adopted[0]["adopted"], 1);
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

/// The order waits in the link. The pause before the next warden is made so long, by killing some, that a window that
/// began with the order's execution would end too late.
#[test]
fn a_knock_while_there_is_no_warden_is_carried_out_by_the_next() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { window_secs: 7, ..LASTING })?;
    crowd.is_let_in(&world.gate, &world.alice)?;
    let mut killed = Vec::new();
    for _pause in [100, 200, 400, 800, 1_600, 3_200] {
        world.gate.wait_for_pid(Role::Warden, &killed)?;
        killed.push(world.gate.kill_one(Role::Warden)?);
    }
    wait_for("the pause", LONG, || {
        let lines = world.gate.running()?.lines();
        Ok(lines.last().is_some_and(|line| line.contains("starts in 3s 200ms")).then_some(()))
    })?;
    let door = world.gate.at(Family::V4, SSH);
    let knocked = Instant::now();
    world.send(&world.home, Family::V4, &world.alice.seal(&world.alice.asks_for("ssh")?))?;
    let opened = world.opened(door, knocked);
    stays_shut(&world.home, door, knocked + Duration::from_secs(2))?;
    world.gate.wait_for_pid(Role::Warden, &killed)?;
    wait_to_see(&world.home, door, Seen::Open)?;
    world.shuts_on_time(opened)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

/// An iptables that waits for its lock would change the firewall behind the back of the next warden.
#[test]
fn what_a_dead_warden_ran_ends_with_it() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { variant: Variant::Legacy, ..LASTING })?;
    let lease = Lease::take(&world, &mut crowd)?;
    let lock = File::options().write(true).open(world.gate.directory().join("xtables.lock"))?;
    lock.lock()?;
    let from = crowd.address(Family::V4)?;
    let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
    crowd.send(from, &world.gate, KNOCK_PORTS[0], &knock)?;
    let waits = || Ok(world.gate.host().pids()?.into_iter().find(|&pid| is_iptables(pid)));
    let waiting = wait_for("an iptables that waits", LONG, waits)?;
    let killed = world.gate.kill_one(Role::Warden)?;
    // By itself it would wait for five.
    let at_once = Duration::from_secs(2);
    wait_for("the end of that iptables", at_once, || Ok(has_ended(waiting).then_some(())))?;
    drop(lock);
    world.gate.wait_for_pid(Role::Warden, &[killed])?;
    crowd.is_let_in(&world.gate, &world.alice)?;
    ensure!(rules_for(&world, from)?.is_empty(), "a rule behind the warden's back");
    lease.is_untouched(&world, &crowd)
}

fn is_iptables(pid: Pid) -> bool {
    let exe = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    exe.is_ok_and(|exe| exe.ends_with("xtables-legacy-multi"))
}

/// A terminal sends its Ctrl-C to every process of the group: only the supervisor is to be in it.
#[test]
fn a_ctrl_c_stops_in_order() -> Result<()> {
    let (mut world, mut crowd) = gate_and_crowd(LASTING)?;
    world.gate.stop()?;
    let mut command = world.gate.run_command(&[])?;
    command.process_group(0);
    world.gate.start_by(command)?;
    let lease = Lease::take(&world, &mut crowd)?;
    let told = Told::so_far(&world)?;
    world.gate.running()?.signal_group(Signal::INT)?;
    let stopped = world.gate.wait_for_events(STOPPED, 1);
    let lines = told.since(&world)?;
    stopped.with_context(|| format!("{lines:#?}"))?;
    ensure!(
        matches!(&lines[..], [first, last] if first.contains("counters") && last.contains(STOPPED)),
        "not in order: {lines:#?}"
    );
    world.gate.wait_for_end()?;
    lease.is_untouched(&world, &crowd)?;
    world.gate.start(&[])?;
    lease.is_untouched(&world, &crowd)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

const STOPPED: &str = "stopped; the guard and live grants stay (posternd remove takes them away)";

#[test]
fn a_trial_ends_on_time_though_its_warden_was_killed() -> Result<()> {
    let (mut world, mut crowd) = gate_and_crowd(LASTING)?;
    world.gate.stop()?;
    world.gate.administer(&["remove"])?;
    let (door, armed) = (world.gate.at(Family::V4, SSH), Instant::now());
    let trial = format!("{}s", TRIAL.as_secs());
    world.gate.start(&["--trial", &trial])?;
    let falls_at_the_latest = Instant::now() + TRIAL + Duration::from_secs(1);
    let killed = world.gate.kill_one(Role::Warden)?;
    world.gate.wait_for_pid(Role::Warden, &[killed])?;
    crowd.is_let_in(&world.gate, &world.alice)?;
    stays_shut(&world.stranger, door, armed + TRIAL)?;
    world.gate.wait_for_end()?;
    ensure!(Instant::now() < falls_at_the_latest + Duration::from_secs(1), "the trial ended late");
    wait_to_see(&world.stranger, door, Seen::Open)?;
    ensure!(!world.gate.saved(Family::V4)?.contains("POSTERN"), "rules of Postern are left");
    world.gate.start(&[])?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

#[test]
fn a_confirmed_trial_stays_confirmed_though_its_warden_was_killed() -> Result<()> {
    let (mut world, mut crowd) = gate_and_crowd(LASTING)?;
    world.gate.stop()?;
    world.gate.administer(&["remove"])?;
    let trial = format!("{}s", TRIAL.as_secs());
    world.gate.start(&["--trial", &trial])?;
    let over = Instant::now() + TRIAL + Duration::from_secs(2);
    crowd.is_let_in(&world.gate, &world.alice)?;
    world.gate.signal(Signal::USR1)?;
    world.gate.wait_for_events("trial confirmed: the guard stays", 1)?;
    let killed = world.gate.kill_one(Role::Warden)?;
    world.gate.wait_for_pid(Role::Warden, &[killed])?;
    crowd.is_let_in(&world.gate, &world.alice)?;
    stays_shut(&world.stranger, world.gate.at(Family::V4, SSH), over)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

/// What the log of a gate had.
struct Told(usize);

impl Told {
    fn so_far(world: &World) -> Result<Self> {
        Ok(Self(world.gate.running()?.lines().len()))
    }

    /// What it has had since, but for leases that came and went.
    fn since(&self, world: &World) -> Result<Vec<String>> {
        let mut lines = world.gate.running()?.lines().split_off(self.0);
        lines.retain(|line| {
            !["granted", "ended"].iter().any(|word| line.contains(&format!("\"message\":\"{word}\"")))
        });
        Ok(lines)
    }
}
