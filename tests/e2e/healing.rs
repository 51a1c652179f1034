//! Somebody else flushes or reorders the firewall while the gate runs: within two seconds everything of ours stands again,
//! whoever was let in still is, the others' rules are as they left them, and the log says it once. What the gate does
//! itself is not taken for that, and while nothing changes it starts nothing.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_proto::{Payload, Request, Services};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings, Variant, WEB};
use postern_tests::netns::{Family, Host, ip_of};
use postern_tests::probe::{Seen, probe, udp, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::wait::{LONG, wait_for};
use rustix::fs::{FlockOperation, flock};

use crate::neighbours::at_once;
use crate::world::{World, grants};

const FAILED: &str = "cannot make sure that the guard is up; trying again every second";
const HEALED: &str = "the firewall was not as the gate left it: restored";
/// How long the guard may be gone.
const LIMIT: Duration = Duration::from_secs(2);

/// What somebody does, as a script for sh in which `$t` is the iptables program.
struct Deed {
    what: &'static str,
    script: &'static str,
    /// What the gate says was wrong, without the address family.
    wrong: &'static [&'static str],
}

const DEEDS: &[Deed] = &[
    Deed { what: "INPUT flushed", script: "$t -F INPUT", wrong: &["jump"] },
    Deed {
        what: "everything flushed and deleted",
        script: "$t -F && $t -X",
        wrong: &["jump", "guard", "grants"],
    },
    Deed {
        what: "a ruleset restored",
        script: "printf '*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n:OTHERS -\n\
                 -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -j OTHERS\n\
                 -A OTHERS -p tcp --dport 9 -j DROP\nCOMMIT\n' | $t-restore",
        wrong: &["jump", "guard", "grants"],
    },
    Deed { what: "a rule before the jump", script: "$t -I INPUT 1 -j ACCEPT", wrong: &["jump"] },
    Deed { what: "a rule in the guard", script: "$t -I POSTERN 1 -j ACCEPT", wrong: &["guard"] },
    Deed { what: "a grant to everybody", script: "$t -I POSTERN-GRANTS 1 -j ACCEPT", wrong: &["grants"] },
    Deed { what: "the grants flushed", script: "$t -F POSTERN-GRANTS", wrong: &["grants"] },
];

/// For nft only: it takes both families at once.
const FLUSH_RULESET: Deed = Deed { what: "nft flush ruleset", script: "nft flush ruleset", wrong: &[] };

#[test]
fn heals_after_each_deed_through_iptables_nft() -> Result<()> {
    in_both_families(Variant::Nft)
}

#[test]
fn heals_after_each_deed_through_iptables_legacy() -> Result<()> {
    in_both_families(Variant::Legacy)
}

/// At once, each in a world of its own: most of the time they wait.
fn in_both_families(variant: Variant) -> Result<()> {
    thread::scope(|scope| {
        let families = Family::ALL.map(|family| scope.spawn(move || heals_after_each_deed(family, variant)));
        families
            .into_iter()
            .try_for_each(|family| family.join().expect("no panic but for a failed assertion"))
    })
}

fn heals_after_each_deed(family: Family, variant: Variant) -> Result<()> {
    let mut world = World::new(Settings { variant, window_secs: 4, ..Settings::default() })?;
    world.listen(&[SSH, WEB])?;
    // A host without Postern, to which the same is done.
    let plain = world.network.host([4])?;
    let others = "$t -N OTHERS && $t -A OTHERS -p udp --dport 9 -j DROP && $t -A INPUT -j OTHERS";
    for host in [world.gate.host(), &plain] {
        run_script(&world.gate, host, variant, family, others)?;
    }
    world.gate.start(&[])?;
    let deeds = DEEDS.iter().chain((variant == Variant::Nft).then_some(&FLUSH_RULESET));
    for deed in deeds {
        heals(&world, &plain, variant, family, deed).context(deed.what)?;
    }
    Ok(())
}

fn heals(world: &World, plain: &Host, variant: Variant, family: Family, deed: &Deed) -> Result<()> {
    let (gate, door) = (&world.gate, world.gate.at(family, SSH));
    let opened = world.opens(family)?;
    let before = gate.events(HEALED)?.len();
    run_script(gate, gate.host(), variant, family, deed.script)?;
    let took = shut_again(&world.stranger, door, Instant::now())?;
    ensure!(took <= LIMIT, "the guard was gone for {took:?}");
    assert_eq!(probe(&world.home, door)?, Seen::Open, "the lease lives");
    assert_eq!(probe(&world.home, gate.at(family, WEB))?, Seen::Nothing, "and lets in nowhere else");
    if !deed.script.contains("POSTERN") {
        run_script(gate, plain, variant, family, deed.script)?;
    }
    assert_eq!(
        others_rules(gate, gate.host(), variant, family)?,
        others_rules(gate, plain, variant, family)?
    );

    world.shuts_on_time(opened)?;
    let said = gate.events(HEALED)?.split_off(before);
    ensure!(said.len() == 1, "said once, not {said:?}");
    let wrong = said[0]["wrong"].as_str().context("it says what was wrong")?;
    let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
    ensure!(deed.wrong.iter().all(|part| wrong.contains(&format!("{name} {part}"))), "{wrong}");
    ensure!(deed.wrong.is_empty() || wrong.split(", ").count() == deed.wrong.len(), "{wrong}");
    Ok(())
}

/// Runs a script on a host, with the gate's kind of iptables.
fn run_script(gate: &Gate, host: &Host, variant: Variant, family: Family, script: &str) -> Result<()> {
    succeed(shell(gate, host, variant, family, script), b"", LONG).map(drop)
}

fn shell(gate: &Gate, host: &Host, variant: Variant, family: Family, script: &str) -> Command {
    let mut command = host.command("sh");
    command.args(["-ec", script]).env("t", variant.program(family, ""));
    command.env("XTABLES_LOCKFILE", gate.directory().join("xtables.lock"));
    command
}

/// The script that takes the guard away: this one through iptables.
const fn take_the_guard_away(variant: Variant, through_iptables: &'static str) -> &'static str {
    match variant {
        Variant::Nft | Variant::Legacy => through_iptables,
        Variant::Nftables => "nft delete table inet postern",
    }
}

/// How long after an instant a port was shut to somebody for whom it was open then.
fn shut_again(from: &Host, door: SocketAddr, since: Instant) -> Result<Duration> {
    wait_for("a shut port", LONG, || {
        let sent = Instant::now();
        Ok((probe(from, door)? == Seen::Nothing).then_some(sent - since))
    })
}

/// What stands in a host's filter table and is neither ours nor there from the beginning.
fn others_rules(gate: &Gate, host: &Host, variant: Variant, family: Family) -> Result<Vec<String>> {
    let saved = succeed(shell(gate, host, variant, family, "$t-save -t filter"), b"", LONG)?.text();
    let rules = saved.lines().map(|line| line.split(" [").next().unwrap_or(line));
    let others =
        rules.filter(|line| line.starts_with("-A") || (line.starts_with(':') && !line.ends_with("ACCEPT")));
    Ok(others.filter(|line| !line.contains("POSTERN")).map(str::to_owned).collect())
}

#[test]
fn heals_amid_a_steady_stream_of_changes_through_iptables_nft() -> Result<()> {
    heals_amid_a_steady_stream_of_changes(Variant::Nft)
}

#[test]
fn heals_amid_a_steady_stream_of_changes_through_iptables_legacy() -> Result<()> {
    heals_amid_a_steady_stream_of_changes(Variant::Legacy)
}

#[test]
fn heals_amid_a_steady_stream_of_changes_through_nftables() -> Result<()> {
    heals_amid_a_steady_stream_of_changes(Variant::Nftables)
}

/// Somebody who never stops changing his own rules is not waited for.
fn heals_amid_a_steady_stream_of_changes(variant: Variant) -> Result<()> {
    let world = World::running(Settings { variant, ..Settings::default() })?;
    let gate = &world.gate;
    let script = |script: &str| run_script(gate, gate.host(), variant, Family::V4, script);
    script("$t -N OTHERS")?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stream = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Fast enough to be one change, slow enough to leave the lock of iptables-legacy to others.
                script("$t -A OTHERS -p udp --dport 9 -j DROP && $t -F OTHERS")?;
                thread::sleep(Duration::from_millis(30));
            }
            Ok::<_, anyhow::Error>(())
        });
        let healed = (0..3).try_for_each(|_| {
            script(take_the_guard_away(variant, "$t -D INPUT -j POSTERN"))?;
            let took = shut_again(&world.stranger, gate.at(Family::V4, SSH), Instant::now())?;
            ensure!(took <= LIMIT, "the guard was gone for {took:?}");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        stream.join().expect("the stream does not panic").and(healed)
    })?;
    world.opens(Family::V4).map(drop)
}

/// Damage that is just what was healed a moment ago leaves the firewall as it was when it was looked at last.
#[test]
fn the_same_deed_again_is_healed_again() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, ..Settings::default() })?;
        for times in 1..=4 {
            let deed = take_the_guard_away(variant, "$t -F INPUT");
            run_script(&world.gate, world.gate.host(), variant, Family::V6, deed)?;
            let took = shut_again(&world.stranger, world.gate.at(Family::V6, SSH), Instant::now())?;
            ensure!(took <= LIMIT, "the guard was gone for {took:?}");
            world.gate.wait_for_events(HEALED, times)?;
        }
        world.opens(Family::V6).map(drop)
    })
    .map(drop)
}

#[test]
fn who_knocks_while_the_guard_is_gone_is_let_in() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, window_secs: 6, ..Settings::default() })?;
        let gate = &world.gate;
        for family in Family::ALL {
            let (door, knock) = (gate.at(family, SSH), world.alice.seal(&world.alice.asks_for("ssh")?));
            run_script(gate, gate.host(), variant, family, take_the_guard_away(variant, "$t -F && $t -X"))?;
            grants(gate, || world.send(&world.home, family, &knock))?;
            assert_eq!(probe(&world.stranger, door)?, Seen::Nothing, "the chains came back before the grant");
            assert_eq!(probe(&world.home, door)?, Seen::Open);
        }
        Ok(())
    })
    .map(drop)
}

#[test]
fn a_guard_on_trial_is_healed_and_falls_all_the_same() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::new(Settings { variant, ..Settings::default() })?;
        world.listen(&[SSH])?;
        let door = world.gate.at(Family::V4, SSH);
        let armed = Instant::now();
        world.gate.start(&["--trial", "6s"])?;
        let falls_at_the_latest = Instant::now() + Duration::from_secs(7);
        let deed = take_the_guard_away(variant, "$t -F && $t -X");
        run_script(&world.gate, world.gate.host(), variant, Family::V4, deed)?;
        shut_again(&world.stranger, door, Instant::now())?;
        // From here on there is only the kernel to let it fall.
        world.gate.kill()?;
        let (begin, fell) = wait_for("the end of the trial", LONG, || {
            let sent = Instant::now();
            Ok((probe(&world.stranger, door)? == Seen::Open).then(|| (sent, Instant::now())))
        })?;
        ensure!(fell >= armed + Duration::from_secs(6), "too early");
        ensure!(begin <= falls_at_the_latest + Duration::from_secs(1), "too late");
        world.gate.start(&[])?;
        world.opens(Family::V4).map(drop)
    })
    .map(drop)
}

/// Somebody holds the lock of iptables-legacy for longer than the gate waits for it.
#[test]
fn what_cannot_be_healed_is_tried_again() -> Result<()> {
    let world = World::running(Settings { variant: Variant::Legacy, ..Settings::default() })?;
    let (gate, door) = (&world.gate, world.gate.at(Family::V4, SSH));
    let lock = hold_lock(gate)?;
    // By a lock of its own, or it would wait as well.
    let mut flush = gate.firewall(Family::V4, "");
    flush.args(["-F", "INPUT"]).env("XTABLES_LOCKFILE", gate.directory().join("another.lock"));
    succeed(flush, b"", LONG)?;
    let failed = gate.wait_for_events(FAILED, 1)?;
    ensure!(failed[0]["error"].as_str().is_some_and(|error| error.contains("iptables-legacy")), "{failed:?}");
    assert_eq!(probe(&world.stranger, door)?, Seen::Open, "it was flushed");
    drop(lock);
    shut_again(&world.stranger, door, Instant::now())?;
    assert_eq!(gate.wait_for_events(HEALED, 1)?.len(), 1);
    world.opens(Family::V4).map(drop)
}

/// A client closes its door, and the rule cannot be taken out: it does not stay until the end of the window.
#[test]
fn a_rule_that_could_not_be_taken_out_goes_as_soon_as_it_can() -> Result<()> {
    let settings = Settings { variant: Variant::Legacy, window_secs: 60, ..Settings::default() };
    let world = World::running(settings)?;
    let (gate, door) = (&world.gate, world.gate.at(Family::V4, SSH));
    world.opens(Family::V4)?;
    let lock = hold_lock(gate)?;
    let request = Request::Close { services: Services::new(vec!["ssh".parse()?])? };
    let close = world.alice.seal(&Payload { request, ..world.alice.asks_for("ssh")? });
    world.send(&world.home, Family::V4, &close)?;
    gate.wait_for_events("a rule could not be taken out; the kernel ends a lease's at its time", 1)?;
    assert_eq!(probe(&world.home, door)?, Seen::Open, "the rule is there");
    drop(lock);
    wait_to_see(&world.home, door, Seen::Nothing)?;
    world.opens(Family::V4).map(drop)
}

/// Keeps every iptables-legacy of a gate waiting.
fn hold_lock(gate: &Gate) -> Result<fs::File> {
    let lock = fs::File::open(gate.directory().join("xtables.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

#[test]
fn what_the_gate_does_itself_is_no_damage_through_iptables_nft() -> Result<()> {
    what_the_gate_does_itself_is_no_damage(Variant::Nft)
}

#[test]
fn what_the_gate_does_itself_is_no_damage_through_iptables_legacy() -> Result<()> {
    what_the_gate_does_itself_is_no_damage(Variant::Legacy)
}

/// Grants come, are renewed and end, and the guard is put up anew amid them.
fn what_the_gate_does_itself_is_no_damage(variant: Variant) -> Result<()> {
    const NUMBERS: std::ops::Range<u16> = 1000..1020;
    let mut world = World::new(Settings { variant, window_secs: 1, ..Settings::default() })?;
    world.listen(&[SSH])?;
    let farm = world.network.host(NUMBERS)?;
    world.gate.start(&[])?;
    let gate = &world.gate;
    for family in Family::ALL {
        let to = gate.at(family, KNOCK_PORTS[0]);
        for round in 0..5 {
            for number in NUMBERS {
                let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
                udp(&farm, ip_of(number, family))?.send_to(&knock, to)?;
            }
            // The next round falls into the ends of this one.
            gate.wait_for_events("granted", (round + 1) * 8)?;
            gate.wait_for_events("ended", round * 4)?;
            gate.reload()?;
        }
    }
    starts_nothing_for(gate, Duration::from_secs(5))?;
    assert_eq!(gate.events(HEALED)?, Vec::<serde_json::Value>::new());

    let before = children_faults(gate)?;
    world.opens(Family::V4)?;
    ensure!(children_faults(gate)? > before, "a grant starts iptables, which is seen");
    run_script(gate, gate.host(), variant, Family::V4, "$t -F INPUT")?;
    gate.wait_for_events(HEALED, 1).map(drop)
}

/// Waits until the gate has started no program for so long.
fn starts_nothing_for(gate: &Gate, long: Duration) -> Result<()> {
    let (mut last, mut since) = (children_faults(gate)?, Instant::now());
    wait_for("a gate that starts nothing", LONG, || {
        thread::sleep(Duration::from_millis(100));
        let now = children_faults(gate)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= long).then_some(()))
    })
}

/// Page faults of all programs that the gate's processes have started and that have ended: there is none without any.
fn children_faults(gate: &Gate) -> Result<u64> {
    /// `cminflt` in proc(5), counted from behind the name.
    const FIELD: usize = 8;
    let mut faults = 0;
    for pid in gate.host().pids()? {
        // A program that the gate has started may have ended meanwhile; it is counted with the gate then.
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { continue };
        let (_, fields) = stat.rsplit_once(") ").context("a name in /proc/*/stat")?;
        faults += fields.split(' ').nth(FIELD).context("cminflt")?.parse::<u64>()?;
    }
    Ok(faults)
}
